"""When to stop an evaluation: as soon as a candidate is not expected to reach its rival any more.

Both are judged on the same images, so the difference of the two is what is estimated: images that both get
right or wrong say nothing. As the images are drawn without replacement from a known number, the uncertainty
goes to zero when all have been seen (after Maron and Moore 1994, "Hoeffding races", with the normal
interval of paired differences in place of Hoeffding's).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autocompress.problem.tasks.measuring import difference, score_of, std_err
from autocompress.problem.tasks.metric import ACCURACY
from autocompress.problem.tasks.task import Task

Correct = NDArray[np.bool_]
WIDTH = 3.0
"""Standard errors that a candidate may be behind: 0.1 % of equals are stopped at each look."""


@dataclass(frozen=True)
class Difference:
    """Estimate over all images of the score of one candidate above that of another."""

    mean: float
    std_err: float

    @property
    def is_hopeless(self) -> bool:
        return self.mean + WIDTH * self.std_err < 0


def compared(task: Task, ours: Tensor, theirs: Tensor | None, score: float, total: int) -> Difference:
    """Return our score above that of another candidate, from statistics of the same examples or, where those
    are not known, from its score over all `total`."""
    if task.is_mean and task.metric == ACCURACY and _is_right_or_wrong(ours):
        right = ours[:, 0].numpy() > 0
        if theirs is None:
            return unpaired(right, score, total)
        return paired(right, theirs[:, 0].numpy() > 0, total)
    left = math.sqrt(max(0.0, 1 - len(ours) / total))
    if theirs is None and not task.is_mean:
        return Difference(0.0, math.inf)  # A metric of some examples may be another one than that of all.
    if theirs is None:
        own = score_of(task, ours)
        return Difference(own - score, std_err(task, ours, own) * left)
    mean, error = difference(task, ours, theirs)
    return Difference(mean, error * left)


def _is_right_or_wrong(rows: Tensor) -> bool:
    return bool(((rows == 0) | (rows == 1)).all())


def paired(ours: Correct, theirs: Correct, total: int) -> Difference:
    """Measure the difference on the same images, of which there are `total`.

    One disagreement in either direction is added, so that a few images without any prove nothing.
    """
    count = len(ours)
    difference = ours.astype(np.int64) - theirs.astype(np.int64)
    mean = float(difference.mean())
    square = (float(np.abs(difference).sum()) + 2) / (count + 2)
    return Difference(mean, _std_err(square - mean**2, count, total))


def unpaired(ours: Correct, accuracy: float, total: int) -> Difference:
    """Estimate the difference from a candidate's own images and the accuracy of the other one over all
    `total`."""
    count = len(ours)
    share = (float(ours.sum()) + 1) / (count + 2)
    return Difference(float(ours.mean()) - accuracy, _std_err(share * (1 - share), count, total))


def _std_err(variance: float, count: int, total: int) -> float:
    return math.sqrt(max(variance, 0.0) / count * max(0.0, 1 - count / total))
