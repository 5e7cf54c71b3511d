"""How much each single weight matters: the scores by which channels are ranked before they are removed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.graph.module import GraphModule
from autocompress.graph.network import Node, Param, Weights
from autocompress.graph.replace_layer import channel_axis
from autocompress.problem.splits import Batch
from autocompress.problem.tasks.classification import Classification
from autocompress.problem.tasks.task import Task, drawn_direction
from autocompress.problem.teacher import eval_mode

Method = Literal["l1", "l2", "taylor", "fisher", "bn_scale", "geometric_median", "obd"]

DRAWS = 8
"""Directions drawn for each batch, from which curvature is estimated."""

_NEED_GRADIENTS = frozenset({"taylor", "fisher", "obd"})


def saliency(
    module: nn.Module,
    batches: Iterable[Batch] = (),
    method: Method = "taylor",
    task: Task | None = None,
) -> Weights:
    """Return {parameter name: importance of each element}, of the parameter's shape, ≥ 0.

    - `l1`: |w| (Li et al. 2017, arXiv:1608.08710); `l2`: w². Batches are not read.
    - `taylor`: (w · ∂loss/∂w)², averaged over batches (Molchanov et al. 2019, arXiv:1906.10771).
    - `fisher`: (∂loss/∂w)², averaged over batches (Theis et al. 2018, arXiv:1801.05787).
    - `bn_scale`: |γ| of batch norms and 0 elsewhere (Liu et al. 2017, arXiv:1708.06519).
    - `geometric_median`: the sum of a filter's distances to the other filters of its weight, spread
      evenly over its elements; 0 for vectors (He et al. 2019, arXiv:1811.00250).
    - `obd`: ½ · h · w² (LeCun et al. 1989, "Optimal brain damage"), h the diagonal of the Gauss-Newton
      matrix of the task's loss, estimated from random directions (see `_directions`).

    `loss` is that of the task, by default the cross-entropy of classes.

    Gradients are taken in eval mode; the module's own `.grad` fields stay as they are.
    Raises ValueError for an unknown method, and where gradients are needed and there are no batches.
    """
    if method not in get_args(Method):
        raise ValueError(f"importance {method!r} is not one of {', '.join(get_args(Method))}")
    parameters = dict(module.named_parameters())
    if method in _NEED_GRADIENTS:
        return _from_gradients(module, parameters, batches, task or Classification(), method)
    if method == "geometric_median":
        return {name: _numpy(_distances(value.detach())) for name, value in parameters.items()}
    scales = _batch_norm_scales(module) if method == "bn_scale" else frozenset(parameters)
    return {
        name: _numpy(_magnitude(value, method) if name in scales else torch.zeros_like(value))
        for name, value in parameters.items()
    }


def _magnitude(value: Tensor, method: Method) -> Tensor:
    return value.detach().square() if method == "l2" else value.detach().abs()


def _distances(value: Tensor) -> Tensor:
    if value.ndim < 2:
        return torch.zeros_like(value)
    filters = value.flatten(1)
    sums = torch.cdist(filters, filters).sum(1) / filters.shape[1]
    return sums.view(-1, *(1,) * (value.ndim - 1)).expand(value.shape)


def _from_gradients(
    module: nn.Module,
    parameters: dict[str, nn.Parameter],
    batches: Iterable[Batch],
    task: Task,
    method: Method,
) -> Weights:
    used = [name for name, value in parameters.items() if value.requires_grad]
    totals = {name: torch.zeros_like(value) for name, value in parameters.items()}
    values = [parameters[name] for name in used]
    count = 0
    with eval_mode(module), torch.enable_grad():
        for objective in _objectives(module, batches, task, method):
            gradients = torch.autograd.grad(objective, values, allow_unused=True, retain_graph=True)
            for name, gradient in zip(used, gradients, strict=True):
                if gradient is not None:
                    totals[name] += gradient.square()
            count += 1
    if not count:
        raise ValueError("this importance needs gradients, and no batches were given")
    weight = {"taylor": 1.0, "obd": 0.5}.get(method)
    return {
        name: _numpy(total / count if weight is None else weight * total / count * parameters[name] ** 2)
        for name, total in totals.items()
    }


def _objectives(module: nn.Module, batches: Iterable[Batch], task: Task, method: Method) -> Iterator[Tensor]:
    """Yield what to take gradients of whose squares are averaged."""
    generator = torch.Generator().manual_seed(0)
    for images, labels in batches:
        outputs = module(images)
        if method == "obd":
            yield from _directions(outputs, generator, task)
        else:
            yield task.loss(outputs, labels)


def _directions(outputs: Tensor, generator: torch.Generator, task: Task) -> Iterator[Tensor]:
    """Yield what to take gradients of whose squares have the Gauss-Newton matrix of a batch as their mean.

    The loss's curvature by the scores z of an example is S Sᵀ. With random signs s, z · (S s) has a gradient
    whose outer product has JᵀS SᵀJ as its mean (Martens 2020, arXiv:1412.1193, with drawn labels in place of
    signs, which are rarely wrong ones where the network is sure). Summed over a batch, over √batch.
    """
    found = task.scores(outputs)
    scores = found.movedim(1, -1).flatten(0, -2) if found.ndim > 1 else found[:, None]
    for _ in range(DRAWS):
        signs = torch.randint(2, scores.shape, generator=generator).to(scores) * 2 - 1
        yield (scores * drawn_direction(task.curvature, scores, signs)).sum() / len(outputs) ** 0.5


def output_curvature(
    module: GraphModule,
    layers: Iterable[Node],
    images: Iterable[Tensor],
    largest: int,
    task: Task | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return {layer: how an error of its output bends the loss of an example, `(out, out)`}.

    It is the mean over the examples of g · gᵀ, summed over the layer's places, where g is the gradient of
    the loss by one place of the output: the outer factor of the curvature of the layer's weight (K-FAC,
    Martens and Grosse 2015, arXiv:1503.05671). For a layer with more than `largest` outputs it is their mean,
    `(1, 1)`. Zero for a layer that no output depends on.
    """
    wanted = {node.name: node for node in layers}
    sizes = {name: node.shape[channel_axis(node)] for name, node in wanted.items()}
    shapes = {name: size if size <= largest else 1 for name, size in sizes.items()}
    totals = {name: np.zeros((size, size)) for name, size in shapes.items()}
    generator = torch.Generator().manual_seed(0)
    batches, known = 0, task or Classification()
    with eval_mode(module), torch.enable_grad():
        for batch in images if wanted else ():
            _add_curvature(
                module, batch, wanted, totals, partial(_directions, generator=generator, task=known)
            )
            batches += 1
    return {name: total / max(1, batches * DRAWS) for name, total in totals.items()}


