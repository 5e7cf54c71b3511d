"""Weights of few values: a step for each output channel, and whole multiples of it.

| form | values of a channel | level on disk |
|---|---|---|
| `4`, `3`, `2` | step × odd number from -(2^b - 1) to 2^b - 1: 16, 8, 4 values | ±1 … ±2^(b-1) |
| `binary` | ± step, at first the mean magnitude (Rastegari et al. 2016, arXiv:1603.05279) | ±1 |
| `ternary` | -n, 0, p, two learned scales (Zhu et al. 2017, arXiv:1612.01064) | -1, 0, 1 |

A weight takes the nearest value. Without a zero in the middle 2^b values lie evenly on both sides; of
2-bit values three would be left otherwise. Runtimes see 8-bit integers, so that their integer kernels
run, in the time of 8 bits; only files get smaller. `graph.straight_through` does the same in training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.levels import LEAST_SCALE, WEIGHT_LEVELS
from autocompress.graph.network import GRID_BITS, Network, Weights

Floats = NDArray[np.float32]

TERNARY = "ternary"
_SHARES = 24
_ROUNDS = 10
_LEAST_SHARE = 0.15


def largest_odd(form: str) -> int:
    """Return the largest of the odd multiples that a form other than `ternary` has."""
    return int(2 ** GRID_BITS[form] - 1)


def step_count(form: str, channels: int) -> int:
    return 2 * channels if form == TERNARY else channels


def fit_steps(weight: NDArray[Any], form: str) -> Floats:
    """Return the steps of least squared error for a weight `(out, …)`: `(out,)`, or `(2 · out,)` for
    `ternary`."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    found = _ternary_scales(rows) if form == TERNARY else _odd_steps(np.abs(rows), largest_odd(form))
    return np.maximum(found, LEAST_SCALE).astype(np.float32)


def _odd_steps(magnitudes: NDArray[np.float64], largest: int) -> NDArray[np.float64]:
    """Find steps from shares of the largest magnitude, each improved for the levels it gives; the best
    stays."""
    best_error = np.full(len(magnitudes), np.inf)
    best = np.zeros(len(magnitudes))
    for share in np.linspace(_LEAST_SHARE, 1.0, _SHARES) if largest > 1 else (1.0,):
        step = np.maximum(share * magnitudes.max(1, initial=0) / largest, LEAST_SCALE)
        odd = np.minimum(2 * np.floor(magnitudes / step[:, None] / 2) + 1, largest)
        step = (magnitudes * odd).sum(1) / (odd * odd).sum(1)
        error = ((magnitudes - odd * step[:, None]) ** 2).sum(1)
        best = np.where(error < best_error, step, best)
        best_error = np.minimum(error, best_error)
    return best


