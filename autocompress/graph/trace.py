"""nn.Module → Network: the only walk over a user's model.

The model is captured by `torch.export` at the level of ATen operations, which sees functional
code, attention and reshapes alike, and is then rewritten as plain data. The result is run beside
the module before it is returned, so a trace that is not faithful is an error and never a surprise.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind

from autocompress.errors import TeacherError
from autocompress.graph.capture.example import Example
from autocompress.graph.capture.exporting import ExportedModule, exported
from autocompress.graph.capture.fixed_batch import AT_ONE, DiffersOtherwiseError, of_any_batch
from autocompress.graph.capture.lowering import has_autocast, is_known, lowered, without_underscore
from autocompress.graph.capture.rewriting import op_name
from autocompress.graph.capture.signature import Signature
from autocompress.graph.hand_written import recognised
from autocompress.graph.module import build, resolve
from autocompress.graph.network import (
    Input,
    Network,
    Node,
    Param,
    ParamSpec,
    Ref,
    Weights,
    flatten,
    map_args,
    prune_dead,
    unique_name,
)
from autocompress.graph.operations import KNOWN, PRODUCERS, RESHAPE, SILENT, WEIGHTED, short_name
from autocompress.graph.operators import (
    UnknownOperatorError,
    dtype_name,
    implementation,
    opaque_name,
    with_exact_types,
)

logger = logging.getLogger(__name__)

CHECK_BATCH = 3

_NAMED_AFTER_MODULE = PRODUCERS | {"batch_norm", "layer_norm", "group_norm"}


def trace(module: nn.Module, inputs: tuple[int, ...] | Example) -> tuple[Network, Weights]:
    """Return the module's inference graph and its parameters as float32 arrays.

    Args:
        module: takes tensors of any batch size N and returns tensors. It is not modified.
        inputs: what it is called with; for one tensor `(N, …)` the shape without N, of an image `(C, H, W)`.

    Raises:
        TeacherError: the module cannot be captured, uses an operation that is no pure function of
            tensors, or its trace computes something else than the module does.
    """
    module = copy.deepcopy(module).float().cpu().eval()
    example = inputs if isinstance(inputs, Example) else Example.of_shape(inputs)
    found = exported(module, example)
    program = found.program
    if is_known(program) and found.twin is None:
        try:
            return _traced(module, found, example)
        except TeacherError as problem:  # Values changed in place are seen in functional form alone.
            logger.debug("%s: lowered", problem)
    autocast = has_autocast(program)
    program = lowered(program)
    if found.twin is not None:
        program = _of_any_batch(program, lowered(found.twin), type(module).__name__)
    return _traced(program.module() if autocast else module, replace(found, program=program), example)


def _of_any_batch(
    program: torch.export.ExportedProgram, twin: torch.export.ExportedProgram, where: str
) -> torch.export.ExportedProgram:
    try:
        return of_any_batch(program, twin)
    except DiffersOtherwiseError as problem:
        raise TeacherError(
            "the teacher computes other things at one batch size than at another",
            where=where,
            why=str(problem),
            fix="make forward() work for any batch size: no branch on it, x.shape[0] instead of a number",
        ) from problem


def _traced(module: nn.Module, found: ExportedModule, example: Example) -> tuple[Network, Weights]:
    rewriter = _Rewriter(found.program, example.inputs())
    network, weights = rewriter.rewrite(found.signature)
    network = with_exact_types(_fold_constants(network, weights), rewriter.types)
    network = recognised(prune_dead(network), weights)
    weights = {name: weights[name] for name in network.params}
    for batch in (CHECK_BATCH,) if found.twin is None else (1, 2, CHECK_BATCH):
        _check_faithful(module, network, weights, example.at(batch))
    return network, weights


@dataclass
class _Rewriter:
    """Rewrite one exported program, node by node."""

    exported: torch.export.ExportedProgram
    inputs: tuple[Input, ...]
    nodes: list[Node] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    params: dict[str, ParamSpec] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    types: dict[str, Any] = field(default_factory=dict)
    unread: list[Input] = field(default_factory=list)

    def rewrite(self, signature: Signature | None) -> tuple[Network, Weights]:
        outputs: list[str] = []
        first, *more = self.inputs
        self.taken.update(one.name for one in self.inputs)
        self.types.update((one.name, one.dtype) for one in self.inputs)
        self.unread = list(self.inputs)
        for fx_node in self.exported.graph.nodes:
            if fx_node.op == "placeholder":
                self._placeholder(fx_node)
            elif fx_node.op == "call_function":
                self._call(fx_node)
            elif fx_node.op == "output":
                outputs = self._outputs(fx_node)
            else:
                raise TeacherError(
                    f"the teacher's graph holds a {fx_node.op} node, which is not supported",
                    fix="remove calls of other modules' code from forward(), such as higher-order operators",
                )
        network = Network(
            first.shape,
            tuple(self.nodes),
            outputs[0],
            self.params,
            input_dtype=first.dtype,
            more_inputs=tuple(more),
            more_outputs=tuple(outputs[1:]),
            signature=signature,
        )
        return network, self.weights

    def _placeholder(self, fx_node: fx.Node) -> None:
        signature = self.exported.graph_signature
        for table, trainable in (
            (signature.inputs_to_parameters, True),
            (signature.inputs_to_buffers, False),
            (signature.inputs_to_lifted_tensor_constants, False),
        ):
            if fx_node.name in table:
                self._parameter(fx_node, table[fx_node.name], trainable)
                return
        self.names[fx_node.name] = Ref(self.unread.pop(0).name)

    def _parameter(self, fx_node: fx.Node, name: str, trainable: bool) -> None:
        value = self.exported.state_dict.get(name)
        if value is None:
            value = self.exported.constants[name]
        value = value.detach()
        array = (value.float() if value.is_floating_point() else value).numpy()
        self.params[name] = ParamSpec(tuple(array.shape), str(array.dtype), trainable)
        self.weights[name] = array.copy()
        self.names[fx_node.name] = Param(name)

    def _call(self, fx_node: fx.Node) -> None:
        op = op_name(fx_node.target)
        in_place = without_underscore(op)
        op = in_place or op
        if op in SILENT or _is_noop(op, fx_node):
            if fx_node.args:
                self.names[fx_node.name] = self._arg(fx_node.args[0])
            return
        if op in RESHAPE and op not in ("flatten.using_ints", "unflatten.int"):
            op = "reshape"
        args: tuple[Any, ...] = fx_node.args
        if op == "to.device":
            op, args = "to.dtype", (args[0], args[2])
        if op == "squeeze":  # Of all axes that are 1 for every batch, and not the batch itself.
            sizes = args[0].meta["val"].shape
            ones = [axis for axis, size in enumerate(sizes) if isinstance(size, int) and size == 1]
            op, args = "squeeze.dims", (args[0], ones)
        if op not in KNOWN:
            op = _opaque(fx_node)
        node = self._node(fx_node, op, args)
        self.nodes.append(node)
        self.names[fx_node.name] = Ref(node.name)
        if in_place and isinstance(fx_node.args[0], fx.Node):
            self._overwrite(fx_node.args[0], node.name)

    def _overwrite(self, target: fx.Node, new_name: str) -> None:
        """Let every name of the old value mean the new one after an in-place operation."""
        old = self.names[target.name]
        for name, value in self.names.items():
            if value == old:
                self.names[name] = Ref(new_name)

    def _node(self, fx_node: fx.Node, op: str, fx_args: tuple[Any, ...]) -> Node:
        args = tuple(self._arg(arg) for arg in fx_args)
        if op in RESHAPE or op == "expand":
            args = _with_free_batch(op, args)
        kwargs = tuple((key, self._arg(value)) for key, value in fx_node.kwargs.items() if value is not None)
        module = _module_of(fx_node)
        name = unique_name(_node_name(op, module), self.taken)
        self.taken.add(name)
        self.types[name] = _type(fx_node.meta["val"])
        shape = fx_node.meta.get(AT_ONE, _shape(fx_node.meta["val"]))
        return Node(name, op, args, shape, kwargs, module)

    def _arg(self, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return self.names[arg.name]
        if isinstance(arg, (list, tuple)):
            return tuple(self._arg(item) for item in arg)
        if isinstance(arg, torch.dtype):
            return dtype_name(arg)
        if isinstance(arg, (torch.device, torch.memory_format, torch.layout)):
            return None
        return arg

    def _outputs(self, fx_node: fx.Node) -> list[str]:
        """Return the names of the values that the program returns to its caller."""
        specs = self.exported.graph_signature.output_specs
        results: Any = fx_node.args[0]
        returned = [
            value for value, spec in zip(results, specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT
        ]
        if not returned or not all(isinstance(value, fx.Node) for value in returned):
            raise TeacherError(
                "the teacher returns no tensor that depends on its input",
                fix="let forward() return what it computes",
            )
        return [self._output(value) for value in returned]

    def _output(self, fx_node: fx.Node) -> str:
        value = self.names[fx_node.name]
        if isinstance(value, Ref):
            return value.node
        shape = tuple(fx_node.meta["val"].shape)
        name = unique_name(value.name, self.taken)
        self.taken.add(name)
        self.nodes.append(Node(name, "expand", (value, shape), shape))
        return name


def _fold_constants(network: Network, weights: Weights) -> Network:
    """Turn values that depend on nothing trainable and not on the input into buffers; `weights` gains
    them."""
    params, nodes = dict(network.params), []
    constants: dict[str, Any] = {}
    for node in network.nodes:
        fixed = not any(
            isinstance(arg, Ref) and arg.node not in constants
            for arg in flatten(node.args, dict(node.kwargs))
        )
        if not fixed or node.name in network.outputs or any(params[name].trainable for name in node.params):
            nodes.append(replace(node, args=map_args(partial(_as_param, constants), node.args)))
            continue
        value = _evaluate(node, constants, weights)
        if not isinstance(value, Tensor):
            nodes.append(replace(node, args=map_args(partial(_as_param, constants), node.args)))
            continue
        name = unique_name(_constant_name(node.name, params), params)
        weights[name] = value.contiguous().numpy()
        params[name] = ParamSpec(tuple(value.shape), str(weights[name].dtype), trainable=False)
        constants[node.name] = name
    return replace(network, nodes=tuple(nodes), params=params)


def _constant_name(node: str, params: Mapping[str, ParamSpec]) -> str:
    """Return the name of a folded value: under that of its node, or beside it where that is a parameter."""
    parts = node.split(".")
    taken = any(".".join(parts[:count]) in params for count in range(1, len(parts) + 1))
    return f"{node}_constant" if taken else f"{node}.constant"


def _as_param(constants: Mapping[str, str], leaf: Any) -> Any:
    return Param(constants[leaf.node]) if isinstance(leaf, Ref) and leaf.node in constants else leaf


def _evaluate(node: Node, constants: Mapping[str, str], weights: Weights) -> Any:
    args = map_args(partial(_as_param, constants), node.args)
    tensors = {
        arg.name: torch.from_numpy(weights[arg.name]) for arg in flatten(args) if isinstance(arg, Param)
    }
    kwargs = {key: resolve(value, {}, tensors) for key, value in node.kwargs}
    return implementation(node.op)(*(resolve(arg, {}, tensors) for arg in args), **kwargs)


def _opaque(fx_node: fx.Node) -> str:
    try:
        return opaque_name(fx_node.target)
    except UnknownOperatorError as error:
        raise TeacherError(
            f"the teacher uses {error.op}, which cannot be kept in a network",
            where=_module_of(fx_node) or "forward()",
            why=error.why,
            fix=error.fix,
        ) from error


def _is_noop(op: str, fx_node: fx.Node) -> bool:
    if op == "slice.Tensor":
        _, _, start, end, step = (*fx_node.args, None, None, None, None)[:5]
        return bool(start in (0, None) and (end is None or end == 2**63 - 1) and step in (1, None))
    if op in ("to.dtype", "to.dtype_layout", "to.device", "_to_copy", "type_as"):
        source = fx_node.args[0]
        return isinstance(source, fx.Node) and bool(source.meta["val"].dtype == fx_node.meta["val"].dtype)
    return False


def _with_free_batch(op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Write a size that follows the batch as -1 where the operation can infer it."""
    if len(args) < 2 or not isinstance(args[1], tuple) or op == "expand":
        return args
    sizes = args[1]
    free = [index for index, size in enumerate(sizes) if isinstance(size, Ref)]
    if len(free) != 1 or -1 in sizes:
        return args
    return (args[0], tuple(-1 if index == free[0] else size for index, size in enumerate(sizes)), *args[2:])


