"""Ranks to start from: what each layer's weight seems to need, before anything is priced or scored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.network import Weights
from autocompress.graph.replace_layer import output_axis
from autocompress.problem.candidate import Candidate, Option, RankSettings, settings_of
from autocompress.transforms.arrays import factors
from autocompress.transforms.families.low_rank import as_image
from autocompress.transforms.sites import BoundSpace

RULES: dict[str, Callable[[NDArray[np.floating]], int]] = {
    "vbmf": factors.vbmf_rank,
    "energy": factors.energy_rank,
}
"""What a matrix needs: what stands out of noise by VBMF (Nakajima et al. 2013), as Kim et al. 2016
(arXiv:1511.06530) choose ranks; or nine tenths of its squared singular values (Zhang et al. 2015,
arXiv:1505.06798)."""


def rank_starts(bound: BoundSpace, weights: Weights) -> list[Candidate]:
    """Return the candidates of `rank_start` by every rule, those apart that leave the teacher as it is."""
    found = {start.key: start for start in (rank_start(bound, weights, rule) for rule in RULES)}
    return [start for start in found.values() if start.choices]


def rank_start(bound: BoundSpace, weights: Weights, rule: str = "vbmf") -> Candidate:
    """Choose for every rank site the least share offered that holds what the weight needs by the rule; full
    rank where none does."""
    choices: dict[str, Option] = {}
    for site in bound.of_kind("rank"):
        node = bound.network.by_name[site.target]
        weight = weights[node.params[0]].swapaxes(0, output_axis(node))
        wanted = needed_share(weight, settings_of(site, RankSettings).method, rule)
        enough = [option for option in site.options if option != site.default and float(option) >= wanted]
        choices[site.name] = min(enough, key=float, default=site.default)
    return bound.canonical(Candidate.of(choices))


def needed_share(weight: NDArray[np.floating], method: str, rule: str = "vbmf") -> float:
    """Return the share of its full rank that a weight `(out, in, …)` seems to need, by a rule on the matrices
    that the method truncates; 1 where nothing stands out of noise."""
    out, into = weight.shape[:2]
    if method == "svd":
        matrices = [weight.reshape(out, into)]
    elif method == "tucker2":
        matrices = [weight.reshape(out, -1), np.moveaxis(weight, 1, 0).reshape(into, -1)]
    else:
        image = weight.reshape(out, into, *as_image(weight.shape[2:]))
        matrices = [image.transpose(1, 2, 0, 3).reshape(into * image.shape[2], -1)]
    return max(RULES[rule](matrix) / min(matrix.shape) for matrix in matrices) or 1.0
