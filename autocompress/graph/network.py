"""A network as plain data: what `graph.trace` reads off a teacher and every later stage works on.

A `Network` is a list of ATen operations in execution order, with the names and shapes of its
parameters but not their values. It needs no torch, is immutable, and goes to JSON and back.
The values travel beside it as `Weights`, a mapping from parameter name to numpy array, so that
the same transform serves the pricing of a candidate (shapes only) and its construction.

Shapes are those of one example: the batch axis comes first and is 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autocompress.files import JsonObject
from autocompress.graph.capture import signature as signatures
from autocompress.graph.capture.signature import Signature
from autocompress.graph.levels import LEAST_SCALE

Weights = dict[str, NDArray[Any]]
Shape = tuple[int, ...]

INPUT = "input"

Leaf = TypeVar("Leaf")


@dataclass(frozen=True, slots=True)
class Ref:
    """The value that the node of this name computes; `Ref(INPUT)` is the network's input."""

    node: str


@dataclass(frozen=True, slots=True)
class Param:
    """The parameter or buffer of this name."""

    name: str


Arg = Ref | Param | int | float | bool | str | None | tuple["Arg", ...]


@dataclass(frozen=True, slots=True)
class ParamSpec:
    shape: Shape
    dtype: str = "float32"
    trainable: bool = True


@dataclass(frozen=True, slots=True)
class Quantizer:
    """Affine 8-bit quantizer of an activation: real = scale * (q - zero_point), q in [0, 255]."""

    scale: float
    zero_point: int

    @classmethod
    def binary(cls, step: float) -> Quantizer:
        """Return the quantizer of values that are 0 or `step`: the integers are 0 and 1."""
        return cls(float(np.float32(max(step, LEAST_SCALE))), 0)


XNOR, BINARIZE = "xnor", "binarize"
"""The form of binary weights that read binary values, and the operation that makes these."""

GRID_BITS: Mapping[str, int] = {"binary": 1, "ternary": 2, "2": 2, "3": 3, "4": 4}
"""Forms of a `Grid`, and the bits that tell one of its values from the others."""


def grid_form(option: float | str) -> str | None:
    """Return the form of the weights of a layer of so many bits; None for 8 and more, which need no grid."""
    form = "binary" if option == XNOR else str(option)
    return form if form in GRID_BITS else None


@dataclass(frozen=True, slots=True)
class Grid:
    """The few values that the weights of a layer may take; runtimes see them as 8-bit integers.

    `form` is one of `GRID_BITS`. `step` names the parameter that scales the values: `(out,)`, the step of
    each output channel, whose values are odd multiples of it, from -(2^b - 1) to 2^b - 1; for `ternary`
    `(2 · out,)`, the magnitudes of the negative values, then those of the positive ones, beside zero.
    """

    form: str
    step: str


@dataclass(frozen=True)
class Node:
    """One operation.

    `op` is the ATen name without `aten.` and without `.default`: `conv2d`, `add.Tensor`, `mean.dim`; or
    `BINARIZE`.
    `shape` is that of the output, one shape per element for an operation with several outputs,
    and `()` for an integer. `module` is the path of the teacher's module that ran it.
    `bits` is the precision in which a convolution or linear layer computes (32 or 8); a `grid` lets
    an 8-bit layer's weights take few values only; `quantizer`, set by calibration, quantizes the output.
    `density` is the share of its weights that are not held at zero, and `codebook` how many values its
    weights share (0: as many as they like).
    """

    name: str
    op: str
    args: tuple[Any, ...]
    shape: Any
    kwargs: tuple[tuple[str, Any], ...] = ()
    module: str = ""
    bits: int = 32
    quantizer: Quantizer | None = None
    density: float = 1.0
    codebook: int = 0
    grid: Grid | None = None

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of the nodes whose values this one reads, in order, repeats included."""
        return tuple(ref.node for ref in _leaves_of(Ref, (self.args, self.kwargs), []))

    @cached_property
    def params(self) -> tuple[str, ...]:
        """Return the names of the parameters this node reads, in order."""
        names = tuple(param.name for param in _leaves_of(Param, (self.args, self.kwargs), []))
        return names if self.grid is None else (*names, self.grid.step)

    def but(self, **changes: Any) -> Node:
        """Return a copy with these fields changed: `dataclasses.replace`, several times as fast."""
        copy = object.__new__(Node)
        fields = copy.__dict__
        fields.update(self.__dict__)
        fields.update(changes)
        if not changes.keys().isdisjoint(("args", "kwargs", "grid")):
            fields.pop("inputs", None)
            fields.pop("params", None)
        return copy


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that a network reads; `has_batch` where its first axis, 1 here, is the batch."""

    name: str
    shape: Shape
    dtype: str = "float32"
    has_batch: bool = True


