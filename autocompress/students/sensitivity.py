"""How much each single choice hurts, before any training, and which measure of that to believe.

A choice is carried out alone on the teacher, in one shot: what comes after it is fitted in closed form to
what is left, batch norms are recalibrated. The change of the outputs on calibration images is taken by three
measures at once. Their sums over choices are to rank joint candidates; which measure does so best
differs from space to space, and is found on a small probe of joint candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.device.measure.statistics import rank_correlation
from autocompress.problem.candidate import Candidate, Option
from autocompress.problem.splits import Split
from autocompress.problem.tasks.classification import Classification
from autocompress.problem.tasks.task import Task
from autocompress.students.one_shot import OneShot
from autocompress.transforms.sites import BoundSpace

BATCH = 256
OUTPUT_BYTES = 64 * 2**20
"""Of the teacher; where outputs are large, fewer images are looked at."""
CLASSIFICATION = Classification()

Damage = dict[tuple[str, Option], float]


def choices_to_score(bound: BoundSpace) -> Iterator[tuple[str, Option]]:
    """Yield every option that changes a float network. 8 bits, whose damage is small, are not among them."""
    for site in bound.free:
        small = (8,) if site.kind == "bits" else ()
        for option in site.options:
            if option != site.default and option not in small:
                yield site.name, option


def divergence(changed: Tensor, teacher: Tensor, task: Task = CLASSIFICATION) -> float:
    """Return how far the task holds the outputs to be from the teacher's: for classes the Kullback-Leibler
    divergence of the teacher's distribution from the changed one, in nats."""
    return float(task.distance(changed, teacher))


def gradient_weighted_error(changed: Tensor, teacher: Tensor, task: Task = CLASSIFICATION) -> float:
    """Return half the squared change of the outputs as the curvature of the loss weighs it: for classes along
    the loss's gradient, expected over labels drawn from the teacher's own distribution p:
    ½ Δᵀ (diag p - p pᵀ) Δ, as in second-order pruning."""
    scores = task.scores(teacher)
    return float(task.bent(task.scores(changed) - scores, scores).mean())


def feature_error(changed: Tensor, teacher: Tensor, _task: Task = CLASSIFICATION) -> float:
    """Return the squared change of the outputs as a share of their own square."""
    return float((changed - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12))


MEASURES: Mapping[str, Callable[..., float]] = {
    "divergence": divergence,
    "gradient-weighted error": gradient_weighted_error,
    "feature error": feature_error,
}
"""Each of outputs of the changed network and of the teacher, and the task. Feature error is taken at the
last features that all candidates have in common, the outputs."""


class Scorer:
    """Score candidates by what they change of the teacher's outputs: {measure: damage} for each.

    On as many calibration images as layers are fitted to, and on others where there are enough.
    """

    def __init__(self, one_shot: OneShot) -> None:
        self._one_shot = one_shot
        split = _unfitted(one_shot.builder.data.calibration, one_shot.fit_images)
        network = one_shot.builder.teacher.source_network
        most = max(1, OUTPUT_BYTES // (4 * math.prod(network.shape_of(network.output)[1:])))
        self._images = [
            images for images, _ in split.select(torch.arange(min(most, split.size))).batches(BATCH)
        ]
        self._teacher = self._outputs(Candidate())

    def __call__(self, candidate: Candidate) -> dict[str, float]:
        """Return the damage by each measure; one that is no number is infinite."""
        changed = self._outputs(candidate)
        task = self._one_shot.builder.data.task
        values = {measure: compute(changed, self._teacher, task) for measure, compute in MEASURES.items()}
        return {name: value if value == value else float("inf") for name, value in values.items()}

    def _outputs(self, candidate: Candidate) -> Tensor:
        one_shot = self._one_shot
        return torch.cat(list(one_shot.outputs(one_shot.student(candidate), self._images, "scores")))


def score(one_shot: OneShot) -> dict[str, Damage]:
    """Return {measure: {(site, option): damage}} for every choice of `choices_to_score`."""
    scorer = Scorer(one_shot)
    found = {choice: scorer(Candidate.of([choice])) for choice in choices_to_score(one_shot.builder.bound)}
    return {measure: {choice: one[measure] for choice, one in found.items()} for measure in MEASURES}


def _unfitted(calibration: Split, fitted: int) -> Split:
    start = fitted if calibration.size >= 2 * fitted else 0
    return calibration.select(torch.arange(start, min(start + fitted, calibration.size)))


@dataclass(frozen=True)
class Ranking:
    """Say how well the summed scores of a measure rank joint candidates: Spearman's rank correlation of the
    expected damage with the loss in one shot, over `count` candidates."""

    measure: str
    correlation: float
    count: int


def ranked(
    harms: Mapping[str, Callable[[Candidate], float]], probes: Sequence[Candidate], losses: Sequence[float]
) -> list[Ranking]:
    """Return the measures, the one that ranks the probes best first; `harms` sums each measure's scores."""
    found = [
        Ranking(measure, rank_correlation([harm(probe) for probe in probes], losses), len(probes))
        for measure, harm in harms.items()
    ]
    return sorted(found, key=lambda ranking: -ranking.correlation)


def described(rankings: Sequence[Ranking]) -> str:
    """Return one clause for the record of decisions, the best measure first."""
    best, *others = rankings
    text = f"{best.measure} ranks {best.count} random joint candidates at {best.correlation:.2f}"
    if others:
        listed = ", ".join(f"{other.measure} {other.correlation:.2f}" for other in others)
        text += f" and is used ({listed})"
    return text
