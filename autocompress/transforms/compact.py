"""Compact blocks: the dense convolutions of a block become cheaper ones that start from their weights.

Depthwise-separable (Howard et al. 2017, arXiv:1704.04861): a k×k convolution becomes one k×k filter
per input channel and a 1×1 convolution. The start is the best such pair in the least-squares sense:
for each input channel the rank-1 approximation of its out × k² slice of the dense weight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.blocks import Block
from autocompress.network import Network, Param, Ref, Weights
from autocompress.transforms.replace_layer import POINTWISE, ConvArgs, Link, conv_args, replace_by_chain


def separable_layers(network: Network, block: Block) -> tuple[str, ...]:
    """The dense k×k convolutions of a block, k > 1, that share their weight with no other layer."""
    found = []
    for name in block.layers:
        node = network.by_name.get(name)
        if node is None or not node.op.startswith("conv2d"):
            continue
        if not (isinstance(node.args[0], Ref) and isinstance(node.args[1], Param)):
            continue
        shape = network.params[node.args[1].name].shape
        dense = conv_args(node).groups == 1 and max(shape[2:]) > 1 and shape[1] > 1
        if dense and len(network.param_users[node.args[1].name]) == 1:
            found.append(name)
    return tuple(found)


def depthwise_separable(
    network: Network, weights: Weights | None, block: Block
) -> tuple[Network, Weights | None]:
    """Every dense k×k convolution of the block as depthwise and pointwise convolution."""
    for layer in separable_layers(network, block):
        node = network.by_name[layer]
        name = node.args[1].name  # type: ignore[union-attr]
        shape = network.params[name].shape
        depthwise, pointwise = (None, None) if weights is None else separate(weights[name])
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
        network, weights = replace_by_chain(network, weights, layer, chain)
    return network, weights


def separate(weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Dense `(O, I, k, k)` → depthwise `(I, 1, k, k)` and pointwise `(O, I, 1, 1)`, closest to it."""
    out, into, *kernel = weight.shape
    slices = weight.transpose(1, 0, 2, 3).reshape(into, out, -1)
    left, singular, right = np.linalg.svd(slices, full_matrices=False)
    root = np.sqrt(singular[:, 0])
    depthwise = (root[:, None] * right[:, 0]).reshape(into, 1, *kernel)
    pointwise = (root[:, None] * left[:, :, 0]).T.reshape(out, into, 1, 1)
    return depthwise, pointwise
