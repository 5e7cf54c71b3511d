"""Compact blocks: the dense k×k convolutions of a block become cheaper ones that start from their weights.

- `depthwise_separable` (Howard et al. 2017, arXiv:1704.04861): depthwise k×k, 1×1. Start: the rank-1
  approximation of each input channel's filters.
- `grouped_shuffle` (Zhang et al. 2018, arXiv:1707.01083): grouped k×k, channel shuffle, grouped 1×1.
  Start: the best low rank of each pair of an input and an output group.
- `ghost` (Han et al. 2020, arXiv:1911.11907): half of the filters, and a depthwise 3×3 of these in place
  of the others. Start: filters in pairs, the most alike first, one of each pair as a multiple of the other.
- `sign_sharing` (Shang et al. 2016, arXiv:1603.05201): half of the filters, and their negatives. Start:
  filters in pairs, the most opposite first, half the difference of each pair.
- `fire` (Iandola et al. 2016, arXiv:1602.07360): 1×1 to half of the channels, then 1×1 for half of the
  outputs and k×k for the rest. Start: the principal inputs; 1×1 where a filter's centre matters most.
- `inverted_bottleneck` (Sandler et al. 2018, arXiv:1801.04381): 1×1 up to twice the inputs, relu, depthwise
  k×k, 1×1 down. Start: the CP decomposition of as many terms as there are inputs, each by two channels of
  opposite signs, of which the relu lets one through, so that together they are linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.blocks import Block
from autocompress.graph.network import Network, Node, Param, Ref, Shape, Weights
from autocompress.graph.replace_layer import POINTWISE, ConvArgs, Link, conv_args, replace_by_chain
from autocompress.transforms.arrays.factors import cp
from autocompress.transforms.families.layer_chain import Chain

KEEP_BATCH_NORM = frozenset({"ghost", "sign_sharing", "fire"})
"""They do not end in a convolution, so that a batch norm behind the layer is not folded into it."""

CP_SWEEPS = 20
"""Of the decomposition that an inverted bottleneck starts from; its block learns more afterwards."""

Array = NDArray[Any]
Replaced = tuple[Network, Weights | None]


@dataclass(frozen=True)
class Compact:
    """Describe a compact form: `fits` says whether a dense k×k convolution of this weight shape can become
    it."""

    fits: Callable[[ConvArgs, Shape], bool]
    build: Callable[[Network, Weights | None, str], Replaced]


def compact_layers(network: Network, block: Block, kind: str) -> tuple[str, ...]:
    """Return the dense k×k convolutions of a block, k > 1, that can become `kind` and share their weight with
    no other layer."""
    found = []
    for name in block.layers:
        node = network.by_name.get(name)
        if node is None or not node.op.startswith("conv2d"):
            continue
        if not (isinstance(node.args[0], Ref) and isinstance(node.args[1], Param)):
            continue
        shape, form = network.params[node.args[1].name].shape, conv_args(node)
        dense = form.groups == 1 and max(shape[2:]) > 1 and shape[1] > 1
        if dense and len(network.param_users[node.args[1].name]) == 1 and COMPACT[kind].fits(form, shape):
            found.append(name)
    return tuple(found)


def compact(network: Network, weights: Weights | None, block: Block, kind: str) -> Replaced:
    """Replace every layer of `compact_layers` of the network."""
    for layer in compact_layers(network, block, kind):
        network, weights = COMPACT[kind].build(network, weights, layer)
    return network, weights


def _depthwise_separable(network: Network, weights: Weights | None, layer: str) -> Replaced:
    node = network.by_name[layer]
    shape = network.params[node.params[0]].shape
    depthwise, pointwise = (None, None) if weights is None else separate(weights[node.params[0]])
    conv = conv_args(node)
    chain = [
        Link(
            "depthwise",
            (shape[1], 1, *shape[2:]),
            depthwise,
            ConvArgs(conv.stride, conv.padding, conv.dilation, shape[1]),
        ),
        Link("", (*shape[:2], 1, 1), pointwise, POINTWISE),
    ]
    return replace_by_chain(network, weights, layer, chain)


def separate(weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn dense `(O, I, k, k)` into depthwise `(I, 1, k, k)` and pointwise `(O, I, 1, 1)`, closest to it."""
    out, into, *kernel = weight.shape
    slices = weight.transpose(1, 0, 2, 3).reshape(into, out, -1)
    left, singular, right = np.linalg.svd(slices, full_matrices=False)
    root = np.sqrt(singular[:, 0])
    depthwise = (root[:, None] * right[:, 0]).reshape(into, 1, *kernel)
    pointwise = (root[:, None] * left[:, :, 0]).T.reshape(out, into, 1, 1)
    return depthwise, pointwise


