"""Data without labels: the teacher's outputs are the targets, agreement with it is the metric."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.problem.tasks.classification import finite_rows
from autocompress.problem.tasks.metric import Metric
from autocompress.problem.tasks.task import Task, bent_by

AGREEMENT = "agreement with the teacher"


class Agreement(Task):
    """Do as the teacher does; labels are its outputs, shaped as outputs are.

    For classes, `(N, classes)` or `(N, classes, …)`, the metric is the share of images, or of places, with
    the same best class; for other numbers the share of the variance of its outputs that is explained.
    """

    name = "agreement"
    spec = "agreement"
    targets = "none"
    is_mean = True
    learns_labels = False

    def __init__(self, values: bool = False) -> None:
        self.values = bool(values)
        self.is_mean = not self.values
        self.metric = Metric(AGREEMENT)

    @property
    def curvature(self) -> str:  # type: ignore[override]
        """Return the form of the loss."""
        return "square" if self.values else "softmax"

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the divergence of each example from the teacher's."""
        if self.values:
            return (outputs - labels).square().flatten(1).mean(1)
        mine, theirs = self.scores(outputs).log_softmax(1), self.scores(labels).log_softmax(1)
        return (
            (theirs.exp() * (theirs - mine)).sum(1).flatten(1).mean(1)
            if mine.ndim > 2
            else _rows(mine, theirs)
        )

    def statistics(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the share of places with the same best class; of numbers squares and sums."""
        if self.values:
            error = (outputs - labels).double().square().flatten(1).mean(1)
            flat = labels.double().flatten(1)
            return torch.stack([error, flat.mean(1), flat.square().mean(1)], 1)
        same = outputs.argmax(1) == labels.argmax(1)
        same = same.flatten(1).double().mean(1) if same.ndim > 1 else same.double()
        return (same * finite_rows(outputs))[:, None]

    def measured(self, statistics: Tensor) -> float:
        """Return agreement."""
        if not self.values:
            return float(statistics.mean())
        error, mean, square = statistics.mean(0).tolist()
        return 1 - error / max(square - mean**2, 1e-12)

    def bent(self, change: Tensor, teacher: Tensor) -> Tensor:
        """Return half the squared change as the curvature weighs it."""
        return bent_by("square" if self.values else "softmax", change, teacher)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the class of each example or place; numbers as they are."""
        return outputs if self.values else outputs.argmax(1)


def _rows(mine: Tensor, theirs: Tensor) -> Tensor:
    return (theirs.exp() * (theirs - mine)).sum(1)
