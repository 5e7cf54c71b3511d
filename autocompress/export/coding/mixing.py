"""Probabilities of bits, learned from the bits before: counts in many contexts, mixed.

Each of several models looks a bit up in a context of its own and predicts by the ones and zeros seen
there. Their log-odds are summed with weights that are learned on the way (logistic mixing: Mahoney 2005,
"Adaptive weighing of context models for lossless data compression"). Bits come in batches whose
predictions do not depend on one another, so that numpy computes them together.

All arithmetic is on integers, and its tables come from correctly rounded decimals, so that an encoder
and a decoder on different machines agree on every bit.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

ONE = 1 << 16
"""Probability 1, and a mixing weight of 1."""

NAT = 256
"""Log-odds are in 1 / 256."""

LARGEST_ODDS = 12 * NAT - 1
LEAST_PROBABILITY = 16
"""Of either value of a bit, in 1 / 65,536."""

LEAST_BITS = 3.5e-4
"""No bit takes less: -log2(1 - LEAST_PROBABILITY / ONE), rounded down."""

_STRETCH_SHIFT = 4
_PRIOR_COUNT = 4
_COUNT_LIMIT = 1000
_INITIAL_WEIGHT = 70_000
_RATE_START, _RATE_END, _RATE_SPAN = 1500, 300, 1024


@cache
def squash_table() -> Integers:
    """Return for log-odds -LARGEST_ODDS … LARGEST_ODDS the probability in 1 / 65,536."""
    with localcontext() as context:
        context.prec = 24
        odds = range(-LARGEST_ODDS, LARGEST_ODDS + 1)
        values = [int(ONE / (1 + (Decimal(-value) / NAT).exp())) for value in odds]
    return np.clip(np.array(values, dtype=np.int64), LEAST_PROBABILITY, ONE - LEAST_PROBABILITY)


@cache
def stretch_table() -> Integers:
    """Return for a probability in 1 / 4,096, rounded down, the log-odds at the middle of its step."""
    steps = ONE >> _STRETCH_SHIFT
    with localcontext() as context:
        context.prec = 24
        odds = [Decimal(2 * step + 1) / Decimal(2 * (steps - step) - 1) for step in range(steps)]
        values = [int((NAT * value.ln()).to_integral_value()) for value in odds]
    return np.clip(np.array(values, dtype=np.int64), -LARGEST_ODDS, LARGEST_ODDS)


class Predictor:
    """Predict batches of bits from one context for each model, and learn from what they were.

    Bits are of `kinds` kinds, each with counts and mixing weights of its own; model m has `sizes[m]`
    contexts, numbered from 0.
    """

    def __init__(self, kinds: int, sizes: tuple[int, ...]) -> None:
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self._starts, self._stride = starts[:, None], sum(sizes)
        self._ones = np.zeros(kinds * self._stride, dtype=np.int64)
        self._seen = np.zeros(kinds * self._stride, dtype=np.int64)
        self._kind_ones, self._kind_seen = [0] * kinds, [0] * kinds
        self._weights = np.full((kinds, len(sizes)), _INITIAL_WEIGHT // len(sizes), dtype=np.int64)
        self._squash, self._stretch = squash_table(), stretch_table()

    def predict(self, kind: int, contexts: Integers) -> Integers:
        """Return the probabilities of ones in 1 / 65,536, (lanes,); `contexts` is (models, lanes).

        A context that saw little leans towards what was seen of this kind of bit altogether.
        """
        self._where = where = contexts + (self._starts + kind * self._stride)
        prior = ONE * (2 * self._kind_ones[kind] + 1) // (2 * self._kind_seen[kind] + 2)
        ones, seen = self._ones[where], self._seen[where]
        estimates = (ones * (2 * ONE) + _PRIOR_COUNT * prior) // (2 * seen + _PRIOR_COUNT)
        self._inputs = self._stretch[estimates >> _STRETCH_SHIFT]
        odds = np.clip((self._weights[kind] @ self._inputs) >> 16, -LARGEST_ODDS, LARGEST_ODDS)
        self._output = self._squash[odds + LARGEST_ODDS]
        return self._output

    def learn(self, kind: int, bits: Integers) -> None:
        """Take in the bits, (lanes,) of 0 and 1, of which `predict` was asked last."""
        error = (bits << 16) - self._output
        rate = max(_RATE_END, _RATE_START // (1 + self._kind_seen[kind] // _RATE_SPAN))
        self._weights[kind] += (self._inputs @ error) * rate // (isqrt(len(bits)) << 24)
        seen = self._where.ravel()
        np.add.at(self._seen, seen, 1)
        np.add.at(self._ones, self._where[:, bits == 1].ravel(), 1)
        old = seen[self._seen[seen] > _COUNT_LIMIT]
        if old.size:
            self._seen[old] >>= 1
            self._ones[old] >>= 1
        self._kind_seen[kind] += len(bits)
        self._kind_ones[kind] += int(bits.sum())