def _add_curvature(
    module: GraphModule,
    images: Tensor,
    wanted: Mapping[str, Node],
    totals: dict[str, NDArray[np.float64]],
    directions: Callable[[Tensor], Iterator[Tensor]],
) -> None:
    """Add the curvature of one batch, summed over the draws; what it computed is gone when it returns."""
    outputs, values = _with_values(module, images, wanted)
    for direction in directions(outputs) if values else ():
        gradients = torch.autograd.grad(
            direction, list(values.values()), allow_unused=True, retain_graph=True
        )
        for name, gradient in zip(values, gradients, strict=True):
            if gradient is None:
                continue
            rows = gradient.movedim(channel_axis(wanted[name]), -1).flatten(0, -2)
            if len(totals[name]) == rows.shape[1]:
                totals[name] += (rows.mT @ rows).double().cpu().numpy()
            else:
                totals[name] += float(rows.double().square().sum()) / rows.shape[1]


def _with_values(
    module: GraphModule, images: Tensor, names: Collection[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the outputs and the named values on the way, of one graph."""
    held: dict[str, Tensor] = {}

    def hold(_node: Node, values: Mapping[str, Tensor]) -> None:
        held.update({name: values[name] for name in names if name in values})

    outputs = module.forward_visiting(images, hold)
    if module.source_network.output in names:
        held[module.source_network.output] = outputs
    return outputs, held


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
