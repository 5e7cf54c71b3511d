"""How much each single choice hurts, before any training, and which measure of that to believe.

A choice is carried out alone on the teacher, in one shot: what comes after it is fitted in closed form to
what is left, batch norms are recalibrated. The change of the outputs on calibration images is taken by three
measures at once. Their sums over choices are to rank joint candidates; which measure does so best
differs from space to space, and is found on a small probe of joint candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.candidate import Candidate, Option
from autocompress.data_splits import Split
from autocompress.device.statistics import rank_correlation
from autocompress.quality.one_shot import OneShot
from autocompress.transforms.sites import BoundSpace

BATCH = 256

Damage = dict[tuple[str, Option], float]


def choices_to_score(bound: BoundSpace) -> Iterator[tuple[str, Option]]:
    """Every option that changes a float network. 8 bits, whose damage is small, are not among them."""
    for site in bound.free:
        small = (8,) if site.kind == "bits" else ()
        for option in site.options:
            if option != site.default and option not in small:
                yield site.name, option


def divergence(changed: Tensor, teacher: Tensor) -> float:
    """Kullback-Leibler divergence of the teacher's distribution from the changed one, in nats."""
    found, target = changed.log_softmax(-1), teacher.log_softmax(-1)
    return float(functional.kl_div(found, target, log_target=True, reduction="sum")) / len(teacher)


def gradient_weighted_error(changed: Tensor, teacher: Tensor) -> float:
    """Half the squared change of the outputs along the loss's gradient, expected over labels drawn from the
    teacher's own distribution p: ½ Δᵀ (diag p - p pᵀ) Δ, as in second-order pruning."""
    change, p = changed - teacher, teacher.softmax(-1)
    mean = (p * change).sum(-1)
    return float(0.5 * ((p * change.square()).sum(-1) - mean.square()).mean())


def feature_error(changed: Tensor, teacher: Tensor) -> float:
    """Squared change of the outputs before the softmax, as a share of their own square."""
    return float((changed - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12))


MEASURES: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "divergence": divergence,
    "gradient-weighted error": gradient_weighted_error,
    "feature error": feature_error,
}
"""Each of outputs `(N, classes)` of the changed network and of the teacher. Feature error is taken at the
last features that all candidates have in common, the outputs."""


def score(
    one_shot: OneShot,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Damage]:
    """{measure: {(site, option): damage}} for every choice of `choices_to_score`.

    On as many calibration images as layers are fitted to, and on others where there are enough.
    """
    workshop = one_shot.workshop
    split = _unfitted(workshop.data.calibration, one_shot.fit_images)
    images = [images for images, _ in split.batches(BATCH)]
    outputs = partial(one_shot.outputs, batches=images, of="scores")
    teacher = torch.cat(list(outputs(one_shot.student(Candidate()))))
    todo = list(choices_to_score(workshop.bound))
    damage: dict[str, Damage] = {measure: {} for measure in MEASURES}
    for index, choice in enumerate(todo):
        if stop is not None and stop():
            break
        changed = torch.cat(list(outputs(one_shot.student(Candidate.of([choice])))))
        for measure, compute in MEASURES.items():
            value = compute(changed, teacher)
            damage[measure][choice] = value if value == value else float("inf")
        if progress is not None:
            progress(index + 1, len(todo))
    return damage


def _unfitted(calibration: Split, fitted: int) -> Split:
    start = fitted if calibration.size >= 2 * fitted else 0
    return calibration.select(torch.arange(start, min(start + fitted, calibration.size)))


@dataclass(frozen=True)
class Ranking:
    """How well the summed scores of a measure rank joint candidates: Spearman's rank correlation of the
    expected damage with the loss in one shot, over `count` candidates."""

    measure: str
    correlation: float
    count: int


def ranked(
    harms: Mapping[str, Callable[[Candidate], float]], probes: Sequence[Candidate], losses: Sequence[float]
) -> list[Ranking]:
    """The measures, the one that ranks the probes best first; `harms` sums each measure's scores."""
    found = [
        Ranking(measure, rank_correlation([harm(probe) for probe in probes], losses), len(probes))
        for measure, harm in harms.items()
    ]
    return sorted(found, key=lambda ranking: -ranking.correlation)


def described(rankings: Sequence[Ranking]) -> str:
    """One clause for the record of decisions, the best measure first."""
    best, *others = rankings
    text = f"{best.measure} ranks {best.count} random joint candidates at {best.correlation:.2f}"
    if others:
        listed = ", ".join(f"{other.measure} {other.correlation:.2f}" for other in others)
        text += f" and is used ({listed})"
    return text
