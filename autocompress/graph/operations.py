"""The ATen operations a traced network may contain, and how each treats the axes of its input.

The list is closed on purpose: a student folder from a stranger can name only these, all of which
are pure functions of tensors, and a teacher that uses another one is refused with its name. `binarize`
is our own; only students have it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

from autocompress.graph.network import BINARIZE

POINTWISE = frozenset(
    """relu relu6 hardtanh hardswish hardsigmoid silu gelu sigmoid tanh elu leaky_relu mish softplus
    log_sigmoid exp log sqrt rsqrt neg abs square reciprocal erf sin cos clamp clamp_min clamp_max
    pow.Tensor_Scalar selu celu prelu floor round to.dtype dropout binarize""".split()
)
"""One input; every element of the output depends on the element at the same place."""

BINARY = frozenset(
    """add.Tensor sub.Tensor mul.Tensor div.Tensor maximum minimum add.Scalar mul.Scalar sub.Scalar
    div.Scalar rsub.Scalar pow.Tensor_Tensor where.self""".split()
)
"""Elementwise over inputs that are broadcast to one shape."""

POOLING = frozenset(
    """adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d max_pool2d max_pool2d_with_indices
    upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec upsample_nearest2d
    upsample_bilinear2d adaptive_avg_pool1d avg_pool1d max_pool1d""".split()
)
"""Works on the last axes, each channel by itself; axis 1 is kept as it is."""

REDUCTION = frozenset("mean.dim sum.dim_IntList amax amin mean var.correction norm.ScalarOpt_dim".split())

RESHAPE = frozenset("view reshape flatten.using_ints unflatten.int _unsafe_view".split())

OTHERS = frozenset(
    """conv2d conv2d.padding conv1d linear batch_norm layer_norm group_norm instance_norm rms_norm matmul
    bmm addmm scaled_dot_product_attention softmax.int _softmax log_softmax.int permute transpose.int t
    unsqueeze squeeze squeeze.dim squeeze.dims expand slice.Tensor select.int split.Tensor
    split_with_sizes chunk unbind.int div.Tensor_mode pow.Scalar outer reshape_as view_as max.dim
    min.dim arange.start arange.start_step ones_like zeros_like full_like scalar_tensor cat stack pad
    constant_pad_nd pixel_shuffle pixel_unshuffle channel_shuffle roll flip repeat index.Tensor
    index_select getitem sym_size.int einsum movedim.int movedim.intlist full zeros ones arange type_as
    expand_as cumsum linalg_vector_norm normalize operator.mul operator.floordiv operator.add
    operator.sub im2col col2im masked_fill.Scalar conv_transpose2d.input local_response_norm topk argmax
    embedding tile repeat_interleave.self_int bitwise_not logical_not eq.Scalar ne.Scalar gt.Scalar
    lt.Scalar ge.Scalar le.Scalar""".split()
)

KNOWN = POINTWISE | BINARY | POOLING | REDUCTION | RESHAPE | OTHERS

SILENT = frozenset(
    """contiguous detach detach_ clone alias lift_fresh_copy dropout dropout_ feature_dropout alpha_dropout
    feature_alpha_dropout _assert_tensor_metadata _assert_scalar""".split()
)
"""Operations that change nothing at inference; the trace leaves them out."""


@cache
def implementation(op: str) -> Callable[..., Any]:
    """The function that computes `op`. Raises KeyError for a name outside the list."""
    if op not in KNOWN:
        raise KeyError(op)
    if op == "getitem":
        return operator.getitem
    if op.startswith("operator."):
        return {"mul": operator.mul, "floordiv": operator.floordiv, "add": operator.add, "sub": operator.sub}[
            op.removeprefix("operator.")
        ]
    if op == BINARIZE:
        from autocompress.graph.straight_through import binarized

        return binarized
    import torch

    name, _, overload = op.partition(".")
    return getattr(getattr(torch.ops.aten, name), overload or "default")


_DTYPE_PREFIX = "dtype:"


def dtype_name(dtype: Any) -> str:
    """How a network writes a torch dtype that is an argument of an operation."""
    return _DTYPE_PREFIX + str(dtype).removeprefix("torch.")


def dtype_named(text: str) -> Any:
    """The torch dtype that `dtype_name` wrote, or the text itself if it is no dtype. Raises KeyError."""
    if not text.startswith(_DTYPE_PREFIX):
        return text
    import torch

    name = text.removeprefix(_DTYPE_PREFIX)
    if name not in {"float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"}:
        raise KeyError(text)
    return getattr(torch, name)
