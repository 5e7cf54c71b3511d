"""Numbers as people read them. What is not known is shown as a dash, never as zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from autocompress.problem.budgets import Limits, show
from autocompress.problem.candidate import Cost
from autocompress.runs.student import Student

UNKNOWN = "–"
COSTS = {
    "latency_ms": "latency",
    "peak_memory_bytes": "memory",
    "file_bytes": "file size",
    "packed_bytes": "packed size",
}
"""The costs that a budget can limit, as they are called in tables."""


def known(value: object) -> TypeGuard[float]:
    """Return whether `value` is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def cost_of(model: Student | Cost | None, name: str) -> float | None:
    """Return a model's cost by its name; None where it is not known.

    No model costs nothing: a cost of 0 was not recorded by the version that measured it.
    """
    value = getattr(model, name, None)
    return value if known(value) and value > 0 else None


def significant(value: float | None, digits: int = 3) -> str:
    """Return the number with so many significant digits, without an exponent: `0.0432`, `1.50`, `1234`."""
    if not known(value):
        return UNKNOWN
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    return f"{value:.{min(12, max(0, digits - 1 - magnitude))}f}"


def milliseconds(value: float | None) -> str:
    """Return a latency: `0.432 ms`."""
    return f"{significant(value)} ms" if known(value) else UNKNOWN


def interval_ms(interval: Sequence[float] | None) -> str:
    """Return a 95 % interval: `[0.431, 0.437]`."""
    if not interval or len(interval) != 2:
        return UNKNOWN
    return f"[{significant(interval[0])}, {significant(interval[1])}]"


def size(value: float | None) -> str:
    """Return bytes in binary units: `318 KiB`."""
    return show("file_bytes", value) if known(value) else UNKNOWN


def cost(name: str, value: float | None) -> str:
    """Return a cost, by its name in `COSTS`, with its unit."""
    return milliseconds(value) if name == "latency_ms" else size(value)


def quantity(value: float | None) -> str:
    """Return a count: `950`, `12.3 k`, `41.1 M`."""
    if not known(value):
        return UNKNOWN
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{significant(value / scale)} {unit}"
    return f"{value:g}"


def percent(value: float | None, digits: int = 2) -> str:
    """Return a share in percent: `97.22 %`."""
    return f"{100 * value:.{digits}f} %" if known(value) else UNKNOWN


def accuracy(model: Student | None) -> str:
    """Return a model's accuracy with its standard error: `97.22 ± 0.87 %`."""
    if model is None or not known(model.accuracy):
        return UNKNOWN
    if not known(model.accuracy_std_err):
        return percent(model.accuracy)
    return f"{100 * model.accuracy:.2f} ± {100 * model.accuracy_std_err:.2f} %"


def points(student: Student, teacher: Student | None) -> str:
    """Return the difference to the teacher's accuracy in percentage points: `−0.28`."""
    if teacher is None or not (known(student.accuracy) and known(teacher.accuracy)):
        return UNKNOWN
    return f"{100 * (student.accuracy - teacher.accuracy):+.2f}".replace("-", "−")


def ratio(teacher: float | None, value: float | None) -> str:
    """Return how many times less than the teacher: `3.4×`."""
    if not (known(teacher) and known(value)) or value <= 0:
        return UNKNOWN
    return f"{significant(teacher / value, 2 if teacher / value < 100 else 3)}×"


def less(teacher: Student | None, student: Student, name: str) -> str:
    """Return how many times less of a cost a student has than the teacher: `3.4×`."""
    return ratio(cost_of(teacher, name), cost_of(student, name))


def limits(given: Limits | None) -> str:
    """Return `latency ≤ 2.00 ms, file size ≤ 300 KiB`; nothing where nothing is limited."""
    found = {} if given is None else given.as_dict
    return ", ".join(f"{label} ≤ {cost(name, found[name])}" for name, label in COSTS.items() if name in found)


def names(costs: Sequence[str], between: str = ", ") -> str:
    """Return what costs are called in tables."""
    return between.join(COSTS.get(name, name) for name in costs)


def plain(value: Any) -> str:
    """Return a recorded setting in one line."""
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or UNKNOWN
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value) or "none"
    return str(value)
