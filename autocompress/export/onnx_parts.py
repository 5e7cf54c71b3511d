"""Operations without an exporter of their own: cut out, exported by `torch.onnx`, spliced in.

Complex numbers have no form in a file, so operations that compute them wait for the one that makes real
numbers of them and are exported together with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from autocompress.errors import TeacherError
from autocompress.export.onnx_registry import RULES, Tensor
from autocompress.export.torch_onnx import Local, NoOnnxFormError, OnnxPart, PartInput, Step, part_model
from autocompress.graph.module import build, zero_inputs
from autocompress.graph.network import Node, Param, Ref, arg_to_json, map_args
from autocompress.graph.operations import is_opaque
from autocompress.graph.operators import TORCH_DOMAIN

if TYPE_CHECKING:
    from autocompress.export.onnx import Emitter

_FREE_BYTES = 1024
"""Constants of so few bytes are computed beforehand, however few they are computed from."""


@dataclass(frozen=True)
class Waiting:
    """A value that is not in the file: it is computed, anew, by those who read it."""

    node: Node


def has_parts(e: Emitter, node: Node) -> bool:
    """Return whether an operation is written without an exporter of its own."""
    return node.op not in RULES or (e.torch_operators and is_opaque(node.op))


def export_part(e: Emitter, node: Node) -> Any:
    """Write an operation by way of `torch.onnx`, with those before it that wait, and return its value.

    Raises TeacherError, naming the operation, where that has no form in ONNX, or notes it in `e.missing`.
    """
    if e.torch_operators:
        return _call_operator(e, node)
    sample = e.samples.of(node.name)
    if any(one.is_complex() for one in _tensors(sample)):
        return Waiting(node)
    cut = _Cut(e, node.name)
    cut.add(node)
    part = OnnxPart(
        tuple(cut.steps),
        tuple(tuple(one.shape) for one in cut.examples),
        tuple(str(one.dtype).removeprefix("torch.") for one in cut.examples),
    )
    try:
        model = part_model(part, e.opset)
    except NoOnnxFormError as error:
        if e.missing is None:
            raise no_onnx_form(node, str(error)) from error
        e.missing.append(no_onnx_form(node, str(error)))
        return _outputs(node, [e.new_name() for _ in _tensors(sample)])
    return _outputs(node, splice(e, model.graph, cut.names, node.name))


def _outputs(node: Node, names: list[str]) -> Any:
    if _has_parts(node):
        return tuple(Tensor(name, shape) for name, shape in zip(names, node.shape, strict=True))
    return Tensor(names[0], node.shape)


def _has_parts(node: Node) -> bool:
    return bool(node.shape) and isinstance(node.shape[0], tuple)


def _call_operator(e: Emitter, node: Node) -> Any:
    """Write an operation as a call of torch's operator; arguments are JSON, tensors in it by their number."""
    cut = _Cut(e, node.name)
    cut.add(node)
    arguments = [arg_to_json(map_args(_numbered, arg)) for arg in cut.steps[0].args]
    options = {key: arg_to_json(map_args(_numbered, value)) for key, value in cut.steps[0].kwargs}
    outputs = [e.new_name() for _ in (node.shape if _has_parts(node) else [node.shape])]
    call = helper.make_node(
        "Operator",
        cut.names,
        outputs,
        domain=TORCH_DOMAIN,
        operator=node.op,
        arguments=json.dumps([arguments, options]),
    )
    e.add_node(call, node.name)
    return _outputs(node, outputs)


def _numbered(leaf: Any) -> Any:
    return Ref(str(leaf.index)) if isinstance(leaf, PartInput) else leaf


def no_onnx_form(node: Node, why: str) -> TeacherError:
    """Return the error for an operation that no file can hold."""
    return TeacherError(
        f"the operation {node.op} has no form in ONNX",
        where=node.name,
        why=why,
        fix="use a runtime that runs torch's operators (--runtime torch), or replace the operation",
    )


def _tensors(sample: Any) -> list[torch.Tensor]:
    return [sample] if isinstance(sample, torch.Tensor) else [*sample]


