"""Numbers: one or several of an image, or one for each of its places."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from autocompress.problem.tasks.metric import DECIBEL, Metric
from autocompress.problem.tasks.task import Task

LEAST_SQUARE = 1e-12


class Regression(Task):
    """One value or several of an example; outputs and labels are `(N, values)`, or `(N,)` for one.

    The metric is the mean absolute error, `metric="MAE"`, over all values, or the share of the variance that
    is explained, `metric="R2"`, its mean over the values. Losses are squares over each value's variance.
    """

    name = "regression"
    spec = "regression"
    targets = "values"
    curvature = "square"

    def __init__(self, metric: str = "MAE") -> None:
        if metric not in ("MAE", "R2"):
            raise ValueError(f"the metric {metric!r} is neither MAE nor R2")
        self.is_mean = metric == "MAE"
        self.metric = Metric("MAE", False, "") if self.is_mean else Metric("R2", True, "")
        self.variance: tuple[float, ...] = ()

    def scaled(self, labels: Tensor) -> Regression:
        """Return the task with the spread of held-out labels, against which errors are held."""
        rows = labels.double().reshape(len(labels), -1)
        found = copy.copy(self)
        found.variance = tuple(rows.var(0, correction=0).clamp_min(LEAST_SQUARE).tolist())
        if self.metric.name == "MAE":
            deviation = float((rows - rows.median(0).values).abs().mean())
            found.metric = Metric("MAE", False, self.metric.unit, deviation or 1.0)
        return found

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error of each example, in variances."""
        outputs, labels = _rows(outputs), _rows(labels)
        return ((outputs - labels.to(outputs)).square() / self._variance(outputs)).mean(1)

    def distance(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the mean squared difference, in variances of the labels."""
        del temperature
        outputs, teacher = _rows(outputs), _rows(teacher)
        return ((outputs - teacher).square() / self._variance(outputs)).mean()

    def bent(self, change: Tensor, teacher: Tensor) -> Tensor:
        """Return half the squared change, in variances of the labels."""
        del teacher
        return 0.5 * _rows(change).square() / self._variance(change)

    def statistics(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return mean absolute errors; for R² squared errors, labels and their squares."""
        outputs, labels = _rows(outputs).double(), _rows(labels).double()
        if self.is_mean:
            return (outputs - labels).abs().mean(1, keepdim=True)
        return torch.cat([(outputs - labels).square(), labels, labels.square()], 1)

    def measured(self, statistics: Tensor) -> float:
        """Return MAE or R²."""
        if self.is_mean:
            return float(statistics.mean())
        errors, labels, squares = statistics.mean(0).chunk(3)
        return float((1 - errors / (squares - labels.square()).clamp_min(LEAST_SQUARE)).mean())

    def check_outputs(self, outputs: tuple[int, ...], labels: Tensor, classes: int) -> str:
        """Return what is wrong."""
        del classes
        if math.prod(outputs) == math.prod(labels.shape[1:]) and len(outputs) < 2:
            return ""
        return f"it needs a number for each value, and there are outputs {outputs} and labels {_form(labels)}"

    def _variance(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.variance or (1.0,))


class DenseValues(Task):
    """A value for each place, such as a cleaned image or a depth map; outputs are shaped as labels are.

    The metric is the peak signal-to-noise ratio, the mean over the examples; `peak` is the largest value less
    the smallest, by default that of the labels.
    """

    name = "dense"
    spec = "dense"
    targets = "values"
    curvature = "square"
    is_mean = True

    def __init__(self, peak: float | None = None) -> None:
        self.peak = peak
        self.metric = Metric("PSNR", True, DECIBEL)

    def scaled(self, labels: Tensor) -> DenseValues:
        """Return the task with the range of held-out labels."""
        found = copy.copy(self)
        found.peak = self.peak or float(labels.max() - labels.min()) or 1.0
        return found

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error of each example, peak being 1."""
        peak = self.peak or 1.0
        return ((outputs - labels.to(outputs)) / peak).square().flatten(1).mean(1)

    def distance(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the mean squared difference over the variance of the teacher's outputs."""
        del temperature
        return (outputs - teacher).square().mean() / teacher.var().clamp_min(LEAST_SQUARE)

    def statistics(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the PSNR of each example in dB."""
        error = self.losses(outputs.double(), labels.double()).clamp_min(LEAST_SQUARE)
        return -10 * error.log10()[:, None]

    def check_outputs(self, outputs: tuple[int, ...], labels: Tensor, classes: int) -> str:
        """Return what is wrong."""
        del classes
        if outputs == tuple(labels.shape[1:]):
            return ""
        return f"it needs outputs shaped as the labels are, {_form(labels)}, and they are {outputs}"


def _rows(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)


def _form(labels: Tensor) -> tuple[int, ...]:
    return tuple(labels.shape[1:])
