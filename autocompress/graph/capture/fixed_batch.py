"""Programs of two fixed batch sizes → one of any batch size.

`len(x)` and `int(x.shape[0])` are numbers to Python, so that torch exports such a module for one batch size
alone. What differs between two of its programs is what follows from the batch.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import InputKind

from autocompress.graph.capture.rewriting import op_name

BATCHES = (7, 11)
"""Primes that sizes of layers seldom are."""

AT_ONE = "shape_at_batch_one"
"""The key, in a node's `meta`, of the shape of its value for one example."""

Program = torch.export.ExportedProgram


class DiffersOtherwiseError(ValueError):
    """Two programs differ in more than multiples of the batch."""


def of_any_batch(program: Program, twin: Program) -> Program:
    """Return the first program with the batch in place of numbers that are its multiples; it is changed.

    Raises DiffersOtherwiseError.
    """
    nodes, others = list(program.graph.nodes), list(twin.graph.nodes)
    if len(nodes) != len(others):
        raise DiffersOtherwiseError(f"{len(nodes)} operations at one batch, {len(others)} at another")
    source = _batched_input(program, nodes, others)
    last = max(index for index, node in enumerate(nodes) if node.op == "placeholder")
    with program.graph.inserting_after(nodes[last]):
        batch = program.graph.call_function(torch.ops.aten.sym_size.int, (source, 0))
    batch.meta = {"val": BATCHES[0], AT_ONE: ()}
    writer = _Writer(program.graph, batch)
    for node, other in zip(nodes, others, strict=True):
        if node.op != other.op or (
            op_name(node.target) != op_name(other.target) and node.op == "call_function"
        ):
            raise DiffersOtherwiseError(f"{node} is no {other}")
        if "val" in node.meta:
            node.meta[AT_ONE] = _at_one(node.meta["val"], other.meta["val"])
        if node.op == "call_function":
            writer.reader = node
            node.args = writer.joined(node.args, other.args)
            node.kwargs = writer.joined(node.kwargs, other.kwargs)
    return program


def _batched_input(program: Program, nodes: list[fx.Node], others: list[fx.Node]) -> fx.Node:
    names = {
        spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT
    }
    for node, other in zip(nodes, others, strict=True):
        if node.name in names and node.meta["val"].shape[:1] != other.meta["val"].shape[:1]:
            return node
    raise DiffersOtherwiseError("no input has a batch")


class _Writer:
    """Joins arguments of two programs."""

    def __init__(self, graph: fx.Graph, batch: fx.Node) -> None:
        self.graph, self.batch, self.reader = graph, batch, batch

    def joined(self, one: Any, other: Any) -> Any:
        if isinstance(one, (list, tuple)):
            if len(one) != len(other):
                raise DiffersOtherwiseError(f"{self.reader} reads {one} and {other}")
            return type(one)(self.joined(*pair) for pair in zip(one, other, strict=True))
        if isinstance(one, dict):
            return {key: self.joined(value, other[key]) for key, value in one.items()}
        if isinstance(one, fx.Node) or one == other:
            return one
        times, rest = divmod(one, BATCHES[0]) if isinstance(one, int) else (0, 1)
        if rest or times * BATCHES[1] != other:
            raise DiffersOtherwiseError(f"{self.reader} reads {one} and {other}")
        if times == 1:
            return self.batch
        with self.graph.inserting_before(self.reader):
            product = self.graph.call_function(operator.mul, (self.batch, times))
        product.meta = {"val": one, AT_ONE: ()}
        return product


def _at_one(value: Any, other: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_at_one(*pair) for pair in zip(value, other, strict=True))
    if not isinstance(value, Tensor):
        return ()
    first, second = BATCHES
    sizes = zip(value.shape, other.shape, strict=True)
    return tuple(int(one) + (int(two) - int(one)) // (second - first) * (1 - first) for one, two in sizes)
