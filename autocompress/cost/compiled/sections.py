"""Where a network can be cut: at values through which everything passes.

What a runtime makes of the operations behind such a value depends on those before it only by how the value
lies (`fused_graph.Crossing`), whether it is rounded, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.cost.compiled.pieces import COUNTED, NEVER_CLOSES, Axis, Piece, Uncuttable, alone
from autocompress.cost.fused_graph import is_number
from autocompress.graph.blocks import Block
from autocompress.graph.coupling_rules import axes_in
from autocompress.graph.network import INPUT, XNOR, Network, Node, redirect
from autocompress.graph.operations import LAYERS, WEIGHTED, is_opaque
from autocompress.problem.candidate import Option, Site
from autocompress.transforms.apply import CHAIN_SUFFIXES
from autocompress.transforms.families import depth
from autocompress.transforms.sites import BoundSpace

DROP = "drop"

_PADS = frozenset({"pad", "constant_pad_nd"})
"""Convolutions may add the zeros themselves."""


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A section in which some blocks are dropped: the pieces that stay, what they read under which new name,
    and the value that it computes, `INPUT` where nothing is left."""

    section: PieceSection
    pieces: tuple[Piece, ...]
    aliases: Mapping[str, str]
    output: str
    forms: dict[tuple[int, ...], Any] = field(default_factory=dict)
    """What `lowering` made of the section by the forms of its pieces."""


@dataclass(eq=False)
class PieceSection:
    """Pieces in a row. Only what `network` has as its input comes in, under the name `entry` in the whole."""

    network: Network
    entry: str
    pieces: tuple[Piece, ...]
    blocks: tuple[tuple[int, Block], ...]
    """Those that may be dropped, each with the position of its site."""

    known: dict[tuple[bool, ...], Skeleton] = field(default_factory=dict)

    @cached_property
    def whole(self) -> Skeleton:
        """Return the section with all of its blocks."""
        return self._without([False] * len(self.blocks))

    def skeleton(self, options: Sequence[Option]) -> Skeleton:
        """Return what is left of the section by the choices at its blocks."""
        dropped = tuple([options[at] == DROP for at, _ in self.blocks])
        found = self.known.get(dropped)
        if found is None:
            found = self.known[dropped] = self._without(dropped)
        return found

    def _without(self, dropped: Sequence[bool]) -> Skeleton:
        network = self.network
        for (_, block), gone in zip(self.blocks, dropped, strict=True):
            if gone and block.add in network.by_name:
                network, _ = depth.drop(network, None, block)
        pieces = tuple(piece for piece in self.pieces if piece.names[-1] in network.by_name)
        aliases: dict[str, str] = {}
        for node in network.nodes:
            before = self.network.by_name[node.name].inputs
            aliases.update((old, new) for old, new in zip(before, node.inputs, strict=True) if old != new)
        if {name for piece in pieces for name in piece.names} != network.by_name.keys():
            raise Uncuttable
        return Skeleton(self, pieces, aliases, network.output)


def cut(bound: BoundSpace, float_block: int) -> tuple[tuple[PieceSection, ...], tuple[Axis, ...]]:
    """Return the sections of a network under a space, and the axes whose numbers of channels their pieces
    want behind the options of the free sites. Raises Uncuttable."""
    network = bound.network
    _check_space(bound)
    sites, forms, entry = _Sites(bound), dict[object, int](), INPUT
    sections = []
    for names in _stretches(network):
        blocks = sites.droppable(names)
        pieces = tuple(
            sites.piece(part, float_block, forms) for part in _parts(network, names, blocks, sites)
        )
        sections.append(PieceSection(_section_network(network, names, entry), entry, pieces, blocks))
        entry = names[-1]
    if sum(len(section.blocks) for section in sections) != len(sites.droppable(tuple(network.by_name))):
        raise Uncuttable("a block that may be dropped reaches over a place where the network could be cut")
    _check_params(network, [piece.names for section in sections for piece in section.pieces])
    return tuple(sections), tuple(sites.axes.values())


