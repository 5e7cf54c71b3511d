"""A small residual network, bound to a space and priced by a device whose kernel times are arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from autocompress.cost.kernels import Kernel
from autocompress.cost.layouts import Layouts
from autocompress.cost.model import CostModel, file_features_count
from autocompress.cost.pricer import Pricer
from autocompress.device.profile.latency_table import LatencyTable, Row
from autocompress.graph.network import Weights
from autocompress.graph.trace import trace
from autocompress.problem.space import parse_space
from autocompress.transforms.sites import bind

SPACE = """
name: small
rules:
  - match: {layer: conv, kernel: 3}
    width: {keep: [0.25, 0.5, 0.75, 1.0], importance: l2, round_to: 4}
    bits: [32, 8]
  - match: {layer: linear}
    bits: [32, 8]
  - match: {block: residual}
    block: [keep, drop, depthwise_separable]
"""


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(inner)))


class SmallResNet(nn.Module):
    """A stem, two residual blocks of 16 channels and a classifier."""

    def __init__(self, in_channels: int = 1, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.bn(self.stem(x))))
        return self.fc(x.mean((2, 3)))


def small_resnet(in_channels: int = 1, classes: int = 3) -> SmallResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallResNet(in_channels, classes).eval()


@dataclass
class Arithmetic:
    """1 µs a kernel, 1 µs for each 10,000 multiply-adds (half of that in 8 bits), no overhead of files."""

    relative_error: float = 0.0
    constant_us: float = 0.0
    layouts: Layouts = field(default_factory=lambda: Layouts(0, False))
    measured: tuple[tuple[int, int], ...] = ((3, 1), (1, 1), (3, 16))

    def kernel_us(self, kernel: Kernel) -> float:
        return 1 + kernel.macs / (20_000 if kernel.precision == "int8" else 10_000)

    @property
    def table(self) -> LatencyTable:
        """A row for every form of convolution that candidates of `SPACE` have."""
        return LatencyTable(
            Row(Kernel("conv", precision, 16, 16, 8, 8, size, size, groups=groups), 1, 1, 1.0, 1.0, 1.0)
            for precision in ("fp32", "int8")
            for size, groups in self.measured
        )

    @property
    def file_overhead(self) -> NDArray[np.float64]:
        return np.zeros(file_features_count())


def small_pricer(device: Arithmetic | None = None) -> tuple[Pricer, Weights]:
    network, weights = trace(small_resnet(), (1, 16, 16))
    bound = bind(parse_space(SPACE), network)
    return Pricer(bound, CostModel(device or Arithmetic())), weights
