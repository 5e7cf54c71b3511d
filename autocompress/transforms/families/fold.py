"""Batch norms folded into the layer before them, as every runtime does before inference."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.network import (
    Network,
    Node,
    Param,
    ParamSpec,
    Ref,
    Shape,
    Weights,
    prune_dead,
    redirect,
    unique_name,
)
from autocompress.graph.operations import TRANSPOSED, WEIGHTED
from autocompress.graph.replace_layer import bias_of, channel_axis, groups_of
from autocompress.transforms.families.low_bit import scaled


def fold_batch_norms(
    network: Network, weights: Weights | None, only: Collection[str] | None = None
) -> tuple[Network, Weights | None]:
    """Return the network without the batch norms that directly follow a convolution or linear layer, one of
    `only` where that is given.

    The layer keeps its name, gains a bias where it had none (named after its weight), and takes over
    what the batch norm's output was used for, its quantizer included. A batch norm stays where the
    layer's output is read elsewhere too, or the layer's weight or bias is shared.

    `weights` may be None: then only names and shapes are folded. Neither argument is modified.
    """
    weights = None if weights is None else dict(weights)
    params = dict(network.params)
    replaced: dict[str, Node | None] = {}
    new_names: dict[str, str] = {}
    for norm in network.nodes:
        layer = _foldable_layer(network, norm)
        if layer is None or (only is not None and layer.name not in only):
            continue
        folded = _fold(layer, norm, params, weights)
        replaced[layer.name], replaced[norm.name] = folded, None
        new_names[norm.name] = layer.name
    if not new_names:
        return network, weights
    kept = (replaced.get(node.name, node) for node in network.nodes)
    nodes = redirect((node for node in kept if node is not None), new_names)
    folded_network = prune_dead(replace(network.with_outputs(new_names), nodes=nodes, params=params))
    if weights is not None:
        weights = {name: weights[name] for name in folded_network.params}
    return folded_network, weights


def _foldable_layer(network: Network, norm: Node) -> Node | None:
    if norm.op != "batch_norm" or not isinstance(norm.args[0], Ref):
        return None
    if any(norm.args[5:6]) or not all(isinstance(arg, Param) for arg in norm.args[3:5]):
        return None  # It takes the statistics of each batch.
    layer = network.by_name.get(norm.args[0].node)
    if layer is None or layer.op not in WEIGHTED or layer.quantizer is not None:
        return None
    if layer.kwargs or network.users[layer.name] != (norm.name,) or layer.name in network.outputs:
        return None
    if layer.op == "linear" and len(layer.shape) != 2:
        return None
    operands = layer.args[1:3]
    own = all(operand is None or isinstance(operand, Param) for operand in operands)
    shared = any(len(network.param_users[name]) > 1 for name in layer.params)
    return layer if own and not shared else None


def _fold(layer: Node, norm: Node, params: dict[str, ParamSpec], weights: Weights | None) -> Node:
    """Return the layer that computes both; add its bias to `params`, and fold into `weights` in place."""
    weight = layer.args[1]
    assert isinstance(weight, Param)
    bias = bias_of(layer)
    if bias is None:
        bias = Param(_bias_name(weight.name, params))
        params[bias.name] = ParamSpec((layer.shape[channel_axis(layer)],))
        if weights is not None:
            weights[bias.name] = np.zeros(params[bias.name].shape, np.float32)
    assert isinstance(bias, Param)
    if weights is not None:
        factor, shift = _affine(norm, weights)
        if layer.grid is None:
            folded = weights[weight.name] * _columns(layer, factor, weights[weight.name].shape)
        else:
            step = layer.grid.step
            folded, weights[step] = scaled(weights[weight.name], weights[step], layer.grid.form, factor)
        weights[weight.name] = folded.astype(np.float32)
        weights[bias.name] = (weights[bias.name] * factor + shift).astype(np.float32)
    return layer.but(args=(layer.args[0], weight, bias, *layer.args[3:]), quantizer=norm.quantizer)


def _columns(layer: Node, factor: NDArray[np.float64], shape: Shape) -> NDArray[np.float64]:
    """Return one factor an output in a form that the layer's weight of this shape can be multiplied by."""
    ones = (1,) * (len(shape) - 2)
    if layer.op not in TRANSPOSED:
        return factor.reshape(-1, 1, *ones)
    groups = groups_of(layer)
    by_group = factor.reshape(groups, 1, shape[1])
    return np.broadcast_to(by_group, (groups, shape[0] // groups, shape[1])).reshape(*shape[:2], *ones)


def _affine(norm: Node, weights: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the factor and shift of each channel, in double precision."""

    def value(arg: Any, default: float) -> Any:
        return weights[arg.name].astype(np.float64) if isinstance(arg, Param) else default

    _, scale, bias, mean, variance, *rest = norm.args
    eps = float(rest[2]) if len(rest) > 2 else 1e-5  # type: ignore[arg-type]
    factor = value(scale, 1.0) / np.sqrt(value(variance, 1.0) + eps)
    return factor, value(bias, 0.0) - value(mean, 0.0) * factor


def _bias_name(weight_name: str, params: Mapping[str, ParamSpec]) -> str:
    owner, _, leaf = weight_name.rpartition(".")
    wanted = f"{owner}.bias" if leaf == "weight" else f"{weight_name}_bias"
    return unique_name(wanted.removeprefix("."), params)
