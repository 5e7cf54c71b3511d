"""What single choices cost, against a base candidate: the additive model that the solver optimises over.

Every effect is a difference of two exact prices, so fusions, conversions and coupled channels count.
Memory is kept cut by cut: what is alive while each value is computed, and the weights apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from autocompress.cost.memory import live_bytes, weight_bytes
from autocompress.cost.pricer import Pricer
from autocompress.files import JsonObject
from autocompress.problem.candidate import KINDS, Candidate, Option, Site
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sites import BoundSpace

Choice = tuple[str, Option]
"""(site name, option)"""


@dataclass(frozen=True)
class Effect:
    """Hold what an option adds to the base's costs. `live_bytes` names only the cuts that change."""

    latency_ms: float = 0.0
    file_bytes: float = 0.0
    weight_bytes: float = 0.0
    live_bytes: Mapping[str, float] = field(default_factory=dict)
    packed_bytes: float = 0.0


@dataclass(frozen=True)
class EffectTable:
    """Costs of a base candidate, and the effect of every option of every site on them.

    The options of the base have no effect. `excluded` names, for a choice that spans sites, those that
    it takes away, so that their options neither cost nor harm anything.
    """

    latency_ms: float
    file_bytes: float
    weight_bytes: float
    live_bytes: Mapping[str, float]
    effects: Mapping[Choice, Effect]
    excluded: Mapping[Choice, frozenset[str]] = field(default_factory=dict)
    packed_bytes: float = 0.0

    @cached_property
    def cuts(self) -> tuple[str, ...]:
        """Return the names of the values during whose computation memory is counted."""
        found = dict.fromkeys(self.live_bytes)
        for effect in self.effects.values():
            found.update(dict.fromkeys(effect.live_bytes))
        return tuple(found)

    def to_json(self) -> JsonObject:
        return {
            "base": _effect_to_json(self),
            "effects": [[*choice, _effect_to_json(effect)] for choice, effect in self.effects.items()],
            "excluded": [[*choice, sorted(names)] for choice, names in self.excluded.items()],
        }

    @classmethod
    def from_json(cls, data: JsonObject) -> EffectTable:
        return cls(
            **data["base"],
            effects={(name, option): Effect(**effect) for name, option, effect in data["effects"]},
            excluded={(name, option): frozenset(names) for name, option, names in data["excluded"]},
        )


def _effect_to_json(effect: Effect | EffectTable) -> JsonObject:
    return {
        "latency_ms": effect.latency_ms,
        "file_bytes": effect.file_bytes,
        "weight_bytes": effect.weight_bytes,
        "live_bytes": dict(effect.live_bytes),
        "packed_bytes": effect.packed_bytes,
    }


@dataclass(frozen=True)
class _Priced:
    latency_ms: float
    file_bytes: float
    weight_bytes: float
    live_bytes: Mapping[str, int]
    packed_bytes: float

    def since(self, before: _Priced) -> Effect:
        """Return what this adds to `before`. A cut that this no longer has is empty, one that is new was."""
        cuts = {*self.live_bytes, *before.live_bytes}
        changes = {cut: self.live_bytes.get(cut, 0) - before.live_bytes.get(cut, 0) for cut in cuts}
        return Effect(
            self.latency_ms - before.latency_ms,
            self.file_bytes - before.file_bytes,
            self.weight_bytes - before.weight_bytes,
            {cut: change for cut, change in sorted(changes.items()) if change},
            self.packed_bytes - before.packed_bytes,
        )


def effects_of(pricer: Pricer, base: Candidate) -> EffectTable:
    """Price every option of every site once, against `base`.

    Where a choice of the base takes a site away, the site's options are compared without that choice.
    Raises ProfileError for a kernel that the device has no row for.
    """
    bound = pricer.bound
    excluded = exclusions(bound)
    # A site that the base takes away would come back in its default; few bits are the better guess.
    chosen = {site.name: base.get(site) for site in bound.free}
    gone = {
        name for choice, names in excluded.items() if chosen.get(choice[0]) == choice[1] for name in names
    }
    chosen.update({name: option for name, option in pricer.low_bits.choices if name in gone})
    known: dict[str, _Priced] = {}

    def price(choices: Mapping[str, Option]) -> _Priced:
        candidate = bound.canonical(Candidate.of(choices))
        if candidate.key not in known:
            known[candidate.key] = _priced(pricer, candidate)
        return known[candidate.key]

    effects: dict[Choice, Effect] = {}
    for site in bound.free:
        around = dict(chosen)
        for (name, option), names in excluded.items():
            if site.name in names and around[name] == option:
                around[name] = bound.by_name[name].default
        before = price(around)
        for option in site.options:
            effects[site.name, option] = price({**around, site.name: option}).since(before)
    start = price(chosen)
    return EffectTable(
        start.latency_ms,
        start.file_bytes,
        start.weight_bytes,
        dict(start.live_bytes),
        effects,
        excluded,
        start.packed_bytes,
    )


def _priced(pricer: Pricer, candidate: Candidate) -> _Priced:
    network = deployed_network(pricer.bound.folded, candidate)
    cost = pricer.cost_model.price(network)
    return _Priced(
        cost.latency_ms, cost.file_bytes, weight_bytes(network), live_bytes(network), cost.packed_bytes
    )


def exclusions(bound: BoundSpace) -> dict[Choice, frozenset[str]]:
    """Return the sites that a choice at a block, a merge or a layer's structure makes moot, by the space's
    own rule for canonical candidates."""
    found = {}
    for site in (site for kind in ("block", "merge", "structure") for site in bound.of_kind(kind)):
        others = [other for other in bound.free if other is not site]
        # Choices of different kinds, and those of blocks, could make each other moot.
        asked = [[other] for other in others if other.kind == "block"]
        asked += [[other for other in others if other.kind == kind] for kind in KINDS if kind != "block"]
        for option in site.options:
            if option == site.default:
                continue
            choice = (site.name, option)
            moot = frozenset().union(*(_moot(bound, choice, each) for each in asked))
            if moot:
                found[choice] = moot
    return found


def _other(options: Iterable[Option], default: Option) -> Option:
    return next(option for option in options if option != default)


def _moot(bound: BoundSpace, choice: Choice, others: Iterable[Site]) -> set[str]:
    """Return those of the other sites whose choices do not count beside `choice`."""
    chosen = {site.name: _other(site.options, site.default) for site in others}
    kept = bound.canonical(Candidate.of({**chosen, choice[0]: choice[1]})).as_dict
    return {name for name in chosen if name not in kept} if choice[0] in kept else set()
