"""Quantized layers fitted to what the layers in floating point compute, without labels.

Both networks run over the same images, layer by layer in execution order, each layer with the input it
will have: rounded, and changed by the layers before it.

- Adaptive rounding (AdaRound; Nagel et al. 2020, arXiv:2004.10568): each weight goes up or down so that the
  layer's output, not the weight, stays close; found by gradient.
- Bias correction (Nagel et al. 2019, arXiv:1906.04721): what rounding adds to a channel on average is
  taken from its bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.graph.module import WEIGHT_LEVELS, GraphModule, fake_quantize_weight
from autocompress.graph.network import GRID_BITS, Node, Param
from autocompress.graph.replace_layer import groups_of
from autocompress.graph.straight_through import LEAST_STEP, on_grid
from autocompress.problem.splits import Split
from autocompress.students.calibration.compensation import batch_that_fits
from autocompress.students.calibration.layer_inputs import input_rows, places, solvable_layers, visited

ROWS = 4096
STEPS = 500
LEARNING_RATE = 0.02
WARM_UP_SHARE = 0.2
FIRST_POWER, LAST_POWER = 20.0, 2.0
STRETCH = 0.1
LARGEST_FAN_IN = 2304
"""Layers with more inputs a channel keep nearest rounding: each step multiplies by a matrix of this width."""


def fit_rounding(
    student: GraphModule,
    reference: GraphModule,
    examples: Split,
    *,
    adaptive: bool = False,
    biases: bool = True,
    rows: int = ROWS,
) -> None:
    """Changes weights (`adaptive`) and biases of the 8-bit layers of `student` in place.

    `reference` is the same network before it was quantized. The examples run as one batch, fewer of
    them where an activation would exceed 256 MiB; of each layer `rows` places are read.
    """
    network = student.source_network
    layers = [node for node in solvable_layers(network) if _is_rounded(student, node)]
    if not layers or not (adaptive or biases):
        return
    images, _ = next(iter(examples.batches(batch_that_fits(network, reference.source_network))))
    targets = _outputs(reference, layers, images, rows, means=not adaptive)

    def fit(node: Node, values: dict[str, Any]) -> None:
        if node.name not in targets:
            return
        inputs = _inputs(student, node, values, rows, means=not adaptive)
        target = targets.pop(node.name)
        bias = student.tensor_named(node.args[2].name) if _has_bias(node) else None
        if adaptive:
            _adapt(student, node, inputs, target if bias is None else target - bias)
        if biases and bias is not None:
            used = _matrices(_rounded(student, node), groups_of(node))
            bias += (target - _product(inputs, used)).mean(0) - bias

    visited(student, [images], fit)


def _is_rounded(student: GraphModule, node: Node) -> bool:
    return node.bits == 8 and student.source_network.quantizer_of(node.inputs[0]) is not None


def _has_bias(node: Node) -> bool:
    return len(node.args) > 2 and isinstance(node.args[2], Param)


def _inputs(module: GraphModule, node: Node, values: dict[str, Any], rows: int, means: bool) -> Tensor:
    """What the layer multiplies at sampled places, `(rows, groups, fan_in)`; their mean alone, as one row, is
    enough for the mean of what it computes."""
    value = values[node.args[0].node].float()
    shape = tuple(module.tensor_named(node.args[1].name).shape)
    found = input_rows(node, value, shape, places(node, value, rows))
    return found.mean(0, keepdim=True) if means else found


def _outputs(
    module: GraphModule, layers: list[Node], images: Tensor, rows: int, means: bool
) -> dict[str, Tensor]:
    """What the layers compute for `_inputs`: `(rows, channels)`."""
    wanted = {node.name for node in layers}
    found: dict[str, Tensor] = {}

    def record(node: Node, values: dict[str, Any]) -> None:
        if node.name in wanted:
            inputs = _inputs(module, node, values, rows, means)
            product = _product(inputs, _matrices(_rounded(module, node), groups_of(node)))
            bias = module.tensor_named(node.args[2].name) if _has_bias(node) else 0
            found[node.name] = product + bias

    visited(module, [images], record)
    return found


def _rounded(module: GraphModule, node: Node) -> Tensor:
    """The weight as the layer uses it in this module."""
    weight = module.tensor_named(node.args[1].name)
    if node.grid is not None:
        return on_grid(weight, module.tensor_named(node.grid.step), node.grid.form)
    return fake_quantize_weight(weight) if _is_rounded(module, node) else weight


def _matrices(weight: Tensor, groups: int) -> Tensor:
    return weight.reshape(groups, len(weight) // groups, -1)


def _product(inputs: Tensor, matrices: Tensor) -> Tensor:
    """`(rows, groups, fan_in)` times `(groups, out, fan_in)` is `(rows, groups · out)`."""
    return torch.einsum("rgi,goi->rgo", inputs, matrices).reshape(len(inputs), -1)


@dataclass(frozen=True)
class _Lattice:
    """The values `unit · (level + offset)` of a channel, level from `low` to `high`; `unit` is `(out, 1)`."""

    unit: Tensor
    offset: float
    low: int
    high: int

    def values(self, levels: Tensor) -> Tensor:
        return self.unit * (levels + self.offset)


def _lattice(student: GraphModule, node: Node, flat: Tensor) -> _Lattice | None:
    if node.grid is None:
        scale = (flat.abs().amax(1, keepdim=True) / WEIGHT_LEVELS).clamp_min(LEAST_STEP)
        return _Lattice(scale, 0.0, -WEIGHT_LEVELS, WEIGHT_LEVELS)
    if node.grid.form == "ternary":
        return None
    half = 2 ** (GRID_BITS[node.grid.form] - 1)
    steps = student.tensor_named(node.grid.step).detach().clamp_min(LEAST_STEP)[:, None]
    return _Lattice(2 * steps, 0.5, -half, half - 1)


def _adapt(student: GraphModule, node: Node, inputs: Tensor, target: Tensor) -> None:
    """Rounds the layer's weight in place, each channel only where that is better than rounding to nearest.
    In 8 bits zeros stay zero."""
    parameter = student.tensor_named(node.args[1].name)
    flat = parameter.detach().flatten(1)
    lattice = _lattice(student, node, flat)
    if lattice is None or flat.shape[1] > LARGEST_FAN_IN:
        return
    error = _Error(inputs, target, groups_of(node))
    down = torch.floor(flat / lattice.unit - lattice.offset).clamp(lattice.low, lattice.high - 1)
    nearest = torch.round(flat / lattice.unit - lattice.offset).clamp(lattice.low, lattice.high)
    before = error(lattice.values(nearest))
    up = _directions(flat, lattice, down, error, before)
    if node.grid is None:
        # The largest weight of a channel is its scale; moved, all others would be rounded anew.
        fixed = (flat == 0) | (flat.abs() >= flat.abs().amax(1, keepdim=True))
        up = torch.where(fixed, nearest - down, up)
    adapted = lattice.values(down + up)
    better = error(adapted) < before
    chosen = torch.where(better[:, None], adapted, lattice.values(nearest))
    parameter.data.copy_(chosen.reshape(parameter.shape))


class _Error:
    """Mean squared error of each output channel of a layer for a weight `(out, fan_in)`: `(out,)`."""

    def __init__(self, inputs: Tensor, target: Tensor, groups: int) -> None:
        rows = inputs.permute(1, 0, 2)
        outputs = target.reshape(len(target), groups, -1).permute(1, 0, 2)
        count = len(target)
        self._gram = rows.mT @ rows / count
        self._cross = outputs.mT @ rows / count
        self._power = outputs.square().mean(1)

    def __call__(self, weight: Tensor) -> Tensor:
        matrices = _matrices(weight, len(self._gram))
        squares = (matrices @ self._gram * matrices).sum(-1) - 2 * (matrices * self._cross).sum(-1)
        return (squares + self._power).flatten().clamp_min(0)


def _directions(flat: Tensor, lattice: _Lattice, down: Tensor, error: _Error, before: Tensor) -> Tensor:
    """For each weight 0 or 1: the level `down` or the one above. By Adam on a stretched sigmoid that a
    penalty drives to 0 and 1, more sharply as time goes on."""
    rest = (flat / lattice.unit - lattice.offset - down).clamp(0.01, 0.99)
    raw = torch.log((rest + STRETCH) / (1 + STRETCH - rest)).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=LEARNING_RATE)
    scale = before.clamp_min(float(before.mean()) * 1e-3 + 1e-20)
    with torch.enable_grad():
        for step in range(STEPS):
            share = max(0.0, (step / STEPS - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))
            up = _soft(raw)
            loss = (error(lattice.values(down + up)) / scale).sum()
            if share > 0:
                power = FIRST_POWER + (LAST_POWER - FIRST_POWER) * share
                undecided = (1 - (2 * up - 1).abs().pow(power)).mean(1)
                loss = loss + share * undecided.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (_soft(raw.detach()) >= 0.5).to(flat.dtype)


def _soft(raw: Tensor) -> Tensor:
    return (torch.sigmoid(raw) * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
