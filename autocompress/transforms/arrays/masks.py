"""Unstructured and N:M sparsity: which weights stay, as masks.

Magnitude pruning keeps the largest (Han et al. 2015, arXiv:1506.02626); scores of any other importance go
the same way. The zeros make a coded file smaller and nothing else; N:M (Mishra et al. 2021,
arXiv:2104.08378) is what some accelerators have kernels for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def kept_weights(size: int, density: float) -> int:
    """Return how many of `size` weights a density keeps: at least one."""
    return min(size, max(1, round(size * density)))


def magnitude_mask(scores: NDArray[Any], density: float) -> Mask:
    """Return True for the share `density` of the weights with the largest magnitudes of `scores`.

    Exactly `kept_weights` are kept; of equal ones the first. Raises ValueError for a density outside (0, 1].
    """
    _check(density)
    flat = np.abs(scores).ravel()
    kept = np.argsort(-flat, kind="stable")[: kept_weights(flat.size, density)]
    mask = np.zeros(flat.size, dtype=np.bool_)
    mask[kept] = True
    return mask.reshape(scores.shape)


def global_masks(scores: Mapping[str, NDArray[Any]], density: float) -> dict[str, Mask]:
    """Return the masks of several tensors, whose scores are compared with one another.

    `density` is that of all of them together; a tensor may be left with nothing but its largest weight.
    """
    _check(density)
    everything = np.concatenate([np.abs(array).ravel() for array in scores.values()])
    kept = kept_weights(everything.size, density)
    threshold = np.partition(everything, everything.size - kept)[everything.size - kept]
    return {name: np.abs(array) >= min(threshold, np.abs(array).max()) for name, array in scores.items()}


def n_of_m_mask(scores: NDArray[Any], kept: int, group: int) -> Mask:
    """Return True for the `kept` largest of every `group` weights in a row along the inputs (axis 1).

    Raises ValueError when the inputs do not divide by `group`.
    """
    if scores.ndim < 2 or scores.shape[1] % group or not 0 < kept <= group:
        raise ValueError(f"{kept}:{group} does not fit a weight of shape {scores.shape}")
    last = np.moveaxis(np.abs(scores), 1, -1)
    groups = last.reshape(*last.shape[:-1], -1, group)
    order = np.argsort(np.argsort(-groups, axis=-1, kind="stable"), axis=-1)
    return np.moveaxis((order < kept).reshape(last.shape), -1, 1)


def gradual_density(final: float, share: float) -> float:
    """Return the density when `share` of the pruning steps is done: from 1 to `final`, fast at first.

    Zhu and Gupta 2017, arXiv:1710.01878, equation 1.
    """
    return final + (1 - final) * (1 - min(max(share, 0.0), 1.0)) ** 3


def _check(density: float) -> None:
    if not 0 < density <= 1:
        raise ValueError(f"a density of {density} is not above 0 and at most 1")
