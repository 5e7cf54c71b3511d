"""Exporters of whole recurrent layers: one ONNX node a layer, for both directions.

ONNX has the gates in another order than torch, and a GRU whose reset comes before the product or behind it;
torch's comes behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autocompress.export.onnx_registry import Attributes, Tensor, exports, not_expressible
from autocompress.graph.network import Node
from autocompress.graph.operations import short_name

if TYPE_CHECKING:
    from autocompress.export.onnx import Emitter

Array = NDArray[Any]

_KINDS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where ONNX's gates are among torch's: (i, f, g, o) → (i, o, f, c), (r, z, n) → (z, r, h)."""


@exports("aten::lstm.input", "aten::gru.input", "aten::rnn_tanh.input", "aten::rnn_relu.input")
def recurrent(
    e: Emitter,
    node: Node,
    x: Any,
    start: Any,
    params: Sequence[Any],
    has_biases: bool,
    layers: int,
    _dropout: float,
    _train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[str]:
    """Return the names of the sequence and of the last states: `(layers · directions, N, H)` each."""
    directions = 2 if bidirectional else 1
    size = (4 if has_biases else 2) * directions
    if len(x.shape) != 3 or len(params) != size * layers or not all(map(_is_array, params)):
        raise not_expressible(node, "only batches of sequences, with weights that are constants")
    starts = start if isinstance(start, tuple) else (start,)
    steps = e.name(x)
    if batch_first:
        steps = e.op("Transpose", steps, name=f"{node.name}/steps", perm=(1, 0, 2))
    last: list[list[str]] = [[] for _ in starts]
    for layer in range(layers):
        matrices = params[layer * size : (layer + 1) * size]
        rows = slice(layer * directions, (layer + 1) * directions)
        states = [_start(e, node, one, rows) for one in starts]
        name = node.name if layer == layers - 1 else f"{node.name}/{layer}"
        steps, *ends = _layer(e, node, name, steps, states, _directions(matrices, directions))
        for found, end in zip(last, ends, strict=True):
            found.append(end)
    if batch_first:
        steps = e.op("Transpose", steps, name=f"{node.name}/batch", perm=(1, 0, 2))
    joined = [
        ends[0] if layers == 1 else e.op("Concat", *ends, name=f"{node.name}/ends", axis=0) for ends in last
    ]
    return [steps, *joined]


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _directions(matrices: Sequence[Array], count: int) -> list[Sequence[Array]]:
    """Return (input weight, recurrent weight, biases) of each direction."""
    size = len(matrices) // count
    return [matrices[index * size : (index + 1) * size] for index in range(count)]


def _start(e: Emitter, node: Node, value: Any, rows: slice) -> str:
    """Return the states that a layer starts from, empty for zeros."""
    if isinstance(value, np.ndarray):
        return e.constant(value[rows], np.float32) if value.any() else ""
    assert isinstance(value, Tensor)
    if value.shape[0] == rows.stop - rows.start:
        return value.name
    bounds = (e.ints(rows.start), e.ints(rows.stop), e.ints(0))
    return str(e.op("Slice", value.name, *bounds, name=f"{node.name}/start"))


def _layer(
    e: Emitter,
    node: Node,
    name: str,
    steps: str,
    states: Sequence[str],
    directions: Sequence[Sequence[Array]],
) -> list[str]:
    """Return the names of what a layer computes: `(T, N, directions · H)`, then its last states."""
    kind = _KINDS[short_name(node.op)]
    hidden = directions[0][1].shape[1]
    weights = [_stacked(kind, [one[place] for one in directions]) for place in (0, 1)]
    biases = [np.concatenate([_ordered(kind, b) for b in one[2:4]]) for one in directions if len(one) > 2]
    attributes: Attributes = {"hidden_size": hidden}
    if len(directions) == 2:
        attributes["direction"] = "bidirectional"
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    if node.op.startswith("aten::rnn_relu"):
        attributes["activations"] = ["Relu"] * len(directions)
    inputs = [steps, *map(e.constant, weights), e.constant(np.stack(biases)) if biases else "", "", *states]
    while not inputs[-1]:
        inputs.pop()
    found = e.op(kind, *inputs, name=name, outputs=1 + len(states), **attributes)
    if len(directions) == 1:
        return [e.op("Squeeze", found[0], e.ints(1), name=f"{node.name}/shape"), *found[1:]]
    turned = e.op("Transpose", found[0], name=f"{node.name}/turn", perm=(0, 2, 1, 3))
    whole = e.op("Reshape", turned, e.ints(0, 0, 2 * hidden), name=f"{node.name}/shape")
    return [whole, *found[1:]]


def _stacked(kind: str, matrices: Sequence[Array]) -> Array:
    return np.stack([_ordered(kind, matrix) for matrix in matrices])


def _ordered(kind: str, array: Array) -> Array:
    """Return the rows of a weight or bias with its gates in ONNX's order."""
    gates = np.split(array, len(_GATES[kind]))
    return np.concatenate([gates[place] for place in _GATES[kind]])
