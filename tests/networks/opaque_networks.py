"""Networks with operations that have no row in the table: they are kept as they are.

Each reads images `IMAGE`, has layers that can be changed before and behind such an operation, and says which
short names it keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE = (3, 16, 16)
CLASSES = 5


class Stem(nn.Module):
    """Two convolutions whose widths can be changed, the second with as many channels as the task needs."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.norm(self.a(x)))))


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, 16)
        self.classes = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(F.relu(self.hidden(x)))


class Around(nn.Module):
    """Stem → an operation on maps `(N, out, 8, 8)` → head on `channels` numbers."""

    def __init__(self, out: int = 12, channels: int = 12) -> None:
        super().__init__()
        self.stem, self.head = Stem(out), Head(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.stem(x)))

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class GruOverColumns(Around):
    """A text recogniser: each column of the map is a step."""

    def __init__(self) -> None:
        super().__init__(out=4, channels=40)
        self.rnn = nn.GRU(4 * 8, 20, batch_first=True, bidirectional=True)

    def between(self, x: Tensor) -> Tensor:
        steps, _ = self.rnn(x.permute(0, 3, 1, 2).flatten(2))
        return steps.mean(1)


class LstmHead(Around):
    """Rows as steps, two layers, the last state counts."""

    def __init__(self) -> None:
        super().__init__(channels=10)
        self.rnn = nn.LSTM(12, 10, num_layers=2)

    def between(self, x: Tensor) -> Tensor:
        _, (state, _) = self.rnn(x.mean(3).permute(2, 0, 1))
        return state[-1]


class ElmanCell(Around):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(12, 12, batch_first=True, nonlinearity="relu")
        self.both = nn.RNN(12, 6, num_layers=2, bidirectional=True, bias=False)

    def between(self, x: Tensor) -> Tensor:
        steps, state = self.rnn(x.flatten(2).transpose(1, 2))
        first = state.expand(4, -1, -1)[:, :, :6].contiguous()
        return self.both(steps.transpose(0, 1), first)[0][-1]


class SummedAlong(Around):
    """Running sums, plain and of exponentials."""

    def between(self, x: Tensor) -> Tensor:
        running = x.cumsum(3) / torch.arange(1, 9)
        return torch.logcumsumexp(running, 2).mean((2, 3))


class ChosenTokens(Around):
    """The tokens with the largest scores go on (a router)."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(12, 1)

    def between(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        chosen = self.score(tokens).squeeze(-1).topk(9, dim=1).indices
        return tokens.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 12)).mean(1)


class Spectrum(Around):
    """Magnitudes of a Fourier transform beside the map itself."""

    def between(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x, norm="ortho").abs().mean((2, 3)) + x.mean((2, 3))


class GlobalFilter(Around):
    """Products with learned complex numbers in the frequency domain (GFNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(12, 8, 5, 2) * 0.2)

    def between(self, x: Tensor) -> Tensor:
        found = torch.fft.rfft2(x) * torch.view_as_complex(self.filter)
        return torch.fft.irfft2(found, s=(8, 8)).mean((2, 3))


class SpatialTransformer(Around):
    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Linear(12, 6)

    def between(self, x: Tensor) -> Tensor:
        theta = self.where(x.mean((2, 3))).tanh().view(-1, 2, 3)
        grid = F.affine_grid(theta, [x.shape[0], 12, 8, 8], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False).mean((2, 3))


class RankPooling(Around):
    """Weights by rank, which needs the sorted values of each channel."""

    def between(self, x: Tensor) -> Tensor:
        ranked = x.flatten(2).sort(dim=2, descending=True).values
        return (ranked * torch.linspace(1, 0, 64)).mean(2) + x.flatten(2).argsort(2).gt(31).float().mean(2)


class BilinearPooling(Around):
    """Products of all pairs of channels; the upper triangle counts."""

    def __init__(self) -> None:
        super().__init__(out=6, channels=36)

    def between(self, x: Tensor) -> Tensor:
        pairs = torch.einsum("bchw,bdhw->bcd", x, x) / 64
        return pairs.triu().flatten(1)


class Histogram(Around):
    """How much of each channel falls into bins of its values: scatter_add over bucket numbers."""

    def __init__(self) -> None:
        super().__init__(channels=24)
        self.register_buffer("edges", torch.linspace(0, 1, 23))

    def between(self, x: Tensor) -> Tensor:
        values = x.flatten(1)
        bins = torch.bucketize(values, self.edges)
        return torch.zeros(x.shape[0], 24).scatter_add(1, bins, values) / 64


class BagOfWords(Around):
    """Positions of maxima are words, which an embedding sums."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(64, 12, mode="sum")

    def between(self, x: Tensor) -> Tensor:
        return self.bag(x.flatten(2).argmax(2)) / 12 + x.mean((2, 3))


class Volume(Around):
    """Channels as depth, for a 3-D convolution, and back up by a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv3d(1, 3, 3, padding=1)
        self.up = nn.ConvTranspose3d(3, 2, 2, stride=2)

    def between(self, x: Tensor) -> Tensor:
        deep = self.up(F.relu(self.deep(x.unsqueeze(1))))
        return F.avg_pool3d(deep, (4, 16, 16)).flatten(1)


