"""A network, its data and a budget in one command: checked, a profile found or made, the student written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from any_noise import take_any_noise
from click.testing import CliRunner
from priced_networks import small_resnet
from small_search import Setting
from torch import Tensor, nn

import autocompress as ac
from autocompress.cli.main import main
from autocompress.errors import BudgetError, InputError, StudentError, TeacherError
from autocompress.files import CACHE_VARIABLE, user_cache
from autocompress.pipeline import one_command
from autocompress.pipeline.before_search import own_profile as profiles
from autocompress.pipeline.options import ProfileRequest, SearchOptions
from autocompress.pipeline.preparation import OpenedTeacher, open_teacher
from autocompress.problem.space import Space, load_space
from autocompress.progress import Console

PLAN: dict[str, Any] = {"trials": 2, "students": 1, "trial_epochs": 0.2, "distill_epochs": 1}


@pytest.fixture(autouse=True)
def few_networks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(one_command, "FAST_NETWORKS", 8)
    take_any_noise(monkeypatch)
    yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "profiles"


@pytest.fixture
def opened(setting: Setting) -> OpenedTeacher:
    return open_teacher(setting.options["teacher"], setting.options["data"])


@pytest.fixture
def space(setting: Setting) -> Space:
    return load_space(setting.options["space"])


def own(opened: OpenedTeacher, space: Space) -> tuple[Any, list[str]]:
    """Return the profile and what was said about it."""
    console, said = Console(), list[str]()
    console.say = said.append  # type: ignore[method-assign]
    request = replace(ProfileRequest(), networks=8)
    return profiles.own_profile(opened, space, request, console), said


def test_one_command_writes_the_student(
    setting: Setting, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked = {name: setting.options[name] for name in ("teacher", "data", "space")}
    out = tmp_path / "student"
    front = ac.compress(**asked, size="70%", run=tmp_path / "run", output=out, **PLAN)
    assert ac.load(out)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
    assert json.loads((out / "bench.json").read_text())["student"]["key"] == front.best().key
    said = capsys.readouterr().err
    assert "all 5 networks went through" in said and f"the student is in {out}" in said
    (kept,) = cache.iterdir()
    with pytest.raises(StudentError, match="student exists"):
        ac.compress(**asked, size="70%", run=tmp_path / "other", output=out, **PLAN)
    command = ["compress", *(part for name, value in asked.items() for part in (f"--{name}", value))]
    result = CliRunner().invoke(main, [*command, "--size", "70%", "-o", str(out)])
    assert result.exit_code == 2 and "give --overwrite" in result.stderr
    assert [*cache.iterdir()] == [kept]


def test_a_known_profile_is_used_again(opened: OpenedTeacher, space: Space, cache: Path):
    first, said = own(opened, space)
    (folder,) = cache.iterdir()
    assert f"the profile is kept in {folder}" in said and first.name == folder.name
    again, said = own(opened, space)
    assert again.fingerprint == first.fingerprint
    assert len(said) == 1 and said[0].startswith("using the profile of this machine")
    (folder / "kernels.csv").write_text("nonsense")
    remade, said = own(opened, space)
    assert "is made again" in said[0] and remade.fingerprint != first.fingerprint
    assert [*cache.iterdir()] == [folder]


def test_another_network_or_space_has_a_profile_of_its_own(opened: OpenedTeacher, space: Space):
    request = ProfileRequest()
    names = {
        profiles._name(opened, space, request),
        profiles._name(opened, load_space("joint"), request),
        profiles._name(opened, space, replace(request, threads=2)),
        profiles._name(open_teacher(small_resnet(3, 10), None, 16), space, request),
    }
    assert len(names) == 4


def test_without_a_folder_to_write_to_the_profile_is_made_and_not_kept(
    opened: OpenedTeacher, space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    found, said = own(opened, space)
    assert found.table.rows and any(CACHE_VARIABLE in text for text in said)


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "autocompress"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "autocompress"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "mine"))
    assert user_cache() == tmp_path / "mine"


def test_the_time_follows_from_network_and_data_where_none_is_asked_for(
    opened: OpenedTeacher, capsys: pytest.CaptureFixture[str]
):
    chosen = one_command._with_time(SearchOptions(), opened, Console())
    assert chosen.time_limit_s == one_command.SHORTEST_S
    assert "taking 4 minutes" in capsys.readouterr().err
    for asked in (SearchOptions(trials=3), SearchOptions(time_limit_s=60)):
        assert one_command._with_time(asked, opened, Console()) is asked


class Fixed(nn.Module):
    """Has nothing to decide: its only layer makes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


def test_a_network_that_cannot_be_changed_is_refused_before_anything_is_measured(tmp_path: Path, cache: Path):
    space = tmp_path / "space.yaml"
    space.write_text("name: none\nrules:\n  - lock: {layer: linear}\n")
    with pytest.raises(TeacherError, match="cannot be compressed"):
        ac.compress(Fixed(), "digits,size=8", space=space, size="50%", run=tmp_path / "run")
    assert not cache.exists() and not (tmp_path / "run").exists()


def test_budgets_are_given_once_and_a_profile_brings_its_runtime(setting: Setting, tmp_path: Path):
    asked = {name: setting.options[name] for name in ("teacher", "data", "space")}
    with pytest.raises(BudgetError, match="no budget is set"):
        ac.compress(**asked, run=tmp_path / "run")
    with pytest.raises(BudgetError, match="both given"):
        ac.compress(**asked, budgets=ac.Budgets(size_mib=1), size="50%", run=tmp_path / "run")
    with pytest.raises(InputError, match="its own runtime"):
        ac.compress(**setting.options, size="50%", threads=2, run=tmp_path / "run")
