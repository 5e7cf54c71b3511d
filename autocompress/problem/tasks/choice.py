"""Which task a teacher has on its data: as it was named, or as labels and outputs say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.files import JsonObject
from autocompress.problem import specs
from autocompress.problem.tasks.agreement import Agreement
from autocompress.problem.tasks.classification import Binary, Classification, MultiLabel
from autocompress.problem.tasks.detection import Detection
from autocompress.problem.tasks.embeddings import Embeddings
from autocompress.problem.tasks.metric import SHARE, Metric
from autocompress.problem.tasks.segmentation import Segmentation
from autocompress.problem.tasks.task import GIVEN, Ending, Task, only_metric
from autocompress.problem.tasks.values import DenseValues, Regression

TASKS: dict[str, Callable[..., Task]] = {
    "classification": Classification,
    "binary": Binary,
    "multi-label": MultiLabel,
    "regression": Regression,
    "dense": DenseValues,
    "segmentation": Segmentation,
    "embeddings": Embeddings,
    "detection": Detection,
    "agreement": Agreement,
}
"""In the order in which they are tried where none is named; embeddings are always named."""

ALWAYS_NAMED = ("embeddings", "detection")
_PLAIN = (bool, int, float, str, tuple, list, type(None))
FIX = "name another with --task, or write your own: --task file.py:callable"


@dataclass(frozen=True, eq=False)
class SeenOutputs:
    """Hold what a task is recognised by: outputs for some images, their labels, and what the labels are."""

    outputs: Tensor
    labels: Tensor
    targets: str
    classes: int

    @property
    def described(self) -> str:
        """Return it in words."""
        form = tuple(self.outputs.shape[1:])
        labels = {
            "classes": f"one of {self.classes} classes for each image",
            "none": "no labels",
            "masks": f"masks of {self.classes} classes",
        }.get(self.targets, f"{self.targets} of shape {tuple(self.labels.shape[1:])}")
        return f"the teacher's outputs for an image are {form}; the data has {labels}"


def task_named(name: str | Task, metric: Any = None) -> Task:
    """Return the task of a name with options, such as `segmentation,ignored=11`, or of the user's callable;
    a `metric`, `file.py:callable` or a function, takes the place of the task's own.

    Raises InputError for a name that is none, options that it does not take, and what makes no Task.
    """
    task = name if isinstance(name, Task) else _made(name)
    if metric is None:
        return task
    if not isinstance(metric, str):
        return only_metric(task, metric, GIVEN)
    parsed = specs.parse(metric, InputError)
    return only_metric(task, specs.load_callable(parsed, InputError), metric)


def _made(name: str) -> Task:
    parsed = specs.parse(name, InputError)
    if not parsed.kind:
        maker = TASKS.get(parsed.target)
        if maker is None:
            raise InputError(f"there is no task {parsed.target!r}", fix=f"known: {', '.join(TASKS)}")
        try:
            made = maker(**parsed.options)
        except (TypeError, ValueError) as problem:
            raise InputError(
                f"the task {name!r} cannot be made",
                why=str(problem),
                fix="see docs/tasks.md for what each task takes",
            ) from problem
    else:
        found = specs.load_callable(parsed, InputError)
        made = specs.call(parsed, found, InputError)
    if not isinstance(made, Task):
        raise InputError(
            f"{name} makes a {type(made).__name__}, not a task",
            fix="return an object of a subclass of autocompress.Task",
        )
    made.spec = name
    return made


def task_to_json(task: Task) -> JsonObject:
    """Return what makes the task again in another process.

    Raises InputError for one that was given as an object.
    """
    if not task.spec or (isinstance(task.metric_spec, str) and task.metric_spec == GIVEN):
        raise InputError(
            "workers cannot be given a task or a metric of this process",
            fix="name them: task='file.py:callable', metric='file.py:callable', or use workers=0",
        )
    state = {
        name: value for name, value in vars(task).items() if name not in ("metric", "spec", "metric_spec")
    }
    return {
        "spec": task.spec,
        "metric_spec": task.metric_spec,
        "metric": task.metric.to_json(),
        "state": {name: value for name, value in state.items() if isinstance(value, _PLAIN)},
    }


def task_from_json(data: JsonObject) -> Task:
    """Return the task that `task_to_json` made `data` of."""
    task = task_named(str(data["spec"]), data["metric_spec"] or None)
    for name, value in data["state"].items():
        setattr(task, name, tuple(value) if isinstance(value, list) else value)
    task.metric = Metric.from_json(data["metric"])
    return task


def recognised(seen: SeenOutputs) -> Task:
    """Return the task that labels and outputs fit. Raises InputError where none does."""
    fitting = _fitting(seen)
    if not fitting:
        raise InputError("no task fits the data and the teacher", why=seen.described, fix=FIX)
    if fitting[0] == "agreement":
        return Agreement(values=seen.outputs.ndim < 2 or seen.outputs.shape[1] < 2)
    return TASKS[fitting[0]]()


def _fitting(seen: SeenOutputs) -> list[str]:
    """Return the names of the tasks that fit, in order."""
    found = []
    for name, maker in TASKS.items():
        task = maker()
        if name in ALWAYS_NAMED and seen.targets not in ("boxes",):
            continue
        if task.targets == seen.targets and not problem_of(task, seen):
            found.append(name)
    return found


def problem_of(task: Task, seen: SeenOutputs) -> str:
    """Return why a task does not fit what was seen; nothing where it does."""
    if task.targets != seen.targets:
        needs = {"none": "no labels"}.get(task.targets, task.targets)
        return f"it needs {needs}, and the data has {'no labels' if seen.targets == 'none' else seen.targets}"
    return task.check_outputs(tuple(seen.outputs.shape[1:]), seen.labels, seen.classes)


def check_fit(task: Task, seen: SeenOutputs) -> None:
    """Raise InputError for a task that does not fit, with what was seen and which one would."""
    problem = problem_of(task, seen)
    if not problem:
        return
    fitting = [name for name in _fitting(seen) if name != task.name]
    raise InputError(
        f"the task {task.name} does not fit: {problem}",
        why=seen.described,
        fix=f"--task {fitting[0]} would fit" if fitting else FIX,
    )


def with_ending(task: Task, outputs: Tensor) -> tuple[Task, str]:
    """Return the task as it is for a network that ends in Softmax, LogSoftmax or Sigmoid, and a note of it.

    A network does where all rows sum to one, or their exponentials do, or all values are in [0, 1] and the
    task asks for yes or no.
    """
    ending = ending_of(outputs, task.curvature)
    if not ending or task.ending or isinstance(task, (Regression, DenseValues)):
        return task, ""
    task = copy.copy(task)
    task.ending = ending
    words = {"softmax": "a Softmax", "log-softmax": "a LogSoftmax", "sigmoid": "a Sigmoid"}[ending]
    return task, f"the teacher ends in {words}: students learn on what stands before it, and end in it, too"


def ending_of(outputs: Tensor, curvature: str) -> Ending:
    """Return what a network of these outputs, `(N, classes, …)`, ends in."""
    outputs = outputs.double()
    inside = bool(((outputs >= 0) & (outputs <= 1)).all())
    if curvature == "softmax" and outputs.ndim > 1 and outputs.shape[1] > 1:
        if inside and bool(((outputs.sum(1) - 1).abs() < 1e-3).all()):
            return "softmax"
        if bool((outputs <= 0).all()) and bool((outputs.logsumexp(1).abs() < 1e-3).all()):
            return "log-softmax"
        return ""
    return "sigmoid" if curvature == "sigmoid" and inside else ""


def prepared(task: Task, outputs: Tensor, labels: Tensor) -> Task:
    """Return the task, scaled to the labels already, with what it takes from the teacher's outputs.

    Raises InputError for a metric that is NaN, that is the same whatever the outputs are, or that gives no
    row of numbers for each example.
    """
    rows = _statistics(task, outputs, labels)
    value, metric = task.measured(rows), task.metric
    if value != value:
        raise InputError(
            f"the metric {metric.name} of the teacher is no number on {len(rows)} held-out examples",
            fix="give more held-out data, or another --metric",
        )
    mixed = task.measured(_statistics(task, outputs.roll(1, 0), labels))
    noise = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
    if len(rows) > 2 and value == mixed == task.measured(_statistics(task, noise, labels)):
        raise InputError(
            f"the metric {metric.name} is {value:g} whatever the outputs are",
            why="it is the same for the teacher's outputs, for those of other images, and for noise",
            fix="use a metric that depends on the outputs; see docs/tasks.md",
        )
    if not metric.higher_is_better and metric.scale == 1.0 and mixed > value and metric.unit != SHARE:
        task = copy.copy(task)
        task.metric = Metric(metric.name, False, metric.unit, mixed)
    return task


def _statistics(task: Task, outputs: Tensor, labels: Tensor) -> Tensor:
    rows = task.statistics(outputs, labels)
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(outputs):
        found = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise InputError(
            f"statistics of the task {task.name} are {found} for {len(outputs)} examples",
            fix="return a tensor (N, K), a row for each example; K is 1 where the metric is the mean",
        )
    return rows
