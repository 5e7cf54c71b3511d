"""What a search remembers of its trials."""

from __future__ import annotations

import pytest

from autocompress.problem.candidate import Candidate, Cost
from autocompress.runs.pareto import WORST_LATENCY
from autocompress.search.trials import Trials


def cost(latency_ms: float) -> Cost:
    return Cost(latency_ms, (latency_ms, latency_ms), 1, 1, 1, 1)


def trials(*found: tuple[float, float]) -> Trials:
    """Of (accuracy, latency in ms), for a teacher that takes 1 ms."""
    made = Trials(teacher_ms=1.0)
    for number, (accuracy, latency_ms) in enumerate(found):
        candidate = Candidate.of({"site": number})
        made.finish(made.add(number, candidate, cost(latency_ms)), accuracy)
    return made


def test_longer_training_moves_what_is_known_and_not_the_front():
    made = trials((0.5, 0.55), (0.4, 0.8))
    assert made.front_hypervolume() == made.hypervolume() == pytest.approx(0.5 * (1 - 0.55 / WORST_LATENCY))
    made[1].trained[2.0] = 0.9
    assert made.front_hypervolume() == pytest.approx(0.25)
    assert made.hypervolume() == pytest.approx(0.25 + 0.4 * (1 - 0.8 / WORST_LATENCY))
    made.finish(made.add(2, Candidate.of({"site": 2}), cost(0.9)), 0.6)
    assert made.front_hypervolume() == pytest.approx(0.25 + 0.1 * (1 - 0.9 / WORST_LATENCY))


def test_a_rival_is_the_most_accurate_that_takes_no_longer():
    made = trials((0.5, 0.5), (0.7, 0.9), (0.45, 0.6))
    assert made.best_as_fast_as(cost(0.4)) is None
    assert made.best_as_fast_as(cost(0.7)) is made[0]
    assert made.best_as_fast_as(cost(0.9)) is made[1]


def test_what_began_is_counted_and_only_what_finished_is_known():
    made = trials((0.5, 0.5))
    waiting = made.add(1, Candidate.of({"site": 1}), cost(1.0))
    assert (len(made), made.known, made.of(waiting.candidate.key)) == (2, [made[0]], waiting)
    assert trials().hypervolume() == trials().front_hypervolume() == 0.0
