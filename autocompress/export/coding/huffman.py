"""Canonical Huffman codes of integer levels: the simple alternative to `levels`.

Huffman 1952, "A method for the construction of minimum-redundancy codes". No symbol takes less than a
bit, so sparse tensors are better off with `levels`; decoding is a table look-up a level.
"""

from __future__ import annotations

import heapq
from array import array
from itertools import count
from math import prod

import numpy as np
from numpy.typing import NDArray

from autocompress.export.coding.mixing import Integers

LONGEST_CODE = 15
_HEAD_BYTES = 4


def code_lengths(counts: Integers) -> Integers:
    """Return the bits of each symbol's code, 0 where its count is 0; at most 15.

    Codes that would be longer are shortened by flattening the counts, which costs next to nothing.
    """
    symbols = np.flatnonzero(counts)
    lengths = np.zeros(len(counts), dtype=np.int64)
    if len(symbols) == 1:
        lengths[symbols] = 1
    if len(symbols) < 2:
        return lengths
    order = count()
    heap = [(int(counts[symbol]), next(order), [int(symbol)]) for symbol in symbols]
    heapq.heapify(heap)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        members = first[2] + second[2]
        lengths[members] += 1
        heapq.heappush(heap, (first[0] + second[0], next(order), members))
    return lengths if lengths.max() <= LONGEST_CODE else code_lengths((counts + 1) // 2)


def encode_huffman(levels: NDArray[np.integer]) -> bytes:
    """Encode levels of any shape: lowest level, number of symbols, two code lengths a byte, codes."""
    flat = levels.astype(np.int64).ravel()
    lowest = int(flat.min(initial=0))
    symbols = flat - lowest
    counts = np.bincount(symbols, minlength=1)
    if not (lowest >= -(2**15) and len(counts) < 2**16):
        raise ValueError(f"levels {lowest} to {lowest + len(counts) - 1} do not fit into 16 bits")
    lengths = code_lengths(counts)
    head = lowest.to_bytes(2, "little", signed=True) + len(lengths).to_bytes(2, "little")
    return head + _nibbles(lengths) + _bits(_canonical(lengths)[symbols], lengths[symbols])


def decode_huffman(data: bytes, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Return what `encode_huffman` was given, of this shape.

    Raises ValueError when the table is no prefix code or the codes end early.
    """
    size = prod(shape)
    lowest = int.from_bytes(data[:2], "little", signed=True)
    symbols = int.from_bytes(data[2:_HEAD_BYTES], "little")
    table_end = _HEAD_BYTES + (symbols + 1) // 2
    if len(data) < table_end or not symbols:
        raise ValueError("the table of code lengths is cut off")
    if size > 8 * (len(data) - table_end):
        raise ValueError(f"{len(data)} bytes cannot hold {size} levels")
    packed = np.frombuffer(data[_HEAD_BYTES:table_end], dtype=np.uint8)
    lengths = np.stack([packed >> 4, packed & 15], 1).ravel()[:symbols].astype(np.int64)
    bits = np.unpackbits(np.frombuffer(data[table_end:], dtype=np.uint8))
    found = _decoded(lengths, bits, size)
    return (found + np.int32(lowest)).reshape(shape)


def _decoded(lengths: Integers, bits: NDArray[np.uint8], size: int) -> NDArray[np.int32]:
    if (2.0 ** -lengths[lengths > 0]).sum() > 1:
        raise ValueError("the code lengths are those of no prefix code")
    symbol_at, length_at = _lookup(lengths)
    padded = np.concatenate([bits, np.zeros(LONGEST_CODE, dtype=np.uint8)])
    windows = np.zeros(len(bits) + 1, dtype=np.uint16)
    for place in range(LONGEST_CODE):
        windows = windows << 1 | padded[place : place + len(windows)]
    steps = length_at[windows].tobytes()
    position, positions = 0, array("q")
    for _ in range(size):
        step = steps[position]
        if not step or position + step > len(bits):
            raise ValueError("the codes end early or are not in the table")
        positions.append(position)
        position += step
    return symbol_at[windows[np.frombuffer(positions, dtype=np.int64)]]


def _canonical(lengths: Integers) -> Integers:
    """Return the codes: shorter before longer, equal lengths in the order of symbols."""
    codes = np.zeros(len(lengths), dtype=np.int64)
    code, previous = 0, 0
    for symbol in sorted(np.flatnonzero(lengths).tolist(), key=lambda symbol: (lengths[symbol], symbol)):
        code <<= int(lengths[symbol]) - previous
        previous = int(lengths[symbol])
        codes[symbol] = code
        code += 1
    return codes


def _lookup(lengths: Integers) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Return for every 15 bits the symbol they begin with, and the length of its code, 0 for none."""
    symbol_at = np.zeros(1 << LONGEST_CODE, dtype=np.int32)
    length_at = np.zeros(1 << LONGEST_CODE, dtype=np.uint8)
    codes = _canonical(lengths)
    for symbol in np.flatnonzero(lengths).tolist():
        spare = LONGEST_CODE - int(lengths[symbol])
        span = slice(int(codes[symbol]) << spare, (int(codes[symbol]) + 1) << spare)
        symbol_at[span], length_at[span] = symbol, lengths[symbol]
    return symbol_at, length_at


def _nibbles(lengths: Integers) -> bytes:
    padded = np.concatenate([lengths, np.zeros(len(lengths) % 2, dtype=np.int64)]).astype(np.uint8)
    return (padded[0::2] << 4 | padded[1::2]).tobytes()


def _bits(codes: Integers, lengths: Integers) -> bytes:
    """Return the codes one after the other, first bit first."""
    total = int(lengths.sum())
    which = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    bits = codes[which] >> (lengths[which] - 1 - place) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()
