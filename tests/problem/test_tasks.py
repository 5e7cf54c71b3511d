"""Losses, distances and metrics of tasks, by hand; which task is taken, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from task_search import SIDE, map_network, spots, vector_network
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.pipeline.before_search.task_fit import AskedTask
from autocompress.pipeline.preparation import open_teacher
from autocompress.problem.data import load_data
from autocompress.problem.tasks.agreement import Agreement
from autocompress.problem.tasks.choice import (
    TASKS,
    ending_of,
    task_from_json,
    task_named,
    task_to_json,
)
from autocompress.problem.tasks.classification import Classification, MultiLabel, average_precision
from autocompress.problem.tasks.detection import Detection, overlap_of
from autocompress.problem.tasks.embeddings import Embeddings
from autocompress.problem.tasks.measuring import Tally, difference, score_of, std_err
from autocompress.problem.tasks.metric import ACCURACY, Metric
from autocompress.problem.tasks.segmentation import Segmentation
from autocompress.problem.tasks.values import DenseValues, Regression


@pytest.mark.parametrize(
    "metric", [ACCURACY, Metric("MAE", False, "", 3.0), Metric("PSNR", True, "dB"), Metric("R2", True, "")]
)
def test_a_score_is_higher_the_better_the_metric_and_gives_the_value_back(metric: Metric):
    values = [0.2, 0.7]
    scores = [metric.score(value) for value in values]
    assert (scores[1] > scores[0]) == metric.higher_is_better and max(scores) <= 1
    assert [metric.value(score) for score in scores] == pytest.approx(values)
    slope = (metric.value(scores[0] + 1e-6) - metric.value(scores[0])) / 1e-6
    assert metric.spread(scores[0], 1.0) == pytest.approx(abs(slope), rel=1e-3)
    assert Metric.from_json(metric.to_json()) == metric


def measured(task, outputs: Tensor, labels: Tensor) -> float:
    return task.measured(task.statistics(outputs, labels))


def test_average_precision_by_hand_and_with_equal_scores():
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(torch.zeros(4), labels) == pytest.approx(0.5)
    assert math.isnan(average_precision(scores, torch.zeros(4)))
    outputs = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    wanted = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert measured(MultiLabel("F1"), outputs, wanted) == pytest.approx(2 * 3 / (4 + 4))


def test_regression_and_dense_values_by_hand():
    outputs, labels = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[1.0], [4.0], [4.0]])
    assert measured(Regression(), outputs, labels) == pytest.approx(4 / 3)
    assert measured(Regression("R2"), outputs, labels) == pytest.approx(1 - 8 / 6)
    assert Regression().scaled(labels).metric.scale == pytest.approx(1.0)
    image = torch.zeros(1, 1, 2, 2)
    assert measured(DenseValues(peak=1.0), image + 0.1, image) == pytest.approx(20.0, rel=1e-4)


def test_intersection_over_union_leaves_out_the_ignored_class():
    outputs = torch.zeros(1, 2, 1, 4)
    outputs[0, 1, 0, 2:] = 1.0
    labels = torch.tensor([[[0, 1, 1, 255]]], dtype=torch.uint8)
    assert measured(Segmentation(), outputs, labels) == pytest.approx((1 / 2 + 1 / 2) / 2)
    bad = Segmentation().check_outputs((2, 1, 4), torch.tensor([[[7]]], dtype=torch.uint8), 2)
    assert "7" in bad


def test_recall_at_one_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.8, 0.2]])
    assert measured(Embeddings(), vectors, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.75)


def test_boxes_are_decoded_matched_once_and_averaged():
    outputs = torch.full((1, 6, 8, 8), -9.0)
    outputs[0, 0, 4, 4], outputs[0, 0, 4, 5] = 6.0, 5.0
    outputs[0, 2:, 4, 4:6] = torch.log(torch.expm1(torch.tensor([1.5, 1.5, 1.5, 1.5])))[:, None]
    labels = torch.tensor([[[0, 3 / 8, 3 / 8, 6 / 8, 6 / 8], [-1, -1, -1, -1, -1]]])
    task = Detection()
    ((kinds, scores, boxes),) = task.predictions(outputs)
    assert kinds.tolist()[:1] == [0] and float(scores[0]) == pytest.approx(1 / (1 + math.exp(-6)))
    assert boxes[0].tolist() == pytest.approx([3 / 8, 3 / 8, 6 / 8, 6 / 8], abs=1e-3)
    assert measured(task, outputs, labels) == pytest.approx(1.0)
    assert float(overlap_of(boxes[:1], boxes[:1])) == pytest.approx(1.0)
    missed = torch.cat([labels, labels.roll(1, 1)], 1)
    missed[0, 3] = torch.tensor([0, 0, 0, 0.2, 0.2])
    assert measured(task, outputs, missed[:, [0, 3]]) == pytest.approx(0.5)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "agreement"])
def test_a_task_is_at_distance_zero_from_itself_and_learns(name: str):
    torch.manual_seed(0)
    task, outputs, labels = task_named(name), *example(name)
    teacher = outputs + 0.5 * torch.randn_like(outputs)
    assert float(task.distance(outputs, outputs)) == pytest.approx(0.0, abs=1e-5)
    assert float(task.bent(teacher - outputs, outputs).mean()) > 0
    task = task.scaled(labels)
    found = outputs.clone().requires_grad_()
    before = task.distilled(found, teacher, labels)
    before.backward()
    assert found.grad is not None and bool(torch.isfinite(found.grad).all())
    after = task.distilled(outputs - 0.05 * found.grad / found.grad.norm(), teacher, labels)
    assert float(after) < float(before)
    assert task.losses(outputs, labels).shape == (6,)
    rows = task.statistics(outputs, labels)
    assert rows.shape[0] == 6 and math.isfinite(score_of(task, rows))
    again = task_from_json(task_to_json(task))
    assert repr(again) == repr(task) and again.metric == task.metric and again.spec == name


def example(name: str) -> tuple[Tensor, Tensor]:
    classes = torch.tensor([0, 1, 2, 0, 1, 2])
    masks = torch.randint(0, 3, (6, 4, 4), dtype=torch.uint8)
    boxes = torch.tensor([[[1.0, 0.1, 0.1, 0.6, 0.7], [-1, -1, -1, -1, -1]]]).repeat(6, 1, 1)
    return {
        "classification": (torch.randn(6, 3), classes),
        "binary": (torch.randn(6, 1), classes % 2),
        "multi-label": (torch.randn(6, 3), nn.functional.one_hot(classes).float()),
        "regression": (torch.randn(6, 2), torch.randn(6, 2)),
        "dense": (torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4)),
        "segmentation": (torch.randn(6, 3, 4, 4), masks),
        "embeddings": (torch.randn(6, 5), classes),
        "detection": (torch.randn(6, 7, 4, 4), boxes),
    }[name]


def test_standard_errors_of_a_mean_and_by_leaving_groups_out_agree():
    generator = torch.Generator().manual_seed(0)
    rows = (torch.rand(2000, 1, generator=generator) < 0.8).double()
    task = Classification()
    binomial = std_err(task, rows, 0.8)
    task.is_mean = False
    assert std_err(task, rows, 0.8) == pytest.approx(binomial, rel=0.4)
    mean, error = difference(task, rows, rows)
    assert mean == error == 0.0


def test_outputs_that_are_not_finite_are_wrong_and_their_loss_infinite():
    tally = Tally(Classification())
    tally.add(torch.tensor([[1.0, 0.0], [torch.nan, 0.0]]), torch.tensor([0, 0]))
    assert tally.score()[0] == 0.5 and tally.loss == math.inf


def test_endings_are_recognised_by_the_outputs():
    scores = torch.randn(16, 5)
    assert ending_of(scores, "softmax") == ""
    assert ending_of(scores.softmax(1), "softmax") == "softmax"
    assert ending_of(scores.log_softmax(1), "softmax") == "log-softmax"
    assert ending_of(scores.sigmoid(), "sigmoid") == "sigmoid"
    task, plain = Classification(), Classification()
    task.ending = "softmax"
    labels, teacher = torch.randint(0, 5, (16,)), torch.randn(16, 5)
    assert torch.allclose(
        task.distilled(scores.softmax(1), teacher.softmax(1), labels),
        plain.distilled(scores, teacher, labels), atol=1e-4,
    )  # fmt: skip


def opened(module: nn.Module, data, **asked):
    return open_teacher(module, data, asked=AskedTask(**asked)).data


def test_the_task_is_recognised_from_labels_and_outputs():
    images, places = spots(60)
    pixels, colours = images.numpy(), places[:, 0].numpy()
    assert type(opened(vector_network(3), (pixels, colours)).task) is Classification
    assert opened(vector_network(2), (pixels, np.random.rand(60, 2))).task.name == "regression"
    found = opened(vector_network(3), load_data((pixels, colours), targets="none"))
    assert isinstance(found.task, Agreement) and found.train.labels.shape == (48, 3)
    assert torch.equal(found.calibration.labels, found.train.labels[: found.calibration.size]) or (
        found.calibration.labels.shape[1:] == (3,)
    )


@pytest.mark.parametrize(
    ("module", "kind", "asked", "said"),
    [
        (vector_network(3), "colours", {"task": "segmentation"}, "not masks"),
        (map_network(4), "values", {"task": "regression"}, "outputs (4, 16, 16)"),
        (vector_network(5), "values", {}, "no task fits"),
        (vector_network(3), "masks", {}, "no task fits"),
        (map_network(2), "masks", {}, "no task fits"),
        (vector_network(3), "none", {"task": "classification"}, "needs"),
        (vector_network(3), "colours", {"task": "colouring"}, "known: classification"),
        (vector_network(3), "colours", {"task": "classification,k=3"}, "always right"),
        (vector_network(3), "colours", {"metric": lambda *_: 1.0}, "one number for each example"),
        (vector_network(3), "colours", {"metric": lambda p, _: torch.ones(len(p))}, "whatever the outputs"),
        (vector_network(3), "colours", {"metric": lambda p, _: p * torch.nan}, "no number"),
        (vector_network(2), "nan", {"task": "regression"}, "NaN"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_was_seen(module, kind, asked, said):
    images, places = spots(60)
    values = places[:, 1:3].float() / 3
    masks = places[:, 0, None, None].expand(-1, SIDE, SIDE).contiguous().to(torch.uint8)
    nan = values.clone()
    nan[7] = torch.nan
    labels = {"colours": places[:, 0], "values": values, "masks": masks, "nan": nan}.get(kind)
    data = load_data((images.numpy(), places[:, 0].numpy()), targets="none")
    with pytest.raises(InputError, match=said.replace("(", r"\(").replace(")", r"\)")) as raised:
        opened(module, data if labels is None else (images.numpy(), labels.numpy()), **asked)
    assert raised.value.exit_code == 2


def test_a_table_of_values_and_masks_are_read(tmp_path: Path):
    from PIL import Image

    images, places = spots(40)
    lines = ["image,left,split"]
    for row, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{row}.png")
        lines.append(f"{row}.png,{places[row, 1] / 2},{'train' if row < 30 else 'test'}")
    (tmp_path / "values.csv").write_text("\n".join(lines))
    data = load_data(f"table:{tmp_path}/values.csv,size=16", targets="values")
    assert data.targets == "values" and data.test is not None and data.test.size == 10
    assert data.test.labels[:, 0].tolist() == (places[30:, 1] / 2).tolist()


def test_masks_move_with_their_images():
    images, _ = spots(24)
    masks = (images.amax(1) > 100).to(torch.uint8)
    split = load_data((images.numpy(), masks.numpy()), targets="masks").train
    from dataclasses import replace

    moved = replace(split, augmentation="crop-flip")
    for found, labels in moved.batches(24, augment=True, seed=3):
        bright = found.amax(1) > 1.0
        assert bool((labels[bright] == 1).all()) and bool((labels[~bright] != 1).all())
        assert 255 in labels
