"""What a decoder knows around a weight when its column of the tensor is next: the contexts of its bits.

A tensor is a matrix here: rows are outputs, columns inputs and, inside them, the positions of a kernel.
Some rows go through the matrix together, column by column; the next rows know the columns' averages
of those before. `period` is the distance of columns that are alike: the positions of a kernel, the
width of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autocompress.export.coding.mixing import Integers

MEANS = 24
"""Kinds of means that contexts tell apart."""

MAGNITUDE_SIZES = (MEANS * MEANS, 4**4, MEANS * MEANS, MEANS * 16, MEANS * MEANS)
SIGN_SIZES = (27, 9, MEANS, 9, 1)
"""How many contexts each model has; those of signs are fewer, and use the same numbers."""

_MEAN_STEPS = 64
_MEAN_LIMIT = 4096
_MEMORY_SHIFT = 4
_FEWEST_LANES, _MOST_LANES, _COLUMNS_PER_LANE = 16, 512, 4096


def lanes(rows: int, columns: int) -> int:
    """Return how many rows go together: few enough to learn from one another, enough for numpy to be fast."""
    wanted = _FEWEST_LANES
    while wanted < _MOST_LANES and rows * columns > _COLUMNS_PER_LANE * wanted:
        wanted *= 2
    return min(wanted, rows)


def _mean_kinds() -> Integers:
    """Return for a mean in 1 / 64 its kind: three an octave."""
    kinds = [0]
    for value in range(1, _MEAN_LIMIT + 1):
        octave = value.bit_length() - 1
        thirds = sum(value**3 >= edge << 3 * octave for edge in (2, 4))
        kinds.append(min(MEANS - 1, max(1, 3 * octave + thirds - 3)))
    return np.array(kinds, dtype=np.int64)


_KINDS = _mean_kinds()


def mean_kind(total: Integers, count: int) -> Integers:
    """Return the kind of the mean `total / count`; 0 where there is nothing yet."""
    return _KINDS[np.minimum(total * _MEAN_STEPS // max(count, 1), _MEAN_LIMIT)]


@dataclass(frozen=True)
class Contexts:
    """Hold contexts, (models, lanes) each."""

    magnitude: Integers
    sign: Integers


class Matrix:
    """Hold levels as they become known, and the sums that contexts are made of."""

    def __init__(self, rows: int, columns: int, period: int) -> None:
        self.period, self._pad = period, max(2, 2 * period)
        self._levels = np.zeros((rows, self._pad + columns), dtype=np.int32)
        self._top = self._bottom = 0
        self._column_sums = np.zeros(columns + 2, dtype=np.int64)
        self._column_totals = np.zeros(columns, dtype=np.int64)
        self._place_sums = np.zeros(period, dtype=np.int64)
        self._place_totals = np.zeros(period, dtype=np.int64)
        self._place_counts = np.zeros(period, dtype=np.int64)

    @property
    def levels(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
        return self._levels[:, self._pad :]

    def start(self, top: int, bottom: int) -> None:
        """Start with the rows from `top` up to `bottom`; those before are complete."""
        done = self.levels[self._top : self._bottom]
        self._column_sums[1:-1] += np.abs(done).sum(0)
        self._column_totals += done.sum(0)
        self._top, self._bottom, self._lanes = top, bottom, bottom - top
        self._row_sum = np.zeros(self._lanes, dtype=np.int64)
        self._recent = np.zeros(self._lanes, dtype=np.int64)
        self._period_sum = np.zeros(self._lanes, dtype=np.int64)

    def contexts(self, column: int) -> Contexts:
        """Return the contexts of the rows' levels in this column."""
        place = column % self.period
        if place == 0:
            self._period_sum = np.zeros(self._lanes, dtype=np.int64)
        rows, at = self._levels[self._top : self._bottom], self._pad + column
        before = rows[:, [at - 1, at - 2, at - self.period, at - 2 * self.period]].T.astype(np.int64)
        near, second, far, second_far = np.abs(before)
        around = self._column_sums[column : column + 3]
        row = mean_kind(self._row_sum, column)
        recent = mean_kind(self._recent, 128)
        local = mean_kind(2 * near + second + 2 * far + second_far, 6)
        period = mean_kind(self._period_sum, place) if self.period > 1 else local
        alike = mean_kind(self._place_sums[place], int(self._place_counts[place]))
        magnitude = np.stack(
            [
                row * MEANS + mean_kind(around[0] + 2 * around[1] + around[2], 4 * self._top),
                np.minimum(near, 3) * 64
                + np.minimum(far, 3) * 16
                + np.minimum(second, 3) * 4
                + np.minimum(second_far, 3),
                recent * MEANS + mean_kind(around[1], self._top),
                period * 16 + np.minimum(alike, 15),
                local * MEANS + row,
            ]
        )
        return Contexts(magnitude, self._signs(column, place, before[0], before[2], recent))

    def _signs(self, column: int, place: int, near: Integers, far: Integers, recent: Integers) -> Integers:
        near, far = np.sign(near) + 1, np.sign(far) + 1
        of_column = int(np.sign(self._column_totals[column])) + 1
        of_place = int(np.sign(self._place_totals[place])) + 1
        nothing = np.zeros_like(near)
        pair = nothing + (of_column * 3 + of_place)
        return np.stack([near * 9 + far * 3 + of_column, far * 3 + of_place, recent, pair, nothing])

    def add(self, column: int, levels: Integers) -> None:
        """Tell what the rows' levels in this column are, (lanes,)."""
        self._levels[self._top : self._bottom, self._pad + column] = levels
        magnitude = np.abs(levels)
        self._row_sum += magnitude
        self._recent += magnitude * 8 - (self._recent >> _MEMORY_SHIFT)
        self._period_sum += magnitude
        place = column % self.period
        self._place_sums[place] += magnitude.sum()
        self._place_totals[place] += levels.sum()
        self._place_counts[place] += len(levels)
