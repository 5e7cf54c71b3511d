"""The training loop: a student learns its teacher's outputs (or, without a teacher, the labels)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import AutocompressError
from autocompress.graph.module import GraphModule
from autocompress.problem.data import Data
from autocompress.problem.splits import Split, TensorSplit
from autocompress.problem.teacher import eval_mode
from autocompress.students.training.losses import ClassLoss, FeatureLoss, Loss, label_loss
from autocompress.students.training.precision import (
    DeviceName,
    Precision,
    autocast,
    device_named,
    layout_for,
    placed,
    uses_bfloat16,
    without_tf32,
)
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
class Distilled:
    """`losses` has the mean loss of each epoch begun; `finished` is False where `stop` ended it early."""

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
    *,
    epochs: float,
    batch_size: int = 128,
    learning_rate: float | None = None,
    temperature: float = 4.0,
    alpha: float = 0.9,
    loss: Loss | None = None,
    features: FeatureLoss | None = None,
    augment: bool = True,
    seed: int = 0,
    precision: Precision = "auto",
    train_on: DeviceName = "auto",
    progress: Progress | None = None,
    time_limit_s: float | None = None,
    stop: Callable[[], bool] | None = None,
) -> Distilled:
    """Trains `student` in place on `data.train` and leaves it in eval mode; the teacher is not changed.

    One cycle of the learning rate (Smith and Topin 2018, arXiv:1708.07120) over `epochs`, which may
    be a fraction; `time_limit_s` shortens the cycle after a few steps were timed. Networks with batch norms
    learn by SGD with Nesterov momentum, those with layer norms by AdamW, and those whose batch norms
    are folded away (for quantization-aware distillation) by SGD at a lower rate; biases and norms do
    not decay. `learning_rate` is the highest of the cycle, by default one that suits the optimiser.

    The loss is `ClassLoss(temperature, alpha)` unless another is given; without a teacher it is the
    cross-entropy with the labels. `features` needs a student and a teacher that are GraphModules.
    A `TeacherOutputs` shared by calls with one seed and batch size computes the teacher once for all.
    It trains on a GPU where torch sees one, unless `train_on` says "cpu"; the student comes back to where it
    was. On the processor equal arguments give equal weights, except under `time_limit_s`; on a GPU sums may
    come out in another order. `stop()` is asked at every step.

    Raises DivergedError when the loss is not finite, InputError for a GPU that is not there.
    """
    device = device_named(train_on)
    answers = TeacherOutputs(teacher) if isinstance(teacher, nn.Module) else teacher
    half = uses_bfloat16(precision, device)
    with placed(student, device), nullcontext() if half else without_tf32(device):
        run = _Run(
            student=student,
            answers=answers,
            all_answers=_all_answers(answers, data.train, batch_size, augment, epochs, device),
            loss=loss or (ClassLoss(temperature, alpha) if answers else label_loss),
            features=features,
            device=device,
            bfloat16=half,
            layout=layout_for(student, next(data.train.batches(2))[0].to(device)),
        )
        return _trained(
            run, data.train, epochs, batch_size, learning_rate, augment, seed, progress, time_limit_s, stop
        )


def _trained(
    run: _Run,
    split: Split,
    epochs: float,
    batch_size: int,
    learning_rate: float | None,
    augment: bool,
    seed: int,
    progress: Progress | None,
    time_limit_s: float | None,
    stop: Callable[[], bool] | None,
) -> Distilled:
    student = run.student
    optimizer, default_rate = make_optimizer(student, learning_rate)
    rate = default_rate if learning_rate is None else learning_rate
    steps_per_epoch = len(split.order(batch_size, False, 0, True))
    total = max(1, round(epochs * steps_per_epoch))
    clock = _Clock(total, time_limit_s)
    losses: list[list[float]] = []
    student.train()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if run.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for epoch, step, positions, images, labels in _passes(split, batch_size, augment, seed):
            if clock.done >= clock.total or (stop is not None and stop()):
                break
            set_learning_rate(optimizer, rate * one_cycle(clock.done / clock.total))
            images, labels = run.laid_out(images), labels.to(run.device)
            told = run.told(positions, (seed, batch_size, augment, epoch, step), images)
            value = run.step(optimizer, images, labels if told is None else told, labels)
            _check_loss(value, clock.done, rate)
            losses.extend([] for _ in range(epoch + 1 - len(losses)))
            losses[epoch].append(value)
            clock.tick()
            if progress:
                progress(clock.done, clock.total, value)
    student.eval()
    return Distilled(
        losses=tuple(sum(values) / len(values) for values in losses if values),
        seconds=clock.seconds,
        steps=clock.done,
        learning_rate=rate,
        precision="bfloat16" if run.bfloat16 else "float32",
        finished=clock.done >= clock.total,
    )


def one_cycle(share: float) -> float:
    """Learning rate over its maximum when `share` of the steps is done: a cosine up, then one down."""
    if share < WARM_UP_SHARE:
        return _cosine(FIRST_SHARE, 1.0, share / WARM_UP_SHARE)
    return _cosine(1.0, LAST_SHARE, (share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(
    student: nn.Module, learning_rate: float | None = None
) -> tuple[torch.optim.Optimizer, float]:
    """(optimiser, the highest learning rate that suits it); see `distil` for the choice."""
    kinds = _norms_of(student)
    if "layer" in kinds:
        rate = learning_rate or ADAMW_LEARNING_RATE
        return torch.optim.AdamW(_groups(student, ADAMW_WEIGHT_DECAY), lr=rate), rate
    rate = learning_rate or (SGD_LEARNING_RATE if "batch" in kinds else FOLDED_LEARNING_RATE)
    groups = _groups(student, SGD_WEIGHT_DECAY)
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True), rate


def _groups(student: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and norms do not decay."""
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


