"""Longer training in steps: each goes on from the checkpoint of the last, whatever became of that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from priced_networks import SPACE, small_resnet
from tiny_networks import stripes

from autocompress.export.student_folder import load_student
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import parse_space
from autocompress.runs.tasks import Job, Stage
from autocompress.students.builder import StudentBuilder
from autocompress.students.checkpoints import Checkpoint, checkpoint_path, load_checkpoint, save_checkpoint
from autocompress.students.evaluator import Evaluator
from autocompress.students.importances import importances
from autocompress.students.training.settings import DistillSettings
from autocompress.transforms.sites import bind

CANDIDATE = Candidate.of({"block:blocks.0": "drop"})


@pytest.fixture(scope="module")
def builder() -> StudentBuilder:
    data = stripes()
    network, weights = trace(small_resnet(), data.input_shape)
    bound = bind(parse_space(SPACE), network)
    assert any(site.name == CANDIDATE.choices[0][0] for site in bound.free)
    return StudentBuilder(
        bound, weights, data, importances(bound, weights, data), DistillSettings(batch_size=32)
    )


@pytest.fixture
def evaluator(builder: StudentBuilder, tmp_path: Path) -> Evaluator:
    return Evaluator(builder, tmp_path / "distilled")


def task(epochs: float, before: float = 0.0, rung: int = 1) -> Job:
    return Job(0, CANDIDATE.to_json(), Stage.PROMOTION, {"epochs": epochs, "before": before, "rung": rung})


def test_a_rung_trains_only_what_is_missing(evaluator: Evaluator):
    path = checkpoint_path(evaluator.folder, CANDIDATE)
    assert evaluator(task(1.0))["trained_epochs"] == 1.0
    first = load_checkpoint(path)
    assert evaluator(task(3.0, before=1.0, rung=2))["trained_epochs"] == 2.0
    second = load_checkpoint(path)
    assert first is not None and second is not None
    assert (first.epochs, second.epochs) == (1.0, 3.0)
    assert any(not np.array_equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_a_rung_that_was_killed_after_its_training_is_only_evaluated(evaluator: Evaluator):
    whole = evaluator(task(1.0))
    again = evaluator(task(1.0))
    assert again["trained_epochs"] == 0
    assert (again["accuracy"], again["loss"]) == (whole["accuracy"], whole["loss"])


@pytest.mark.parametrize("damage", ["gone", "cut", "of another rung"])
def test_without_its_checkpoint_a_rung_begins_at_the_start(evaluator: Evaluator, damage: str):
    evaluator(task(1.0))
    path = checkpoint_path(evaluator.folder, CANDIDATE)
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        found = load_checkpoint(path)
        assert found is not None
        save_checkpoint(path, Checkpoint(0.5, found.weights))
    assert evaluator(task(2.0, before=1.0, rung=2))["trained_epochs"] == 2.0


def test_a_final_student_goes_on_from_its_last_rung(evaluator: Evaluator):
    evaluator(task(1.0))
    found = load_checkpoint(checkpoint_path(evaluator.folder, CANDIDATE))
    assert found is not None
    evaluator(Job(0, CANDIDATE.to_json(), Stage.FINAL, {"epochs": 0, "quantized_epochs": 0}))
    student = load_student(evaluator.folder / CANDIDATE.key)
    np.testing.assert_array_equal(student.export_weights()["fc.weight"], found.weights["fc.weight"])


def test_no_epochs_are_one_shot(evaluator: Evaluator, builder: StudentBuilder):
    found = evaluator(Job(0, CANDIDATE.to_json(), Stage.TRIAL, {"epochs": 0, "rival": None}))
    assert found["images"] == builder.data.validation.size and found["stopped"] is False
    assert found["accuracy"] == evaluator.one_shot(CANDIDATE).evaluation.accuracy
