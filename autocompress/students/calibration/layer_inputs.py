"""A convolution or linear layer as a matrix product: the rows it multiplies, at sampled places.

Every output value of such a layer is a row of its input times a column of its weight. Least squares
on a layer, and the second moments of its inputs, need these rows only, and a sample of them will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product as product_of
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from autocompress.graph.module import GraphModule
from autocompress.graph.network import Network, Node, Param, Ref
from autocompress.graph.operations import LAYERS
from autocompress.graph.replace_layer import bias_of, conv_args, groups_of

CALIBRATION_BATCH = 128
"""Images in a batch of calibration data."""

LARGEST_FAN_IN = 8192
"""Above this the matrices of a layer are not formed: 8192² doubles are half a GiB."""

LARGEST_VALUE_BYTES = 2**28

Values = dict[str, Any]
"""What the nodes of a network computed, by their names: tensors, and tuples of them."""


def solvable_layers(network: Network) -> tuple[Node, ...]:
    """Return the layers with a weight of their own that reads a value, up to `LARGEST_FAN_IN`, in execution
    order."""
    return tuple(node for node in network.nodes if _is_solvable(network, node))


def _is_solvable(network: Network, node: Node) -> bool:
    if node.op not in LAYERS or node.kwargs or not isinstance(node.args[0], Ref):
        return False
    weight = node.args[1]
    if not isinstance(weight, Param) or len(network.param_users[weight.name]) > 1:
        return False
    return int(np.prod(network.params[weight.name].shape[1:])) <= LARGEST_FAN_IN


def places(node: Node, value: Tensor, limit: int) -> Tensor:
    """Return the numbers of output places (example × position) of a layer that reads `value`, all of them or
    `limit` drawn with a fixed seed. A linear layer has one for each row, whichever axis is the batch."""
    if node.op == "linear":
        total = value.numel() // value.shape[-1]
    else:
        total = len(value) * int(np.prod(node.shape[2:]))
    if total <= limit:
        return torch.arange(total)
    return torch.randint(total, (limit,), generator=torch.Generator().manual_seed(0))


def input_rows(node: Node, value: Tensor, weight_shape: tuple[int, ...], at: Tensor) -> Tensor:
    """Return what the layer multiplies at these places: `(rows, groups, fan_in)`, fan_in as in its weight."""
    if node.op == "linear":
        return value.reshape(-1, value.shape[-1])[at][:, None]
    conv = conv_args(node)
    kernel, sizes = weight_shape[2:], node.shape[2:]
    value = functional.pad(value, _padding(conv.padding, kernel, conv.dilation)).movedim(1, -1)
    example, *place = torch.unravel_index(at, (len(value), *sizes))
    start = [index * stride for index, stride in zip(place, conv.stride, strict=True)]
    taps = []
    for tap in product_of(*map(range, kernel)):
        steps = zip(start, tap, conv.dilation, strict=True)
        taps.append(value[(example, *(first + index * dilation for first, index, dilation in steps))])
    rows = torch.stack(taps, dim=-1)
    return rows.reshape(len(at), conv.groups, -1)


def _padding(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    """Return before and after of each spatial axis, the last axis first, as `functional.pad` takes them."""
    if padding == "valid":
        padding = (0,) * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [part for total in reversed(totals) for part in (total // 2, total - total // 2)]
    return [amount for amount in reversed(padding) for _ in range(2)]


def layer_rows(module: GraphModule, node: Node, value: Tensor, limit: int) -> Tensor:
    """Return what a layer multiplies at up to `limit` places of `value`: `(rows, groups, fan_in)`."""
    shape = tuple(weight_of(module, node).shape)
    return input_rows(node, value, shape, places(node, value, limit))


def weight_of(module: GraphModule, node: Node) -> Tensor:
    """Return the weight of a layer as the module keeps it."""
    return module.tensor_named(node.args[1].name)


def bias_tensor(module: GraphModule, node: Node) -> Tensor | None:
    """Return the bias of a layer; None where it has none that is a parameter."""
    bias = bias_of(node)
    return module.tensor_named(bias.name) if isinstance(bias, Param) else None


def matrices(weight: Tensor, groups: int) -> Tensor:
    """Return a layer's weight as `(groups, out, fan_in)`."""
    return weight.reshape(groups, len(weight) // groups, -1)


def product(rows: Tensor, matrices: Tensor) -> Tensor:
    """Return rows `(rows, groups, fan_in)` times matrices `(groups, out, fan_in)`: `(rows, groups · out)`."""
    return torch.einsum("rgi,goi->rgo", rows, matrices).reshape(len(rows), -1)


def layer_outputs(
    module: GraphModule,
    layers: Iterable[Node],
    images: Tensor,
    limit: int,
    *,
    weight: Callable[[GraphModule, Node], Tensor] = weight_of,
    means: bool = False,
) -> dict[str, Tensor]:
    """Return what these layers compute at up to `limit` sampled places: `{layer: (rows, channels)}`.

    `weight` gives the weight as a layer uses it. With `means` there is one row, the mean over the places.
    """
    wanted = {node.name for node in layers}
    found: dict[str, Tensor] = {}

    def record(node: Node, values: Values) -> None:
        if node.name in wanted:
            rows = layer_rows(module, node, values[node.inputs[0]].float(), limit)
            rows = rows.mean(0, keepdim=True) if means else rows
            bias = bias_tensor(module, node)
            outputs = product(rows, matrices(weight(module, node), groups_of(node)))
            found[node.name] = outputs if bias is None else outputs + bias

    visited(module, [images], record)
    return found


def batch_that_fits(*networks: Network) -> int:
    """Return how many examples the largest value of the networks leaves room for: 256 MiB of float32."""
    sizes = (
        4 * int(np.prod(node.shape))
        for network in networks
        for node in network.nodes
        if node.shape and not isinstance(node.shape[0], tuple)
    )
    return max(1, LARGEST_VALUE_BYTES // max(sizes, default=1))


@dataclass(frozen=True)
class Moments:
    """Of a layer's input rows: `second` is the mean of row · rowᵀ, `(groups, fan_in, fan_in)` float64."""

    second: NDArray[np.float64]
    rows: int


def collect_moments(
    module: GraphModule, layers: Iterable[Node], images: Iterable[Tensor], rows_a_batch: int = 4096
) -> dict[str, Moments]:
    """Return {layer: second moments of its inputs}, over the batches of images `(N, C, H, W)`, in eval mode.

    Raises ValueError without images.
    """
    wanted = {node.name: node for node in layers}
    network = module.source_network
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(wanted, 0)

    def add(node: Node, values: Values) -> None:
        if node.name not in wanted:
            return
        value = values[node.args[0].node]
        at = places(node, value, rows_a_batch)
        rows = input_rows(node, value, network.params[node.args[1].name].shape, at).permute(1, 0, 2)
        total = (rows.mT @ rows).double()
        totals[node.name] = totals[node.name] + total if node.name in totals else total
        counts[node.name] += len(at)

    visited(module, images, add)
    return {name: Moments((totals[name] / counts[name]).cpu().numpy(), counts[name]) for name in wanted}


def visited(module: GraphModule, images: Iterable[Tensor], visit: Callable[[Node, Values], None]) -> None:
    """Run the module in eval mode on every batch of images, with `visit` before each node."""
    before = module.training
    module.eval()
    seen = False
    try:
        with torch.no_grad():
            for batch in images:
                module.forward_visiting(batch, visit)
                seen = True
    finally:
        module.train(before)
    if not seen:
        raise ValueError("no images were given")
