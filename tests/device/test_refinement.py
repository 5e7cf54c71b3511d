"""Kernel times that the profiler saw wrongly are put right by what whole networks took."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from autocompress.cost.kernels import Kernel
from autocompress.device.measure.log import Timed, Timing
from autocompress.device.profile.fitting import fitted, predicted_us, rows
from autocompress.device.profile.latency_table import LatencyTable
from autocompress.device.profile.profile import LatencyFit
from autocompress.device.profile.refinement import FEWEST_NETWORKS, refined

PLAIN = LatencyFit({}, {}, 0.0)
WIDTHS = range(8, 65, 8)


def conv(read: int, written: int) -> Kernel:
    sizes = {"height": 16, "width": 16, "in_elements": 256 * read, "out_elements": 256 * written}
    return Kernel("conv", "fp32", read, written, kernel_height=3, kernel_width=3, **sizes)


def true_us(kernel: Kernel) -> float:
    return 2.0 + kernel.macs / 4e4


def networks(count: int, seen_us: Callable[[Kernel], float], seed: int = 0) -> list[Timed]:
    rng = random.Random(seed)
    found = []
    for index in range(count):
        drawn = [conv(rng.choice(WIDTHS), rng.choice(WIDTHS)) for _ in range(8)]
        latency_ms = sum(map(true_us, drawn)) / 1e3
        timings = tuple(Timing(kernel, seen_us(kernel), 1) for kernel in drawn)
        found.append(Timed(f"n{seed}.{index}", "fp32", latency_ms, 1.0, timings))
    return found


def latencies_us(timed: list[Timed]) -> NDArray[np.float64]:
    return np.array([item.latency_ms * 1e3 for item in timed])


def error(table: LatencyTable) -> float:
    return float(np.mean([abs(row.median_us / true_us(row.kernel) - 1) for row in table.rows]))


def test_errors_of_single_kernels_are_found():
    def disturbed(kernel: Kernel) -> float:
        return true_us(kernel) * (1.3 if kernel.out_channels == 64 else 0.9 if kernel.in_channels == 8 else 1)

    timed = networks(120, disturbed)
    table = LatencyTable(rows(timed))
    better = refined(table, PLAIN, timed, latencies_us(timed))
    assert error(table) > 0.03
    assert error(better) < error(table) / 3
    assert [row.kernel for row in better.rows] == [row.kernel for row in table.rows]


def test_kernels_that_were_never_seen_profit_too():
    def disturbed(kernel: Kernel) -> float:
        return true_us(kernel) * (1.0 + 0.2 * (kernel.out_channels > 32))

    timed = networks(60, disturbed)
    without = [item for item in timed if all(t.kernel != conv(40, 48) for t in item.kernels)]
    assert len(without) < len(timed)
    before = LatencyTable(rows(without))
    after = refined(before, PLAIN, without, latencies_us(without))
    truth = true_us(conv(40, 48))
    errors = [abs(table.lookup(conv(40, 48)).median_us / truth - 1) for table in (before, after)]
    assert errors[1] < errors[0] / 2


def test_what_agrees_is_left_as_it_is():
    timed = networks(40, true_us)
    table = LatencyTable(rows(timed))
    better = refined(table, PLAIN, timed, latencies_us(timed))
    for row, other in zip(table.rows, better.rows, strict=True):
        assert other.median_us == pytest.approx(row.median_us, rel=1e-3)
        assert other.ci95_high_us - other.ci95_low_us == pytest.approx(
            row.ci95_high_us - row.ci95_low_us, abs=3e-4
        )


def test_noise_of_networks_moves_no_kernel_far():
    rng = random.Random(5)
    timed = networks(30, true_us)
    noisy = np.array([item.latency_ms * 1e3 * rng.choice((0.3, 1.0, 3.0)) for item in timed])
    table = LatencyTable(rows(timed))
    for row, other in zip(table.rows, refined(table, PLAIN, timed, noisy).rows, strict=True):
        assert 0.49 <= other.median_us / row.median_us <= 1.51
        assert other.ci95_low_us <= other.median_us <= other.ci95_high_us


def test_few_networks_change_nothing():
    timed = networks(FEWEST_NETWORKS - 1, lambda kernel: 2 * true_us(kernel))
    table = LatencyTable(rows(timed))
    assert refined(table, PLAIN, timed, latencies_us(timed)) is table


def test_unseen_networks_are_predicted_better():
    rng = random.Random(3)
    errors = {conv(a, b): rng.choice((0.85, 1.0, 1.2)) for a in WIDTHS for b in WIDTHS}
    timed = networks(150, lambda kernel: true_us(kernel) * errors[kernel])
    unseen = networks(40, true_us, seed=1)
    table, fit = fitted(timed, latencies_us(timed))
    raw = LatencyTable(rows(timed))

    def mean_error(used: LatencyTable) -> float:
        return float(
            np.mean(
                [
                    abs(predicted_us(used, fit, (t.kernel for t in item.kernels)) / item.latency_ms / 1e3 - 1)
                    for item in unseen
                ]
            )
        )

    assert mean_error(table) < 0.01
    assert mean_error(table) < mean_error(raw) / 2
