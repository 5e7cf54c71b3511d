"""What cannot work is refused with one sentence and exit code 2 before anything is trained or written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from any_noise import take_any_noise
from click.testing import CliRunner, Result
from make_images import write_folder, write_tar
from places import NETWORKS
from priced_networks import SPACE

from autocompress.api import inspect
from autocompress.api_profile import profile
from autocompress.cli.main import main
from autocompress.runs.store import RunStore

TEACHERS = """
import sys
sys.path.insert(0, "{networks}")
import torch
from priced_networks import small_resnet
from torch import nn

def good():
    return small_resnet(in_channels=3)

def of_five_classes():
    return small_resnet(in_channels=3, classes=5)

def with_nan():
    model = good()
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    return model

class ReturnsDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = good()

    def forward(self, x):
        return {{"logits": self.inner(x)}}

def a_dict():
    return ReturnsDict()

def not_a_module():
    return 3

def raises():
    raise OSError("no such checkpoint")
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with teachers, images, a space, and a profile of this machine."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "teachers.py").write_text(TEACHERS.format(networks=NETWORKS))
    (folder / "space.yaml").write_text(SPACE)
    write_folder(folder / "images", 24)
    with pytest.MonkeyPatch.context() as patch:
        take_any_noise(patch)
        profile(
            f"{folder}/teachers.py:good",
            folder / "space.yaml",
            folder / "device",
            networks=16,
            data=f"imagefolder:{folder}/images",
        )
    return folder


def search(here: Path, run: Path | None = None, **changes: str) -> Result:
    options = {
        "teacher": f"{here}/teachers.py:good",
        "data": f"imagefolder:{here}/images",
        "space": str(here / "space.yaml"),
        "device": str(here / "device"),
        "latency": "80%",
        "trials": "1",
        "run": str(run or here / "run"),
    }
    arguments = [part for name, value in {**options, **changes}.items() for part in (f"--{name}", value)]
    return CliRunner().invoke(main, ["search", *arguments])


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.output.splitlines() if line.lower().startswith("error:")]
    assert len(errors) == 1, result.output
    for word in words:
        assert word in result.output


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ("nonsense", ["nonsense", "timm:NAME"]),
        ("timm:resnet19", ["resnet19", "resnet18"]),
        ("{here}/nothing.py:good", ["nothing.py"]),
        ("{here}/teachers.py:god", ["god", "good"]),
        ("{here}/teachers.py:a_dict", ["dict", "tensor"]),
        ("{here}/teachers.py:with_nan", ["fc.weight", "NaN"]),
        ("{here}/teachers.py:not_a_module", ["int", "nn.Module"]),
        ("{here}/teachers.py:raises", ["no such checkpoint"]),
        ("{here}/teachers.py:of_five_classes", ["5 classes", "3 classes"]),
        ("timm:resnet18,weights=none.safetensors", ["none.safetensors"]),
    ],
)
def test_teachers(here: Path, teacher: str, words: list[str]):
    refused(search(here, teacher=teacher.format(here=here)), *words)
    assert not (here / "run").exists()


def test_data(here: Path, tmp_path: Path):
    refused(search(here, data="nothing"), "nothing")
    refused(search(here, data=f"imagefolder:{tmp_path}/none"), "none")
    (tmp_path / "empty").mkdir()
    refused(search(here, data=f"imagefolder:{tmp_path}/empty"), "empty")
    shutil.copytree(here / "images" / "red", tmp_path / "one" / "red")
    refused(search(here, data=f"imagefolder:{tmp_path}/one"), "class")
    write_folder(tmp_path / "corrupt", 24)
    (tmp_path / "corrupt" / "green" / "7.png").write_bytes(b"no image")
    refused(search(here, data=f"imagefolder:{tmp_path}/corrupt"), "7.png")
    tar = write_tar(tmp_path / "t" / "train.tar", 24, damage="blue/3.png")
    refused(search(here, data=f"imagefolder:{tar.parent}"), "blue/3.png")
    refused(search(here, data="digits"), "3 classes", "10 classes")


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("0ms", ["above zero"]),
        ("-1", ["above zero"]),
        ("10 parsecs", ["parsecs", "ms"]),
        ("0.0000001ms", ["smallest reachable", "latency"]),
        ("2", ["no unit"]),
    ],
)
def test_budgets(here: Path, budget: str, words: list[str]):
    refused(search(here, latency=budget), *words)
    assert not (here / "run").exists()


