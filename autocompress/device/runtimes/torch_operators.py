"""ONNX operators by torch calls: a function `(emit, attributes, *inputs) -> result` an operator.

An input is a value of the graph, or an array where it is a constant. Those that decide shapes are
always constants in what `export` writes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

Attributes = Mapping[str, Any]
Operator = Callable[..., Any]

OPERATORS: dict[str, Operator] = {}


def torch_for(*names: str) -> Callable[[Operator], Operator]:
    def register(function: Operator) -> Operator:
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"operator {name!r} has a translation already")
            OPERATORS[name] = function
        return function

    return register


def _same(function: Callable[..., Any]) -> Operator:
    return lambda emit, _attributes, *inputs: emit(function, *inputs)


def _with(function: Callable[..., Any], *defaults: tuple[str, Any]) -> Operator:
    """Return an operator of one input, with attributes as further arguments."""
    return lambda emit, attributes, x: emit(
        function, x, *(attributes.get(name, default) for name, default in defaults)
    )


_ALIKE: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Add": operator.add, "Cos": torch.cos, "Div": operator.truediv, "Erf": torch.erf,
    "And": torch.logical_and, "Equal": torch.eq, "Exp": torch.exp, "Floor": torch.floor,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "Not": torch.logical_not,
    "Or": torch.logical_or, "Xor": torch.logical_xor, "Greater": torch.gt, "HardSwish": functional.hardswish,
    "Log": torch.log, "MatMul": torch.matmul, "Mish": functional.mish, "Mul": operator.mul,
    "Neg": torch.neg, "Pow": torch.pow, "Reciprocal": torch.reciprocal, "Relu": torch.relu,
    "Round": torch.round, "Selu": functional.selu, "Sigmoid": torch.sigmoid, "Sin": torch.sin,
    "Softplus": functional.softplus, "Sqrt": torch.sqrt, "Sub": operator.sub,
    "Tanh": torch.tanh, "Where": torch.where,
}  # fmt: skip
OPERATORS.update({name: _same(function) for name, function in _ALIKE.items()})
OPERATORS.update(
    {
        "Elu": _with(functional.elu, ("alpha", 1.0)),
        "Celu": _with(functional.celu, ("alpha", 1.0)),
        "LeakyRelu": _with(functional.leaky_relu, ("alpha", 0.01)),
        "Softmax": _with(torch.softmax, ("axis", -1)),
        "LogSoftmax": _with(torch.log_softmax, ("axis", -1)),
        "DepthToSpace": _with(functional.pixel_shuffle, ("blocksize", 1)),
        "Identity": lambda _emit, _attributes, x: x,
        "Flatten": lambda emit, _attributes, x: emit(torch.flatten, x, 1),
    }
)


@torch_for("Conv")
def conv(emit: Any, attributes: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    rank = weight.ndim - 2
    pads = attributes.get("pads", [0] * 2 * rank)
    before, after = list(pads[:rank]), list(pads[rank:])
    if before != after:
        x, before = emit(functional.pad, x, torch_pads(before, after)), [0] * rank
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[rank]
    strides, dilations = (list(attributes.get(name, [1] * rank)) for name in ("strides", "dilations"))
    return emit(function, x, weight, bias, strides, before, dilations, attributes.get("group", 1))


@torch_for("ConvTranspose")
def transposed_conv(emit: Any, attributes: Attributes, x: Any, weight: Any, bias: Any = None) -> Any:
    rank = weight.ndim - 2
    functions = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
    function = functions[rank - 1]
    ones = [1] * rank
    strides, dilations = (list(attributes.get(name, ones)) for name in ("strides", "dilations"))
    pads, more = list(attributes.get("pads", [0] * 2 * rank)), attributes.get("output_padding", [0] * rank)
    groups = attributes.get("group", 1)
    return emit(function, x, weight, bias, strides, pads[:rank], list(more), groups, dilations)


def torch_pads(before: list[int], after: list[int]) -> list[int]:
    """Return paddings as torch wants them: pairs, those of the last axis first."""
    return [size for pair in zip(before[::-1], after[::-1], strict=True) for size in pair]


@torch_for("Gemm")
def gemm(emit: Any, attributes: Attributes, a: Any, b: Any, c: Any = None) -> Any:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if attributes.get("transB") and alpha == beta == 1:
        return emit(functional.linear, a, b, c)
    b = b if not attributes.get("transB") else emit(torch.t, b)
    return emit(torch.addmm, c, a, b, alpha=alpha, beta=beta)


@torch_for("Clip")
def clip(emit: Any, _attributes: Attributes, x: Any, least: Any = None, most: Any = None) -> Any:
    return emit(torch.clamp, x, least, most)


def _extreme(function: Callable[..., Any], bound: str) -> Operator:
    def translate(emit: Any, _attributes: Attributes, a: Any, b: Any) -> Any:
        for value, other in ((a, b), (b, a)):
            if isinstance(other, np.ndarray) and other.ndim == 0:
                return emit(torch.clamp, value, **{bound: other})
        return emit(function, a, b)

    return translate


OPERATORS.update({"Max": _extreme(torch.maximum, "min"), "Min": _extreme(torch.minimum, "max")})


_TYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
          9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}  # fmt: skip


@torch_for("Cast")
def cast(emit: Any, attributes: Attributes, x: Any) -> Any:
    return emit(torch.ops.aten.to.dtype, x, _TYPES[attributes["to"]])


@torch_for("HardSigmoid")
def hard_sigmoid(emit: Any, attributes: Attributes, x: Any) -> Any:
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return emit(functional.hardsigmoid, x)
    return emit(torch.clamp, emit(operator.add, emit(operator.mul, x, alpha), beta), 0.0, 1.0)


@torch_for("Gelu")
def gelu(emit: Any, attributes: Attributes, x: Any) -> Any:
    return emit(functional.gelu, x, approximate=attributes.get("approximate", b"none").decode())


@torch_for("PRelu")
def prelu(emit: Any, _attributes: Attributes, x: Any, slope: Any) -> Any:
    return emit(torch.prelu, x, slope.reshape(-1))


@torch_for("BatchNormalization")
def batch_norm(
    emit: Any, attributes: Attributes, x: Any, scale: Any, bias: Any, mean: Any, variance: Any
) -> Any:
    epsilon = attributes.get("epsilon", 1e-5)
    return emit(functional.batch_norm, x, mean, variance, scale, bias, False, 0.0, epsilon)


@torch_for("InstanceNormalization")
def instance_norm(emit: Any, attributes: Attributes, x: Any, scale: Any, bias: Any) -> Any:
    return emit(functional.instance_norm, x, None, None, scale, bias, eps=attributes.get("epsilon", 1e-5))


@torch_for("LayerNormalization")
def layer_norm(emit: Any, attributes: Attributes, x: Any, scale: Any, bias: Any = None) -> Any:
    return emit(functional.layer_norm, x, list(scale.shape), scale, bias, attributes.get("epsilon", 1e-5))


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
}  # fmt: skip


def _reduction(function: Callable[..., Any]) -> Operator:
    def translate(emit: Any, attributes: Attributes, x: Any, axes: Any) -> Any:
        return emit(function, x, axes.tolist(), bool(attributes.get("keepdims", 1)))

    return translate


def _norm(order: int) -> Operator:
    def translate(emit: Any, attributes: Attributes, x: Any, axes: Any) -> Any:
        keep = bool(attributes.get("keepdims", 1))
        return emit(torch.linalg.vector_norm, x, order, axes.tolist(), keep)

    return translate


OPERATORS.update({name: _reduction(function) for name, function in _REDUCTIONS.items()})
OPERATORS.update({"ReduceL1": _norm(1), "ReduceL2": _norm(2)})
