"""Sparsity that training finds: penalties that bring weights, or whole channels, to zero on the way.

- `l1`: every weight shrinks by the same amount at each step, a proximal step of an L1 penalty (for channels
  of the norm of each, for batch norms' scales that is network slimming, Liu et al. 2017, arXiv:1708.06519);
- `decay`: small weights decay, large ones hardly (Hanson and Pratt 1989, "Comparing biases for minimal
  network construction with back-propagation");
- `l0`: each has a gate that is open with a probability which is learned, and the expected number of open
  gates is penalised (hard concrete distribution, Louizos et al. 2018, arXiv:1712.01312);
- `gradual`: the smallest are zero, few at first and ever more; one that its gradient makes large comes back
  (Zhu and Gupta 2017, arXiv:1710.01878; Guo et al. 2016, arXiv:1608.04493).

None of them has a strength to choose: it follows from the share that is to stay and the steps that are left.
When `UNTIL` of the steps are done the best stay, exactly as many as wanted, and train on without the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.graph.module import GraphModule
from autocompress.transforms.arrays.masks import Mask, global_masks, gradual_density

UNTIL = 0.6
METHODS = ("l1", "l0", "decay", "gradual")

_STEEP = 4.0
_MOST_DECAY = 0.5
_STRETCH, _TEMPERATURE = (-0.1, 1.1), 2 / 3
_FIRST_LOGIT, _WAY, _PULL = 2.0, 12.0, 100.0
_GATE_RATES = (0.005, 0.5)
_STEPS_A_MASK, _LEAST_MASKS = 20, 20

Choose = Callable[[NDArray[np.floating]], NDArray[np.bool_]]
"""Scores of a weight's elements, or of its channels → which stay."""


class Pressure(Protocol):
    """Press one tensor towards zero. `step` follows each step of the optimiser."""

    def step(self, share: float, steps_left: float) -> None: ...
    def scores(self) -> Tensor: ...
    def release(self) -> None: ...


class Thinner:
    """Make tensors sparse while a student trains: give it to `distil` as `progress`, then call `settle`.

    `chosen` names, for each tensor of the network, the share that is to stay and how those that stay are
    chosen by their scores: of elements `(out, in, …)`, or with `channels` of output channels `(out,)`.
    Until the cut, shares follow a cubic schedule (Zhu and Gupta 2017, arXiv:1710.01878) where a method
    has one.
    """

    def __init__(
        self,
        student: GraphModule,
        method: str,
        chosen: Mapping[str, tuple[float, Choose]],
        channels: bool = False,
        until: float = UNTIL,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"the method {method!r} is not one of {', '.join(METHODS)}")
        self._tensors = {name: student.tensor_named(name) for name in chosen}
        self._chosen, self._until = chosen, until
        self._pressures = {
            name: _PRESSURES[method](tensor, chosen[name][0], channels)
            for name, tensor in self._tensors.items()
        }
        self._masks: dict[str, Tensor] = {}

    def __call__(self, done: int, total: int, _loss: float = 0.0) -> None:
        share = done / max(1.0, self._until * total)
        if share >= 1:
            self.settle()
            return
        for pressure in self._pressures.values():
            pressure.step(share, self._until * total - done)

    def scores(self) -> dict[str, NDArray[np.floating]]:
        """Return how much each element or channel is worth by now."""
        return {name: one.scores().detach().cpu().numpy() for name, one in self._pressures.items()}

    def settle(self) -> None:
        """Cut once, and keep to it: at every later call the same elements are zero."""
        if not self._masks:
            for name, found in self.scores().items():
                self._pressures[name].release()
                kept = torch.from_numpy(self._chosen[name][1](found))
                tensor = self._tensors[name]
                self._masks[name] = _broadcast(kept, tensor).float().to(tensor.device)
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.mul_(self._masks[name].to(tensor.device))


def _broadcast(values: Tensor, tensor: Tensor) -> Tensor:
    return values.reshape(*values.shape, *(1,) * (tensor.ndim - values.ndim))


