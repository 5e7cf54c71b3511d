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

import torch
from torch import Tensor

from autocompress.graph.levels import LEAST_SCALE, WEIGHT_LEVELS
from autocompress.graph.module import GraphModule, fake_quantize_weight
from autocompress.graph.network import GRID_BITS, Node
from autocompress.graph.replace_layer import groups_of
from autocompress.graph.straight_through import on_grid
from autocompress.problem.splits import Split
from autocompress.students.calibration.layer_inputs import (
    Values,
    batch_that_fits,
    bias_tensor,
    layer_outputs,
    layer_rows,
    matrices,
    product,
    solvable_layers,
    visited,
)

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
    """Change weights (`adaptive`) and biases of the 8-bit layers of `student` in place.

    `reference` is the same network before it was quantized. The examples run as one batch, fewer of
    them where an activation would exceed 256 MiB; of each layer `rows` places are read.
    """
    network = student.source_network
    layers = [node for node in solvable_layers(network) if _is_rounded(student, node)]
    if not layers or not (adaptive or biases):
        return
    images, _ = next(iter(examples.batches(batch_that_fits(network, reference.source_network))))
    # The mean of the rows is enough for the mean of what a layer computes.
    targets = layer_outputs(reference, layers, images, rows, weight=_rounded, means=not adaptive)

    def fit(node: Node, values: Values) -> None:
        if node.name not in targets:
            return
        inputs = layer_rows(student, node, values[node.inputs[0]].float(), rows)
        inputs = inputs if adaptive else inputs.mean(0, keepdim=True)
        target, bias = targets.pop(node.name), bias_tensor(student, node)
        if adaptive:
            _adapt(student, node, inputs, target if bias is None else target - bias)
        if biases and bias is not None:
            used = matrices(_rounded(student, node), groups_of(node))
            bias += (target - product(inputs, used)).mean(0) - bias

    visited(student, [images], fit)


def _is_rounded(student: GraphModule, node: Node) -> bool:
    return node.bits == 8 and student.source_network.quantizer_of(node.inputs[0]) is not None


def _rounded(module: GraphModule, node: Node) -> Tensor:
    """Return the weight as the layer uses it in this module."""
    weight = module.tensor_named(node.args[1].name)
    if node.grid is not None:
        return on_grid(weight, module.tensor_named(node.grid.step), node.grid.form)
    return fake_quantize_weight(weight) if _is_rounded(module, node) else weight


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
        scale = (flat.abs().amax(1, keepdim=True) / WEIGHT_LEVELS).clamp_min(LEAST_SCALE)
        return _Lattice(scale, 0.0, -WEIGHT_LEVELS, WEIGHT_LEVELS)
    if node.grid.form == "ternary":
        return None
    half = 2 ** (GRID_BITS[node.grid.form] - 1)
    steps = student.tensor_named(node.grid.step).detach().clamp_min(LEAST_SCALE)[:, None]
    return _Lattice(2 * steps, 0.5, -half, half - 1)


def _adapt(student: GraphModule, node: Node, inputs: Tensor, target: Tensor) -> None:
    """Round the layer's weight in place, each channel only where that is better than rounding to nearest. In
    8 bits zeros stay zero."""
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
        own = matrices(weight, len(self._gram))
        squares = (own @ self._gram * own).sum(-1) - 2 * (own * self._cross).sum(-1)
        return (squares + self._power).flatten().clamp_min(0)


def _directions(flat: Tensor, lattice: _Lattice, down: Tensor, error: _Error, before: Tensor) -> Tensor:
    """Choose for each weight 0 or 1: the level `down` or the one above, by Adam on a stretched sigmoid that a
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
