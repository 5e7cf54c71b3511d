"""A piece of a network: a few operations in a row that the same sites decide about.

What a choice makes of a piece comes out of `transforms.apply`, like a student, on a network that holds the
piece alone: its operations, and what they read as nodes that compute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.cost.kernels import elements
from autocompress.cost.layouts import layout_of_convolution
from autocompress.graph.network import INPUT, Network, Node, Param
from autocompress.graph.operations import BINARY, CONVOLUTIONS, LAYERS, MOVES, POINTWISE, VIEWS
from autocompress.problem.candidate import Candidate, Option, WidthSettings, settings_of
from autocompress.transforms.apply import apply
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.prune import keep_mask, kept_count
from autocompress.transforms.sites import BoundSpace

READ = "read"
"""The operation of a node that stands for a value from outside of a piece."""

_SIZELESS = (
    LAYERS
    | POINTWISE
    | {"batch_norm", "layer_norm", "softmax.int", "_softmax", "permute", "transpose.int"}
    | {"matmul", "bmm", "scaled_dot_product_attention"}
)
"""Become the same operations whatever their sizes are."""

_VIEWS = frozenset(op for op in VIEWS if not op.startswith("squeeze"))
_ADDITIONS = frozenset({"add.Tensor", "mul.Tensor", "sub.Tensor", "div.Tensor"})
_POOLS = frozenset({"mean.dim", "adaptive_avg_pool2d", "avg_pool2d", "max_pool2d"})

COUNTED = LAYERS | POINTWISE | BINARY | _POOLS | {"batch_norm", "layer_norm"}
"""Depend on how many channels there are, not on which."""

NEVER_CLOSES = (MOVES | VIEWS | {"getitem", "to.dtype", "dropout"}) - {"max_pool2d"}
"""What must not compute a section's output: it shares memory, is left out, or changes with its reader."""


class Uncuttable(Exception):
    """The network, or its space, has something that reaches from one piece into another."""


@dataclass(eq=False)
class Version:
    """A piece after a choice: `nodes` in shipped form but for quantizers, within `network`, which also has
    nodes for what they read. Versions of one `form` become the same operations."""

    network: Network
    nodes: tuple[Node, ...]
    form: int
    renamed: Mapping[str, str]
    """Where the value of a node of the teacher is found that folding took away."""

    alone: Any = None
    stored: Any = None
    kernels: dict[Any, tuple[float, int]] = field(default_factory=dict)
    """What `lowering` and `rows` made of it: its form where it is a section by itself, and what it adds."""

    @cached_property
    def computes(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Return the values that it reads from outside."""
        inside = {node.name for node in self.nodes}
        return tuple(dict.fromkeys(name for node in self.nodes for name in node.inputs if name not in inside))

    @cached_property
    def elements(self) -> dict[str, int]:
        """Count how many numbers each value holds that is read or computed here."""
        known = {node.name: elements(node.shape) for node in self.network.nodes}
        return {INPUT: elements(self.network.input_shape), **known}


class Axis:
    """Channels of which several sites decide: how many there are is all that matters where nothing cuts them
    in parts."""

    def __init__(self, bound: BoundSpace, labels: NDArray[np.int64], sites: Sequence[int]) -> None:
        self.bound, self.labels, self.sites = bound, labels, tuple(sites)
        self.key = itemgetter(*self.sites)
        self.known: dict[Any, int] = {}

    def count(self, options: Sequence[Option]) -> int:
        """Return how many channels these options leave."""
        key = self.key(options)
        found = self.known.get(key)
        if found is None:
            counts = {}
            for at in self.sites:
                site = self.bound.free[at]
                width = settings_of(site, WidthSettings)
                counts[site.target] = kept_count(width.size, float(options[at]), width.round_to)
            found = self.known[key] = int(keep_mask(self.bound.coupling, counts, None)[self.labels].sum())
        return found


@dataclass(eq=False)
class Piece:
    """Hold a part of a network: `sites` are the positions of the sites that decide about it among those of
    the whole space, `key` those of the options and the counts of channels from which what becomes of it
    follows. `owners` are all names of nodes and parameters, and the pieces that invented some of them."""

    bound: BoundSpace
    names: tuple[str, ...]
    sites: tuple[int, ...]
    key: Callable[[Sequence[Option]], Any]
    block: int
    forms: dict[Any, int]
    owners: dict[str, object]
    known: dict[Any, Version] = field(default_factory=dict)
    equal: dict[Any, Version] = field(default_factory=dict)

    def make(self, options: Sequence[Option]) -> Version:
        """Return what these options, as `SumPricer` lists them, make of the piece, and remember it."""
        found = self.known[self.key(options)] = self._made(options)
        return found

    def _made(self, options: Sequence[Option]) -> Version:
        chosen = zip(self.bound.sites, self.sites, strict=True)
        candidate = Candidate.of({site.name: options[at] for site, at in chosen})
        network, _ = fold_batch_norms(*apply(self.bound, None, candidate))
        content = network.nodes, tuple(network.params.items())
        found = self.equal.get(content)
        if found is not None:
            return found
        self._own((*network.by_name, *network.params))
        nodes = tuple(node for node in network.nodes if node.op != READ)
        form = tuple(self._form(network, node) for node in nodes)
        renamed = {
            name: self.bound.network.by_name[name].inputs[0]
            for name in self.names
            if name not in network.by_name
        }
        version = Version(network, nodes, self.forms.setdefault(form, len(self.forms)), renamed)
        self.equal[content] = version
        return version

    def _own(self, names: Iterable[str]) -> None:
        """Raise Uncuttable for a name that is invented here, and taken elsewhere."""
        before = self.bound.network
        invented = (name for name in names if name not in before.by_name and name not in before.params)
        for name in invented:
            if self.owners.setdefault(name, self) is not self:
                raise Uncuttable(f"{name} is taken")

    def _form(self, network: Network, node: Node) -> tuple[Any, ...]:
        """Return all of a node that decides which operations a runtime makes of it, but no more of its sizes
        than that."""
        form = (node.name, node.op, node.kwargs, node.bits, len(node.shape))
        shapes = [network.shape_of(name) for name in node.inputs]
        if node.op in CONVOLUTIONS and isinstance(node.args[1], Param):
            out, into = network.params[node.args[1].name].shape[:2]
            groups = int(node.args[6]) if len(node.args) > 6 else 1
            in_floats = self.block and node.bits != 8
            layout = layout_of_convolution(out, into, groups, self.block) if in_floats else ""
            return (*form, node.args[:6], layout)
        if node.op in _SIZELESS:
            return (*form, node.args)
        if node.op in _VIEWS:
            return (*form, node.inputs)
        if node.op in _ADDITIONS:
            return (*form, node.args, len({node.shape, *shapes}) == 1)
        if node.op in _POOLS and len(shapes[0]) == 4:
            return (*form, node.args, bool(self.block) and shapes[0][1] % self.block == 0)
        return (*form, node.args, node.shape, *shapes)


def alone(network: Network, names: Sequence[str]) -> Network:
    """Return the network of some of a network's nodes, which read values that are merely there."""
    nodes = [network.by_name[name] for name in names]
    read = dict.fromkeys(name for node in nodes for name in node.inputs if name != INPUT)
    outside = [Node(name, READ, (), network.shape_of(name)) for name in read if name not in names]
    params = {name: network.params[name] for node in nodes for name in node.params}
    return Network(network.input_shape, (*outside, *nodes), names[-1], params)