def _module_of(fx_node: fx.Node) -> str:
    stack = fx_node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1].removeprefix("L['self'].").removeprefix("L['self']") if paths else ""


def _node_name(op: str, module: str) -> str:
    if op in _NAMED_AFTER_MODULE and module:
        name = module
    else:
        name = ".".join(part for part in (module, short_name(op).strip("_")) if part)
    name = "".join(char if char.isalnum() or char in "._" else "_" for char in name)
    return name if name[0].isalpha() or name[0] == "_" else f"_{name}"


def _shape(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_shape(item) for item in value)
    if isinstance(value, Tensor):
        return tuple(_at_batch_one(size) for size in value.shape)
    return ()


def _type(value: Any) -> Any:
    """Return the name of a value's dtype; a tuple for several, and nothing for a number."""
    if isinstance(value, (list, tuple)):
        return tuple(_type(item) for item in value)
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else ""


def _at_batch_one(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _check_faithful(module: nn.Module, network: Network, weights: Weights, tensors: list[Tensor]) -> None:
    with torch.no_grad():
        result = module(*(one.clone() for one in tensors))
        expected = [result] if isinstance(result, Tensor) else list(result)
        try:
            actual = build(network, weights).outputs_of(tensors)
        except Exception as error:
            raise TeacherError(
                "the teacher's trace does not run",
                why=str(error)[:300],
                fix="remove what depends on values or on the batch size from forward()",
            ) from error
    for one, other in zip(expected, actual, strict=True):
        difference, scale = _apart(one, other)
        if not difference <= 1e-4 * max(scale, 1e-6):
            raise TeacherError(
                "the teacher's trace computes something else than the teacher",
                why=f"outputs differ by {difference:.3g} where their largest value is {scale:.3g}",
                fix="remove randomness and in-place changes of shared tensors from forward()",
            )


def _apart(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the largest difference, and the largest value."""
    if one.shape != other.shape or one.numel() == 0:
        return (0.0 if one.shape == other.shape else float("inf")), 0.0
    expected, actual = one.double(), other.double()
    same = torch.where(expected == actual, 0.0, expected - actual)
    finite = expected[expected.isfinite()]
    return float(same.abs().max()), float(finite.abs().max()) if finite.numel() else 0.0


def layers(network: Network) -> Iterator[Node]:
    """Yield the convolutions and linear layers whose weight is a parameter, in execution order."""
    for node in network.nodes:
        if node.op in WEIGHTED and isinstance(node.args[1], Param):
            yield node
