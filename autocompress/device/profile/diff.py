"""How two device profiles differ: in what they were measured with, and in what equal kernels take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.runtimes.description import Plain

_VOLATILE = frozenset({"load_average"})


@dataclass(frozen=True)
class Ratios:
    """Hold ratios of the second profile's medians to the first's, of `count` kernels; None of none.

    `median_difference` and the shares `beyond_5_percent` and `beyond_10_percent` are of how far the ratios
    are from 1.
    """

    count: int = 0
    median_ratio: float | None = None
    median_difference: float | None = None
    beyond_5_percent: float | None = None
    beyond_10_percent: float | None = None
    smallest_ratio: float | None = None
    largest_ratio: float | None = None

    def to_json(self) -> dict[str, Plain]:
        """Return what `profile diff` prints, without what there is not."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return {"count": self.count, "median_ratio": self.median_ratio, **known}


@dataclass(frozen=True)
class ProfileDifference:
    """Hold how two profiles differ: `settings` as pairs, ratios of `every` kernel in common and by family.

    `error95` are the errors that the two claim, as shares. Ratios are of medians as the profiler showed them.
    """

    first: str
    second: str
    settings: Mapping[str, tuple[Plain, Plain]]
    in_common: int
    only_in_first: int
    only_in_second: int
    every: Ratios
    families: Mapping[str, Ratios]
    error95: tuple[float | None, float | None]

    def to_json(self) -> dict[str, Plain]:
        """Return what `profile diff --format json` prints."""
        return {
            "first": self.first,
            "second": self.second,
            "settings": {name: list(pair) for name, pair in self.settings.items()},
            "kernels": {
                "in_common": self.in_common,
                "only_in_first": self.only_in_first,
                "only_in_second": self.only_in_second,
            },
            "all": self.every.to_json(),
            "families": {name: ratios.to_json() for name, ratios in self.families.items()},
            "error95": list(self.error95),
        }


def profile_difference(first: DeviceProfile, second: DeviceProfile) -> ProfileDifference:
    """Return in which settings two profiles differ, and what equal kernels take in both."""
    medians = {row.kernel: row.median_us for row in second.table.rows}
    ratios: dict[str, list[float]] = {}
    for row in first.table.rows:
        if row.kernel in medians:
            ratios.setdefault(row.kernel.group, []).append(medians[row.kernel] / row.median_us)
    own = {row.kernel for row in first.table.rows}
    return ProfileDifference(
        first=first.name,
        second=second.name,
        settings=_settings(first, second),
        in_common=sum(map(len, ratios.values())),
        only_in_first=len(own - medians.keys()),
        only_in_second=len(medians.keys() - own),
        every=_ratios([ratio for family in ratios.values() for ratio in family]),
        families={name: _ratios(ratios[name]) for name in sorted(ratios)},
        error95=(first.validation.error95, second.validation.error95),
    )


def _settings(first: DeviceProfile, second: DeviceProfile) -> dict[str, tuple[Plain, Plain]]:
    names = ("runtime", "threads", "batch")
    pairs: dict[str, tuple[Plain, Plain]] = {
        name: (getattr(first, name), getattr(second, name)) for name in names
    }
    mine, other = first.device.values, second.device.values
    for name in dict.fromkeys((*mine, *other)):
        if name not in _VOLATILE and name not in pairs:
            pairs[name] = (mine.get(name), other.get(name))
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _ratios(ratios: Sequence[float]) -> Ratios:
    if not ratios:
        return Ratios()
    off = np.abs(np.array(ratios) - 1)
    return Ratios(
        count=len(ratios),
        median_ratio=float(np.median(ratios)),
        median_difference=float(np.median(off)),
        beyond_5_percent=float((off > 0.05).mean()),
        beyond_10_percent=float((off > 0.10).mean()),
        smallest_ratio=float(min(ratios)),
        largest_ratio=float(max(ratios)),
    )
