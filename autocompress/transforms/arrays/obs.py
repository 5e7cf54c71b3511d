"""Optimal brain surgeon on single weights: which leave is decided together with what the others then do.

With the second moments G of a layer's input rows, taking weight q of a row w away and changing the others
optimally raises the squared error of the row's output by w_q² / [H]_qq, H being the inverse of G (Hassibi and
Stork 1992, "Second order derivatives for network pruning: optimal brain surgeon"). Each row loses the
cheapest weight, H and w become those of the row that is left, and so on (Frantar et al. 2022,
arXiv:2208.11580). Rows do not depend on each other, so that many go through at once, and the losses of all of
them say how many each should lose. Where that takes too long, columns are gone through once and only those
behind make up for a loss (Frantar and Alistarh 2023, arXiv:2301.00774).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autocompress.problem.candidate import Option
from autocompress.problem.space_rules import n_of_m
from autocompress.transforms.arrays.masks import kept_weights, magnitude_mask, n_of_m_mask

DAMPING = 0.01
"""Added to the diagonal of second moments, as a share of its mean."""

MOST_EXACT_WORK = 2e10
"""Rows times the cube of the fan-in up to which the choice is exact."""

COLUMNS = 128
_MEMORY_VALUES = 1 << 24

Double = NDArray[np.float64]


def obs(
    weight: NDArray[np.floating],
    second: NDArray[np.floating],
    keep: Option,
    damping: float = DAMPING,
    most_exact_work: float = MOST_EXACT_WORK,
) -> Double:
    """Return a layer's weight `(out, in, …)` with zeros, the rest changed to make up for them.

    `second` `(fan_in, fan_in)` are the second moments of what the layer multiplies, `keep` a density of the
    whole weight or a pattern such as `2:4` along the inputs. The zeros are as many as a mask of
    `masks` has, but for rounding where columns go block by block.
    """
    pattern = n_of_m(keep)
    inputs, taps = weight.shape[1], int(np.prod(weight.shape[2:]))
    spare = 0 if pattern is None else -inputs % pattern[1]
    order = _by_taps(inputs, spare, taps)
    rows = np.zeros((len(weight), len(order)))
    rows[:, order >= 0] = weight.reshape(len(weight), -1)[:, order[order >= 0]]
    damped = _damped(second, order, damping)
    exact = len(rows) * float(len(order)) ** 3 <= most_exact_work
    if pattern is None:
        found = _exact(rows, damped, float(keep)) if exact else _blocked(rows, damped, float(keep), None)
    else:
        found = _exact_n_of_m(rows, damped, *pattern) if exact else _blocked(rows, damped, 1.0, pattern)
    flat = np.zeros((len(weight), inputs * taps))
    flat[:, order[order >= 0]] = found[:, order >= 0]
    return flat.reshape(weight.shape)


def _by_taps(inputs: int, spare: int, taps: int) -> NDArray[np.int64]:
    """Return the columns of the weight in an order in which groups along the inputs stand together: tap by
    tap, each filled up by `spare` columns of nothing, which are -1."""
    columns = np.arange(inputs * taps).reshape(inputs, taps).T
    return np.pad(columns, [(0, 0), (0, spare)], constant_values=-1).ravel()


def _damped(second: NDArray[np.floating], order: NDArray[np.int64], damping: float) -> Double:
    level = damping * max(float(np.trace(second)) / len(second), 1e-30)
    there = order >= 0
    damped = np.zeros((len(order), len(order)))
    damped[np.ix_(there, there)] = second[np.ix_(order[there], order[there])]
    return damped + np.diag(np.where(there, level, 1.0))


def _exact(rows: Double, damped: Double, density: float) -> Double:
    """Return the rows with the zeros that hurt least, shared out among them by what each loses."""
    kept = kept_weights(rows.size, density)
    depth = rows.shape[1] - int(density / 2 * rows.shape[1])
    order, losses = _greedy(rows, damped, depth, None)
    leave = np.argsort(np.maximum.accumulate(losses, axis=1).ravel(), kind="stable")[: rows.size - kept]
    counts = np.bincount(leave // depth, minlength=len(rows))
    gone = np.zeros(rows.shape, dtype=np.bool_)
    for row, count in enumerate(counts):
        gone[row, order[row, :count]] = True
    return compensated(rows, damped, gone)


def _exact_n_of_m(rows: Double, damped: Double, kept: int, group: int) -> Double:
    depth = rows.shape[1] // group * (group - kept)
    order, _ = _greedy(rows, damped, depth, (kept, group))
    gone = np.zeros(rows.shape, dtype=np.bool_)
    np.put_along_axis(gone, order, True, axis=1)
    return compensated(rows, damped, gone)


def compensated(rows: Double, damped: Double, gone: NDArray[np.bool_]) -> Double:
    """Return the rows without what is gone, each with the least error `(w - v)ᵀ damped (w - v)` that is
    left."""
    found = np.zeros_like(rows)
    products = rows @ damped
    for row, stays in enumerate(~gone):
        if stays.any():
            found[row, stays] = np.linalg.solve(damped[np.ix_(stays, stays)], products[row, stays])
    return found


def _greedy(
    rows: Double, damped: Double, depth: int, pattern: tuple[int, int] | None
) -> tuple[NDArray[np.int64], Double]:
    """Return for each row the columns that leave, in order, and what each costs: `(rows, depth)` both."""
    inverse = np.linalg.inv(damped).astype(np.float64, copy=False)
    together = max(1, _MEMORY_VALUES // max(1, depth * rows.shape[1]))
    parts = [
        _greedy_rows(rows[first : first + together], inverse, depth, pattern)
        for first in range(0, len(rows), together)
    ]
    return np.concatenate([order for order, _ in parts]), np.concatenate([losses for _, losses in parts])


def _greedy_rows(
    rows: Double, inverse: Double, depth: int, pattern: tuple[int, int] | None
) -> tuple[NDArray[np.int64], Double]:
    """Do the same for a few rows: the inverse of what is left of each row is `inverse` less the squares of
    `removed`."""
    count, columns = rows.shape
    weight, each = rows.copy(), np.arange(count)
    diagonal = np.tile(np.diag(inverse), (count, 1))
    open_ = np.ones(rows.shape, dtype=np.bool_)
    removed = np.empty((count, depth, columns))
    order, losses = np.empty((count, depth), dtype=np.int64), np.empty((count, depth))
    for step in range(depth):
        costs = np.where(open_, weight**2 / diagonal, np.inf)
        leaves = costs.argmin(1)
        order[:, step], losses[:, step] = leaves, costs[each, leaves]
        before = removed[:, :step]
        column = inverse[leaves] - (before[each, :, leaves][:, None] @ before)[:, 0]
        pivot = np.maximum(column[each, leaves], 1e-30)
        weight -= column * (weight[each, leaves] / pivot)[:, None]
        removed[:, step] = column / np.sqrt(pivot)[:, None]
        diagonal = np.maximum(diagonal - removed[:, step] ** 2, 1e-30)
        open_[each, leaves] = False
        weight[each, leaves] = 0
        if pattern is not None:
            _close_full_groups(open_, each, leaves, order[:, : step + 1], *pattern)
    return order, losses


def _close_full_groups(
    open_: NDArray[np.bool_],
    each: NDArray[np.int64],
    leaves: NDArray[np.int64],
    gone: NDArray[np.int64],
    kept: int,
    group: int,
) -> None:
    """Let nothing more leave a group that has lost all but `kept`."""
    first = leaves // group
    full = ((gone // group) == first[:, None]).sum(1) >= group - kept
    for row in each[full]:
        open_[row, first[row] * group : (first[row] + 1) * group] = False


def _blocked(rows: Double, damped: Double, density: float, pattern: tuple[int, int] | None) -> Double:
    """Take columns in blocks from first to last: zeros are chosen by their cost when their block begins."""
    weight = rows.copy()
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    width = COLUMNS if pattern is None else max(1, COLUMNS // pattern[1]) * pattern[1]
    for first in range(0, weight.shape[1], width):
        last = min(first + width, weight.shape[1])
        scores = weight[:, first:last] ** 2 / np.diag(upper)[first:last] ** 2
        stays = magnitude_mask(scores, density) if pattern is None else n_of_m_mask(scores, *pattern)
        errors = np.zeros((len(weight), last - first))
        for column in range(first, last):
            lost = np.where(stays[:, column - first], 0.0, weight[:, column])
            errors[:, column - first] = lost / upper[column, column]
            weight[:, column:last] -= np.outer(errors[:, column - first], upper[column, column:last])
        weight[:, last:] -= errors @ upper[first:last, last:]
        weight[:, first:last] *= stays
    return weight
