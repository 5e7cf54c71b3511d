"""How two device profiles differ: in what they were measured with, and in what equal kernels take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autocompress.device.profile.profile import DeviceProfile

_VOLATILE = frozenset({"load_average"})


def profile_difference(first: DeviceProfile, second: DeviceProfile) -> dict[str, Any]:
    """`settings` that differ, as pairs, and for `all` kernels in common and each `families` of them the
    ratios of the second's medians to the first's.

    Ratios are of medians as the profiler showed them: median of ratios, share beyond ± 5 % and ± 10 %,
    smallest and largest. None where there is no kernel in common.
    """
    medians = {row.kernel: row.median_us for row in second.table.rows}
    ratios: dict[str, list[float]] = {}
    for row in first.table.rows:
        if row.kernel in medians:
            ratios.setdefault(row.kernel.group, []).append(medians[row.kernel] / row.median_us)
    own = {row.kernel for row in first.table.rows}
    return {
        "first": first.name,
        "second": second.name,
        "settings": _settings(first, second),
        "kernels": {
            "in_common": sum(map(len, ratios.values())),
            "only_in_first": len(own - medians.keys()),
            "only_in_second": len(medians.keys() - own),
        },
        "all": _ratios([ratio for family in ratios.values() for ratio in family]),
        "families": {name: _ratios(ratios[name]) for name in sorted(ratios)},
        "error95": [profile.validation.error95 for profile in (first, second)],
    }


def _settings(first: DeviceProfile, second: DeviceProfile) -> dict[str, list[Any]]:
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in ("runtime", "threads", "batch")}
    mine, other = first.device.values, second.device.values
    for name in dict.fromkeys((*mine, *other)):
        if name not in _VOLATILE and name not in pairs:
            pairs[name] = (mine.get(name), other.get(name))
    return {name: list(pair) for name, pair in pairs.items() if pair[0] != pair[1]}


def _ratios(ratios: Sequence[float]) -> dict[str, Any]:
    if not ratios:
        return {"count": 0, "median_ratio": None}
    off = np.abs(np.array(ratios) - 1)
    return {
        "count": len(ratios),
        "median_ratio": float(np.median(ratios)),
        "median_difference": float(np.median(off)),
        "beyond_5_percent": float((off > 0.05).mean()),
        "beyond_10_percent": float((off > 0.10).mean()),
        "smallest_ratio": float(min(ratios)),
        "largest_ratio": float(max(ratios)),
    }
