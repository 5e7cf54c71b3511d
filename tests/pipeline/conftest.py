"""What the tests of whole searches share: a trained teacher with a profile, and a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest
from any_noise import PATIENT, take_any_noise
from places import NETWORKS
from priced_networks import SPACE, small_resnet
from safetensors.torch import save_file
from small_search import CALM, TEACHER, Setting, compress

import autocompress as ac
from autocompress.pipeline import bench_again as rebench
from autocompress.pipeline import certification as certify
from autocompress.problem.data import load_data
from autocompress.progress import Console
from autocompress.students.training.distill import distil
from autocompress.students.training.settings import DistillSettings


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("setting")
    (folder / "space.yaml").write_text(SPACE)
    (folder / "teacher.py").write_text(TEACHER.format(networks=NETWORKS, folder=folder))
    model = small_resnet(in_channels=3, classes=10)
    distil(model, None, load_data("digits"), DistillSettings(epochs=6, batch_size=32, precision="float32"))
    save_file(model.state_dict(), folder / "teacher.safetensors")
    found = Setting(folder)
    names = {name: found.options[name] for name in ("teacher", "data", "space")}
    with pytest.MonkeyPatch.context() as patch:
        take_any_noise(patch, PATIENT)
        ac.profile(**names, output=folder / "device", networks=12, console=Console(quiet=True))
    return found


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "CERTIFY", CALM)
    monkeypatch.setattr(rebench, "CERTIFY", CALM)


@pytest.fixture(scope="session")
def finished(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify, "CERTIFY", CALM)
        compress(setting, run)
    return run
