"""How much each single weight matters: the scores by which channels are ranked before they are removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from autocompress.data_splits import Batch
from autocompress.graph.module import GraphModule
from autocompress.network import Param, Weights
from autocompress.teacher import eval_mode

Method = Literal["l1", "l2", "taylor", "fisher", "bn_scale"]
Loss = Callable[[Tensor, Tensor], Tensor]


def saliency(
    module: nn.Module,
    batches: Iterable[Batch] = (),
    method: Method = "taylor",
    loss: Loss = functional.cross_entropy,
) -> Weights:
    """{parameter name: importance of each element}, of the parameter's shape, ≥ 0.

    - `l1`: |w| (Li et al. 2017, arXiv:1608.08710); `l2`: w². Batches are not read.
    - `taylor`: (w · ∂loss/∂w)², averaged over batches (Molchanov et al. 2019, arXiv:1906.10771).
    - `fisher`: (∂loss/∂w)², averaged over batches (Theis et al. 2018, arXiv:1801.05787).
    - `bn_scale`: |γ| of batch norms and 0 elsewhere (Liu et al. 2017, arXiv:1708.06519).

    Gradients are taken in eval mode; the module's own `.grad` fields stay as they are.
    Raises ValueError for an unknown method, and where gradients are needed and there are no batches.
    """
    if method not in get_args(Method):
        raise ValueError(f"importance {method!r} is not one of {', '.join(get_args(Method))}")
    parameters = dict(module.named_parameters())
    if method in ("taylor", "fisher"):
        return _from_gradients(module, parameters, batches, loss, with_weight=method == "taylor")
    scales = _batch_norm_scales(module) if method == "bn_scale" else frozenset(parameters)
    return {
        name: _numpy(_magnitude(value, method) if name in scales else torch.zeros_like(value))
        for name, value in parameters.items()
    }


def _magnitude(value: Tensor, method: Method) -> Tensor:
    return value.detach().square() if method == "l2" else value.detach().abs()


def _from_gradients(
    module: nn.Module,
    parameters: dict[str, nn.Parameter],
    batches: Iterable[Batch],
    loss: Loss,
    with_weight: bool,
) -> Weights:
    used = [name for name, value in parameters.items() if value.requires_grad]
    totals = {name: torch.zeros_like(value) for name, value in parameters.items()}
    count = 0
    with eval_mode(module), torch.enable_grad():
        for images, labels in batches:
            values = [parameters[name] for name in used]
            gradients = torch.autograd.grad(loss(module(images), labels), values, allow_unused=True)
            for name, gradient in zip(used, gradients, strict=True):
                if gradient is not None:
                    factor = parameters[name].detach() if with_weight else 1.0
                    totals[name] += (gradient * factor).square()
            count += 1
    if not count:
        raise ValueError("this importance needs gradients, and no batches were given")
    return {name: _numpy(total / count) for name, total in totals.items()}


def _batch_norm_scales(module: nn.Module) -> frozenset[str]:
    if isinstance(module, GraphModule):
        norms = [node for node in module.source_network.nodes if node.op == "batch_norm"]
        return frozenset(node.args[1].name for node in norms if isinstance(node.args[1], Param))
    return frozenset(
        f"{name}.weight" if name else "weight"
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
    )


def _numpy(value: Tensor) -> NDArray[Any]:
    return value.detach().cpu().contiguous().numpy().copy()