@dataclass(frozen=True)
class Network:
    """Operations in execution order, from input tensors to output tensors.

    Most networks read one tensor and write one: `input_shape` and `output`. A network of another kind has a
    `signature`, which says how it is called and what it returns, `more_inputs` beside the first, which is
    then of `input_dtype`, and `more_outputs` beside the first.
    """

    input_shape: Shape
    nodes: tuple[Node, ...]
    output: str
    params: Mapping[str, ParamSpec]
    input_quantizer: Quantizer | None = None
    meta: JsonObject = field(default_factory=dict)
    input_dtype: str = "float32"
    more_inputs: tuple[Input, ...] = ()
    more_outputs: tuple[str, ...] = ()
    signature: Signature | None = None

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        return (Input(INPUT, self.input_shape, self.input_dtype), *self.more_inputs)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Return the values that are returned; one may be returned twice."""
        return (self.output, *self.more_outputs)

    @cached_property
    def _input_shapes(self) -> dict[str, Shape]:
        return {one.name: one.shape for one in self.inputs}

    def with_outputs(self, new_names: Mapping[str, str]) -> Network:
        """Return the network, returning `new_names[v]` wherever it returns a value `v` named there."""
        output, *more = (new_names.get(name, name) for name in self.outputs)
        return replace(self, output=output, more_outputs=tuple(more))

    @cached_property
    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def users(self) -> dict[str, tuple[str, ...]]:
        """Return for each value the names of the nodes that read it, in execution order."""
        users: dict[str, list[str]] = {name: [] for name in (*self._input_shapes, *self.by_name)}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                users[name].append(node.name)
        return {name: tuple(names) for name, names in users.items()}

    @cached_property
    def param_users(self) -> dict[str, tuple[str, ...]]:
        """Return for each parameter the names of the nodes that read it."""
        users: dict[str, list[str]] = {name: [] for name in self.params}
        for node in self.nodes:
            for name in dict.fromkeys(node.params):
                users[name].append(node.name)
        return {name: tuple(names) for name, names in users.items()}

    def shape_of(self, value: str) -> Any:
        return self._input_shapes[value] if value in self._input_shapes else self.by_name[value].shape

    def quantizer_of(self, value: str) -> Quantizer | None:
        if value in self._input_shapes:
            return self.input_quantizer if value == INPUT else None
        return self.by_name[value].quantizer

    def is_rounded(self, value: str) -> bool:
        """Return whether a value has a quantizer, or becomes binary for the one node that reads it."""
        if self.quantizer_of(value) is not None:
            return True
        users = [self.by_name[name] for name in self.users[value]]
        return len(users) == 1 and users[0].op == BINARIZE and users[0].quantizer is not None

    @cached_property
    def steps(self) -> frozenset[str]:
        """Return the names of the parameters that scale the values of a grid."""
        return frozenset(node.grid.step for node in self.nodes if node.grid is not None)

    @property
    def parameter_count(self) -> int:
        return sum(int(np.prod(spec.shape)) for spec in self.params.values() if spec.trainable)

    def with_nodes(self, nodes: Iterable[Node], output: str | None = None) -> Network:
        return replace(self, nodes=tuple(nodes), output=self.output if output is None else output)


def _leaves_of(kind: type[Leaf], args: tuple[Any, ...], found: list[Leaf]) -> list[Leaf]:
    """Return `found` with the leaves of this kind in nested tuples, in order."""
    for arg in args:
        if type(arg) is kind:
            found.append(arg)
        elif type(arg) is tuple or type(arg) is list:
            _leaves_of(kind, arg, found)  # type: ignore[arg-type]
    return found


def flatten(*args: Any) -> Iterator[Any]:
    """Yield the leaves of nested tuples, lists and mappings, in order."""
    for arg in args:
        if isinstance(arg, (tuple, list)):
            yield from flatten(*arg)
        elif isinstance(arg, Mapping):
            yield from flatten(*arg.values())
        else:
            yield arg


def map_args(change: Callable[[Any], Any], arg: Any) -> Any:
    """Return `arg` with `change` applied to every leaf; sequences become tuples."""
    if isinstance(arg, (tuple, list)):
        return tuple(map_args(change, item) for item in arg)
    return change(arg)


def batch_is_second(shape: Shape) -> bool:
    """Return whether a value has its batch, 1 in a trace, on the second axis, as within torch's attention."""
    return len(shape) > 2 and shape[0] != 1 == shape[1]


