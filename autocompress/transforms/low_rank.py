"""Low-rank factors: one layer becomes two or three with a narrow waist.

SVD for linear and 1×1 layers (Denton et al. 2014, arXiv:1404.0736) and Tucker-2 for k×k
convolutions (Kim et al. 2016, arXiv:1511.06530), both from the teacher's weights in closed form:
truncated SVD is the best approximation of that rank, Tucker-2 by higher-order SVD is within a
factor √2 of the best.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autocompress.network import Network, Node, Weights
from autocompress.transforms.replace_layer import POINTWISE, ConvArgs, Link, conv_args, replace_by_chain


def method_for(node: Node, weight_shape: tuple[int, ...]) -> str:
    """`svd` for a linear or dense 1×1 layer, `tucker2` for a dense larger convolution, else empty."""
    if node.op == "linear":
        return "svd"
    if conv_args(node).groups != 1:
        return ""
    return "tucker2" if max(weight_shape[2:]) > 1 else "svd"


def ranks(weight_shape: tuple[int, ...], keep: float, round_to: int = 1) -> tuple[int, ...]:
    """Ranks that a fraction means: `(r,)` of min(out, in) for SVD, `(r_out, r_in)` for Tucker-2."""

    def rank(size: int) -> int:
        wanted = max(1, round(size * keep))
        return min(size, max(round_to, round(wanted / round_to) * round_to) if size > round_to else wanted)

    if len(weight_shape) == 2 or max(weight_shape[2:]) == 1:
        return (rank(min(weight_shape[:2])),)
    return rank(weight_shape[0]), rank(weight_shape[1])


def parameters(weight_shape: tuple[int, ...], rank: tuple[int, ...]) -> int:
    """Weights of the factors together."""
    out, into = weight_shape[:2]
    if len(rank) == 1:
        return rank[0] * (out + into)
    kernel = int(np.prod(weight_shape[2:]))
    return into * rank[1] + rank[1] * rank[0] * kernel + rank[0] * out


def factorize(
    network: Network, weights: Weights | None, layer: str, keep: float, round_to: int = 1
) -> tuple[Network, Weights | None]:
    """`layer` with `keep` of its rank. A layer whose factors would not be smaller stays as it is."""
    node = network.by_name[layer]
    name = node.args[1].name  # type: ignore[union-attr]
    shape = network.params[name].shape
    method = method_for(node, shape)
    if not method:
        raise ValueError(f"{layer} is a grouped convolution, which has no low-rank form here")
    rank = ranks(shape, keep, round_to)
    if parameters(shape, rank) >= int(np.prod(shape)):
        return network, weights
    weight = None if weights is None else weights[name]
    chain = (
        _svd_chain(node, shape, weight, rank[0])
        if method == "svd"
        else _tucker_chain(node, shape, weight, rank)
    )
    return replace_by_chain(network, weights, layer, chain)


def _svd_chain(
    node: Node, shape: tuple[int, ...], weight: NDArray[np.float32] | None, rank: int
) -> list[Link]:
    out, into = shape[:2]
    spatial = shape[2:]
    first = second = None
    if weight is not None:
        left, singular, right = np.linalg.svd(weight.reshape(out, into), full_matrices=False)
        root = np.sqrt(singular[:rank])
        first = (root[:, None] * right[:rank]).reshape(rank, into, *spatial)
        second = (left[:, :rank] * root).reshape(out, rank, *spatial)
    conv = None if node.op == "linear" else conv_args(node)
    expand = None if conv is None else POINTWISE
    return [
        Link("reduce", (rank, into, *spatial), first, conv),
        Link("", (out, rank, *spatial), second, expand),
    ]


def _left_basis(matrix: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """The first left singular vectors, as columns; from the small Gram matrix, which is far quicker."""
    wide = matrix.astype(np.float64)
    _, vectors = np.linalg.eigh(wide @ wide.T)
    basis: NDArray[np.float32] = np.ascontiguousarray(vectors[:, ::-1][:, :rank]).astype(np.float32)
    return basis


def _tucker_chain(
    node: Node, shape: tuple[int, ...], weight: NDArray[np.float32] | None, rank: tuple[int, ...]
) -> list[Link]:
    rank_out, rank_in = rank
    out, into, *kernel = shape
    reduce = core = expand = None
    if weight is not None:
        basis_out = _left_basis(weight.reshape(out, -1), rank_out)
        basis_in = _left_basis(weight.transpose(1, 0, 2, 3).reshape(into, -1), rank_in)
        core = np.einsum("oikl,or,is->rskl", weight, basis_out, basis_in, optimize=True)
        reduce, expand = basis_in.T[:, :, None, None], basis_out[:, :, None, None]
    conv = conv_args(node)
    return [
        Link("reduce", (rank_in, into, 1, 1), reduce, POINTWISE),
        Link(
            "core", (rank_out, rank_in, *kernel), core, ConvArgs(conv.stride, conv.padding, conv.dilation, 1)
        ),
        Link("", (out, rank_out, 1, 1), expand, POINTWISE),
    ]