def _ternary_scales(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Run Lloyd's iteration from thresholds at 0.7 of the mean magnitude (Li and Liu 2016,
    arXiv:1605.04711)."""
    scales = []
    for side in (-rows, rows):
        threshold = 0.7 * np.abs(rows).mean(1, keepdims=True)
        for _ in range(_ROUNDS):
            taken = side > threshold
            scale = np.where(taken, side, 0).sum(1) / np.maximum(taken.sum(1), 1)
            threshold = scale[:, None] / 2
        scales.append(scale)
    least = np.maximum(*scales) / WEIGHT_LEVELS
    return np.concatenate([np.maximum(scale, least) for scale in scales])


def levels_of(weight: NDArray[Any], steps: Floats, form: str) -> NDArray[np.int8]:
    """Return the level of each weight, as the table above says."""
    weight = weight.astype(np.float32)
    if form == TERNARY:
        negative, positive = (_column(part, weight) for part in _halves(steps))
        return (weight > positive / 2).astype(np.int8) - (weight < -negative / 2).astype(np.int8)
    odd = 2 * np.floor(weight / _column(np.maximum(steps, LEAST_SCALE), weight) / 2) + 1
    odd = np.clip(odd, -largest_odd(form), largest_odd(form))
    return ((odd + np.sign(odd)) / 2).astype(np.int8)


def values_of(levels: NDArray[Any], steps: Floats, form: str) -> Floats:
    """Return the values that levels stand for."""
    integers, scales = integers_of(levels, steps, form)
    return integers.astype(np.float32) * _column(scales, levels)


def integers_of(
    levels: NDArray[Any], steps: Floats, form: str, least_scale: NDArray[Any] | float = 0.0
) -> tuple[NDArray[np.int8], Floats]:
    """Return the 8-bit integers that a runtime computes with, and the scale of each output channel.

    Of the two values of a ternary channel the larger is 127, the other rounded, at least 1. Where a scale
    would be below `least_scale` that is taken, and the integers are rounded to it.
    """
    if form == TERNARY:
        negative, positive = (np.maximum(part, LEAST_SCALE) for part in _halves(steps))
        scales = np.maximum(negative, positive) / np.float32(WEIGHT_LEVELS)
        sides = [_column(np.maximum(np.rint(part / scales), 1), levels) for part in (negative, positive)]
        integers = np.where(levels < 0, -sides[0], np.where(levels > 0, sides[1], 0))
    else:
        scales = np.maximum(steps, LEAST_SCALE)
        integers = 2 * levels.astype(np.int64) - np.sign(levels)
    wanted = np.maximum(scales, least_scale).astype(np.float32)
    if (wanted > scales).any():
        integers = np.rint(integers * _column(scales / wanted, levels))
    return integers.astype(np.int8), wanted


def rounded(weight: NDArray[Any], steps: Floats, form: str) -> Floats:
    """Return the weight as its layer uses it."""
    return values_of(levels_of(weight, steps, form), steps, form)


def scaled(
    weight: NDArray[Any], steps: Floats, form: str, factor: NDArray[Any]
) -> tuple[NDArray[Any], Floats]:
    """Return (weight, steps) of the rounded weight whose channels are multiplied by `factor`, of either
    sign."""
    column = _column(factor, weight)
    if form != TERNARY:
        return rounded(weight, steps, form) * column, (steps * np.abs(factor)).astype(np.float32)
    negative, positive = _halves(steps)
    swapped = np.where(factor < 0, positive, negative), np.where(factor < 0, negative, positive)
    changed = np.concatenate([part * np.abs(factor) for part in swapped]).astype(np.float32)
    return rounded(weight, steps, form) * column, changed


def on_grids(network: Network, weights: Weights) -> Weights:
    """Return all weights, those of layers with a grid rounded as the layers use them."""
    return from_levels(network, {**weights, **to_levels(network, weights)})


def to_levels(network: Network, weights: Weights) -> Weights:
    """Return the weights that are on a grid as their levels, int8; the others are not among them."""
    found: Weights = {}
    for node in network.nodes:
        if node.grid is not None:
            name = node.args[1].name
            found[name] = levels_of(weights[name], weights[node.grid.step], node.grid.form)
    return found


def from_levels(network: Network, weights: Weights) -> Weights:
    """Return all weights, those that are on a grid given as levels of any type.

    Raises ValueError for a level that its form does not have.
    """
    restored = dict(weights)
    for node in network.nodes:
        if node.grid is None:
            continue
        name, form = node.args[1].name, node.grid.form
        levels = weights[name]
        most = 1 if form == TERNARY else 2 ** (GRID_BITS[form] - 1)
        whole = np.isfinite(levels).all() and (levels == np.rint(levels)).all()
        if not whole or np.abs(levels).max(initial=0) > most or (form != TERNARY and (levels == 0).any()):
            raise ValueError(f"{name} has levels that a weight of the form {form!r} does not have")
        restored[name] = values_of(levels.astype(np.int8), weights[node.grid.step], form)
    return restored


def _halves(steps: Floats) -> tuple[Floats, Floats]:
    half = len(steps) // 2
    return steps[:half], steps[half:]


def _column(values: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(-1, *(1,) * (weight.ndim - 1))