class Samples:
    """Know what values are in one run of the network, for their dtypes, which a network does not record."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter
        self._found: dict[str, Any] = {}

    def of(self, name: str) -> Any:
        """Return the value that the node of this name computes for examples of zeros. Raises TeacherError."""
        if name not in self._found:
            self._run(name)
        return self._found[name]

    def _run(self, name: str) -> None:
        e = self._emitter
        nodes = [node for node in e.network.nodes if has_parts(e, node) or node.name == name]
        names = {name, *(node.name for node in nodes), *(ref for node in nodes for ref in node.inputs)}
        names |= set() if e.network.signature is None else set(e.network.outputs)
        x = zero_inputs(e.network, e.batch)
        try:
            with torch.no_grad():
                self._found.update(build(e.network, e.weights).forward_values(x, names))
        except (RuntimeError, TypeError, ValueError) as error:
            raise no_onnx_form(e.network.by_name[name], f"it does not run: {str(error)[:200]}") from error


@dataclass
class _Cut:
    """Collect the operations of a part and what it reads."""

    emitter: Emitter
    reader: str
    steps: list[Step] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    examples: list[torch.Tensor] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)
    _locals: dict[str, Local] = field(default_factory=dict)

    def add(self, node: Node) -> Local:
        if node.name not in self._locals:
            args = tuple(self._argument(arg) for arg in node.args)
            kwargs = tuple((key, self._argument(value)) for key, value in node.kwargs)
            self._locals[node.name] = Local(len(self.steps))
            self.steps.append(Step(node.op, args, kwargs))
        return self._locals[node.name]

    def _argument(self, arg: Any) -> Any:
        if isinstance(arg, tuple):
            return tuple(self._argument(item) for item in arg)
        if isinstance(arg, Param):
            return self._array(self.emitter.weights[arg.name])
        if not isinstance(arg, Ref):
            return arg
        value = self.emitter.values[arg.node]
        if isinstance(value, Waiting):
            return self.add(value.node)
        if isinstance(value, np.ndarray):
            return self._array(value)
        if not isinstance(value, Tensor):
            return value
        name = self.emitter.real(value, self.reader).name
        if self.emitter.torch_operators:
            return self._input(name, torch.empty(0))
        return self._input(name, self.emitter.samples.of(arg.node))

    def _array(self, array: Any) -> PartInput:
        if self.emitter.torch_operators:
            return self._input(self.emitter.constant(array), torch.empty(0))
        if np.iscomplexobj(array):
            pairs = np.stack([array.real, array.imag], axis=-1)
            return self._input(self.emitter.constant(pairs), torch.from_numpy(pairs), is_complex=True)
        return self._input(self.emitter.constant(array), torch.from_numpy(np.asarray(array)))

    def _input(self, name: str, example: torch.Tensor, is_complex: bool = False) -> PartInput:
        if name not in self._places:
            self._places[name] = len(self.names)
            self.names.append(name)
            self.examples.append(example)
        return PartInput(self._places[name], is_complex)


def splice(e: Emitter, graph: onnx.GraphProto, inputs: list[str], name: str) -> list[str]:
    """Add a model's operations to the file, under `name`, and return the names of its outputs."""
    names = {"": "", **dict(zip((one.name for one in graph.input), inputs, strict=True))}
    names.update((one.name, e.constant(numpy_helper.to_array(one))) for one in graph.initializer)
    outputs = {one.name for one in graph.output}
    for node in graph.node:
        fixed = _constant(e, node, names)
        if fixed is not None:
            names.update(zip(node.output, map(e.constant, fixed), strict=False))
            continue
        whole = outputs.intersection(node.output)
        e.add_node(_renamed(e, node, names), name if whole else f"{name}/{node.op_type.lower()}")
    return [names[one.name] for one in graph.output]


def _constant(e: Emitter, node: onnx.NodeProto, names: Mapping[str, str]) -> list[Any] | None:
    """Return what a node computes, if it reads constants only and that takes no more room than these."""
    given = {one: e.constant_named(names.get(one, "")) for one in node.input if one}
    values = {one: value for one, value in given.items() if value is not None}
    if len(values) < len(given) or any(graphs_in(node)):
        return None
    graph = helper.make_graph(
        [node],
        "constant",
        [helper.make_tensor_value_info(one, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
         for one, value in values.items()],
        [helper.make_empty_tensor_value_info(one) for one in node.output if one],
    )  # fmt: skip
    try:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", e.opset)])
        found = ReferenceEvaluator(model).run(None, values)
    except Exception:  # What the reference cannot compute is left to the runtime.
        return None
    if any(isinstance(one, list) for one in found):
        return None
    found = [np.asarray(one) for one in found]
    size = sum(value.nbytes for value in values.values())
    return found if sum(one.nbytes for one in found) <= max(size, _FREE_BYTES) else None


def _renamed(e: Emitter, node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    """Return a copy that reads and writes the file's names; `names` gains those that it writes."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("doc_string")
    copy.ClearField("metadata_props")
    copy.input[:] = [names[one] for one in node.input]
    for one in node.output:
        if one:
            names[one] = e.new_name()
    copy.output[:] = [names[one] for one in node.output]
    for graph in graphs_in(copy):
        _rename_graph(e, graph, dict(names))
    return copy


def graphs_in(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the bodies of a loop or the branches of a condition."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads_of(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names of the tensors that a node reads, those in its bodies too."""
    yield from node.input
    for graph in graphs_in(node):
        for inner in graph.node:
            yield from reads_of(inner)
        yield from (one.name for one in graph.output)


def _rename_graph(e: Emitter, graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Give the values of a loop's or branch's body names of their own; it may read those around it."""
    for one in (*graph.input, *graph.initializer):
        names[one.name] = one.name = e.new_name()
    nodes = [_renamed(e, node, names) for node in graph.node]
    for node in nodes:
        node.name = ""
    del graph.node[:]
    graph.node.extend(nodes)
    for one in (*graph.output, *graph.value_info):
        one.name = names[one.name]
