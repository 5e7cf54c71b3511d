"""Hard budgets: what a user allows a student to cost, absolutely or relative to the teacher.

`Budgets` is what was asked for; `resolve` makes `Limits` of it, in milliseconds and bytes, once
the teacher has been measured on the device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from autocompress.errors import BudgetError
from autocompress.files import JsonObject
from autocompress.problem.candidate import Cost

MIB = 1024 * 1024
MAX_RATIO = 10.0

TIME_UNITS_MS = {"us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}
BYTE_UNITS = {
    "B": 1,
    "KB": 1000,
    "KiB": 1024,
    "MB": 1000**2,
    "MiB": MIB,
    "GB": 1000**3,
    "GiB": 1024**3,
}

LIMITED = ("latency_ms", "peak_memory_bytes", "file_bytes", "packed_bytes")
"""The costs that can be limited, by their names in `candidate.Cost`."""

_TEXT = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?i:nan|inf(?:inity)?))\s*(\S*)\s*\Z")


@dataclass(frozen=True)
class Limits:
    """Upper limits in absolute units; None does not limit. At least one is set."""

    latency_ms: float | None = None
    peak_memory_bytes: int | None = None
    file_bytes: int | None = None
    packed_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.as_dict:
            raise BudgetError("no budget is set", fix="give at least one of latency, memory and size")

    @property
    def as_dict(self) -> dict[str, float]:
        """Return the limits that are set, by the name of the cost they limit."""
        limits = {name: getattr(self, name) for name in LIMITED}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def excess(self, cost: Cost | JsonObject | Any, *, upper: bool = False) -> dict[str, float]:
        """Return for each limit the share by which `cost` is above (> 0) or below (≤ 0) it.

        `cost` is a Cost or anything with its names, as attributes or keys. With `upper` the latency
        is the upper end of its 95 % interval. A cost that is NaN is infinitely above.
        """
        result = {}
        for name, limit in self.as_dict.items():
            value = float(_cost(cost, name, upper))
            result[name] = math.inf if math.isnan(value) else value / limit - 1.0
        return result

    def violated(self, cost: Cost | JsonObject | Any, *, upper: bool = False) -> list[str]:
        """Return the names of the limits that `cost` breaks; see `excess`. A cost equal to its limit keeps
        it."""
        return [name for name, excess in self.excess(cost, upper=upper).items() if excess > 0]

    def scaled(self, shares: float | Mapping[str, float]) -> Limits:
        """Multiply each limit by its share, or by the one for all; bytes round down."""

        def times(name: str, value: float) -> float:
            found = value * (shares[name] if isinstance(shares, Mapping) else shares)
            return found if name == "latency_ms" else math.floor(found)

        return Limits(**{name: times(name, value) for name, value in self.as_dict.items()})  # type: ignore[arg-type]

    def describe(self) -> str:
        return ", ".join(f"{_LABELS[name]} ≤ {show(name, limit)}" for name, limit in self.as_dict.items())

    def to_json(self) -> dict[str, float | int | None]:
        return {name: getattr(self, name) for name in LIMITED}

    @classmethod
    def from_json(cls, data: JsonObject) -> Limits:
        return cls(**{name: data.get(name) for name in LIMITED})


_LABELS = {
    "latency_ms": "latency",
    "peak_memory_bytes": "memory",
    "file_bytes": "size",
    "packed_bytes": "packed size",
}
_FIELDS = {
    "latency_ms": ("latency_ms", "latency_ratio"),
    "peak_memory_bytes": ("memory_mib", "memory_ratio"),
    "file_bytes": ("size_mib", "size_ratio"),
    "packed_bytes": ("packed_size_mib", "packed_size_ratio"),
}


@dataclass(frozen=True)
class Budgets:
    """Say what a student may cost: absolute, or as a ratio of the teacher's cost on the same device.

    `memory_mib` limits the peak memory of a run, `size_mib` the exported file, `packed_size_mib` the coded
    `student.acz`; 1 MiB = 1024² bytes.

    Raises BudgetError unless at least one budget is set, each is a positive number, and none is
    set both ways.
    """

    latency_ms: float | None = None
    memory_mib: float | None = None
    size_mib: float | None = None
    latency_ratio: float | None = None
    memory_ratio: float | None = None
    size_ratio: float | None = None
    packed_size_mib: float | None = None
    packed_size_ratio: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if not given:
            raise BudgetError("no budget is set", fix="give at least one of latency, memory and size")
        for name, value in given.items():
            _check_number(name, value)
        for absolute, ratio in _FIELDS.values():
            if absolute in given and ratio in given:
                raise BudgetError(f"{absolute} and {ratio} are both set", fix="give one of them")

    @classmethod
    def parse(
        cls,
        latency: str | None = None,
        memory: str | None = None,
        size: str | None = None,
        packed_size: str | None = None,
    ) -> Budgets:
        """Read budgets as typed: `2ms`, `500us`, `8MiB`, `300KB` or `40%` (of the teacher).

        KB, MB and GB are powers of 1000; KiB, MiB and GiB powers of 1024. Raises BudgetError.
        """
        parts: dict[str, float] = {}
        given = {"latency": latency, "memory": memory, "size": size, "packed_size": packed_size}
        for name, text in given.items():
            if text is not None:
                parts |= _parse(name, text)
        return cls(**parts)

    def resolve(self, teacher: Cost | Any) -> Limits:
        """Return the limits in milliseconds and bytes; ratios are taken of the teacher's cost. Bytes round
        down.

        Raises BudgetError for a limit below one byte.
        """
        limits: dict[str, Any] = {}
        for cost, (absolute, ratio) in _FIELDS.items():
            value, share = getattr(self, absolute), getattr(self, ratio)
            if share is not None:
                value = share * float(_cost(teacher, cost, upper=False))
            elif value is not None and cost != "latency_ms":
                value = value * MIB
            limits[cost] = value if value is None or cost == "latency_ms" else _whole_bytes(cost, value)
        return Limits(**limits)

    @property
    def limited(self) -> tuple[str, ...]:
        """Return the costs that have a budget, by their names in `candidate.Cost`."""
        return tuple(cost for cost, names in _FIELDS.items() if any(getattr(self, name) for name in names))

    def to_json(self) -> dict[str, float]:
        """Return only what is set; `Budgets(**data)` gives it back."""
        return {name: value for name, value in vars(self).items() if value is not None}


def check_reachable(limits: Limits, smallest: Cost | Any) -> None:
    """Raise BudgetError when a limit is below what the smallest model of the space costs.

    `smallest` holds, for each cost, the least that any candidate is predicted to cost.
    """
    broken = limits.violated(smallest)
    if not broken:
        return
    asked = ", ".join(f"{_LABELS[name]} ≤ {show(name, limits.as_dict[name])}" for name in broken)
    told = [name for name in LIMITED if name != "packed_bytes" or name in limits.as_dict]
    reachable = ", ".join(f"{_LABELS[name]} {show(name, _cost(smallest, name, False))}" for name in told)
    raise BudgetError(
        f"no model of this space keeps the budget {asked}",
        why=f"smallest reachable model: {reachable}",
        fix="raise the budget, or widen the search space",
    )


def show(name: str, value: float) -> str:
    """Return a cost with its unit, for people: `1.25 ms`, `318 KiB`, `8.00 MiB`."""
    if name == "latency_ms":
        return f"{value:.3g} ms"
    for unit, size in (("GiB", 1024**3), ("MiB", MIB), ("KiB", 1024)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value / size < 1000 else f"{value / size:.0f} {unit}"
    return f"{value:.0f} bytes"


def _parse(name: str, text: str) -> dict[str, float]:
    units = TIME_UNITS_MS if name == "latency" else BYTE_UNITS
    example = "2ms or 40%" if name == "latency" else "8MiB or 40%"
    match = _TEXT.match(str(text))
    if match is None:
        raise BudgetError(f"the {name} budget {text!r} is not a number with a unit", fix=f"write {example}")
    number, unit = float(match[1]), match[2]
    if not math.isfinite(number) or number <= 0:
        raise BudgetError(f"the {name} budget {text!r} is not above zero", fix=f"write {example}")
    if unit == "%":
        return {f"{name}_ratio": number / 100}
    if unit not in units:
        raise _unknown_unit(name, text, match[1], unit, units)
    if name == "latency":
        return {"latency_ms": number * units[unit]}
    return {f"{name}_mib": number * units[unit] / MIB}


def _unknown_unit(name: str, text: str, number: str, unit: str, units: Mapping[str, float]) -> BudgetError:
    known = f"known: {', '.join(units)} and %"
    usual = "ms" if name == "latency" else "MiB"
    if not unit:
        return BudgetError(
            f"the {name} budget {text!r} has no unit", why=known, fix=f"did you mean {number}{usual}?"
        )
    by_lower = {known_unit.lower(): known_unit for known_unit in units}
    close = get_close_matches(unit.lower(), by_lower, n=1, cutoff=0.6)
    fix = f"did you mean {number}{by_lower[close[0]]}?" if close else f"write {number}{usual}"
    return BudgetError(f"the {name} budget {text!r} has an unknown unit {unit!r}", why=known, fix=fix)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BudgetError(
            f"{name} is {value!r}, not a number", fix="text such as '2ms' is read by Budgets.parse"
        )
    if not math.isfinite(value) or value <= 0:
        raise BudgetError(f"{name} is {value}, which is not above zero", fix="give a positive number")
    if name.endswith("_ratio") and value > MAX_RATIO:
        raise BudgetError(
            f"{name} is {value:g}: {value * 100:g} % of the teacher",
            why=f"more than {MAX_RATIO * 100:g} % limits nothing",
            fix="40% means 0.4 times the teacher's cost",
        )


def _whole_bytes(name: str, value: float) -> int:
    if value < 1:
        raise BudgetError(f"the {_LABELS[name]} budget is below one byte", fix="give a larger budget")
    return math.floor(value)


def _cost(cost: Any, name: str, upper: bool) -> float:
    def read(key: str) -> Any:
        return cost[key] if isinstance(cost, Mapping) else getattr(cost, key)

    return read("latency_ms_ci95")[1] if upper and name == "latency_ms" else read(name)
