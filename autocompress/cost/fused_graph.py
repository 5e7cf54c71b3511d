"""What a runtime makes of a network: operations fused and joined by conversions, in execution order.

This follows ONNX Runtime's rewriting on the CPU. A layer takes the activation behind it along.
Values change between 32 and 8 bits where a float operation meets an integer one. No arithmetic and no
times here, only which operations run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from autocompress.cost.opaque_work import complex_values
from autocompress.graph.network import BINARIZE, INPUT, Network, Node, Quantizer
from autocompress.graph.operations import (
    CLIPS,
    CONCATENATIONS,
    CONVOLUTIONS,
    LAYERS,
    MOVES,
    PRODUCTS,
    WEIGHTED,
    having,
    is_opaque,
)

_FUSED_BEHIND_FLOAT = having(lambda row: row.fuses)
_VALUES_AND_INDICES = frozenset({"max_pool2d_with_indices", "adaptive_max_pool2d"})
_LEFT_OUT = frozenset(
    "slice.Tensor pad constant_pad_nd squeeze squeeze.dim squeeze.dims expand dropout".split()
)
"""Are no operation of the exported graph where they change no shape."""


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


class Crossing(NamedTuple):
    """Say how a value lies where a network is cut: as integers, of which 0 stands for zero (`from_zero`), in
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
        """Return the tensor that it reads."""
        return f"{INPUT}:q" if self.entry is not None and self.entry.integer else INPUT


WHOLE = Section()


def split(network: Network, section: Section = WHOLE) -> tuple[list[Operation], tuple[str, ...]]:
    """Return the operations of a network in shipped form, in execution order, as if there were no layouts,
    and the tensors that are its outputs."""
    splitter = _Splitter(network, section)
    return splitter.run(), splitter.outputs()


