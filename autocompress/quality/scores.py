"""How much each single choice hurts, before any training.

A choice is carried out alone on the teacher, with batch norms that use the statistics of the batch at
hand, as if they were recalibrated on it. The change of the output distribution on calibration data is
taken: the mean Kullback-Leibler divergence from the teacher's. Sums of such scores rank joint candidates
well enough to start a search from and to decide which change repairs a candidate at the least loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.candidate import Candidate, Option
from autocompress.data_splits import Batch
from autocompress.graph.module import GraphModule, build
from autocompress.network import Weights
from autocompress.transforms.apply import Saliency, apply
from autocompress.transforms.sites import BoundSpace


def choices_to_score(bound: BoundSpace) -> Iterator[tuple[str, Option]]:
    """Every option that changes a float network. 8 bits, whose damage is small, are not among them."""
    for site in bound.free:
        small = (8,) if site.kind == "bits" else ()
        for option in site.options:
            if option != site.default and option not in small:
                yield site.name, option


def score(
    bound: BoundSpace,
    weights: Weights,
    saliency: Saliency,
    batches: list[Batch],
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[tuple[str, Option], float]:
    """{(site, option): nats} for every choice of `choices_to_score`, on the given calibration batches."""
    teacher = build(bound.network, weights)
    targets = [_log_probabilities(teacher, images) for images, _ in batches]
    todo = list(choices_to_score(bound))
    damage: dict[tuple[str, Option], float] = {}
    for index, (name, option) in enumerate(todo):
        if stop is not None and stop():
            break
        network, cut = apply(bound, weights, Candidate.of({name: option}), saliency)
        assert cut is not None
        module = build(network, cut)
        module.train()
        damage[name, option] = _divergence(module, batches, targets)
        if progress is not None:
            progress(index + 1, len(todo))
    return damage


def _log_probabilities(module: GraphModule, images: Tensor) -> Tensor:
    with torch.no_grad():
        return functional.log_softmax(module(images).float(), dim=-1)


def _divergence(module: GraphModule, batches: list[Batch], targets: list[Tensor]) -> float:
    total, count = 0.0, 0
    for (images, _), target in zip(batches, targets, strict=True):
        found = _log_probabilities(module, images)
        total += float(functional.kl_div(found, target, log_target=True, reduction="sum"))
        count += target.numel() // target.shape[-1]
    divergence = total / max(1, count)
    return divergence if divergence == divergence else float("inf")
