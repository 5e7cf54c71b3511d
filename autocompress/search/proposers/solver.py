"""Budgets → candidates, by integer programming: the least damaged choices that keep the limits.

Each site takes one of its options; damages and costs are summed. That makes a multiple-choice knapsack
(Kellerer et al. 2004, doi:10.1007/978-3-540-24777-7), as in HAWQ-V3 (arXiv:2011.10680) and LANA
(arXiv:2107.10624), which scipy's HiGHS solves exactly. A choice that spans sites, such as a dropped
block, takes the sites inside it away. What two choices hurt beyond their sum counts where it is given.
Costs are only nearly additive, so every answer is priced exactly and the limits that the knapsack sees
are corrected until the exact price keeps the user's.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autocompress.cost.marginal import Choice, EffectTable, effects_of
from autocompress.cost.pricer import Pricer, with_choice
from autocompress.cost.repair import LEAST_DAMAGE, UNKNOWN_DAMAGE, Damage
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Option, Site

Pairs = Mapping[tuple[Choice, Choice], float]
"""What two choices hurt beyond the sum of what each hurts by itself; negative where they hurt less."""


MOST_DAMAGE = 1e3
CORRECTIONS = 16
REBASED = 1
POLISHING_PRICES = 60
CLOSE_ENOUGH = 0.005
_RELATIVE_GAP = 1e-4
_NODES = 20_000
_TIE_BREAK = 1e-6


def harm(damage: Damage, site: Site, option: Option) -> float:
    """Return the estimated loss of quality of an option; never infinite, and small for 8 bits, which are not
    scored."""
    if option == site.default:
        return 0.0
    unknown = LEAST_DAMAGE if site.kind == "bits" and option == 8 else UNKNOWN_DAMAGE
    found = damage.get((site.name, option), unknown)
    return MOST_DAMAGE if math.isnan(found) else min(max(found, LEAST_DAMAGE / 10), MOST_DAMAGE)


def pairs_of_rows(rows: Iterable[Sequence[Any]]) -> dict[tuple[Choice, Choice], float]:
    """Return the terms of rows (site, option, other site, its option, term), as a run keeps them."""
    return {((one, first), (other, second)): float(term) for one, first, other, second, term in rows}


def knapsack(
    sites: Sequence[Site],
    table: EffectTable,
    damage: Damage,
    limits: Limits,
    margin: float = 0.0,
    forbidden: Iterable[Candidate] = (),
    pairs: Pairs | None = None,
) -> Candidate | None:
    """Return the choices of the least summed damage whose summed costs keep the limits; None if there are
    none.

    `margin` is what a latency may err by, as a share of it: its upper end is limited. `forbidden`
    candidates are not answered. Of equally damaged candidates the faster is taken. Each of `pairs` is
    one more variable, one where both choices are taken (Fortet 1960). Optimal to a relative gap of 1e-4.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    columns = [(site.name, option) for site in sites for option in site.options]
    if not columns:
        return Candidate()
    index = {choice: column for column, choice in enumerate(columns)}
    rows = [*_one_choice_each(sites, table, index), *_limited(table, columns, limits, margin)]
    rows += [_not_again(sites, table, index, candidate) for candidate in forbidden]
    terms = {pair: term for pair, term in (pairs or {}).items() if index.keys() >= {*pair}}
    rows = [(np.pad(row, (0, len(terms))), low, high) for row, low, high in rows]
    rows += _both_taken(terms, index)
    matrix = np.array([row for row, _, _ in rows])
    lower, upper = (
        np.array(side, float) for side in zip(*((low, high) for _, low, high in rows), strict=True)
    )
    by_name = {site.name: site for site in sites}
    latency = np.array([table.effects[choice].latency_ms for choice in columns])
    objective = np.array([harm(damage, by_name[name], option) for name, option in columns])
    objective += _TIE_BREAK * latency / max(table.latency_ms, 1e-12)
    with silent_stdout():
        found = milp(
            np.r_[objective, list(terms.values())],
            integrality=np.r_[np.ones(len(columns)), np.zeros(len(terms))],
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, lower, upper),
            options={"mip_rel_gap": _RELATIVE_GAP, "node_limit": _NODES},
        )
    if found.x is None:
        return None
    taken = [columns[column] for column in np.flatnonzero(found.x[: len(columns)] > 0.5)]
    return Candidate.of({name: option for name, option in taken if option != by_name[name].default})


