"""Networks as strangers write them, none a variation of another, each with examples of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune


class GatedSkips(nn.Module):
    """Gated convolutions with the older weight norm; the gates are a GLU over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.gated = nn.ModuleList(nn.utils.weight_norm(nn.Conv2d(8, 16, 3, padding=1)) for _ in range(2))
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.first(x), dim=1)
        for layer in self.gated:
            x = torch.addcmul(x, F.glu(layer(x), dim=1), x.new_full((), 0.5))
        return self.last(x.amax((-1, -2)))


class Critic(nn.Module):
    """Spectral norms new and old, masks of torch's own pruning, activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            parametrizations.spectral_norm(nn.Conv2d(3, 8, 4, 2, 1)),
            nn.LeakyReLU(0.2, inplace=True),
            nn.utils.spectral_norm(nn.Conv2d(8, 12, 4, 2, 1)),
            nn.ELU(inplace=True),
        )
        self.score = nn.Linear(12, 4)
        prune.ln_structured(self.score, "weight", 0.25, n=2, dim=1)
        prune.l1_unstructured(self.score, "weight", 0.5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        return self.score(features.flatten(2).mean(-1).sub_(0.1))


class Rotary(nn.Module):
    """Attention written with einsum, positions as rotations, a causal mask made on the way."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)

    def turned(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angles = torch.outer(torch.arange(x.shape[1]).float(), 10.0 ** -torch.linspace(0, 1, half))
        cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, self.heads, -1) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("bthd,bshd->bhts", self.turned(q), self.turned(k)) / math.sqrt(q.shape[-1])
        mask = torch.triu(torch.ones(t, t, dtype=torch.bool), diagonal=1)
        weights = scores.masked_fill(mask, float("-inf")).softmax(-1)
        return self.out(torch.einsum("bhts,bshd->bthd", weights, v).reshape(b, t, -1))


class ResponseNorm(nn.Module):
    """Channels last throughout, global response normalisation, a norm written by hand."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.deep = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gain, self.shift = nn.Parameter(torch.rand(4 * width)), nn.Parameter(torch.rand(4 * width))
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.deep(x).permute(0, 2, 3, 1)
        variance, mean = torch.var_mean(y, -1, correction=0, keepdim=True)
        y = F.gelu(self.up((y - mean) * torch.rsqrt(variance + 1e-6) * self.scale), approximate="tanh")
        size = torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True)
        y = torch.addcmul(self.shift, self.gain, y * (size / (size.mean(-1, keepdim=True) + 1e-6))) + y
        return x + self.down(y).movedim(-1, 1)


class MixedContexts(nn.Module):
    """Parts of forward() under no_grad, enable_grad and autocasts, which inference has no use for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = F.silu(self.a(x))
        with torch.enable_grad():
            y = self.b(x)
            with torch.autocast(device_type="cpu", enabled=False):
                y = (y.float() - y.mean((2, 3), keepdim=True)).relu()
        return self.c(y.sum((2, 3)))


class SmallUNet(nn.Module):
    """A U-Net with transposed convolutions, crops by negative padding and a map as output."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.bottom = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.InstanceNorm2d(16, affine=True))
        self.up2, self.up1 = nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(16, 8, 3, 2, 1)
        self.head = nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        y = self.up2(self.bottom(F.avg_pool2d(b, 2)))
        y = torch.cat([y, b[:, :8]], 1)
        y = F.pad(self.up1(y), (0, 1, 0, 1))
        return self.head(torch.cat([x, y * torch.sigmoid(a)], 1))


class Waves(nn.Module):
    """Dilated causal convolutions over sound, with gates of tanh and sigmoid and a sum of all skips."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, 8, 1)
        self.layers = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=2**i) for i in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(8, 12, 1) for _ in range(3))
        self.leave = nn.Conv1d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.enter(x), 0
        for layer, skip in zip(self.layers, self.skips, strict=True):
            y = layer(F.pad(x, (layer.dilation[0], 0)))
            a, b = y.chunk(2, 1)
            y = a.tanh() * b.sigmoid()
            x, total = x + y, total + skip(y)
        return self.leave(F.relu(total)).mean(-1)


class Clips(nn.Module):
    """Video: 3-D convolutions, one of them over time alone."""

    def __init__(self) -> None:
        super().__init__()
        self.space = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.norm = nn.BatchNorm3d(8)
        self.time = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0), groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.space(x)))
        y = F.max_pool3d(y, (1, 2, 2))
        return self.head(F.adaptive_avg_pool3d(y + self.time(y), 1).flatten(1))


