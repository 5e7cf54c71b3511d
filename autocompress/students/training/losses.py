"""What a student is told: the teacher's outputs, its features, and the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.problem.tasks.task import soft_targets

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(student's output, teacher's output, labels) → a scalar."""


@dataclass(frozen=True)
class ClassLoss:
    """`alpha` · soft targets + (1 - `alpha`) · cross-entropy with the labels."""

    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 <= self.alpha <= 1:
            raise ValueError(f"temperature {self.temperature} must be above 0, alpha {self.alpha} in [0, 1]")

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        loss = student.new_zeros(())
        if self.alpha > 0:
            loss = loss + self.alpha * soft_targets(student, teacher, self.temperature)
        if self.alpha < 1:
            loss = loss + (1 - self.alpha) * functional.cross_entropy(student, labels)
        return loss


def value_loss(student: Tensor, teacher: Tensor, _labels: Tensor) -> Tensor:
    """Return the mean squared error with the teacher's outputs, for regression and dense outputs of any
    shape."""
    return functional.mse_loss(student, teacher)


def label_loss(student: Tensor, _teacher: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy with the labels alone: how a teacher is trained."""
    return functional.cross_entropy(student, labels)


@dataclass(frozen=True)
class FeatureLoss:
    """Make inner values of the student like those of the teacher (Romero et al. 2015, arXiv:1412.6550).

    `pairs` are names of values of the student's and of the teacher's network; each pair must have
    one shape, and counts by its squared error over the teacher's mean square.
    """

    pairs: tuple[tuple[str, str], ...]
    weight: float = 1.0

    def __call__(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        errors = [_relative_error(student[mine], teacher[theirs]) for mine, theirs in self.pairs]
        return self.weight * torch.stack(errors).mean()


def _relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    teacher = teacher.detach().float()
    return (student.float() - teacher).square().mean() / teacher.square().mean().clamp_min(1e-12)
