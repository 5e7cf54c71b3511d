"""A class for each place of an image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.problem.tasks.metric import Metric
from autocompress.problem.tasks.task import Task

IGNORED = 255


class Segmentation(Task):
    """A class for each place; outputs are `(N, classes, H, W)`, labels `(N, h, w)`, of any size.

    Places of the class `ignored` count nowhere; outputs are brought to the size of the labels. The metric is
    the mean over the classes that occur of intersection over union, summed over all images.
    """

    name = "segmentation"
    spec = "segmentation"
    targets = "masks"
    is_mean = False

    def __init__(self, ignored: int = IGNORED) -> None:
        self.ignored = int(ignored)
        self.metric = Metric("mIoU")

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of each example's places."""
        scores = _sized(self.scores(outputs), labels)
        wanted = self._known(labels, scores.shape[1])
        found = functional.cross_entropy(scores, wanted, ignore_index=-1, reduction="none")
        return found.flatten(1).sum(1) / (wanted >= 0).flatten(1).sum(1).clamp_min(1)

    def statistics(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return for each class the places in both, then in either, of prediction and label."""
        classes = outputs.shape[1]
        wanted = self._known(labels, classes)
        made = _sized(outputs, labels).argmax(1)
        kept = wanted >= 0
        number = torch.arange(len(labels), device=labels.device).view(-1, 1, 1).expand_as(wanted)
        pairs = ((number * classes + wanted) * classes + made)[kept]
        table = torch.bincount(pairs, minlength=len(labels) * classes**2)
        table = table.view(len(labels), classes, classes).double()
        both = table.diagonal(dim1=1, dim2=2)
        found = torch.cat([both, table.sum(1) + table.sum(2) - both], 1)
        bad = ~torch.isfinite(outputs).flatten(1).all(1)
        found[bad, :classes] = 0.0
        return found

    def measured(self, statistics: Tensor) -> float:
        """Return mIoU."""
        both, either = statistics.sum(0).chunk(2)
        return float((both / either)[either > 0].mean())

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the class of each place."""
        return outputs.argmax(1)

    def check_outputs(self, outputs: tuple[int, ...], labels: Tensor, classes: int) -> str:
        """Return what is wrong."""
        del classes
        if len(outputs) != 3 or outputs[0] < 2:
            return f"it needs a map for each of two or more classes, and the outputs are {outputs}"
        if labels.ndim != 3:
            return f"it needs a mask for each image, and labels are {tuple(labels.shape[1:])}"
        found = labels[(labels != self.ignored) & ((labels < 0) | (labels.long() >= outputs[0]))]
        if len(found):
            return f"a mask has the value {int(found[0])}, and there are {outputs[0]} classes"
        return ""

    def _known(self, labels: Tensor, classes: int) -> Tensor:
        """Return labels with −1 for what is ignored."""
        labels = labels.long()
        return torch.where((labels == self.ignored) | (labels < 0) | (labels >= classes), -1, labels)


def _sized(scores: Tensor, labels: Tensor) -> Tensor:
    if scores.shape[2:] == labels.shape[1:]:
        return scores
    return functional.interpolate(scores, labels.shape[1:], mode="bilinear", align_corners=False)
