"""One small network for each kind of layer, written as people write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from written_networks import Net, net


@dataclass(frozen=True)
class Kind:
    """A network, the shape of one example, and what of it has to be a choice.

    `widths` are the groups of channels with a width, `ranks` and `bits` the layers with those choices.
    """

    build: Callable[[], Net]
    shape: tuple[int, ...]
    widths: frozenset[str]
    ranks: frozenset[str] = frozenset()
    bits: frozenset[str] = frozenset()


def named(names: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(names.split())


def _wave(m: Any, x: Tensor) -> Tensor:
    """A residual block of dilated convolutions with a gate, as WaveNet has."""
    y = m.stem(x)
    y = y + m.mix(m.filter(y).tanh() * m.gate(y).sigmoid())
    return m.head(m.deep(F.relu(m.bn(y))).mean(2))


def wave() -> Net:
    return net(
        _wave,
        stem=nn.Conv1d(2, 16, 5, stride=2, padding=2),
        filter=nn.Conv1d(16, 24, 3, padding=2, dilation=2),
        gate=nn.Conv1d(16, 24, 3, padding="same", dilation=2),
        mix=nn.Conv1d(24, 16, 1),
        bn=nn.BatchNorm1d(16),
        deep=nn.Conv1d(16, 16, 3, padding=1, groups=16),
        head=nn.Linear(16, 4),
    )


KINDS: dict[str, Kind] = {
    "conv1d": Kind(
        wave,
        (2, 64),
        widths=named("stem filter"),
        ranks=named("stem filter gate mix"),
        bits=named("stem filter gate mix deep head"),
    ),
}
