"""Terms of pairs: asked for only where sums will not do, and only kept where they help."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from made_up_scores import made_up_damage
from priced_networks import small_pricer

from autocompress.cost.pricer import Pricer
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate
from autocompress.search.proposers.pair_terms import pair_terms
from autocompress.search.proposers.solver import Pairs, Solver


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    return small_pricer()[0]


class Truth:
    """Hurts by its choices and by pairs of them; notes what it was asked."""

    def __init__(self, solver: Solver, pairs: Pairs) -> None:
        self.solver, self.asked = Solver(solver.pricer, solver.damage, pairs=pairs), list[Candidate]()

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        self.asked += candidates
        return [self.solver.harm(candidate) for candidate in candidates]


def problem(pricer: Pricer, seed: int) -> tuple[Solver, Limits, Pairs]:
    """The choices that the solver takes when it knows no pairs hurt much more together."""
    limits = Limits(latency_ms=0.25 * pricer.teacher.latency_ms)
    damage = made_up_damage(pricer, seed)
    answer = Solver(pricer, damage).solve(limits, rebase=False)
    assert answer is not None
    taken = sorted((choice for choice in answer.choices if choice in damage), key=str)
    assert len(taken) > 1
    return Solver(pricer, damage), limits, dict.fromkeys(itertools.combinations(taken, 2), 3.0)


@pytest.mark.parametrize("seed", [0, 2])
def test_answers_hurt_less_with_the_terms(pricer: Pricer, seed: int):
    solver, limits, pairs = problem(pricer, seed)
    plain = solver.solve(limits)
    said: list[str] = []
    truth = Truth(solver, pairs)
    assert pair_terms(solver, limits, truth, said.append) == solver.pairs
    better = solver.solve(limits)
    assert plain is not None and better is not None
    assert truth([better])[0] < truth([plain])[0] - 1
    assert "one by one sum up to" in said[0]


def test_nothing_more_is_asked_where_sums_will_do(pricer: Pricer):
    solver, limits, _ = problem(pricer, 0)
    truth = Truth(solver, {})
    assert pair_terms(solver, limits, truth, lambda _: None) == {}
    assert len(truth.asked) == 1


def test_terms_that_make_the_answer_worse_are_not_kept(pricer: Pricer):
    solver, limits, _ = problem(pricer, 0)
    first = solver.solve(limits, rebase=False)

    def hurts(candidates: Sequence[Candidate]) -> list[float]:
        """All others than the first answer hurt more than any pair says."""
        return [1.5 * solver.harm(one) if one == first else 9.0 for one in candidates]

    said: list[str] = []
    assert pair_terms(solver, limits, hurts, said.append) == {}
    assert solver.solve(limits, rebase=False) == first
    assert "pairs scored" in said[0]
