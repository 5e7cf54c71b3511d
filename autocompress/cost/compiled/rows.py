"""What a piece of a network adds to the cost of the whole."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from struct import Struct
from typing import NamedTuple

from autocompress.cost.compiled.pieces import Version
from autocompress.cost.fused_graph import Operation
from autocompress.cost.kernels import kernel_of
from autocompress.cost.memory import weight_bytes
from autocompress.cost.model import CostModel, file_content, trainable_parameters
from autocompress.cost.packed_size import coded_bytes, packed_content
from autocompress.graph.network import Network, Quantizer

_ANY = Quantizer(1.0, 0)


class PieceRow(NamedTuple):
    """Hold what a piece of some sizes adds: `counts` as `packed`, the channels of its layers of 8 bits, what
    its kernels take, what its parameters take in a coded file, for each cut the bytes alive, and the most of
    these."""

    counts: int
    channels: frozenset[int]
    kernels_us: tuple[float, ...]
    coded_bytes: tuple[float, ...]
    live_bytes: tuple[int, ...]
    most_bytes: int


class Counts(NamedTuple):
    """Hold what adds up over pieces."""

    macs: int
    quantizers: int
    parameters: int
    weight_bytes: int
    nodes: int
    convolutions: int
    letters: int
    low_layers: int
    low_letters: int
    low_channels: int
    tensors: int
    stored: int
    stored_letters: int
    coded_layers: int

    def packed(self) -> int:
        """Return them as one integer, of which one addition adds all: 64 bits each."""
        return int.from_bytes(_LAYOUT.pack(*self), "little")

    @classmethod
    def unpacked(cls, total: int) -> Counts:
        """Return them from such an integer."""
        return cls(*_LAYOUT.unpack(total.to_bytes(_LAYOUT.size, "little")))


_LAYOUT = Struct(f"<{len(Counts._fields)}Q")


class Made(NamedTuple):
    """An operation of a piece, by names: of the value that it converts, or of the node it carries out."""

    kind: str
    precision: str
    value: str
    converts: bool
    nodes: tuple[str, ...]
    activation: str
    layout: str
    adds: bool


@dataclass(frozen=True)
class Slot:
    """Hold what is made of a piece whatever its sizes: its operations, the values there that are rounded, and
    for each set of other pieces' values that is alive the sets of its own that are alive at once."""

    operations: tuple[Made, ...]
    rounded: frozenset[str]
    cuts: tuple[tuple[tuple[str, ...], ...], ...]
    rows: dict[Version, PieceRow] = field(default_factory=dict, compare=False)

    def row(self, version: Version, cost_model: CostModel) -> PieceRow:
        """Return what a version of the piece adds. Raises ProfileError for a kernel of an unknown kind."""
        known = version.stored
        if known is None:
            known = version.stored = stored(version)
        kernels = [_kernel(made, version, cost_model) for made in self.operations]
        sizes = version.elements
        live = [
            max([sum([sizes[name] * (1 if name in self.rounded else 4) for name in alive]) for alive in cut])
            for cut in self.cuts
        ]
        macs = sum([kernel[1] for kernel in kernels])
        quantizers = len(self.rounded.intersection(version.computes))
        found = PieceRow(
            Counts(macs, quantizers, *known.counts).packed(),
            known.channels,
            tuple([kernel[0] for kernel in kernels]),
            known.coded_bytes,
            tuple(live),
            max(live, default=0),
        )
        self.rows[version] = found
        return found


class Stored(NamedTuple):
    """Hold what a version of a piece adds to files, whatever its surroundings."""

    counts: tuple[int, ...]
    channels: frozenset[int]
    coded_bytes: tuple[float, ...]


def stored(version: Version) -> Stored:
    """Return what a version of a piece adds to files: a layer of 8 bits has its input rounded anywhere."""
    network = replace(
        version.network.with_nodes(node.but(quantizer=_ANY) for node in version.network.nodes),
        input_quantizer=_ANY,
    )
    file = file_content(network, [network.by_name[name] for name in version.computes])
    packed = packed_content(network)
    counts = (
        *(trainable_parameters(network), weight_bytes(network)),
        *(file.nodes, file.convolutions, file.letters, file.low_layers, file.low_letters),
        *(file.low_channels, file.tensors, packed.tensors, packed.letters, packed.coded_layers),
    )
    return Stored(counts, file.distinct_channels, tuple(coded_bytes(network)))


def _kernel(made: Made, version: Version, cost_model: CostModel) -> tuple[float, int]:
    """Return what an operation of a piece takes in µs, and its multiply-adds."""
    found = version.kernels.get(made)
    if found is None:
        kernel = kernel_of(version.network, _operation(version.network, made))
        found = version.kernels[made] = cost_model.kernel_us(kernel), kernel.macs
    return found


def _operation(network: Network, made: Made) -> Operation:
    """Return an operation as far as its kernel follows from it."""
    node = None if made.converts else network.by_name[made.value]
    shape = network.shape_of(made.value)
    more = (made.nodes, node, made.activation, made.layout, made.adds)
    return Operation(made.kind, made.precision, [], "", shape, *more)
