"""How a runtime lays out images, and the reorderings that this costs.

Float convolutions work on blocks of channels and integer ones on channels last; what stands between
them either follows, or the value is reordered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from autocompress.cost.fused_graph import WHOLE, Crossing, Operation, Section, split
from autocompress.graph.network import INPUT, Network, Param
from autocompress.graph.operations import CONVOLUTIONS, having

_POOLS = frozenset(
    "mean.dim adaptive_avg_pool2d avg_pool2d max_pool2d max_pool2d_with_indices adaptive_max_pool2d".split()
)
_AVERAGES = frozenset({"mean.dim", "adaptive_avg_pool2d", "adaptive_max_pool2d"})
_BLOCKED_ACTIVATIONS = frozenset({"relu", "sigmoid", "tanh", "hardsigmoid", "gelu"})
_TAKE_ACTIVATIONS = CONVOLUTIONS | {"batch_norm"}
_UPSAMPLINGS = ("upsample_nearest2d", "upsample_bilinear2d")
_ALIGNMENT = 4
_TO_CHANNELS_LAST, _TO_CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_FOLLOW_LAYOUT = having(lambda row: row.any_layout) | {"quantize", "dequantize"}
"""Work on channels last as well as on channels first."""


@dataclass(frozen=True)
class Layouts:
    """Say how a runtime lays out images: the channels in a block of its float convolutions (0 for none), and
    whether integer convolutions want channels last."""

    float_block: int = 16
    int8_channels_last: bool = True


def operations(network: Network, layouts: Layouts) -> list[Operation]:
    """Return the operations that a runtime executes for a network in shipped form, in execution order."""
    return section_operations(network, layouts, WHOLE)[0]


def section_operations(
    network: Network, layouts: Layouts, section: Section
) -> tuple[list[Operation], Crossing]:
    """Return the operations of a section of a network, and how it leaves its first output."""
    found, outputs = split(network, section)
    output = outputs[0]
    blocked = channels_last = False
    if layouts.float_block:
        blocks = _Blocks(network, found, outputs, layouts.float_block, section)
        found, blocked = blocks.run(), output in blocks.blocked
    if layouts.int8_channels_last:
        last = _ChannelsLast(network, found, section)
        found, channels_last = list(last.run()), output in last.last
    quantizer = network.quantizer_of(network.output)
    from_zero = quantizer is not None and quantizer.zero_point == 0
    return found, Crossing(output.endswith(":q"), from_zero, blocked, channels_last)


def layout_of_convolution(out_channels: int, in_channels: int, groups: int, block: int) -> str:
    """Return how a float convolution lies, `in_channels` being those of one group: on blocks of channels
    (`blocked`), on plain channels that it turns into blocks (`to_blocked`), or on plain ones."""
    if groups > 1:
        depthwise = in_channels == 1 and out_channels == groups
        whole = in_channels % block == 0 and out_channels // groups % block == 0
        return "" if out_channels % _ALIGNMENT or not (depthwise or whole) else "blocked"
    if in_channels < block:
        return "to_blocked"
    return "" if in_channels % _ALIGNMENT else "blocked"


@dataclass(slots=True)
class _Blocked:
    """A tensor in blocks of channels, the operation that wrote it, and how many read it."""

    writer: Operation
    uses: int


@dataclass
class _Blocks:
    """Put float convolutions on blocks of channels, and what stands between them with them.

    Follows the order and the conditions of ONNX Runtime's NCHWc rewriting: a convolution adds the
    other operand of the addition behind it, and then takes the activation behind that along.
    """

    network: Network
    source: list[Operation]
    outputs: tuple[str, ...]
    block: int
    section: Section = WHOLE
    found: list[Operation] = field(default_factory=list)
    blocked: dict[str, _Blocked] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    reordered: set[tuple[str, str]] = field(default_factory=set)

    def run(self) -> list[Operation]:
        self.uses: dict[str, int] = dict.fromkeys(self.outputs, 1)
        entry = self.section.entry
        self.shapes = {one.name: one.shape for one in self.network.inputs}
        self.shapes[self.section.reads] = self.network.input_shape
        if entry is not None and entry.blocked:
            before = Operation("input", "fp32", [], INPUT, self.network.input_shape, ())
            self.blocked[INPUT] = _Blocked(before, len(self.network.users[INPUT]))
        for operation in self.source:
            self.shapes[operation.writes] = operation.shape
            for name in operation.reads:
                self.uses[name] = self.uses.get(name, 0) + 1
        for operation in self.source:
            if operation.precision == "int8" or not self._takes_blocks(operation):
                self._plain(operation)
        for name in self.outputs if self.section.ends else ():
            if name in self.blocked:
                self._from_blocked(name)
        return self.found

    def _takes_blocks(self, operation: Operation) -> bool:
        if operation.kind in _POOLS:
            return self._pool(operation)
        if len(operation.shape) != 4 or isinstance(operation.shape[0], tuple):
            return False
        if operation.kind in CONVOLUTIONS:
            return self._convolution(operation)
        if not all(name in self.blocked for name in operation.reads):
            return False
        if operation.kind == "add.Tensor":
            return self._same_shapes(operation) and (self._fused_add(operation) or self._follow(operation))
        if operation.kind == "mul.Tensor":
            return self._same_shapes(operation) and self._follow(operation)
        if operation.kind in ("silu", "square", "batch_norm"):
            return self._follow(operation)
        if operation.kind.startswith(_UPSAMPLINGS):
            return self._scales_by_whole_numbers(operation) and self._follow(operation)
        if operation.kind in _BLOCKED_ACTIVATIONS:
            return self._fused_activation(operation) or self._follow(operation)
        if operation.kind == "cat":
            return self._concatenation(operation)
        return operation.kind == "permute" and self._to_channels_last(operation)

    def _convolution(self, operation: Operation) -> bool:
        node = operation.node
        assert node is not None
        if not isinstance(node.args[1], Param):
            return False
        out_channels, in_channels = self.network.params[node.args[1].name].shape[:2]
        groups = int(node.args[6]) if len(node.args) > 6 else 1
        layout = layout_of_convolution(out_channels, in_channels, groups, self.block)
        if layout == "to_blocked":
            operation.layout = layout
            self._read_plain(operation)
        elif layout == "blocked":
            self._read_blocked(operation)
        else:
            return False
        return self._wrote_blocked(operation)

    def _pool(self, operation: Operation) -> bool:
        """Take averages and maxima over whole maps as a pooling and, where they drop both axes, a reshape
        behind it. These stay in blocks, and are not worth going there for."""
        source = operation.reads[0]
        shape = self.shapes[source]
        if len(shape) != 4 or shape[1] % self.block or not _is_spatial(operation):
            return False
        if operation.kind in _AVERAGES and source not in self.blocked:
            return False
        self._read_blocked(operation)
        return self._wrote_blocked(operation)

    def _read_blocked(self, operation: Operation) -> None:
        operation.layout = "blocked"
        """Integers become floats anew for each of their readers, and so blocks too."""
        name = operation.reads[0]
        reordering = (name, operation.writes if name.endswith(":dq") else "in")
        if name in self.blocked or reordering in self.reordered:
            return
        self.reordered.add(reordering)
        turned = self._turned_alone(name)
        if turned is None:
            self._convert("to_blocked", name)
        else:
            turned.kind = "to_blocked"
            turned.nodes += (turned.reads[0].partition(":")[0],)

    def _turned_alone(self, name: str) -> Operation | None:
        """Return the transposition from channels last that wrote this tensor for one reader only."""
        for operation in reversed(self.found):
            if operation.writes == name:
                node = operation.node
                alone = operation.kind == "permute" and self.uses.get(name) == 1
                return (
                    operation if alone and node is not None and node.args[1] == _TO_CHANNELS_FIRST else None
                )
        return None

    def _wrote_blocked(self, operation: Operation) -> bool:
        self.found.append(operation)
        self.blocked[operation.writes] = _Blocked(operation, self.uses.get(operation.writes, 0))
        return True

    def _follow(self, operation: Operation) -> bool:
        operation.layout = "blocked"
        return self._wrote_blocked(operation)

    def _same_shapes(self, operation: Operation) -> bool:
        shapes = {self.shapes[name] for name in operation.reads}
        return len(operation.reads) == 2 and len(shapes) == 1

    def _fused_add(self, operation: Operation) -> bool:
        for name, other in (operation.reads, reversed(operation.reads)):
            found = self.blocked[name]
            conv = found.writer
            free = conv.kind in CONVOLUTIONS and not conv.adds and not conv.activation and found.uses == 1
            if free and name != other:
                conv.adds = True
                conv.reads.append(other)
                self._take_over(conv, operation)
                return True
        return False

    def _fused_activation(self, operation: Operation) -> bool:
        found = self.blocked[operation.reads[0]]
        conv = found.writer
        fuses = conv.kind in _TAKE_ACTIVATIONS and operation.kind != "gelu"
        if not fuses or conv.activation or found.uses != 1:
            return False
        conv.activation = operation.kind
        self._take_over(conv, operation)
        return True

    def _take_over(self, conv: Operation, operation: Operation) -> None:
        """Let the convolution compute what this operation would have; it runs where the operation stood."""
        conv.nodes += operation.nodes
        conv.writes = operation.writes
        self.found.remove(conv)
        self._wrote_blocked(conv)

    def _scales_by_whole_numbers(self, operation: Operation) -> bool:
        before, after = self.shapes[operation.reads[0]], operation.shape
        return all(large % small == 0 for large, small in zip(after[2:], before[2:], strict=True))

    def _concatenation(self, operation: Operation) -> bool:
        channels = [self.shapes[name][1] for name in operation.reads]
        along_channels = sum(channels) == operation.shape[1]
        if not along_channels or any(count % self.block for count in channels):
            return False
        return self._follow(operation)

    def _to_channels_last(self, operation: Operation) -> bool:
        """Take a transposition of blocks for a reordering of another kind."""
        node = operation.node
        if node is None or node.args[1] != _TO_CHANNELS_LAST:
            return False
        operation.kind = "from_blocked"
        operation.nodes += (operation.reads[0].partition(":")[0],)
        self.found.append(operation)
        return True

    def _plain(self, operation: Operation) -> None:
        self._read_plain(operation)
        self.found.append(operation)

    def _read_plain(self, operation: Operation) -> None:
        for name in operation.reads:
            if name in self.blocked:
                self._from_blocked(name)

    def _from_blocked(self, name: str) -> None:
        if (name, "out") not in self.reordered:
            self.reordered.add((name, "out"))
            self._convert("from_blocked", name)

    def _convert(self, kind: str, name: str) -> None:
        value = name.partition(":")[0]
        self.found.append(Operation(kind, "fp32", [name], name, self.shapes[name], (value,)))


def _is_spatial(operation: Operation) -> bool:
    """Return whether a pooling is one over height and width, as runtimes know it."""
    if operation.kind != "mean.dim":
        return True
    node = operation.node
    return node is not None and node.args[1] in ((2, 3), (-2, -1), (3, 2), (-1, -2))


class _ChannelsLast:
    """Put integer convolutions on channels last, and what stands between them with them."""

    def __init__(self, network: Network, source: list[Operation], section: Section = WHOLE) -> None:
        self.source = source
        self.shapes = {one.name: one.shape for one in network.inputs}
        self.shapes[section.reads] = network.input_shape
        self.shapes.update((operation.writes, operation.shape) for operation in source)
        entry = section.entry
        self.last = {section.reads} if entry is not None and entry.channels_last else set[str]()
        self.turned: set[tuple[str, str]] = set()

    def run(self) -> Iterator[Operation]:
        for operation in self.source:
            if _is_integer_convolution(operation) or self._follows(operation):
                yield from self._turn("to_channels_last", operation, lambda name: name not in self.last)
                self.last.add(operation.writes)
                operation.layout = "channels_last"
            else:
                yield from self._turn("to_channels_first", operation, lambda name: name in self.last)
            yield operation

    def _follows(self, operation: Operation) -> bool:
        if operation.kind not in _FOLLOW_LAYOUT or operation.layout or not operation.reads:
            return False
        return all(name in self.last for name in operation.reads)

    def _turn(self, kind: str, operation: Operation, needs: Callable[[str], bool]) -> Iterator[Operation]:
        for name in operation.reads:
            if needs(name) and (kind, name) not in self.turned:
                self.turned.add((kind, name))
                precision = "int8" if name.endswith(":q") else "fp32"
                yield Operation(kind, precision, [name], name, self.shapes[name], (name.partition(":")[0],))


def _is_integer_convolution(operation: Operation) -> bool:
    return operation.kind in CONVOLUTIONS and operation.precision == "int8"
