"""Merging and comparing profiles, with numbers by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from profile_samples import FIT, example, source

from autocompress import api_profile
from autocompress.cost.layouts import Layouts
from autocompress.device.profile.diff import profile_difference
from autocompress.device.profile.latency_table import LatencyTable, Row
from autocompress.device.profile.merging import merge_profiles, weighted_median
from autocompress.device.profile.profile import DeviceProfile, LatencyFit
from autocompress.device.profile.validation import Prediction, Validation
from autocompress.device.profile_files.store import read_profile, write_profile
from autocompress.device.runtimes.description import DeviceDescription
from autocompress.errors import ProfileError

OTHER = LatencyFit({"conv.fp32": 0.6, "add.fp32": 1.1}, {"conv.fp32": 0.5, "add.fp32": 2.0}, 4.0)


def other(factor: float = 1.0, count: int = 15) -> DeviceProfile:
    """Another network whose kernels of 16 and 24 channels the example has too."""
    rows = [
        Row(
            row.kernel,
            count,
            1.0,
            factor * row.median_us,
            factor * row.ci95_low_us,
            factor * row.ci95_high_us,
        )
        for row in example().table.rows[1:]
    ]
    points = (Prediction("n", "fp32", 1.0, 1.02),)
    own = source(network="vit", fit=OTHER, networks=6, input_shape=(1, 3, 224, 224))
    validation = Validation(count=1, error95=0.02, networks=points)
    return replace(example(), sources=(own,), fit=OTHER, table=LatencyTable(rows), validation=validation)


def test_a_weighted_median_by_hand():
    assert weighted_median([3.0, 1.0, 2.0], [1, 1, 1]) == 2.0
    assert weighted_median([1.0, 2.0], [1, 1]) == 1.5
    assert weighted_median([1.0, 2.0], [1, 3]) == 2.0
    assert weighted_median([5.0], [2]) == 5.0


def test_sources_follow_each_other_and_keep_their_fits(tmp_path: Path):
    merged = merge_profiles([example(), other()], "both")
    assert [one.network for one in merged.sources] == ["resnet20", "vit"]
    assert [one.fit for one in merged.sources] == [FIT, OTHER]
    assert merged.for_network((1, 3, 224, 224), "abc").fit == OTHER
    assert merged.for_network((1, 3, 32, 32), "abc").relative_error == 0.04
    write_profile(tmp_path / "both", merged)
    again = read_profile(tmp_path / "both")
    assert (again.sources, again.fingerprint) == (merged.sources, merged.fingerprint)


def test_the_pooled_fit_is_weighted_by_networks():
    """The example has 2 networks, the other 6, so the median is the other's."""
    merged = merge_profiles([example(), other()])
    assert merged.fit == OTHER
    equal = replace(example(), sources=(source(networks=6),))
    assert merge_profiles([equal, other()]).fit.scales["conv.fp32"] == pytest.approx((0.9 + 0.6) / 2)


def test_equal_kernels_are_pooled_by_their_counts():
    merged = merge_profiles([example(), other(1.5)])
    rows = {row.kernel.in_channels: row for row in merged.table.rows}
    assert sorted(rows) == [8, 16, 24]
    assert (rows[8].count, rows[8].median_us) == (5, 4.0)
    assert (rows[16].count, rows[16].median_us) == (20, 12.0)
    assert (rows[16].ci95_low_us, rows[16].ci95_high_us) == (7.5, 12.75)


def test_a_source_whose_kernels_moved_is_trusted_less():
    """Of the example's 4, 8 and 12 µs the last two become 12 and 18; 0.9 · 24 - 3 · 1.5 = 17.1 µs in all
    become 0.9 · 34 - 4.5 = 26.1."""
    merged = merge_profiles([example(), other(1.5)])
    shift = 26.1 / 17.1 - 1
    assert merged.validation_of(0).pooling_shift == pytest.approx(shift)
    assert merged.validation_of(0).error95 == pytest.approx((0.04**2 + (1.96 * shift) ** 2) ** 0.5)
    assert merged.validation_of(1).error95 == 0.02
    assert merged.relative_error == merged.validation_of(0).error95


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": "openvino"},
        {"threads": 2},
        {"batch": 8},
        {"layouts": Layouts(16, False)},
        {"device": DeviceDescription({"cpu": "Another"})},
    ],
)
def test_other_devices_and_settings_are_not_merged(change: dict[str, object]):
    with pytest.raises(ProfileError, match="cannot be merged") as caught:
        merge_profiles([example(), replace(other(), **change)])
    assert caught.value.where in {*change, "cpu"}
    with pytest.raises(ProfileError, match="no profile"):
        merge_profiles([])


def test_a_difference_by_hand():
    slower = replace(
        other(1.2), threads=2, device=DeviceDescription({"cpu": "An Example", "governor": "powersave"})
    )
    found = profile_difference(example(), slower)
    assert found.settings == {
        "threads": (1, 2),
        "usable_cores": (2, None),
        "governor": (None, "powersave"),
    }
    assert (found.in_common, found.only_in_first, found.only_in_second) == (2, 1, 0)
    assert found.every.median_ratio == pytest.approx(1.2)
    assert found.families["conv.fp32"].beyond_10_percent == 1.0
    same = profile_difference(example(), example())
    assert same.settings == {}
    assert (same.every.median_ratio, same.every.beyond_5_percent) == (1.0, 0.0)
    nothing = replace(other(), table=LatencyTable([]))
    assert profile_difference(example(), nothing).to_json()["all"] == {"count": 0, "median_ratio": None}


def test_merging_does_not_write_over_a_profile(tmp_path: Path):
    for name, one in (("a", example()), ("b", other())):
        write_profile(tmp_path / name, one)
    merged = api_profile.merge_profiles([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert len(merged.sources) == 2
    with pytest.raises(ProfileError, match="exists"):
        api_profile.merge_profiles([tmp_path / "a"], tmp_path / "c")
    assert len(api_profile.merge_profiles([tmp_path / "a"], tmp_path / "c", overwrite=True).sources) == 1
    assert api_profile.diff_profiles(tmp_path / "a", tmp_path / "c")["all"]["median_ratio"] == 1.0


def test_a_measurement_does_not_count_twice():
    (source,) = example().sources
    once = replace(example(), sources=(replace(source, measured_at="2026-01-01T00:00:00+00:00"),))
    with pytest.raises(ProfileError, match="cannot be merged") as caught:
        merge_profiles([once, other(), replace(once, name="copy")])
    assert "count twice" in caught.value.why