def test_no_budget_at_all(here: Path):
    arguments = [
        "--teacher",
        f"{here}/teachers.py:good",
        "--data",
        "digits",
        "--device",
        str(here / "device"),
    ]
    refused(CliRunner().invoke(main, ["search", *arguments]), "no budget is set", "latency")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("bits:", "bitz:", ["bitz", "bits", "line 6"]),
        ("[0.25, 0.5, 0.75, 1.0]", "many", ["keep", "line 5"]),
        ("name: small", "name: [", ["line"]),
    ],
)
def test_spaces(here: Path, tmp_path: Path, before: str, after: str, words: list[str]):
    path = tmp_path / "changed.yaml"
    path.write_text(SPACE.replace(before, after, 1))
    refused(search(here, space=str(path)), *words)


def test_a_rule_that_matches_nothing(here: Path, tmp_path: Path):
    path = tmp_path / "changed.yaml"
    path.write_text(SPACE.replace("kernel: 3", "kernel: 5"))
    arguments = [
        "inspect",
        "--teacher",
        f"{here}/teachers.py:good",
        "--input-size",
        "16",
        "--space",
        str(path),
    ]
    refused(CliRunner().invoke(main, arguments), "matches nothing", "line 4", "optional: true")


def test_a_space_of_another_name(here: Path):
    refused(search(here, space="joints"), "joints", "joint")


def changed_profile(here: Path, tmp_path: Path, name: str, change: object) -> Result:
    folder = tmp_path / "device"
    shutil.copytree(here / "device", folder)
    file = folder / name
    text = file.read_text()
    if callable(change):
        file.write_text(change(text))
    else:
        file.unlink()
    return search(here, device=str(folder))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("profile.yaml", None, ["profile.yaml"]),
        ("kernels.csv", None, ["kernels.csv"]),
        ("kernels.csv", lambda text: text[:0], ["kernels.csv", "empty"]),
        ("kernels.csv", lambda text: text[:-20], ["kernels.csv", "line"]),
        ("profile.yaml", lambda text: text[: len(text) // 2], ["profile.yaml"]),
        ("profile.yaml", lambda text: text.replace("runtime: onnxruntime", "runtime: other"), ["other"]),
        ("profile.yaml", lambda text: text.replace("threads: 1", "threads: 4096", 1), ["threads"]),
        ("profile.yaml", lambda text: text.replace("cpu: ", "cpu: another ", 1), ["another"]),
    ],
)
def test_profiles(here: Path, tmp_path: Path, name: str, change: object, words: list[str]):
    refused(changed_profile(here, tmp_path, name, change), *words)


def test_a_profile_that_is_not_there(here: Path):
    refused(search(here, device="nowhere"), "nowhere", "autocompress profile")


def test_a_profile_of_another_space_or_input_size_is_trusted_less(here: Path, tmp_path: Path):
    def predictions(data: Path, device: Path) -> dict[str, Any]:
        teacher, space = f"{here}/teachers.py:good", here / "space.yaml"
        found: dict[str, Any] = inspect(teacher, space, device, f"imagefolder:{data}").to_json()[
            "predictions"
        ]
        return found

    assert predictions(here / "images", here / "device")["basis"] == "measured on this network"
    write_folder(tmp_path / "large", 24, size=(32, 32))
    larger = predictions(tmp_path / "large", here / "device")
    assert "not measured on this network, its space or its input size" in larger["basis"]
    shutil.copytree(here / "device", tmp_path / "device")
    profile = tmp_path / "device" / "profile.yaml"
    profile.write_text(profile.read_text().replace("space_fingerprint: ", "space_fingerprint: x"))
    elsewhere = predictions(here / "images", tmp_path / "device")
    assert "in the space" in elsewhere["basis"]
    assert min(larger["relative_error"], elsewhere["relative_error"]) >= 0.1


def test_run_folders(here: Path, tmp_path: Path):
    with RunStore.create(tmp_path / "run", {"identity": {"space": "another"}}, {}):
        pass
    before = (tmp_path / "run" / "config.yaml").read_text()
    refused(search(here, tmp_path / "run"), "exists", "--resume", "--overwrite")
    result = CliRunner().invoke(main, ["resume", str(tmp_path / "nothing")])
    refused(result, "not a run folder")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    refused(search(here, tmp_path / "mine"), "not a run folder")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "important"
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_the_teacher_is_not_left_changed(here: Path):
    """A refused search has no side effects on global state either."""
    state = torch.random.get_rng_state()
    refused(search(here, latency="0ms"))
    assert torch.equal(torch.random.get_rng_state(), state)
