"""Depth: a residual block is dropped, its source takes the place of its sum."""

from __future__ import annotations

from dataclasses import replace

from autocompress.graph.blocks import Block
from autocompress.graph.network import Network, Weights, prune_dead, redirect


def drop(network: Network, weights: Weights | None, block: Block) -> tuple[Network, Weights | None]:
    """The network without `block`, which must be droppable (its skip keeps the shape)."""
    if not block.droppable:
        raise ValueError(f"block {block.name} has no skip of equal shape")
    rest = (node for node in network.nodes if node.name != block.add)
    source = next(name for name in network.by_name[block.add].inputs if name not in block.nodes)
    output = source if network.output == block.add else network.output
    network = prune_dead(replace(network, nodes=redirect(rest, {block.add: source}), output=output))
    if weights is not None:
        weights = {name: weights[name] for name in network.params}
    return network, weights
