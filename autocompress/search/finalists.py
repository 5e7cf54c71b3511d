"""The students that were measured so far, and what their measurements say of predicted costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from autocompress.errors import AutocompressError, NoisyDeviceError, RunError
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Cost
from autocompress.runs.conditions import NAMES
from autocompress.runs.student import Student

LATENCY_HEADROOM = 0.98
NOISY_ROUNDS = 4

Examined = TypeVar("Examined")
Certify = Callable[[Candidate], Student]
"""Examines a distilled candidate's files, records the outcome, and returns its student record."""


def patiently(examine: Callable[[], Examined], say: Callable[[str], None]) -> Examined:
    """Return what `examine` finds, asked as often as students are measured where noise disturbs it. Raises
    the last NoisyDeviceError."""
    for _ in range(NOISY_ROUNDS - 1):
        try:
            return examine()
        except NoisyDeviceError as error:
            say(f"the measurement was disturbed: {error.why}; measuring again")
    return examine()


@dataclass
class Finalists:
    """Hold the finalists: `students` are records by candidate, `rejected` what kept others from being
    measured in this part of the run; `decide` is told what happens, `check_stopped` raises to stop."""

    certify: Certify
    limits: Limits
    decide: Callable[[str], None]
    check_stopped: Callable[[], None]
    students: dict[str, Student] = field(default_factory=dict)
    rejected: dict[str, AutocompressError] = field(default_factory=dict)
    _scales: dict[str, float] = field(default_factory=dict)

    @property
    def has_any(self) -> bool:
        """Return whether a student keeps all budgets."""
        return any(student.certified for student in self.students.values())

    @property
    def tried(self) -> frozenset[str]:
        """Return the keys of all that were measured or rejected."""
        return frozenset((*self.students, *self.rejected))

    def check_any_measured(self) -> None:
        """Raise what the last student was rejected for where none could be measured."""
        if self.rejected and not self.students:
            raise list(self.rejected.values())[-1]

    def measure(self, waiting: Sequence[Candidate]) -> None:
        """Measure distilled candidates; those that noise disturbed are measured again after the others.

        One that cannot be examined at all is rejected, and the others go on. Raises NoisyDeviceError when
        the noise does not end and no student is certified.
        """
        noise: NoisyDeviceError | None = None
        for _ in range(NOISY_ROUNDS):
            waiting, noise = self._measure_each(waiting)
            if noise is None:
                return
        if noise is not None and not self.has_any:
            raise noise
        self.decide(f"{len(waiting)} students could not be measured; resume the run on a calmer machine")

    def _measure_each(self, waiting: Sequence[Candidate]) -> tuple[list[Candidate], NoisyDeviceError | None]:
        """Return the students whose measurement noise disturbed, and the last such error."""
        disturbed, noise = [], None
        for candidate in waiting:
            try:
                self.students[candidate.key] = self.certify(candidate)
            except NoisyDeviceError as error:
                noise = error
                disturbed.append(candidate)
                self.decide(f"the measurement of {candidate.key} was disturbed: {error.why}")
            except RunError:
                raise
            except AutocompressError as error:
                self.rejected[candidate.key] = error
                self.decide(f"student {candidate.key} cannot be certified: {error.what}, {error.why}")
            self.check_stopped()
        return disturbed, noise

    def learn(self, predicted: Callable[[str], Cost]) -> str:
        """Correct what is expected to fit by how far measured costs were above the `predicted` ones of the
        students' keys; say so in words, empty where none was above."""
        ratios = {
            name: [student.upper(name) / max(_value(predicted(key), name), 1e-9)
                   for key, student in self.students.items()]
            for name in self.limits.as_dict
        }  # fmt: skip
        self._scales = {name: max([1.0, *found]) for name, found in ratios.items()}
        above = [f"{NAMES[name]} up to {scale - 1:.1%}" for name, scale in self._scales.items() if scale > 1]
        return f"{' and '.join(above)} above the prediction" if above else ""

    def is_expected_to_fit(self, cost: Cost) -> bool:
        """Return whether it fits by its predicted costs, corrected by what was measured on the students so
        far."""
        return not self.tightened().violated(cost)

    def tightened(self) -> Limits:
        """Return what predicted costs have to keep so that measured ones are expected to keep the limits."""
        room = {"latency_ms": LATENCY_HEADROOM}
        return self.limits.scaled(
            {name: room.get(name, 1.0) / self._scales.get(name, 1.0) for name in self.limits.as_dict}
        )


def _value(cost: Cost, name: str) -> float:
    return float(getattr(cost, name))
