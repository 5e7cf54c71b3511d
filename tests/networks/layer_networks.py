"""One small network for each kind of layer, written as people write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
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


def _pyramid(m: Any, x: Tensor) -> Tensor:
    """One head for two scales, and a block that is run three times."""
    y = m.stem(x)
    for _ in range(3):
        y = y + m.back(F.relu(m.again(y)))
    coarse = m.down(y)
    both = [m.predict(F.relu(m.tower(level))).mean((2, 3)) for level in (y, coarse)]
    return m.last(F.relu(m.fc(both[0])) + F.relu(m.fc(both[1])))


def pyramid() -> Net:
    """Three layers that are used several times, one of them with another stride of what it reads."""
    return net(
        _pyramid,
        stem=nn.Conv2d(3, 16, 3, padding=1),
        again=nn.Conv2d(16, 32, 3, padding=1),
        back=nn.Conv2d(32, 16, 1),
        down=nn.Conv2d(16, 16, 3, stride=2, padding=1),
        tower=nn.Conv2d(16, 24, 3, padding=1),
        predict=nn.Conv2d(24, 16, 1),
        fc=nn.Linear(16, 32),
        last=nn.Linear(32, 4),
    )


def _decoder(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.down(x))
    z = F.relu(m.bottom(y))
    z = F.relu(m.bn(m.up(z)))
    z = m.smooth(torch.cat([z, y], 1))
    return m.out(F.relu(m.each(z)) * z)


def decoder() -> Net:
    """A U-Net of one level, with transposed convolutions, one of them depthwise."""
    return net(
        _decoder,
        down=nn.Conv2d(3, 16, 3, stride=2, padding=1),
        bottom=nn.Conv2d(16, 32, 3, stride=2, padding=1),
        up=nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1),
        bn=nn.BatchNorm2d(16),
        smooth=nn.Conv2d(32, 16, 3, padding=1),
        each=nn.ConvTranspose2d(16, 16, 3, padding=1, groups=16),
        out=nn.ConvTranspose2d(16, 2, 2, stride=2),
    )


def _vocoder(m: Any, x: Tensor) -> Tensor:
    y = F.leaky_relu(m.up(m.stem(x)))
    return m.out(F.leaky_relu(m.twice(y))).tanh()


def vocoder() -> Net:
    return net(
        _vocoder,
        stem=nn.Conv1d(8, 32, 7, padding=3),
        up=nn.ConvTranspose1d(32, 16, 8, stride=4, padding=2),
        twice=nn.ConvTranspose1d(16, 32, 4, stride=2, padding=1, groups=16),
        out=nn.Conv1d(32, 1, 7, padding=3),
    )


def _shuffled(m: Any, x: Tensor) -> Tensor:
    """A unit of ShuffleNet V2 with a shuffle of its own, one of V1, a normalisation in groups."""
    y = F.relu(m.stem(x))
    left, right = y.chunk(2, 1)
    y = torch.cat([left, m.point(F.relu(m.deep(right)))], 1)
    batch, channels, height, width = y.shape
    y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    y = m.second(F.relu(m.shuffle(m.first(y))))
    y = F.relu(m.norm(m.narrow(F.relu(y))))
    return m.head(m.up(y).mean((2, 3)))


def shuffled() -> Net:
    return net(
        _shuffled,
        stem=nn.Conv2d(3, 32, 3, padding=1),
        deep=nn.Conv2d(16, 16, 3, padding=1, groups=16),
        point=nn.Conv2d(16, 16, 1),
        first=nn.Conv2d(32, 48, 1, groups=2),
        shuffle=nn.ChannelShuffle(2),
        second=nn.Conv2d(48, 32, 1, groups=2),
        narrow=nn.Conv2d(32, 64, 3, padding=1, groups=16),
        norm=nn.GroupNorm(8, 64),
        up=nn.ConvTranspose2d(64, 32, 2, stride=2, groups=4),
        head=nn.Linear(32, 4),
    )


def _volume(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.bn(m.stem(x)))
    y = y + m.slow(F.relu(m.fast(F.max_pool3d(y, 3, 1, 1))))
    z = m.up(F.relu(m.deep(F.avg_pool3d(y, 2))))
    z = F.interpolate(F.interpolate(z, scale_factor=2), size=y.shape[2:], mode="trilinear")
    return m.head(F.adaptive_avg_pool3d(z + y, 1).flatten(1))


def volume() -> Net:
    """A residual block of video networks: space and time apart, then down and up again."""
    return net(
        _volume,
        stem=nn.Conv3d(1, 16, 3, padding=1, bias=False),
        bn=nn.BatchNorm3d(16),
        fast=nn.Conv3d(16, 24, (1, 3, 3), padding=(0, 1, 1)),
        slow=nn.Conv3d(24, 16, (3, 1, 1), padding="same"),
        deep=nn.Conv3d(16, 16, 3, padding=1, groups=16),
        up=nn.ConvTranspose3d(16, 16, 2, stride=2),
        head=nn.Linear(16, 3),
    )


def _sampled(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.stem(x))
    y = F.interpolate(F.interpolate(y, scale_factor=2.0), scale_factor=0.5, mode="linear")
    return m.head(m.mix(F.avg_pool1d(F.max_pool1d(y, 2), 2)).mean(-1))


def sampled() -> Net:
    """What changes the length of a signal."""
    return net(
        _sampled,
        stem=nn.Conv1d(4, 16, 3, padding=1),
        mix=nn.Conv1d(16, 24, 3, padding=1),
        head=nn.Linear(24, 4),
    )


def _attends(m: Any, x: Tensor) -> Tensor:
    """Attention of four heads: by products, by sums over letters, by torch; and of one head."""
    batch, tokens, _ = x.shape
    y = x = m.embed(x)
    q, k, v = m.qkv(y).reshape(batch, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4)
    shares = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)
    y = y + m.join((shares @ v).transpose(1, 2).reshape(batch, tokens, 32))
    q, k, v = (layer(y).view(batch, tokens, 4, 8) for layer in (m.q, m.k, m.v))
    shares = (torch.einsum("bnhd,bmhd->bhnm", q, k) * 8**-0.5).softmax(-1)
    y = y + m.out(torch.einsum("bhnm,bmhd->bnhd", shares, v).flatten(2))
    y = y + m.several(y, y, y, need_weights=False)[0]
    y = y + m.wide(F.scaled_dot_product_attention(m.one(y), m.key(y), m.value(y)))
    return m.head((y + x).mean(1))


def attention() -> Net:
    sizes = {
        "embed": (12, 32),
        "qkv": (32, 96),
        "join": (32, 32),
        "q": (32, 32),
        "k": (32, 32),
        "v": (32, 32),
    }
    more = {"out": (32, 32), "one": (32, 16), "key": (32, 16), "value": (32, 24), "wide": (24, 32)}
    layers = {name: nn.Linear(*size) for name, size in {**sizes, **more, "head": (32, 4)}.items()}
    return net(_attends, several=nn.MultiheadAttention(32, 4, batch_first=True), **layers)


def _written(m: Any, x: Tensor) -> Tensor:
    y = F.relu(x @ m.first + m.bias)
    y = F.relu(torch.einsum("bnc,cd->bnd", y, m.second))
    y = F.relu(torch.einsum("bnc,dc->bnd", y, m.third) + m.shift)
    return torch.addmm(m.last_bias, y.mean(1), m.last)


def written() -> Net:
    """Linear layers as products with parameters."""
    sizes = {"first": (6, 16), "bias": (16,), "second": (16, 24), "third": (32, 24), "shift": (32,)}
    sizes |= {"last": (32, 3), "last_bias": (3,)}
    return net(_written, **{name: nn.Parameter(torch.randn(size) / 4) for name, size in sizes.items()})


def _tokens(m: Any, x: Tensor) -> Tensor:
    y = m.table((x.abs() * 8).long().clamp(max=19)) + m.places(torch.arange(x.shape[1]))
    return m.head((y + m.out(F.gelu(m.hidden(y)))).mean(1))


def tokens() -> Net:
    """A table of words and one of places, whose channels go through a residual block."""
    return net(
        _tokens,
        table=nn.Embedding(20, 32),
        places=nn.Embedding(6, 32),
        hidden=nn.Linear(32, 64),
        out=nn.Linear(64, 32),
        head=nn.Linear(32, 4),
    )


def recurrent() -> Net:
    """A recurrent layer, which runs as it is, between two others."""
    return net(
        lambda m, x: m.head(m.gru(F.relu(m.embed(x)))[0].mean(1)),
        embed=nn.Linear(5, 16),
        gru=nn.GRU(16, 16, batch_first=True),
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
    "reused layers": Kind(
        pyramid,
        (3, 16, 16),
        widths=named("stem again tower fc"),
        ranks=named("again tower back fc"),
        bits=named("stem again back tower predict fc last"),
    ),
    "conv_transpose2d": Kind(
        decoder,
        (3, 16, 16),
        widths=named("down bottom up smooth"),
        ranks=named("bottom up smooth"),
        bits=named("down bottom smooth"),
    ),
    "attention": Kind(
        attention,
        (5, 12),
        widths=named("embed qkv q one value several"),
        ranks=named("qkv join q k v out several one wide"),
        bits=named("embed qkv join q k v out one key value wide head"),
    ),
    "written by hand": Kind(
        written,
        (5, 6),
        widths=named("matmul einsum einsum_1"),
        ranks=named("einsum einsum_1"),
        bits=named("matmul einsum einsum_1 addmm"),
    ),
    "embedding": Kind(
        tokens,
        (6,),
        widths=named("table hidden"),
        ranks=named("table hidden out"),
        bits=named("hidden out head"),
    ),
    "lengths": Kind(sampled, (4, 32), widths=named("stem mix"), bits=named("stem mix head")),
    "conv3d": Kind(
        volume,
        (1, 4, 8, 8),
        widths=named("stem fast"),
        ranks=named("fast slow up"),
        bits=named("stem fast slow deep head"),
    ),
    "groups and shuffles": Kind(
        shuffled,
        (3, 8, 8),
        widths=named("stem first second up"),
        ranks=named("stem point"),
        bits=named("stem deep point first second narrow head"),
    ),
    "conv_transpose1d": Kind(
        vocoder, (8, 16), widths=named("stem up"), ranks=named("stem up"), bits=named("stem out")
    ),
}
