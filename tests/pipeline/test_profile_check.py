"""Checking a profile on its device: real measurements end to end, and what becomes of the numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from any_noise import take_any_noise
from click.testing import CliRunner
from places import NETWORKS
from priced_networks import SPACE, small_resnet

import autocompress as ac
from autocompress.cli.main import main
from autocompress.cost.model import CostModel
from autocompress.device.measure.log import Timed
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile.validation import PredictionErrors, Unpredicted, Validation
from autocompress.device.profile_files.store import PROFILE, load_profile, write_profile
from autocompress.device.profiler import Sample
from autocompress.device.runtimes.description import DeviceDescription
from autocompress.errors import ProfileError
from autocompress.pipeline.profile_check import ProfileCheck, compared, updated
from autocompress.pipeline.profile_device import profile_samples


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of this machine made in a hurry, and the space and teacher that it was made with."""
    folder = tmp_path_factory.mktemp("revalidation")
    (folder / "small.yaml").write_text(SPACE)
    with pytest.MonkeyPatch.context() as patch:
        take_any_noise(patch)
        ac.profile(colour_resnet(), folder / "small.yaml", folder / "device", networks=12, input_size=16)
    return folder


def colour_resnet() -> Any:
    return small_resnet(3)


@pytest.fixture
def device(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    take_any_noise(monkeypatch)
    target = tmp_path / "device"
    write_profile(target, load_profile(made / "device"))
    return target


def validate(device: Path, made: Path, **options: Any) -> dict[str, Any]:
    return ac.validate_profile(
        device, colour_resnet(), made / "small.yaml", input_size=16, networks=6, **options
    )


def test_new_networks_are_measured_and_predicted(device: Path, made: Path):
    before = (device / "validation.json").read_bytes()
    found = validate(device, made)
    known = {point.network for point in load_profile(device).validation.networks}
    names = [point["network"] for point in found["networks"]]
    assert len(names) == len(set(names)) >= 6
    assert not known & set(names)
    assert all(point["measured_ms"] > 0 and point["predicted_ms"] > 0 for point in found["networks"])
    assert found["source"] == 0
    assert found["basis"] == "measured on this network"
    assert (device / "validation.json").read_bytes() == before


def test_an_update_replaces_the_validation_and_nothing_else(device: Path, made: Path):
    before = load_profile(device)
    found = validate(device, made, update=True)
    after = load_profile(device)
    assert after.validation.to_json()["networks"] == found["networks"]
    assert found["count"] < before.validation.count
    assert after.validation.error95 == max(found["error95"], before.validation.error95)
    assert after.table.rows == before.table.rows
    assert after.fingerprint == before.fingerprint


def checked(source: int | None, found: Validation, network: str = "small") -> ProfileCheck:
    return ProfileCheck(
        profile="p", network=network, space="small", basis="not measured", seed=0, measured_at="now",
        device=DeviceDescription(), claimed_error95=0.1, source=source, found=found,
    )  # fmt: skip


def test_an_update_of_one_source_makes_the_totals_of_all(device: Path):
    profile = load_profile(device)
    first = Validation(
        count=20,
        mean_error=0.02,
        largest_error=0.2,
        within_5_percent=0.9,
        within_10_percent=1.0,
        rank_correlation=0.9,
        error95=0.08,
    )
    by_precision = {"int8": PredictionErrors(count=60, mean_error=0.04)}
    second = replace(
        first, count=60, mean_error=0.04, largest_error=0.1, error95=0.05, by_precision=by_precision
    )
    unpredicted = (Unpredicted("another", "fp32", "nothing like it"),)
    merged = replace(
        profile,
        sources=(profile.sources[0], replace(profile.sources[0], network="another")),
        validation=replace(first, count=80, sources=(first, second), unpredicted=unpredicted),
    )
    found = checked(0, replace(first, count=10, mean_error=0.01, error95=0.03))
    after = updated(device, merged, found).validation
    assert after.count == 70
    assert after.mean_error == pytest.approx((10 * 0.01 + 60 * 0.04) / 70)
    assert after.largest_error == 0.2
    assert after.sources[0].error95 == 0.08, "a check of fewer networks made the error smaller"
    assert after.error95 == 0.08
    assert after.by_precision["int8"].count == 60
    assert after.unpredicted == unpredicted
    with pytest.raises(ProfileError, match="checked on no network"):
        updated(device, merged, checked(0, Validation()))


def test_another_seed_measures_other_networks(device: Path, made: Path):
    first, second = (validate(device, made, seed=seed) for seed in (1, 2))
    assert {one["network"] for one in first["networks"]} != {one["network"] for one in second["networks"]}


@pytest.fixture
def sampled(device: Path, made: Path) -> tuple[DeviceProfile, list[Sample]]:
    from autocompress.pipeline.preparation import bound_space, open_teacher
    from autocompress.problem.space import load_space

    bound = bound_space(open_teacher(colour_resnet(), None, 16), load_space(made / "small.yaml"))
    return load_profile(device), list(profile_samples(bound, 8, 5, 1))


def test_errors_are_those_of_the_predictions(sampled: tuple[DeviceProfile, list[Sample]]):
    profile, samples = sampled
    price = CostModel(profile).price
    timed = [
        Timed(sample.name, sample.precision, price(sample.network).latency_ms * factor, 1.0, ())
        for sample, factor in zip(samples, [1.0, 1.0, 1.0, 1.0, 1.25, 1.0, 1.0, 1.0], strict=True)
    ]
    found = compared(profile, samples, timed)
    assert found.count == 8
    assert found.largest_error == pytest.approx(0.2)
    assert found.mean_error == pytest.approx(0.2 / 8)
    assert found.within_5_percent == pytest.approx(7 / 8)
    fewer = compared(profile, samples, timed, frozenset({samples[4].name}))
    assert fewer.count == 7
    assert fewer.largest_error == pytest.approx(0.0, abs=1e-9)
    left_out = compared(profile, samples, timed[:3])
    assert left_out.count == 3


def test_a_network_that_no_source_speaks_for_updates_nothing(device: Path):
    profile = load_profile(device)
    found = checked(None, Validation(), "another")
    with pytest.raises(ProfileError, match="no source for 'another'"):
        updated(device, profile, found)


def test_another_machine_is_refused_before_anything_is_measured(device: Path, made: Path):
    profile = load_profile(device)
    write_profile(
        device,
        replace(
            profile, device=DeviceDescription({**profile.device.values, "cpu": "another", "cpu_id": "0-0-0"})
        ),
    )
    with pytest.raises(ProfileError, match="measured on another machine"):
        validate(device, made)


def test_the_command_says_what_it_lacks(device: Path):
    assert (device / PROFILE).is_file()
    done = CliRunner().invoke(
        main, ["profile", "validate", str(device), "--space", "joint", "--networks", "4"]
    )
    assert done.exit_code == 2
    assert "give --teacher" in done.output


def test_the_command_prints_json(device: Path, made: Path, tmp_path: Path):
    teacher = tmp_path / "small_teacher.py"
    teacher.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(NETWORKS)!r})\n"
        "from priced_networks import small_resnet\n\n"
        "def build():\n    return small_resnet(3)\n"
    )
    arguments = ["profile", "validate", str(device), "--teacher", f"{teacher}:build", "--networks", "4"]
    arguments += ["--space", str(made / "small.yaml"), "--input-size", "16", "--format", "json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["profile"] == "device"
    assert found["count"] >= 4
