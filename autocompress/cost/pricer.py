"""What candidates cost, before anything is trained: pricing, and repair into the budgets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

from autocompress.cost.model import CostModel
from autocompress.problem.budgets import LIMITED, Limits
from autocompress.problem.candidate import PACKED_KINDS, Candidate, Cost, Option, Site, eight_bits
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sites import BoundSpace

Damage = Mapping[tuple[str, Option], float]
"""(site name, option) → estimated loss of quality, 0 for the site's default."""

_SWEEPS = 3
_MOST_KEPT = 20_000
UNKNOWN_DAMAGE, LEAST_DAMAGE = 0.01, 1e-4


class Pricer:
    """Prices candidates of one bound space on one device; the last 20,000 answers are kept."""

    def __init__(self, bound: BoundSpace, cost_model: CostModel) -> None:
        self.bound, self.cost_model = bound, cost_model
        self._known: dict[str, Cost] = {}

    def price(self, candidate: Candidate) -> Cost:
        """Predicted cost of a candidate. Raises ProfileError for a kernel the device has no row for."""
        canonical = self.bound.canonical(candidate)
        cost = self._known.get(canonical.key)
        if cost is None:
            cost = self.cost_model.price(deployed_network(self.bound.folded, canonical))
            if len(self._known) >= _MOST_KEPT:
                del self._known[next(iter(self._known))]
            self._known[canonical.key] = cost
        return cost

    @cached_property
    def teacher(self) -> Cost:
        return self.price(Candidate())

    @cached_property
    def low_bits(self) -> Candidate:
        """Every layer that can in 8 bits: the starting point of most good candidates."""
        return Candidate.of({site.name: eight_bits(site) for site in self.bound.of_kind("bits")})

    @cached_property
    def smallest(self) -> Cost:
        """For each cost separately, the least that coordinate descent over the sites reaches."""
        least = {name: self._least(name) for name in LIMITED}
        best = least["latency_ms"]
        return Cost(
            best.latency_ms,
            best.latency_ms_ci95,
            least["peak_memory_bytes"].peak_memory_bytes,
            least["file_bytes"].file_bytes,
            best.macs,
            best.parameters,
            least["packed_bytes"].packed_bytes,
        )

    def _least(self, name: str) -> Cost:
        def value(candidate: Candidate) -> float:
            return float(getattr(self.price(candidate), name))

        current = min((Candidate(), self.low_bits, self._extreme()), key=value)
        for site in sorted(self.bound.free, key=lambda site: site.kind != "block"):
            options = [with_choice(current, site.name, option) for option in site.options]
            current = min((current, *options), key=value)
        return self.price(current)

    def _extreme(self) -> Candidate:
        return Candidate.of(
            {
                site.name: ("drop" if "drop" in site.options else site.options[-1])
                if site.kind == "block"
                else site.options[0]
                for site in self.bound.free
            }
        )

    def useless(self) -> dict[tuple[str, Option], str]:
        """Options that make nothing faster or smaller, with the reason.

        Each is tried on the teacher and on the teacher at its fewest bits, by itself.
        """
        found = {}
        for site in self.bound.free:
            if site.kind == "bits" or site.kind in PACKED_KINDS:
                continue
            for option in site.options:
                if option != site.default and not any(
                    self._pays(base, site, option) for base in (Candidate(), self.low_bits)
                ):
                    found[site.name, option] = "makes nothing faster or smaller on this device"
        return found

    def _pays(self, base: Candidate, site: Site, option: Option) -> bool:
        before, after = self.price(base), self.price(with_choice(base, site.name, option))
        return any(getattr(after, name) < getattr(before, name) for name in LIMITED)


def with_choice(candidate: Candidate, name: str, option: Option) -> Candidate:
    return Candidate.of({**candidate.as_dict, name: option})


