"""From measured networks to a latency table, the fit that turns it into latencies, and its error.

Kernel times come from the runtime's profiler, what they add up to from latencies without it. For each
group of kernels a scale near 1 and the profiler's overhead of one operation are fitted, so that the
sums agree with the latencies.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autocompress.cost.kernels import Kernel
from autocompress.device.measure.log import Timed
from autocompress.device.profile.latency_table import LatencyTable, Row
from autocompress.device.profile.profile import LatencyFit
from autocompress.device.profile.refinement import LEAST_KERNEL_US, refined
from autocompress.device.profile.validation import Prediction, Unpredicted, Validation, validation_of
from autocompress.errors import ProfileError

FOLDS = 5
NOISE = 0.015
"""Share by which a latency and the sum of its kernels differ, for reasons that no fit explains."""

SCALE_SPREAD, OVERHEAD_SPREAD_US = 0.1, 0.8
DRIFT_WINDOW = 9
DECIMALS = 4
FEW = 2


def fitted(timed: Sequence[Timed], latencies_us: NDArray[np.float64]) -> tuple[LatencyTable, LatencyFit]:
    """Return the table of all kernels, and the fit to the whole-network latencies in µs.

    The latencies decide scales and overheads of the groups first, then single kernels, then both together.
    """
    table = LatencyTable(rows(timed))
    table = refined(table, _fit(table, timed, latencies_us), timed, latencies_us)
    return table, _fit(table, timed, latencies_us)


def rows(timed: Iterable[Timed]) -> list[Row]:
    """Return one row a kernel: medians over all places where it occurred."""
    found: dict[Kernel, list[tuple[float, int]]] = {}
    for item in timed:
        for timing in item.kernels:
            seen = (max(timing.time_us, LEAST_KERNEL_US), timing.operations)
            found.setdefault(timing.kernel, []).append(seen)
    return [_row(replace(kernel, nodes=()), *zip(*seen, strict=True)) for kernel, seen in found.items()]


def _row(kernel: Kernel, times_us: tuple[float, ...], operations: tuple[int, ...]) -> Row:
    """Return the row of a kernel. Its interval is that of a median of normally spread values, for few values
    ± 20 %; at most ± 100 %."""
    median = float(np.median(times_us))
    few = len(times_us) <= FEW
    half = 0.2 * median if few else 1.96 * 1.2533 * float(np.std(times_us)) / np.sqrt(len(times_us))
    half = min(half, median)
    values = (float(np.median(operations)), median, max(0.0, median - half), median + half)
    return Row(kernel, len(times_us), *(round(float(value), DECIMALS) for value in values))


def without_drift(timed: Sequence[Timed]) -> NDArray[np.float64]:
    """Return latencies in µs as if the machine had been as fast as usual all the time.

    The reference's own noise must not come in, so its median over neighbours in time is used.
    """
    reference = np.array([item.reference_ms for item in timed])
    half = DRIFT_WINDOW // 2
    local = [np.median(reference[max(0, i - half) : i + half + 1]) for i in range(len(timed))]
    latencies = np.array([item.latency_ms for item in timed])
    corrected: NDArray[np.float64] = latencies * np.median(reference) / np.array(local) * 1e3
    return corrected


def _fit(table: LatencyTable, timed: Sequence[Timed], latencies_us: NDArray[np.float64]) -> LatencyFit:
    """Fit by least squares of relative errors, with scales drawn to 1 and overheads to their common value."""
    from scipy.optimize import lsq_linear

    groups = sorted({timing.kernel.group for item in timed for timing in item.kernels})
    medians, operations = _sums(table, timed, groups)
    ones = np.ones((len(timed), 1))
    weight = 1 / (NOISE * latencies_us[:, None])
    common = np.hstack([medians.sum(axis=1, keepdims=True), -operations.sum(axis=1, keepdims=True), ones])
    bounds = ([0.3, 0.0, 0.0], [3.0, 10.0, float(latencies_us.min())])
    overhead = float(lsq_linear(common * weight, latencies_us * weight[:, 0], bounds=bounds).x[1])

    count = len(groups)
    features = np.hstack([medians, -operations, ones]) * weight
    prior = np.array([*[1.0] * count, *[overhead] * count, 0.0])
    spread = np.array([*[SCALE_SPREAD] * count, *[OVERHEAD_SPREAD_US] * count, 10.0])
    least = np.array([*[0.3] * count, *[0.0] * count, 0.0])
    most = np.array([*[3.0] * count, *[10.0] * count, float(latencies_us.min())])
    system = np.vstack([features, np.diag(1 / spread)])
    goal = np.concatenate([latencies_us * weight[:, 0], prior / spread])
    solution = lsq_linear(system, goal, bounds=(least, most)).x.tolist()
    scales = dict(zip(groups, solution[:count], strict=True))
    return LatencyFit(scales, dict(zip(groups, solution[count:-1], strict=True)), solution[-1])


def _sums(
    table: LatencyTable, timed: Sequence[Timed], groups: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each network and group the sum of its kernels' medians in µs and of their operations."""
    place = {group: index for index, group in enumerate(groups)}
    medians, operations = np.zeros((len(timed), len(groups))), np.zeros((len(timed), len(groups)))
    for index, item in enumerate(timed):
        for timing in item.kernels:
            found = table.lookup(timing.kernel)
            medians[index, place[timing.kernel.group]] += found.median_us
            operations[index, place[timing.kernel.group]] += found.operations
    return medians, operations


def predicted_us(table: LatencyTable, fit: LatencyFit, kernels: Iterable[Kernel]) -> float:
    """Return the latency of a network of these kernels. Raises ProfileError where nothing is known of one."""
    total = fit.constant_us
    for kernel in kernels:
        found = table.lookup(kernel)
        total += fit.kernel_us(kernel, found.median_us, found.operations)
    return total


def validation(
    timed: Sequence[Timed], latencies_us: NDArray[np.float64], drawn: Container[str] | None = None
) -> Validation:
    """Return the errors of predicting each network from a table and a fit that it had no part in.

    The networks that were `drawn` at random (all, when not given) are dealt into five parts, and each
    part is predicted from all other networks.
    """
    points, unpredicted = [], []
    random = [index for index, item in enumerate(timed) if drawn is None or item.name in drawn]
    for fold in range(min(FOLDS, len(random))):
        held_out = set(random[fold::FOLDS])
        use = [index for index in range(len(timed)) if index not in held_out]
        if not use:
            continue
        table, fit = fitted([timed[index] for index in use], latencies_us[use])
        for index in sorted(held_out):
            item = timed[index]
            try:
                latency_us = predicted_us(table, fit, (timing.kernel for timing in item.kernels))
            except ProfileError as error:
                unpredicted.append(Unpredicted(item.name, item.precision, error.what))
                continue
            measured_ms, predicted_ms = float(latencies_us[index]) / 1e3, latency_us / 1e3
            points.append(Prediction(item.name, item.precision, measured_ms, predicted_ms))
    return validation_of(points, unpredicted)
