"""Which channels must leave together.

Every index along an axis that could shrink gets an *atom*. Each operation says how the atoms of
its output follow from those of its inputs; where two axes meet (a residual addition, a depthwise
convolution, a normalisation) their atoms are united. At the end an atom is the set of all places
in all parameters that have to go when one channel goes, and atoms found in the same places form a
group that can be given a width. Concatenations, splits, zero-padded shortcuts and flattened maps
need no special case: their atoms are concatenated, sliced, padded and repeated like the data.

What an operation does to atoms is not guessed: an operation that is not understood locks the
atoms that reach it, with the reason. The idea of dependency groups is that of DepGraph
(Fang et al. 2023, arXiv:2301.12900), here on axes instead of modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.graph import coupling_rules
from autocompress.graph.coupling_rules import Atoms, Axes, ValueAxes
from autocompress.graph.network import INPUT, Network, Node
from autocompress.graph.operations import PRODUCERS
from autocompress.graph.replace_layer import input_axis, output_axis, weight_param

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Say where a group lies in one parameter: `indices[i]` are the positions of its i-th atom on `axis`.

    `makes` says that the parameter computes the channels there; where it does not, it reads them.
    """

    param: str
    axis: int
    indices: IntArray
    makes: bool


@dataclass(frozen=True)
class Group:
    """Channels that can be pruned to one width; `locked` says why they cannot."""

    name: str
    atoms: IntArray
    places: tuple[Place, ...]
    layers: tuple[str, ...]
    locked: str = ""

    @property
    def size(self) -> int:
        return len(self.atoms)


@dataclass(frozen=True)
class Coupling:
    """Atoms on every axis of every value and parameter of `network`, after all unions.

    `chosen` are the groups of a part of a network, which are those of the whole.
    """

    network: Network
    values: ValueAxes
    params: Mapping[str, Axes]
    atom_count: int
    locks: Mapping[int, str]
    chosen: tuple[Group, ...] | None = None

    @cached_property
    def output_axes(self) -> dict[str, int]:
        """Return by weight of a layer its axis of outputs."""
        return {
            weight.name: output_axis(node)
            for node in self.network.nodes
            if node.op in PRODUCERS and (weight := weight_param(node)) is not None
        }

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        return tuple(_groups(self)) if self.chosen is None else self.chosen

    def within(self, part: Network, groups: tuple[Group, ...]) -> Coupling:
        """Return the coupling of a part of the network, whose channels belong to these of its groups."""
        values = {name: self.values[name] for name in (INPUT, *part.by_name)}
        params = {name: self.params[name] for name in part.params if name in self.params}
        return replace(self, network=part, values=values, params=params, chosen=groups)


def couple(network: Network) -> Coupling:
    """Find the atoms of a network. Needs shapes only; linear in the number of channels."""
    atoms = Atoms()
    values: dict[str, Any] = {one.name: tuple(None for _ in one.shape) for one in network.inputs}
    for node in network.nodes:
        values[node.name] = _visit(node, network, values, atoms)
    for output in network.outputs:
        for labels in coupling_rules.axes_in(values[output]):
            atoms.lock(labels, "is the output of the network")
    return Coupling(
        network=network,
        values={name: atoms.resolve(axes) for name, axes in values.items()},
        params={name: atoms.resolve(axes) for name, axes in atoms.params.items()},
        atom_count=atoms.count,
        locks=atoms.resolved_locks(),
    )


def _visit(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Any:
    rule = coupling_rules.rule_for(node.op) or coupling_rules.not_followed
    return rule(node, network, values, atoms)


def _groups(coupling: Coupling) -> Iterable[Group]:
    signatures: dict[int, list[tuple[str, int, int]]] = {}
    positions: dict[tuple[str, int], dict[int, list[int]]] = {}
    for param, axes in coupling.params.items():
        for axis, labels in enumerate(axes):
            if labels is None:
                continue
            where: dict[int, list[int]] = {}
            for index, atom in enumerate(labels.tolist()):
                where.setdefault(atom, []).append(index)
            positions[param, axis] = where
            for atom, indices in where.items():
                signatures.setdefault(atom, []).append((param, axis, len(indices)))
    classes: dict[tuple[tuple[str, int, int], ...], list[int]] = {}
    for atom, signature in signatures.items():
        classes.setdefault(tuple(signature), []).append(atom)
    names: set[str] = set()
    for signature_key, members in classes.items():
        group = _group(coupling, signature_key, members, positions, names)
        if group is not None:
            names.add(group.name)
            yield group


def _group(
    coupling: Coupling,
    signature: tuple[tuple[str, int, int], ...],
    members: list[int],
    positions: Mapping[tuple[str, int], Mapping[int, list[int]]],
    taken: set[str],
) -> Group | None:
    producers = _layers(coupling, signature, output_axis)
    if not producers:
        return None
    places = tuple(
        Place(
            param,
            axis,
            np.array([positions[param, axis][atom] for atom in members]),
            axis == coupling.output_axes.get(param, 0),
        )
        for param, axis, _ in signature
    )
    name = next((producer for producer in producers if producer not in taken), "")
    if not name:
        name = f"{producers[0]}.part{sum(1 for other in taken if other.startswith(producers[0]))}"
    locked = next((coupling.locks[atom] for atom in members if atom in coupling.locks), "")
    if not locked and len(members) < 2:
        locked = "has a single channel"
    consumers = _layers(coupling, signature, input_axis)
    layers = tuple(dict.fromkeys((*producers, *consumers)))
    return Group(name, np.array(members), places, layers, locked)


def _layers(
    coupling: Coupling, signature: tuple[tuple[str, int, int], ...], axis_of: Callable[[Node], int]
) -> list[str]:
    """Return the layers that have the group on this axis of their weight, in order."""
    places = {(param, axis) for param, axis, _ in signature}
    return [
        node.name
        for node in coupling.network.nodes
        if node.op in PRODUCERS
        and (weight := weight_param(node)) is not None
        and (weight.name, axis_of(node)) in places
    ]
