"""A measured student, and the front of those that nobody beats. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autocompress.errors import InputError, NothingFeasibleError
from autocompress.files import JsonObject
from autocompress.problem.budgets import LIMITED, MIB, Limits, show
from autocompress.runs.conditions import COSTS, NAMES, parse_condition
from autocompress.runs.events import TrialInfeasible
from autocompress.runs.pareto import non_dominated
from autocompress.runs.store import RunRecord
from autocompress.runs.student import Student

SORTABLE = {"accuracy": "accuracy", **COSTS}


@dataclass(frozen=True)
class Front:
    """Certified students that no other certified one beats in validation accuracy, latency, memory,
    size and packed size at once, the most accurate first. `measured` also holds those that are beaten or
    break a budget."""

    run: str
    teacher: Student | None
    limits: Limits | None
    students: tuple[Student, ...]
    measured: tuple[Student, ...] = ()
    violated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outside: TrialInfeasible | None = None
    """Of the candidates that were left out because their predicted cost breaks a limit, the nearest."""
    answer: Callable[..., Any] | None = field(default=None, repr=False, compare=False)
    """Answers a new budget for the run; set by `api`."""

    def solve(
        self,
        latency_ms: float | None = None,
        memory_mib: float | None = None,
        size_mib: float | None = None,
        packed_size_mib: float | None = None,
    ) -> Any:
        """Return the candidate, trained or not, that is expected to lose least within these limits.

        A `budget_queries.Answer`, computed from the run's scores without evaluating anything; limits that
        are not given are the run's own. Raises NothingFeasibleError, which names the nearest miss.
        """
        if self.answer is None:
            raise InputError(
                "this front belongs to no run folder", fix="read it with autocompress.front(run)"
            )
        return self.answer(
            latency_ms=latency_ms,
            memory_mib=memory_mib,
            size_mib=size_mib,
            packed_size_mib=packed_size_mib,
        )

    @property
    def own_limits(self) -> dict[str, float]:
        """Return the run's own limits, by the name of the cost."""
        return {} if self.limits is None else self.limits.as_dict

    def best(
        self,
        latency_ms: float | None = None,
        memory_mib: float | None = None,
        size_mib: float | None = None,
        packed_size_mib: float | None = None,
    ) -> Student:
        """Return the student with the highest validation accuracy within these limits, the faster of equals.

        A student keeps a latency when the upper end of its 95 % interval does. Raises
        NothingFeasibleError, which names the nearest miss and the limit it breaks.
        """
        limits = {
            "latency_ms": latency_ms,
            "peak_memory_bytes": None if memory_mib is None else memory_mib * MIB,
            "file_bytes": None if size_mib is None else size_mib * MIB,
            "packed_bytes": None if packed_size_mib is None else packed_size_mib * MIB,
        }
        given = _set(limits)
        certified = [student for student in self.measured if student.certified]
        # A student that is beaten at its median latency can still be the only one with a narrow interval.
        for pool in (self.students, certified):
            fitting = [student for student in pool if max(student.excess(given).values(), default=0.0) <= 0]
            if fitting:
                return min(fitting, key=lambda student: (-student.validation_accuracy, student.latency_ms))
        raise self._nearest_miss({**self.own_limits, **given})

    def filtered(
        self,
        latency: str | None = None,
        memory: str | None = None,
        size: str | None = None,
        packed_size: str | None = None,
    ) -> Front:
        """Return the students that keep conditions such as `<=1.5ms`, `<2MiB`, `>40%` (of the teacher)."""
        found = self
        given = {"latency": latency, "memory": memory, "size": size, "packed_size": packed_size}
        for name, condition in given.items():
            if condition is not None:
                keeps = parse_condition(name, condition, self.teacher)
                students, measured = (
                    tuple(student for student in pool if keeps(getattr(student, COSTS[name])))
                    for pool in (found.students, found.measured)
                )
                found = replace(found, students=students, measured=measured)
        return found

    def sorted_by(self, name: str) -> Front:
        """Sort the students: most accurate, fastest, or smallest first."""
        if name not in SORTABLE:
            known = ", ".join(SORTABLE)
            raise InputError(f"students cannot be sorted by {name!r}", fix=f"use one of {known}")
        sign = -1 if name == "accuracy" else 1
        order = sorted(self.students, key=lambda student: sign * getattr(student, SORTABLE[name]))
        return replace(self, students=tuple(order))

    def to_json(self) -> JsonObject:
        return {
            "run": self.run,
            "teacher": {} if self.teacher is None else self.teacher.to_json(),
            "students": [student.to_json() for student in self.students],
        }

    def _nearest_miss(self, limits: Mapping[str, float]) -> NothingFeasibleError:
        if not self.measured:
            return _predicted_miss(self.outside, self.run, limits) or NothingFeasibleError(
                "no student was measured", where=self.run, fix="loosen the budgets, or give more --trials"
            )

        def worst(student: Student) -> float:
            return max(student.excess(limits).values(), default=0.0)

        limits = {name: min(limit, self.own_limits.get(name, limit)) for name, limit in limits.items()}
        nearest = min(self.measured, key=worst)
        excess = nearest.excess(limits)
        binding = max(excess, key=lambda name: excess[name])
        value = nearest.upper(binding)
        return NothingFeasibleError(
            "no certified student keeps these limits",
            where=self.run,
            why=f"the nearest, {nearest.key}, has {NAMES[binding]} {show(binding, value)}, which is "
            f"{excess[binding]:.2%} above the limit of {show(binding, limits[binding])}",
            fix=f"loosen the {NAMES[binding]} limit, or resume the run with --add-trials",
        )


