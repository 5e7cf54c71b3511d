"""Are the times of a profile in the unit that they claim?

Rows and validation describe the same networks, so they must agree: `count` times `median_us`, summed
over all rows, is what the profiler saw of all networks together. And no row may be far from what its
own family says, or longer than a whole network.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from autocompress.device.profile.latency_table import LatencyTable, Row, predicted_without
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile_files.bounded_text import refuse

MOST_APART = 20.0
"""No fit explains more than this many times; milliseconds and microseconds are 1000 apart."""

MOST_ASTRAY = 100.0
"""Nor does a cliff, or a size that no other row has, explain more than this."""

LONGEST_KERNEL = 2.0
"""No kernel takes longer than this many times the slowest network."""

_FIX = "all times in kernels.csv are microseconds, all those in validation.json milliseconds"


def check_units(path: Path, profile: DeviceProfile) -> None:
    """Raise ProfileError for rows, or for a whole table, that contradict the validation or each other.

    A staircase that is not monotone, and cliffs of up to a hundred times, are fine.
    """
    measured_ms = [point.measured_ms for point in profile.validation.networks]
    measured_ms += [source.teacher_latency_ms for source in profile.sources if source.teacher_latency_ms]
    if measured_ms:
        _check_longest(path, profile, max(measured_ms))
    _check_sum(path, profile)
    _check_families(path, profile.table)


def _check_longest(path: Path, profile: DeviceProfile, slowest_ms: float) -> None:
    for number, row in enumerate(profile.table.rows, start=2):
        if row.median_us > LONGEST_KERNEL * slowest_ms * 1e3:
            refuse(
                path,
                f"line {number}: median_us is {row.median_us:g}, longer than the slowest of the measured "
                f"networks, which took {slowest_ms * 1e3:g} µs",
                _FIX,
            )


def _check_sum(path: Path, profile: DeviceProfile) -> None:
    """Check the sum over all rows, where it is known how many networks the counts are of."""
    points = profile.validation.networks
    networks = sum(source.networks for source in profile.sources)
    if not points or not all(source.networks for source in profile.sources):
        return
    seen_us = sum(row.count * row.median_us for row in profile.table.rows) / networks
    measured_us = 1e3 * float(np.mean([point.measured_ms for point in points]))
    ratio = seen_us / measured_us
    if not 1 / MOST_APART <= ratio <= MOST_APART:
        refuse(
            path,
            f"its kernels add up to {seen_us:g} µs for a network, while {measured_us:g} µs were measured: "
            f"{max(ratio, 1 / ratio):.0f} times apart",
            _FIX,
        )


def _check_families(path: Path, table: LatencyTable) -> None:
    lines = {id(row): number for number, row in enumerate(table.rows, start=2)}
    for row, expected_us in _strays(table):
        refuse(
            path,
            f"line {lines[id(row)]}: median_us is {row.median_us:g}, while rows like it make one expect "
            f"{expected_us:.3g}",
            _FIX,
        )


def _strays(table: LatencyTable) -> list[tuple[Row, float]]:
    """Return rows further than `MOST_ASTRAY` times from what the others of their family say, and from their
    neighbours."""
    found = []
    for row, expected_us, nearest_us, shown_us in predicted_without(table):
        if all(
            abs(math.log(shown_us / other)) > math.log(MOST_ASTRAY) for other in (expected_us, *nearest_us)
        ):
            found.append((row, expected_us))
    return sorted(found, key=lambda item: -abs(math.log(item[0].median_us / item[1])))