class Repairer:
    """Moves a candidate into the budgets, by the changes that cost the least quality per unit saved.

    Deterministic. `damage` estimates the loss of quality of single choices; where it is unknown
    every step counts the same.
    """

    def __init__(self, pricer: Pricer, limits: Limits, damage: Damage) -> None:
        self.pricer, self.limits, self.damage = pricer, limits, damage

    def __call__(self, candidate: Candidate) -> Candidate:
        """The canonical candidate itself if it keeps the limits, else a repaired one.

        When no sequence of single steps reaches the limits the closest found is returned.
        """
        canonical = self.pricer.bound.canonical
        asked = candidate = canonical(candidate)
        if self._excess(candidate) <= 0:
            return candidate
        quantized = canonical(Candidate.of({**candidate.as_dict, **self.pricer.low_bits.as_dict}))
        if self._excess(quantized) < self._excess(candidate):
            candidate = quantized
        for _ in range(_SWEEPS):
            for name, option in self._steps(candidate):
                if self._excess(candidate) <= 0:
                    return self._taken_back(candidate, asked)
                changed = canonical(with_choice(candidate, name, option))
                if self._excess(changed) < self._excess(candidate):
                    candidate = changed
        return self._taken_back(candidate, asked) if self._excess(candidate) <= 0 else candidate

    def _taken_back(self, candidate: Candidate, asked: Candidate) -> Candidate:
        """Takes back the changes that later ones made unnecessary, the most harmful first."""
        sites = self.pricer.bound.by_name
        changed = [name for name in sites if candidate.get(sites[name]) != asked.get(sites[name])]
        changed.sort(key=lambda name: -self._harm(name, candidate.get(sites[name]), asked.get(sites[name])))
        for name in changed:
            back = self.pricer.bound.canonical(with_choice(candidate, name, asked.get(sites[name])))
            if self._excess(back) <= 0:
                candidate = back
        return candidate

    def _harm(self, name: str, option: Option, current: Option) -> float:
        """Estimated loss of quality of a change."""
        before = self.damage.get((name, current), 0.0)
        return max(self.damage.get((name, option), UNKNOWN_DAMAGE) - before, LEAST_DAMAGE)

    def _excess(self, candidate: Candidate) -> float:
        """How far the worst limit is overshot, ≤ 0 inside; the upper end of the latency's interval counts."""
        excess = self.limits.excess(self.pricer.price(candidate), upper=True)
        return max(excess.values())

    def _steps(self, candidate: Candidate) -> list[tuple[str, Option]]:
        """Single changes towards cheaper, best saving per damage first, the candidate's key breaking ties."""
        broken = [name for name, excess in self._broken(candidate)]
        ranked = []
        for (site, option), saving in self._savings(tuple(broken)).items():
            current = candidate.get(self.pricer.bound.by_name[site])
            gain = saving - self._savings(tuple(broken)).get((site, current), 0.0)
            if gain <= 0:
                continue
            harm = self._harm(site, option, current)
            ranked.append((-gain / harm, _shuffled(candidate.key, site, option), site, option))
        return [(site, option) for _, _, site, option in sorted(ranked, key=lambda item: item[:2])]

    def _broken(self, candidate: Candidate) -> Iterable[tuple[str, float]]:
        excess = self.limits.excess(self.pricer.price(candidate), upper=True)
        return [(name, value) for name, value in excess.items() if value > 0]

    def _savings(self, names: tuple[str, ...]) -> dict[tuple[str, Option], float]:
        """Relative saving of each single choice on the low-bit teacher, summed over the named limits."""
        if names not in self._cache:
            base = self.pricer.low_bits
            before = self.pricer.price(base)
            self._cache[names] = {
                (site.name, option): sum(
                    1
                    - getattr(self.pricer.price(with_choice(base, site.name, option)), name)
                    / getattr(before, name)
                    for name in names
                )
                for site in self.pricer.bound.free
                for option in site.options
            }
        return self._cache[names]

    @cached_property
    def _cache(self) -> dict[tuple[str, ...], dict[tuple[str, Option], float]]:
        return {}


def _shuffled(key: str, site: str, option: Option) -> str:
    return hashlib.sha256(f"{key}/{site}/{option}".encode()).hexdigest()


def seeds(
    pricer: Pricer, repair: Callable[[Limits], Callable[[Candidate], Candidate]], limits: Limits, count: int
) -> list[Candidate]:
    """Starting points of a study: the least damaged candidates at `count` levels inside the budgets."""
    found: dict[str, Candidate] = {}
    for index in range(count):
        share = 1.0 - 0.4 * index / max(1, count - 1)
        candidate = repair(limits.scaled(share))(pricer.low_bits)
        found.setdefault(candidate.key, candidate)
    return list(found.values())
