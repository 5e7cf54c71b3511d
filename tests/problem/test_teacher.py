import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autocompress.errors import TeacherError
from autocompress.problem.teacher import check_teacher, fingerprint, load_teacher

USER_FILE = """
import torch
from torch import nn

def small(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width))

def needs(depth):
    return small()

def returns_number():
    return 3

def broken():
    return torch.zeros(2)[5]

ready = nn.Flatten()
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(USER_FILE)
    return path


def error_of(spec: object) -> str:
    with pytest.raises(TeacherError) as caught:
        load_teacher(spec)  # type: ignore[arg-type]
    return str(caught.value)


def test_timm_with_options_and_weights_gives_those_weights(tmp_path: Path):
    import timm

    torch.manual_seed(0)
    original = timm.create_model("test_resnet", num_classes=7, in_chans=1, channels=(8, 8, 16, 16)).eval()
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    spec = f"timm:test_resnet,num_classes=7,in_chans=1,channels=8/8/16/16,weights={tmp_path}/w.safetensors"
    teacher = load_teacher(spec)
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(teacher.module(x), original(x))
    assert (teacher.name, teacher.spec, teacher.module.training) == ("test_resnet", spec, False)
    assert teacher.fingerprint == load_teacher(spec).fingerprint == fingerprint(original)


def test_a_checkpoint_of_torch_is_unwrapped(tmp_path: Path):
    import timm

    original = timm.create_model("test_resnet", num_classes=3)
    state = {f"module.{name}": value for name, value in original.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    teacher = load_teacher(f"timm:test_resnet,num_classes=3,weights={tmp_path}/w.pth")
    assert teacher.fingerprint == fingerprint(original)


def test_the_fingerprint_is_that_of_names_and_bytes():
    module = nn.Linear(1, 1, bias=False)
    expected = hashlib.sha256(b"weight float32 (1, 1)\n" + np.float32(module.weight.item()).tobytes())
    assert fingerprint(module) == expected.hexdigest()


def test_preprocessing_comes_from_timm():
    hints = load_teacher("timm:vit_tiny_patch16_224,num_classes=2,depth=1,img_size=64").preprocessing
    assert hints.input_shape == (3, 64, 64)
    assert hints.mean == hints.std == (0.5, 0.5, 0.5)
    assert hints.fixed
    assert load_teacher(nn.Linear(2, 2)).preprocessing.input_shape is None


def test_a_module_is_copied_and_not_touched():
    mine = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double().train()
    teacher = load_teacher(mine)
    assert mine.training and mine[0].weight.dtype == torch.float64
    assert teacher.module[0].weight.dtype == torch.float32  # type: ignore[index]
    assert not teacher.module.training
    assert load_teacher(teacher) is teacher


def test_callables_of_a_file(user_file: Path):
    teacher = load_teacher(f"{user_file}:small,width=5")
    assert check_teacher(teacher.module, (3, 8, 8), 5) == (5,)
    assert isinstance(load_teacher(f"{user_file}:ready").module, nn.Flatten)


@pytest.mark.parametrize(
    ("spec", "needles"),
    [
        ("timm:resnet1888", ["no model 'resnet1888'", "resnet18"]),
        ("timm:test_resnet,colour=3", ["cannot build", "colour"]),
        ("timm:resnet18,weights=nowhere.safetensors", ["nowhere.safetensors does not exist"]),
        ("timm:resnet18,weights=x,pretrained", ["exclude"]),
        ("resnet18", ["not understood", "timm:NAME"]),
        ("nowhere/model.py:make", ["nowhere/model.py does not exist"]),
        ("no_such_package_here.models:make", ["no module 'no_such_package_here.models'"]),
        ("torch.nn:Linea", ["no callable 'Linea'"]),
        ("{file}:smal", ["did you mean 'small'", "broken, needs, returns_number, small"]),
        ("{file}:needs", ["cannot be called", "depth"]),
        ("{file}:small,height=2", ["cannot be called", "height"]),
        ("{file}:returns_number", ["returned a int"]),
        ("{file}:broken", ["broken failed", "my_model.py, line 15", "IndexError"]),
        (3, ["int"]),
    ],
)
def test_what_cannot_be_loaded_is_explained(spec: object, needles: list[str], user_file: Path):
    message = error_of(spec.format(file=user_file) if isinstance(spec, str) else spec)
    for needle in needles:
        assert needle in message


@pytest.mark.parametrize(
    ("source", "needles"),
    [
        ("import torch\nimport no_such_package_here\n", ["line 2", "no_such_package_here"]),
        ("def model(:\n", ["line 1", "SyntaxError"]),
        ("x = 1\nraise SystemExit(3)\n", ["line 2", "SystemExit"]),
    ],
)
def test_a_file_that_does_not_import_names_its_line(source: str, needles: list[str], tmp_path: Path):
    (tmp_path / "bad.py").write_text(source)
    message = error_of(f"{tmp_path}/bad.py:model")
    for needle in ["bad.py", *needles]:
        assert needle in message


def test_weights_that_do_not_fit_name_the_parameter(tmp_path: Path):
    import timm

    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "w.safetensors")
    message = error_of(f"timm:test_resnet,num_classes=10,weights={tmp_path}/w.safetensors")
    assert "do not fit" in message and "fc.weight" in message
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    assert "is no whole safetensors file" in error_of(f"timm:test_resnet,weights={tmp_path}/junk.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_the_parameter(value: float):
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    with torch.no_grad():
        module[1].weight[0, 1] = value
    message = error_of(module)
    assert "1.weight holds 1 NaN or infinite values out of 6" in message


def test_an_unreachable_hub_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert "is not reached" in error_of("timm:resnet18,pretrained")


class Fixed(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "needles"),
    [
        (lambda x: {"logits": x}, ["returns a dict"]),
        (lambda x: (x, x), ["returns a tuple"]),
        (lambda x: x.flatten(1)[:, :10], ["10 classes", "7 classes"]),
        (lambda x: x, ["outputs of shape (3, 8, 8)", "7 classes"]),
        (lambda x: x.flatten(1)[:, :7] * float("nan"), ["NaN"]),
        (lambda x: x.sum(), ["no batch axis"]),
        (lambda x: x @ torch.zeros(3, 3), ["does not run on inputs of shape (3, 8, 8)"]),
    ],
)
def test_outputs_that_cannot_be_learned_are_refused(make, needles: list[str]):
    with pytest.raises(TeacherError) as caught:
        check_teacher(Fixed(make), (3, 8, 8), 7)
    for needle in needles:
        assert needle in str(caught.value)


def test_a_check_leaves_mode_statistics_and_random_state_alone():
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).train()
    before, state = fingerprint(module), torch.get_rng_state()
    assert check_teacher(module, (3, 8, 8)) == (5,)
    assert module.training and module[1].training
    assert fingerprint(module) == before and torch.equal(torch.get_rng_state(), state)
