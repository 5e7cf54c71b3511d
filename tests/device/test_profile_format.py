"""Profiles of older formats and of strangers: golden files, units, links, pipes, and which source speaks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from places import GOLDEN, ROOT
from profile_samples import FIT, cell, edit, example, source

from autocompress import files
from autocompress.cost.kernels import Kernel
from autocompress.device.profile.latency_table import LatencyTable, Row
from autocompress.device.profile.profile import DeviceProfile, LatencyFit
from autocompress.device.profile.sources import kernels_fingerprint
from autocompress.device.profile.validation import Validation
from autocompress.device.profile_files.store import (
    KERNELS,
    PROFILE,
    VALIDATION,
    load_profile,
    read_profile,
    write_profile,
)
from autocompress.errors import ProfileError


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "profile-2", tmp_path / "profile-2")
    return tmp_path / "profile-2"


def test_format_1_is_read_as_one_source():
    found = load_profile(GOLDEN / "profile-1")
    (only,) = found.sources
    assert (only.space, only.input_shape, only.networks) == ("joint", (1, 3, 32, 32), 60)
    assert only.measured_at == "2026-11-24T18:13:27+00:00"
    assert only.fit == found.fit
    assert found.fit.scales["conv.int8"] == 0.9545303922728509
    assert found.relative_error == pytest.approx(0.12752800126734698)
    assert found.fingerprint == "51ac19214c32a01b"


def test_format_2_is_read():
    found = load_profile(GOLDEN / "profile-2")
    assert [one.network for one in found.sources] == ["load", "timm:resnet18"]
    first, second = (one.fit.scales["conv.fp32"] for one in found.sources)
    assert second == pytest.approx(1.02 * first)
    assert found.validation_of(1).error95 == pytest.approx(0.05)
    assert found.fingerprint == "602834b9aa02c592"


@pytest.mark.parametrize("name", files.names("hardware_profiles"))
def test_every_shipped_profile_is_the_same_when_it_is_written_again(name: str, tmp_path: Path):
    found = load_profile(name)
    write_profile(tmp_path / name, found)
    again = load_profile(tmp_path / name)
    assert again.table.rows == found.table.rows
    assert again.fingerprint == found.fingerprint
    assert again.validation == found.validation
    written = (tmp_path / name / VALIDATION).read_bytes()
    assert written == (ROOT / "hardware_profiles" / name / VALIDATION).read_bytes()


def test_what_a_later_version_adds_to_a_validation_is_kept(golden: Path):
    data = json.loads((golden / VALIDATION).read_text())
    data["later"], data["sources"][0]["later"] = [1], 2
    (golden / VALIDATION).write_text(json.dumps(data))
    write_profile(golden, read_profile(golden))
    assert json.loads((golden / VALIDATION).read_text()) == data


@pytest.mark.parametrize("name", ["profile-1", "profile-2"])
def test_a_profile_written_again_prices_the_same(name: str, tmp_path: Path):
    before = load_profile(GOLDEN / name)
    write_profile(tmp_path / name, before)
    after = load_profile(tmp_path / name)
    assert after.fingerprint == before.fingerprint
    assert after.sources == before.sources


def test_a_later_format_says_which_are_known(golden: Path):
    edit(golden / PROFILE, lambda text: text.replace("format: 2", "format: 3"))
    with pytest.raises(ProfileError, match="cannot be used") as caught:
        read_profile(golden)
    assert "formats 1 and 2" in caught.value.why
    assert "update autocompress" in caught.value.fix


def scaled(factor: float, *lines: int) -> Callable[[str], str]:
    """Multiplies the times of rows, all of them when no lines are given."""

    def change(text: str) -> str:
        head, *rows = [line.split(",") for line in text.splitlines()]
        for number, row in enumerate(rows, start=2):
            if not lines or number in lines:
                row[-3:] = [f"{float(value) * factor:.7f}" for value in row[-3:]]
        return "\n".join(",".join(row) for row in (head, *rows)) + "\n"

    return change


@pytest.mark.parametrize("factor", [1000, 1 / 1000, 50, 1 / 50], ids=["ns", "ms", "50", "1/50"])
def test_a_whole_table_in_another_unit_is_refused(golden: Path, factor: float):
    edit(golden / KERNELS, scaled(factor))
    with pytest.raises(ProfileError) as caught:
        read_profile(golden)
    assert KERNELS in caught.value.where
    assert "microseconds" in caught.value.fix


def test_every_single_row_in_milliseconds_is_refused(golden: Path):
    text = (golden / KERNELS).read_text()
    for line in range(2, len(text.splitlines()) + 1):
        (golden / KERNELS).write_text(scaled(1 / 1000, line)(text))
        median = float(text.splitlines()[line - 1].split(",")[-3])
        if median > 10:
            continue
        with pytest.raises(ProfileError) as caught:
            read_profile(golden)
        assert f"line {line}" in caught.value.why


def test_a_row_in_nanoseconds_is_refused(golden: Path):
    edit(golden / KERNELS, scaled(1000, 3))
    with pytest.raises(ProfileError) as caught:
        read_profile(golden)
    assert "line 3" in caught.value.why
    assert "longer than the slowest" in caught.value.why


def staircase(times_us: dict[int, float]) -> list[Row]:
    def kernel(width: int) -> Kernel:
        sizes = {"height": 8, "width": 8, "in_elements": 1024, "out_elements": 64 * width}
        return Kernel("conv", "fp32", 16, width, kernel_height=3, kernel_width=3, **sizes)

    return [Row(kernel(width), 5, 1.0, time, 0.95 * time, 1.05 * time) for width, time in times_us.items()]


def test_a_row_far_from_its_family_is_refused_and_a_cliff_is_not(tmp_path: Path):
    smooth = {width: 2.0 + width / 4 for width in range(8, 96, 8)}
    cliff = {**smooth, 44: 8 * smooth[40], 60: smooth[64] / 8}
    write_profile(tmp_path / "cliff", replace(example(), table=LatencyTable(staircase(cliff))))
    assert read_profile(tmp_path / "cliff").table.rows[-2].median_us == 96.0
    mixed = {**smooth, 40: 1000 * smooth[40]}
    write_profile(tmp_path / "mixed", replace(example(), table=LatencyTable(staircase(mixed))))
    with pytest.raises(ProfileError) as caught:
        read_profile(tmp_path / "mixed")
    assert "line 6: median_us is 12000" in caught.value.why


def test_points_in_another_unit_are_refused(golden: Path):
    data = json.loads((golden / VALIDATION).read_text())
    data["networks"][2]["measured_ms"] *= 1000
    (golden / VALIDATION).write_text(json.dumps(data))
    with pytest.raises(ProfileError) as caught:
        read_profile(golden)
    assert "networks[2]" in caught.value.why
    assert "milliseconds" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data["networks"][0].update(measured_ms=-1), "networks[0].measured_ms"),
        (lambda data: data["networks"][0].update(measured_ms=0), "networks[0].measured_ms"),
        (lambda data: data["networks"][0].pop("predicted_ms"), "networks[0].predicted_ms"),
        (lambda data: data["networks"].append(7), "networks["),
        (lambda data: data.update(networks={}), "networks is not a list"),
        (lambda data: data.update(count=-1), "count"),
        (lambda data: data.update(within_5_percent=80), "within_5_percent"),
        (lambda data: data.update(rank_correlation=-3), "rank_correlation"),
        (lambda data: data.update(error95=0), "error95"),
        (lambda data: data["sources"].pop(), "one entry for each"),
        (lambda data: data["sources"][1].update(error95="low"), "sources[1].error95"),
        (lambda data: data["by_precision"].update(int8=3), "by_precision.int8"),
    ],
)
def test_the_validation_is_checked_too(golden: Path, change: Callable[[Any], Any], why: str):
    data = json.loads((golden / VALIDATION).read_text())
    change(data)
    (golden / VALIDATION).write_text(json.dumps(data))
    with pytest.raises(ProfileError) as caught:
        read_profile(golden)
    assert why in caught.value.why


@pytest.mark.parametrize(
    ("text", "why"),
    [('{"count": 1, "count": 2}', "'count' stands twice"), ('{"error95": NaN}', "NaN"), ("[" * 9999, "JSON")],
)
def test_json_that_is_not_strict_is_refused(golden: Path, text: str, why: str):
    (golden / VALIDATION).write_text(text)
    with pytest.raises(ProfileError) as caught:
        read_profile(golden)
    assert why in caught.value.why


@pytest.mark.parametrize("name", [PROFILE, KERNELS, VALIDATION])
def test_pipes_folders_and_links_out_of_the_folder_are_refused_at_once(golden: Path, name: str):
    kept = (golden / name).read_bytes()
    outside = golden.parent / "outside"
    outside.write_bytes(kept)
    makers: dict[str, Callable[[Path], Any]] = {
        "not a plain file": os.mkfifo,
        "folder": Path.mkdir,
        "link out of the folder": lambda path: path.symlink_to(outside),
        "": lambda path: path.symlink_to(path),
    }
    for why, make in makers.items():
        (golden / name).rmdir() if (golden / name).is_dir() else (golden / name).unlink()
        make(golden / name)
        with pytest.raises(ProfileError) as caught:
            read_profile(golden)
        assert why in caught.value.why
        assert name in caught.value.where
    (golden / name).unlink()
    (golden / f"real-{name}").write_bytes(kept)
    (golden / name).symlink_to(f"real-{name}")
    assert read_profile(golden).threads == 1


def test_an_interval_wider_than_its_median_is_refused(golden: Path):
    edit(golden / KERNELS, lambda text: cell("ci95_high_us", "900.0")(cell("ci95_low_us", "0.0")(text)))
    with pytest.raises(ProfileError) as caught:
        read_profile(golden)
    assert "wider than ± 100% of the median" in caught.value.why


def test_operators_that_no_network_has_are_read_and_counted(golden: Path):
    edit(golden / KERNELS, lambda text: cell("op", "warp")(text))
    found = read_profile(golden)
    assert found.table.coverage["warp " + found.table.rows[1].kernel.precision] == 1


SECOND_FIT = LatencyFit({"conv.fp32": 0.7}, {"conv.fp32": 1.0}, 1.0)


def of_two() -> DeviceProfile:
    other = source(network="resnet56", teacher_fingerprint="t2", fit=SECOND_FIT, networks=4)
    summaries = (Validation(count=2, error95=0.03), Validation(count=4, error95=0.06))
    validation = Validation(count=6, error95=0.05, sources=summaries)
    return replace(example(), sources=(source(), other), validation=validation)


def test_the_source_of_the_same_teacher_speaks_for_it():
    view = of_two().for_network((1, 3, 32, 32), "abc", "t2")
    assert (view.fit, view.relative_error, view.source_index) == (SECOND_FIT, 0.06, 1)
    assert view.basis == "measured on this network"


def test_the_same_network_with_other_weights_is_known_by_its_kernels():
    kernels = [row.kernel for row in example().table.rows]
    known = kernels_fingerprint(kernels)
    profile = of_two()
    first, second = profile.sources
    profile = replace(profile, sources=(first, replace(second, kernels_fingerprint=known)))
    more_classes = [*kernels[:-1], replace(kernels[-1], out_channels=8, out_elements=64 * 8)]
    for given in (kernels, more_classes):
        view = profile.for_network((1, 3, 32, 32), "abc", "t3", given)
        assert (view.source_index, view.relative_error) == (1, 0.06)
        assert view.basis == "measured on this network with other weights"


def test_in_another_space_the_same_network_is_not_trusted_so_far():
    view = of_two().for_network((1, 3, 32, 32), "other", "t2")
    assert view.fit == SECOND_FIT
    assert view.relative_error == 0.1
    assert view.basis == "measured on this network, in the space 'joint'"


def test_a_single_source_of_the_same_space_and_size_speaks_for_others():
    view = example().for_network((1, 3, 32, 32), "abc", "another")
    assert (view.source_index, view.relative_error) == (0, 0.04)
    assert view.basis == "measured on resnet20 in the same space and input size"


def test_of_several_sources_alike_the_largest_error_counts():
    view = of_two().for_network((1, 3, 32, 32), "abc", "another")
    assert (view.source_index, view.fit, view.relative_error) == (None, FIT, 0.06)


@pytest.mark.parametrize(("shape", "space"), [((1, 3, 64, 64), "abc"), ((1, 3, 32, 32), "other")])
def test_what_no_source_covers_is_never_trusted_more(shape: tuple[int, ...], space: str):
    view = of_two().for_network(shape, space, "another", [of_two().table.rows[0].kernel])
    assert view.relative_error >= 0.1
    assert view.basis.startswith("not measured")
    far = replace(of_two().table.rows[0].kernel, in_channels=512, stride=2)
    assert of_two().for_network(shape, space, "another", [far]).relative_error >= 0.5


def test_what_cannot_be_priced_is_refused_with_its_operations():
    with pytest.raises(ProfileError, match="cannot price") as caught:
        of_two().for_network((1, 3, 32, 32), "abc", "t1", [Kernel("softmax", "fp32")])
    assert caught.value.where == "softmax fp32"