def _groups(shape: Shape) -> int:
    """Return 4 where the channels allow it, else 2, else 0."""
    return next((g for g in (4, 2) if shape[0] % (g * g) == 0 and shape[1] % g == 0), 0)


def grouped(weight: Array, groups: int) -> tuple[Array, Array]:
    """Turn dense `(O, I, kh, kw)` into grouped `(O, I / g, kh, kw)` and grouped `(O, O / g, 1, 1)`, with a
    channel shuffle between them: each pair of groups has O / g² of the filters in between."""
    out, into, *kernel = weight.shape
    rank = out // groups**2
    slices = weight.astype(np.float64).reshape(groups, out // groups, groups, -1).transpose(0, 2, 1, 3)
    left, singular, right = np.linalg.svd(slices, full_matrices=False)
    root = np.sqrt(singular[..., :rank])
    filters = (root[..., None] * right[:, :, :rank]).transpose(1, 0, 2, 3)
    mixing = (left[..., :rank] * root[:, :, None]).transpose(0, 2, 3, 1)
    return filters.reshape(out, into // groups, *kernel), mixing.reshape(out, out // groups, 1, 1)


def _grouped_shuffle(network: Network, weights: Weights | None, layer: str) -> Replaced:
    node, shape, weight = _read(network, weights, layer)
    groups, form = _groups(shape), conv_args(node)
    filters, mixing = (None, None) if weight is None else grouped(weight, groups)
    chain = Chain(node, network.shape_of(node.inputs[0]), shape[0])
    of = ConvArgs(form.stride, form.padding, form.dilation, groups)
    chain.conv("right", (shape[0], shape[1] // groups, *shape[2:]), filters, of)
    chain.add("shuffle", "channel_shuffle", (chain.last, groups), chain.shape)
    mix = ConvArgs((1, 1), (0, 0), (1, 1), groups)
    chain.conv("left", (shape[0], shape[0] // groups, 1, 1), mixing, mix)
    return chain.replaced(network, weights)


def pairs(likeness: Array) -> list[tuple[int, int]]:
    """Return disjoint pairs of the rows of a symmetric matrix, the most alike first; greedy."""
    rest = likeness.astype(np.float64).copy()
    np.fill_diagonal(rest, -np.inf)
    found = []
    for _ in range(len(rest) // 2):
        one, two = (int(i) for i in np.unravel_index(np.argmax(rest), rest.shape))
        rest[[one, two]], rest[:, [one, two]] = -np.inf, -np.inf
        found.append((one, two))
    return found


def ghost_pairs(weight: Array) -> tuple[list[int], list[int], list[float]]:
    """Return the filters that stay, those they stand in for, and the factors: the least-squares ones."""
    filters = weight.astype(np.float64).reshape(len(weight), -1)
    products = filters @ filters.T
    squares = np.maximum(np.diag(products), 1e-30)
    kept, ghosts, factors = [], [], []
    for one, two in pairs(products**2 / np.outer(squares, squares)):
        stays, leaves = (one, two) if squares[one] >= squares[two] else (two, one)
        kept.append(stays)
        ghosts.append(leaves)
        factors.append(float(products[stays, leaves] / squares[stays]))
    return kept, ghosts, factors


def _ghost(network: Network, weights: Weights | None, layer: str) -> Replaced:
    node, shape, weight = _read(network, weights, layer)
    half = shape[0] // 2
    primary = cheap = order = None
    if weight is not None:
        kept, ghosts, factors = ghost_pairs(weight)
        primary, cheap, order = weight[kept], np.zeros((half, 1, 3, 3)), np.argsort(kept + ghosts)
        cheap[:, 0, 1, 1] = factors
    chain = Chain(node, network.shape_of(node.inputs[0]), shape[0])
    chain.conv("primary", (half, *shape[1:]), primary, conv_args(node))
    first = chain.last
    chain.conv("cheap", (half, 1, 3, 3), cheap, ConvArgs((1, 1), (1, 1), (1, 1), half))
    _join(chain, first, order)
    return chain.replaced(network, weights)


def _sign_sharing(network: Network, weights: Weights | None, layer: str) -> Replaced:
    node, shape, weight = _read(network, weights, layer)
    primary = order = None
    if weight is not None:
        filters = weight.astype(np.float64).reshape(len(weight), -1)
        sizes = np.maximum(np.linalg.norm(filters, axis=1), 1e-30)
        found = pairs(-(filters @ filters.T) / np.outer(sizes, sizes))
        first, second = ([pair[end] for pair in found] for end in (0, 1))
        primary, order = (weight[first] - weight[second]) / 2, np.argsort(first + second)
    chain = Chain(node, network.shape_of(node.inputs[0]), shape[0])
    chain.conv("primary", (shape[0] // 2, *shape[1:]), primary, conv_args(node))
    whole = chain.last
    chain.add("negative", "neg", (whole,), chain.shape)
    _join(chain, whole, order)
    return chain.replaced(network, weights)


def _fire(network: Network, weights: Weights | None, layer: str) -> Replaced:
    node, shape, weight = _read(network, weights, layer)
    out, into, *kernel = shape
    half, narrow = out // 2, into // 2
    squeeze = point = spread = order = None
    if weight is not None:
        squeeze, point, spread, order = fire(weight)
    form = conv_args(node)
    chain = Chain(node, network.shape_of(node.inputs[0]), out)
    chain.conv("squeeze", (narrow, into, 1, 1), squeeze)
    squeezed, shape_in = chain.last, chain.shape
    chain.conv("point", (half, narrow, 1, 1), point, ConvArgs(form.stride, (0, 0), (1, 1), 1))
    first, chain.shape = chain.last, shape_in
    chain.conv("spread", (out - half, narrow, *kernel), spread, form, reads=squeezed)
    _join(chain, first, order)
    return chain.replaced(network, weights)


def fire(weight: Array) -> tuple[Array, Array, Array, Array]:
    """Turn dense `(O, I, k, k)` into squeeze `(I / 2, I, 1, 1)`, 1×1 and k×k expansions of half the outputs
    each, and where each output lies in the two together."""
    out, into, height, width = weight.shape
    dense = weight.astype(np.float64)
    unfolded = dense.transpose(1, 0, 2, 3).reshape(into, -1)
    basis = np.linalg.eigh(unfolded @ unfolded.T)[1][:, ::-1][:, : into // 2]
    core = np.einsum("oikl,is->oskl", dense, basis)
    centre = core[:, :, height // 2, width // 2]
    share = np.square(centre).sum(1) / np.maximum(np.square(core).sum((1, 2, 3)), 1e-30)
    ranked = np.argsort(-share, kind="stable")
    points, others = ranked[: out // 2], ranked[out // 2 :]
    return basis.T, centre[points], core[others], np.argsort(ranked)


def _inverted_bottleneck(network: Network, weights: Weights | None, layer: str) -> Replaced:
    node, shape, weight = _read(network, weights, layer)
    out, into, *kernel = shape
    up = filters = down = None
    if weight is not None:
        reduce, each, expand = cp(weight, into, CP_SWEEPS)
        up, filters = np.concatenate([reduce, -reduce]), np.concatenate([each, each])
        down = np.concatenate([expand, -expand], axis=1)
    form = conv_args(node)
    chain = Chain(node, network.shape_of(node.inputs[0]), out)
    chain.conv("up", (2 * into, into, 1, 1), up)
    chain.add("relu", "relu", (chain.last,), chain.shape)
    chain.conv("depthwise", (2 * into, 1, *kernel), filters, replace(form, groups=2 * into))
    chain.conv("down", (out, 2 * into, 1, 1), down)
    return chain.replaced(network, weights)


def _narrows(_form: ConvArgs, shape: Shape) -> bool:
    taps = shape[2] * shape[3]
    return 2 * shape[1] * (shape[1] + taps + shape[0]) < shape[0] * shape[1] * taps


def _join(chain: Chain, first: Ref, order: Array | None) -> None:
    shape = (1, chain.channels, *chain.shape[2:])
    chain.add("both", "cat", ((first, chain.last), 1), shape)
    chain.select("order", order)


def _read(
    network: Network, weights: Weights | None, layer: str
) -> tuple[Node, Shape, NDArray[np.float32] | None]:
    node = network.by_name[layer]
    name = node.params[0]
    return node, network.params[name].shape, None if weights is None else weights[name]


def _is_even(_form: ConvArgs, shape: Shape) -> bool:
    return shape[0] % 2 == 0 and shape[0] > 2


def _centred(form: ConvArgs, shape: Shape) -> bool:
    """Return whether a 1×1 convolution of the same stride gives a map of the same size."""
    odd = all(size % 2 for size in shape[2:])
    around = tuple(d * (k - 1) // 2 for d, k in zip(form.dilation, shape[2:], strict=True))
    return odd and form.padding in ("same", around) and min(shape[:2]) > 2 and shape[0] % 2 == 0


COMPACT: dict[str, Compact] = {
    "depthwise_separable": Compact(lambda *_: True, _depthwise_separable),
    "grouped_shuffle": Compact(lambda _, shape: _groups(shape) > 0, _grouped_shuffle),
    "ghost": Compact(_is_even, _ghost),
    "sign_sharing": Compact(_is_even, _sign_sharing),
    "fire": Compact(_centred, _fire),
    "inverted_bottleneck": Compact(_narrows, _inverted_bottleneck),
}