def redirect(nodes: Iterable[Node], new_names: Mapping[str, str]) -> tuple[Node, ...]:
    """Return the nodes, reading `new_names[v]` wherever they read a value `v` named there."""

    def change(leaf: Any) -> Any:
        return Ref(new_names[leaf.node]) if isinstance(leaf, Ref) and leaf.node in new_names else leaf

    return tuple(
        node.but(
            args=map_args(change, node.args),
            kwargs=tuple((key, map_args(change, value)) for key, value in node.kwargs),
        )
        if any(name in new_names for name in node.inputs)
        else node
        for node in nodes
    )


def prune_dead(network: Network) -> Network:
    """Return the network without the nodes and parameters that its outputs do not depend on."""
    needed = set(network.outputs)
    for node in reversed(network.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    nodes = tuple(node for node in network.nodes if node.name in needed)
    read = {name for node in nodes for name in node.params}
    params = {name: spec for name, spec in network.params.items() if name in read}
    return replace(network, nodes=nodes, params=params)


def unique_name(wanted: str, taken: Iterable[str]) -> str:
    """Return `wanted`, or `wanted_1`, `wanted_2`, … : the first that is not taken."""
    taken_set = set(taken)
    name, count = wanted, 0
    while name in taken_set or name == INPUT:
        count += 1
        name = f"{wanted}_{count}"
    return name


# JSON: {"ref": name}, {"param": name}, {"inf": ±1} and lists; everything else stands for itself.


def to_json(network: Network) -> JsonObject:
    """Return a JSON-ready dictionary; `from_json` gives the equal network back."""
    return {
        "input_shape": list(network.input_shape),
        "input_quantizer": _quantizer_to_json(network.input_quantizer),
        "nodes": [_node_to_json(node) for node in network.nodes],
        "output": network.output,
        "params": {
            name: {"shape": list(spec.shape), "dtype": spec.dtype, "trainable": spec.trainable}
            for name, spec in network.params.items()
        },
        "meta": dict(network.meta),
        **({} if network.signature is None else _call_to_json(network, network.signature)),
    }


def _call_to_json(network: Network, signature: Signature) -> JsonObject:
    """Return what networks of one float tensor in and one tensor out, the first that were kept, do
    without."""
    return {
        "input_dtype": network.input_dtype,
        "more_inputs": [
            {"name": one.name, "shape": list(one.shape), "dtype": one.dtype, "has_batch": one.has_batch}
            for one in network.more_inputs
        ],
        "more_outputs": list(network.more_outputs),
        "signature": signatures.to_json(signature),
    }


def from_json(data: JsonObject) -> Network:
    """Build the network; raise ValueError or KeyError with the offending part when `data` is not a
    network."""
    network = Network(
        input_shape=tuple(data["input_shape"]),
        nodes=tuple(_node_from_json(node) for node in data["nodes"]),
        output=data["output"],
        params={
            name: ParamSpec(tuple(spec["shape"]), spec["dtype"], spec["trainable"])
            for name, spec in data["params"].items()
        },
        input_quantizer=_quantizer_from_json(data.get("input_quantizer")),
        meta=dict(data.get("meta", {})),
        input_dtype=data.get("input_dtype", "float32"),
        more_inputs=tuple(
            Input(one["name"], tuple(one["shape"]), one["dtype"], bool(one["has_batch"]))
            for one in data.get("more_inputs", ())
        ),
        more_outputs=tuple(data.get("more_outputs", ())),
        signature=signatures.checked(data["signature"]) if data.get("signature") else None,
    )
    check(network)
    return network


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


def check(network: Network) -> None:
    """Raise ValueError unless names are plain and unique and every value is computed before use."""
    known = {one.name for one in network.inputs}
    if len(known) != len(network.inputs) or not all(map(_NAME.match, known)):
        raise ValueError(f"the inputs {sorted(known)} are not plain or not unique")
    for node in network.nodes:
        if not _NAME.match(node.name) or node.name in known:
            raise ValueError(f"node name {node.name!r} is not plain or not unique")
        for name in node.inputs:
            if name not in known:
                raise ValueError(f"node {node.name!r} reads {name!r}, which nothing before it computes")
        for name in node.params:
            if name not in network.params:
                raise ValueError(f"node {node.name!r} reads parameter {name!r}, which is not declared")
        if node.grid is not None:
            _check_grid(network, node, node.grid)
        known.add(node.name)
    for name in network.outputs:
        if name not in known:
            raise ValueError(f"output {name!r} is not computed")
    signature = network.signature
    counts = (1, 1) if signature is None else (len(signature.inputs), len(signature.outputs))
    if counts != (len(network.inputs), len(network.outputs)):
        raise ValueError(f"the signature speaks of {counts} inputs and outputs")


def _check_grid(network: Network, node: Node, grid: Grid) -> None:
    if grid.form not in GRID_BITS or len(node.args) < 2 or not isinstance(node.args[1], Param):
        raise ValueError(f"node {node.name!r} has no weight that could be {grid.form!r}")
    count = network.params[node.args[1].name].shape[0] * (2 if grid.form == "ternary" else 1)
    if network.params[grid.step].shape != (count,):
        raise ValueError(f"node {node.name!r} needs {count} steps, {grid.step!r} has another shape")


def _quantizer_to_json(quantizer: Quantizer | None) -> Any:
    return quantizer and {"scale": quantizer.scale, "zero_point": quantizer.zero_point}


def _quantizer_from_json(data: Any) -> Quantizer | None:
    return Quantizer(float(data["scale"]), int(data["zero_point"])) if data else None


def _node_to_json(node: Node) -> JsonObject:
    data: dict[str, Any] = {"name": node.name, "op": node.op, "args": arg_to_json(node.args)}
    data["shape"] = arg_to_json(node.shape)
    if node.kwargs:
        data["kwargs"] = {key: arg_to_json(value) for key, value in node.kwargs}
    if node.module:
        data["module"] = node.module
    if node.bits != 32:
        data["bits"] = node.bits
    if node.quantizer:
        data["quantizer"] = _quantizer_to_json(node.quantizer)
    if node.density != 1:
        data["density"] = node.density
    if node.codebook:
        data["codebook"] = node.codebook
    if node.grid:
        data["grid"] = {"form": node.grid.form, "step": node.grid.step}
    return data


def _node_from_json(data: JsonObject) -> Node:
    return Node(
        name=data["name"],
        op=data["op"],
        args=arg_from_json(data["args"]),
        shape=arg_from_json(data["shape"]),
        kwargs=tuple((key, arg_from_json(value)) for key, value in data.get("kwargs", {}).items()),
        module=data.get("module", ""),
        bits=int(data.get("bits", 32)),
        quantizer=_quantizer_from_json(data.get("quantizer")),
        density=float(data.get("density", 1.0)),
        codebook=int(data.get("codebook", 0)),
        grid=Grid(data["grid"]["form"], data["grid"]["step"]) if data.get("grid") else None,
    )


def arg_to_json(arg: Any) -> Any:
    """Return an argument of a node for JSON."""
    if isinstance(arg, Ref):
        return {"ref": arg.node}
    if isinstance(arg, Param):
        return {"param": arg.name}
    if isinstance(arg, (tuple, list)):
        return [arg_to_json(item) for item in arg]
    if isinstance(arg, float) and arg in (float("inf"), float("-inf")):
        return {"inf": 1 if arg > 0 else -1}
    return arg


def arg_from_json(data: Any) -> Any:
    """Return the argument that `arg_to_json` wrote."""
    if isinstance(data, list):
        return tuple(arg_from_json(item) for item in data)
    if isinstance(data, dict):
        ((kind, value),) = data.items()
        if kind == "inf":
            return float("inf") * value
        return {"ref": Ref, "param": Param}[kind](value)
    return data
