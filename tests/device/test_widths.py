"""Steps and precisions that pay, from staircases made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from profile_samples import example

from autocompress.cost.kernels import Kernel
from autocompress.device.profile.latency_table import LatencyTable, Row
from autocompress.device.profile.profile import DeviceProfile, LatencyFit
from autocompress.device.profile.widths import coverage, precision_gains, widths_that_pay


def kernel(out: int, inner: int = 16, precision: str = "fp32", groups: int = 1) -> Kernel:
    sizes = {"height": 8, "width": 8, "kernel_height": 3, "kernel_width": 3, "groups": groups}
    return Kernel("conv", precision, inner, out, in_elements=64 * inner, out_elements=64 * out, **sizes)


def profile(times_us: dict[Kernel, float]) -> DeviceProfile:
    rows = [Row(each, 5, 1.0, time, 0.99 * time, 1.01 * time) for each, time in times_us.items()]
    return replace(example(), table=LatencyTable(rows), fit=LatencyFit({}, {}, 0.0))


def steps_of(time_us: Callable[[int], float], widths: range) -> int | None:
    (found,) = widths_that_pay(profile({kernel(width): time_us(width) for width in widths}))
    assert found.steps["in"] is None
    return found.steps["out"]


def test_a_staircase_tells_its_step():
    assert steps_of(lambda width: 1.0 + -(-width // 16), range(4, 65, 4)) == 16
    assert steps_of(lambda width: 1.0 + -(-width // 8), range(4, 65, 4)) == 8
    assert steps_of(lambda width: 1.0 + width, range(4, 65, 4)) == 1
    assert steps_of(lambda _: 5.0, range(4, 65, 4)) == 64


def test_odd_widths_that_are_slower_are_shown_with_numbers():
    times = {width: 28.0 if width % 16 == 0 else 37.0 for width in range(4, 65, 4)}
    (found,) = widths_that_pay(profile({kernel(width): time for width, time in times.items()}))
    assert found.steps["out"] == 64
    assert found.cliffs[0].words == "out width 12 takes 37.0 µs, 16 28.0 µs"


def test_steps_of_inputs_and_outputs_differ():
    times = {
        kernel(out, inner): (1.0 + inner) * (1 + -(-out // 16))
        for out in range(4, 65, 4)
        for inner in range(4, 65, 4)
    }
    (found,) = widths_that_pay(profile(times))
    assert found.steps == {"in": 1, "out": 16}
    assert found.words == "in: any width, out: multiples of 16"


def test_depthwise_channels_are_counted_once():
    times = {kernel(width, width, groups=width): 1.0 + -(-width // 8) for width in range(4, 65, 4)}
    (found,) = widths_that_pay(profile(times))
    assert (found.group, found.steps) == ("depthwise.fp32", {"out": 8})


def test_a_single_width_says_so():
    (found,) = widths_that_pay(profile({kernel(16): 5.0}))
    assert found.steps == {"in": None, "out": None}
    assert found.words == "a single width was measured, so nothing is known of steps"
    (row,) = coverage(profile({kernel(16): 5.0}))
    assert row.widths == found
    assert (row.out_channels, row.median_us) == ((16, 16), (5.0, 5.0))


def test_too_few_pairs_claim_nothing():
    (found,) = widths_that_pay(profile({kernel(8): 5.0, kernel(16): 5.0}))
    assert found.steps["out"] is None
    assert "too few" in found.words


def test_a_precision_that_never_helps_is_told():
    floats = {kernel(width): 10.0 for width in (8, 16, 24)}
    slow = {kernel(width, precision="int8"): time for width, time in ((8, 12.0), (16, 13.0), (24, 20.0))}
    (gain,) = precision_gains(profile({**floats, **slow}))
    assert gain.never_faster
    assert gain.ratios == pytest.approx((1.2, 1.3, 2.0))
    assert gain.words == "never faster than fp32: 1.30× as long (1.20–2.00, 3 shapes)"
    fast = {**slow, kernel(8, precision="int8"): 9.0}
    assert not precision_gains(profile({**floats, **fast}))[0].never_faster


def test_the_profilers_overhead_does_not_count():
    """Of 3 and 4 µs shown, 2 are the profiler's: the int8 kernel takes twice as long, not a third longer."""
    rows = profile({kernel(8): 3.0, kernel(8, precision="int8"): 4.0})
    fit = LatencyFit({"conv.fp32": 1.0, "conv.int8": 1.0}, {"conv.fp32": 2.0, "conv.int8": 2.0}, 0.0)
    (gain,) = precision_gains(replace(rows, fit=fit))
    assert gain.ratios[1] == pytest.approx(2.0)
