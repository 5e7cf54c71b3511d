"""Kernel times corrected by what whole networks took.

A kernel's median is that of the runtime's profiler, which counts in whole microseconds and disturbs what
it times. Each network's latency says what its kernels take together. The relative errors of the kernels are
a Gaussian process: a part of each kernel's own, and a part that kernels of one family with similar work
share. It is observed through the networks, whose latencies are sums over their kernels (Rasmussen and
Williams 2006, chapter 2, ISBN 026218253X).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autocompress.device.measure.log import Timed
from autocompress.device.profile.latency_table import LatencyTable, Row, work

if TYPE_CHECKING:
    from autocompress.device.profile.profile import LatencyFit

OWN_SPREAD, SHARED_SPREAD = 0.1, 0.2
"""Standard deviations of a kernel's relative error: its own, and what it shares with its like."""

REACH = 1.0
"""How far apart in `work` kernels still share errors: in logarithms, so a factor of about 2.7."""

NOISE = 0.01
MOST_CHANGE = 0.5
"""Share by which a kernel is moved at the most: more would be the noise of networks, not its own error."""

LEAST_KERNEL_US = 0.01
FEWEST_NETWORKS = 8


def refined(
    table: LatencyTable, fit: LatencyFit, timed: Sequence[Timed], latencies_us: NDArray[np.float64]
) -> LatencyTable:
    """Return the table with every row moved to where the networks' latencies, given the fit, expect it.

    Widths of intervals stay. With fewer than `FEWEST_NETWORKS` networks the table itself is returned.
    """
    if len(timed) < FEWEST_NETWORKS:
        return table
    rows = table.rows
    times_us = np.array([fit.kernel_us(row.kernel, row.median_us, row.operations) for row in rows])
    shares = _occurrences(rows, timed) * times_us / latencies_us[:, None]
    residuals = 1 - shares.sum(axis=1) - fit.constant_us / latencies_us
    spread = _covariance(rows)
    seen = spread @ shares.T
    inner = shares @ seen + NOISE**2 * np.eye(len(timed))
    changes = np.clip(seen @ np.linalg.solve(inner, residuals), -MOST_CHANGE, MOST_CHANGE)
    changes_us = changes * times_us
    return LatencyTable(
        _moved(row, change_us / fit.scales.get(row.kernel.group, fit.typical_scale))
        for row, change_us in zip(rows, changes_us.tolist(), strict=True)
    )


def _occurrences(rows: Sequence[Row], timed: Sequence[Timed]) -> NDArray[np.float64]:
    """Return how often each network, `(networks, rows)`, runs each kernel."""
    place = {row.kernel: index for index, row in enumerate(rows)}
    found = np.zeros((len(timed), len(rows)))
    for index, item in enumerate(timed):
        for timing in item.kernels:
            found[index, place[timing.kernel]] += 1
    return found


def _covariance(rows: Sequence[Row]) -> NDArray[np.float64]:
    """Return the covariance of the relative errors, `(rows, rows)`."""
    spread = np.diag(np.full(len(rows), OWN_SPREAD**2))
    families: dict[tuple[object, ...], list[int]] = {}
    for index, row in enumerate(rows):
        families.setdefault(row.kernel.family, []).append(index)
    for members in families.values():
        points = np.stack([work(rows[index].kernel) for index in members])
        squares = (points**2).sum(axis=1)
        distances = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0.0)
        spread[np.ix_(members, members)] += SHARED_SPREAD**2 * np.exp(-distances / (2 * REACH**2))
    return spread


def _moved(row: Row, change_us: float) -> Row:
    median_us = max(row.median_us + change_us, LEAST_KERNEL_US)
    below, above = row.median_us - row.ci95_low_us, row.ci95_high_us - row.median_us
    times = (median_us, max(0.0, median_us - below), median_us + min(above, median_us))
    median_us, low_us, high_us = (round(value, 4) for value in times)
    return replace(row, median_us=median_us, ci95_low_us=low_us, ci95_high_us=high_us)
