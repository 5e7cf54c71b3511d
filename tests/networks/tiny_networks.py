"""Small networks and data for tests of training and evaluation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.problem.data import Data
from autocompress.problem.splits import Normalisation, TensorSplit


class TinyNet(nn.Module):
    """Two convolutions with batch norms and a classifier, for (1, 8, 8) inputs."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def tiny_net(seed: int = 0, width: int = 8) -> TinyNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNet(width).eval()


def stripes(count: int = 192) -> Data:
    """Noise with one of three patterns: horizontal stripes, vertical stripes, a chessboard."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    patterns = torch.stack([y % 2, x % 2, (x + y) % 2]).float()
    labels = torch.arange(count) % 3
    images = patterns[labels] - 0.5 + 0.5 * torch.randn(count, 8, 8, generator=generator)
    split = TensorSplit(images[:, None], labels, Normalisation((0.0,), (1.0,)))
    third = count // 3
    train = split.select(torch.arange(count - 2 * (third // 2)))
    return Data(
        name="stripes",
        num_classes=3,
        input_shape=(1, 8, 8),
        mean=(0.0,),
        std=(1.0,),
        train=train,
        validation=split.select(torch.arange(train.size, count)),
        calibration=train.subset(48),
    )
