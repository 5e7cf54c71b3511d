"""What a runtime makes of a network: operations fused and joined by conversions, in execution order.

This follows ONNX Runtime's rewriting on the CPU. A layer takes the activation behind it along.
Values change between 32 and 8 bits where a float operation meets an integer one. No arithmetic and no
times here, only which operations run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autocompress.graph.network import BINARIZE, INPUT, Network, Node

CONVOLUTIONS = frozenset({"conv2d", "conv2d.padding"})
LAYERS = CONVOLUTIONS | {"linear"}
RESHAPES = frozenset(
    {
        *("view", "reshape", "_unsafe_view", "flatten.using_ints", "unflatten.int"),
        *("unsqueeze", "squeeze", "squeeze.dim", "squeeze.dims"),
    }
)
_SPLITS = frozenset({"split.Tensor", "split_with_sizes", "chunk", "unbind.int"})
_MOVES = (
    RESHAPES
    | _SPLITS
    | frozenset(
        {
            *("permute", "transpose.int", "t", "expand", "slice.Tensor", "select.int", "roll", "flip"),
            *("pad", "constant_pad_nd", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "max_pool2d"),
        }
    )
)
"""Move data without computing, and so work on integers as they are."""

_CLIPS = frozenset({"relu", "relu6", "hardtanh"})
_FUSED_BEHIND_FLOAT = _CLIPS | {"sigmoid", "tanh", "leaky_relu", "hardsigmoid", "hardswish"}


@dataclass(slots=True)
class Operation:
    """One operation of the runtime's graph.

    `kind` is the network's operation or `quantize`, `dequantize`, `to_blocked`, `from_blocked`,
    `to_channels_last`, `to_channels_first`. `reads` and `writes` name tensors: a value `v` is `v` in
    floats, `v:q` in integers and `v:dq` in floats again. `nodes` are the network's nodes it carries
    out; for a conversion, the node whose value it converts. `adds` says that it adds another value too.
    """

    kind: str
    precision: str
    reads: list[str]
    writes: str
    shape: Any
    nodes: tuple[str, ...]
    node: Node | None = None
    activation: str = ""
    layout: str = ""
    adds: bool = False


@dataclass(frozen=True)
class Crossing:
    """How a value lies where a network is cut: as integers, of which 0 stands for zero (`from_zero`), in
    blocks of channels, or with its channels last."""

    integer: bool = False
    from_zero: bool = False
    blocked: bool = False
    channels_last: bool = False


@dataclass(frozen=True)
class Section:
    """Part of a larger network: how its input comes, unless that is the network's own, and whether its output
    is the network's."""

    entry: Crossing | None = None
    ends: bool = True

    @property
    def reads(self) -> str:
        """The tensor that it reads."""
        return f"{INPUT}:q" if self.entry is not None and self.entry.integer else INPUT


WHOLE = Section()


def split(network: Network, section: Section = WHOLE) -> tuple[list[Operation], str]:
    """Return the operations of a network in shipped form, in execution order, as if there were no layouts,
    and the tensor that is its output."""
    splitter = _Splitter(network, section)
    return splitter.run(), splitter.output()


