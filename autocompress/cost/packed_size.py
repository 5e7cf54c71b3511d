"""How many bytes a student's weights take once coded, estimated from shapes and choices alone. No torch.

A student with sparse or shared weights is shipped with a `student.acz`: where its zeros lie takes the entropy
of its density, a shared value about the logarithm of how many there are, an 8-bit weight nearly eight bits.
The numbers below are means over trained networks, printed by `benchmarks/packed_size.py` with the error that
is left. A student without such weights has no coded file: what counts then is its `model.safetensors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import fsum, log2

import numpy as np

from autocompress.cost.kernels import elements
from autocompress.graph.network import GRID_BITS, Network, Node, Param
from autocompress.graph.operations import LAYERS

INT8_BITS = 7.0
"""Of a weight of an 8-bit layer with a scale for each output channel."""

SHARED_SLOPE, SHARED_BITS_LESS = 0.74, 0.3
"""The index of a shared value takes so many times the logarithm of how many there are, less so many bits."""

BIAS_BITS = 7.0
"""Of a bias of a layer with shared values, which has few levels."""

HEADER_BYTES, NODE_BYTES, PARAM_BYTES = 350.0, 11.0, 15.0
"""Of the header: what it says of the student itself, of an operation, of a tensor."""

LEARNING_BYTES, INT8_LEARNING_BYTES = 24, 180
"""What the coder takes to learn what a tensor is like; more where 255 levels occur."""

HEADROOM = 1.1
"""What is coded may take a tenth more than these numbers say: budgets are held against that. Floats that are
stored as they are take what they take."""

STORED_BYTES = 70.0
"""Of an entry in the header of `model.safetensors`, beside its name."""


@dataclass(frozen=True)
class PackedContent:
    """Hold what the size of a student's weights follows from: how many operations and tensors there are,
    letters in the names of the latter, how many layers are coded, and what the tensors take in a coded
    file."""

    nodes: int
    tensors: int
    letters: int
    coded_layers: int
    coded_bytes: float


def packed_bytes(network: Network, plain_bytes: int) -> int:
    """Return the estimated bytes, on the safe side, of the smallest file of a student's weights;
    `plain_bytes` is what they take uncoded."""
    return packed_total(packed_content(network), plain_bytes)


def packed_content(network: Network) -> PackedContent:
    """Return what the size of a network's weights follows from."""
    return PackedContent(
        len(network.nodes),
        len(network.params),
        sum(map(len, network.params)),
        sum(map(is_coded, _layers(network).values())),
        fsum(coded_bytes(network)),
    )


def packed_total(content: PackedContent, plain_bytes: int) -> int:
    """Return the bytes of the smaller file of weights with this content."""
    if not content.coded_layers:
        return round(plain_bytes + STORED_BYTES * content.tensors + content.letters)
    header = HEADER_BYTES + NODE_BYTES * content.nodes + PARAM_BYTES * content.tensors
    return round(header + content.coded_bytes)


def coded_bytes(network: Network) -> Iterator[float]:
    """Yield what each parameter takes in a coded file."""
    layers = _layers(network)
    biases = (name for node in layers.values() if node.codebook for name in node.params[1:])
    few_levels = {name for name in biases if len(network.param_users[name]) == 1}
    for name, spec in network.params.items():
        count = elements(spec.shape)
        node = layers.get(name)
        if name in few_levels:
            yield HEADROOM * count * BIAS_BITS / 8 + LEARNING_BYTES
        elif node is None:
            yield count * np.dtype(spec.dtype).itemsize
        else:
            in_int8 = node.bits == 8 and network.quantizer_of(node.inputs[0]) is not None
            yield count * bits_a_weight(node, in_int8) / 8 + _table_bytes(node, in_int8, spec.shape[0])


def _layers(network: Network) -> dict[str, Node]:
    """Return the layers by the names of their weights."""
    return {node.args[1].name: node for node in network.nodes if _has_weight(node)}


def is_coded(node: Node) -> bool:
    """Return whether the weights of a layer are such that the student is coded."""
    return node.density < 1 or bool(node.codebook) or node.grid is not None


def bits_a_weight(node: Node, in_int8: bool = False) -> float:
    """Return the bits of a layer's weight, zeros and all."""
    places = HEADROOM * entropy_bits(node.density)
    if node.grid is not None:
        value = float(GRID_BITS[node.grid.form])
    elif node.codebook:
        value = HEADROOM * max(SHARED_SLOPE * log2(node.codebook) - SHARED_BITS_LESS, 0.3)
    else:
        value = HEADROOM * INT8_BITS if in_int8 else 32.0
    return places + node.density * value


def entropy_bits(share: float) -> float:
    """Return the bits that tell whether an event of this probability happened."""
    if not 0 < share < 1:
        return 0.0
    return -share * log2(share) - (1 - share) * log2(1 - share)


def _table_bytes(node: Node, in_int8: bool, channels: int) -> int:
    """Return the bytes of the codebook, or of the scales, and of the start; steps of a grid are parameters by
    themselves."""
    start = LEARNING_BYTES if is_coded(node) else 0
    if node.grid is not None:
        return start
    if node.codebook:
        return start + 2 * node.codebook
    return start + INT8_LEARNING_BYTES + 4 * channels if in_int8 else start


def _has_weight(node: Node) -> bool:
    return node.op in LAYERS and isinstance(node.args[1], Param)
