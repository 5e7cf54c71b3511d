"""Exporters of operations that treat every element by itself: activations and arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from autocompress.export.onnx_registry import Tensor, exports, not_expressible
from autocompress.graph.network import BINARIZE, Node
from autocompress.graph.operators import DTYPE_PREFIX

if TYPE_CHECKING:
    from autocompress.export.onnx import Emitter

_UNARY = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "neg": "Neg",
    "abs": "Abs",
    "reciprocal": "Reciprocal",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "floor": "Floor",
    "round": "Round",
    "hardswish": "HardSwish",
    "mish": "Mish",
    "selu": "Selu",
}


@exports(*_UNARY)
def unary(e: Emitter, node: Node, x: Tensor) -> str:
    return e.op(_UNARY[node.op], x.name, name=node.name)


@exports("relu6")
def relu6(e: Emitter, node: Node, x: Tensor) -> str:
    return clamp(e, node, x, 0.0, 6.0)


@exports("hardtanh")
def hardtanh(e: Emitter, node: Node, x: Tensor, least: float = -1.0, most: float = 1.0) -> str:
    return clamp(e, node, x, least, most)


@exports("clamp", "clamp_min", "clamp_max")
def clamp(e: Emitter, node: Node, x: Tensor, min: float | None = None, max: float | None = None) -> str:
    if node.op == "clamp_max":
        min, max = None, min if max is None else max
    bounds = ["" if bound is None else e.name(float(bound)) for bound in (min, max)]
    return e.op("Clip", x.name, *(bounds if bounds[1] else bounds[:1]), name=node.name)


@exports(BINARIZE)
def binarize(e: Emitter, node: Node, x: Tensor, step: Any) -> str | Tensor:
    """Write the step function; quantized, it is what rounding to 0 or 1 times the step leaves of a value
    between 0 and the step."""
    if node.quantizer is not None:
        return clamp(e, node, x, 0.0, float(step[0]))
    above = e.op("Greater", x.name, e.name(float(step[0]) / 2), name=f"{node.name}/above")
    return e.op("Where", above, e.name(float(step[0])), e.name(0.0), name=node.name)


@exports("hardsigmoid")
def hardsigmoid(e: Emitter, node: Node, x: Tensor) -> str:
    return e.op("HardSigmoid", x.name, name=node.name, alpha=1 / 6, beta=0.5)


@exports("silu")
def silu(e: Emitter, node: Node, x: Tensor) -> str:
    return e.op("Mul", x.name, e.op("Sigmoid", x.name, name=f"{node.name}/sigmoid"), name=node.name)


@exports("gelu")
def gelu(e: Emitter, node: Node, x: Tensor, *, approximate: str = "none") -> str:
    return e.op("Gelu", x.name, name=node.name, approximate=approximate)


@exports("elu")
def elu(e: Emitter, node: Node, x: Tensor, alpha: float = 1.0) -> str:
    return e.op("Elu", x.name, name=node.name, alpha=float(alpha))


@exports("celu")
def celu(e: Emitter, node: Node, x: Tensor, alpha: float = 1.0) -> str:
    return e.op("Celu", x.name, name=node.name, alpha=float(alpha))


@exports("leaky_relu")
def leaky_relu(e: Emitter, node: Node, x: Tensor, slope: float = 0.01) -> str:
    return e.op("LeakyRelu", x.name, name=node.name, alpha=float(slope))


@exports("prelu")
def prelu(e: Emitter, node: Node, x: Tensor, slope: Any) -> str:
    column = slope if slope.size == 1 else slope.reshape(-1, *(1,) * (len(x.shape) - 2))
    return e.op("PRelu", x.name, e.name(column), name=node.name)


@exports("softplus")
def softplus(e: Emitter, node: Node, x: Tensor, beta: float = 1, threshold: float = 20) -> str:
    if beta != 1 or threshold < 20:
        raise not_expressible(node, "Softplus exists for beta = 1 and without a lower threshold")
    return e.op("Softplus", x.name, name=node.name)


@exports("log_sigmoid")
def log_sigmoid(e: Emitter, node: Node, x: Tensor) -> str:
    return e.op("Log", e.op("Sigmoid", x.name, name=f"{node.name}/sigmoid"), name=node.name)


@exports("square")
def square(e: Emitter, node: Node, x: Tensor) -> str:
    return e.op("Mul", x.name, x.name, name=node.name)


@exports("rsqrt")
def rsqrt(e: Emitter, node: Node, x: Tensor) -> str:
    return e.op("Reciprocal", e.op("Sqrt", x.name, name=f"{node.name}/sqrt"), name=node.name)


_BINARY = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "maximum": "Max",
    "minimum": "Min",
    "pow": "Pow",
}


@exports(
    "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "maximum", "minimum", "add.Scalar", "sub.Scalar",
    "mul.Scalar", "div.Scalar", "pow.Tensor_Tensor", "pow.Tensor_Scalar",
)  # fmt: skip
def binary(e: Emitter, node: Node, a: Any, b: Any, alpha: float = 1) -> str:
    right = e.name(_as_float(b))
    if alpha != 1:
        right = e.op("Mul", right, e.name(float(alpha)), name=f"{node.name}/alpha")
    return e.op(_BINARY[node.op.partition(".")[0]], e.name(_as_float(a)), right, name=node.name)


def _as_float(value: Any) -> Any:
    """Return constants as floats: ONNX does not mix types, and the other operand is a float tensor."""
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" else value


@exports("rsub.Scalar")
def rsub(e: Emitter, node: Node, a: Any, b: Any, alpha: float = 1) -> str:
    return binary(e, Node(node.name, "sub.Tensor", (), node.shape), b, a, alpha)


@exports("where.self")
def where(e: Emitter, node: Node, condition: Any, a: Any, b: Any) -> str:
    return e.op("Where", e.name(condition), e.name(a), e.name(b), name=node.name)


_COMPARISONS = {"gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual", "eq": "Equal"}
_LOGIC = {"and": "And", "or": "Or", "xor": "Xor"}


@exports(
    "eq.Scalar", "ne.Scalar", "gt.Scalar", "lt.Scalar", "ge.Scalar", "le.Scalar", "eq.Tensor", "ne.Tensor",
    "gt.Tensor", "lt.Tensor", "ge.Tensor", "le.Tensor",
)  # fmt: skip
def comparison(e: Emitter, node: Node, a: Any, b: Any) -> str:
    kind = node.op.partition(".")[0]
    names = (e.name(_as_float(a)), e.name(_as_float(b)))
    if kind == "ne":
        return e.op("Not", e.op("Equal", *names, name=f"{node.name}/equal"), name=node.name)
    return e.op(_COMPARISONS[kind], *names, name=node.name)


@exports(
    "logical_and", "logical_or", "logical_xor", "bitwise_and.Tensor", "bitwise_or.Tensor",
    "bitwise_xor.Tensor", "__and__.Tensor", "__or__.Tensor",
)  # fmt: skip
def logic(e: Emitter, node: Node, a: Any, b: Any) -> str:
    kind = node.op.partition(".")[0].strip("_").rpartition("_")[2]
    return e.op(_LOGIC[kind], e.name(a), e.name(b), name=node.name)


@exports("logical_not", "bitwise_not")
def negation(e: Emitter, node: Node, x: Tensor) -> str:
    return e.op("Not", x.name, name=node.name)


_ONNX_TYPES = {
    "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16, "int64": TensorProto.INT64, "int32": TensorProto.INT32,
    "int16": TensorProto.INT16, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}  # fmt: skip


@exports("to.dtype")
def cast(e: Emitter, node: Node, x: Tensor, dtype: str, *_: Any) -> str:
    kind = dtype.removeprefix(DTYPE_PREFIX)
    if kind not in _ONNX_TYPES:
        raise not_expressible(node, f"ONNX has no {kind}")
    return e.op("Cast", x.name, name=node.name, to=_ONNX_TYPES[kind])


@exports("masked_fill.Scalar")
def masked_fill(e: Emitter, node: Node, x: Tensor, mask: Any, value: float) -> str:
    return e.op("Where", e.name(mask), e.name(float(value)), x.name, name=node.name)