def _sizes(tensor: Tensor, channels: bool) -> Tensor:
    """Return the magnitudes of the elements, or norms of the output channels."""
    return tensor.detach().flatten(1).norm(dim=1) if channels and tensor.ndim > 1 else tensor.detach().abs()


def _threshold(sizes: Tensor, share: float) -> float:
    """Return the size that `share` of them exceed."""
    return float(np.quantile(sizes.cpu().numpy(), min(1.0, max(0.0, 1 - share))))


class _Shrinking:
    """Shrink by L1: what leaves would be at zero when the steps are over, were nothing to pull it back."""

    def __init__(self, tensor: Tensor, density: float, channels: bool) -> None:
        self._tensor, self._density, self._channels = tensor, density, channels

    def step(self, share: float, steps_left: float) -> None:  # noqa: ARG002
        sizes = _sizes(self._tensor, self._channels)
        less = _threshold(sizes, self._density) / max(1.0, steps_left)
        factor = (1 - less / sizes.clamp_min(1e-12)).clamp_min(0)
        with torch.no_grad():
            self._tensor.mul_(_broadcast(factor, self._tensor))

    def scores(self) -> Tensor:
        return _sizes(self._tensor, self._channels)

    def release(self) -> None:
        """Do nothing: nothing is attached to the tensor."""


class _Decaying(_Shrinking):
    """The rate of decay is a quarter at the size that is to separate what stays from what leaves."""

    def step(self, share: float, steps_left: float) -> None:  # noqa: ARG002
        sizes = _sizes(self._tensor, self._channels)
        edge = max(_threshold(sizes, self._density), 1e-12)
        rate = min(_MOST_DECAY, _STEEP / max(1.0, steps_left))
        with torch.no_grad():
            self._tensor.mul_(_broadcast(1 - rate / (1 + sizes / edge) ** 2, self._tensor))


class _Gated:
    """The tensor that the network computes with is `weight` times the sampled gates; a hook gives both their
    gradients, whatever the optimiser: what it adds to the tensor is added to the weight."""

    def __init__(self, tensor: Tensor, density: float, channels: bool) -> None:
        self._tensor, self._density = tensor, density
        self._weight = tensor.detach().clone()
        shape = tensor.shape[:1] if channels else tensor.shape
        self._logits = torch.full(shape, _FIRST_LOGIT, device=tensor.device, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._logits], lr=_GATE_RATES[0])
        self._pull_of_loss = torch.zeros(shape, device=tensor.device)
        self._random = torch.Generator().manual_seed(0)
        self._handle = tensor.register_hook(self._through_gates)
        self._close_some()

    def step(self, share: float, steps_left: float) -> None:
        """Move the logits: they have to go `_WAY` at most until the cut, which sets their learning rate."""
        low, high = _GATE_RATES
        rate = _WAY * (1 - share) / max(1.0, steps_left)
        self._optimizer.param_groups[0]["lr"] = min(max(rate, low), high)
        with torch.no_grad():
            self._weight += self._tensor - self._weight * self._gates()
            open_ = self._open()
            excess = float(open_.mean()) - gradual_density(self._density, share)
            pull = self._pull_of_loss / self._pull_of_loss.square().mean().sqrt().clamp_min(1e-12)
            self._logits.grad = pull + max(excess, 0.0) * _PULL * open_ * (1 - open_)
        self._optimizer.step()
        self._close_some()

    def scores(self) -> Tensor:
        alone = self._weight.ndim > 1 and self._logits.ndim == 1
        return self._open() * _sizes(self._weight, alone)

    def release(self) -> None:
        """Make the tensor the weight with its gates as they most likely are."""
        self._handle.remove()
        low, high = _STRETCH
        gates = (torch.sigmoid(self._logits.detach()) * (high - low) + low).clamp(0, 1)
        with torch.no_grad():
            self._tensor.copy_(self._weight * _broadcast(gates, self._tensor))

    def _open(self) -> Tensor:
        """Return the probability that a gate is not closed."""
        low, high = _STRETCH
        return torch.sigmoid(self._logits.detach() - _TEMPERATURE * np.log(-low / high))

    def _gates(self) -> Tensor:
        low, high = _STRETCH
        return _broadcast((self._sample * (high - low) + low).clamp(0, 1), self._tensor)

    def _close_some(self) -> None:
        noise = torch.rand(self._logits.shape, generator=self._random).to(self._logits.device)
        noise = noise.clamp(1e-6, 1 - 1e-6)
        self._sample = torch.sigmoid((noise.log() - (1 - noise).log() + self._logits.detach()) / _TEMPERATURE)
        with torch.no_grad():
            self._tensor.copy_(self._weight * self._gates())

    def _through_gates(self, gradient: Tensor) -> Tensor:
        low, high = _STRETCH
        stretched = self._sample * (high - low) + low
        slope = (high - low) * self._sample * (1 - self._sample) / _TEMPERATURE
        slope = slope * ((stretched > 0) & (stretched < 1))
        pull = gradient * self._weight
        if self._logits.ndim < pull.ndim:
            pull = pull.flatten(1).sum(1)
        self._pull_of_loss = pull * slope
        return gradient * self._gates()


