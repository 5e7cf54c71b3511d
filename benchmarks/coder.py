"""Bits a weight of the lossless coders, on the weights of a trained network.

    python benchmarks/coder.py --teacher cifar_resnet.py:load,depth=20

Two ways of rounding, a tensor at a time: 4 bits (levels -7 to 7, the largest magnitude is 7) and 3 bits
(-3 to 3) of the largest tenth of the magnitudes, zeros elsewhere. All weights of two or more axes are
coded, each tensor by itself; whatever a decoder needs is counted, except the scales. Every tensor is
decoded and compared.
"""

from __future__ import annotations

import argparse
import lzma
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from autocompress.export.coding.huffman import decode_huffman, encode_huffman
from autocompress.export.coding.levels import decode_levels, encode_levels
from autocompress.problem.teacher import load_teacher

Levels = NDArray[np.int64]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    arguments = parser.parse_args()
    state = load_teacher(arguments.teacher).module.state_dict()
    weights = [value.numpy() for value in state.values() if value.ndim >= 2]
    count = sum(weight.size for weight in weights)
    print(f"{arguments.teacher}: {len(weights)} tensors, {count:,} weights; bits a weight")
    print(f"{'':20}{'entropy':>9}{'Huffman':>9}{'xz':>9}{'context':>9}{'encode s':>10}{'decode s':>10}")
    for name, rounded in (("4 bit, dense", in_4_bits), ("3 bit, 90 % zeros", in_3_bits_sparse)):
        print(row(name, [rounded(weight) for weight in weights], count))
    print("entropy: of each tensor, order zero. context: autocompress.export.coding.levels")
    return 0


def row(name: str, tensors: list[Levels], count: int) -> str:
    entropy = sum(entropy_bits(levels) for levels in tensors) / count
    huffman, *_ = coded(tensors, encode_huffman, decode_huffman)
    context, encode_s, decode_s = coded(tensors, encode_levels, decode_levels)
    xz = sum(len(lzma.compress(levels.astype(np.int8).tobytes(), preset=9)) for levels in tensors)
    bits = [entropy, 8 * huffman / count, 8 * xz / count, 8 * context / count]
    return f"{name:20}{''.join(f'{value:9.3f}' for value in bits)}{encode_s:10.1f}{decode_s:10.1f}"


def coded(
    tensors: list[Levels],
    encode: Callable[[Levels], bytes],
    decode: Callable[[bytes, tuple[int, ...]], NDArray[np.int32]],
) -> tuple[int, float, float]:
    """(bytes, seconds to encode, seconds to decode); raises RuntimeError when a tensor comes back changed."""
    start = time.perf_counter()
    coded_tensors = [encode(levels) for levels in tensors]
    middle = time.perf_counter()
    for data, levels in zip(coded_tensors, tensors, strict=True):
        if not np.array_equal(decode(data, levels.shape), levels):
            raise RuntimeError(f"a tensor of shape {levels.shape} came back changed")
    return sum(map(len, coded_tensors)), middle - start, time.perf_counter() - middle


def in_4_bits(weight: NDArray[np.float32]) -> Levels:
    return np.rint(weight / (np.abs(weight).max() / 7)).astype(np.int64)


def in_3_bits_sparse(weight: NDArray[np.float32]) -> Levels:
    kept = np.where(np.abs(weight) >= np.quantile(np.abs(weight), 0.9), weight, 0)
    return np.rint(kept / (np.abs(kept).max() / 3)).astype(np.int64)


def entropy_bits(levels: Levels) -> float:
    _, counts = np.unique(levels, return_counts=True)
    return float(-(counts * np.log2(counts / levels.size)).sum())


if __name__ == "__main__":
    sys.exit(main())
