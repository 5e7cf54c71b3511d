"""Exporters of operations that combine elements: layers, normalizations, pooling, attention.

Each function has the parameters of its ATen operation and writes the form that ONNX Runtime fuses
best. All constants are float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autocompress.export.onnx_registry import Attributes, Tensor, exports, not_expressible
from autocompress.graph.network import Node

if TYPE_CHECKING:
    from autocompress.export.onnx import Emitter

Pair = int | Sequence[int]


def pair(value: Pair, rank: int = 2) -> tuple[int, ...]:
    """Return one number for each spatial axis."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


@exports("conv1d", "conv1d.padding", "conv2d", "conv2d.padding", "conv3d", "conv3d.padding")
def conv(
    e: Emitter,
    node: Node,
    x: Tensor,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> str:
    kernel = tuple(weight.shape[2:])
    rank = len(kernel)
    dilations = pair(dilation, rank)
    attributes = {"kernel_shape": kernel, "pads": _pads(padding, kernel, dilations), "group": groups}
    attributes |= {"strides": pair(stride, rank), "dilations": dilations}
    inputs = e.layer_inputs(node, x, weight, bias)
    result = e.op("Conv", *inputs, name=node.name, **_without_defaults(attributes))
    return e.kept_in_float(node, x, result)


@exports("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input")
def transposed_conv(
    e: Emitter,
    node: Node,
    x: Tensor,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> str:
    kernel = tuple(weight.shape[2:])
    rank = len(kernel)
    attributes = {"kernel_shape": kernel, "pads": _pads(padding, kernel, ()), "group": groups}
    attributes |= {"strides": pair(stride, rank), "dilations": pair(dilation, rank)}
    if any(pair(output_padding, rank)):
        attributes["output_padding"] = pair(output_padding, rank)
    inputs = [e.name(part) for part in (x, weight, bias) if part is not None]
    result = e.op("ConvTranspose", *inputs, name=node.name, **_without_defaults(attributes))
    return e.kept_in_float(node, x, result)


def _pads(padding: Pair | str, kernel: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    if padding == "valid":
        return (0,) * (2 * len(kernel))
    if isinstance(padding, str):
        totals = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        return (*(total // 2 for total in totals), *(total - total // 2 for total in totals))
    return pair(padding, len(kernel)) * 2


def _without_defaults(attributes: Attributes) -> Attributes:
    """Leave out what ONNX assumes anyway, for a smaller file."""
    return {
        key: value
        for key, value in attributes.items()
        if not (key in ("strides", "dilations") and set(value) == {1})
        and not (key == "pads" and set(value) == {0})
        and not (key == "group" and value == 1)
    }


@exports("linear")
def linear(e: Emitter, node: Node, x: Tensor, weight: Any, bias: Any = None) -> str | Tensor:
    if len(x.shape) == 2:
        product = e.op("Gemm", *e.layer_inputs(node, x, weight, bias), name=node.name, transB=1)
        return e.kept_in_float(node, x, product)
    if e.in_int8(node):
        return _linear_on_rows(e, node, x, weight, bias)
    product = e.op("MatMul", x.name, e.name(np.ascontiguousarray(weight.T)), name=node.name)
    if bias is None:
        return e.kept_in_float(node, x, product)
    return e.op("Add", product, e.name(bias), name=f"{node.name}/bias")


def _linear_on_rows(e: Emitter, node: Node, x: Tensor, weight: Any, bias: Any) -> Tensor:
    """Write a Gemm over rows: runtimes have an integer Gemm with bias, but no integer MatMul with one.

    A quantizer of the result belongs between the Gemm and the reshape, where it fuses.
    """
    rows = e.reshape_real(x, (-1, x.shape[-1]), f"{node.name}/rows")
    product = e.op("Gemm", *e.layer_inputs(node, rows, weight, bias), name=node.name, transB=1)
    result = e.quantized(node.name, Tensor(product, node.shape), node.quantizer)
    sizes = e.ints(*e.sizes(node.shape))
    return replace(result, name=e.op("Reshape", result.name, sizes, name=f"{node.name}/shape"))


@exports("matmul", "bmm")
def matmul(e: Emitter, node: Node, a: Any, b: Any) -> str:
    return e.op("MatMul", e.name(a), e.name(b), name=node.name)


@exports("einsum")
def einsum(e: Emitter, node: Node, equation: str, operands: Sequence[Any], *_: Any) -> str:
    return e.op("Einsum", *(e.name(one) for one in operands), name=node.name, equation=equation)


@exports("addmm")
def addmm(e: Emitter, node: Node, bias: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> str:
    inputs = (e.name(a), e.name(b), e.name(bias))
    return e.op("Gemm", *inputs, name=node.name, alpha=float(alpha), beta=float(beta))


@exports("scaled_dot_product_attention")
def attention(
    e: Emitter,
    node: Node,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str:
    if is_causal or enable_gqa or dropout_p:
        raise not_expressible(node, "causal and grouped-query attention have no exporter")
    rank = len(k.shape)
    order = (*range(rank - 2), rank - 1, rank - 2)
    keys = e.op("Transpose", k.name, name=f"{node.name}/keys", perm=order)
    logits = e.op("MatMul", q.name, keys, name=f"{node.name}/logits")
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    logits = e.op("Mul", logits, e.name(float(factor)), name=f"{node.name}/scale")
    if attn_mask is not None:
        logits = e.op("Add", logits, e.name(_additive(attn_mask)), name=f"{node.name}/mask")
    shares = e.op("Softmax", logits, name=f"{node.name}/softmax", axis=-1)
    return e.op("MatMul", shares, v.name, name=node.name)


def _additive(mask: Any) -> Any:
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
        return np.where(mask, np.float32(0), np.float32(-np.inf))
    return mask


@exports("batch_norm")
def batch_norm(
    e: Emitter,
    node: Node,
    x: Tensor,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    _training: bool = False,
    _momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> str:
    ones, zeros = np.ones_like(var), np.zeros_like(mean)
    scale_and_bias = (ones if weight is None else weight, zeros if bias is None else bias)
    inputs = [e.name(part) for part in (*scale_and_bias, mean, var)]
    return e.op("BatchNormalization", x.name, *inputs, name=node.name, epsilon=float(eps))


@exports("layer_norm")
def layer_norm(
    e: Emitter,
    node: Node,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> str:
    scale = np.ones(tuple(normalized_shape), np.float32) if weight is None else weight
    inputs = [e.name(part) for part in (x, scale, bias) if part is not None]
    axis = -len(normalized_shape)
    return e.op("LayerNormalization", *inputs, name=node.name, axis=axis, epsilon=float(eps))


@exports("rms_norm")
def rms_norm(
    e: Emitter, node: Node, x: Tensor, shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> str:
    axes = e.ints(*range(-len(shape), 0))
    square = e.op("Pow", x.name, e.name(2.0), name=f"{node.name}/square")
    mean = e.op("ReduceMean", square, axes, name=f"{node.name}/mean", keepdims=1)
    least = float(np.finfo(np.float32).eps) if eps is None else float(eps)
    root = e.op("Sqrt", e.op("Add", mean, e.name(least), name=f"{node.name}/eps"), name=f"{node.name}/root")
    if weight is None:
        return e.op("Div", x.name, root, name=node.name)
    return e.op("Mul", e.op("Div", x.name, root, name=f"{node.name}/div"), e.name(weight), name=node.name)


@exports("group_norm")
def group_norm(
    e: Emitter,
    node: Node,
    x: Tensor,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> str:
    """Take statistics by InstanceNormalization over (N, groups, rest); runtimes run it as one kernel."""
    channels = x.shape[1]
    rows = e.op("Reshape", x.name, e.ints(0, groups, -1), name=f"{node.name}/groups")
    ones, zeros = e.name(np.ones(groups, np.float32)), e.name(np.zeros(groups, np.float32))
    rows = e.op("InstanceNormalization", rows, ones, zeros, name=node.name, epsilon=float(eps))
    result = e.op("Reshape", rows, e.ints(*e.sizes(x.shape)), name=f"{node.name}/shape")
    column = (channels, *(1,) * (len(x.shape) - 2))
    if weight is not None:
        result = e.op("Mul", result, e.name(weight.reshape(column)), name=f"{node.name}/scale")
    if bias is not None:
        result = e.op("Add", result, e.name(bias.reshape(column)), name=f"{node.name}/bias")
    return result


@exports("softmax.int", "_softmax", "log_softmax.int")
def softmax(e: Emitter, node: Node, x: Tensor, dim: int, *_: Any) -> str:
    kind = "LogSoftmax" if node.op.startswith("log") else "Softmax"
    return e.op(kind, x.name, name=node.name, axis=dim)


_REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin"}


@exports("mean", "mean.dim", "sum.dim_IntList", "amax", "amin")
def reduction(
    e: Emitter, node: Node, x: Tensor, dim: Pair | None = None, keepdim: bool = False
) -> str | Tensor:
    rank = len(x.shape)
    axes = sorted(axis % rank for axis in (range(rank) if dim is None or dim == () else pair(dim, 1)))
    if node.op == "mean.dim" and rank > 2 and axes == list(range(2, rank)):
        return _global_mean(e, node, x, keepdim)
    kind = _REDUCTIONS[node.op.partition(".")[0]]
    return e.op(kind, x.name, e.ints(*axes), name=node.name, keepdims=int(keepdim))


def _global_mean(e: Emitter, node: Node, x: Tensor, keepdim: bool) -> Tensor:
    pooled = Tensor(e.op("GlobalAveragePool", x.name, name=node.name), node.shape)
    pooled = e.quantized(node.name, pooled, node.quantizer)
    if keepdim:
        return pooled
    return replace(pooled, name=e.op("Flatten", pooled.name, name=f"{node.name}/shape", axis=1))


@exports("norm.ScalarOpt_dim", "linalg_vector_norm")
def norm(e: Emitter, node: Node, x: Tensor, p: float = 2, dim: Pair = (), keepdim: bool = False) -> str:
    kind = {1: "ReduceL1", 2: "ReduceL2"}.get(int(p))
    if kind is None:
        raise not_expressible(node, "only the L1 and L2 norms have an exporter")
    return e.op(kind, x.name, e.ints(*pair(dim, 1)), name=node.name, keepdims=int(keepdim))


@exports("var.correction")
def variance(
    e: Emitter, node: Node, x: Tensor, dim: Pair, *, correction: float = 1, keepdim: bool = False
) -> str:
    axes = pair(dim, 1)
    mean = e.op("ReduceMean", x.name, e.ints(*axes), name=f"{node.name}/mean", keepdims=1)
    centred = e.op("Sub", x.name, mean, name=f"{node.name}/centred")
    squares = e.op("Mul", centred, centred, name=f"{node.name}/square")
    total = e.op("ReduceSum", squares, e.ints(*axes), name=f"{node.name}/sum", keepdims=int(keepdim))
    count = math.prod(x.shape[axis] for axis in axes) - correction
    return e.op("Mul", total, e.name(1 / count), name=node.name)


@exports("adaptive_avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool3d", "adaptive_max_pool2d")
def adaptive_pool(e: Emitter, node: Node, x: Tensor, output_size: Pair) -> Any:
    kind = "MaxPool" if "max" in node.op else "AveragePool"
    _refuse_indices(e, node)
    spatial = x.shape[2:]
    sizes = pair(output_size, len(spatial))
    if set(sizes) == {1}:
        result = e.op(f"Global{kind}", x.name, name=node.name)
    elif tuple(sizes) == tuple(spatial):
        result = e.op("Identity", x.name, name=node.name)
    elif any(size % out for size, out in zip(spatial, sizes, strict=True)):
        if len(sizes) > 2:
            raise not_expressible(node, f"its input of {spatial} is no multiple of its output of {sizes}")
        result = (_largest_unevenly if kind == "MaxPool" else _averaged_unevenly)(e, node, x, sizes)
    else:
        kernel = [size // out for size, out in zip(spatial, sizes, strict=True)]
        result = e.op(kind, x.name, name=node.name, kernel_shape=kernel, strides=kernel)
    return [result] if kind == "MaxPool" else result


def _averaged_unevenly(e: Emitter, node: Node, x: Tensor, sizes: Sequence[int]) -> str:
    """Write averages over windows of several sizes as products with a matrix of shares, one for each axis."""
    shares = [_shares(size, out) for size, out in zip(x.shape[2:], sizes, strict=True)]
    if len(shares) == 1:
        return e.op("MatMul", x.name, e.name(np.ascontiguousarray(shares[0].T)), name=node.name)
    rows = e.op("MatMul", e.name(shares[0]), x.name, name=f"{node.name}/rows")
    return e.op("MatMul", rows, e.name(np.ascontiguousarray(shares[1].T)), name=node.name)


def _largest_unevenly(e: Emitter, node: Node, x: Tensor, sizes: Sequence[int]) -> str:
    """Write maxima over windows of several sizes, one axis after the other."""
    result = x.name
    for axis, (size, out) in enumerate(zip(x.shape[2:], sizes, strict=True), start=2):
        parts = []
        for start, end in _windows(size, out):
            bounds = (e.ints(start), e.ints(end), e.ints(axis))
            part = e.op("Slice", result, *bounds, name=f"{node.name}/window")
            parts.append(e.op("ReduceMax", part, e.ints(axis), name=f"{node.name}/largest", keepdims=1))
        last = axis == len(x.shape) - 1
        result = e.op("Concat", *parts, name=node.name if last else f"{node.name}/rows", axis=axis)
    return result


def _refuse_indices(e: Emitter, node: Node) -> None:
    """Raise NotExpressibleError where the places of the maxima are read too."""
    users = [e.network.by_name[name] for name in e.network.users[node.name]]
    if any(user.op == "getitem" and user.args[1] == 1 for user in users):
        raise not_expressible(node, "the places of the maxima have no exporter")


def _windows(size: int, out: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) of the windows that torch pools so many positions over."""
    for index in range(out):
        yield index * size // out, -(-(index + 1) * size // out)


def _shares(size: int, out: int) -> NDArray[np.float32]:
    """Return `(out, size)`: how much each position counts in each of the windows that torch averages over."""
    shares = np.zeros((out, size), np.float32)
    for index, (start, end) in enumerate(_windows(size, out)):
        shares[index, start:end] = 1 / (end - start)
    return shares


@exports("avg_pool2d", "avg_pool1d", "avg_pool3d")
def avg_pool(
    e: Emitter,
    node: Node,
    x: Tensor,
    kernel_size: Pair,
    stride: Pair = (),
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> str:
    if divisor_override is not None:
        raise not_expressible(node, "ONNX has no divisor_override")
    if tuple(pair(kernel_size, len(x.shape) - 2)) == tuple(x.shape[2:]) and set(pair(padding)) == {0}:
        return e.op("GlobalAveragePool", x.name, name=node.name)
    attributes = _pool_attributes(x, kernel_size, stride, padding, ceil_mode)
    if "pads" in attributes or ceil_mode:
        attributes["count_include_pad"] = int(count_include_pad)
    return e.op("AveragePool", x.name, name=node.name, **attributes)


@exports("max_pool2d", "max_pool1d", "max_pool3d", "max_pool2d_with_indices")
def max_pool(
    e: Emitter,
    node: Node,
    x: Tensor,
    kernel_size: Pair,
    stride: Pair = (),
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Any:
    _refuse_indices(e, node)
    attributes = _pool_attributes(x, kernel_size, stride, padding, ceil_mode)
    attributes |= _without_defaults({"dilations": pair(dilation, len(x.shape) - 2)})
    result = e.op("MaxPool", x.name, name=node.name, **attributes)
    return [result] if node.op.endswith("indices") else result


def _pool_attributes(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool) -> Attributes:
    rank = len(x.shape) - 2
    kernel = pair(kernel, rank)
    strides = pair(stride, rank) if stride not in ((), None) else kernel
    attributes: Attributes = {"kernel_shape": kernel, "strides": strides, "pads": pair(padding, rank) * 2}
    if ceil_mode:
        attributes["ceil_mode"] = 1
    return _without_defaults(attributes)


@exports(
    "upsample_nearest2d.vec", "upsample_bilinear2d.vec", "upsample_bicubic2d.vec", "upsample_nearest2d",
    "upsample_bilinear2d", "upsample_nearest1d", "upsample_nearest1d.vec", "upsample_linear1d",
    "upsample_linear1d.vec", "upsample_nearest3d", "upsample_nearest3d.vec", "upsample_trilinear3d",
    "upsample_trilinear3d.vec",
)  # fmt: skip
def upsample(e: Emitter, node: Node, x: Tensor, *args: Any, **kwargs: Any) -> str:
    nearest = "nearest" in node.op
    align_corners = not nearest and bool(kwargs.get("align_corners", args[1] if len(args) > 1 else False))
    mode = "nearest" if nearest else ("cubic" if "cubic" in node.op else "linear")
    transform = "asymmetric" if nearest else ("align_corners" if align_corners else "half_pixel")
    attributes: Attributes = {"mode": mode, "coordinate_transformation_mode": transform}
    if nearest:
        attributes["nearest_mode"] = "floor"
    elif mode == "cubic":
        attributes["cubic_coeff_a"] = -0.75
    sizes = e.ints(*e.sizes(node.shape))
    return e.op("Resize", x.name, "", "", sizes, name=node.name, **attributes)
