"""Every task from data to a certified student, in miniature and through the public API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from task_search import SIDE, compressed, map_network, spots, taught, vector_network
from torch import Tensor, nn

import autocompress as ac
from autocompress.reporting import units


def masks_of(places: Tensor) -> Tensor:
    """Return masks of the squares, `(N, 16, 16)`: 0 for the ground, 1 to 3 for colours, a column ignored."""
    masks = torch.zeros(len(places), SIDE, SIDE, dtype=torch.uint8)
    for mask, (colour, left, top, right, bottom) in zip(masks, places.tolist(), strict=True):
        mask[top:bottom, left:right] = colour + 1
    masks[:, :, 0] = 9
    return masks


def test_regression_of_two_values_is_judged_by_its_mean_absolute_error(tmp_path: Path, monkeypatch):
    images, places = spots(400)
    values = ((places[:, 1:3] + places[:, 3:5]).float() / 2).numpy()
    data = (images.numpy(), values)
    teacher = taught(vector_network(2), data, "regression")
    front, said = compressed(teacher, data, tmp_path, monkeypatch)
    student = front.students[0]
    assert "task: regression" in said and "MAE" in said
    assert student.metric.name == "MAE" and not student.metric.higher_is_better
    assert 0 < front.teacher.value < 2 and 0 < student.value < 2.5
    record = json.loads((student.folder / "bench.json").read_text())["student"]
    assert record["metric"]["value"] == pytest.approx(student.value)
    assert "MAE" in (student.folder / "README.md").read_text()
    assert "MAE" in ac.report(tmp_path / "run").read_text()
    assert ac.front(tmp_path / "run").students[0] == student
    assert units.accuracy(student).startswith(units.significant(student.value))


def test_images_without_labels_are_judged_by_agreement_with_the_teacher(tmp_path: Path, monkeypatch):
    images, places = spots(300)
    teacher = taught(vector_network(3), (images.numpy(), places[:, 0].numpy()), "classification")
    folder = tmp_path / "photos"
    (folder / "holiday").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "holiday" / f"{number}.png")
    front, said = compressed(teacher, f"images:{folder}", tmp_path, monkeypatch)
    assert "no labels" in said and "agreement with the teacher" in said
    assert front.teacher.accuracy == 1.0 and front.students[0].accuracy > 0.8
    card = (front.students[0].folder / "README.md").read_text()
    assert "agreement with the teacher" in card and "classifier" not in card


def test_yes_or_no_by_one_number(tmp_path: Path, monkeypatch):
    images, places = spots(300)
    data = (images.numpy(), (places[:, 0] == 0).long().numpy())
    teacher = taught(vector_network(1), data, "binary")
    front, said = compressed(teacher, data, tmp_path, monkeypatch)
    assert "task: binary" in said
    assert front.teacher.accuracy > 0.9 and front.students[0].accuracy > 0.8


def test_several_labels_at_once_from_a_network_that_ends_in_a_sigmoid(tmp_path: Path, monkeypatch):
    images, places = spots(300)
    others, more = spots(300, seed=1)
    labels = torch.zeros(300, 3).scatter_(1, places[:, :1], 1.0).scatter_(1, more[:, :1], 1.0)
    data = (torch.maximum(images, others).numpy(), labels.numpy())
    teacher = taught(vector_network(3), data, "multi-label")
    assert isinstance(teacher, nn.Sequential)
    front, said = compressed(nn.Sequential(*teacher, nn.Sigmoid()), data, tmp_path, monkeypatch)
    assert "task: multi-label" in said and "ends in a Sigmoid" in said
    student = front.students[0]
    assert student.metric.name == "mAP" and student.accuracy > 0.8
    outputs = ac.load(student.folder)(torch.randn(4, 3, SIDE, SIDE))
    assert bool(((outputs >= 0) & (outputs <= 1)).all())


def test_masks_beside_images_are_segmented(tmp_path: Path, monkeypatch):
    images, places = spots(240)
    masks, folder = masks_of(places), tmp_path / "scenes"
    for split, rows in {"train": range(180), "val": range(180, 210), "test": range(210, 240)}.items():
        for what in ("images", "masks"):
            (folder / split / what).mkdir(parents=True)
        for row in rows:
            Image.fromarray(images[row].permute(1, 2, 0).numpy()).save(folder / split / f"images/{row}.png")
            Image.fromarray(masks[row].numpy()).save(folder / split / f"masks/{row}.png")
    data = f"masks:{folder}"
    task = "segmentation,ignored=9"
    teacher = taught(map_network(4), data, task)
    front, _ = compressed(teacher, data, tmp_path, monkeypatch, task=task)
    student = front.students[0]
    assert student.metric.name == "mIoU" and student.accuracy_from == "test"
    assert front.teacher.accuracy > 0.7 and student.accuracy > 0.5
    assert 0 < student.accuracy_std_err < 0.2


def test_images_are_cleaned_and_judged_in_decibels(tmp_path: Path, monkeypatch):
    images, _ = spots(240)
    clean = torch.where(images > 100, images, 0).float() / 255
    data = (images.float().numpy() / 255, clean.numpy())
    teacher = taught(map_network(3), data, "dense")
    front, said = compressed(teacher, data, tmp_path, monkeypatch)
    student = front.students[0]
    assert "task: dense" in said
    assert student.metric.unit == "dB" and 15 < student.value <= front.teacher.value + 3
    assert units.accuracy(student).endswith(" dB")


def test_embeddings_of_classes_that_were_never_seen(tmp_path: Path, monkeypatch):
    images, places = spots(300)
    data = (images.numpy(), places[:, 0].numpy())
    teacher = taught(vector_network(8), data, "embeddings")
    front, _ = compressed(teacher, data, tmp_path, monkeypatch, task="embeddings")
    student = front.students[0]
    assert student.metric.name == "recall at 1" and student.accuracy > 0.8


def test_boxes_are_found_by_an_anchor_free_head(tmp_path: Path, monkeypatch):
    images, places = spots(400)
    boxes = torch.full((400, 2, 5), -1.0)
    boxes[:, 0, 0], boxes[:, 0, 1:] = places[:, 0].float(), places[:, 1:].float() / SIDE
    data = (images.numpy(), boxes.numpy())
    teacher = taught(detector(), data, "detection", epochs=25)
    front, _ = compressed(teacher, data, tmp_path, monkeypatch, task="detection")
    student = front.students[0]
    assert student.metric.name == "mAP@0.5"
    assert front.teacher.accuracy > 0.7 and student.accuracy > 0.5


def detector() -> nn.Module:
    """Return a network with maps of three classes and four sides, at half the size of the images."""
    from task_search import body

    head = nn.Conv2d(16, 7, 3, padding=1)
    assert head.bias is not None
    nn.init.constant_(head.bias, -2.0)
    return nn.Sequential(*body(), head)


@pytest.mark.parametrize("ending", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_networks_that_end_in_a_softmax_ship_as_they_were(ending: nn.Module, tmp_path: Path, monkeypatch):
    images, places = spots(300)
    data = (images.numpy(), places[:, 0].numpy())
    teacher = taught(vector_network(3), data, "classification")
    assert isinstance(teacher, nn.Sequential)
    front, said = compressed(nn.Sequential(*teacher, ending), data, tmp_path, monkeypatch)
    assert f"ends in a {type(ending).__name__}" in said
    assert front.students[0].accuracy > 0.8
    outputs = ac.load(front.students[0].folder)(torch.randn(4, 3, SIDE, SIDE))
    shares = outputs if isinstance(ending, nn.Softmax) else outputs.exp()
    assert torch.allclose(shares.sum(1), torch.ones(4), atol=0.05)


OWN = """
import torch
import autocompress as ac


