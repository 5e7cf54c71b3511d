"""What every task says: how outputs are learned from labels and teacher, and how they are judged."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.errors import InputError
from autocompress.problem.tasks.metric import ACCURACY, Metric

Targets = Literal["classes", "values", "masks", "boxes", "none"]
Ending = Literal["", "softmax", "log-softmax", "sigmoid"]
Curvature = Literal["softmax", "sigmoid", "square"]

GIVEN = "given"
SMALLEST_SHARE = 1e-7
"""Probabilities below it are taken for it, so that their logarithm stays finite."""


class Task:
    """Say what a network's outputs mean. Make a subclass for a task of your own.

    Outputs are one tensor, examples first; labels are a tensor with a row for each example. A subclass gives
    `losses` and `statistics`, and where the metric is no mean over the examples, `measured`. `distance` says
    how far outputs are from the teacher's; `curvature` by which form of loss errors of outputs weigh.

    `targets` is what the labels are, `metric` what students are judged by. `ending` is what the network ends
    in, which `scores` undoes: losses see what stands before it, and students end as their teacher does.
    """

    name: ClassVar[str] = "task"
    targets: ClassVar[Targets] = "classes"
    curvature: ClassVar[Curvature] = "softmax"
    is_mean: bool = True
    """Whether the metric is the mean of `statistics`, which then has one column."""
    learns_labels: bool = True
    """Whether students learn from labels beside their teacher's outputs."""
    metric: Metric = ACCURACY
    ending: Ending = ""
    spec: str = ""
    """What names the task to another process; nothing for an object that only this process has."""
    metric_spec: str = ""
    """What names the metric where it is the user's own, `GIVEN` for a function of this process."""

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example, `(N,)`."""
        raise NotImplementedError

    def statistics(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return what the metric is computed from, `(N, K)`: a row for each example."""
        raise NotImplementedError

    def measured(self, statistics: Tensor) -> float:
        """Return the metric of rows of statistics, of all examples or some."""
        return float(statistics.mean())

    def predictions(self, outputs: Tensor) -> Any:
        """Return what the outputs of the exported file say: by default the outputs themselves."""
        return self.scores(outputs)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, by which a network learns from labels alone."""
        return self.losses(outputs, labels).mean()

    def distance(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return how far outputs are from the teacher's, a scalar that is 0 where they are equal."""
        return distance_of(self.curvature, self.scores(outputs), self.scores(teacher), temperature)

    def distilled(
        self,
        outputs: Tensor,
        teacher: Tensor,
        labels: Tensor,
        temperature: float = 4.0,
        alpha: float = 0.9,
    ) -> Tensor:
        """Return `alpha` · distance to the teacher + (1 − `alpha`) · loss of the labels, a scalar."""
        if not self.learns_labels:
            alpha = 1.0
        total = outputs.new_zeros(())
        if alpha > 0:
            total = total + alpha * self.distance(outputs, teacher, temperature)
        if alpha < 1:
            total = total + (1 - alpha) * self.loss(outputs, labels)
        return total

    def scores(self, outputs: Tensor) -> Tensor:
        """Return what stands before the network's last Softmax, LogSoftmax or Sigmoid, up to a constant."""
        if self.ending == "softmax":
            return outputs.clamp_min(SMALLEST_SHARE).log()
        if self.ending == "sigmoid":
            return outputs.clamp(SMALLEST_SHARE, 1 - SMALLEST_SHARE).logit()
        return outputs

    def bent(self, change: Tensor, teacher: Tensor) -> Tensor:
        """Return half the squared change of scores as the curvature of the loss at the teacher's weighs it: a
        scalar for each example and place."""
        return bent_by(self.curvature, change, teacher)

    def check_outputs(self, outputs: tuple[int, ...], labels: Tensor, classes: int) -> str:
        """Return what is wrong with outputs of this shape, for an example, and these labels; else nothing."""
        del outputs, labels, classes
        return ""

    def scaled(self, labels: Tensor) -> Task:
        """Return the task with what it needs to know of the held-out labels: by default itself."""
        del labels
        return self

    def __repr__(self) -> str:
        return f"{self.name} ({self.metric.name})"


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the KL divergence from the teacher's softened class probabilities, times T² (Hinton et al. 2015,
    arXiv:1503.02531): the factor keeps gradients of the size they have at temperature 1.

    Scores are `(N, classes)` or `(N, classes, …)`; the result is the mean over examples and places.
    """
    places = student[0, 0].numel() if student.ndim > 2 else 1
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, 1),
        functional.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2 / places


def soft_answers(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the mean KL divergence of independent yes-or-no answers, times T², of their scores."""
    student, teacher = student / temperature, teacher / temperature
    share = teacher.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(teacher, share)
    return (functional.binary_cross_entropy_with_logits(student, share) - entropy) * temperature**2


