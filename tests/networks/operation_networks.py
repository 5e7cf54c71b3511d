"""Networks of one operation or layer each, and small ones of timm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.graph.module import build
from autocompress.graph.network import Network, Weights
from autocompress.transforms.families.quantize import plan, with_ranges

LAYERS = ("conv2d", "conv2d.padding", "linear")


def quantized(network: Network, weights: Weights, x: Tensor, floats: tuple[str, ...] = ()) -> Network:
    """All layers but `floats` in 8 bits, with the ranges that `x` gives."""
    nodes = [
        replace(node, bits=8) if node.op in LAYERS and node.name not in floats else node
        for node in network.nodes
    ]
    network = network.with_nodes(nodes)
    with torch.no_grad():
        values = build(network, weights).forward_values(x, plan(network))
    ranges = {name: (value.min().item(), value.max().item()) for name, value in values.items()}
    return with_ranges(network, ranges)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "activations": lambda x: sum(
        f(x) for f in (F.relu, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.silu, F.gelu, F.mish)
    ),
    "more activations": lambda x: sum(
        f(x)
        for f in (F.elu, F.leaky_relu, F.softplus, F.selu, F.celu, F.logsigmoid, torch.tanh, torch.sigmoid)
    ),
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "functions": lambda x: (
        (x.abs() + 1).sqrt() + x.exp() + (x.square() + 1).log() + x.sin() * x.cos() - x.erf()
    ),
    "powers": lambda x: x.pow(2) + (x.abs() + 1).rsqrt() + (x.abs() + 1).reciprocal() + x**3,
    "clamps": lambda x: x.clamp(-0.5, 0.5) + x.clamp_min(0.1) + x.clamp_max(0.2) + x.clamp(max=0.3),
    "scalars": lambda x: 2 - (x * 3 + 1) / 4 - 0.5,
    "alpha": lambda x: torch.add(x, x, alpha=2) - torch.sub(x, x * x, alpha=3),
    "extremes": lambda x: torch.maximum(x, -x) + torch.minimum(x, x * x),
    "means": lambda x: x.mean((2, 3), keepdim=True) + x.mean(1, keepdim=True) + x.sum((1, 2), keepdim=True),
    "pooled": lambda x: x.mean((2, 3)) + x.mean((-1, -2)) + x.amax((2, 3)) + x.flatten(2).mean(-1),
    "uneven pooling": lambda x: F.adaptive_avg_pool2d(x, (3, 5)) + F.adaptive_max_pool2d(x, (3, 5)),
    "variance": lambda x: x.var(1, correction=1, keepdim=True) + x.norm(dim=1, keepdim=True),
    "softmax": lambda x: x.softmax(1) + F.log_softmax(x, -1),
    "average pools": lambda x: F.avg_pool2d(x, 2) + F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "ceil pools": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True) + F.max_pool2d(x, 3, 2, ceil_mode=True),
    "adaptive pools": lambda x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_avg_pool2d(x, 8)[:, :, :1, :1],
    "adaptive to more": lambda x: F.adaptive_avg_pool2d(x, (2, 4)),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "slices": lambda x: x[:, 1:, ::2, 1:7:3] + x[:, :-1, ::2, -2:] * x[:, 3:4, 4:, -1:],
    "padding": lambda x: (
        F.pad(F.pad(x, (1, 2, 0, 1)), (1, 1, 0, 0), mode="reflect") + F.pad(x, (2, 3, 1, 0), value=1.5)
    ),
    "replicate": lambda x: F.pad(x, (1, 1, 2, 2), mode="replicate"),
    "shapes": lambda x: x.flatten(2).transpose(1, 2).reshape(-1, 8, 8, 4).permute(0, 3, 1, 2),
    "axes": lambda x: x.unsqueeze(1).squeeze(1).unflatten(1, (2, 2)).movedim(2, 1).flatten(1, 2),
    "parts": lambda x: torch.cat([*x.split([1, 3], 1), *x.chunk(2, 1), x[:, 0:1]], 1),
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], -1) + x.select(1, 2).unsqueeze(-1),
    "roll": lambda x: x.roll((1, -3), (2, 3)) + x.flip(3),
    "repeat": lambda x: x.repeat(1, 2, 1, 1) + x[:, :1].expand(-1, 8, -1, -1),
    "pixel shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2) * 2, 2),
    "upsample": lambda x: F.interpolate(x, scale_factor=2) + F.interpolate(x, (16, 16), mode="bilinear"),
    "matmul": lambda x: x @ x.transpose(-1, -2),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1) + F.layer_norm(x, (8,)),
    "constant": lambda x: x + torch.arange(8, dtype=torch.float32),
    "normalizations": lambda x: F.group_norm(x, 2) + F.layer_norm(x, (8, 8)),
}


LAYER_MODULES: dict[str, nn.Module] = {
    "grouped, strided, dilated": nn.Conv2d(4, 8, 3, 2, 1, 2, groups=2),
    "same padding": nn.Conv2d(4, 8, 4, padding="same"),
    "valid padding": nn.Conv2d(4, 8, 3, padding="valid", bias=False),
    "batch norm": nn.BatchNorm2d(4),
    "group norm": nn.GroupNorm(2, 4),
    "linear on maps": nn.Linear(8, 5),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(256, 5, bias=False)),
    "prelu": nn.PReLU(4),
    "rms norm": nn.RMSNorm(8),
    "layer norm": nn.LayerNorm(8),
}


TIMM: dict[str, dict[str, object]] = {
    "test_resnet": {},
    "test_efficientnet": {},
    "test_convnext": {},
    "mobilenetv3_small_050": {},
    "regnety_002": {},
    "ghostnet_100": {},
    "mobilevit_xxs": {},
    "poolformer_s12": {},
    "res2net50_26w_4s": {"layers": (1, 1, 1, 1)},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "depths": (2, 2), "num_heads": (2, 4)},
    "mixer_s32_224": {"img_size": 64},
}
