"""The training loop: a student learns its teacher's outputs (or, without a teacher, the labels)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from autocompress.errors import AutocompressError
from autocompress.graph.module import GraphModule
from autocompress.problem.data import Data
from autocompress.problem.splits import Split, TensorSplit
from autocompress.problem.tasks.task import Task
from autocompress.problem.teacher import eval_mode
from autocompress.students.training.losses import FeatureLoss, Loss
from autocompress.students.training.precision import (
    autocast,
    device_named,
    layout_for,
    placed,
    uses_bfloat16,
    without_tf32,
)
from autocompress.students.training.settings import DistillSettings
from autocompress.students.training.teacher_cache import TeacherOutputs

Progress = Callable[[int, int, float], None]
"""(steps done, steps in all, loss of the last step)."""

MOMENTUM = 0.9
WARM_UP_SHARE = 0.25
FIRST_SHARE, LAST_SHARE = 0.04, 0.001
GRADIENT_NORM = 5.0
SGD_LEARNING_RATE = 0.05
FOLDED_LEARNING_RATE = 0.003
ADAMW_LEARNING_RATE = 1e-3
SGD_WEIGHT_DECAY = 5e-4
ADAMW_WEIGHT_DECAY = 0.05
TIMED_STEPS = 5


class DivergedError(AutocompressError):
    """The loss became NaN or infinite; the student's weights are of no use."""


@dataclass(frozen=True)
class DistilledStudent:
    """Say how it went: `losses` has the mean loss of each epoch begun; `finished` is False where `stop` ended
    it early."""

    losses: tuple[float, ...]
    seconds: float
    steps: int
    learning_rate: float
    precision: str
    finished: bool