def distance_of(curvature: Curvature, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the divergence that belongs to a loss of this curvature."""
    if curvature == "softmax":
        return soft_targets(student, teacher, temperature)
    if curvature == "sigmoid":
        return soft_answers(student, teacher, temperature)
    return functional.mse_loss(student, teacher)


def bent_by(curvature: Curvature, change: Tensor, teacher: Tensor) -> Tensor:
    """Return ½ Δᵀ H Δ with H the Hessian of the loss by the scores: diag p − ppᵀ over classes (axis 1), or
    p (1 − p) of single answers, or 1."""
    if curvature == "square":
        return 0.5 * change.square()
    if curvature == "sigmoid":
        p = teacher.sigmoid()
        return 0.5 * p * (1 - p) * change.square()
    p = teacher.softmax(1)
    mean = (p * change).sum(1)
    return 0.5 * ((p * change.square()).sum(1) - mean.square())


def drawn_direction(curvature: Curvature, scores: Tensor, signs: Tensor) -> Tensor:
    """Return random vectors whose outer products have the Hessian of the loss by the scores as their mean.

    Scores and signs (1 or −1 at random) are `(places, classes)`. For the softmax diag(p) − ppᵀ is S Sᵀ with
    S = diag(√p) − p√pᵀ.
    """
    if curvature == "square" or (curvature == "softmax" and scores.shape[1] == 1):
        return signs
    if curvature == "sigmoid":
        p = scores.detach().sigmoid()
        return (p * (1 - p)).sqrt() * signs
    p = scores.detach().softmax(1)
    drawn = p.sqrt() * signs
    return drawn - p * drawn.sum(1, keepdim=True)


def only_metric(task: Task, metric: Any, spec: str = GIVEN) -> Task:
    """Return the task judged by a metric of the user's: a function of (predictions, labels) that gives a
    number for each example, `(N,)`, the higher the better.

    The function may carry `name`, `higher_is_better`, `unit` and `scale`. Raises InputError for what is no
    function.
    """
    if not callable(metric):
        raise InputError(f"the metric is a {type(metric).__name__}, not a function", fix="give a callable")
    name = str(getattr(metric, "name", getattr(metric, "__name__", type(metric).__name__)))
    found = Metric(
        name,
        bool(getattr(metric, "higher_is_better", True)),
        str(getattr(metric, "unit", "")),
        float(getattr(metric, "scale", 1.0)),
    )

    class Judged(type(task)):  # type: ignore[misc]
        """The task with another metric."""

        is_mean = True

        def statistics(self, outputs: Tensor, labels: Tensor) -> Tensor:
            """Return the user's number for each example."""
            values = torch.as_tensor(metric(self.predictions(outputs), labels), dtype=torch.float64)
            if values.shape != (len(outputs),):
                raise InputError(
                    f"the metric {name} gave shape {tuple(values.shape)} for {len(outputs)} examples",
                    fix="return one number for each example; a metric of whole data sets is a Task's "
                    "statistics and measured",
                )
            return values[:, None]

        def measured(self, statistics: Tensor) -> float:
            """Return the mean."""
            return float(statistics.mean())

    judged = Judged.__new__(Judged)
    judged.__dict__.update(vars(task))
    judged.metric, judged.metric_spec = found, spec
    return judged
