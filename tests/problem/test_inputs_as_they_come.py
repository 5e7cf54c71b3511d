"""Folders, images and files of weights as people have them: what is read right, and what is said."""

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from make_images import CLASSES, image, write_folder
from PIL import Image
from torch import nn

from autocompress.errors import DataError
from autocompress.problem.data import Data, load_data
from autocompress.problem.label_match import matched
from autocompress.problem.teacher import fingerprint, load_teacher

RAW = "mean=0,std=1,augment=none,channels=1"


def sizes(data: Data) -> tuple[int, int, int]:
    assert data.test is not None
    return data.train.size, data.validation.size, data.test.size


@pytest.mark.parametrize(
    "stray", [".ipynb_checkpoints/0.png", "red/.ipynb_checkpoints/0.png", "__MACOSX/red/._0.png"]
)
def test_hidden_files_and_folders_are_left_out_and_named(stray: str, tmp_path: Path):
    root = write_folder(tmp_path / "photos", 10)
    (root / stray).parent.mkdir(parents=True)
    image(2, 99).save(root / stray)
    data = load_data(f"imagefolder:{root}")
    assert (data.class_names, sum(sizes(data))) == (CLASSES, 30)
    assert any("left out: 1 hidden" in note for note in data.notes)


def test_16_bits_become_8_and_stay_apart(tmp_path: Path):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.fromarray(values).save(tmp_path / name / f"{index}.png")
    images, _ = next(load_data(f"imagefolder:{tmp_path},{RAW}").train.batches(4))
    expected = torch.arange(256).reshape(16, 16) / 255
    assert torch.allclose(images, expected.expand_as(images))


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("TRAIN", "TEST"), ("training_set", "eval"), ("train", "holdout"), ("train", "dev")],
)
def test_held_out_images_are_never_learned_from(train: str, test: str, tmp_path: Path):
    write_folder(tmp_path / train, 20)
    write_folder(tmp_path / test, 5, first=50)
    assert sizes(load_data(f"imagefolder:{tmp_path}")) == (54, 6, 15)


def test_folders_beside_the_splits_are_named_as_not_used(tmp_path: Path):
    write_folder(tmp_path / "train", 20)
    write_folder(tmp_path / "test", 5, first=50)
    write_folder(tmp_path / "extra", 1, first=70)
    data = load_data(f"imagefolder:{tmp_path}")
    assert sizes(data) == (54, 6, 15)
    assert any("not used: extra (3 images)" in note for note in data.notes)


def test_one_class_is_refused(tmp_path: Path):
    write_folder(tmp_path, 10)
    for name in ("green", "red"):
        (tmp_path / name).rename(tmp_path / "blue" / name)
    with pytest.raises(DataError, match="nothing to tell apart"):
        load_data(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize("name", ["with, comma", "with=equals", "Größe 猫", "with space"])
def test_any_name_of_a_folder_can_be_given(name: str, tmp_path: Path):
    root = write_folder(tmp_path / name, 10)
    assert sum(sizes(load_data(f'imagefolder:"{root}",size=8'))) == 30


def test_a_comma_that_is_not_quoted_is_named_with_a_way_out(tmp_path: Path):
    root = write_folder(tmp_path / "with, comma", 10)
    with pytest.raises(DataError, match="quotes"):
        load_data(f"imagefolder:{root}")


def test_images_that_are_not_square_keep_their_shape_and_mixed_ones_take_two_numbers(tmp_path: Path):
    root = write_folder(tmp_path, 10, size=(24, 8))
    assert load_data(f"imagefolder:{root}").input_shape == (3, 8, 24)
    image(0, 99, size=(30, 9)).save(root / "blue" / "larger.png")
    assert load_data(f"imagefolder:{root},size=8/24").input_shape == (3, 8, 24)


def test_images_with_transparency_have_four_channels_where_those_are_asked_for(tmp_path: Path):
    root = write_folder(tmp_path, 10)
    for path in root.glob("*/*.png"):
        Image.open(path).convert("RGBA").save(path)
    assert load_data(f"imagefolder:{root},channels=4,mean=0.5,std=0.25").input_shape == (4, 16, 16)
    assert load_data(f"imagefolder:{root}").input_shape == (3, 16, 16)


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 12)]
    return nn.Sequential(*body).eval()


def test_classes_that_are_numbers_are_the_outputs_of_those_numbers(tmp_path: Path):
    for label in (0, 2, 10):
        (tmp_path / str(label)).mkdir()
        for index in range(10):
            Image.new("L", (8, 8), 20 * label).save(tmp_path / str(label) / f"{index}.png")
    data = matched(load_data(f"imagefolder:{tmp_path},{RAW}"), outputs=12)
    for images, labels in data.train.batches(8):
        assert (images[:, 0, 0, 0] * 255 / 20).round().long().tolist() == labels.tolist()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", ["", "state_dict", "model"])
def test_weights_are_found_below_keys_and_prefixes(prefix: str, key: str, tmp_path: Path):
    original = network()
    state = OrderedDict((prefix + name, value) for name, value in original.state_dict().items())
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "w.pth.tar")
    assert loaded(tmp_path / "w.pth.tar") == fingerprint(original)


def test_settings_of_a_training_script_beside_the_weights_are_not_executed_and_not_in_the_way(tmp_path: Path):
    original = network()
    saved = {"state_dict": original.state_dict(), "args": argparse.Namespace(lr=0.1), "epoch": 3}
    torch.save(saved, tmp_path / "w.pth")
    assert loaded(tmp_path / "w.pth") == fingerprint(original)


def loaded(weights: Path) -> str:
    """Return the fingerprint of a network of other values into which the file's weights were read."""
    file = weights.parent / "model.py"
    file.write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n    torch.manual_seed(1)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(4, 12))\n"
    )
    return load_teacher(f'"{file}":build,weights="{weights}"').fingerprint


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "parametrized", "masked"])
def test_weights_that_are_computed_are_written_down(kind: str):
    original = network()
    layer = original[0]
    if kind == "weight_norm":
        nn.utils.weight_norm(layer)
    elif kind == "spectral_norm":
        nn.utils.spectral_norm(layer)
        original.eval()
    elif kind == "parametrized":
        nn.utils.parametrizations.weight_norm(layer)
    else:
        nn.utils.prune.random_unstructured(layer, "weight", 0.5)
    module = load_teacher(original).module
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(module(x), original(x), atol=1e-6)
    assert module.state_dict().keys() == network().state_dict().keys()