class _Pruning(_Shrinking):
    """Set the smallest to zero, few at first and ever more."""

    def __init__(self, tensor: Tensor, density: float, channels: bool) -> None:
        super().__init__(tensor, density, channels)
        self._zeros = _GrowingZeros([tensor], density, channels)

    def step(self, share: float, steps_left: float) -> None:
        self._zeros.step(share, steps_left)


class _GrowingZeros:
    """Choose what of some tensors is zero anew every few steps, and set it to zero after each.

    Sizes are compared with those of all the tensors.
    """

    def __init__(self, tensors: Sequence[Tensor], density: float, channels: bool = False) -> None:
        self._tensors, self._density, self._channels = tensors, density, channels
        self._steps, self._kept = 0, [torch.ones(()) for _ in tensors]

    def step(self, share: float, steps_left: float) -> None:
        steps = steps_left / (1 - share)
        if self._steps % min(_STEPS_A_MASK, max(1, round(steps / _LEAST_MASKS))) == 0:
            sizes = [_sizes(tensor, self._channels) for tensor in self._tensors]
            everything = torch.cat([one.flatten() for one in sizes])
            edge = _threshold(everything, gradual_density(self._density, share))
            pairs = zip(sizes, self._tensors, strict=True)
            self._kept = [_broadcast((one >= edge).to(tensor), tensor) for one, tensor in pairs]
        self._steps += 1
        with torch.no_grad():
            for tensor, kept in zip(self._tensors, self._kept, strict=True):
                tensor.mul_(kept)


class GradualPruning:
    """Prune by the method `gradual` with magnitudes compared over all `names` together: give it to `distil`
    as `progress`.

    Density falls from 1 to `density` over the share `until` of the steps. Then the largest stay, exactly as
    many as wanted.
    """

    def __init__(
        self, student: GraphModule, names: Sequence[str], density: float, until: float = 0.7
    ) -> None:
        self._tensors = {name: student.tensor_named(name) for name in names}
        self._density, self._until = density, until
        self._zeros = _GrowingZeros(list(self._tensors.values()), density)
        self.masks: dict[str, Mask] = {}
        """Known when the density is reached: True where a weight stays."""

    def __call__(self, done: int, total: int, _loss: float = 0.0) -> None:
        share = done / max(1.0, self._until * total)
        if share < 1:
            self._zeros.step(share, self._until * total - done)
            return
        if not self.masks:
            values = {name: tensor.detach().cpu().numpy() for name, tensor in self._tensors.items()}
            self.masks = global_masks(values, self._density)
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.mul_(torch.from_numpy(self.masks[name]).to(tensor.device))


_PRESSURES: dict[str, Callable[[Tensor, float, bool], Pressure]] = {
    "l1": _Shrinking,
    "decay": _Decaying,
    "l0": _Gated,
    "gradual": _Pruning,
}