def _passes(
    split: Split, batch_size: int, augment: bool, seed: int
) -> Iterator[tuple[int, int, Tensor, Tensor, Tensor]]:
    """Endless (epoch, step in it, positions, images, labels), shuffled anew in every epoch."""
    for epoch in count():
        order_seed = seed * 10_007 + epoch
        order = split.order(batch_size, True, order_seed, True)
        batches = split.batches(batch_size, shuffle=True, augment=augment, seed=order_seed, drop_last=True)
        for step, (positions, (images, labels)) in enumerate(zip(order, batches, strict=True)):
            yield epoch, step, positions, images, labels


def _all_answers(
    answers: TeacherOutputs | None,
    split: Split,
    batch_size: int,
    augment: bool,
    epochs: float,
    device: torch.device,
) -> Tensor | None:
    """The teacher's outputs for all images where they do not change from epoch to epoch."""
    fixed = isinstance(split, TensorSplit) and not (augment and split.augmentation != "none")
    return answers.of_all(split, batch_size, device) if answers and fixed and epochs >= 1 else None


@dataclass
class _Clock:
    """Counts steps, and shortens their number after the first few so that they end within the limit."""

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
    student: nn.Module
    answers: TeacherOutputs | None
    all_answers: Tensor | None
    loss: Loss
    features: FeatureLoss | None
    device: torch.device
    bfloat16: bool
    layout: torch.memory_format

    def told(self, positions: Tensor, key: tuple[object, ...], images: Tensor) -> Tensor | None:
        """The teacher's outputs for a batch; None without a teacher."""
        if self.all_answers is not None:
            return self.all_answers[positions.to(self.device)]
        return self.answers.outputs(key, images) if self.answers else None

    def laid_out(self, images: Tensor) -> Tensor:
        """On the device, in the layout that suits the student."""
        return images.to(self.device).contiguous(memory_format=self.layout)

    def step(self, optimizer: torch.optim.Optimizer, images: Tensor, told: Tensor, labels: Tensor) -> float:
        with autocast(self.bfloat16, self.device):
            loss = self._loss(images, told, labels)
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
