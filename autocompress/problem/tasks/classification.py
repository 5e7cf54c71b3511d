"""Classes: one of several, one yes or no, or several at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.problem.tasks.metric import ACCURACY, Metric
from autocompress.problem.tasks.task import Task


def finite_rows(outputs: Tensor) -> Tensor:
    """Return which examples' outputs are all finite, `(N,)`."""
    return torch.isfinite(outputs).flatten(1).all(1)


class Classification(Task):
    """One of several classes; outputs are `(N, classes)`, labels `(N,)`. Accuracy, or top-`k` accuracy.

    `class_weights` weigh the loss of the labels, not the metric.
    """

    name = "classification"
    spec = "classification"

    def __init__(self, k: int = 1, class_weights: tuple[float, ...] = ()) -> None:
        self.k, self.class_weights = int(k), tuple(class_weights)
        self.metric = ACCURACY if k == 1 else Metric(f"top-{k} accuracy")

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of each example."""
        weight = outputs.new_tensor(self.class_weights) if self.class_weights else None
        return functional.cross_entropy(self.scores(outputs), labels, weight=weight, reduction="none")

    def statistics(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return whether each example is right; what is not finite is wrong."""
        if self.k == 1:
            right = outputs.argmax(1) == labels
        else:
            right = (outputs.topk(self.k, 1).indices == labels[:, None]).any(1)
        return (right & finite_rows(outputs))[:, None].double()

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the class of each example."""
        return outputs.argmax(1)

    def check_outputs(self, outputs: tuple[int, ...], labels: Tensor, classes: int) -> str:
        """Return what is wrong."""
        del labels
        if len(outputs) != 1 or outputs[0] < 2:
            return f"it needs a number for each of two or more classes, and the outputs are {outputs}"
        if self.k >= outputs[0]:
            return f"top-{self.k} of {outputs[0]} classes is always right"
        return "" if outputs == (classes,) else f"{outputs[0]} outputs for {classes} classes"


class Binary(Task):
    """Yes or no by one number, above 0 for yes; outputs are `(N, 1)` or `(N,)`, labels 0 or 1, `(N,)`."""

    name = "binary"
    spec = "binary"
    curvature = "sigmoid"

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of each example."""
        scores = self.scores(outputs).reshape(-1)
        return functional.binary_cross_entropy_with_logits(scores, labels.to(scores), reduction="none")

    def statistics(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return whether each example is right."""
        return (self.predictions(outputs) == labels.reshape(-1))[:, None].double()

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return 1 for yes, 0 for no, −1 for what is no number."""
        scores = self.scores(outputs).reshape(-1)
        return torch.where(torch.isfinite(scores), (scores > 0).long(), -1)

    def check_outputs(self, outputs: tuple[int, ...], labels: Tensor, classes: int) -> str:
        """Return what is wrong."""
        del labels
        if outputs not in ((), (1,)):
            return f"it needs one number for an example, and the outputs are {outputs}"
        return "" if classes == 2 else f"labels are 0 and 1, and the data has {classes} classes"


class MultiLabel(Task):
    """Any number of classes at once; outputs are `(N, classes)`, above 0 for yes, labels 0 or 1 alike.

    The metric is mean average precision over the classes that occur, or `metric="F1"`, over all answers.
    """

    name = "multi-label"
    spec = "multi-label"
    targets = "values"
    curvature = "sigmoid"
    is_mean = False

    def __init__(self, metric: str = "mAP") -> None:
        if metric not in ("mAP", "F1"):
            raise ValueError(f"the metric {metric!r} is neither mAP nor F1")
        self.metric = Metric(metric)

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of each example's answers."""
        scores = self.scores(outputs)
        found = functional.binary_cross_entropy_with_logits(scores, labels.to(scores), reduction="none")
        return found.mean(1)

    def statistics(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return scores, then labels, side by side; scores that are not finite rank last."""
        scores = torch.nan_to_num(self.scores(outputs).double(), nan=-torch.inf)
        return torch.cat([scores, labels.double()], 1)

    def measured(self, statistics: Tensor) -> float:
        """Return mAP or F1 of any examples."""
        scores, labels = statistics.chunk(2, 1)
        if self.metric.name == "F1":
            said, true = scores > 0, labels > 0.5
            return float(2 * (said & true).sum() / (said.sum() + true.sum()).clamp_min(1))
        found = [average_precision(one, label) for one, label in zip(scores.T, labels.T, strict=True)]
        found = [value for value in found if value == value]
        return sum(found) / len(found) if found else float("nan")

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return 1 for yes, 0 for no, for each class."""
        return (self.scores(outputs) > 0).long()

    def check_outputs(self, outputs: tuple[int, ...], labels: Tensor, classes: int) -> str:
        """Return what is wrong."""
        del classes
        if len(outputs) != 1 or labels.ndim != 2 or outputs[0] != labels.shape[1]:
            return f"it needs 0 or 1 for each output, and there are outputs {outputs}, labels {_row(labels)}"
        other = labels[(labels != 0) & (labels != 1)]
        return f"labels are 0 or 1, and there is {float(other[0]):g}" if len(other) else ""


def _row(labels: Tensor) -> tuple[int, ...]:
    return tuple(labels.shape[1:])


def average_precision(scores: Tensor, labels: Tensor) -> float:
    """Return the area under precision over recall, summed where recall grows; NaN without a positive.

    Equal scores count together.
    """
    order = scores.argsort(descending=True, stable=True)
    true, sorted_scores = labels[order].cumsum(0), scores[order]
    count = torch.arange(1, len(labels) + 1, dtype=torch.float64)
    last = torch.cat([sorted_scores[1:] != sorted_scores[:-1], torch.ones(1, dtype=torch.bool)])
    true, count = true[last], count[last]
    total = float(true[-1])
    if not total:
        return float("nan")
    gained = torch.diff(true, prepend=torch.zeros(1, dtype=true.dtype))
    return float((gained / total * true / count).sum())