class RolledAndMirrored(Around):
    def between(self, x: Tensor) -> Tensor:
        return (x.roll((3, -2), (2, 3)) + x.rot90(1, (2, 3)) + torch.flip(x, (1,))).mean((2, 3))


class Resampled(Around):
    """Smoothed resizing, by cubes, and to sizes that are no multiple."""

    def between(self, x: Tensor) -> Tensor:
        small = F.interpolate(x, size=(5, 5), mode="bilinear", antialias=True, align_corners=False)
        large = F.interpolate(small, scale_factor=2, mode="bicubic", align_corners=True)
        return F.adaptive_avg_pool2d(large, 3).mean((2, 3))


class Unpooled(Around):
    """Maxima go back to their places."""

    def between(self, x: Tensor) -> Tensor:
        found, places = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(found, places, 2).mean((2, 3)) + F.adaptive_max_pool2d(x, 3).mean((2, 3))


class FoldedPatches(Around):
    """Overlapping patches, normalised, and put together again."""

    def between(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 3, padding=1)
        patches = patches / (patches.norm(dim=1, keepdim=True) + 1)
        return F.fold(patches, (8, 8), 3, padding=1).mean((2, 3))


class Masked(Around):
    """Truth values, and, or, counts of them, and choices by them."""

    def between(self, x: Tensor) -> Tensor:
        middle = x.mean((2, 3), keepdim=True)
        inside = (x > middle) & ~(x > 2 * middle)
        share = inside.sum((2, 3)) / inside[0, 0].numel()
        return torch.where(inside, x, x.new_zeros(())).mean((2, 3)) + share


class OneHot(Around):
    """A hard choice of one of the channels at each place."""

    def between(self, x: Tensor) -> Tensor:
        return F.one_hot(x.argmax(1), 12).float().mean((1, 2)) + x.mean((2, 3))


class CausalAttention(Around):
    """Places look back only, over two heads."""

    def between(self, x: Tensor) -> Tensor:
        heads = x.flatten(2).transpose(1, 2).unflatten(2, (2, 6)).transpose(1, 2)
        found = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        return found.mean(2).flatten(1)


class Distances(Around):
    """Distances to learned prototypes."""

    def __init__(self) -> None:
        super().__init__(channels=7)
        self.prototypes = nn.Parameter(torch.rand(7, 12))

    def between(self, x: Tensor) -> Tensor:
        return torch.cdist(x.flatten(2).transpose(1, 2), self.prototypes[None]).mean(1)


@torch.library.custom_op("autocompress_tests::soft_sign", mutates_args=())
def soft_sign(x: Tensor, slope: float) -> Tensor:
    return x / (1 + slope * x.abs())


@soft_sign.register_fake
def _(x: Tensor, slope: float) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


class CustomOperator(Around):
    """An operator that its author registered; nothing knows its form in ONNX."""

    def between(self, x: Tensor) -> Tensor:
        return soft_sign(x, 2.0).mean((2, 3))


@dataclass(frozen=True)
class Kept:
    """A network, and the short names of some operations that stay as they are in it."""

    make: Callable[[], nn.Module]
    names: tuple[str, ...]


NETWORKS: dict[str, Kept] = {
    "gru over columns": Kept(GruOverColumns, ("gru",)),
    "lstm head": Kept(LstmHead, ("lstm",)),
    "elman": Kept(ElmanCell, ("rnn_relu",)),
    "running sums": Kept(SummedAlong, ("logcumsumexp",)),
    "topk and gather": Kept(ChosenTokens, ("gather",)),
    "spectrum": Kept(Spectrum, ()),
    "global filter": Kept(GlobalFilter, ()),
    "spatial transformer": Kept(SpatialTransformer, ()),
    "sorted": Kept(RankPooling, ()),
    "bilinear pooling": Kept(BilinearPooling, ()),
    "histogram": Kept(Histogram, ("scatter_add", "bucketize")),
    "bag of words": Kept(BagOfWords, ()),
    "volume": Kept(Volume, ()),
    "rolled": Kept(RolledAndMirrored, ()),
    "resampled": Kept(Resampled, ()),
    "unpooled": Kept(Unpooled, ()),
    "folded patches": Kept(FoldedPatches, ()),
    "masked": Kept(Masked, ()),
    "one hot": Kept(OneHot, ()),
    "causal attention": Kept(CausalAttention, ()),
    "distances": Kept(Distances, ()),
}


def made(name: str) -> nn.Module:
    """Return the network of this name in eval mode, the same weights each time."""
    torch.manual_seed(0)
    module = NETWORKS[name].make()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 1.5)
    return module.eval()
