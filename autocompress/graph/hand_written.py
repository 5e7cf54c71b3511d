"""Layers that a network writes out by hand become the one operation that they are.

- A product with a matrix of its own, `x @ weight + bias` or an `einsum` of that kind, is a linear layer.
- `(N, g · c, …)` → `(N, g, c, …)` → `(N, c, g, …)` → `(N, c · g, …)` is the channel shuffle of ShuffleNet
  (Zhang et al. 2018, arXiv:1707.01083): a permutation, behind which every channel is followed.
- `x.reshape_as(y)` and `x.expand_as(y)` name the sizes that they mean.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from autocompress.graph.network import Network, Node, Param, Ref, Weights, prune_dead, redirect
from autocompress.graph.operations import RESHAPE

_PRODUCTS = frozenset({"matmul", "mm", "addmm", "einsum"})
_SWAPS = frozenset({"transpose.int", "permute"})


def recognised(network: Network, weights: Weights) -> Network:
    """Return the network with hand-written layers as operations; `weights` gains what they multiply with."""
    network = with_channel_shuffles(_with_sizes(network))
    return prune_dead(_with_linear_layers(network, weights))


def with_channel_shuffles(network: Network) -> Network:
    """Return the network with every shuffle that is spelled out as one `channel_shuffle`."""
    found = {node.name: shuffle for node in network.nodes if (shuffle := _shuffle(network, node)) is not None}
    if not found:
        return network
    return prune_dead(network.with_nodes(found.get(node.name, node) for node in network.nodes))


def _with_sizes(network: Network) -> Network:
    """Return the network in which sizes taken from another value are numbers; the batch is what is left."""
    return network.with_nodes(_sized(network, node) for node in network.nodes)


def _sized(network: Network, node: Node) -> Node:
    if node.op not in ("reshape_as", "view_as", "expand_as") or not isinstance(node.args[0], Ref):
        return node
    before, after = network.shape_of(node.args[0].node), node.shape
    if node.op == "expand_as":
        if len(before) != len(after):
            return node
        sizes = tuple(-1 if old == new else new for old, new in zip(before, after, strict=True))
        return node.but(op="expand", args=(node.args[0], sizes))
    return node.but(op="reshape", args=(node.args[0], (-1, *after[1:]))) if after[0] == 1 else node


def _with_linear_layers(network: Network, weights: Weights) -> Network:
    params, found = dict(network.params), {}
    for node in network.nodes:
        parts = _linear_parts(network, node) if node.op in _PRODUCTS else None
        if parts is None:
            continue
        source, weight, bias, is_turned = parts
        if is_turned:
            weights[weight.name] = np.ascontiguousarray(weights[weight.name].T)
            params[weight.name] = replace(params[weight.name], shape=weights[weight.name].shape)
        found[node.name] = node.but(op="linear", args=(source, weight, bias), kwargs=())
    nodes = (found.get(node.name, node) for node in network.nodes)
    return _with_biases(replace(network, params=params).with_nodes(nodes))


def _linear_parts(network: Network, node: Node) -> tuple[Ref, Param, Param | None, bool] | None:
    """Return what a product reads, its matrix, its bias, and whether the matrix has its inputs first."""
    bias, operands = None, node.args
    is_turned: bool | None = True
    if node.op == "einsum":
        operands = tuple(node.args[1])  # type: ignore[arg-type]
        is_turned = _is_turned(str(node.args[0])) if len(operands) == 2 else None
    elif node.op == "addmm":
        bias, operands = node.args[0], node.args[1:3]
        own = isinstance(bias, Param) and network.params[bias.name].shape == node.shape[-1:]
        is_turned = True if own and len(node.args) == 3 and not node.kwargs else None
    if is_turned is None or not isinstance(operands[0], Ref) or not isinstance(operands[1], Param):
        return None
    spec = network.params[operands[1].name]
    own = len(network.param_users[operands[1].name]) == 1 and spec.trainable and len(spec.shape) == 2
    if not own or spec.dtype != "float32" or len(network.shape_of(operands[0].node)) < 2:
        return None
    return operands[0], operands[1], bias, is_turned  # type: ignore[return-value]


def _is_turned(equation: str) -> bool | None:
    """Return whether an einsum of two operands has a matrix with its inputs first; None if it is no linear
    layer."""
    left, _, right = equation.replace(" ", "").partition("->")
    data, _, matrix = left.partition(",")
    if len(matrix) != 2 or len(set(data)) != len(data) or "." in data or not right:
        return None
    first, second = matrix[0], matrix[1]
    for is_turned, into, out in ((True, first, second), (False, second, first)):
        if data[-1] == into and out not in data and right == data[:-1] + out:
            return is_turned
    return None


def _with_biases(network: Network) -> Network:
    """Return the network in which a vector added to a linear layer without a bias is its bias."""
    changed: dict[str, Node] = {}
    new_names: dict[str, str] = {}
    for node in network.nodes:
        if node.op != "add.Tensor" or node.kwargs or len(node.args) != 2 or node.name == network.output:
            continue
        value, bias = node.args if isinstance(node.args[0], Ref) else node.args[::-1]
        layer = network.by_name.get(value.node) if isinstance(value, Ref) else None
        if layer is None or layer.op != "linear" or not isinstance(bias, Param):
            continue
        alone = network.users[layer.name] == (node.name,) and len(network.param_users[bias.name]) == 1
        fits = network.params[bias.name].shape == layer.shape[-1:] and layer.args[2:] in ((), (None,))
        if alone and fits and network.params[bias.name].trainable:
            changed[layer.name] = layer.but(args=(*layer.args[:2], bias))
            new_names[node.name] = layer.name
    nodes = (changed.get(node.name, node) for node in network.nodes if node.name not in new_names)
    return network.with_nodes(redirect(nodes, new_names))


def _shuffle(network: Network, last: Node) -> Node | None:
    swap = _before(network, last) if last.op in RESHAPE else None
    first = _before(network, swap) if swap is not None and swap.op in _SWAPS else None
    if first is None or swap is None or first.op not in RESHAPE or not isinstance(first.args[0], Ref):
        return None
    source, split = network.shape_of(first.args[0].node), first.shape
    if len(source) < 2 or source != last.shape or len(split) != len(source) + 1:
        return None
    one, groups, channels, *rest = split
    if (one, groups * channels, *rest) != source or not _swaps_groups(swap, len(split)):
        return None
    return last.but(op="channel_shuffle", args=(first.args[0], groups), kwargs=())


def _before(network: Network, node: Node) -> Node | None:
    """Return the operation whose value this one alone reads, as its data."""
    if not isinstance(node.args[0], Ref):
        return None
    source = network.by_name.get(node.args[0].node)
    return source if source is not None and network.users[source.name] == (node.name,) else None


def _swaps_groups(node: Node, rank: int) -> bool:
    """Return whether a transposition swaps axes 1 and 2 and no others."""
    if node.op == "permute":
        order = [int(axis) % rank for axis in node.args[1]]  # type: ignore[union-attr, arg-type]
        return order == [0, 2, 1, *range(3, rank)]
    return {int(axis) % rank for axis in node.args[1:3]} == {1, 2}  # type: ignore[arg-type]