def _stretches(network: Network) -> Iterator[tuple[str, ...]]:
    """Yield the names of the nodes of each section."""
    order = {node.name: index for index, node in enumerate(network.nodes)}
    last_read = {INPUT: 0}
    for node in network.nodes:
        last_read.update((name, order[node.name]) for name in node.inputs)
    start, furthest = 0, last_read[INPUT]
    for index, node in enumerate(network.nodes):
        is_last = index + 1 == len(network.nodes)
        if is_last or (furthest <= index and _is_narrow(network, node)):
            yield tuple(other.name for other in network.nodes[start : index + 1])
            start = index + 1
        furthest = max(furthest, last_read.get(node.name, index))


def _is_narrow(network: Network, node: Node) -> bool:
    """Return whether a runtime treats what reads this value by itself."""
    readers = [network.by_name[name] for name in network.users[node.name]]
    readers = [reader for reader in readers if not is_number(reader)]
    if node.op in NEVER_CLOSES or is_number(node) or isinstance(node.shape[0], tuple):
        return False
    return len(readers) > 1 or any(reader.op in LAYERS for reader in readers)


def _section_network(network: Network, names: Sequence[str], entry: str) -> Network:
    nodes = redirect([network.by_name[name] for name in names], {entry: INPUT})
    params = {name: network.params[name] for node in nodes for name in node.params}
    return Network(network.shape_of(entry), nodes, names[-1], params)


def _parts(
    network: Network, names: Sequence[str], blocks: Iterable[tuple[int, Block]], sites: _Sites
) -> Iterator[tuple[str, ...]]:
    """Yield the names of the nodes of each piece: what follows a node alone, and brings no other site, stays
    with it."""
    part: list[str] = []
    for name in names:
        node = network.by_name[name]
        if part and part[-1] in node.inputs:
            same = sites.of(name) <= sites.of(*part) and _around(blocks, name) == _around(blocks, part[-1])
            if network.by_name[part[-1]].op in _PADS if node.op in LAYERS else same:
                part.append(name)
                continue
        if part:
            yield tuple(part)
        part = [name]
    yield tuple(part)


def _around(blocks: Iterable[tuple[int, Block]], name: str) -> list[str]:
    return [block.name for _, block in blocks if name in block.nodes or name == block.add]


