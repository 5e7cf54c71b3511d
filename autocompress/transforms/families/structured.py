"""Structured matrices: a dense linear or 1×1 layer becomes products of small matrices at fixed places.

| structure | weight `(out, in)` becomes | multiply-adds |
|---|---|---|
| `monarch` | block-diagonal · permutation · block-diagonal | as many as parameters |
| `kronecker` | A ⊗ B | fewer, with two reshapes and transpositions |
| `circulant` | blocks whose rows are one vector, turned | as many as dense: it only gets smaller |
| `toeplitz_2`, `toeplitz_4` | blocks of displacement rank 2 or 4 | 4 or 8 times dense: it only gets smaller |

All start from the dense weight in closed form, by the closest matrix of the structure in the least-squares
sense: of Monarch matrices by a rank-1 approximation of each slice (Dao et al. 2022, arXiv:2204.00595), of
Kronecker products by that of the rearranged weight (Van Loan and Pitsianis 1993, "Approximation with
Kronecker products"), of circulant blocks by the mean over each diagonal (Ding et al. 2017, arXiv:1708.08917),
of Toeplitz-like blocks by alternating least squares (`transforms.arrays.toeplitz`; Sindhwani et al. 2015,
arXiv:1510.01722). They run as ordinary convolutions, linear layers and moves of data, so they are priced by
the rows that a device has for these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.network import Network, Node, Shape, Weights, batch_is_second
from autocompress.graph.operations import TRANSPOSED
from autocompress.graph.replace_layer import POINTWISE, ConvArgs, conv_args
from autocompress.transforms.arrays.toeplitz import toeplitz_like
from autocompress.transforms.families.layer_chain import Chain

Array = NDArray[np.floating]

DENSE = "dense"
KEEP_BATCH_NORM = frozenset({"kronecker", "circulant", "toeplitz_2", "toeplitz_4"})
"""They do not end in a convolution, so that a batch norm behind the layer is not folded into it."""

CIRCULANT_BLOCK = 4
LEAST_TOEPLITZ_BLOCK, LARGEST_TOEPLITZ_BLOCK = 8, 256


def applies(node: Node, weight_shape: Shape, kind: str) -> str:
    """Say why the layer cannot have this structure; empty where it can."""
    if node.op == "linear":
        if batch_is_second(node.shape):
            return "the batch is the second axis of its input"
        if len(node.shape) == 2 and node.shape[0] != 1:
            return "its rows are more than the batch"
        return "" if len(node.shape) in (2, 3, 4) else "its input has more than four axes"
    if node.op in TRANSPOSED:
        return "it is a transposed convolution"
    form = conv_args(node)
    if form.groups != 1 or max(weight_shape[2:]) > 1:
        return "it is not a dense matrix: linear or 1×1 without groups"
    if len(form.stride) != 2:
        return "its input is no image"
    plain = set(form.stride) == {1} and form.padding in ((0, 0), "valid", "same")
    return "" if plain or kind == "monarch" else f"{kind} layers have neither stride nor padding"


def sizes(structure: str, out: int, into: int) -> tuple[int, ...]:
    """Return the numbers that fix a structure of an `(out, in)` matrix; empty where it has none that is
    smaller.

    - `monarch`: `(blocks_in, blocks_out)`, dividing in and out: the fewest parameters with which the middle
      has at least min(out, in) values.
    - `kronecker`: `(out, in)` of the left factor, the smallest divisors above 1.
    - `circulant`: `(block,)`: 4, where it divides both.
    - `toeplitz_r`: `(block, r)`: the largest divisor of both from 8 to 256.
    """
    found = _SIZES[structure](out, into)
    return found if found and parameters(structure, out, into, found) < out * into else ()


def parameters(structure: str, out: int, into: int, of: tuple[int, ...]) -> int:
    """Count the weights of the structure, without a bias."""
    if structure == "monarch":
        return into * of[1] + out * of[0]
    if structure == "kronecker":
        return of[0] * of[1] + (out // of[0]) * (into // of[1])
    if structure == "circulant":
        return out * into // of[0]
    return 2 * of[1] * out * into // of[0]


def _divisors(number: int) -> list[int]:
    return [one for one in range(2, number) if number % one == 0]


def _monarch_sizes(out: int, into: int) -> tuple[int, ...]:
    pairs = [(b, r) for b in _divisors(into) for r in _divisors(out) if b * r >= min(out, into)]
    return min(pairs, key=lambda pair: (into * pair[1] + out * pair[0], pair), default=())


def _kronecker_sizes(out: int, into: int) -> tuple[int, ...]:
    left = (_divisors(out)[:1], _divisors(into)[:1])
    return (left[0][0], left[1][0]) if all(left) else ()


def _circulant_sizes(out: int, into: int) -> tuple[int, ...]:
    return () if out % CIRCULANT_BLOCK or into % CIRCULANT_BLOCK else (CIRCULANT_BLOCK,)


def _toeplitz_sizes(rank: int, out: int, into: int) -> tuple[int, ...]:
    common = range(LARGEST_TOEPLITZ_BLOCK, LEAST_TOEPLITZ_BLOCK - 1, -1)
    block = next((size for size in common if out % size == 0 and into % size == 0), 0)
    return (block, rank) if block else ()


_SIZES: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "monarch": _monarch_sizes,
    "kronecker": _kronecker_sizes,
    "circulant": _circulant_sizes,
    "toeplitz_2": partial(_toeplitz_sizes, 2),
    "toeplitz_4": partial(_toeplitz_sizes, 4),
}
STRUCTURES = tuple(_SIZES)


def monarch(weight: Array, blocks_in: int, blocks_out: int) -> tuple[Array, Array]:
    """Turn `(out, in)` into right `(blocks_in · blocks_out, in / blocks_in)` and left `(out, blocks_in)`.

    Output (j, l) reads input (k, i) with left[j, l, k] · right[k, j, i]: for each of the blocks_out ×
    blocks_in pairs (j, k) the rank-1 approximation of that slice.
    """
    out, into = weight.shape
    slices = weight.reshape(blocks_out, out // blocks_out, blocks_in, into // blocks_in).transpose(0, 2, 1, 3)
    left, singular, right = np.linalg.svd(slices.astype(np.float64), full_matrices=False)
    root = np.sqrt(singular[..., :1])
    columns = (left[..., 0] * root).transpose(0, 2, 1)
    rows = (right[..., 0, :] * root).transpose(1, 0, 2)
    return rows.reshape(blocks_in * blocks_out, -1), columns.reshape(out, blocks_in)


def kronecker(weight: Array, left_out: int, left_in: int) -> tuple[Array, Array]:
    """Turn `(out, in)` into A `(left_out, left_in)` and B `(out / left_out, in / left_in)`, A ⊗ B closest to
    it."""
    out, into = weight.shape
    blocks = weight.reshape(left_out, out // left_out, left_in, into // left_in).transpose(0, 2, 1, 3)
    rearranged = blocks.reshape(left_out * left_in, -1).astype(np.float64)
    left, singular, right = np.linalg.svd(rearranged, full_matrices=False)
    root = np.sqrt(singular[0])
    return (left[:, 0] * root).reshape(left_out, left_in), (right[0] * root).reshape(blocks.shape[2:])


def circulant(weight: Array, block: int) -> Array:
    """Turn `(out, in)` into `(out / block, in / block, block)`: c[(j - i) mod block] stands at row i, column
    j."""
    out, into = weight.shape
    blocks = weight.reshape(out // block, block, into // block, block).transpose(0, 2, 1, 3)
    row, column = np.indices((block, block))
    vectors = [blocks[:, :, (column - row) % block == turn].mean(-1) for turn in range(block)]
    return np.stack(vectors, axis=-1)


def structure(
    network: Network, weights: Weights | None, layer: str, kind: str
) -> tuple[Network, Weights | None]:
    """Return `layer` in this structure. Where it has none that is smaller the layer stays as it is.

    Raises ValueError for a layer that cannot have it.
    """
    node = network.by_name[layer]
    shape = network.params[node.params[0]].shape
    why = applies(node, shape, kind)
    if why:
        raise ValueError(f"{layer} has no {kind} form: {why}")
    of = sizes(kind, *shape[:2])
    if not of:
        return network, weights
    matrix = None if weights is None else weights[node.params[0]].reshape(shape[:2])
    chain = Chain(node, network.shape_of(node.inputs[0]), shape[0])
    chain.to_image()
    _BUILD[kind](chain, matrix, of)
    chain.from_image()
    return chain.replaced(network, weights)


def _build_monarch(chain: Chain, matrix: Array | None, of: tuple[int, ...]) -> None:
    blocks_in, blocks_out = of
    right, left = (None, None) if matrix is None else monarch(matrix, *of)
    into = chain.shape[1]
    form = replace(POINTWISE if chain.old.op == "linear" else conv_args(chain.old), groups=blocks_in)
    if isinstance(form.padding, str):
        form = replace(form, padding=(0, 0))
    chain.conv("right", (blocks_in * blocks_out, into // blocks_in, 1, 1), right, form)
    chain.add("shuffle", "channel_shuffle", (chain.last, blocks_in), chain.shape)
    chain.conv("left", (chain.channels, blocks_in, 1, 1), left, replace(POINTWISE, groups=blocks_out))


def _build_kronecker(chain: Chain, matrix: Array | None, of: tuple[int, ...]) -> None:
    out, into = of
    a, b = (None, None) if matrix is None else kronecker(matrix, *of)
    _, channels, height, width = chain.shape
    rest_out, rest_in = chain.channels // out, channels // into
    chain.reshape("split", into, rest_in, height * width)
    chain.conv("left", (out, into, 1, 1), a)
    chain.swap("turn")
    chain.conv("right", (rest_out, rest_in, 1, 1), b)
    chain.swap("return")
    chain.reshape("join", chain.channels, height, width)


def _build_circulant(chain: Chain, matrix: Array | None, of: tuple[int, ...]) -> None:
    (block,) = of
    _, channels, height, width = chain.shape
    out, into = chain.channels // block, channels // block
    chain.reshape("split", into, block, height * width)
    _go_around(chain, "")
    weight = None if matrix is None else circulant(matrix, block)
    chain.conv("right", (out, into, block, 1), weight)
    chain.reshape("join", chain.channels, height, width)


def _go_around(chain: Chain, part: str, sign: int = 1) -> None:
    """Put behind each block of axis 2 its values but the last again, with this sign."""
    whole, (_, channels, block, places) = chain.last, chain.shape
    chain.add(f"{part}head", "slice.Tensor", (whole, 2, 0, block - 1), (1, channels, block - 1, places))
    if sign < 0:
        chain.add(f"{part}negative", "neg", (chain.last,), chain.shape)
    chain.add(f"{part}around", "cat", ((whole, chain.last), 2), (1, channels, 2 * block - 1, places))


def _build_toeplitz(chain: Chain, matrix: Array | None, of: tuple[int, ...]) -> None:
    """Add skew-circulant factors block by block, then the circulant ones, which sum over blocks and ranks."""
    block, rank = of
    _, channels, height, width = chain.shape
    out, into = chain.channels // block, channels // block
    left = right = None
    if matrix is not None:
        blocks = matrix.reshape(out, block, into, block).transpose(0, 2, 1, 3).reshape(-1, block, block)
        found = [toeplitz_like(one, rank) for one in blocks]
        first, second = (np.stack(part).reshape(out, into, rank, block) for part in zip(*found, strict=True))
        left, right = second.transpose(1, 0, 2, 3), first.transpose(0, 2, 1, 3)
    chain.reshape("split", into, block, height * width)
    _go_around(chain, "first_", -1)
    form = ConvArgs((1, 1), (0, 0), (1, 1), into)
    chain.conv("left", (into * out * rank, 1, block, 1), left, form)
    chain.add("shuffle", "channel_shuffle", (chain.last, into), chain.shape)
    _go_around(chain, "second_")
    chain.conv("right", (out, rank * into, block, 1), right, replace(form, groups=out))
    chain.reshape("join", chain.channels, height, width)


_BUILD: dict[str, Callable[[Chain, Array | None, tuple[int, ...]], None]] = {
    "monarch": _build_monarch,
    "kronecker": _build_kronecker,
    "circulant": _build_circulant,
    "toeplitz_2": _build_toeplitz,
    "toeplitz_4": _build_toeplitz,
}
