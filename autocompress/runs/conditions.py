"""Conditions on measured costs as a user types them, such as `<=1.5ms` or `>40%` (of the teacher)."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import ge, gt, le, lt

from autocompress.errors import InputError
from autocompress.problem.budgets import Budgets
from autocompress.runs.student import Student

COSTS = {
    "latency": "latency_ms",
    "memory": "peak_memory_bytes",
    "size": "file_bytes",
    "packed_size": "packed_bytes",
}
NAMES = {cost: name.replace("_", " ") for name, cost in COSTS.items()}

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": lt,
    "<=": le,
    "≤": le,
    ">": gt,
    ">=": ge,
    "≥": ge,
}
_CONDITION = re.compile(r"\s*(<=|>=|<|>|≤|≥)?\s*(.+?)\s*\Z")


def unmeasured_teacher(text: str) -> InputError:
    """Return the refusal of a limit in per cent of a teacher that the run has not measured yet."""
    return InputError(
        f"{text!r} is relative to the teacher, which this run has not measured yet",
        fix="give an absolute amount",
    )


def parse_condition(name: str, text: str, teacher: Student | None) -> Callable[[float], bool]:
    """Return whether a cost keeps the condition; shares are of the teacher's. Raises InputError."""
    match = _CONDITION.match(text)
    operator, amount = (match[1] or "<=", match[2]) if match else ("<=", text)
    budget = Budgets.parse(**{name: amount})
    if teacher is None and "%" in amount:
        raise unmeasured_teacher(text)
    limit = budget.resolve(teacher).as_dict[COSTS[name]]
    return lambda value: _COMPARISONS[operator](value, limit)