class ShiftedFrames(nn.Module):
    """Channels moved along an axis by assignments to slices of an empty tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.enter, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        shifted = torch.zeros_like(x)
        shifted[:, :2, :-1] = x[:, :2, 1:]
        shifted[:, 2:4, 1:] = x[:, 2:4, :-1]
        shifted[:, 4:] = x[:, 4:]
        x = self.inner(shifted)
        x[:, 0] *= 2
        x[:, 1:3].relu_()
        return self.head(x.mean([2, 3]))


class Windows(nn.Module):
    """Attention within windows, a learned bias for each relative position, axes as einops would move them."""

    def __init__(self, width: int = 8, side: int = 4) -> None:
        super().__init__()
        self.side = side
        self.enter = nn.Conv2d(3, width, 1)
        self.norm = nn.GroupNorm(1, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn((2 * side - 1) ** 2, 2))
        at = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None]) + side - 1
        self.register_buffer("index", apart[0] * (2 * side - 1) + apart[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x))
        b, c, h, w = x.shape
        s = self.side
        y = x.reshape(b, c, h // s, s, w // s, s).permute(0, 2, 4, 3, 5, 1).reshape(-1, s * s, c)
        q, k, v = self.qkv(y).reshape(y.size(0), s * s, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        bias = self.bias[self.index.view(-1)].view(s * s, s * s, -1).permute(2, 0, 1)
        y = ((q @ k.mT) * (c // 2) ** -0.5 + bias).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).reshape(-1, s * s, c))
        y = y.view(b, h // s, w // s, s, s, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        return x + y


class Odd(nn.Module):
    """Control flow on shapes: padding to a multiple, pooling until the map is small enough."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding="same"), nn.Linear(6, 2)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % 8 or width % 8:
            x = F.pad(x, (0, -width % 8, 0, -height % 8), value=0.5)
        x = self.conv(x)
        while x.shape[-1] > 4:
            x = F.avg_pool2d(self.deep(x), 2, ceil_mode=True)
        return self.head(x.flatten(2).max(-1).values)


class Symmetric(nn.Module):
    """A parametrization of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class Fields(nn.Module):
    """Coordinates as Fourier features, a symmetric weight, one weight used in both directions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter = nn.Linear(5, width)
        self.mix = nn.Linear(width, width, bias=False)
        parametrize.register_parametrization(self.mix, "weight", Symmetric())
        self.frequencies = nn.Buffer(2.0 ** torch.arange(2))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="xy")
        waves = torch.sin(torch.stack([rows, columns], -1).unsqueeze(-1) * self.frequencies).flatten(-2)
        waves = waves.unsqueeze(0).expand(x.size(0), -1, -1, -1)
        y = self.enter(torch.cat([x.movedim(1, -1)[..., :1], waves.mT.flip(-1).mT], -1))
        y = F.softplus(self.mix(y))
        return F.linear(F.normalize(y, dim=-1), self.enter.weight.t())


class Sharper(nn.Module):
    """Super-resolution: sub-pixel convolution on top of an image resized by a plain rule."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 5, padding=2), nn.PReLU(12), nn.Conv2d(12, 12, 3, padding=1)
        )
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return (larger + self.shuffle(self.body(x))).clamp(-3, 3)


class Standardized(nn.Module):
    """Convolutions whose weights are standardized on each call, scaled features, a cosine classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, padding=1)
        self.classes = nn.Parameter(torch.randn(4, 8))

    def weight_of(self, layer: nn.Conv2d) -> Tensor:
        w = layer.weight
        mean, std = w.mean((1, 2, 3), keepdim=True), w.std((1, 2, 3), keepdim=True, unbiased=False)
        return (w - mean) / (std + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.weight_of(self.a)))
        x = x + F.conv2d(x, self.weight_of(self.b), self.b.bias, padding=1)
        return 10 * F.linear(F.normalize(x.mean((2, 3))), F.normalize(self.classes))


class Encoder(nn.Module):
    """torch's own encoder, of two layers, over patches, with a class token; some of it frozen."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.register_buffer("positions", torch.randn(1, 5, width))
        layer = nn.TransformerEncoderLayer(width, 4, 32, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)
        self.patches.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.layers(x)[:, 0])


def wrapped() -> nn.Module:
    """In training mode, in half precision, compiled, wrapped for several devices, watched by hooks."""
    inner = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        torch.compile(nn.Sequential(nn.Hardswish(), nn.Dropout(0.5))),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.DataParallel(nn.Linear(32, 3)),
    )
    inner[0].register_forward_hook(lambda _module, _inputs, output: output * 2)
    inner[1].register_full_backward_hook(lambda *_: None)
    inner[3].compile()
    return torch.compile(nn.DataParallel(inner.half().train()))


class Pyramid(nn.Module):
    """Three maps of three sizes, top down; a list within a dict, with a number and nothing beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in ((3, 8), (8, 12), (12, 16)))
        self.sides = nn.ModuleList(nn.Conv2d(width, 6, 1) for width in (8, 12, 16))
        self.smooth = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        maps = []
        for stage in self.stages:
            x = F.relu(stage(x))
            maps.append(x)
        levels = [self.sides[-1](maps[-1])]
        for side, y in zip(list(self.sides)[-2::-1], maps[-2::-1], strict=True):
            levels.insert(0, side(y) + F.interpolate(levels[0], size=y.shape[-2:], mode="nearest"))
        return {"levels": [self.smooth(level) for level in levels], "stride": 2, "loss": None}