@contextmanager
def silent_stdout() -> Iterator[None]:
    """Drop what C code writes to stdout: HiGHS 1.12 has a debugging line there that no option turns off, and
    stdout is for tables and JSON."""
    try:
        kept = os.dup(1)
    except OSError:
        yield
        return
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        flush_c = ctypes.CDLL(None).fflush
        flush_c(None)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            flush_c(None)
            os.dup2(kept, 1)
            os.close(kept)


_Row = tuple[Any, float, float]


def _one_choice_each(
    sites: Sequence[Site], table: EffectTable, index: Mapping[Choice, int]
) -> Iterator[_Row]:
    """Yield rows for one option at each site, or none at a site that some other choice takes away."""
    removers: dict[str, list[int]] = {site.name: [] for site in sites}
    for choice, names in table.excluded.items():
        for name in names:
            if choice in index and name in removers:
                removers[name].append(index[choice])
    for site in sites:
        own = np.zeros(len(index))
        own[[index[site.name, option] for option in site.options]] = 1
        if not removers[site.name]:
            yield own, 1, 1
            continue
        either = own.copy()
        either[removers[site.name]] += 1
        yield either, 1, np.inf
        for remover in removers[site.name]:
            exclusive = own.copy()
            exclusive[remover] += 1
            yield exclusive, 0, 1


def _not_again(
    sites: Sequence[Site], table: EffectTable, index: Mapping[Choice, int], candidate: Candidate
) -> _Row:
    """Return the row by which at least one choice is another than the candidate's."""
    gone: set[str] = set().union(*(table.excluded.get(choice, ()) for choice in candidate.choices))
    own = np.zeros(len(index))
    own[[index[site.name, candidate.get(site)] for site in sites if site.name not in gone]] = 1
    return own, 0, own.sum() - 1


def _both_taken(terms: Pairs, index: Mapping[Choice, int]) -> Iterator[_Row]:
    """Yield rows that make the variable of each pair the product of its choices': the objective pushes it to
    the right end."""
    for number, ((one, other), term) in enumerate(terms.items()):
        both = np.zeros(len(index) + len(terms))
        both[len(index) + number] = 1
        if term > 0:
            both[[index[one], index[other]]] = -1
            yield both, -1, np.inf
            continue
        for choice in (one, other):
            only = both.copy()
            only[index[choice]] = -1
            yield only, -np.inf, 0


def _limited(table: EffectTable, columns: Sequence[Choice], limits: Limits, margin: float) -> Iterator[_Row]:
    """Yield rows of the limited costs, each as a share of its limit; memory is one row for each cut."""
    effects = [table.effects[choice] for choice in columns]
    if limits.latency_ms is not None:
        room = limits.latency_ms / (1 + margin)
        added = np.array([effect.latency_ms for effect in effects])
        yield added / room, -np.inf, 1 - table.latency_ms / room
    if limits.file_bytes is not None:
        added = np.array([effect.file_bytes for effect in effects])
        yield added / limits.file_bytes, -np.inf, 1 - table.file_bytes / limits.file_bytes
    if limits.packed_bytes is not None:
        added = np.array([effect.packed_bytes for effect in effects])
        yield added / limits.packed_bytes, -np.inf, 1 - table.packed_bytes / limits.packed_bytes
    if limits.peak_memory_bytes is not None:
        weights = np.array([effect.weight_bytes for effect in effects])
        for cut in table.cuts:
            added = weights + np.array([effect.live_bytes.get(cut, 0.0) for effect in effects])
            base = table.weight_bytes + table.live_bytes.get(cut, 0.0)
            most = base + np.maximum(added, 0).sum()
            if most > limits.peak_memory_bytes:
                yield added / limits.peak_memory_bytes, -np.inf, 1 - base / limits.peak_memory_bytes


