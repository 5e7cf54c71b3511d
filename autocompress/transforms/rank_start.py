"""Ranks to start from: what each layer's weight seems to need, before anything is priced or scored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import Candidate, Option
from autocompress.network import Weights
from autocompress.transforms import factors
from autocompress.transforms.sites import BoundSpace


def rank_start(bound: BoundSpace, weights: Weights) -> Candidate:
    """For every rank site the least share offered that holds what stands out of noise by VBMF (Nakajima et
    al. 2013), as Kim et al. 2016 (arXiv:1511.06530) choose ranks; full rank where none does."""
    choices: dict[str, Option] = {}
    for site in bound.of_kind("rank"):
        weight = weights[bound.network.by_name[site.target].params[0]]
        wanted = needed_share(weight, str(site.settings["method"]))
        enough = [option for option in site.options if option != site.default and float(option) >= wanted]
        choices[site.name] = min(enough, key=float, default=site.default)
    return bound.canonical(Candidate.of(choices))


def needed_share(weight: NDArray[np.floating], method: str) -> float:
    """The share of its full rank that a weight `(out, in, …)` seems to need, by VBMF on the matrices that
    the method truncates; 1 where nothing stands out of noise."""
    out, into = weight.shape[:2]
    if method == "svd":
        matrices = [weight.reshape(out, into)]
    elif method == "tucker2":
        matrices = [weight.reshape(out, -1), np.moveaxis(weight, 1, 0).reshape(into, -1)]
    else:
        matrices = [weight.transpose(1, 2, 0, 3).reshape(into * weight.shape[2], -1)]
    return max(factors.vbmf_rank(matrix) / min(matrix.shape) for matrix in matrices) or 1.0
