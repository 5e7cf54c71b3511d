"""Networks whose pieces depend on each other in different ways, and a device where every kernel differs."""

from __future__ import annotations

import zlib
from dataclasses import astuple, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from priced_networks import small_resnet
from torch import Tensor, nn
from torch.nn import functional

from autocompress.cost.kernels import Kernel
from autocompress.cost.layouts import Layouts
from autocompress.cost.model import CostModel
from autocompress.cost.pricer import Pricer
from autocompress.graph.trace import trace
from autocompress.problem.space import parse_space
from autocompress.transforms.sites import bind

SPACE = """
name: pieces
rules:
  - match: {layer: conv}
    optional: true
    width: {keep: [0.25, 0.5, 0.625, 0.75, 1.0], importance: l2, round_to: 2}
    rank: {method: auto, keep: [0.25, 0.5, full], round_to: 2}
    bits: [32, 8, 4, ternary]
    sparsity: {keep: [0.5, 1.0], method: magnitude}
    codebook: [none, 16]
  - match: {layer: depthwise}
    optional: true
    bits: [32, 8]
  - match: {layer: linear}
    optional: true
    width: {keep: [0.5, 1.0], importance: l2, round_to: 2}
    rank: {method: svd, keep: [0.5, full], round_to: 2}
    bits: [32, 8]
  - match: {block: residual}
    optional: true
    block: [keep, drop, BLOCKS]
"""


class Shortcuts(nn.Module):
    """Residual blocks with zeros for new channels, scaled channels, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.flat = nn.Conv2d(24, 24, 3, padding=1)
        self.up, self.each = nn.Conv2d(24, 48, 1), nn.Conv2d(48, 48, 3, groups=48)
        self.squeeze, self.excite = nn.Conv2d(48, 8, 1), nn.Conv2d(8, 48, 1)
        self.back = nn.Conv2d(48, 24, 1)
        self.left, self.right = nn.Conv2d(24, 16, 3, padding=1), nn.Conv2d(24, 16, 1)
        self.mix = nn.Conv2d(32, 20, 1)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(functional.pad(x, (0, 1, 0, 1))))
        wider = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = functional.relu(self.flat(functional.relu(self.down(x))) + wider)
        inner = functional.hardtanh(self.up(x), 0.0, 6.0)
        inner = functional.relu6(self.each(functional.pad(inner, (1, 1, 1, 1))))
        inner = inner * torch.sigmoid(self.excite(functional.relu(self.squeeze(inner.mean((2, 3), True)))))
        x = x + self.back(inner)
        x = functional.max_pool2d(functional.relu(x), 2)
        x = self.mix(torch.cat([functional.silu(self.left(x)), self.right(x)], 1))
        return self.head(functional.adaptive_avg_pool2d(functional.relu(x), 1).flatten(1))


class Attention(nn.Module):
    """Patches, two encoder layers written out, a mean and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))
        self.values = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.wide = nn.ModuleList(nn.Linear(16, 32) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(32, 16) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for i in range(2):
            queries, keys, values = self.values[i](self.norms[2 * i](x)).chunk(3, -1)
            x = x + self.outs[i](torch.softmax(queries @ keys.transpose(1, 2), -1) @ values)
            x = x + self.narrow[i](functional.gelu(self.wide[i](self.norms[2 * i + 1](x))))
        return self.head(x.mean(1))


@dataclass
class Distinct:
    """A device on which any two kernels take different times, and every count of a file its own weight."""

    relative_error: float = 0.1
    constant_us: float = 3.0
    layouts: Layouts = field(default_factory=Layouts)

    def kernel_us(self, kernel: Kernel) -> float:
        return zlib.crc32(repr(astuple(kernel)[:-1]).encode()) % 9973 / 7

    @property
    def file_overhead(self) -> NDArray[np.float64]:
        return np.array([1.0, 1.1, 1.3, 1.7, 1.9, 2.3, 2.9, 3.1, 3.7, 4.1])


NETWORKS = {
    "resnet": (lambda: small_resnet(3), "depthwise_separable"),
    "batch norms stay": (lambda: small_resnet(3), "ghost, fire"),
    "shortcuts": (Shortcuts, "depthwise_separable, inverted_bottleneck"),
    "attention": (Attention, "drop"),
}


def pieces_pricer(name: str, layouts: Layouts | None = None) -> Pricer:
    """Return what prices one of `NETWORKS`."""
    module, blocks = NETWORKS[name]
    network, _ = trace(module().eval(), (3, 16, 16))
    space = parse_space(SPACE.replace("BLOCKS", blocks).replace("drop, drop", "drop"))
    return Pricer(bind(space, network), CostModel(Distinct(layouts=layouts or Layouts())))
