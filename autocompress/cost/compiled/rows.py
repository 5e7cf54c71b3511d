"""What a piece of a network adds to the cost of the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from autocompress.cost.compiled.pieces import Version
from autocompress.cost.fused_graph import Operation
from autocompress.cost.kernels import kernel_of
from autocompress.cost.memory import weight_bytes
from autocompress.cost.model import CostModel, file_content, trainable_parameters
from autocompress.cost.packed_size import coded_bytes, packed_content
from autocompress.graph.network import INPUT, Network, Quantizer

_ANY_QUANTIZER = Quantizer(1.0, 0)


class Row(NamedTuple):
    """What a piece of some sizes adds: `counts` as in `COUNTS`, the channels of its layers of 8 bits, what
    its kernels take, what its parameters take in a coded file, and for each cut the bytes alive."""

    counts: tuple[int, ...]
    channels: frozenset[int]
    kernels_us: tuple[float, ...]
    coded_bytes: tuple[float, ...]
    live_bytes: tuple[int, ...]


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
    """What is made of a piece whatever its sizes: its operations, the values there that are rounded, and for
    each set of other pieces' values that is alive the sets of its own that are alive at once."""

    operations: tuple[Made, ...]
    rounded: frozenset[str]
    cuts: tuple[tuple[tuple[str, ...], ...], ...]
    rows: dict[Version, Row] = field(default_factory=dict, compare=False)

    def row(self, version: Version, cost_model: CostModel) -> Row:
        """Return what a version of the piece adds. Raises ProfileError for a kernel of an unknown kind."""
        network = self._rounded(version.network)
        kernels = [kernel_of(network, _operation(network, made)) for made in self.operations]
        file = file_content(network, [network.by_name[node.name] for node in version.nodes])
        packed = packed_content(network)
        counts = (
            sum(kernel.macs for kernel in kernels),
            trainable_parameters(network),
            weight_bytes(network),
            *(file.nodes, file.convolutions, file.letters, file.low_layers, file.low_letters),
            *(file.low_channels, file.quantizers, file.tensors),
            *(packed.tensors, packed.letters, packed.coded_layers),
        )
        sizes = version.elements
        live = tuple(
            max(sum(sizes[name] * (1 if name in self.rounded else 4) for name in alive) for alive in cut)
            for cut in self.cuts
        )
        found = Row(
            counts,
            file.distinct_channels,
            tuple(map(cost_model.kernel_us, kernels)),
            tuple(coded_bytes(network)),
            live,
        )
        self.rows[version] = found
        return found

    def _rounded(self, network: Network) -> Network:
        nodes = tuple(
            node.but(quantizer=_ANY_QUANTIZER if node.name in self.rounded else None)
            for node in network.nodes
        )
        entry = _ANY_QUANTIZER if INPUT in self.rounded else None
        return Network(network.input_shape, nodes, network.output, network.params, entry)


def _operation(network: Network, made: Made) -> Operation:
    node = None if made.converts else network.by_name[made.value]
    return Operation(
        made.kind,
        made.precision,
        [],
        "",
        network.shape_of(made.value),
        made.nodes,
        node,
        made.activation,
        made.layout,
        made.adds,
    )
