"""Numbers as people read them. What is not known is shown as a dash, never as zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from autocompress.problem.budgets import Limits, show
from autocompress.problem.candidate import Cost
from autocompress.problem.tasks.metric import ACCURACY, SHARE, Metric
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


def capital(text: str) -> str:
    """Return the text with its first letter large."""
    return text[:1].upper() + text[1:]


def percent(value: float | None, digits: int = 2) -> str:
    """Return a share in percent: `97.22 %`."""
    return f"{100 * value:.{digits}f} %" if known(value) else UNKNOWN


def accuracy(model: Student | None) -> str:
    """Return a model's value of the metric with its standard error: `97.22 ± 0.87 %`, `0.412 ± 0.013`."""
    if model is None or not known(model.accuracy):
        return UNKNOWN
    metric = model.metric
    if not known(model.accuracy_std_err):
        return metric_value(metric, model.accuracy)
    spread = metric.spread(model.accuracy, model.accuracy_std_err)
    if metric.unit == SHARE:
        return f"{100 * model.value:.2f} ± {100 * spread:.2f} %"
    return f"{significant(model.value)} ± {significant(spread, 2)} {metric.unit}".rstrip()


def metric_value(metric: Metric, score: float | None) -> str:
    """Return the metric's value of a score: `97.22 %`, `31.2 dB`."""
    if not known(score):
        return UNKNOWN
    if metric.unit == SHARE:
        return percent(metric.value(score))
    return f"{significant(metric.value(score))} {metric.unit}".rstrip()


def metric_of(teacher: Student | None) -> Metric:
    """Return the metric of a run, which its teacher was measured by."""
    return ACCURACY if teacher is None else teacher.metric


def points(student: Student, teacher: Student | None) -> str:
    """Return the difference to the teacher's value, of a share in percentage points: `−0.28`."""
    if teacher is None or not (known(student.accuracy) and known(teacher.accuracy)):
        return UNKNOWN
    difference = student.value - teacher.value
    if student.metric.unit == SHARE:
        return f"{100 * difference:+.2f}".replace("-", "−")
    return f"{'−' if difference < 0 else '+'}{significant(abs(difference))}"


def beside_teacher(student: Student, teacher: Student | None) -> str:
    """Return the same with its unit: `−0.28 points`, `+0.3 dB`."""
    metric = student.metric
    return f"{points(student, teacher)} {'points' if metric.unit == SHARE else metric.unit}".rstrip()


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
