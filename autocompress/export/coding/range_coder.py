"""Binary range coding: bits and their probabilities to bytes and back.

Martin 1979, "Range encoding: an algorithm for removing redundancy from a digitised message", in its
carryless form for single bits. All arithmetic is on integers, so every machine reads the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from autocompress.export.coding.mixing import Integers

_REGISTER_BYTES = 6
_TOP_SHIFT = 8 * (_REGISTER_BYTES - 1)
_ALL_ONES = (1 << 8 * _REGISTER_BYTES) - 1
_BELOW_TOP = (1 << _TOP_SHIFT) - 1
SLACK_BITS = 8 * _REGISTER_BYTES + 16
"""By how much the bytes may fall short of the sum of -log2 of the probabilities."""


class BitWriter:
    """Collect bits and the probabilities of ones that they were predicted with."""

    def __init__(self) -> None:
        self._bits: list[Integers] = []
        self._probabilities: list[Integers] = []

    def code(self, probabilities: Integers, bits: Integers | None) -> Integers:
        """Take in bits, (lanes,), and give them back."""
        assert bits is not None
        self._bits.append(bits)
        self._probabilities.append(probabilities)
        return bits

    def finish(self) -> bytes:
        """Return all of them as bytes."""
        if not self._bits:
            return b""
        return encode_bits(np.concatenate(self._bits).tolist(), np.concatenate(self._probabilities).tolist())


class BitReader:
    """Read what a `BitWriter` wrote, when asked with the same probabilities in the same order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = _REGISTER_BYTES
        self._low, self._high = 0, _ALL_ONES
        self._value = int.from_bytes(data[:_REGISTER_BYTES].ljust(_REGISTER_BYTES, b"\0"), "big")

    def code(self, probabilities: Integers, bits: Integers | None = None) -> Integers:
        """Read one bit for each probability, (lanes,). Past the end of the data zeros are read."""
        assert bits is None
        low, high, value, position = self._low, self._high, self._value, self._position
        data, size = self._data, len(self._data)
        found = []
        for probability in probabilities.tolist():
            middle = low + ((high - low) >> 16) * probability
            if value <= middle:
                high = middle
                found.append(1)
            else:
                low = middle + 1
                found.append(0)
            while not (low ^ high) >> _TOP_SHIFT:
                low = (low & _BELOW_TOP) << 8
                high = (high & _BELOW_TOP) << 8 | 255
                value = (value & _BELOW_TOP) << 8 | (data[position] if position < size else 0)
                position += 1
        self._low, self._high, self._value, self._position = low, high, value, position
        return np.array(found, dtype=np.int64)


def encode_bits(bits: Iterable[int], probabilities: Iterable[int]) -> bytes:
    """Return the bits as bytes; `probabilities` are those of a one, in 1 / 65,536, above 0 and below 65,536.

    An ideal code takes -log2 of the probability of each bit's value; this one about a byte more in all.
    """
    low, high = 0, _ALL_ONES
    out = bytearray()
    for bit, probability in zip(bits, probabilities, strict=True):
        middle = low + ((high - low) >> 16) * probability
        if bit:
            high = middle
        else:
            low = middle + 1
        while not (low ^ high) >> _TOP_SHIFT:
            out.append(high >> _TOP_SHIFT)
            low = (low & _BELOW_TOP) << 8
            high = (high & _BELOW_TOP) << 8 | 255
    return bytes(out + _last_bytes(low, high))


def _last_bytes(low: int, high: int) -> bytes:
    """Return the fewest bytes that, with zeros behind them, name a number from `low` to `high`."""
    for count in range(_REGISTER_BYTES + 1):
        shift = 8 * (_REGISTER_BYTES - count)
        value = -(-low >> shift)
        if value << shift <= high:
            return value.to_bytes(count, "big")
    raise AssertionError("the interval is empty")
