"""Measured kernels are answered by their rows, others from the nearest, and unknown ones not at all."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.cost.kernels import Kernel
from autocompress.device.profile.latency_table import LatencyTable, Row
from autocompress.errors import ProfileError


def convolution(channels: int, size: int = 16, *, stride: int = 1, precision: str = "fp32") -> Kernel:
    return Kernel(
        "conv",
        precision,
        in_channels=channels,
        out_channels=channels,
        height=size,
        width=size,
        kernel_height=3,
        kernel_width=3,
        stride=stride,
        in_elements=channels * (size * stride) ** 2,
        out_elements=channels * size**2,
        nodes=("somewhere",),
    )


def row(kernel: Kernel, median_us: float, count: int = 5) -> Row:
    return Row(kernel, count, 1.0, median_us, 0.9 * median_us, 1.1 * median_us)


def law(kernel: Kernel) -> float:
    """2 µs and 100 multiply-adds a nanosecond."""
    return 2.0 + kernel.macs / 1e5


def table(*sizes: int) -> LatencyTable:
    kernels = [convolution(channels, size) for channels in (16, 32, 64, 128) for size in sizes]
    return LatencyTable(row(kernel, law(kernel)) for kernel in kernels)


def test_a_measured_kernel_is_answered_by_its_row():
    found = LatencyTable([row(convolution(16), 7.0), row(convolution(18), 30.0)]).lookup(convolution(16))
    assert (found.median_us, found.operations, found.how) == (7.0, 1.0, "measured")
    assert found.relative_error == pytest.approx(0.1)


def test_a_cliff_between_measured_kernels_stays():
    steps = LatencyTable([row(convolution(16), 7.0), row(convolution(18), 30.0), row(convolution(32), 8.0)])
    assert [steps.lookup(convolution(channels)).median_us for channels in (16, 18, 32)] == [7.0, 30.0, 8.0]


@pytest.mark.parametrize(("channels", "size"), [(48, 8), (48, 16), (96, 16), (112, 32), (80, 8)])
def test_in_between_it_is_interpolated_within_its_error(channels: int, size: int):
    kernel = convolution(channels, size)
    found = table(8, 16, 32).lookup(kernel)
    assert found.how == "interpolated"
    assert found.median_us == pytest.approx(law(kernel), rel=0.25)


def test_the_interpolation_rises_with_the_work():
    known = table(8, 16, 32)
    times = [known.lookup(convolution(channels, 24)).median_us for channels in (16, 32, 48, 64, 96, 128)]
    assert times == sorted(times)


def test_noisier_rows_give_a_wider_interval():
    rng = np.random.default_rng(0)
    kernels = [convolution(channels, size) for channels in (16, 32, 48, 64) for size in (8, 12, 16, 20)]
    noisy = LatencyTable(row(kernel, law(kernel) * np.exp(0.3 * rng.standard_normal())) for kernel in kernels)
    smooth = LatencyTable(row(kernel, law(kernel)) for kernel in kernels)
    wanted = convolution(40, 16)
    assert noisy.lookup(wanted).relative_error > 2 * smooth.lookup(wanted).relative_error


def test_an_interpolation_is_never_called_exact():
    assert table(8, 16, 32).lookup(convolution(48)).relative_error >= 0.05


def test_another_form_of_a_measured_operation_is_answered_with_little_confidence():
    found = table(8, 16).lookup(convolution(32, 8, stride=2))
    assert found.how == "interpolated"
    assert found.relative_error >= 0.5


def test_one_row_is_enough_to_answer_from():
    found = LatencyTable([row(convolution(16), 7.0)]).lookup(convolution(32))
    assert found.median_us > 0
    assert found.relative_error >= 0.5


@pytest.mark.parametrize("kernel", [convolution(16, precision="int8"), Kernel("softmax", "fp32")])
def test_an_unknown_operation_is_an_error_that_names_it(kernel: Kernel):
    with pytest.raises(ProfileError, match=f"no {kernel.op} kernels in {kernel.precision}"):
        table(8, 16).lookup(kernel)


def test_missing_operations_are_listed():
    wanted = [
        convolution(16),
        Kernel("softmax", "fp32"),
        convolution(24, precision="int8"),
        Kernel("softmax", "fp32"),
    ]
    assert table(8, 16).missing(wanted) == ("softmax fp32", "conv int8")


def test_coverage_counts_rows():
    known = LatencyTable(
        [row(convolution(16), 1.0), row(convolution(32), 2.0), row(Kernel("add", "int8"), 1.0)]
    )
    assert known.coverage == {"conv fp32": 2, "add int8": 1}
