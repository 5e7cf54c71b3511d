"""Where a search space meets a network: every decision that can be taken, and every one that cannot.

`bind` walks the layers, channel groups and residual blocks of a network, asks the space for its
rule at each, and lists a site for every choice. What cannot be changed is listed too, locked, with
the reason, so that `inspect` can show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from autocompress.graph.blocks import Block, residual_blocks
from autocompress.graph.coupling import Coupling, Group, couple
from autocompress.graph.network import XNOR, Network, Node, Ref, grid_form
from autocompress.graph.operations import (
    CONVOLUTIONS,
    EMBEDDING,
    LAYERS,
    PRODUCERS,
    PRODUCTS,
    TRANSPOSED,
    WEIGHTED,
    is_opaque,
    short_name,
)
from autocompress.graph.replace_layer import conv_args, uses_of, weight_param
from autocompress.problem.candidate import (
    BITS,
    PACKED_KINDS,
    Candidate,
    MergeSettings,
    Option,
    RankSettings,
    Site,
    SiteSettings,
    SparsitySettings,
    WidthSettings,
    settings_of,
)
from autocompress.problem.space import LayerRule, Space
from autocompress.problem.space_rules import NONE, Quantize, density_of, n_of_m
from autocompress.transforms.families import compact, low_rank, structured
from autocompress.transforms.families import merge as merging
from autocompress.transforms.families.compact import COMPACT, compact_layers
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.prune import kept_count
from autocompress.transforms.families.quantize import never_negative

_OF_DENSE = frozenset({"rank", "sparsity"})
"""Kinds that a layer has no use for once its matrix has another form: the form has few weights already."""

_KEEP_BATCH_NORM = structured.KEEP_BATCH_NORM | compact.KEEP_BATCH_NORM


@dataclass(frozen=True)
class BoundSpace:
    """A space bound to a network: its sites and what `apply` needs to carry out their choices."""

    network: Network
    coupling: Coupling
    blocks: Mapping[str, Block]
    sites: tuple[Site, ...]
    dropped: tuple[tuple[str, Option, str], ...] = ()
    quantize: Quantize = field(default_factory=Quantize)

    @cached_property
    def free(self) -> tuple[Site, ...]:
        """Return the sites with a real choice."""
        return tuple(site for site in self.sites if len(site.options) > 1)

    @cached_property
    def by_name(self) -> dict[str, Site]:
        return {site.name: site for site in self.sites}

    def of_kind(self, kind: str) -> tuple[Site, ...]:
        return tuple(site for site in self.free if site.kind == kind)

    @property
    def log10_size(self) -> float:
        """Return the decimal logarithm of the number of candidates."""
        return float(sum(np.log10(len(site.options)) for site in self.sites))

    def check(self, candidate: Candidate) -> None:
        """Raise KeyError for a site the space does not have or an option the site does not offer."""
        for name, option in candidate.choices:
            site = self.by_name.get(name)
            if site is None:
                raise KeyError(f"the space has no site {name}")
            if option not in site.options:
                raise KeyError(f"{name} offers {site.options}, not {option!r}")

    def canonical(self, candidate: Candidate) -> Candidate:
        """Return the candidate without choices that equal the default or that another choice makes moot.

        Two candidates that mean the same network have the same canonical form.
        """
        gone, compacted = self._replaced(candidate)
        merged = self._merged(candidate, gone, compacted)
        gone |= merged.keys()
        turned = {site.target for site in self.of_kind("structure") if candidate.get(site) != site.default}
        on_grid = {site.target for site in self.of_kind("bits") if grid_form(candidate.get(site))}

        def counts(site: Site) -> bool:
            if site.kind == "merge":
                return site.target in merged
            if site.target in merged.values() and site.kind in _OF_DENSE | {"structure"}:
                return False
            if site.kind == "width" and any(set(site.layers) == {*pair} for pair in merged.items()):
                return False
            if site.target in turned and site.kind in _OF_DENSE:
                return False
            if site.target in on_grid and site.kind in PACKED_KINDS:
                return False
            return not self._is_moot(site, gone, compacted)

        return Candidate.of(
            (name, self._without_binary_inputs(name, option, merged))
            for name, option in candidate.choices
            if option != self.by_name[name].default and counts(self.by_name[name])
        )

    def _without_binary_inputs(self, name: str, option: Option, merged: Mapping[str, str]) -> Option:
        """Return binary weights alone where the layer takes one in whose input may be negative."""
        taken = [first for first, into in merged.items() if into == self.by_name[name].target]
        if option != XNOR or not taken or "binary" not in self.by_name[name].options:
            return option
        reads = self.network.by_name[taken[0]].inputs[0]
        return option if never_negative(self.network, reads) else "binary"

    def without(self, drops: Mapping[tuple[str, Option], str]) -> BoundSpace:
        """Return the space without these options; `drops` gives the reason for each (site, option)."""
        sites = []
        for site in self.sites:
            options = tuple(option for option in site.options if (site.name, option) not in drops)
            locked = site.locked
            if len(options) == 1 and len(site.options) > 1:
                locked = next(drops[site.name, option] for option in site.options if option not in options)
            sites.append(replace(site, options=options, locked=locked))
        listed = tuple((name, option, reason) for (name, option), reason in drops.items())
        return replace(self, sites=tuple(sites), dropped=(*self.dropped, *listed))

    def lock(self, names: Mapping[str, str]) -> BoundSpace:
        """Return the space with these sites locked; `names` gives the reason for each."""
        return replace(
            self,
            sites=tuple(
                replace(site, options=(site.default,), locked=names[site.name])
                if site.name in names
                else site
                for site in self.sites
            ),
        )

    @cached_property
    def folded(self) -> BoundSpace:
        """Return the same decisions about the network without its batch norms, whose candidates ship as the
        same networks: enough for pricing, with fewer nodes. The space itself where folding moves a decision,
        and where an option leaves a batch norm behind it that cannot be folded."""
        if any(option in _KEEP_BATCH_NORM for site in self.free for option in site.options):
            return self
        network, _ = fold_batch_norms(self.network, None)
        coupling = couple(network)
        blocks = {block.name: block for block in residual_blocks(network)}
        same = [(group.name, group.size) for group in coupling.groups] == [
            (group.name, group.size) for group in self.coupling.groups
        ] and [(name, block.layers) for name, block in blocks.items()] == [
            (name, block.layers) for name, block in self.blocks.items()
        ]
        return replace(self, network=network, coupling=coupling, blocks=blocks) if same else self

    def _replaced(self, candidate: Candidate) -> tuple[set[str], dict[str, tuple[Option, set[str]]]]:
        """Return what dropped blocks compute; by block the compact form it takes and the layers that do."""
        gone: set[str] = set()
        compacted: dict[str, tuple[Option, set[str]]] = {}
        for name, option in candidate.choices:
            site = self.by_name[name]
            if site.kind == "block" and option == "drop":
                gone.update(self.blocks[site.target].nodes)
            elif site.kind == "block" and option in COMPACT:
                block = self.blocks[site.target]
                compacted[site.target] = option, set(compact_layers(self.network, block, str(option)))
        return gone, {name: (kind, layers - gone) for name, (kind, layers) in compacted.items()}

    def _merged(
        self, candidate: Candidate, gone: set[str], compacted: Mapping[str, tuple[Option, set[str]]]
    ) -> dict[str, str]:
        """Return the layers that leave → those that take them in, where both are still as they were."""
        other = gone.union(*(layers for _, layers in compacted.values()))
        chosen = [self.by_name[name] for name, option in candidate.choices if option == merging.MERGE]
        pairs = {site.target: settings_of(site, MergeSettings).into for site in chosen}
        return {first: into for first, into in pairs.items() if not {first, into} & other}

    def _is_moot(self, site: Site, gone: set[str], compacted: Mapping[str, tuple[Option, set[str]]]) -> bool:
        if site.kind == "block":
            add = self.blocks[site.target].add
            kind, layers = compacted.get(site.target, ("", gone))
            around = any(
                kind == other and add in self.blocks[name].nodes for name, (other, _) in compacted.items()
            )
            return add in gone or around or (kind != "" and not layers)
        if site.kind in _OF_DENSE and any(site.target in layers for _, layers in compacted.values()):
            return True
        return bool(site.layers) and set(site.layers) <= gone


def bind(space: Space, network: Network) -> BoundSpace:
    """Return every site of `network` under the rules of `space`.

    Raises:
        SpaceError: a rule that is not optional matches nothing.
    """
    coupling = couple(network)
    blocks = {block.name: block for block in residual_blocks(network)}
    binder = _Binder(space, network)
    sites: list[Site | None] = [
        *(binder.width(group) for group in coupling.groups),
        *(binder.block(block) for block in blocks.values()),
    ]
    for node in network.nodes:
        if node.op in WEIGHTED and binder.is_first(node):
            sites += [binder.rank(node), binder.structure(node), binder.bits(node)]
            sites += [binder.merge(node), binder.sparsity(node), binder.codebook(node)]
        elif node.op == EMBEDDING and binder.is_first(node):
            sites += [binder.rank(node), binder.bits(node)]
        elif _runs_as_it_is(network, node):
            why = f"{short_name(node.op)} runs as it is"
            sites.append(_locked(f"width:{node.name}", "width", node.name, 1.0, (node.name,), why))
    names = {node.module for node in network.nodes if node.op in PRODUCERS and node.module}
    space.check_matched(binder.matched, sorted(names | blocks.keys()))
    found = tuple(site for site in sites if site is not None)
    return BoundSpace(network, coupling, blocks, found, tuple(binder.dropped), space.quantize)


class _Binder:
    """Ask the space for its rules and remember which of them matched."""

    def __init__(self, space: Space, network: Network) -> None:
        self.space, self.network = space, network
        self.matched: set[int] = set()
        self.dropped: list[tuple[str, Option, str]] = []

    def width(self, group: Group) -> Site:
        rule = self._layer_rule(self.network.by_name[group.layers[0]])
        name = f"width:{group.name}"
        producers = {place.param for place in group.places if place.makes}
        for node in self.network.nodes:
            if node.op in PRODUCERS and set(node.params) & producers:
                locked = self._lock_reason(node)
                if locked:
                    return _locked(name, "width", group.name, 1.0, group.layers, locked)
        if rule is None or rule.width is None:
            return _locked(name, "width", group.name, 1.0, group.layers, "no rule gives it a width")
        if group.locked:
            return _locked(name, "width", group.name, 1.0, group.layers, group.locked)
        round_to = _round_to(group, rule.width.round_to)
        options: dict[int, float] = {group.size: 1.0}
        for keep in sorted(rule.width.keep, reverse=True):
            options.setdefault(kept_count(group.size, keep, round_to), keep)
        settings = WidthSettings(rule.width.importance, round_to, group.size)
        return _site(name, "width", group.name, sorted(options.values()), 1.0, group.layers, settings)

    def block(self, block: Block) -> Site:
        name = f"block:{block.name}"
        rule = self.space.rule_for_block(block.name, self._locked_layers(block))
        self.matched.update(rule.matched)
        if rule.locked:
            return _locked(name, "block", block.name, "keep", block.layers, rule.locked)
        if not rule.block:
            return _locked(name, "block", block.name, "keep", block.layers, "no rule gives it a choice")
        options: list[Option] = ["keep"]
        reasons = []
        if "drop" in rule.block:
            if block.droppable:
                options.append("drop")
            else:
                reasons.append("its shortcut changes the shape, so it cannot be dropped")
        for kind in COMPACT:
            if kind not in rule.block:
                continue
            if compact_layers(self.network, block, kind):
                options.append(kind)
            else:
                reasons.append(f"it has no dense k×k convolution that can become {kind}")
        if len(options) == 1:
            return _locked(name, "block", block.name, "keep", block.layers, "; ".join(reasons))
        return _site(name, "block", block.name, options, "keep", block.layers)

    def _locked_layers(self, block: Block) -> list[str]:
        """Return the layers of the block that the space locks: whatever replaces the block would change
        them."""
        rules = {name: self._layer_rule(self.network.by_name[name]) for name in block.layers}
        return [name for name, rule in rules.items() if rule is not None and rule.locked]

    def is_first(self, node: Node) -> bool:
        """Say whether no layer before this one has the same weight: it stands for all that have it."""
        return uses_of(self.network, node.name)[0] is node

    def _uses(self, node: Node) -> tuple[str, ...]:
        """Return the names of all the layers that have the weight of this one."""
        return tuple(use.name for use in uses_of(self.network, node.name))

    def rank(self, node: Node) -> Site:
        name, layers = f"rank:{node.name}", self._uses(node)
        rule = self._layer_rule(node)
        locked = self._lock_reason(node) or self._unlike_uses(node)
        if not locked and len({_form(self.network.by_name[one]) for one in layers}) > 1:
            locked = "its weight is used with several strides or paddings"
        if not locked and (rule is None or rule.rank is None):
            locked = "no rule gives it a rank"
        if locked or rule is None or rule.rank is None:
            return _locked(name, "rank", node.name, "full", layers, locked)
        shape = low_rank.dense_shape(self.network, node)
        wanted, round_to = rule.rank.method, rule.rank.round_to
        method = low_rank.method_for(node, shape, wanted)
        if not method:
            grouped = not low_rank.method_for(node, shape)
            why = "it is a grouped convolution" if grouped else f"{wanted} does not apply to it"
            return _locked(name, "rank", node.name, "full", layers, why)
        dense = int(np.prod(shape))
        options: list[Option] = []
        for keep in sorted(keep for keep in rule.rank.keep if keep != "full"):
            rank = low_rank.ranks(shape, float(keep), round_to, method)
            if low_rank.parameters(shape, rank, method) < dense:
                options.append(keep)
        if not options:
            return _locked(name, "rank", node.name, "full", layers, "no rank offered has fewer weights")
        settings = RankSettings(method, round_to, rule.rank.data_aware)
        return _site(name, "rank", node.name, [*options, "full"], "full", layers, settings)

    def structure(self, node: Node) -> Site | None:
        """Return the layer's site, None where no rule asks for one: most layers are not matrices, and most
        spaces do not ask."""
        rule = self._layer_rule(node)
        if rule is None or set(rule.structure) <= {structured.DENSE}:
            return None
        name, target, layers = f"structure:{node.name}", node.name, (node.name,)
        locked = self._lock_reason(node) or self._shared(node) or _reads_a_constant(node)
        shape = self.network.params[node.args[1].name].shape  # type: ignore[union-attr]
        fewest: dict[str, int] = {}
        reasons = []
        for kind in (kind for kind in rule.structure if kind != structured.DENSE):
            of = structured.sizes(kind, *shape[:2])
            why = structured.applies(node, shape, kind)
            if why or not of:
                reasons.append(why or f"no {kind} form of {shape[0]}×{shape[1]} is smaller")
            else:
                fewest[kind] = structured.parameters(kind, shape[0], shape[1], of)
        locked = locked or ("" if fewest else "; ".join(dict.fromkeys(reasons)))
        if locked:
            return _locked(name, "structure", target, structured.DENSE, layers, locked)
        options: list[Option] = [*sorted(fewest, key=fewest.__getitem__), structured.DENSE]
        return _site(name, "structure", target, options, structured.DENSE, layers)

    def bits(self, node: Node) -> Site:
        name, layers = f"bits:{node.name}", self._uses(node)
        rule = self._layer_rule(node)
        locked = self._lock_reason(node) or self._unlike_uses(node) or _in_floats_only(node)
        if not locked and (rule is None or not rule.bits):
            locked = "no rule gives it bit-widths"
        if locked or rule is None or set(rule.bits) == {32}:
            return _locked(name, "bits", node.name, 32, layers, locked or "the rule offers 32 bits only")
        options: list[Option] = [option for option in BITS if option in (*rule.bits, 32)]
        if XNOR in options and not never_negative(self.network, node.inputs[0]):
            options.remove(XNOR)
            why = "what it reads can be negative, as behind a relu it cannot"
            if len(options) == 1:
                return _locked(name, "bits", node.name, 32, layers, f"xnor alone is offered, and {why}")
            self.dropped.append((name, XNOR, why))
        return _site(name, "bits", node.name, options, 32, layers)

    def merge(self, node: Node) -> Site | None:
        """Return the layer's site, None where no rule asks for it."""
        rule = self._layer_rule(node)
        if rule is None or merging.MERGE not in rule.merge:
            return None
        name, layers = f"merge:{node.name}", (node.name,)
        found = merging.stretch(self.network, node.name)
        locked = self._lock_reason(node) or (found if isinstance(found, str) else "")
        if not locked and isinstance(found, merging.Stretch):
            locked = self._lock_reason(self.network.by_name[found.second])
        if locked or isinstance(found, str):
            return _locked(name, "merge", node.name, merging.KEEP, layers, locked)
        settings = MergeSettings(found.second, found.activation)
        options: list[Option] = [merging.MERGE, merging.KEEP]
        return _site(name, "merge", node.name, options, merging.KEEP, layers, settings)

    def sparsity(self, node: Node) -> Site | None:
        """Return the layer's site, None where no rule asks for one, as for structures."""
        rule = self._layer_rule(node)
        if rule is None or rule.sparsity is None or set(rule.sparsity.keep) == {1.0}:
            return None
        name, layers = f"sparsity:{node.name}", (node.name,)
        locked = (
            self._lock_reason(node) or self._shared(node) or _in_floats_only(node) or _reads_a_constant(node)
        )
        inputs = self.network.params[node.args[1].name].shape[1]  # type: ignore[union-attr]
        options: list[Option] = [
            option for option in rule.sparsity.keep if (n_of_m(option) or (1, 1))[1] <= inputs
        ]
        if not locked and len(options) == 1:
            locked = f"it reads {inputs} inputs, fewer than the pattern is long"
        if locked:
            return _locked(name, "sparsity", node.name, 1.0, layers, locked)
        settings = SparsitySettings(rule.sparsity.method)
        return _site(name, "sparsity", node.name, sorted(options, key=density_of), 1.0, layers, settings)

    def codebook(self, node: Node) -> Site | None:
        """Return the layer's site, None where no rule asks for one, as for structures."""
        rule = self._layer_rule(node)
        if rule is None or set(rule.codebook) <= {NONE}:
            return None
        name, layers = f"codebook:{node.name}", (node.name,)
        locked = (
            self._lock_reason(node) or self._shared(node) or _in_floats_only(node) or _reads_a_constant(node)
        )
        weights = int(np.prod(self.network.params[node.args[1].name].shape))  # type: ignore[union-attr]
        options: list[Option] = [
            option for option in rule.codebook if option == NONE or 2 * int(option) <= weights
        ]
        if not locked and options == [NONE]:
            locked = f"it has {weights} weights, too few to share values"
        if locked:
            return _locked(name, "codebook", node.name, NONE, layers, locked)
        return _site(name, "codebook", node.name, options, NONE, layers)

    def _layer_rule(self, node: Node) -> LayerRule | None:
        weight = weight_param(node)
        if weight is None:
            return None
        shape = self.network.params[weight.name].shape
        kind, kernel = ("embedding" if node.op == EMBEDDING else "linear"), None
        if node.op in CONVOLUTIONS | TRANSPOSED:
            groups = conv_args(node).groups
            depthwise = groups > 1 and shape[1] == 1
            kind, kernel = ("depthwise" if depthwise else "conv"), shape[2:]
        rule = self.space.rule_for_layer(node.module or node.name, kind, kernel)
        self.matched.update(rule.matched)
        return rule

    def _lock_reason(self, node: Node) -> str:
        rule = self._layer_rule(node)
        if rule is None:
            return "its weight is computed in forward()"
        return rule.locked

    def _shared(self, node: Node) -> str:
        weight = node.params[0]
        return "its weight is shared with another layer" if len(self.network.param_users[weight]) > 1 else ""

    def _unlike_uses(self, node: Node) -> str:
        """Say why a choice cannot hold for all that read the weight of a layer; empty where it can."""
        weight = node.params[0]
        uses = uses_of(self.network, node.name)
        if len(uses) != len(self.network.param_users[weight]) or len({use.op for use in uses}) > 1:
            return "its weight is shared with a layer of another kind"
        locked = (self._lock_reason(use) or _reads_a_constant(use) for use in uses)
        return next((reason for reason in locked if reason), "")


