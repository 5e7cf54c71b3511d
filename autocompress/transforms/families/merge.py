"""Depth: two layers in a row become one; an activation between them is dropped.

Without what is not linear between them, two convolutions or linear layers are one, exactly: the product of
their matrices (layer folding, Dror et al. 2021, arXiv:2106.09309; Fu et al. 2022, arXiv:2206.00843, for
networks that lose activations). The second has to be linear or 1×1 without padding: the zeros that a larger
kernel pads with are not what the first layer computes outside of its input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.network import Network, Node, Param, ParamSpec, Ref, Weights, prune_dead, unique_name
from autocompress.graph.operations import LAYERS
from autocompress.graph.replace_layer import bias_of, conv_args
from autocompress.transforms.families.fold import fold_batch_norms

KEEP, MERGE = "keep", "merge"
ACTIVATIONS = frozenset(
    "relu relu6 hardtanh hardswish silu gelu sigmoid tanh elu leaky_relu mish softplus selu celu".split()
)


@dataclass(frozen=True)
class Stretch:
    """Two layers, and what lies between them: an activation, or nothing, a batch norm apart."""

    first: str
    second: str
    activation: str


def stretch(network: Network, layer: str) -> Stretch | str:
    """Return the stretch that begins with `layer`, or why it begins none."""
    first, activation = network.by_name[layer], ""
    node = _only_reader(network, first)
    if node is not None and node.op == "batch_norm":
        if first.op == "linear" and len(first.shape) != 2:
            return "the batch norm behind it is not folded"
        node = _only_reader(network, node)
    if node is not None and node.op in ACTIVATIONS:
        activation, node = node.op, _only_reader(network, node)
    if node is None or node.op not in LAYERS or first.op not in LAYERS:
        return "no layer alone reads what it computes"
    reason = _unlike(network, first, node)
    return reason or Stretch(layer, node.name, activation)


def _only_reader(network: Network, node: Node) -> Node | None:
    """Return the node that alone reads the value, as its data and once."""
    users = network.users[node.name]
    if len(users) != 1 or node.name in network.outputs:
        return None
    reader = network.by_name[users[0]]
    return reader if reader.inputs == (node.name,) and reader.args[0] == Ref(node.name) else None


def _unlike(network: Network, first: Node, second: Node) -> str:
    for node in (first, second):
        operands = [arg for arg in node.args[1:3] if arg is not None]
        if node.kwargs or not all(isinstance(arg, Param) for arg in operands):
            return f"{node.name} is not a plain layer"
        if any(len(network.param_users[arg.name]) > 1 for arg in operands):
            return f"the weight of {node.name} is shared with another layer"
    if (first.op == "linear") != (second.op == "linear"):
        return f"{second.name} behind it is of another kind"
    if second.op == "linear":
        return ""
    form, kernel = conv_args(second), network.params[second.params[0]].shape[2:]
    plain = (
        form.groups == 1 and set(form.stride) == {1} and form.padding in ((0,) * len(kernel), "valid", "same")
    )
    return "" if plain and max(kernel) == 1 else f"{second.name} behind it is not a plain 1×1 convolution"


def merge(network: Network, weights: Weights | None, layer: str) -> tuple[Network, Weights | None]:
    """Return the network in which the stretch that begins with `layer` is its second layer alone.

    The two compute the same where there was no activation. Raises ValueError where no stretch begins.
    """
    network, weights = fold_batch_norms(network, weights, frozenset({layer}))
    found = stretch(network, layer)
    if isinstance(found, str):
        raise ValueError(f"{layer} cannot be merged: {found}")
    first, second = network.by_name[layer], network.by_name[found.second]
    params, values = dict(network.params), None if weights is None else dict(weights)
    weight, biases = second.args[1], [bias_of(first), bias_of(second)]
    bias = biases[1]
    if bias is None and biases[0] is not None:
        bias = Param(unique_name(f"{second.name}.bias", params))
        params[bias.name] = ParamSpec((params[weight.name].shape[0],))
    into = params[first.args[1].name].shape[1] * (1 if first.op == "linear" else conv_args(first).groups)
    params[weight.name] = ParamSpec(
        (params[weight.name].shape[0], into, *params[first.args[1].name].shape[2:])
    )
    if values is not None:
        if bias is not None:
            values[bias.name] = _merged_bias(values, weight, biases)
        values[weight.name] = _merged_weight(values, first, weight)
    args = (first.args[0], weight, bias, *first.args[3:])
    if first.op != "linear":
        args = (*args[:6], *(1,) * (len(args) > 6))
    merged = first.but(
        name=second.name,
        args=args,
        shape=second.shape,
        module=second.module,
        bits=second.bits,
        quantizer=second.quantizer,
    )
    nodes = [merged if node.name == second.name else node for node in network.nodes]
    network = prune_dead(replace(network, nodes=tuple(nodes), params=params))
    return network, None if values is None else {name: values[name] for name in network.params}


def _merged_bias(values: Weights, weight: Param, biases: list[Param | None]) -> NDArray[np.float32]:
    first, second = biases
    matrix = values[weight.name].reshape(len(values[weight.name]), -1).astype(np.float64)
    total = np.zeros(len(matrix)) if second is None else values[second.name].astype(np.float64)
    return (total if first is None else total + matrix @ values[first.name]).astype(np.float32)


def _merged_weight(values: Weights, first: Node, weight: Param) -> NDArray[np.float32]:
    dense = _without_groups(
        values[first.args[1].name], 1 if first.op == "linear" else conv_args(first).groups
    )
    matrix = values[weight.name].reshape(len(values[weight.name]), -1).astype(np.float64)
    product = np.tensordot(matrix, dense.astype(np.float64), axes=1)
    return np.ascontiguousarray(product, dtype=np.float32)


def _without_groups(weight: NDArray[np.floating], groups: int) -> NDArray[np.floating]:
    """Turn `(out, in / groups, …)` into `(out, in, …)` with zeros between what belongs to different
    groups."""
    if groups == 1:
        return weight
    out, into = weight.shape[:2]
    dense = np.zeros((out, into * groups, *weight.shape[2:]), dtype=weight.dtype)
    for group in range(groups):
        rows = slice(group * out // groups, (group + 1) * out // groups)
        dense[rows, group * into : (group + 1) * into] = weight[rows]
    return dense
