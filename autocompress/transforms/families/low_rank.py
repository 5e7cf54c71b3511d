"""Low rank: one layer becomes two or three narrow ones whose product is close to it.

| method | for | layers |
|---|---|---|
| `svd` | linear, 1×1 | 1×1 · 1×1 |
| `tucker2` | k×k | 1×1 · k×k · 1×1 |
| `spatial_svd` | k×k | k×1 · 1×k |
| `cp` | k×k | 1×1 · depthwise k×k · 1×1 |

`transforms.arrays.factors` has the arithmetic and the papers. Without moments the weight is what is kept
close, with them the layer's output on calibration data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.network import Network, Node, Shape, Weights
from autocompress.graph.operations import EMBEDDING, TRANSPOSED
from autocompress.graph.replace_layer import (
    ConvArgs,
    Link,
    conv_args,
    groups_of,
    output_axis,
    pointwise,
    replace_by_chain,
)
from autocompress.transforms.arrays import factors

FOR_KERNELS = ("tucker2", "spatial_svd", "cp")
"""Methods for kernels above 1×1, the default first."""


def dense_shape(network: Network, node: Node) -> Shape:
    """Return the shape of a layer's weight with its outputs first, whatever their axis is."""
    first, second, *kernel = network.params[node.params[0]].shape
    return (second, first, *kernel) if output_axis(node) else (first, second, *kernel)


def method_for(node: Node, weight_shape: Shape, wanted: str = "auto") -> str:
    """Return the method that `wanted` means at this layer, of this `dense_shape`: `auto` is svd for linear
    and 1×1 layers and tucker2 for larger kernels. Empty where it does not apply, as for grouped
    convolutions."""
    if groups_of(node) != 1:
        return ""
    fitting: tuple[str, ...] = ("svd",) if _is_matrix(weight_shape) else FOR_KERNELS
    if node.op in TRANSPOSED:
        fitting = fitting[:1]
    if len(weight_shape) != 4:
        fitting = tuple(method for method in fitting if method != "spatial_svd")
    if wanted == "auto":
        return fitting[0]
    return wanted if wanted in fitting else ""


def _is_matrix(weight_shape: Shape) -> bool:
    return len(weight_shape) == 2 or max(weight_shape[2:]) == 1


def ranks(weight_shape: Shape, keep: float, round_to: int = 1, method: str = "auto") -> tuple[int, ...]:
    """Return the ranks that a share means: `(r,)`, for Tucker-2 `(r_out, r_in)`.

    The full rank is min(out, in) for SVD, out and in for Tucker-2, and min(in·kh, out·kw) for spatial SVD;
    for CP, whose full rank nobody knows, the latter serves as well.
    """

    def rank(size: int) -> int:
        wanted = max(1, round(size * keep))
        return min(size, max(round_to, round(wanted / round_to) * round_to) if size > round_to else wanted)

    out, into, *kernel = weight_shape
    if _is_matrix(weight_shape):
        return (rank(min(out, into)),)
    if method in ("spatial_svd", "cp"):
        rows, columns = as_image(kernel)
        return (rank(min(into * rows, out * columns)),)
    return rank(out), rank(into)


def parameters(weight_shape: Shape, rank: tuple[int, ...], method: str = "auto") -> int:
    """Count the weights of the factors together."""
    return sum(int(np.prod(shape)) for shape in _factor_shapes(weight_shape, rank, method))


def _factor_shapes(weight_shape: Shape, rank: tuple[int, ...], method: str) -> tuple[Shape, ...]:
    out, into, *kernel = weight_shape
    ones = (1,) * len(kernel)
    if _is_matrix(weight_shape):
        return (rank[0], into, *kernel), (out, rank[0], *kernel)
    if method == "spatial_svd":
        return (rank[0], into, kernel[0], 1), (out, rank[0], 1, kernel[1])
    if method == "cp":
        return (rank[0], into, *ones), (rank[0], 1, *kernel), (out, rank[0], *ones)
    return (rank[1], into, *ones), (rank[0], rank[1], *kernel), (out, rank[0], *ones)


