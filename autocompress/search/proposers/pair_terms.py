"""Pairs of choices that hurt more or less together than one by one: which to score, and what for.

Scores of single choices are summed. At tight budgets an answer of the solver can hurt several times its sum:
dropping two blocks in a row, say. What a pair hurts beyond its two choices becomes a term of the solver's.
Decides, and evaluates nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence

from autocompress.cost.repair import LEAST_DAMAGE, Damage
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Option
from autocompress.search.proposers.solver import Pairs, Solver, harm

ROUNDS = 2
NOT_ADDITIVE = 0.25
"""An answer that hurts more than expected by more than this share has its pairs scored."""
CHOICES_A_PAIR, FEWEST_CHOICES = 8, 4
"""Pairs of a round: one for so many choices that were scored, and those of so many choices at least."""

Pair = tuple[tuple[str, Option], tuple[str, Option]]
Hurts = Callable[[Sequence[Candidate]], Sequence[float]]


def pair_terms(solver: Solver, limits: Limits, hurts: Hurts, say: Callable[[str], None]) -> Pairs:
    """Return the terms with which the solver's answer within the limits hurts least, of those of up to two
    rounds.

    Each round scores the pairs of the answer's worst choices as `hurts` says, by the measure of the solver's
    damages, and solves again. Pairs that hurt less than their sum do not count: the solver would look for
    them, and several together hurt more again. Empty where sums will do. The solver is left with the terms.
    """
    tried: set[Pair] = set()
    best, kept = math.inf, solver.pairs
    for number in range(ROUNDS + 1):
        answer = solver.solve(limits, rebase=False)
        if answer is None or len(answer.choices) < 2:
            break
        (hurt,) = hurts([answer])
        expected = solver.harm(answer)
        if hurt < best:
            best, kept = hurt, solver.pairs
        what = f"the solver's candidate scores {hurt:.3g}, its choices one by one sum up to {expected:.3g}"
        if hurt <= (1 + NOT_ADDITIVE) * expected + LEAST_DAMAGE * len(answer.choices):
            say(f"{what}: sums will do")
            break
        new = _worst_pairs(answer, solver.damage, tried) if number < ROUNDS else []
        if not new:
            say(f"{what}; no more pairs are scored, the best candidate scores {best:.3g}")
            break
        tried.update(new)
        together = hurts([Candidate.of(pair) for pair in new])
        sites = solver.pricer.bound.by_name
        terms = {
            pair: both - sum(harm(solver.damage, sites[name], option) for name, option in pair)
            for pair, both in zip(new, together, strict=True)
        }
        counting = {pair: term for pair, term in terms.items() if term > 0}
        solver.pairs = {**solver.pairs, **counting}
        say(f"{what}; of {len(new)} pairs scored {len(counting)} are worse than their sum")
    solver.pairs = kept
    return kept


def most_scored(choices: int) -> int:
    """Return how many joint candidates may be scored where so many choices are."""
    return 1 + ROUNDS * (1 + math.comb(_most_choices(choices), 2))


def _most_choices(choices: int) -> int:
    return max(FEWEST_CHOICES, math.isqrt(2 * choices // CHOICES_A_PAIR))


def _worst_pairs(answer: Candidate, damage: Damage, tried: Collection[Pair]) -> list[Pair]:
    """Return those of the answer's choices that hurt most by themselves, as many as are worth their time."""
    scored = sorted((choice for choice in answer.choices if choice in damage), key=str)
    worst = sorted(scored, key=lambda choice: -damage[choice])
    ordered = sorted(worst[: _most_choices(len(damage))], key=str)
    return [pair for pair in itertools.combinations(ordered, 2) if pair not in tried]
