"""Networks whose kernels are known by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.graph.network import INPUT, Network, Node, ParamSpec
from autocompress.graph.trace import trace
from autocompress.problem.space import load_space
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sampling import random_candidate
from autocompress.transforms.sites import bind


def network(*nodes: Node, channels: int = 16) -> Network:
    """Shapes of the weights follow from the nodes'."""
    shapes = {INPUT: (1, channels, 8, 8), **{node.name: node.shape for node in nodes}}
    params = {
        f"{node.name}.weight": ParamSpec(
            (node.shape[1], shapes[node.inputs[0]][1] // int(node.args[6]), 3, 3)  # type: ignore[arg-type]
        )
        for node in nodes
        if node.op == "conv2d"
    }
    return Network(shapes[INPUT], nodes, nodes[-1].name, params)


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.short = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.short(x))


class SmallResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(
            Residual(16, 16, 1), Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 32, 1)
        )
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(functional.relu(self.bn(self.stem(x)))).mean((2, 3)))


def candidates(count: int) -> Iterator[Network]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, _ = trace(SmallResNet().eval(), (3, 16, 16))
    bound = bind(load_space("joint"), network)
    rng = random.Random(0)
    for index in range(count):
        candidate = random_candidate(bound, rng, ("fp32", "int8", "mixed")[index % 3])
        yield deployed_network(bound, candidate)
