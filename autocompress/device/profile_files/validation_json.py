"""Reading `validation.json`: errors of predictions for networks that no row came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.device.profile.validation import Validation
from autocompress.device.profile_files.bounded_text import finite, read_text, refuse

_SHARES = ("within_5_percent", "within_10_percent")
_TIMES = ("measured_ms", "predicted_ms")
MOST_WRONG = 20.0
"""A prediction further off than this many times is not an error but another unit."""


def read_validation(path: Path, sources: int) -> Validation:
    """Return what the file says. `sources` is how many the profile has. Raises ProfileError."""
    try:
        data = json.loads(read_text(path), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        refuse(path, f"it is not JSON: {error}")
    if not isinstance(data, dict):
        refuse(path, "it is not a JSON object")
    _check_summary(path, "", data)
    points = data.get("networks", [])
    if not isinstance(points, list):
        refuse(path, "networks is not a list")
    for index, point in enumerate(points):
        _check_point(path, f"networks[{index}]", point)
    summaries = data.get("sources")
    if summaries is not None:
        if not isinstance(summaries, list) or len(summaries) != sources:
            refuse(path, f"sources must be a list with one entry for each of the profile's {sources} sources")
        for index, summary in enumerate(summaries):
            _check_summary(path, f"sources[{index}].", summary)
    try:
        return Validation.from_json(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        refuse(path, f"it is not a validation: {type(error).__name__} {str(error)[:80]}")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} stands twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _check_summary(path: Path, where: str, data: Any) -> None:
    if not isinstance(data, Mapping):
        refuse(path, f"{where.rstrip('.')} is not a JSON object")
    if data.get("error95") is not None:
        finite(path, f"{where}error95", data["error95"], positive=True)
    count = data.get("count", 0)
    if type(count) is not int or count < 0:
        refuse(path, f"{where}count is {str(count)[:40]!r}, a whole number is expected")
    for name in (*_SHARES, "mean_error", "largest_error", "rank_correlation"):
        if data.get(name) is None:
            continue
        value = finite(path, f"{where}{name}", data[name])
        low, high = (-1 if name == "rank_correlation" else 0), (1 if "error" not in name else float("inf"))
        if not low <= value <= high:
            refuse(path, f"{where}{name} is {value}, a number from {low} to {high} is expected")
    if data.get("pooling_shift") is not None:
        finite(path, f"{where}pooling_shift", data["pooling_shift"])
    for name in ("network", "note", "validated_at"):
        if not isinstance(data.get(name) or "", str):
            refuse(path, f"{where}{name} is {str(data[name])[:40]!r}, text is expected")
    for kind, part in _parts(path, where, data).items():
        _check_summary(path, f"{where}by_precision.{kind}.", part)


def _parts(path: Path, where: str, data: Mapping[str, object]) -> Mapping[str, object]:
    parts = data.get("by_precision", {})
    if not isinstance(parts, Mapping):
        refuse(path, f"{where}by_precision is not a JSON object")
    return parts


def _check_point(path: Path, where: str, point: Any) -> None:
    if not isinstance(point, Mapping):
        refuse(path, f"{where} is not a JSON object")
    measured, predicted = (finite(path, f"{where}.{name}", point.get(name), positive=True) for name in _TIMES)
    ratio = predicted / measured
    if not 1 / MOST_WRONG <= ratio <= MOST_WRONG:
        refuse(
            path,
            f"{where}: {predicted:g} ms is predicted and {measured:g} ms measured, {_times(ratio)} apart",
            "one of them is in another unit; write milliseconds",
        )


def _times(ratio: float) -> str:
    return f"{max(ratio, 1 / ratio):.0f} times"