class Halves(ac.Task):
    targets = "values"
    curvature = "square"
    metric = ac.Metric("share within 2", unit="%")

    def losses(self, outputs, labels):
        return (outputs - labels).square().mean(1)

    def statistics(self, outputs, labels):
        return ((outputs - labels).abs() < 2).float().mean(1, keepdim=True)


def worst(predictions, labels):
    return (predictions - labels).abs().amax(1)


worst.higher_is_better = False
"""


def test_a_task_and_a_metric_of_ones_own(tmp_path: Path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    images, places = spots(300)
    values = ((places[:, 1:3] + places[:, 3:5]).float() / 2).numpy()
    data = (images.numpy(), values)
    task, metric = f"{tmp_path}/own.py:Halves", f"{tmp_path}/own.py:worst"
    teacher = taught(vector_network(2), data, task)
    front, _ = compressed(teacher, data, tmp_path, monkeypatch, task=task)
    assert front.students[0].metric.name == "share within 2" and front.students[0].accuracy > 0.5
    (tmp_path / "second").mkdir()
    front, said = compressed(teacher, data, tmp_path / "second", monkeypatch, metric=metric)
    student = front.students[0]
    assert "metric: worst" in said and student.metric.name == "worst"
    assert 0 < student.value < 4 and not student.metric.higher_is_better
