"""Integer levels of a weight tensor, most of them small or zero, to bytes and back.

A level is told in a few bits: is it zero; its sign; how many digits its magnitude has, one at a time; the
digits. That is the way of CABAC (Marpe et al. 2003), for weights DeepCABAC (Wiedemann et al. 2020,
arXiv:1907.11900). Here each bit is predicted from several contexts at once (`neighbours`), whose
predictions are mixed by weights learned on the way (`mixing`), and nothing but the bits is stored.
"""

from __future__ import annotations

from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autocompress.export.coding.mixing import LEAST_BITS, Integers, Predictor
from autocompress.export.coding.neighbours import MAGNITUDE_SIZES, Contexts, Matrix, lanes
from autocompress.export.coding.range_coder import SLACK_BITS, BitReader, BitWriter

LARGEST_LEVEL = 2**15 - 1
_NONZERO, _NEGATIVE, _LONGER, _DIGIT, _KINDS = 0, 1, 2, 18, 66
_MOST_TOLD_DIGITS = 2
_LONGEST_PERIOD = 64
_HEAD_BYTES = 4


class BitCoder(Protocol):
    def code(self, probabilities: Integers, bits: Integers | None) -> Integers:
        """Return the bits: those given when writing, those read otherwise."""


def encode_levels(levels: NDArray[Any]) -> bytes:
    """Encode levels of any shape, -32,767 to 32,767, as bytes.

    Raises ValueError for a level out of range.
    """
    largest = int(np.abs(levels.astype(np.int64)).max(initial=0))
    if largest > LARGEST_LEVEL:
        raise ValueError(f"the level {largest} is above {LARGEST_LEVEL}")
    matrix = _as_matrix(levels.astype(np.int64))
    period = _period(levels.shape, matrix)
    head = largest.to_bytes(2, "little") + period.to_bytes(2, "little")
    if not largest:
        return head
    writer = BitWriter()
    _code(writer, matrix.shape, period, largest, matrix)
    return head + writer.finish()


def decode_levels(data: bytes, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Return what `encode_levels` was given, of this shape.

    Raises ValueError when the data is too short for as many levels or its head is out of range; other
    bytes than those written give other levels, so keep a checksum.
    """
    if len(data) < _HEAD_BYTES:
        raise ValueError(f"{len(data)} bytes of levels, at least {_HEAD_BYTES} are expected")
    largest, period = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
    rows, columns = _matrix_shape(shape)
    if largest > LARGEST_LEVEL or not 1 <= period <= max(1, columns):
        raise ValueError(f"largest level {largest} or period {period} is out of range")
    if not largest or not rows * columns:
        return np.zeros(shape, dtype=np.int32)
    if rows * columns * LEAST_BITS > 8 * len(data) + SLACK_BITS:
        raise ValueError(f"{len(data)} bytes cannot hold {rows * columns} levels")
    found = _code(BitReader(data[_HEAD_BYTES:]), (rows, columns), period, largest, None)
    return found.reshape(shape)


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2:
        return 1, prod(shape)
    return shape[0], prod(shape[1:])


def _as_matrix(levels: Integers) -> Integers:
    return levels.reshape(_matrix_shape(levels.shape))


def _period(shape: tuple[int, ...], matrix: Integers) -> int:
    """Return the positions of a kernel; without one, the distance of columns whose zeros are most alike."""
    positions = prod(shape[2:])
    columns = matrix.shape[1]
    if positions > 1 and positions <= LARGEST_LEVEL:
        return positions
    if not matrix.size:
        return 1
    nonzero = (matrix != 0).astype(np.float32)
    nonzero -= nonzero.mean()
    candidates = range(2, min(_LONGEST_PERIOD, columns // 2) + 1)
    alike = [float((nonzero[:, distance:] * nonzero[:, :-distance]).mean()) for distance in candidates]
    return candidates[int(np.argmax(alike))] if alike else 1


def _code(
    coder: BitCoder, shape: tuple[int, int], period: int, largest: int, levels: Integers | None
) -> NDArray[np.int32]:
    """Write `levels`, or read them where they are None; both take the same steps."""
    rows, columns = shape
    matrix = Matrix(rows, columns, period)
    bits = _Bits(coder, largest)
    together = lanes(rows, columns)
    for top in range(0, rows, together):
        bottom = min(rows, top + together)
        matrix.start(top, bottom)
        for column in range(columns):
            known = None if levels is None else levels[top:bottom, column]
            matrix.add(column, bits.levels(matrix.contexts(column), known))
    return matrix.levels


class _Bits:
    """Tell or learn levels bit by bit; `known` is None when reading."""

    def __init__(self, coder: BitCoder, largest: int) -> None:
        self._coder, self._most_digits = coder, largest.bit_length()
        self._predictor = Predictor(_KINDS, MAGNITUDE_SIZES)

    def levels(self, contexts: Contexts, known: Integers | None) -> Integers:
        nonzero = self._bit(_NONZERO, contexts.magnitude, None if known is None else known != 0)
        found = np.zeros(len(nonzero), dtype=np.int64)
        where = np.flatnonzero(nonzero)
        if where.size:
            known = None if known is None else known[where]
            negative = self._bit(_NEGATIVE, contexts.sign[:, where], None if known is None else known < 0)
            size = None if known is None else np.abs(known)
            magnitude = self._magnitudes(contexts.magnitude[:, where], size)
            found[where] = np.where(negative == 1, -magnitude, magnitude)
        return found

    def _magnitudes(self, contexts: Integers, known: Integers | None) -> Integers:
        """Return the magnitudes from 1 on."""
        digits = np.ones(contexts.shape[1], dtype=np.int64)
        left = np.arange(contexts.shape[1])
        for count in range(1, self._most_digits):
            longer = None if known is None else known[left] >> count > 0
            left = left[self._bit(_LONGER + count, contexts[:, left], longer) == 1]
            digits[left] += 1
            if not left.size:
                break
        found = np.ones_like(digits)
        for count in range(2, int(digits.max()) + 1):
            where = np.flatnonzero(digits == count)
            if where.size:
                found[where] = self._digits(
                    count, contexts[:, where], None if known is None else known[where]
                )
        return found

    def _digits(self, count: int, contexts: Integers, known: Integers | None) -> Integers:
        """Return the magnitudes of `count` digits; the first is 1."""
        found = np.ones(contexts.shape[1], dtype=np.int64)
        for place in range(count - 2, -1, -1):
            told = np.minimum(count - 2 - place, _MOST_TOLD_DIGITS - 1)
            kinds = _DIGIT + 3 * count + (found & 1) + 1 if told else np.full_like(found, _DIGIT + 3 * count)
            bits = np.zeros_like(found)
            for kind in np.unique(kinds).tolist():
                where = np.flatnonzero(kinds == kind)
                value = None if known is None else known[where] >> place & 1
                bits[where] = self._bit(kind, contexts[:, where], value)
            found = 2 * found + bits
        return found

    def _bit(self, kind: int, contexts: Integers, known: NDArray[Any] | None) -> Integers:
        probabilities = self._predictor.predict(kind, contexts)
        bits = self._coder.code(probabilities, None if known is None else known.astype(np.int64))
        self._predictor.learn(kind, bits)
        return bits
