"""Weight sharing: a tensor's weights take few distinct values (Han et al. 2016, arXiv:1510.00149).

`k_means` finds the values of least squared error. `entropy_constrained` weighs the error against the
bits that the indices will take once coded (Chou, Lookabaugh and Gray 1989), which at equal error takes
fewer bits: rare values are given up for common ones. Both leave zeros alone, so that pruned weights stay
pruned, and both can weigh each weight's error by its importance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Start = Literal["linear", "density", "random"]
STARTS: tuple[Start, ...] = ("linear", "density", "random")

_ROUNDS = 50
_LEAST_SHARE = 1e-9
_CHUNK = 1 << 18

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Codebook:
    """Hold `values` (K,) ascending, float32; `indices` of the weight's shape, into `values`."""

    values: NDArray[np.float32]
    indices: NDArray[np.int64]

    @property
    def weight(self) -> NDArray[np.float32]:
        return self.values[self.indices]

    @property
    def entropy_bits(self) -> float:
        """Return the bits that an index takes on average when coded by its frequency."""
        shares = np.bincount(self.indices.ravel(), minlength=len(self.values)) / max(1, self.indices.size)
        shares = shares[shares > 0]
        return float(-(shares * np.log2(shares)).sum())


def k_means(
    weight: NDArray[Any],
    count: int,
    *,
    start: Start = "linear",
    keep_zeros: bool = True,
    importance: NDArray[Any] | None = None,
    seed: int = 0,
) -> Codebook:
    """Find at most `count` shared values, each the mean of the weights that take it.

    `start`: `linear` spreads the first values evenly from the smallest to the largest weight, which
    keeps the large ones that matter; `density` puts as many weights between each two; `random` draws
    weights. With `keep_zeros`, zero is one of the values where there are zeros, and only they take it.

    Raises ValueError when `count` leaves no value for the weights that are not zero.
    """
    return _cluster(weight, count, start, keep_zeros, importance, seed, bit_price=0.0)


def entropy_constrained(
    weight: NDArray[Any],
    count: int,
    bit_price: float,
    *,
    start: Start = "linear",
    keep_zeros: bool = True,
    importance: NDArray[Any] | None = None,
    seed: int = 0,
) -> Codebook:
    """Find the shared values of least (squared error + `bit_price` × bits of the index) for a weight on
    average.

    `bit_price` is in squared weights a bit. With `keep_zeros`, zero is one of the values; weights may
    move to it, but zeros do not leave it. Fewer than `count` values may be left.
    """
    return _cluster(weight, count, start, keep_zeros, importance, seed, bit_price)


def _cluster(
    weight: NDArray[Any],
    count: int,
    start: Start,
    keep_zeros: bool,
    importance: NDArray[Any] | None,
    seed: int,
    bit_price: float,
) -> Codebook:
    flat = weight.astype(np.float64).ravel()
    zero = keep_zeros and bool((flat == 0).any() or bit_price > 0)
    free = flat != 0 if zero else np.ones(flat.size, dtype=np.bool_)
    wanted = count - zero
    if wanted < 1 and free.any():
        raise ValueError(f"{count} shared values leave none for the weights that are not zero")
    points = flat[free]
    pull = np.ones(points.size) if importance is None else importance.astype(np.float64).ravel()[free]
    values = _first_values(points, wanted, start, seed)
    if zero:
        values = np.concatenate([[0.0], values])
    chosen = np.zeros(0, dtype=np.int64)
    prices = np.zeros(len(values))
    if zero and not bit_price:
        prices[0] = np.inf
    for _ in range(_ROUNDS):
        before, chosen = chosen, _nearest(points, pull, values, prices)
        if np.array_equal(before, chosen):
            break
        values = _means(points, pull, values, chosen, fixed=int(zero))
        if bit_price:
            prices = bit_price * _bits(chosen, len(values), int((~free).sum()))
    indices = np.zeros(flat.size, dtype=np.int64)
    indices[free] = chosen
    return _ascending(values, indices.reshape(weight.shape))


def _first_values(points: Floats, count: int, start: Start, seed: int) -> Floats:
    if start not in STARTS:
        raise ValueError(f"the start {start!r} is not one of {', '.join(STARTS)}")
    if not points.size:
        return np.zeros(0)
    if start == "linear":
        return np.linspace(points.min(), points.max(), count)
    if start == "density":
        return np.quantile(points, (np.arange(count) + 0.5) / count)
    return np.random.default_rng(seed).choice(points, count)


def _nearest(points: Floats, pull: Floats, values: Floats, prices: Floats) -> NDArray[np.int64]:
    """Return for each point the index of the value of least weighted squared error plus price."""
    parts = []
    for first in range(0, points.size, _CHUNK):
        part = slice(first, first + _CHUNK)
        errors = pull[part, None] * (points[part, None] - values) ** 2 + prices
        parts.append(errors.argmin(1))
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _means(points: Floats, pull: Floats, values: Floats, chosen: NDArray[np.int64], fixed: int) -> Floats:
    """Return each value as the weighted mean of its points; the first `fixed`, and those without points,
    stay."""
    mass = np.bincount(chosen, pull, minlength=len(values))
    sums = np.bincount(chosen, pull * points, minlength=len(values))
    moved = np.where(mass > 0, sums / np.where(mass > 0, mass, 1), values)
    moved[:fixed] = values[:fixed]
    return moved


def _bits(chosen: NDArray[np.int64], count: int, zeros: int) -> Floats:
    """Return -log2 of each value's share; the weights that are zero anyway take the first."""
    counts = np.bincount(chosen, minlength=count).astype(np.float64)
    if zeros:
        counts[0] += zeros
    return -np.log2(np.maximum(counts / max(1.0, counts.sum()), _LEAST_SHARE))


def _ascending(values: Floats, indices: NDArray[np.int64]) -> Codebook:
    """Keep the values that are used, once each, in order."""
    used, positions = np.unique(values.astype(np.float32)[indices], return_inverse=True)
    return Codebook(used, positions.reshape(indices.shape).astype(np.int64))