class _Splitter:
    """Nodes to operations, with fused activations and with conversions between 32 and 8 bits."""

    def __init__(self, network: Network, section: Section) -> None:
        self.network, self.section = network, section
        self.found: list[Operation] = []
        self.tensor = {INPUT: section.reads}
        self.dequantized: dict[str, str] = {}

    def run(self) -> list[Operation]:
        network = self.network
        if network.input_quantizer is not None and self.section.entry is None:
            self._quantize(INPUT, network.input_shape)
        absorbed: set[str] = set()
        for node in network.nodes:
            if node.name in absorbed or not any(name in self.tensor for name in node.inputs):
                continue
            if node.op == "getitem" or _does_nothing(network, node):
                self._alias(node)
            elif self._vanishes(node) or self._scales_convolution(node):
                self._let_vanish(node)
            elif not is_number(node):
                self._round_before(node)
                activation = self._activation(node)
                if activation is not None:
                    absorbed.add(activation.name)
                self._operation(node, activation)
        self.output()
        return self.found

    def output(self) -> str:
        """The network's output, in floats; that of a section that does not end it, as it lies."""
        output = self.network.output
        return self._float(output) if self.section.ends else self.tensor[output]

    def _alias(self, node: Node) -> None:
        source = next(name for name in node.inputs if name in self.tensor)
        self.tensor[node.name] = self.tensor[source]
        if node.quantizer is not None and not self.tensor[node.name].endswith(":q"):
            self._quantize(node.name, node.shape)

    def _scales_convolution(self, node: Node) -> bool:
        """Whether a product with constants goes into the weights of the float convolution before it."""
        values = [name for name in node.inputs if name in self.tensor]
        if node.op != "mul.Tensor" or len(values) != 1 or len(node.inputs) + len(node.params) != 2:
            return False
        source = self.network.by_name.get(values[0])
        if source is None or source.op not in CONVOLUTIONS or source.quantizer is not None:
            return False
        alone = self.network.users[source.name] == (node.name,) and source.name != self.network.output
        return alone and not self._is_integer(source, source)

    def _let_vanish(self, node: Node) -> None:
        """The operation before this one computes its value; activations before it vanish as well."""
        source = next(name for name in node.inputs if name in self.tensor)
        writer = next((one for one in reversed(self.found) if one.writes == self.tensor[source]), None)
        names: tuple[str, ...] = (node.name,)
        while writer is not None and writer.kind in _CLIPS and len(self.network.users[writer.writes]) == 1:
            self.found.remove(writer)
            names = writer.nodes + names
            self.tensor[source] = writer.reads[0]
            writer = next((one for one in reversed(self.found) if one.writes == writer.reads[0]), None)
        if writer is not None and writer.kind not in ("quantize", "dequantize"):
            writer.nodes += names
        self._alias(node)

    def _vanishes(self, node: Node) -> bool:
        """Whether rounding to integers clips at zero and so does what this activation does."""
        return node.op in _CLIPS and node.quantizer is not None and node.quantizer.zero_point == 0

    def _operation(self, node: Node, activation: Node | None) -> None:
        result = node if activation is None else activation
        integer = self._is_integer(node, result)
        values = [name for name in node.inputs if name in self.tensor]
        reads = [self.tensor[name] if integer else self._float(name) for name in values]
        writes = f"{result.name}:q" if integer and _writes_integers(node, result) else result.name
        names = (node.name,) if activation is None else (node.name, activation.name)
        name = "" if activation is None else activation.op
        if not integer and node.op in LAYERS and self._is_guarded(node):
            name = "leaky_relu"
        precision = "int8" if integer else "fp32"
        operation = Operation(node.op, precision, reads, writes, node.shape, names, node, activation=name)
        if node.op == "layer_norm" and not integer:
            self._take_sum_along(operation)
        self.found.append(operation)
        self.tensor[result.name] = writes
        if result.quantizer is not None and not writes.endswith(":q"):
            self._quantize(result.name, result.shape)

    def _take_sum_along(self, norm: Operation) -> None:
        """A normalisation of sequences adds what it alone reads the sum of."""
        added = next((one for one in reversed(self.found) if one.writes == norm.reads[0]), None)
        if added is None or added.kind != "add.Tensor" or added.node is None or len(norm.shape) != 3:
            return
        shapes = {self.network.shape_of(name) for name in added.node.inputs}
        value = added.node.name
        alone = self.network.users[value] == norm.nodes[:1] and value != self.network.output
        if alone and added.writes == value and added.precision == "fp32" and shapes == {norm.shape}:
            self.found.remove(added)
            norm.reads, norm.nodes, norm.adds = added.reads, added.nodes + norm.nodes, True

    def _round_before(self, node: Node) -> None:
        """Rounding moves in front of a pooling by maxima, which then works on integers."""
        source = node.inputs[0]
        alone = self.network.users[source] == (node.name,) and source != self.network.output
        rounded = node.op == "max_pool2d" and node.quantizer is not None
        if rounded and alone and not self.tensor[source].endswith(":q"):
            self._quantize(source, self.network.shape_of(source))

    def _is_integer(self, node: Node, result: Node) -> bool:
        stored = [self.tensor[name].endswith(":q") for name in node.inputs if name in self.tensor]
        if node.op in LAYERS:
            return node.bits == 8 and stored[:1] == [True]
        if node.op in _MOVES:
            return stored[0]
        if node.op == BINARIZE:
            return False
        return result.quantizer is not None and all(stored)

    def _activation(self, node: Node) -> Node | None:
        """The activation that runs within this operation."""
        network = self.network
        if node.op not in LAYERS and node.op != "add.Tensor":
            return None
        users = network.users[node.name]
        if len(users) != 1 or node.quantizer is not None or node.name == network.output:
            return None
        user = network.by_name[users[0]]
        if user.op in _CLIPS and user.quantizer is not None and self._is_integer(node, user):
            return user
        if node.op in LAYERS and user.op in _FUSED_BEHIND_FLOAT and not self._is_integer(node, user):
            fits = node.op != "linear" or (
                len(node.shape) == 2 and user.op in _FUSED_BEHIND_FLOAT - {"hardswish"}
            )
            return user if fits and not self._is_guarded(node) else None
        return None

    def _is_guarded(self, node: Node) -> bool:
        """Whether the export keeps this float layer between integers in floats, by an empty activation."""
        network = self.network
        if network.quantizer_of(node.inputs[0]) is None:
            return False
        users = network.users[node.name]
        clipped = len(users) == 1 and network.by_name[users[0]].op in _CLIPS
        carrier = network.by_name[users[0]] if clipped else node
        return network.is_rounded(carrier.name) or node.quantizer is not None

    def _quantize(self, value: str, shape: Any) -> None:
        name = f"{value}:q"
        self.found.append(
            Operation("quantize", "int8", [self.tensor.get(value, value)], name, shape, (value,))
        )
        self.tensor[value] = name

    def _float(self, value: str) -> str:
        """The tensor of a value in floats; the first reader of integers has them converted."""
        name = self.tensor[value]
        if not name.endswith(":q"):
            return name
        if name not in self.dequantized:
            self.dequantized[name] = f"{name.removesuffix(':q')}:dq"
            shape = self.network.shape_of(value)
            self.found.append(
                Operation("dequantize", "int8", [name], self.dequantized[name], shape, (value,))
            )
        return self.dequantized[name]


def _writes_integers(node: Node, result: Node) -> bool:
    return result.quantizer is not None or node.op in _MOVES


def is_number(node: Node) -> bool:
    """Return whether a node computes an integer, such as a size, which no runtime carries out."""
    return node.op == "sym_size.int" or node.op.startswith("operator.") or node.shape == ()


def _does_nothing(network: Network, node: Node) -> bool:
    """Whether the export leaves the operation out."""
    if node.op not in ("slice.Tensor", "pad", "constant_pad_nd", "squeeze.dim", "expand", "slice"):
        return False
    same = node.shape == network.shape_of(node.inputs[0])
    if node.op != "slice.Tensor" or same:
        return same
    users = network.users[node.name]
    if len(users) != 1 or node.name == network.output:
        return False
    user = network.by_name[users[0]]
    return user.op == "slice.Tensor" and user.args[1:2] != node.args[1:2]
