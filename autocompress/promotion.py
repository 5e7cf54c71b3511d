"""How a search divides its time, and who goes on to longer training. Decides; trains nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autocompress.candidate import Candidate, Cost
from autocompress.pareto import non_dominated


@dataclass(frozen=True)
class Plan:
    """How much of each stage. Epochs may be fractions."""

    trials: int
    trial_epochs: float
    promotion_epochs: float
    final_epochs: float
    quantized_epochs: float
    students: int
    sampler: str = "engine"
    seed: int = 0
    time_limit_s: float | None = None


@dataclass
class Trial:
    """One trial as the loop remembers it; `accuracy` is on validation data."""

    number: int
    candidate: Candidate
    cost: Cost
    accuracy: float | None = None
    promoted_accuracy: float | None = None

    @property
    def best_known(self) -> float:
        known = self.promoted_accuracy if self.promoted_accuracy is not None else self.accuracy
        return -math.inf if known is None else known


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Best first: front by front of (accuracy, predicted latency), within a front by accuracy.

    Of the first front every second place goes to accuracy and every second to an even spread over
    latency, so that the users of a front find fast students too.
    """
    rest = sorted(trials, key=lambda trial: (-trial.best_known, trial.cost.latency_ms, trial.number))
    order: list[Trial] = []
    while rest:
        points = [(1 - trial.best_known, trial.cost.latency_ms) for trial in rest]
        front = [rest[index] for index in sorted(non_dominated(points))]
        order.extend(_spread(front) if not order else front)
        taken = {trial.number for trial in front}
        rest = [trial for trial in rest if trial.number not in taken]
    return order


def _spread(front: list[Trial]) -> list[Trial]:
    """Accuracy first, then alternating: the next best in accuracy, the one farthest from those taken."""
    order, rest = front[:1], front[1:]
    while rest:
        if len(order) % 3 != 2:
            chosen = rest[0]
        else:
            chosen = max(
                rest, key=lambda t: min(abs(math.log(t.cost.latency_ms / o.cost.latency_ms)) for o in order)
            )
        order.append(chosen)
        rest = [trial for trial in rest if trial is not chosen]
    return order


def scaled(plan: Plan, steps_per_epoch: int) -> Plan:
    """The plan with epochs that it leaves open (negative) set from the size of the data."""

    def epochs(given: float, steps: int, at_most: float) -> float:
        return given if given >= 0 else min(at_most, max(steps / max(1, steps_per_epoch), 0.01))

    trial = epochs(plan.trial_epochs, 32, 4)
    final = epochs(plan.final_epochs, 3200, 30)
    return replace(
        plan,
        trial_epochs=trial,
        promotion_epochs=plan.promotion_epochs if plan.promotion_epochs >= 0 else math.sqrt(trial * final),
        final_epochs=final,
        quantized_epochs=plan.quantized_epochs if plan.quantized_epochs >= 0 else final / 10,
    )
