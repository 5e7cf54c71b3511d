"""Depth: a residual block is dropped, its source takes the place of its sum."""

from __future__ import annotations

from autocompress.graph.blocks import Block
from autocompress.graph.network import Network, Weights, prune_dead, redirect


def drop(network: Network, weights: Weights | None, block: Block) -> tuple[Network, Weights | None]:
    """Return the network without `block`, which must be droppable (its skip keeps the shape)."""
    if not block.droppable:
        raise ValueError(f"block {block.name} has no skip of equal shape")
    rest = (node for node in network.nodes if node.name != block.add)
    source = next(name for name in network.by_name[block.add].inputs if name not in block.nodes)
    new_names = {block.add: source}
    network = prune_dead(network.with_outputs(new_names).with_nodes(redirect(rest, new_names)))
    if weights is not None:
        weights = {name: weights[name] for name in network.params}
    return network, weights