def distil(
    student: nn.Module,
    teacher: nn.Module | TeacherOutputs | None,
    data: Data,
    settings: DistillSettings,
    *,
    loss: Loss | None = None,
    features: FeatureLoss | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> DistilledStudent:
    """Train `student` in place on `data.train` and leave it in eval mode; the teacher is not changed.

    One cycle of the learning rate (Smith and Topin 2018, arXiv:1708.07120). Networks with batch norms
    learn by SGD with Nesterov momentum, those with layer norms by AdamW, and those whose batch norms
    are folded away (for quantization-aware distillation) by SGD at a lower rate; biases and norms do
    not decay.

    The loss is that of the data's task unless another is given; without a teacher that of the labels.
    `features` needs a student and a teacher that are GraphModules.
    A `TeacherOutputs` shared by calls with one seed and batch size computes the teacher once for all.
    The student comes back to the device where it was. On the processor equal arguments give equal weights,
    except under a time limit; on a GPU sums may come out in another order. `stop()` is asked at every step.

    Raises DivergedError when the loss is not finite, InputError for a GPU that is not there.
    """
    device = device_named(settings.train_on)
    answers = TeacherOutputs(teacher) if isinstance(teacher, nn.Module) else teacher
    half = uses_bfloat16(settings.precision, device)
    with placed(student, device), nullcontext() if half else without_tf32(device):
        run = _Run(
            student=student,
            answers=answers,
            all_answers=_all_answers(answers, data.train, settings, device),
            split=data.train,
            settings=settings,
            loss=loss or _loss_of(data.task, settings, has_teacher=answers is not None),
            features=features,
            device=device,
            bfloat16=half,
            layout=layout_for(student, next(data.train.batches(2))[0].to(device)),
        )
        return run.train(progress, stop)


def _loss_of(task: Task, settings: DistillSettings, *, has_teacher: bool) -> Loss:
    if not has_teacher:
        return lambda outputs, _, labels: task.loss(outputs, labels)
    return partial(task.distilled, temperature=settings.temperature, alpha=settings.alpha)


def one_cycle(share: float) -> float:
    """Return the learning rate over its maximum when `share` of the steps is done: a cosine up, then one
    down."""
    if share < WARM_UP_SHARE:
        return _cosine(FIRST_SHARE, 1.0, share / WARM_UP_SHARE)
    return _cosine(1.0, LAST_SHARE, (share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(
    student: nn.Module, learning_rate: float | None = None
) -> tuple[torch.optim.Optimizer, float]:
    """Return (optimiser, the highest learning rate that suits it); see `distil` for the choice."""
    kinds = _norms_of(student)
    if "layer" in kinds:
        rate = ADAMW_LEARNING_RATE if learning_rate is None else learning_rate
        return torch.optim.AdamW(_groups(student, ADAMW_WEIGHT_DECAY), lr=rate), rate
    rate = SGD_LEARNING_RATE if "batch" in kinds else FOLDED_LEARNING_RATE
    rate = rate if learning_rate is None else learning_rate
    groups = _groups(student, SGD_WEIGHT_DECAY)
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True), rate


def _groups(student: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimiser's groups: biases and norms do not decay."""
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    return [
        {"params": [value for value in trained if value.ndim > 1], "weight_decay": weight_decay},
        {"params": [value for value in trained if value.ndim <= 1], "weight_decay": 0.0},
    ]


def _norms_of(student: nn.Module) -> set[str]:
    if isinstance(student, GraphModule):
        names = {"batch_norm": "batch", "layer_norm": "layer"}
        return {names[node.op] for node in student.source_network.nodes if node.op in names}
    kinds = set()
    for part in student.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            kinds.add("batch")
        elif isinstance(part, nn.LayerNorm):
            kinds.add("layer")
    return kinds


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


class _Step(NamedTuple):
    """One batch of a pass; `positions` are those of its images in the split."""

    epoch: int
    number: int
    positions: Tensor
    images: Tensor
    labels: Tensor


def _steps(split: Split, settings: DistillSettings) -> Iterator[_Step]:
    """Yield batches without end, shuffled anew in every epoch."""
    size, augment = settings.batch_size, settings.augment
    for epoch in count():
        seed = settings.seed * 10_007 + epoch
        order = split.order(size, True, seed, True)
        batches = split.batches(size, shuffle=True, augment=augment, seed=seed, drop_last=True)
        for number, (positions, (images, labels)) in enumerate(zip(order, batches, strict=True)):
            yield _Step(epoch, number, positions, images, labels)


def _all_answers(
    answers: TeacherOutputs | None, split: Split, settings: DistillSettings, device: torch.device
) -> Tensor | None:
    """Return the teacher's outputs for all images where they do not change from epoch to epoch."""
    fixed = isinstance(split, TensorSplit) and not (settings.augment and split.augmentation != "none")
    if answers is None or not fixed or settings.epochs < 1:
        return None
    if not answers.fits(split, device):
        return None
    return answers.of_all(split, settings.batch_size, device)


@dataclass
class _Clock:
    """Count steps, and shorten their number after the first few so that they end within the limit."""

    total: int
    limit_s: float | None
    done: int = 0

    def __post_init__(self) -> None:
        self.start_s = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start_s

    def tick(self) -> None:
        self.done += 1
        if self.limit_s is not None and self.done >= TIMED_STEPS:
            affordable = int(self.limit_s / (self.seconds / self.done))
            self.total = max(self.done, min(self.total, affordable))


@dataclass
class _Run:
    """Hold what every step of one training needs."""

    student: nn.Module
    answers: TeacherOutputs | None
    all_answers: Tensor | None
    split: Split
    settings: DistillSettings
    loss: Loss
    features: FeatureLoss | None
    device: torch.device
    bfloat16: bool
    layout: torch.memory_format

    def train(self, progress: Progress | None, stop: Callable[[], bool] | None) -> DistilledStudent:
        """Carry out all steps."""
        settings, student = self.settings, self.student
        optimizer, rate = make_optimizer(student, settings.learning_rate)
        steps_per_epoch = len(self.split.order(settings.batch_size, False, 0, True))
        clock = _Clock(max(1, round(settings.epochs * steps_per_epoch)), settings.time_limit_s)
        losses: list[list[float]] = []
        student.train()
        with torch.random.fork_rng(devices=self._gpus):
            torch.manual_seed(settings.seed)
            for step in _steps(self.split, settings):
                if clock.done >= clock.total or (stop is not None and stop()):
                    break
                set_learning_rate(optimizer, rate * one_cycle(clock.done / clock.total))
                value = self._step(optimizer, step)
                _check_loss(value, clock.done, rate)
                losses.extend([] for _ in range(step.epoch + 1 - len(losses)))
                losses[step.epoch].append(value)
                clock.tick()
                if progress:
                    progress(clock.done, clock.total, value)
        student.eval()
        return DistilledStudent(
            losses=tuple(sum(values) / len(values) for values in losses if values),
            seconds=clock.seconds,
            steps=clock.done,
            learning_rate=rate,
            precision="bfloat16" if self.bfloat16 else "float32",
            finished=clock.done >= clock.total,
        )

    @property
    def _gpus(self) -> list[int]:
        return [torch.cuda.current_device()] if self.device.type == "cuda" else []

    def _answer(self, step: _Step, images: Tensor) -> Tensor | None:
        """Return the teacher's outputs for a batch; None without a teacher."""
        if self.all_answers is not None:
            return self.all_answers[step.positions.to(self.device)]
        if self.answers is None:
            return None
        settings = self.settings
        key = (settings.seed, settings.batch_size, settings.augment, step.epoch, step.number)
        return self.answers.outputs(key, images)

    def _step(self, optimizer: torch.optim.Optimizer, step: _Step) -> float:
        """Change the student's weights once; return the loss before."""
        images = step.images.to(self.device).contiguous(memory_format=self.layout)
        labels = step.labels.to(self.device)
        answer = self._answer(step, images)
        with autocast(self.bfloat16, self.device):
            loss = self._loss(images, labels if answer is None else answer, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), GRADIENT_NORM)
        optimizer.step()
        return float(loss.detach())

    def _loss(self, images: Tensor, told: Tensor, labels: Tensor) -> Tensor:
        if self.features is None or self.answers is None:
            return self.loss(self.student(images).float(), told, labels)
        student, teacher = self.student, self.answers.teacher_on(self.device)
        if not isinstance(student, GraphModule) or not isinstance(teacher, GraphModule):
            raise TypeError("features are read off GraphModules, for the student and for the teacher")
        output = student.source_network.output
        mine = student.forward_values(images, {output, *(pair[0] for pair in self.features.pairs)})
        with eval_mode(teacher), torch.no_grad():
            theirs = teacher.forward_values(images, {pair[1] for pair in self.features.pairs})
        return self.loss(mine[output].float(), told, labels) + self.features(mine, theirs)


def _check_loss(value: float, step: int, rate: float) -> None:
    if not math.isfinite(value):
        raise DivergedError(
            f"the loss became {value} at step {step + 1}",
            where="distillation",
            why=f"the learning rate {rate:g} may be too high for this student",
            fix="use a lower learning rate",
        )
