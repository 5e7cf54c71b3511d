"""Candidates moved into the budgets, by the changes that cost the least quality per unit saved."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

from autocompress.cost.pricer import Pricer, with_choice
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Option

Damage = Mapping[tuple[str, Option], float]
"""(site name, option) → estimated loss of quality, 0 for the site's default."""

UNKNOWN_DAMAGE, LEAST_DAMAGE = 0.01, 1e-4
_SWEEPS = 3


class Repairer:
    """Move a candidate into the budgets, by the changes that cost the least quality per unit saved.

    Deterministic. `damage` estimates the loss of quality of single choices; where it is unknown
    every step counts the same.
    """

    def __init__(self, pricer: Pricer, limits: Limits, damage: Damage) -> None:
        self.pricer, self.limits, self.damage = pricer, limits, damage

    def __call__(self, candidate: Candidate) -> Candidate:
        """Return the canonical candidate itself if it keeps the limits, else a repaired one.

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
        """Take back the changes that later ones made unnecessary, the most harmful first."""
        sites = self.pricer.bound.by_name
        changed = [name for name in sites if candidate.get(sites[name]) != asked.get(sites[name])]
        changed.sort(key=lambda name: -self._harm(name, candidate.get(sites[name]), asked.get(sites[name])))
        for name in changed:
            back = self.pricer.bound.canonical(with_choice(candidate, name, asked.get(sites[name])))
            if self._excess(back) <= 0:
                candidate = back
        return candidate

    def _harm(self, name: str, option: Option, current: Option) -> float:
        """Return the estimated loss of quality of a change."""
        before = self.damage.get((name, current), 0.0)
        return max(self.damage.get((name, option), UNKNOWN_DAMAGE) - before, LEAST_DAMAGE)

    def _excess(self, candidate: Candidate) -> float:
        """Return how far the worst limit is overshot, ≤ 0 inside; the upper end of the latency's interval
        counts."""
        excess = self.limits.excess(self.pricer.price(candidate), upper=True)
        return max(excess.values())

    def _steps(self, candidate: Candidate) -> list[tuple[str, Option]]:
        """Return single changes towards cheaper, best saving per damage first, the candidate's key breaking
        ties."""
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
        """Return the relative saving of each single choice on the low-bit teacher, summed over the named
        limits."""
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
    """Return starting points of a study: the least damaged candidates at `count` levels inside the
    budgets."""
    found: dict[str, Candidate] = {}
    for index in range(count):
        share = 1.0 - 0.4 * index / max(1, count - 1)
        candidate = repair(limits.scaled(share))(pricer.low_bits)
        found.setdefault(candidate.key, candidate)
    return list(found.values())