def _round_to(group: Group, channels: int) -> int:
    """Return the multiple of atoms kept: a head of an attention, or a group, brings several channels by
    itself."""
    return -(-channels // group.places[0].indices.shape[1])


def _runs_as_it_is(network: Network, node: Node) -> bool:
    """Say whether an operation that is no layer here has a matrix of its own, as a recurrent layer has."""
    specs = (network.params[name] for name in node.params)
    multiplies = is_opaque(node.op) or node.op in PRODUCTS or node.op == "einsum"
    return multiplies and any(spec.trainable and len(spec.shape) > 1 for spec in specs)


def _in_floats_only(node: Node) -> str:
    """Say why a layer keeps its 32 bits; empty for those that runtimes have in 8."""
    if node.op == EMBEDDING:
        return "a table stays in floats"
    return "" if node.op in LAYERS else "no runtime computes a transposed convolution in 8 bits"


def _form(node: Node) -> object:
    return conv_args(node) if node.op in CONVOLUTIONS | TRANSPOSED else None


def _reads_a_constant(node: Node) -> str:
    return (
        ""
        if isinstance(node.args[1 if node.op == EMBEDDING else 0], Ref)
        else "it reads a constant, so it is computed once"
    )


def _site(
    name: str,
    kind: str,
    target: str,
    options: Sequence[Option],
    default: Option,
    layers: tuple[str, ...],
    settings: SiteSettings | None = None,
) -> Site:
    locked = "the rule leaves one choice" if len(options) == 1 else ""
    return Site(name, kind, target, tuple(options), default, layers, locked, settings)


def _locked(name: str, kind: str, target: str, default: Option, layers: tuple[str, ...], why: str) -> Site:
    return Site(name, kind, target, (default,), default, layers, why)
