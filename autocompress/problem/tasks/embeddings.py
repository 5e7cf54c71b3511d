"""Embeddings: images of one class lie near each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.problem.tasks.metric import Metric
from autocompress.problem.tasks.task import Task

ANGLE_WEIGHT = 2.0
MOST_ANGLED = 64
"""Examples of a batch whose triples are compared: their number grows with its cube."""


class Embeddings(Task):
    """Vectors `(N, dimensions)` compared by cosine; labels are classes, which the network need not know.

    The metric is recall at 1: the share of images whose nearest other one is of their class. Students learn
    the teacher's vectors and, relational distillation, distances and angles among them (Park et al. 2019,
    arXiv:1904.05068), from no labels.
    """

    name = "embeddings"
    spec = "embeddings"
    curvature = "square"
    is_mean = False
    learns_labels = False

    def __init__(self) -> None:
        self.metric = Metric("recall at 1")

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return for each example the negative logarithm of the share, by similarity, of its class among the
        other examples of the batch; 0 where there is none (Khosla et al. 2020, arXiv:2004.11362)."""
        unit = functional.normalize(self.scores(outputs), dim=1)
        alike = (unit @ unit.T / 0.1).fill_diagonal_(-torch.inf)
        same = (labels[:, None] == labels[None]).fill_diagonal_(False)
        logs = alike.log_softmax(1).masked_fill(~same, 0.0)
        return -logs.sum(1) / same.sum(1).clamp_min(1)

    def distance(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return differences of unit vectors, of distances and of angles."""
        del temperature
        mine, theirs = functional.normalize(outputs, dim=1), functional.normalize(teacher, dim=1)
        found = (mine - theirs).square().sum(1).mean()
        if len(mine) < 3:
            return found
        found = found + functional.smooth_l1_loss(_distances(mine), _distances(theirs))
        mine, theirs = mine[:MOST_ANGLED], theirs[:MOST_ANGLED]
        return found + ANGLE_WEIGHT * functional.smooth_l1_loss(_angles(mine), _angles(theirs))

    def bent(self, change: Tensor, teacher: Tensor) -> Tensor:
        """Return half the squared change across the teacher's direction, over its length."""
        length = teacher.norm(dim=1, keepdim=True).clamp_min(1e-6)
        unit = teacher / length
        along = (change * unit).sum(1, keepdim=True)
        return 0.5 * ((change - along * unit) / length).square().sum(1)

    def statistics(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return unit vectors and the class."""
        unit = torch.nan_to_num(functional.normalize(self.scores(outputs).double(), dim=1))
        return torch.cat([unit, labels[:, None].double()], 1)

    def measured(self, statistics: Tensor) -> float:
        """Return recall at 1 among these examples."""
        vectors, labels = statistics[:, :-1], statistics[:, -1]
        right, size = 0, len(vectors)
        for at in torch.arange(size).split(1024):
            alike = vectors[at] @ vectors.T
            alike[torch.arange(len(at)), at] = -torch.inf
            right += int((labels[alike.argmax(1)] == labels[at]).sum())
        return right / size if size > 1 else float("nan")

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return unit vectors."""
        return functional.normalize(outputs, dim=1)

    def check_outputs(self, outputs: tuple[int, ...], labels: Tensor, classes: int) -> str:
        """Return what is wrong."""
        del classes
        if len(outputs) != 1 or outputs[0] < 2:
            return f"it needs a vector for an image, and the outputs are {outputs}"
        return "" if labels.ndim == 1 else "it needs a class for each image"


def _distances(vectors: Tensor) -> Tensor:
    """Return distances over their mean, `(N, N)`."""
    square = (vectors[:, None] - vectors[None]).square().sum(2)
    found = (square + 1e-8).sqrt()
    return found / found.mean().clamp_min(1e-6)


def _angles(vectors: Tensor) -> Tensor:
    """Return cosines of the angles at each example between each two others, `(N, N, N)`."""
    away = functional.normalize(vectors[None] - vectors[:, None], dim=2, eps=1e-4)
    return away @ away.mT
