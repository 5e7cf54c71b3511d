"""Residual blocks: what lies between a value and the addition that brings it back.

A block is found from the data flow alone. Its `source` is the latest value through which every
path to both operands of the addition goes; its `nodes` are all that is computed in between and
read nowhere else. Where the source itself is an operand, and thus keeps its shape, the block can
be dropped (He et al. 2016, arXiv:1512.03385; Huang et al. 2016, arXiv:1603.09382).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from autocompress.graph.network import Network, Node, unique_name
from autocompress.graph.operations import WEIGHTED

_CANDIDATE_SOURCES = 200


@dataclass(frozen=True)
class Block:
    """Name a block: `add` joins it to its `source`; without a skip of equal shape `droppable` is false."""

    name: str
    add: str
    source: str
    nodes: frozenset[str]
    layers: tuple[str, ...]
    droppable: bool


def residual_blocks(network: Network) -> tuple[Block, ...]:
    """Return every residual block, innermost first where blocks nest, in execution order of the additions."""
    blocks: list[Block] = []
    order = {node.name: index for index, node in enumerate(network.nodes)}
    for node in network.nodes:
        if node.op != "add.Tensor" or len(set(node.inputs)) != 2:
            continue
        found = _find(network, node, order)
        if found is None:
            continue
        source, inner = found
        layers = tuple(other.name for other in network.nodes if other.name in inner and other.op in WEIGHTED)
        if not layers:
            continue
        skip = source in node.inputs and network.shape_of(source) == node.shape
        name = unique_name(_common_module(network, layers) or node.name, {block.name for block in blocks})
        blocks.append(Block(name, node.name, source, frozenset(inner), layers, skip))
    return tuple(blocks)


def _find(network: Network, add: Node, order: dict[str, int]) -> tuple[str, set[str]] | None:
    left, right = dict.fromkeys(add.inputs)
    for source in _common_ancestors(network, left, right, order):
        regions = [_region(network, value, source) for value in (left, right)]
        if regions[0] is None or regions[1] is None:
            continue
        inner = regions[0] | regions[1]
        if all(user in inner or user == add.name for name in inner for user in network.users[name]):
            return source, inner
    return None


def _common_ancestors(network: Network, left: str, right: str, order: dict[str, int]) -> Iterator[str]:
    """Yield the values both operands depend on, latest first; an operand counts as its own ancestor."""
    ancestors = []
    for start in (left, right):
        seen, stack = {start}, [start]
        while stack:
            name = stack.pop()
            if name not in network.by_name or len(seen) > _CANDIDATE_SOURCES:
                continue
            for parent in _data_inputs(network, name):
                if parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        ancestors.append(seen)
    common = ancestors[0] & ancestors[1]
    return iter(sorted(common, key=lambda name: order.get(name, -1), reverse=True))


def _region(network: Network, value: str, source: str) -> set[str] | None:
    """Return all that lies between `source` and `value` inclusive of the latter; None if a path avoids
    `source`."""
    inner: set[str] = set()
    stack = [value]
    while stack:
        name = stack.pop()
        if name == source or name in inner:
            continue
        if name not in network.by_name:
            return None
        inner.add(name)
        stack.extend(_data_inputs(network, name))
    return inner


def _data_inputs(network: Network, name: str) -> tuple[str, ...]:
    """Return the inputs of a node, without integers such as the batch size, which carry no data."""
    return tuple(
        parent
        for parent in network.by_name[name].inputs
        if parent not in network.by_name or network.by_name[parent].op != "sym_size.int"
    )


def _common_module(network: Network, layers: tuple[str, ...]) -> str:
    modules = [network.by_name[name].module.split(".") for name in layers]
    if len(modules) == 1:
        return ".".join(modules[0])
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False))
    return ".".join(parts[0] for parts in shared)
