"""An evaluator made elsewhere from JSON and arrays is the one that it was packed from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from priced_networks import SPACE, small_resnet

from autocompress.errors import InputError
from autocompress.export.student_folder import load_student
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate
from autocompress.problem.data import LazySplit, Normalisation, load_data
from autocompress.problem.label_match import with_teacher_outputs
from autocompress.problem.space import parse_space
from autocompress.problem.tasks.choice import task_named
from autocompress.problem.teacher import Preprocessing
from autocompress.runs.in_process import InProcess
from autocompress.runs.tasks import Job, Result, Stage
from autocompress.students.builder import StudentBuilder
from autocompress.students.evaluator import Evaluator
from autocompress.students.importances import importances
from autocompress.students.packed_data import DataSpec
from autocompress.students.remote import Receiving, RemoteConfig, make, remote_evaluator
from autocompress.students.training.settings import DistillSettings
from autocompress.transforms.sites import bind

CANDIDATE = Candidate.of({"block:blocks.0": "drop", "bits:fc": 8})


@pytest.fixture(scope="module")
def builder() -> StudentBuilder:
    network, weights = trace(small_resnet(in_channels=3, classes=10), (3, 8, 8))
    bound, data = bind(parse_space(SPACE), network), load_data("digits")
    return StudentBuilder(
        bound, weights, data, importances(bound, weights, data), DistillSettings(seed=3, batch_size=64)
    )


def test_it_gives_the_same_accuracy(builder: StudentBuilder, tmp_path: Path) -> None:
    factory = remote_evaluator(builder, parse_space(SPACE), tmp_path / "distilled")
    config = json.loads(json.dumps(factory.config))
    assert all(name in builder.bound.by_name for name, _ in CANDIDATE.choices)
    task = Job(0, CANDIDATE.to_json(), Stage.TRIAL, {"epochs": 0.3})
    there = make(config, factory.arrays)(task)
    assert there == Evaluator(builder, tmp_path)(task)


@pytest.mark.parametrize("name", ["regression", "agreement"])
def test_other_tasks_are_judged_there_as_here(name: str, builder: StudentBuilder, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (200, 3, 8, 8), generator=generator, dtype=torch.uint8).numpy()
    values = torch.rand(200, 10, generator=generator).numpy()
    data = load_data((images, values), targets="values" if name == "regression" else "none")
    if name == "agreement":
        data = with_teacher_outputs(builder.teacher, data)
    task = task_named(name).scaled(data.validation.labels)
    settings = replace(builder.settings, train_on="cpu")
    own = StudentBuilder(builder.bound, builder.weights, replace(data, task=task), builder.saliency, settings)
    factory = remote_evaluator(own, parse_space(SPACE), tmp_path / "distilled")
    trial = Job(0, CANDIDATE.to_json(), Stage.TRIAL, {"epochs": 0})
    there = make(json.loads(json.dumps(factory.config)), factory.arrays)(trial)
    assert there == Evaluator(own, tmp_path)(trial)


def test_a_task_that_has_no_name_cannot_travel(builder: StudentBuilder) -> None:
    judged = task_named("classification", lambda answers, labels: answers == labels)
    own = replace(builder.data, task=judged)
    other = StudentBuilder(builder.bound, builder.weights, own, builder.saliency)
    with pytest.raises(InputError, match="of this process"):
        remote_evaluator(other, parse_space(SPACE), Path("distilled"))


def test_images_that_splits_share_are_packed_once_and_test_images_are_not_read(
    builder: StudentBuilder,
) -> None:
    factory = remote_evaluator(builder, parse_space(SPACE), Path("distilled"))
    train = builder.data.train
    (images,) = factory.arrays["images"].values()
    assert images.shape == tuple(train.images.shape)  # type: ignore[attr-defined]
    assert set(factory.arrays["positions"]) == {"train", "validation", "calibration"}
    assert factory.array_bytes == sum(a.nbytes for group in factory.arrays.values() for a in group.values())


def test_a_student_made_where_the_run_is_not_seen_comes_with_the_result(
    builder: StudentBuilder, tmp_path: Path
) -> None:
    factory = remote_evaluator(builder, parse_space(SPACE), tmp_path / "elsewhere" / "distilled")
    tasks = iter([Job(0, CANDIDATE.to_json(), Stage.FINAL, {"epochs": 0.1, "quantized_epochs": 0}), None])
    told: list[Result] = []
    on = Receiving(InProcess(make(factory.config, factory.arrays)), tmp_path / "here")
    on.run(lambda: next(tasks), told.append, lambda: False)
    assert told[0].ok and set(told[0].values) == {"accuracy", "accuracy_std_err", "loss"}
    student = load_student(tmp_path / "here" / CANDIDATE.key)
    assert student(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
    assert (tmp_path / "here" / CANDIDATE.key / "model.onnx").stat().st_size > 1000
    assert not (tmp_path / "elsewhere").exists()


def test_images_that_stay_on_disk_need_a_spec(builder: StudentBuilder) -> None:
    train = builder.data.train
    on_disk = LazySplit(lambda *_: torch.zeros(3, 8, 8), train.labels, Normalisation((0,), (1,)), "files")
    lazy = replace(builder.data, train=on_disk)
    other = StudentBuilder(builder.bound, builder.weights, lazy, builder.saliency)
    with pytest.raises(InputError, match="not held in memory"):
        remote_evaluator(other, parse_space(SPACE), Path("distilled"))
    factory = remote_evaluator(other, parse_space(SPACE), Path("distilled"), data_spec="digits")
    assert set(factory.arrays) == {"weights", *(f"saliency {name}" for name in builder.saliency)}
    assert factory.config["spec"] == "digits"


def test_a_configuration_survives_json(builder: StudentBuilder) -> None:
    hints = Preprocessing((3, 8, 8), mean=(0.5, 0.5, 0.5), fixed=True)
    settings = DistillSettings(batch_size=64, learning_rate=0.01, seed=3, train_on="cpu", time_limit_s=9.0)
    made = RemoteConfig(
        builder.bound.network,
        parse_space(SPACE),
        Path("/here"),
        settings,
        2,
        DataSpec("digits", hints, 10, ()),
    )
    again = RemoteConfig.from_json(json.loads(json.dumps(made.to_json())))
    assert again.settings == settings and again.data == made.data
    assert (again.network, again.folder, again.batch) == (made.network, made.folder, 2)
    assert again.space.fingerprint == made.space.fingerprint