@dataclass
class Solver:
    """Answer budgets for one bound space with one set of scores.

    `table` holds what single choices cost; made from `pricer` when it is first needed, unless given.
    """

    pricer: Pricer
    damage: Damage
    table: EffectTable | None = None
    pairs: Pairs = field(default_factory=dict)

    def solve(self, limits: Limits, rebase: bool = True) -> Candidate | None:
        """Return the least damaged candidate found that keeps the limits by its exact price, latency at the
        upper end of its interval; None when none was found.

        With `rebase` the costs of single choices are taken again around the answer, which costs a
        price for each of them and pays where choices depend on each other.
        """
        best, nearest = self._corrected(self._priced_once(), limits)
        for _ in range(REBASED if rebase else 0):
            if nearest is None:
                break
            again, nearest = self._corrected(effects_of(self.pricer, nearest), limits)
            if again is None or (best is not None and self.harm(again) >= self.harm(best)):
                break
            best = again
        return None if best is None else self._polished(best, limits)

    def sweep(self, limits: Limits, count: int, least_share: float = 0.6) -> list[Candidate]:
        """Return different answers at up to `count` levels inside the limits, the loosest first.

        Only the loosest is worth pricing all choices again.
        """
        shares = np.linspace(1.0, least_share, count).tolist()
        found = (self.solve(limits.scaled(share), rebase=share == 1.0) for share in shares)
        return list({candidate.key: candidate for candidate in found if candidate is not None}.values())

    def guess(self, limits: Limits, damage: Damage) -> Candidate | None:
        """Return the knapsack's answer for other damages, not priced: it may break the limits by a little."""
        margin = self.pricer.cost_model.device.relative_error
        table = self._priced_once()
        answer = knapsack(self.pricer.bound.free, table, damage, limits, margin, pairs=self.pairs)
        return None if answer is None else self.pricer.bound.canonical(answer)

    def _priced_once(self) -> EffectTable:
        if self.table is None:
            self.table = effects_of(self.pricer, self.pricer.low_bits)
        return self.table

    def harm(self, candidate: Candidate) -> float:
        """Return the summed damage of a candidate's choices that are not moot, and of its pairs; at least
        what its worst choice hurts by itself, as sums of pairs can be far off."""
        sites = self.pricer.bound.by_name
        choices = self.pricer.bound.canonical(candidate).choices
        single = [harm(self.damage, sites[name], option) for name, option in choices]
        terms = (term for pair, term in self.pairs.items() if pair[0] in choices and pair[1] in choices)
        return max(sum(single) + sum(terms), *single, 0.0)

    def _corrected(self, table: EffectTable, limits: Limits) -> tuple[Candidate | None, Candidate | None]:
        """Solve, price exactly, and move the limits that the knapsack sees by what it was wrong.

        The best candidate found that keeps the limits, and where to look on: that, or the nearest miss.
        """
        margin = self.pricer.cost_model.device.relative_error
        seen, tried = dict(limits.as_dict), dict[str, tuple[float, Candidate]]()
        best = None
        for _ in range(CORRECTIONS):
            sites = self.pricer.bound.free
            forbidden = [candidate for _, candidate in tried.values()]
            answer = knapsack(sites, table, self.damage, _limits(seen), margin, forbidden, self.pairs)
            if answer is None or (best is not None and self.harm(answer) >= self.harm(best)):
                break
            candidate = self.pricer.bound.canonical(answer)
            excess = limits.excess(self.pricer.price(candidate), upper=True)
            worst = max(excess.values())
            tried[candidate.key] = (worst, candidate)
            if worst <= 0:
                best = candidate
                if worst > -CLOSE_ENOUGH:
                    break
            if worst <= 0 or best is None:
                seen = {
                    name: _moved(seen[name], limit, excess[name]) for name, limit in limits.as_dict.items()
                }
        nearest = min(tried.values(), key=lambda item: item[0])[1] if tried else None
        return best, best or nearest

    def _polished(self, candidate: Candidate, limits: Limits) -> Candidate:
        """Take less damaging options where the exact price still keeps the limits, the best gain first."""
        left = POLISHING_PRICES
        while True:
            for changed in self._gentler(candidate):
                if left <= 0:
                    return candidate
                left -= 1
                if not limits.violated(self.pricer.price(changed), upper=True):
                    candidate = changed
                    break
            else:
                return candidate

    def _gentler(self, candidate: Candidate) -> list[Candidate]:
        """Return the candidates that differ in one choice and harm less, the least harmful first."""
        before = self.harm(candidate)
        ranked = []
        for site in self.pricer.bound.free:
            for option in site.options:
                changed = self.pricer.bound.canonical(with_choice(candidate, site.name, option))
                if changed.key != candidate.key and (after := self.harm(changed)) < before:
                    ranked.append((after, changed.key, changed))
        return [changed for _, _, changed in sorted(ranked, key=lambda item: item[:2])]


def _moved(seen: float, limit: float, excess: float) -> float:
    """Return what the knapsack is told next: less by the overshoot; or at least the limit, and more by half
    of what was left over, so that what is less damaging and was predicted to cost too much gets its try."""
    if excess > 0:
        return max(seen / (1 + excess), 0.2 * limit)
    return min(max(seen, limit) * (1 - 0.5 * max(excess, -0.5)), 3 * limit)


def _limits(values: Mapping[str, float]) -> Limits:
    whole = {name: math.floor(value) for name, value in values.items() if name != "latency_ms"}
    return Limits(latency_ms=values.get("latency_ms"), **whole)
