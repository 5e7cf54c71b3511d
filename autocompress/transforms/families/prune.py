"""Structured pruning: channels leave every parameter and every shape they appear in.

The widths of coupled groups are chosen by the search; which channels stay is decided by saliency
(Molchanov et al. 2019, arXiv:1906.10771, for the Taylor criterion).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.coupling import Coupling, Group
from autocompress.graph.network import Network, Node, Param, ParamSpec, Weights
from autocompress.graph.operations import CONVOLUTIONS, PRODUCERS, TRANSPOSED
from autocompress.graph.replace_layer import channel_axis, groups_of

Keep = NDArray[np.bool_]

_GROUPS = 6
"""Place of the number of groups among the arguments of a convolution, a transposed one too."""


def kept_count(size: int, keep: float, round_to: int = 1) -> int:
    """Return how many of `size` channels a keep ratio means: a multiple of `round_to`, at least one, all for
    1."""
    if keep >= 1:
        return size
    wanted = max(1, round(size * keep))
    if round_to > 1 and size > round_to:
        wanted = max(round_to, round(wanted / round_to) * round_to)
    return min(size, wanted)


def atom_scores(group: Group, saliency: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Return one importance per atom: its saliency summed over the output channels that carry it,
    `(size,)`."""
    scores = np.zeros(group.size)
    for place in group.places:
        values = saliency.get(place.param)
        if place.makes and values is not None:
            exact = np.asarray(values, dtype=np.float64)
            rows = exact if exact.ndim == 1 else np.moveaxis(exact, place.axis, 0)
            per_index = rows.reshape(len(rows), -1).sum(1)
            scores += per_index[place.indices].sum(1)
    return scores


def keep_mask(
    coupling: Coupling, counts: Mapping[str, int], saliency: Mapping[str, Mapping[str, NDArray[Any]]] | None
) -> Keep:
    """Return which atoms stay, given how many of each group: the most salient ones, ties to the first.

    `saliency[group]` holds elementwise importances by parameter name; without it, as in pricing,
    where only the number matters, the first channels stay.
    """
    mask = np.ones(coupling.atom_count, dtype=np.bool_)
    for group in coupling.groups:
        count = counts.get(group.name, group.size)
        if count >= group.size:
            continue
        order = np.arange(group.size)
        if saliency is not None:
            order = np.argsort(-atom_scores(group, saliency[group.name]), kind="stable")
        mask[group.atoms[order[count:]]] = False
    return mask


def kept_outputs(coupling: Coupling, keep: Keep) -> dict[str, Keep]:
    """Return by layer which of its output channels stay, `(channels,)`, for the layers that lose some."""
    kept: dict[str, Keep] = {}
    for node in coupling.network.nodes:
        if node.op in PRODUCERS:
            labels = coupling.values[node.name][channel_axis(node)]
            if labels is not None and not keep[labels].all():
                kept[node.name] = keep[labels]
    return kept


