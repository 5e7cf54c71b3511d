"""Channel shuffles that a network writes as a reshape, a transposition and a reshape become one operation.

`(N, g · c, …)` → `(N, g, c, …)` → `(N, c, g, …)` → `(N, c · g, …)` is the shuffle of ShuffleNet (Zhang et al.
2018, arXiv:1707.01083). As one operation it is a permutation, behind which every channel is followed.
"""

from __future__ import annotations

from autocompress.graph.network import Network, Node, Ref, prune_dead
from autocompress.graph.operations import RESHAPE

_SWAPS = frozenset({"transpose.int", "permute"})


def with_channel_shuffles(network: Network) -> Network:
    """Return the network with every shuffle that is spelled out as one `channel_shuffle`."""
    found = {node.name: shuffle for node in network.nodes if (shuffle := _shuffle(network, node)) is not None}
    if not found:
        return network
    return prune_dead(network.with_nodes(found.get(node.name, node) for node in network.nodes))


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
