"""Networks written as a function of their layers, and comparison with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.graph.module import build
from autocompress.network import Network, Weights


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
        if isinstance(part, nn.BatchNorm2d):
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
