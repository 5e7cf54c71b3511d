"""Network and weights → ONNX, written directly from the intermediate representation.

Each ONNX node carries the name of the operation it comes from: `layer1.0.conv1` for the operation
itself, `layer1.0.conv1/…` for its helpers, so that a runtime's profile leads back to the layer.
The file holds nothing that the runtime does not need: no value infos, no doc strings, every
constant once, and no float copy of an 8-bit weight.

Quantization is written as QuantizeLinear / DequantizeLinear around ordinary operators (opset 21),
the form that runtimes fuse into integer kernels. A value is quantized once, where it is computed;
operations that only move data then work on the integers, and it is dequantized where floats are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from autocompress.errors import TeacherError
from autocompress.export import (  # noqa: F401  (they register the exporters)
    onnx_layers,
    onnx_moves,
    onnx_pointwise,
    onnx_recurrent,
)
from autocompress.export.onnx_parts import Samples, Waiting, export_part, graphs_in, has_parts, reads_of
from autocompress.export.onnx_registry import Attributes, NotExpressibleError, Tensor, call, rule_for
from autocompress.graph.levels import ACTIVATION_LEVELS, WEIGHT_LEVELS
from autocompress.graph.network import (
    BINARIZE,
    Network,
    Node,
    Param,
    Quantizer,
    Ref,
    Weights,
    flatten,
    map_args,
)
from autocompress.graph.operations import known
from autocompress.transforms.families.low_bit import on_grids
from autocompress.transforms.families.quantize import (
    carrier,
    layer_integers,
    least_weight_scale,
    runs_in_int8,
)

OPSET = 21
IR_VERSION = 10
INPUT_NAME, OUTPUT_NAME = "input", "output"

Array = NDArray[Any]


def to_onnx(
    network: Network, weights: Weights, *, batch: int = 1, torch_operators: bool = False
) -> onnx.ModelProto:
    """Return the network as an ONNX model with one input `input` of shape `(batch, …)` and one `output`; of
    one with a signature the inputs and outputs have the names that stand there.

    Batch norms should have been folded (`families.fold`); those that are left are exported as such.
    A value with a quantizer is rounded to uint8; a layer of 8 bits whose input has a quantizer gets
    int8 weights with one scale for each output channel and an int32 bias. With `torch_operators` operations
    without an exporter are written as calls of torch's operators, for runtimes that run these.

    Raises:
        TeacherError: an operation has no form in ONNX.
    """
    return Emitter(network, on_grids(network, weights), batch, torch_operators).run()


def without_onnx_form(network: Network, weights: Weights) -> tuple[TeacherError, ...]:
    """Return what would be raised for each operation that has no form in ONNX."""
    emitter = Emitter(network, on_grids(network, weights), 1, missing=[])
    emitter.run()
    return tuple(emitter.missing or ())


@dataclass
class Emitter:
    """Collect nodes and constants while the network's operations are exported in order."""

    network: Network
    weights: Weights
    batch: int
    torch_operators: bool = False
    missing: list[TeacherError] | None = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    slices: dict[str, tuple[str, tuple[tuple[int, int, int, int], ...]]] = field(default_factory=dict)
    _constants: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)
    _initializers: dict[str, Array] = field(default_factory=dict)
    _real: dict[str, Tensor] = field(default_factory=dict)
    _integers: dict[str, Tensor] = field(default_factory=dict)
    _node_names: dict[str, int] = field(default_factory=dict)
    _tensor_count: int = 0
    opset: int = OPSET

    @cached_property
    def samples(self) -> Samples:
        """Return what the network's values are in one run."""
        return Samples(self)

    def run(self) -> onnx.ModelProto:
        for name, one in zip(self.input_names, self.network.inputs, strict=True):
            quantizer = self.network.quantizer_of(one.name)
            self.values[one.name] = self.quantized(one.name, Tensor(name, one.shape), quantizer)
        for node in self.network.nodes:
            self.values[node.name] = self._value(node)
        outputs: list[Tensor] = []
        for name in self.network.outputs:
            output = self._as_tensor(self.real(self.values[name], name))
            taken = {*self.input_names, *self._initializers, *(one.name for one in outputs)}
            if output.name in taken:
                copied = self.op("Identity", output.name, name=f"{name}/output")
                output = replace(output, name=copied)
            outputs.append(output)
        return self._model(outputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Return the names of the file's inputs."""
        signature = self.network.signature
        return (INPUT_NAME,) if signature is None else signature.inputs

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the file's outputs."""
        signature = self.network.signature
        return (OUTPUT_NAME,) if signature is None else signature.outputs

    def _as_tensor(self, value: Any) -> Tensor:
        """Return a value of the file; one that depends on no input becomes a constant."""
        if isinstance(value, Tensor):
            return value
        array = np.asarray(value)
        return Tensor(self.constant(array), array.shape)

    def op(self, kind: str, *inputs: str, name: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add one ONNX node and return the name of its output (a list when `outputs` > 1)."""
        names = [self.new_name() for _ in range(outputs)]
        self.add_node(helper.make_node(kind, inputs, names, **attributes), name)
        return names[0] if outputs == 1 else names

    def add_node(self, node: onnx.NodeProto, name: str) -> None:
        """Add a node whose inputs and outputs have the file's names."""
        node.name = self._unique(name)
        self.nodes.append(node)

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Return the name of an initializer; equal constants share one."""
        array = np.ascontiguousarray(np.asarray(value, dtype=dtype)).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.new_name("c")
            self._initializers[self._constants[key]] = array
        return self._constants[key]

    def constant_named(self, name: str) -> Array | None:
        """Return the constant of this name in the file, if it is one."""
        return self._initializers.get(name)

    def in_int8(self, node: Node) -> bool:
        """Return whether a layer computes in 8 bits."""
        return runs_in_int8(self.network, node)

    def fill(self, x: Tensor, value: float) -> str:
        """Return the constant that stands for `value` beside the elements of `x`."""
        if x.quantizer is None or not x.is_quantized:
            return self.constant(value, np.float32)
        level = round(value / x.quantizer.scale) + x.quantizer.zero_point
        return self.constant(min(max(level, 0), ACTIVATION_LEVELS), np.uint8)

    def reshape_real(self, x: Tensor, shape: Sequence[int], name: str) -> Tensor:
        """Return `x`, dequantized already, with another shape; the integers behind it are what is
        reshaped."""
        whole = self._integers.get(x.name)
        rows = self.op("Reshape", x.name if whole is None else whole.name, self.ints(*shape), name=name)
        if whole is None:
            return replace(x, name=rows, shape=tuple(shape))
        result: Tensor = self.real(replace(whole, name=rows, shape=tuple(shape)), name)
        return result

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return a shape at the batch size of the export."""
        return (shape[0] * self.batch, *shape[1:])

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def name(self, value: Any) -> str:
        """Return the ONNX name of an argument: a computed value, a parameter, or a number (as float32)."""
        if isinstance(value, Tensor):
            return value.name
        if isinstance(value, (bool, int, float)):
            return self.constant(value, np.float32)
        return self.constant(value)

    def real(self, value: Any, reader: str) -> Any:
        """Return a value as floats: dequantized once, on behalf of its first reader."""
        if not isinstance(value, Tensor) or not value.is_quantized:
            return value
        if value.name not in self._real:
            assert value.quantizer is not None
            scale, zero_point = self._quantizer(value.quantizer)
            name = self.op("DequantizeLinear", value.name, scale, zero_point, name=f"{reader}/dq")
            self._real[value.name] = replace(value, name=name, is_quantized=False)
            self._integers[name] = value
        return self._real[value.name]

    def resolve(self, arg: Any) -> Any:
        """Turn references into tensors or constants, parameters into arrays."""
        if isinstance(arg, Ref):
            return self.values[arg.node]
        if isinstance(arg, Param):
            return self.weights[arg.name]
        return arg

    def layer_inputs(self, node: Node, x: Tensor, weight: Any, bias: Any) -> list[str]:
        """Return the names of input, weight and bias of a convolution or linear layer, in float or 8 bits."""
        if not self.in_int8(node):
            return [self.name(part) for part in (x, weight, bias) if part is not None]
        assert x.quantizer is not None
        finer = self._finer(node)
        floor = finer * least_weight_scale(bias, x.quantizer.scale)
        integers, scale = layer_integers(node, self.weights, floor)
        integers, scale = integers * np.int8(finer), scale / np.float32(finer)
        w = self._dequantized(integers, scale, 0, f"{node.name}/w")
        if bias is None:
            return [x.name, w]
        bias_scale = np.float32(x.quantizer.scale) * scale
        rounded = np.rint(bias.astype(np.float64) / bias_scale).astype(np.int32)
        return [x.name, w, self._dequantized(rounded, bias_scale, 0, f"{node.name}/b")]

    def _finer(self, node: Node) -> int:
        """Return by how much the integers of a layer are multiplied and their scale divided: its bias is
        rounded to that scale times the input's, which were whole signs where both are binary."""
        reads_binary = self.network.by_name.get(node.inputs[0], node).op == BINARIZE
        is_binary = node.grid is not None and node.grid.form == "binary"
        return WEIGHT_LEVELS if reads_binary and is_binary else 1

    def kept_in_float(self, node: Node, x: Tensor, result: str) -> str:
        """Return the result of a layer, guarded against ONNX Runtime's own quantization.

        Between a DequantizeLinear and a QuantizeLinear it would round a float layer's weights to 8 bits
        with one scale for the whole tensor. A LeakyRelu of slope 1 prevents it and fuses into the layer.
        """
        rounded = self.network.is_rounded(carrier(self.network, node))
        if self.in_int8(node) or x.quantizer is None or not rounded:
            return result
        guarded: str = self.op("LeakyRelu", result, name=f"{node.name}/float", alpha=1.0)
        return guarded

    def _dequantized(self, integers: Array, scale: Array, axis: int, name: str) -> str:
        """Return constants with their DequantizeLinear; without its optional zero points ORT fuses no
        Gemm."""
        zeros = np.zeros(scale.shape, integers.dtype)
        inputs = (self.constant(integers), self.constant(scale), self.constant(zeros))
        result: str = self.op("DequantizeLinear", *inputs, name=name, axis=axis)
        return result

    def _value(self, node: Node) -> Any:
        if node.op == "sym_size.int":
            return self._size(node)
        args = tuple(map_args(self.resolve, arg) for arg in node.args)
        kwargs = {key: map_args(self.resolve, value) for key, value in node.kwargs}
        if node.op == "getitem":
            return Waiting(node) if isinstance(args[0], Waiting) else self._finish(node, args[0][args[1]])
        leaves = list(flatten(args, kwargs))
        if not any(isinstance(leaf, (Tensor, Waiting)) for leaf in leaves):
            return _compute(node, args, kwargs)
        if has_parts(self, node):
            return self._finish(node, export_part(self, node))
        try:
            return self._by_rule(node, args, kwargs, leaves)
        except NotExpressibleError:
            return self._finish(node, export_part(self, node))

    def _by_rule(self, node: Node, args: Any, kwargs: Attributes, leaves: list[Any]) -> Any:
        """Return what the operation's own exporter writes. Raises NotExpressibleError."""
        rule = rule_for(node)
        quantizer = _kept_quantizer(node, leaves)
        if quantizer is None:
            as_real = partial(self.real, reader=node.name)
            args = map_args(as_real, args)
            kwargs = {key: map_args(as_real, arg) for key, arg in kwargs.items()}
        result = call(node, rule, self, args, kwargs)
        if isinstance(result, list):
            return tuple(
                Tensor(name, shape, quantizer, quantizer is not None)
                for name, shape in zip(result, node.shape, strict=False)
            )
        if isinstance(result, str):
            result = Tensor(result, node.shape, quantizer, quantizer is not None)
        return self._finish(node, result)

    def quantized(self, value: str, tensor: Tensor, quantizer: Quantizer | None) -> Tensor:
        """Return the tensor as integers of this quantizer; unchanged when that is None."""
        if quantizer is None or (tensor.is_quantized and tensor.quantizer == quantizer):
            return tensor
        inputs = (self.real(tensor, value).name, *self._quantizer(quantizer))
        return Tensor(self.op("QuantizeLinear", *inputs, name=f"{value}/q"), tensor.shape, quantizer, True)

    def _finish(self, node: Node, tensor: Any) -> Any:
        return self.quantized(node.name, tensor, node.quantizer) if isinstance(tensor, Tensor) else tensor

    def _quantizer(self, quantizer: Quantizer) -> tuple[str, str]:
        return self.constant(quantizer.scale, np.float32), self.constant(quantizer.zero_point, np.uint8)

    def _size(self, node: Node) -> int:
        source, axis = self.resolve(node.args[0]), int(node.args[1])  # type: ignore[arg-type]
        size = int(source.shape[axis])
        return size * self.batch if isinstance(source, Tensor) and axis % len(source.shape) == 0 else size

    def _unique(self, name: str) -> str:
        """Return a name that no other node has, as ONNX Runtime refuses two of one name: the second `x/dq`
        becomes `x/dq2`."""
        count = self._node_names[name] = self._node_names.get(name, 0) + 1
        return name if count == 1 else f"{name}{count}"

    def new_name(self, kind: str = "t") -> str:
        """Return a name for a tensor of the file."""
        self._tensor_count += 1
        name = f"{kind}{self._tensor_count}"
        return name if name not in (*self.input_names, *self.output_names) else self.new_name(kind)

    def _model(self, outputs: Sequence[Tensor]) -> onnx.ModelProto:
        nodes = _live(self.nodes, {one.name for one in outputs})
        for node in nodes:
            for output, name in zip(outputs, self.output_names, strict=True):
                _rename(node, output.name, name)
        read = {name for node in nodes for name in reads_of(node)}
        constants = [(name, array) for name, array in self._initializers.items() if name in read]
        graph = helper.make_graph(
            nodes,
            "autocompress",
            [
                self._info(name, one.shape, one.dtype, one.has_batch)
                for name, one in zip(self.input_names, self.network.inputs, strict=True)
            ],
            [
                self._output_info(*one)
                for one in zip(self.output_names, self.network.outputs, outputs, strict=True)
            ],
            [numpy_helper.from_array(array, name) for name, array in constants],
        )
        return helper.make_model(
            graph,
            producer_name="autocompress",
            opset_imports=[
                helper.make_opsetid(domain, OPSET if domain == "" else 1)
                for domain in sorted({"", *(node.domain for node in nodes)})
            ],
            ir_version=IR_VERSION,
        )

    def _info(
        self, name: str, shape: Sequence[int], dtype: str = "float32", has_batch: bool = True
    ) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(name, kind, self.sizes(shape) if has_batch else tuple(shape))

    def _output_info(self, name: str, value: str, output: Tensor) -> onnx.ValueInfoProto:
        """Describe an output; of a network of several tensors the sizes and types are those of one run."""
        if self.network.signature is None:
            return self._info(name, output.shape)
        sample = self.samples.of(value)
        return self._info(name, sample.shape, str(sample.dtype).removeprefix("torch."), has_batch=False)


def _kept_quantizer(node: Node, leaves: Sequence[Any]) -> Quantizer | None:
    """Return the quantizer of an operation's integers where it works on these as they are."""
    shared = _shared_quantizer(leaves)
    row = known(node.op)
    fits = row.concatenates and node.quantizer in (None, shared)
    return shared if row.moves_data or fits else None


def _shared_quantizer(leaves: Sequence[Any]) -> Quantizer | None:
    """Return the quantizer of all computed operands, if all are integers and nothing else is joined to
    them."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    quantizers = {tensor.quantizer if tensor.is_quantized else None for tensor in tensors}
    floats = any(isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f" for leaf in leaves)
    return None if floats or len(quantizers) != 1 else quantizers.pop()


def _compute(node: Node, args: tuple[Any, ...], kwargs: Attributes) -> Any:
    """Compute the value of a node that does not depend on the input."""
    import torch

    from autocompress.graph.operators import dtype_named, implementation

    def to_torch(leaf: Any) -> Any:
        if isinstance(leaf, str):
            return dtype_named(leaf)
        return torch.from_numpy(leaf.copy()) if isinstance(leaf, np.ndarray) else leaf

    def to_list(arg: Any) -> Any:
        return [to_list(item) for item in arg] if isinstance(arg, tuple) else arg

    result = implementation(node.op)(
        *(to_list(map_args(to_torch, arg)) for arg in args),
        **{key: to_list(map_args(to_torch, value)) for key, value in kwargs.items()},
    )
    return map_args(lambda leaf: leaf.numpy() if isinstance(leaf, torch.Tensor) else leaf, result)


def _live(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs depend on, in order."""
    needed, live = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(reads_of(node))
            live.append(node)
    return live[::-1]


def _rename(node: onnx.NodeProto, old: str, new: str) -> None:
    for graph in graphs_in(node):
        for inner in graph.node:
            _rename(inner, old, new)
    for names in (node.input, node.output):
        for index, name in enumerate(names):
            if name == old:
                names[index] = new