def front_of(record: RunRecord) -> Front:
    """Return the front of a run, from its recorded events."""
    root = str(record.paths.root)
    measured = tuple(replace(event.student, run=root) for event in record.students)
    certified = [student for student in measured if student.certified]
    front = [certified[index] for index in non_dominated([_point(student) for student in certified])]
    front.sort(key=lambda student: (-student.accuracy, student.latency_ms))
    broken = {event.student.key: event.violated for event in record.students if event.violated}
    return Front(root, record.teacher, record.limits, tuple(front), measured, broken, _outside(record))


def _outside(record: RunRecord) -> TrialInfeasible | None:
    """Return the nearest miss where no trial kept the limits by its predicted cost."""
    broken = [trial for trial in record.trials if isinstance(trial, TrialInfeasible)]
    limits = record.limits
    if limits is None or not broken or len(broken) < len(record.trials):
        return None
    costs = [(max(limits.excess(one.predicted, upper=True).values()), one) for one in broken if one.predicted]
    return min(costs, key=lambda pair: pair[0])[1] if costs else None


def _predicted_miss(
    trial: TrialInfeasible | None, run: str, limits: Mapping[str, float]
) -> NothingFeasibleError | None:
    if trial is None or trial.predicted is None:
        return None
    predicted = trial.predicted
    excess = Limits.from_json(limits).excess(predicted, upper=True)
    binding = max(excess, key=lambda name: excess[name])
    if excess[binding] <= 0:
        return None
    value = predicted.latency_ms_ci95[1] if binding == "latency_ms" else getattr(predicted, binding)
    return NothingFeasibleError(
        "no candidate is predicted to keep all budgets at once, so none was trained",
        where=run,
        why=f"the nearest, {trial.candidate}, has {NAMES[binding]} {show(binding, value)}, which is "
        f"{excess[binding]:.2%} above the limit of {show(binding, limits[binding])}",
        fix=f"loosen the {NAMES[binding]} limit, or widen the search space",
    )


def _point(student: Student) -> tuple[float, ...]:
    """Return what students are compared by: the accuracy that they were chosen by, never that on test
    data."""
    return (-student.validation_accuracy, *(float(getattr(student, name)) for name in LIMITED))


def _set(limits: JsonObject) -> dict[str, float]:
    return {name: value for name, value in limits.items() if value is not None}