class _Splitter:
    """Turn nodes into operations, with fused activations and with conversions between 32 and 8 bits."""

    def __init__(self, network: Network, section: Section) -> None:
        self.network, self.section = network, section
        self.found: list[Operation] = []
        self.tensor = {one.name: one.name for one in network.inputs} | {INPUT: section.reads}
        self.dequantized: dict[str, str] = {}
        self.quantizers: dict[str, Quantizer | None] = {section.reads: network.input_quantizer}
        self.parts: dict[str, str] = {}
        self.padded: dict[str, str] = {}
        self.complex = complex_values(network)
        self.waiting: dict[str, tuple[Node, ...]] = {}

    def run(self) -> list[Operation]:
        network = self.network
        if network.input_quantizer is not None and self.section.entry is None:
            self._quantize(INPUT, network.input_shape, network.input_quantizer)
        absorbed: set[str] = set()
        for node in network.nodes:
            if node.name in absorbed or not any(name in self.tensor for name in node.inputs):
                continue
            if (node.op == "getitem" and node.name not in self.complex) or _does_nothing(network, node):
                self._alias(node)
            elif self._pads_convolution(node):
                self.padded[network.users[node.name][0]] = node.name
                self._alias(node)
            elif self._vanishes(node) or self._scales_convolution(node):
                self._let_vanish(node)
            elif node.name in self.complex:
                self._wait(node)
            elif not is_number(node):
                activation = self._activation(node)
                if activation is not None:
                    absorbed.add(activation.name)
                self._operation(node, activation)
        self.outputs()
        return self.found

    def outputs(self) -> tuple[str, ...]:
        """Return the network's outputs, in floats; that of a section that does not end it, as it lies. What
        depends on no input is a constant of the file and takes no time."""
        outputs = [name for name in self.network.outputs if name in self.tensor]
        return tuple(self._float(name) if self.section.ends else self.tensor[name] for name in outputs)

    def _alias(self, node: Node) -> None:
        source = next(name for name in node.inputs if name in self.tensor)
        self.tensor[node.name] = self.tensor[source]
        part = node.name if node.op == "getitem" else self.parts.get(source)
        if part is not None:
            self.parts[node.name] = part
        if node.quantizer is not None and not self.tensor[node.name].endswith(":q"):
            self._quantize(node.name, node.shape, node.quantizer)

    def _pads_convolution(self, node: Node) -> bool:
        """Return whether the float convolution that alone reads an image with zeros around it adds these
        itself."""
        users = [self.network.by_name[name] for name in self.network.users[node.name]]
        if not _adds_zeros(node) or [user.op in CONVOLUTIONS for user in users] != [True]:
            return False
        reads_it = users[0].inputs[0] == node.name and node.name not in users[0].inputs[1:]
        floats = node.quantizer is None and not self.tensor[node.inputs[0]].endswith(":q")
        return reads_it and floats and node.name not in self.network.outputs

    def _scales_convolution(self, node: Node) -> bool:
        """Return whether a product with constants goes into the weights of the float convolution before
        it."""
        values = [name for name in node.inputs if name in self.tensor]
        if node.op not in ("mul.Tensor", "mul.Scalar") or len(values) != 1 or values != [*node.inputs]:
            return False
        source = self.network.by_name.get(values[0])
        if source is None or source.op not in CONVOLUTIONS or source.quantizer is not None:
            return False
        alone = self.network.users[source.name] == (node.name,) and source.name not in self.network.outputs
        return alone and not self._is_integer(source, source)

    def _let_vanish(self, node: Node) -> None:
        """Let the operation before this one compute its value, and activations before it vanish as well."""
        source = next(name for name in node.inputs if name in self.tensor)
        writer = next((one for one in reversed(self.found) if one.writes == self.tensor[source]), None)
        names: tuple[str, ...] = (node.name,)
        while writer is not None and writer.kind in CLIPS and len(self.network.users[writer.writes]) == 1:
            self.found.remove(writer)
            names = writer.nodes + names
            self.tensor[source] = writer.reads[0]
            writer = next((one for one in reversed(self.found) if one.writes == writer.reads[0]), None)
        if writer is not None and writer.kind not in ("quantize", "dequantize"):
            writer.nodes += names
        self._alias(node)

    def _vanishes(self, node: Node) -> bool:
        """Return whether rounding to integers clips at zero and so does what this activation does."""
        return node.op in CLIPS and node.quantizer is not None and node.quantizer.zero_point == 0

    def _wait(self, node: Node) -> None:
        """Let what computes complex numbers wait: it runs within the operation that makes real ones of
        them."""
        before = (one for name in node.inputs for one in self.waiting.get(name, ()))
        self.waiting[node.name] = (*dict.fromkeys(before), node)
        self.tensor[node.name] = node.name

    def _read_by(self, node: Node) -> tuple[list[str], tuple[str, ...]]:
        """Return the values that an operation reads, those that waited for it too, and the names of these."""
        waited = [one for name in node.inputs for one in self.waiting.get(name, ())]
        names = [name for one in (*waited, node) for name in one.inputs if name not in self.waiting]
        values = [name for name in names if name in self.tensor]
        return values, tuple(dict.fromkeys(one.name for one in waited))

    def _operation(self, node: Node, activation: Node | None) -> None:
        result = node if activation is None else activation
        integer = self._is_integer(node, result)
        values, waited = self._read_by(node)
        stay = values if integer else self._read_as_integers(node, values)
        reads = [self.tensor[name] if name in stay else self._float(name) for name in values]
        moved = node.op in MOVES or node.op in CONCATENATIONS
        writes = f"{result.name}:q" if integer and (moved or result.quantizer is not None) else result.name
        names = (node.name,) if activation is None else (node.name, activation.name)
        if node.name in self.padded:
            names = (self.padded[node.name], *names)
        names = (*waited, *names)
        name = "" if activation is None else activation.op
        if not integer and node.op in WEIGHTED and self._is_guarded(node):
            name = "leaky_relu"
        precision = "int8" if integer else "fp32"
        shape = node.shape[0] if node.op in _VALUES_AND_INDICES else node.shape
        operation = Operation(node.op, precision, reads, writes, shape, names, node, activation=name)
        if node.op == "layer_norm" and not integer:
            self._take_sum_along(operation)
        self.found.append(operation)
        self.tensor[result.name] = writes
        if integer:
            self.quantizers[writes] = self._quantizer_written(result, reads)
        if result.quantizer is not None and not writes.endswith(":q"):
            self._quantize(result.name, result.shape, result.quantizer)

    def _read_as_integers(self, node: Node, values: list[str]) -> list[str]:
        """Return which values the first product of an attention takes as integers, if both its sides are
        such."""
        first = values[:2] if node.op == "scaled_dot_product_attention" else []
        sides = [name for name in first if name not in values[2:]]
        return sides if all(self.tensor[name].endswith(":q") for name in first) else []

    def _take_sum_along(self, norm: Operation) -> None:
        """Let a normalisation of sequences add what it alone reads the sum of."""
        added = next((one for one in reversed(self.found) if one.writes == norm.reads[0]), None)
        if added is None or added.kind != "add.Tensor" or added.node is None or len(norm.shape) != 3:
            return
        shapes = {self.network.shape_of(name) for name in added.node.inputs}
        value = added.node.name
        alone = self.network.users[value] == norm.nodes[:1] and value not in self.network.outputs
        if alone and added.writes == value and added.precision == "fp32" and shapes == {norm.shape}:
            self.found.remove(added)
            norm.reads, norm.nodes, norm.adds = added.reads, added.nodes + norm.nodes, True

    def _is_integer(self, node: Node, result: Node) -> bool:
        stored = [self.tensor[name].endswith(":q") for name in node.inputs if name in self.tensor]
        if node.op in LAYERS:
            return node.bits == 8 and stored[:1] == [True]
        if node.op in MOVES:
            return stored[0]
        if node.op in CONCATENATIONS and all(stored) and self._share_quantizer(node):
            return True
        if node.op in PRODUCTS:
            return all(stored)
        if node.op == BINARIZE or is_opaque(node.op):
            return False
        return result.quantizer is not None and all(stored)

    def _share_quantizer(self, node: Node) -> bool:
        if node.params or any(name not in self.tensor for name in node.inputs):
            return False
        first, *others = (self.quantizers.get(self.tensor[name]) for name in node.inputs)
        return node.quantizer in (None, first) and all(other == first for other in others)

    def _quantizer_written(self, result: Node, reads: list[str]) -> Quantizer | None:
        """Return the quantizer of what is written; moved data keep the quantizer that they have."""
        return self.quantizers.get(reads[0]) if result.quantizer is None else result.quantizer

    def _activation(self, node: Node) -> Node | None:
        """Return the activation that runs within this operation."""
        network = self.network
        if node.op not in LAYERS and node.op != "add.Tensor":
            return None
        users = network.users[node.name]
        if len(users) != 1 or node.quantizer is not None or node.name in network.outputs:
            return None
        user = network.by_name[users[0]]
        if user.op in CLIPS and user.quantizer is not None and self._is_integer(node, user):
            return user
        if node.op in LAYERS and user.op in _FUSED_BEHIND_FLOAT and not self._is_integer(node, user):
            fits = node.op != "linear" or (
                len(node.shape) == 2 and user.op in _FUSED_BEHIND_FLOAT - {"hardswish"}
            )
            return user if fits and not self._is_guarded(node) else None
        return None

    def _is_guarded(self, node: Node) -> bool:
        """Return whether the export keeps this float layer between integers in floats, by an empty
        activation."""
        network = self.network
        if network.quantizer_of(node.inputs[0]) is None:
            return False
        users = network.users[node.name]
        clipped = len(users) == 1 and network.by_name[users[0]].op in CLIPS
        carrier = network.by_name[users[0]] if clipped else node
        return network.is_rounded(carrier.name) or node.quantizer is not None

    def _quantize(self, value: str, shape: Any, quantizer: Quantizer | None) -> None:
        name = f"{value}:q"
        self.found.append(
            Operation("quantize", "int8", [self.tensor.get(value, value)], name, shape, (value,))
        )
        self.tensor[value] = name
        self.quantizers[name] = quantizer

    def _float(self, value: str) -> str:
        """Return the tensor of a value in floats; the first reader of integers has them converted."""
        name = self.tensor[value]
        if not name.endswith(":q"):
            return name
        whole = self.parts.get(value, name.removesuffix(":q"))
        if whole not in self.dequantized:
            self.dequantized[whole] = f"{whole}:dq"
            shape = self.network.shape_of(value)
            self.found.append(
                Operation("dequantize", "int8", [name], self.dequantized[whole], shape, (value,))
            )
        return self.dequantized[whole]


def _adds_zeros(node: Node) -> bool:
    """Return whether an operation surrounds an image by zeros, on its last two axes."""
    if node.op not in ("pad", "constant_pad_nd") or len(node.shape) != 4:
        return False
    amounts, rest = node.args[1], node.args[2:]
    plain = all(one in ("constant", None, 0) for one in rest) and not node.kwargs
    return plain and isinstance(amounts, tuple) and len(amounts) <= 4 and min(amounts) >= 0  # type: ignore[type-var]


def is_number(node: Node) -> bool:
    """Return whether a node computes an integer, such as a size, which no runtime carries out."""
    return node.op == "sym_size.int" or node.op.startswith("operator.") or node.shape == ()


def _does_nothing(network: Network, node: Node) -> bool:
    """Return whether the export leaves the operation out."""
    if node.op not in _LEFT_OUT:
        return False
    same = node.shape == network.shape_of(node.inputs[0])
    if node.op != "slice.Tensor" or same:
        return same
    users = network.users[node.name]
    if len(users) != 1 or node.name in network.outputs:
        return False
    user = network.by_name[users[0]]
    return user.op == "slice.Tensor" and user.args[1:2] != node.args[1:2]
