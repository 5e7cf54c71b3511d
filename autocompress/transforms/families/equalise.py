"""Cross-layer equalisation: channels of neighbouring layers scaled alike, exactly (Nagel et al. 2019,
arXiv:1906.04721).

Where one layer alone reads another, through a relu or nothing, a channel between them may be divided by
any positive number that the next layer's weights are multiplied by. The number is chosen so that the largest
weight that writes the channel and the largest that reads it have one magnitude.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.network import Network, Node, Param, Weights
from autocompress.graph.operations import LAYERS
from autocompress.graph.replace_layer import bias_of, conv_args

ROUNDS = 10
"""Chains of depthwise layers need several until all agree."""

_HOMOGENEOUS = frozenset({"relu", "leaky_relu"})
_LEAST = 1e-8


def equalised(network: Network, weights: Weights) -> Weights:
    """Return the weights of a network with folded batch norms, which computes the same with them.

    Layers whose weights are on a grid, or are read by others as well, are left as they are, and so are
    channels that are all zero. The arguments are not modified.
    """
    pairs = list(_pairs(network))
    changed = dict(weights)
    for _ in range(ROUNDS if pairs else 0):
        for first, second in pairs:
            _equalise(first, second, changed)
    return changed


def _pairs(network: Network) -> Iterator[tuple[Node, Node]]:
    """Yield the layers that are read by one layer alone, with that layer."""
    for node in network.nodes:
        if not _is_plain(network, node):
            continue
        reader = _only_reader(network, node)
        if reader is not None and reader.op in _HOMOGENEOUS:
            reader = _only_reader(network, reader)
        if reader is None or not _is_plain(network, reader) or reader.inputs.count(reader.inputs[0]) != 1:
            continue
        if node.op == "linear" and reader.op != "linear":
            continue
        if node.op == "linear" or reader.op != "linear":
            yield node, reader


def _only_reader(network: Network, node: Node) -> Node | None:
    readers = network.users[node.name]
    return network.by_name[readers[0]] if len(readers) == 1 and node.name not in network.outputs else None


def _is_plain(network: Network, node: Node) -> bool:
    """Return whether it is a layer with parameters of its own that is not grouped, or is depthwise."""
    if node.op not in LAYERS or node.grid is not None or node.kwargs:
        return False
    if any(len(network.param_users[name]) > 1 for name in node.params):
        return False
    if not isinstance(node.args[1], Param) or not isinstance(bias_of(node), (Param, type(None))):
        return False
    return node.op == "linear" or conv_args(node).groups == 1 or _is_depthwise(network, node)


def _is_depthwise(network: Network, node: Node) -> bool:
    shape = network.params[node.args[1].name].shape
    return shape[1] == 1 and conv_args(node).groups == shape[0]


def _equalise(first: Node, second: Node, weights: Weights) -> None:
    writes, reads = first.args[1].name, second.args[1].name
    written = _largest(weights[writes], 0)
    by_output = second.op != "linear" and conv_args(second).groups > 1
    axis = 0 if by_output else 1
    read = _largest(weights[reads], axis)
    alive = (written > _LEAST) & (read > _LEAST)
    factor = np.where(alive, np.sqrt(written * read) / np.where(alive, read, 1), 1.0)
    weights[writes] = (weights[writes] / _along(factor, weights[writes], 0)).astype(np.float32)
    weights[reads] = (weights[reads] * _along(factor, weights[reads], axis)).astype(np.float32)
    bias = bias_of(first)
    if isinstance(bias, Param):
        weights[bias.name] = (weights[bias.name] / factor).astype(np.float32)


def _largest(weight: NDArray[Any], axis: int) -> NDArray[np.float64]:
    rows = np.abs(np.moveaxis(weight, axis, 0).astype(np.float64)).reshape(weight.shape[axis], -1)
    return rows.max(axis=1, initial=0)


def _along(factor: NDArray[Any], weight: NDArray[Any], axis: int) -> NDArray[Any]:
    return factor.reshape(*(1,) * axis, -1, *(1,) * (weight.ndim - axis - 1))
