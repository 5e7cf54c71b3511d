"""From a teacher and its data to the task they have: named or recognised, checked, made ready."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import DataError
from autocompress.problem.data import Data
from autocompress.problem.label_match import doubt_about_labels, matched, with_teacher_outputs
from autocompress.problem.splits import Split
from autocompress.problem.tasks.choice import (
    SeenOutputs,
    check_fit,
    prepared,
    recognised,
    task_named,
    with_ending,
)
from autocompress.problem.tasks.classification import Classification
from autocompress.problem.tasks.task import Task
from autocompress.problem.teacher import Teacher, check_classes, eval_mode

LOOKED_AT, BATCH = 256, 32


@dataclass(frozen=True, eq=False)
class AskedTask:
    """The task and metric that the user named, or gave as objects; None where they are to be found out."""

    task: str | Task | None = None
    metric: Any = None

    def named(self) -> Task | None:
        """Return the task, without a metric of its own. Raises InputError for what is none."""
        return None if self.task is None else task_named(self.task)

    def judged(self, task: Task) -> Task:
        """Return the task with the metric that was asked for."""
        return task_named(task, self.metric)


def fitted(
    teacher: Teacher, data: Data, outputs: tuple[int, ...], asked: AskedTask
) -> tuple[Data, tuple[str, ...]]:
    """Return the data with its task, its labels as the task needs them, and what is to be said.

    `outputs` is the shape of the teacher's outputs for an image. Raises InputError for a task that does not
    fit, TeacherError for another number of classes, DataError for labels that the task lacks.
    """
    task = asked.named()
    if is_of_classes(data, outputs, task):
        data, notes = of_classes(teacher, data, outputs)
        task = task or Classification()
    else:
        notes = ()
    held_out = data.validation.subset(LOOKED_AT)
    found, labels = outputs_of(teacher.module, held_out)
    seen = SeenOutputs(found, labels, data.targets, data.num_classes)
    said = ""
    if task is None:
        task = recognised(seen)
        said = f"task: {task.name}, as {seen.described}"
    if task.targets != "none":
        if data.targets == "none":
            raise DataError(
                f"the task {task.name} needs labels, and the data has none", where=data.name,
                fix="give labelled data; or leave out --task, and agreement with the teacher is the metric",
            )  # fmt: skip
        check_fit(task, seen)
        check_fit(task, replace(seen, labels=data.train.labels))
    task, ending = with_ending(task, found)
    if task.targets == "none":
        data = with_teacher_outputs(teacher.module, data)
        labels = found
    task = prepared(asked.judged(task.scaled(data.validation.labels)), found, labels)
    metric = "" if isinstance(task, Classification) and not asked.metric else f"metric: {task.metric.name}"
    return replace(data, task=task), (*notes, *filter(None, (said, ending, metric)))


def is_of_classes(data: Data, outputs: tuple[int, ...], task: Task | None) -> bool:
    """Return whether labels are to be matched with the teacher's outputs, one for each class."""
    if task is not None:
        return isinstance(task, Classification)
    return data.targets == "classes" and len(outputs) == 1 and (outputs[0] > 1 or data.num_classes != 2)


def of_classes(teacher: Teacher, data: Data, outputs: tuple[int, ...]) -> tuple[Data, tuple[str, ...]]:
    """Return the data with labels numbered like the teacher's outputs, and what is doubtful about them."""
    if data.targets != "classes":
        raise DataError(
            f"classification needs a class for each image, and labels are {data.targets}", where=data.name,
            fix="give class folders or whole numbers, or name another --task",
        )  # fmt: skip
    if len(outputs) == 1:
        data = matched(data, outputs[0], teacher.class_names)
    check_classes(outputs, data.num_classes, teacher.name)
    return data, tuple(filter(None, (doubt_about_labels(teacher.module, data),)))


def outputs_of(module: nn.Module, split: Split) -> tuple[Tensor, Tensor]:
    """Return the module's outputs for a split, in order, and the labels."""
    outputs, labels = [], []
    with eval_mode(module), torch.inference_mode():
        for images, found in split.batches(BATCH):
            outputs.append(module(images).float())
            labels.append(found)
    return torch.cat(outputs), torch.cat(labels)
