"""The trials of one search as the loop remembers them, and the front of those without longer training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from autocompress.problem.candidate import Candidate, Cost
from autocompress.runs.pareto import PROGRESS_REFERENCE, hypervolume, non_dominated, progress_point


@dataclass
class Trial:
    """One trial; accuracies are on validation data. `trained` has one for each rung that it was on, by the
    rung's epochs."""

    number: int
    candidate: Candidate
    cost: Cost
    accuracy: float | None = None
    trained: dict[float, float] = field(default_factory=dict)

    @property
    def epochs(self) -> float:
        """Return the epochs of its highest rung."""
        return max(self.trained, default=0.0)

    @property
    def best_known(self) -> float:
        """Return the accuracy on its highest rung."""
        return self.at(self.epochs)

    def at(self, epochs: float) -> float:
        """Return the accuracy on the rung of so many epochs, 0 for that of the trial; -inf if there is
        none."""
        known = self.trained.get(epochs) if epochs else self.accuracy
        return -math.inf if known is None else known


@dataclass
class Trials:
    """Hold all that began; `teacher_ms` is the latency that is predicted for the teacher."""

    teacher_ms: float
    _by_number: dict[int, Trial] = field(default_factory=dict)
    _front: list[Trial] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._by_number)

    def __getitem__(self, number: int) -> Trial:
        return self._by_number[number]

    @property
    def known(self) -> list[Trial]:
        """Return those that finished, in the order in which they began."""
        return [trial for trial in self._by_number.values() if trial.accuracy is not None]

    def add(self, number: int, candidate: Candidate, cost: Cost) -> Trial:
        """Add one more that began."""
        self._by_number[number] = Trial(number, candidate, cost)
        return self._by_number[number]

    def finish(self, trial: Trial, accuracy: float) -> None:
        """Keep what a trial found; only that decides who is on the front, longer training does not."""
        trial.accuracy = accuracy
        grown = [*self._front, trial]
        points = [(-one.at(0), one.cost.latency_ms) for one in grown]
        self._front = [grown[index] for index in non_dominated(points)]

    def of(self, candidate: str) -> Trial:
        """Return the trial of the candidate with this key."""
        return next(trial for trial in self._by_number.values() if trial.candidate.key == candidate)

    def best_as_fast_as(self, cost: Cost) -> Trial | None:
        """Return the most accurate on the front that takes no longer."""
        faster = (trial for trial in self._front if trial.cost.latency_ms <= cost.latency_ms)
        return max(faster, key=lambda trial: trial.at(0), default=None)

    def front_hypervolume(self) -> float:
        """Return the hypervolume of the trials without longer training."""
        return self._volume([(trial.at(0), trial.cost.latency_ms) for trial in self._front])

    def hypervolume(self) -> float:
        """Return the hypervolume of the best that is known of each trial."""
        return self._volume([(trial.best_known, trial.cost.latency_ms) for trial in self.known])

    def _volume(self, results: Sequence[tuple[float, float]]) -> float:
        points = [progress_point(*result, self.teacher_ms) for result in results]
        return hypervolume(points, PROGRESS_REFERENCE)
