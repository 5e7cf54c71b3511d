"""An ONNX file → a torch module, for the operators that `export` writes, in floats.

Constants that decide shapes become plain numbers, so that what runs is what one would have written by
hand. Each torch call remembers the ONNX node that it was made for.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import fx

from autocompress.device.runtimes import torch_shapes  # noqa: F401  (it registers its operators)
from autocompress.device.runtimes.base import NodeTime
from autocompress.device.runtimes.torch_operators import OPERATORS, Attributes
from autocompress.errors import InputError
from autocompress.graph.network import Ref, arg_from_json
from autocompress.graph.operators import TORCH_DOMAIN, UnknownOperatorError, dtype_named, implementation

_INTEGER_OPERATORS = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "DynamicQuantizeLinear")


@dataclass(frozen=True)
class TorchGraph:
    """Hold the translated network. `origins` says, for each call in `module`'s graph, which ONNX node it
    carries out; `operators` says the operator of each of those."""

    module: fx.GraphModule
    origins: dict[str, str]
    operators: dict[str, str]
    input_shape: tuple[int, ...]

    def node_times(self, call_us: Mapping[str, float]) -> list[NodeTime]:
        """Return the times of the module's calls → those of the ONNX nodes that they carry out."""
        times: dict[str, float] = {}
        for call, us in call_us.items():
            origin = self.origins[call]
            times[origin] = times.get(origin, 0.0) + us
        return [NodeTime(name, self.operators[name], us, (name,)) for name, us in times.items()]


def torch_graph(model: bytes, runtime: str) -> TorchGraph:
    """Return the network as a torch module. Raises InputError, in the runtime's name, for what is no model,
    has operators that are not known here, or works on integers."""
    try:
        graph = onnx.load_from_string(model).graph
        shape = _shape(graph.input[0])
    except Exception as error:
        raise InputError(
            f"{runtime} cannot load the model",
            why="it is no ONNX file",
            fix="give a file that autocompress exported",
        ) from error
    if len(graph.input) != 1:
        raise InputError(
            f"{runtime} cannot load the model",
            why=f"it has {len(graph.input)} inputs, and this runtime runs networks of one",
            fix="use onnxruntime or openvino",
        )
    kinds = {node.op_type for node in graph.node}
    if kinds.intersection(_INTEGER_OPERATORS):
        raise InputError(
            f"{runtime} cannot load the model",
            why="it computes in 8 bits, and this runtime has no integer kernels",
            fix="use onnxruntime or openvino, or a space without 8 bits",
        )
    unknown = sorted({node.op_type for node in graph.node if node.domain != TORCH_DOMAIN} - OPERATORS.keys())
    if unknown:
        raise InputError(
            f"{runtime} cannot load the model",
            why=f"it has operators that are not known here: {', '.join(unknown)}",
            fix=f"known are {', '.join(sorted(OPERATORS))}",
        )
    return _Translation(graph, shape).run()


class _Translation:
    def __init__(self, source: Any, shape: tuple[int, ...]) -> None:
        self.source, self.shape = source, shape
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node | NDArray[Any]] = {}
        self.origins: dict[str, str] = {}

    def run(self) -> TorchGraph:
        self.values[self.source.input[0].name] = self.graph.placeholder("input")
        for tensor in self.source.initializer:
            self.values[tensor.name] = numpy_helper.to_array(tensor)
        operators = {}
        for index, node in enumerate(self.source.node):
            name = node.name or f"{node.op_type}_{index}"
            operators[name] = node.op_type
            self._translate(node, name)
        output: Any = self.values[self.source.output[0].name]
        self.graph.output(output)
        module = fx.GraphModule(self.root, self.graph).eval()
        return TorchGraph(module, self.origins, operators, self.shape)

    def _translate(self, node: Any, name: str) -> None:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        inputs = [self.values[value] if value else None for value in node.input]
        emit = _Emit(self, name)
        if node.domain == TORCH_DOMAIN:
            result = _called(emit, attributes, inputs, len(node.output))
        else:
            result = OPERATORS[node.op_type](emit, attributes, *inputs)
        results = result if isinstance(result, list) else [result]
        self.values.update(zip(node.output, results, strict=False))


def _called(emit: _Emit, attributes: Attributes, inputs: list[Any], outputs: int) -> Any:
    """Call the torch operator that a node stands for; see `export.onnx_parts`."""
    name = attributes["operator"].decode()
    args, options = json.loads(attributes["arguments"])
    tensors = [emit.tensor(value) for value in inputs]

    def filled(leaf: Any) -> Any:
        if isinstance(leaf, Ref):
            return tensors[int(leaf.node)]
        return dtype_named(leaf) if isinstance(leaf, str) else leaf

    def listed(arg: Any) -> Any:
        return [listed(item) for item in arg] if isinstance(arg, tuple) else filled(arg)

    positional = [listed(arg_from_json(arg)) for arg in args]
    named = {key: listed(arg_from_json(value)) for key, value in options.items()}
    try:
        result = emit(implementation(name), *positional, **named)
    except UnknownOperatorError as error:
        raise InputError(f"torch has no operator {name} here", why=error.why, fix=error.fix) from error
    return [emit(operator.getitem, result, index) for index in range(outputs)] if outputs > 1 else result


@dataclass(frozen=True)
class _Emit:
    """Add torch calls on behalf of one ONNX node."""

    translation: _Translation
    name: str

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        args = tuple(self._argument(arg) for arg in args)
        kwargs = {key: self._argument(arg) for key, arg in kwargs.items()}
        created = self.translation.graph.call_function(function, args, kwargs)
        self.translation.origins[created.name] = self.name
        return created

    def _argument(self, arg: Any) -> Any:
        """Return arrays as buffers, those of no dimensions and lists of integers numbers."""
        if isinstance(arg, (list, tuple)):
            return type(arg)(self._argument(item) for item in arg)
        if not isinstance(arg, np.ndarray):
            return arg
        if arg.ndim == 0 and arg.dtype != np.bool_:
            return arg.item()
        return self._buffer(arg)

    def tensor(self, value: Any) -> Any:
        """Return a value of the graph; an array as a buffer, also where it has no dimensions."""
        return self._buffer(value) if isinstance(value, np.ndarray) else value

    def _buffer(self, array: Any) -> fx.Node:
        root, name = self.translation.root, f"c{len(list(self.translation.root.buffers()))}"
        root.register_buffer(name, torch.from_numpy(np.array(array)))
        return self.translation.graph.get_attr(name)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
