"""Compute metrics of outputs that come batch by batch, their standard errors, and differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autocompress.problem.tasks.task import Task

GROUPS = 20
"""Examples are left out group by group to see how a metric varies that is no mean."""


@dataclass
class Tally:
    """Outputs seen so far, as a task judges them."""

    task: Task
    rows: list[Tensor] = field(default_factory=list)
    losses: float = 0.0
    count: int = 0

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Take in a batch; outputs that are not finite make the loss infinite."""
        outputs = outputs.float()
        self.rows.append(self.task.statistics(outputs, labels).double().cpu())
        losses = self.task.losses(outputs, labels)
        finite = torch.isfinite(outputs).reshape(len(outputs), -1).all(1)
        self.losses += float(torch.where(finite, losses, torch.inf).sum())
        self.count += len(labels)

    @property
    def statistics(self) -> Tensor:
        """Return the statistics of all examples, `(N, K)`."""
        return torch.cat(self.rows)

    @property
    def loss(self) -> float:
        """Return the mean loss."""
        return self.losses / self.count

    def score(self) -> tuple[float, float]:
        """Return the score and its standard error."""
        rows = self.statistics
        score = score_of(self.task, rows)
        return score, std_err(self.task, rows, score)


def tallied(task: Task, outputs: Iterable[tuple[Tensor, Tensor]]) -> Tally:
    """Return the tally of batches of (outputs, labels)."""
    tally = Tally(task)
    for found, labels in outputs:
        tally.add(found, labels)
    return tally


def score_of(task: Task, rows: Tensor) -> float:
    """Return the score of examples; NaN where the metric is."""
    return task.metric.score(task.measured(rows))


def std_err(task: Task, rows: Tensor, score: float) -> float:
    """Return the standard error of a score: of a mean by its variance, else by leaving groups out."""
    count = len(rows)
    if not task.is_mean:
        return _jackknife(lambda part: score_of(task, rows[part]), count)
    if bool(((rows == 0) | (rows == 1)).all()) and task.metric.scale == 1.0:
        share = task.measured(rows)
        return math.sqrt(share * (1 - share) / count)
    slope = abs(task.metric.spread(score, 1.0)) or 1.0
    return float(rows.std(correction=0)) / math.sqrt(count) / slope


def difference(task: Task, ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Return by how much our score on some examples is above theirs on the same, and its standard error."""
    mean = score_of(task, ours) - score_of(task, theirs)

    def compute(part: Tensor) -> float:
        return score_of(task, ours[part]) - score_of(task, theirs[part])

    return mean, _jackknife(compute, len(ours))


def _jackknife(compute: Callable[[Tensor], float], count: int) -> float:
    """Return the standard error by deleting one group of examples after the other (Tukey 1958)."""
    groups = min(GROUPS, count)
    if groups < 2:
        return 0.0
    group = torch.arange(count) % groups
    values = torch.tensor([compute(group != number) for number in range(groups)], dtype=torch.float64)
    values = values[torch.isfinite(values)]
    if len(values) < 2:
        return 0.0
    spread = (values - values.mean()).square().sum()
    return math.sqrt(float(spread) * (len(values) - 1) / len(values))