def as_image(kernel: Sequence[int]) -> tuple[int, int]:
    """Return height and width of a kernel as those of images; the last of three axes or more is the width."""
    return (kernel[0], 1) if len(kernel) == 1 else (int(np.prod(kernel[:-1])), kernel[-1])


def factorize(
    network: Network,
    weights: Weights | None,
    layer: str,
    keep: float,
    round_to: int = 1,
    method: str = "auto",
    second: NDArray[np.floating] | None = None,
) -> tuple[Network, Weights | None]:
    """Replace `layer` by factors with `keep` of its rank. A layer whose factors would not be smaller stays as
    it is.

    `second` are the second moments of the layer's input rows, `(fan_in, fan_in)`, for a decomposition that
    minds the data; CP does not read them. Raises ValueError where the method does not apply.
    """
    node = network.by_name[layer]
    name = node.params[0]
    shape = dense_shape(network, node)
    chosen = method_for(node, shape, method)
    if not chosen:
        grouped = groups_of(node) != 1
        why = "is a grouped convolution, which has no low-rank form here" if grouped else f"has no {method}"
        raise ValueError(f"{layer} {why}")
    rank = ranks(shape, keep, round_to, chosen)
    if parameters(shape, rank, chosen) >= int(np.prod(shape)):
        return network, weights
    shapes = _factor_shapes(shape, rank, chosen)
    values: Sequence[NDArray[np.floating] | None] = [None] * len(shapes)
    if weights is not None:
        dense = weights[name].swapaxes(0, output_axis(node))
        image = dense if len(shape) == 2 else dense.reshape(*shape[:2], *as_image(shape[2:]))
        values = _DECOMPOSE[chosen](image, rank, second)
    chain = [
        _link(suffix, factor, value, conv, is_table=node.op == EMBEDDING and suffix != "")
        for (suffix, conv), factor, value in zip(_forms(node, chosen, rank), shapes, values, strict=True)
    ]
    return replace_by_chain(network, weights, layer, chain)


def _link(
    suffix: str, shape: Shape, value: NDArray[np.floating] | None, conv: ConvArgs | None, *, is_table: bool
) -> Link:
    """Return one factor, which has its inputs first in a transposed convolution and in a table."""
    value = None if value is None else value.reshape(shape)
    if not is_table and (conv is None or not conv.output_padding):
        return Link(suffix, shape, value, conv)
    swapped = (shape[1], shape[0], *shape[2:])
    return Link(suffix, swapped, None if value is None else value.swapaxes(0, 1), conv)


Decompose = Callable[..., tuple[NDArray[np.floating], ...]]

_DECOMPOSE: dict[str, Decompose] = {
    "svd": lambda weight, rank, second: factors.svd(weight.reshape(weight.shape[:2]), rank[0], second),
    "tucker2": lambda weight, rank, second: factors.tucker2(weight, rank[0], rank[1], second),
    "spatial_svd": lambda weight, rank, second: factors.spatial_svd(weight, rank[0], second),
    "cp": lambda weight, rank, _second: factors.cp(weight, rank[0]),
}


def _forms(node: Node, method: str, rank: tuple[int, ...]) -> list[tuple[str, ConvArgs | None]]:
    """Return the suffix and convolution of each factor; stride, padding and dilation go where the kernel
    is."""
    if node.op in ("linear", EMBEDDING):
        return [("reduce", None), ("", None)]
    conv = conv_args(node)
    plain = pointwise(len(conv.stride))
    if method == "svd":
        return [("reduce", plain), ("", conv)] if conv.output_padding else [("reduce", conv), ("", plain)]
    if method == "spatial_svd":
        return [("reduce", _along(conv, 0)), ("", _along(conv, 1))]
    groups = rank[0] if method == "cp" else 1
    core = replace(conv, groups=groups)
    return [("reduce", plain), ("core", core), ("", plain)]


def _along(conv: ConvArgs, axis: int) -> ConvArgs:
    """Return the part of a convolution along one axis: stride, padding and dilation of the other are
    neutral."""

    def only(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
        return tuple(value if index == axis else neutral for index, value in enumerate(values))

    padding = conv.padding if isinstance(conv.padding, str) else only(conv.padding, 0)
    return ConvArgs(only(conv.stride, 1), padding, only(conv.dilation, 1), 1)
