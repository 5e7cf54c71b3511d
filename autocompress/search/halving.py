"""Who goes on to longer training, and on which rungs. Decides; trains nothing.

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): a third of the candidates on each rung
goes on to three times the epochs. With several objectives there is no best third. The rule here fills a
rung with what adds most hypervolume to those taken already, and then with what the front beats by least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autocompress.runs.pareto import hypervolume
from autocompress.search.trials import Trial

KEPT_SHARE = 3
PROMOTED_PER_STUDENT = 2
LEAST_GROWTH = 2.0
"""A rung trains at least this many times as long as the one below."""
TRIAL_STEPS, FINAL_STEPS = 32, 3200
PATIENCE = 15
LEAST_GAIN = 1e-12

Point = tuple[float, float]
"""(error, logarithm of latency)"""


@dataclass(frozen=True)
class Plan:
    """Say how much of each stage to do. Epochs may be fractions; `least_epochs` are those of the shortest
    rung.

    After `patience` trials that brought nothing, and a third of all trials, no more are made; None makes all.
    """

    trials: int
    trial_epochs: float
    promotion_epochs: float
    final_epochs: float
    quantized_epochs: float
    students: int
    sampler: str = "engine"
    seed: int = 0
    time_limit_s: float | None = None
    least_epochs: float = 0.01
    epoch_images: int = 0
    workers: int = 1
    patience: int | None = None


@dataclass(frozen=True)
class Rung:
    """Hold one rung: `count` candidates are trained until they have had `epochs` in all, those of earlier
    rungs included."""

    epochs: float
    count: int


def rungs(plan: Plan, known: int) -> tuple[Rung, ...]:
    """Return the rungs for `known` candidates, shortest first.

    The last one has the plan's promotion epochs and twice as many candidates as there will be students; each
    one below has three times the candidates for a third of the epochs, as long as that is clearly more
    than a trial. Empty where all candidates would be students anyway, and where the last rung would train
    less than a trial or, after trials in one shot, so little that training does more harm than good.
    """
    found: list[Rung] = []
    epochs, count = plan.promotion_epochs, PROMOTED_PER_STUDENT * plan.students
    least = max(plan.least_epochs, LEAST_GROWTH * plan.trial_epochs)
    too_short = epochs <= plan.trial_epochs if plan.trial_epochs else epochs < plan.least_epochs
    if known <= plan.students or too_short:
        return ()
    while not found or epochs >= least:
        found.append(Rung(epochs, min(count, known)))
        if count >= known:
            break
        epochs, count = epochs / KEPT_SHARE, count * KEPT_SHARE
    return tuple(reversed(found))


def ranked(trials: Sequence[Trial], epochs: float = 0.0, count: int | None = None) -> list[Trial]:
    """Return the `count` that should go on (all by default) from the rung of so many epochs, the most wanted
    first. 0 stands for the trials themselves.

    The most accurate comes first. Then, one by one, the trial that adds most to the hypervolume of (error,
    logarithm of latency) of those before it, so that fast students are among the first, too. What adds
    nothing follows in the order of how far it is behind the best that is at least as fast: noise may
    have put it there.
    """
    rest = sorted(trials, key=lambda trial: (-trial.at(epochs), trial.cost.latency_ms, trial.number))
    if not rest:
        return []
    count = len(rest) if count is None else count
    places = {trial.number: (1 - trial.at(epochs), math.log(trial.cost.latency_ms)) for trial in rest}
    reference = _beyond(list(places.values()))
    order, rest = rest[:1], rest[1:]
    front = [places[order[0].number]]
    while rest and len(order) < count:
        volume = hypervolume(front, reference)
        gains = [hypervolume([*front, places[trial.number]], reference) - volume for trial in rest]
        best = max(range(len(rest)), key=gains.__getitem__)
        if gains[best] <= LEAST_GAIN:
            break
        order.append(rest.pop(best))
        front.append(places[order[-1].number])
    rest.sort(key=lambda trial: _behind(places[trial.number], front))
    return (order + rest)[:count]


def with_favourite(chosen: list[Trial], pool: Sequence[Trial], harm: Callable[[Trial], float]) -> list[Trial]:
    """Return the chosen trials, the last of them replaced by the one of the pool with the least harm, unless
    it is among them."""
    favourite = min(pool, key=lambda trial: (harm(trial), trial.number), default=None)
    if favourite is None or not chosen or any(trial.number == favourite.number for trial in chosen):
        return chosen
    return [*chosen[:-1], favourite]


def _beyond(points: Sequence[Point]) -> Point:
    """Return a reference a little worse than everything, so that everything can add something."""
    errors, costs = zip(*points, strict=True)
    return max(errors) + 0.1 * (max(errors) - min(errors)) + 1e-3, max(costs) + math.log(1.1)


def _behind(point: Point, front: Sequence[Point]) -> float:
    """Return how much more error it has than the best that is at least as fast."""
    return point[0] - min((error for error, cost in front if cost <= point[1]), default=point[0])


@dataclass(frozen=True)
class Epochs:
    """Count passes over the training data for a trial, a promoted candidate, a finalist, and its distillation
    in few bits; None leaves one open."""

    trial: float | None = None
    promotion: float | None = None
    final: float | None = None
    quantized: float | None = None


@dataclass(frozen=True)
class EpochPlan:
    """Count as `Epochs`, all known; `least` are those of the shortest rung."""

    trial: float
    promotion: float
    final: float
    quantized: float
    least: float


def planned(asked: Epochs, steps_per_epoch: int) -> EpochPlan:
    """Return the epochs with those that are left open set from the size of the data."""

    def epochs(steps: int, at_most: float) -> float:
        return min(at_most, max(steps / max(1, steps_per_epoch), 0.01))

    def given(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else value

    least = epochs(TRIAL_STEPS, 4)
    trial, final = given(asked.trial, least), given(asked.final, epochs(FINAL_STEPS, 30))
    promotion = given(asked.promotion, math.sqrt((trial or least) * final))
    return EpochPlan(trial, promotion, final, given(asked.quantized, final / 10), least)
