"""How much memory a network takes while it runs: its weights, and the activations alive at once. No torch.

An 8-bit layer's weights take one byte each, everything else what its type says. A value with a quantizer
takes one byte a number, others four. Reshapes and elements of an operation with several outputs share their
input's memory; everything else writes into memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from autocompress.cost.kernels import elements
from autocompress.graph.network import INPUT, Network, Node, Param
from autocompress.graph.operations import LAYERS, VIEWS

_SHARING = VIEWS | {"getitem", "expand"}


def peak_memory_bytes(network: Network) -> int:
    """Return the weights plus the largest sum of activations alive at once; see `live_bytes`."""
    return max(live_bytes(network).values()) + weight_bytes(network)


def live_bytes(network: Network) -> dict[str, int]:
    """Return the bytes of activations alive while each value is computed, the input first, in execution
    order. Values that share another's memory are not named; that memory lives until the last of them was
    read."""
    sizes = {one.name: value_bytes(network, one.name) for one in network.inputs}
    cuts = {}
    for value, alive in alive_values(network):
        sizes[value] = value_bytes(network, value)
        cuts[value] = sum(map(sizes.__getitem__, alive))
    return cuts


def alive_values(network: Network) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each value that has memory of its own, the input first, and the values alive while it is
    computed, itself included."""
    owners = memory_owners(network)
    last_use = {owners[name]: index for index, node in enumerate(network.nodes) for name in _touched(node)}
    last_use.update((owners[name], len(network.nodes)) for name in network.outputs)
    alive = dict.fromkeys(one.name for one in network.inputs)
    yield INPUT, tuple(alive)
    for index, node in enumerate(network.nodes):
        if owners[node.name] == node.name:
            alive[node.name] = None
            yield node.name, tuple(alive)
        for owner in {owners[name] for name in _touched(node)}:
            if last_use[owner] == index:
                del alive[owner]


def memory_owners(network: Network) -> dict[str, str]:
    """Return for each value the value in whose memory it lies: most often itself."""
    owners = {one.name: one.name for one in network.inputs}
    for node in network.nodes:
        shares = node.inputs and node.shape != () and node.op in _SHARING
        owners[node.name] = owners[node.inputs[0]] if shares else node.name
    return owners


def _touched(node: Node) -> tuple[str, ...]:
    return (*node.inputs, node.name)


def value_bytes(network: Network, value: str) -> int:
    """Return the bytes of one value, of all its parts where it has several."""
    shape = network.shape_of(value)
    several = bool(shape) and isinstance(shape[0], tuple)
    count = sum(map(elements, shape)) if several else elements(shape)
    return count * (1 if network.quantizer_of(value) is not None else 4)


def weight_bytes(network: Network) -> int:
    """Return the bytes of the parameters as exported.

    Steps of a grid are not counted: they are the scales that every 8-bit layer has.
    """
    low = low_bit_weights(network)
    return sum(
        elements(spec.shape) * (1 if name in low else np.dtype(spec.dtype).itemsize)
        for name, spec in network.params.items()
        if name not in network.steps
    )


def low_bit_weights(network: Network) -> frozenset[str]:
    """Return the names of the weights that are exported in 8 bits."""
    return frozenset(node.args[1].name for node in low_bit_layers(network))


def low_bit_layers(network: Network) -> Iterator[Node]:
    """Yield the layers that compute in 8 bits."""
    for node in network.nodes:
        wants = node.bits == 8 and node.op in LAYERS and isinstance(node.args[1], Param)
        if wants and network.quantizer_of(node.inputs[0]) is not None:
            yield node
