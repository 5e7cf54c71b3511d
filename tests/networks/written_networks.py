"""Networks written as a function of their layers, and comparison with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.graph.coupling import Coupling
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Weights
from autocompress.transforms.families.prune import Keep

IMAGE = (3, 6, 6)


class Net(nn.Module):
    """Runs `function(net, x)`; the other arguments are its layers, parameters and buffers."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def net(function: Callable[[Any, Tensor], Any], **parts: nn.Module | Tensor) -> Net:
    """In eval mode, with statistics of batch norms that do something."""
    module = Net(function, **parts)
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor in part.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.eval()


def inputs(shape: tuple[int, ...], count: int = 4) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def assert_computes(network: Network, weights: Weights | None, module: nn.Module, x: Tensor) -> None:
    """The built network gives the module's outputs."""
    assert weights is not None
    with torch.no_grad():
        torch.testing.assert_close(build(network, weights)(x), module(x.clone()), rtol=1e-4, atol=1e-5)


def with_zeros(coupling: Coupling, weights: Weights, keep: Keep) -> Weights:
    """The weights with zeros wherever a channel that is not kept has its place."""
    zeroed = {name: array.copy() for name, array in weights.items()}
    for group in coupling.groups:
        for place in group.places:
            axis = np.moveaxis(zeroed[place.param], place.axis, 0)
            axis[place.indices[~keep[group.atoms]].ravel()] = 0
    return zeroed


def with_channels_left_out(coupling: Coupling, weights: Weights, keep: Keep) -> GraphModule:
    """The whole network with zeros wherever a channel that is not kept has its place, whose means and
    normalisations over channels see the kept ones alone."""
    module = build(coupling.network, with_zeros(coupling, weights, keep))
    for node in coupling.network.nodes:
        if node.op not in ("layer_norm", "group_norm", "mean.dim"):
            continue
        if node.op == "group_norm" and node.args[1] != 1:  # Its groups leave as wholes.
            continue
        axes = [
            None if one is None else torch.from_numpy(keep[one]) for one in coupling.values[node.inputs[0]]
        ]
        for axis, kept in enumerate(axes):
            is_over_it = node.op != "mean.dim" or axis in [dim % len(axes) for dim in node.args[1]]
            if kept is not None and not kept.all() and is_over_it:
                module._functions[node.name] = _seeing(module._functions[node.name], axis, kept)
    return module


def _seeing(function: Callable[..., Tensor], axis: int, kept: Tensor) -> Callable[..., Tensor]:
    """The function of kept channels alone; where it keeps their axis the others are zero."""
    places = kept.nonzero()[:, 0]

    def of_kept(x: Tensor, *args: Any, **options: Any) -> Tensor:
        part = x.index_select(axis, places)

        def cut(arg: Any) -> Any:
            if isinstance(arg, Tensor) and arg.shape == kept.shape:
                return arg[kept]
            return [len(places)] if isinstance(arg, list) and arg == [len(kept)] else arg

        result = function(part, *map(cut, args), **options)
        return torch.zeros_like(x).index_copy(axis, places, result) if result.shape == part.shape else result

    return of_kept


def conv(channels: int, out: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, **options)


def basic_net() -> Net:
    """One residual block of inputs `IMAGE`."""
    return net(
        lambda m, x: m.head((y := m.stem(x)) + m.b(F.relu(m.a(y)))),
        stem=conv(3, 8, 3),
        a=nn.Sequential(conv(8, 12, 3, bias=False), nn.BatchNorm2d(12)),
        b=conv(12, 8, 3),
        head=conv(8, 8),
    )


def _padded(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    y = m.b(F.relu(m.a(y))) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3))
    return m.head(F.relu(y).flatten(1))


def padded_net() -> Net:
    """A residual block whose shortcut is zero-padded, and a linear layer on its flattened map."""
    return net(_padded, stem=conv(3, 4, 3), a=conv(4, 6, 3, stride=2), b=conv(6, 9, 3), head=nn.Linear(81, 2))


def _gated(m: Any, x: Tensor) -> Tensor:
    y = m.bn(m.deep(m.a(x)))
    y = y * m.wide(F.relu(m.narrow(y.mean((2, 3), keepdim=True)))).sigmoid()
    return m.head((y + m.shift.view(1, -1, 1, 1)).flatten(2).unflatten(-1, (3, 12)))


def gated_net() -> Net:
    """A depthwise convolution with two outputs a channel, squeeze and excitation, a parameter added."""
    return net(
        _gated,
        a=conv(3, 4),
        deep=conv(4, 8, 3, groups=4),
        bn=nn.BatchNorm2d(8),
        narrow=conv(8, 4),
        wide=conv(4, 8),
        shift=nn.Parameter(torch.rand(8)),
        head=conv(8, 2),
    )