def kept_moments(coupling: Coupling, layer: str, second: NDArray[Any], keep: Keep) -> NDArray[Any]:
    """Return the part of a layer's second moments, `(fan_in, fan_in)`, that belongs to the inputs that
    stay."""
    labels = coupling.params[coupling.network.by_name[layer].params[0]][1]
    if labels is None or keep[labels].all():
        return second
    stays = np.repeat(keep[labels], len(second) // len(labels))
    return second[np.ix_(stays, stays)]


def prune(coupling: Coupling, weights: Weights | None, keep: Keep) -> tuple[Network, Weights | None]:
    """Return the network with only the kept atoms, and its weights where given."""
    network = coupling.network
    if keep.all():
        return network, None if weights is None else dict(weights)
    nodes = tuple(_pruned_node(node, coupling, keep) for node in network.nodes)
    params = {}
    sliced: Weights = {}
    for name, spec in network.params.items():
        axes = coupling.params.get(name, ())
        shape = list(spec.shape)
        value = None if weights is None else weights[name]
        for axis, labels in enumerate(axes):
            if labels is None:
                continue
            stays = keep[labels]
            shape[axis] = int(stays.sum())
            if value is not None and shape[axis] < len(labels):
                value = np.compress(stays, value, axis=axis)
        params[name] = replace(spec, shape=tuple(shape))
        if value is not None:
            sliced[name] = np.ascontiguousarray(value).reshape(value.shape)
    for name, order in _orders(coupling, nodes, keep).items():
        params[name] = ParamSpec(order.shape, str(order.dtype), trainable=False)
        sliced[name] = order
    return replace(network, nodes=nodes, params=params), None if weights is None else sliced


def _pruned_node(node: Node, coupling: Coupling, keep: Keep) -> Node:
    axes = coupling.values[node.name]
    shape = _pruned_shape(node.shape, axes, keep)
    if shape == node.shape and not any(
        labels is not None and not keep[labels].all()
        for name in node.inputs
        for labels in _flat(coupling.values[name])
    ):
        return node
    rewrite = _REWRITES.get(node.op)
    pruned = node.but(shape=shape)
    return pruned if rewrite is None else rewrite(pruned, node, coupling, keep)


def _flat(axes: Any) -> list[Any]:
    return [labels for axis in axes for labels in (_flat(axis) if isinstance(axis, tuple) else [axis])]


def _pruned_shape(shape: Any, axes: Any, keep: Keep) -> Any:
    return tuple(
        _pruned_shape(size, axis, keep)
        if isinstance(size, tuple)
        else (size if axis is None else int(keep[axis].sum()))
        for size, axis in zip(shape, axes, strict=True)
    )


def _with_arg(node: Node, index: int, value: Any) -> Node:
    return node.but(args=(*node.args[:index], value, *node.args[index + 1 :]))


def _sizes(node: Node, old: Node, coupling: Coupling, keep: Keep) -> Node:
    """Change the sizes of pruned axes that reshapes and expansions name."""
    del coupling, keep
    position = 2 if node.op == "unflatten.int" else 1
    sizes = node.args[position]
    rank = len(node.shape) - len(sizes) + 1
    offset = node.args[1] % rank if node.op == "unflatten.int" else 0
    new = tuple(
        node.shape[index] if isinstance(size, int) and size == old.shape[index] else size
        for index, size in enumerate(sizes, start=offset)
    )
    return _with_arg(node, position, new)


def _normalized_shape(node: Node, old: Node, coupling: Coupling, keep: Keep) -> Node:
    del old, coupling, keep
    return _with_arg(node, 1, node.shape[-len(node.args[1]) :])


def _groups(node: Node, old: Node, coupling: Coupling, keep: Keep) -> Node:
    """Count the groups anew, of which some left as wholes, by the channels that are left and those of one
    group."""
    groups = groups_of(old)
    weight = old.args[1]
    if groups == 1 or not isinstance(weight, Param):
        return node
    labels = coupling.params[weight.name][1]
    inside = coupling.network.params[weight.name].shape[1] if labels is None else int(keep[labels].sum())
    channels = coupling.values[old.name if old.op in TRANSPOSED else old.inputs[0]][1]
    if channels is None:
        return node
    count = int(keep[channels].sum()) // inside
    if len(node.args) > _GROUPS:
        return _with_arg(node, _GROUPS, count)
    return node.but(kwargs=tuple((key, count if key == "groups" else value) for key, value in node.kwargs))


def _attention_scale(node: Node, old: Node, coupling: Coupling, keep: Keep) -> Node:
    """Scale products of narrower heads as those of the whole ones were."""
    labels = coupling.values[old.inputs[0]][-1]
    said = dict(old.kwargs)
    if labels is None or keep[labels].all() or said.get("scale") is not None:
        return node
    return node.but(kwargs=tuple({**said, "scale": len(labels) ** -0.5}.items()))


def _norm_groups(node: Node, old: Node, coupling: Coupling, keep: Keep) -> Node:
    del coupling, keep
    groups = int(old.args[1])
    return node if groups == 1 else _with_arg(node, 1, groups * node.shape[1] // old.shape[1])


def _shuffled(node: Node, old: Node, coupling: Coupling, keep: Keep) -> Node:
    """Put in place of a shuffle the permutation that `orders` has."""
    del coupling, keep
    return node.but(op="index_select", args=(old.args[0], 1, Param(_order_name(old))))


def _order_name(shuffle: Node) -> str:
    return f"{shuffle.name}.order"


def _orders(coupling: Coupling, nodes: Iterable[Node], keep: Keep) -> dict[str, NDArray[np.int64]]:
    """Return for every shuffle that lost channels, which channel of its input each of its output is."""
    orders = {}
    for node in nodes:
        old = coupling.network.by_name[node.name]
        if old.op != "channel_shuffle" or node.op == old.op:
            continue
        labels = coupling.values[old.inputs[0]][1]
        stays = keep[labels]
        positions = np.where(stays, np.cumsum(stays) - 1, -1)
        shuffled = positions.reshape(old.args[1], -1).T.reshape(-1)
        orders[_order_name(old)] = shuffled[shuffled >= 0].astype(np.int64)
    return orders


def _slice_bounds(node: Node, old: Node, coupling: Coupling, keep: Keep) -> Node:
    given = old.args[1:4]
    dim, start, end = given + (0, None, None)[len(given) :]
    labels = coupling.values[old.inputs[0]][dim]
    if labels is None:
        return node
    first, last, _ = slice(start, end).indices(len(labels))
    stays = keep[labels]
    bounds = int(stays[:first].sum()), int(stays[:last].sum())
    return node.but(args=(node.args[0], dim, *bounds, *node.args[4:]))


def _split_sizes(node: Node, old: Node, coupling: Coupling, keep: Keep) -> Node:
    del coupling, keep
    dim = old.args[2] if len(old.args) > 2 else dict(old.kwargs).get("dim", 0)
    sizes = tuple(shape[dim] for shape in node.shape)
    return node.but(op="split_with_sizes", args=(node.args[0], sizes, dim), kwargs=())


def _pad_amounts(node: Node, old: Node, coupling: Coupling, keep: Keep) -> Node:
    """Set the amounts of padding: padded channels have atoms of their own, so they follow from the output's
    atoms."""
    amounts = list(old.args[1])
    source, target = coupling.values[old.inputs[0]], coupling.values[old.name]
    for index in range(len(amounts) // 2):
        axis = len(target) - 1 - index
        labels = target[axis]
        if labels is None or source[axis] is None:
            continue
        before, stays = amounts[2 * index], keep[labels]
        inner = before + len(source[axis])
        amounts[2 * index] = int(stays[:before].sum())
        amounts[2 * index + 1] = int(stays[inner:].sum())
    return _with_arg(node, 1, tuple(amounts))


_REWRITES = {
    "reshape": _sizes,
    "expand": _sizes,
    "unflatten.int": _sizes,
    "layer_norm": _normalized_shape,
    "rms_norm": _normalized_shape,
    **dict.fromkeys(CONVOLUTIONS | TRANSPOSED, _groups),
    "group_norm": _norm_groups,
    "scaled_dot_product_attention": _attention_scale,
    "channel_shuffle": _shuffled,
    "slice.Tensor": _slice_bounds,
    "split.Tensor": _split_sizes,
    "split_with_sizes": _split_sizes,
    "chunk": _split_sizes,
    "pad": _pad_amounts,
    "constant_pad_nd": _pad_amounts,
}