class Siamese(nn.Module):
    """One encoder for two images, how near they are, and both descriptions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten()
        )
        self.near = nn.Bilinear(8, 8, 1)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        a, b = self.encoder(left), self.encoder(right)
        return F.cosine_similarity(a, b) + self.near(a, b).squeeze(-1), (a, b)


class Words(nn.Module):
    """A small language model: tokens in, a causal mask, the embedding as output layer, padding masked."""

    def __init__(self, words: int = 20, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width, padding_idx=0)
        self.places = nn.Embedding(8, width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm, self.wide, self.narrow = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(32, width)
        self.out = nn.Linear(width, words, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        x = self.embed(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        later = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        x = x + self.attention(x, x, x, attn_mask=later, need_weights=False)[0]
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        return self.out(self.norm(x + self.narrow(F.relu(self.wide(x)).square())))


class Columns(nn.Module):
    """Reading text lines: convolutions, then recurrent layers over the columns, and their last state."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, (2, 1), 1))
        self.gru = nn.GRU(16, 6, bidirectional=True, batch_first=True)
        self.lstm = nn.LSTM(12, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x).permute(0, 3, 1, 2).flatten(2)
        x, _ = self.gru(x)
        x, (state, _) = self.lstm(x.transpose(0, 1))
        scores = F.log_softmax(self.head(x), dim=-1).transpose(0, 1)
        return scores, state[-1]


class Found(NamedTuple):
    """What a detector finds."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


@dataclass
class Result:
    """What a detector returns."""

    found: Found
    anchors: Tensor


class Detector(nn.Module):
    """A head with anchors of its own, boxes as corners, the class of each as an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.boxes, self.classes = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 5, 1)
        self.register_buffer("anchors", torch.rand(4, 2))

    def forward(self, images: Tensor) -> Result:
        x = self.body(images)
        boxes = self.boxes(x).flatten(2).mT
        centre, size = self.anchors + boxes[..., :2].sigmoid() - 0.5, boxes[..., 2:].exp()
        scores, classes = self.classes(x).flatten(2).softmax(1).max(1)
        corners = torch.cat([centre - size / 2, centre + size / 2], -1)
        return Result(Found(corners, scores, classes), self.anchors)


class Denoiser(nn.Module):
    """An image, a time for each example and what it should show, by name; scale and shift from both."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.kind = nn.Embedding(4, 8)
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))

    def forward(self, x: Tensor, time: Tensor, about: dict[str, Tensor], strength: float = 1.0) -> Tensor:
        turns = time[:, None] * torch.exp(-torch.arange(4, dtype=torch.float32))
        at = torch.cat([turns.sin(), turns.cos()], 1) + self.kind(about["label"])
        scale, shift = self.time(at)[..., None, None].chunk(2, dim=1)
        x = F.silu(self.norm(self.enter(x)) * (1 + strength * scale) + shift)
        return self.leave(torch.where(about["area"][:, None], x, torch.zeros((), dtype=x.dtype)))


def two_images(batch: int) -> tuple[Any, ...]:
    return tuple(torch.randn(batch, 1, 9, 9, generator=_seeded(seed)) for seed in (1, 2))


def tokens(batch: int) -> dict[str, Tensor]:
    ids = torch.randint(0, 20, (batch, 6), generator=_seeded())
    return {"tokens": ids, "mask": ids != 0}


def noisy(batch: int) -> tuple[Any, ...]:
    generator = _seeded()
    about = {
        "label": torch.randint(0, 4, (batch,), generator=generator),
        "area": torch.rand(batch, 8, 8, generator=generator) > 0.3,
    }
    return torch.randn(batch, 3, 8, 8, generator=generator), torch.rand(batch, generator=generator), about


def image(side: int = 8, channels: int = 3) -> Callable[[int], tuple[Any, ...]]:
    return lambda batch: (torch.randn(batch, channels, side, side, generator=_seeded()),)


def of_shape(*shape: int) -> Callable[[int], tuple[Any, ...]]:
    return lambda batch: (torch.randn(batch, *shape, generator=_seeded()),)


def _seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


STRANGERS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "gated skips": (GatedSkips, image()),
    "rotary attention": (Rotary, of_shape(5, 16)),
    "u-net": (SmallUNet, image(16)),
    "clips": (Clips, of_shape(3, 4, 8, 8)),
    "torch's encoder": (Encoder, image()),
    "critic": (Critic, image(16)),
    "response norm": (ResponseNorm, image(16)),
    "mixed contexts": (MixedContexts, image()),
    "waves": (Waves, of_shape(1, 32)),
    "shifted frames": (ShiftedFrames, image()),
    "windows": (Windows, of_shape(3, 8, 12)),
    "odd sizes": (Odd, of_shape(3, 13, 18)),
    "fields": (Fields, image(6)),
    "sharper": (Sharper, image()),
    "standardized weights": (Standardized, image()),
    "wrapped": (wrapped, image()),
    "pyramid": (Pyramid, image(16)),
    "siamese": (Siamese, two_images),
    "words": (Words, tokens),
    "columns": (Columns, of_shape(1, 8, 12)),
    "detector": (Detector, image()),
    "denoiser": (Denoiser, noisy),
}