class _Sites:
    """Know which sites decide about a node."""

    def __init__(self, bound: BoundSpace) -> None:
        self.bound = bound
        self.axes: dict[bytes, Axis] = {}
        self.owners: dict[str, object] = dict.fromkeys((*bound.network.by_name, *bound.network.params))
        self.groups = {group.name: group for group in bound.coupling.groups}
        self.at = {site.name: at for at, site in enumerate(bound.free)}
        self._of_atom = np.full(bound.coupling.atom_count + 1, -1)
        for site in bound.of_kind("width"):
            self._of_atom[self.groups[site.target].atoms] = self.at[site.name]
        self._of_layer: dict[str, set[int]] = {}
        for site in bound.free:
            if site.kind not in ("width", "merge"):
                layers = bound.blocks[site.target].layers if site.kind == "block" else (site.target,)
                for layer in layers:
                    self._of_layer.setdefault(layer, set()).add(self.at[site.name])

    def droppable(self, names: Sequence[str]) -> tuple[tuple[int, Block], ...]:
        """Return the blocks among these nodes that may be dropped, each with the position of its site."""
        found = [
            (self.at[site.name], self.bound.blocks[site.target])
            for site in self.bound.of_kind("block")
            if DROP in site.options
        ]
        return tuple((at, block) for at, block in found if {*block.nodes, block.add} <= {*names})

    def of(self, *names: str) -> set[int]:
        """Return the positions of the sites that decide about any of these nodes."""
        found: set[int] = set()
        for name in names:
            found |= self._of_layer.get(name, set())
            found.update(*(self._of_labels(labels) for labels in self._labels(name)))
        return found

    def _labels(self, name: str) -> Iterator[NDArray[np.int64]]:
        """Yield the atoms on each axis of what a node computes, reads and has as parameters."""
        node, coupling = self.bound.network.by_name[name], self.bound.coupling
        axes = [coupling.values[value] for value in (name, *node.inputs)]
        axes += [coupling.params[param] for param in node.params if param in coupling.params]
        return (labels for labels in axes_in(axes) if labels is not None)

    def _of_labels(self, labels: NDArray[np.int64]) -> set[int]:
        return set(self._of_atom[labels].tolist()) - {-1}

    def _key(self, names: Sequence[str]) -> Callable[[Sequence[Option]], Any]:
        """Return what picks the options that tell versions of a piece apart; of channels that several sites
        decide about, their number."""
        found = set().union(*(self._of_layer.get(name, ()) for name in names))
        for name in names:
            counted = self.bound.network.by_name[name].op in COUNTED
            for labels in self._labels(name):
                sites = self._of_labels(labels)
                found |= {self._axis(labels, sites)} if counted and len(sites) > 1 else sites
        return itemgetter(*sorted(found)) if found else lambda _: ()

    def _axis(self, labels: NDArray[np.int64], sites: set[int]) -> int:
        """Return the position of the number of these channels behind the options."""
        found = self.axes.setdefault(labels.tobytes(), Axis(self.bound, labels, sorted(sites)))
        return len(self.bound.free) + [*self.axes.values()].index(found)

    def piece(self, names: tuple[str, ...], float_block: int, forms: dict[object, int]) -> Piece:
        network = alone(self.bound.network, names)
        positions = sorted(self.of(*names))
        sites = tuple(self.bound.free[at] for at in positions)
        groups = tuple(self.groups[site.target] for site in sites if site.kind == "width")
        blocks = {site.target: self._within(site, names) for site in sites if site.kind == "block"}
        coupling = self.bound.coupling.within(network, groups)
        bound = BoundSpace(network, coupling, blocks, sites, quantize=self.bound.quantize)
        return Piece(bound, names, tuple(positions), self._key(names), float_block, forms, self.owners)

    def _within(self, site: Site, names: Sequence[str]) -> Block:
        """Return a block of which there are only these nodes, to be replaced and never to be dropped."""
        block = self.bound.blocks[site.target]
        layers = tuple(layer for layer in block.layers if layer in names)
        return replace(block, layers=layers, nodes=frozenset(), add=layers[0])


def _check_space(bound: BoundSpace) -> None:
    """Raise Uncuttable where what becomes of a node may depend on nodes far away."""
    if bound.network.signature is not None or bound.network.more_inputs or bound.network.more_outputs:
        raise Uncuttable("it has several inputs or outputs")
    if any(is_opaque(node.op) for node in bound.network.nodes):
        raise Uncuttable("an operation is not known")
    layers = [node.name for node in bound.network.nodes if node.op in WEIGHTED]
    if any(f"{layer}.{suffix}" in bound.network.by_name for layer in layers for suffix in CHAIN_SUFFIXES):
        raise Uncuttable("a node is named like a part of a layer")
    if bound.of_kind("merge") or any(XNOR in site.options for site in bound.free):
        raise Uncuttable("a layer may merge with another, or its input become binary")
    chosen = [bound.blocks[site.target] for site in bound.of_kind("block")]
    if any(one.add in other.nodes for one in chosen for other in chosen):
        raise Uncuttable("blocks nest")


def _check_params(network: Network, pieces: Sequence[Sequence[str]]) -> None:
    """Raise Uncuttable where two pieces read one parameter, or a batch norm is not with its layer."""
    piece_of = {name: at for at, names in enumerate(pieces) for name in names}
    for users in network.param_users.values():
        if len({piece_of[name] for name in users}) > 1:
            raise Uncuttable("a parameter is shared")
    for node in network.nodes:
        source = network.by_name.get(node.inputs[0]) if node.inputs else None
        if node.op != "batch_norm" or source is None or source.op not in WEIGHTED:
            continue
        if piece_of[node.name] != piece_of[source.name]:
            raise Uncuttable("a batch norm is not with its layer")
