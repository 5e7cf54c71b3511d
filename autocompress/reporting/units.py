"""Numbers as people read them. What is not known is shown as a dash, never as zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from autocompress.problem.budgets import show

UNKNOWN = "–"
COSTS = {
    "latency_ms": "latency",
    "peak_memory_bytes": "memory",
    "file_bytes": "file size",
    "packed_bytes": "packed size",
}
"""The costs that a budget can limit, as they are called in tables."""


def known(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def significant(value: Any, digits: int = 3) -> str:
    """The number with so many significant digits and without an exponent: `0.0432`, `1.50`, `1234`."""
    if not known(value):
        return UNKNOWN
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    return f"{value:.{min(12, max(0, digits - 1 - magnitude))}f}"


def milliseconds(value: Any) -> str:
    return f"{significant(value)} ms" if known(value) else UNKNOWN


def interval_ms(interval: Any) -> str:
    """A 95 % interval: `[0.431, 0.437]`."""
    if not interval or len(interval) != 2:
        return UNKNOWN
    return f"[{significant(interval[0])}, {significant(interval[1])}]"


def size(value: Any) -> str:
    """Bytes in binary units: `318 KiB`."""
    return show("file_bytes", value) if known(value) else UNKNOWN


def cost(name: str, value: Any) -> str:
    """A cost by its name in `COSTS`, with its unit."""
    return milliseconds(value) if name == "latency_ms" else size(value)


def quantity(value: Any) -> str:
    """A count: `950`, `12.3 k`, `41.1 M`."""
    if not known(value):
        return UNKNOWN
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{significant(value / scale)} {unit}"
    return f"{value:g}"


def percent(value: Any, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %" if known(value) else UNKNOWN


def accuracy(record: Mapping[str, Any]) -> str:
    """Accuracy with its standard error: `97.22 ± 0.87 %`."""
    value, error = record.get("accuracy"), record.get("accuracy_std_err")
    if not known(value):
        return UNKNOWN
    return f"{100 * value:.2f} ± {100 * error:.2f} %" if known(error) else percent(value)


def points(value: Any, teacher: Any) -> str:
    """The difference to the teacher's accuracy in percentage points: `−0.28`."""
    if not (known(value) and known(teacher)):
        return UNKNOWN
    return f"{100 * (value - teacher):+.2f}".replace("-", "−")


def ratio(teacher: Any, value: Any) -> str:
    """How many times less than the teacher: `3.4×`."""
    if not (known(teacher) and known(value)) or value <= 0:
        return UNKNOWN
    return f"{significant(teacher / value, 2 if teacher / value < 100 else 3)}×"


def limits(given: Mapping[str, Any]) -> str:
    """`latency ≤ 2.00 ms, file size ≤ 300 KiB`; empty when nothing is limited."""
    return ", ".join(
        f"{label} ≤ {cost(name, given.get(name))}" for name, label in COSTS.items() if known(given.get(name))
    )


def plain(value: Any) -> str:
    """A recorded setting in one line."""
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
