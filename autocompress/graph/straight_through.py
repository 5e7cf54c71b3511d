"""Weights rounded in training, with gradients that pass straight through and steps that are learned.

What `transforms.families.low_bit` says of the values holds here; both round a weight to the same one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.graph.levels import LEAST_SCALE, WEIGHT_LEVELS
from autocompress.graph.network import GRID_BITS

_ROUNDS = 10


def on_grid(weight: Tensor, steps: Tensor, form: str) -> Tensor:
    """Round `weight` `(out, …)` to its nearest values, by `steps` `(out,)`, for `ternary` `(2 · out,)`.

    The gradient passes to the weight as if nothing was rounded, except beyond the outermost values of 2
    bits and more, and to the steps as in LSQ (Esser et al. 2020, arXiv:1902.08153), which also says how
    it is scaled. The scales of `ternary` learn from the weights that take them (arXiv:1612.01064).
    """
    weight = weight.float()
    if form == "ternary":
        return _ternary(weight, steps)
    largest = 2 ** GRID_BITS[form] - 1
    step = _column(_slowed(steps, weight, largest), weight)
    ratio = weight / step.detach() if largest == 1 else (weight / step).clamp(-largest, largest)
    odd = (2 * torch.floor(weight.detach() / step.detach() / 2) + 1).clamp(-largest, largest)
    return (ratio + (odd - ratio).detach()) * step


def binarized(value: Tensor, step: Tensor) -> Tensor:
    """Return `step` `(1,)` where `value` is above half of it, else 0: the signs of a binary network
    (XNOR-Net, Rastegari et al. 2016, arXiv:1603.05279) for values that are never negative. Gradients as in
    `on_grid`; none where the value is above the step."""
    value = value.float()
    factor = value[0].numel() ** -0.5
    step = step.clamp_min(LEAST_SCALE)
    step = step * factor + (step - step * factor).detach()
    ratio = (value / step).clamp(0, 1)
    above = (value.detach() > step.detach() / 2).to(value.dtype)
    return (ratio + (above - ratio).detach()) * step


def best_binary_step(value: Tensor) -> float:
    """Return the step of least squared error for `binarized` values: the mean of what is above its half."""
    value = value.detach().float()
    step = float(value.clamp_min(0).mean()) * 2
    for _ in range(_ROUNDS):
        above = value[value > step / 2]
        if not len(above):
            break
        step = float(above.mean())
    return max(step, LEAST_SCALE)


def learned_affine(value: Tensor, scale: Tensor, zero_point: int, levels: int) -> Tensor:
    """Round `value` to the nearest multiples of `scale` `(1,)`, from -zero_point to levels - zero_point of
    them; gradients as in `on_grid`."""
    factor = (value[0].numel() * levels) ** -0.5
    zero = torch.tensor([float(zero_point)], device=value.device)
    scale = scale.abs().clamp_min(LEAST_SCALE)
    return torch._fake_quantize_learnable_per_tensor_affine(value, scale, zero, 0, levels, factor)


def _ternary(weight: Tensor, steps: Tensor) -> Tensor:
    negative, positive = _slowed(steps, weight, 1).view(2, -1)
    unit = torch.maximum(negative, positive).detach() / WEIGHT_LEVELS
    negative, positive = (_column(_to_multiple(part, unit), weight) for part in (negative, positive))
    limits = steps.detach().clamp_min(LEAST_SCALE).view(2, -1)
    below = weight.detach() < -_column(limits[0], weight) / 2
    above = weight.detach() > _column(limits[1], weight) / 2
    return positive * above - negative * below + (weight - weight.detach())


def _to_multiple(part: Tensor, unit: Tensor) -> Tensor:
    return part + (torch.round(part / unit).clamp_min(1) * unit - part).detach()


def _slowed(steps: Tensor, weight: Tensor, largest: int) -> Tensor:
    """Return the same steps, positive, with gradients as small against their size as those of weights."""
    factor = (weight[0].numel() * largest) ** -0.5
    steps = steps.clamp_min(LEAST_SCALE)
    return steps * factor + (steps - steps * factor).detach()


def _column(values: Tensor, weight: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (weight.ndim - 1))
