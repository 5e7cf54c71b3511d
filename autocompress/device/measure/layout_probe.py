"""Finds out how a runtime lays out values: shows it two convolutions and reads what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from autocompress.cost.layouts import Layouts
from autocompress.device.runtimes.base import Runtime

_INTEGER_CONVOLUTION = "QLinearConv"


def detect_layouts(runtime: Runtime, threads: int) -> Layouts:
    """Return the layouts of a runtime on this machine; they depend on its vector instructions."""
    floats, integers = (runtime.optimized(model, threads) for model in probes().values())
    return layouts_of(floats, integers)


def probes() -> dict[str, bytes]:
    """Return the two convolutions, as ONNX models by name: in float, then in 8 bits."""
    models = {"probe_float": _float_convolution(), "probe_integer": _integer_convolution()}
    return {name: model.SerializeToString() for name, model in models.items()}


def layouts_of(floats: bytes, integers: bytes) -> Layouts:
    """Return the layouts of a runtime that made these models of the two of `probes`.

    A runtime that shows no models, both empty, reorders within its own operations, for all one can tell.
    """
    if not (floats and integers):
        return Layouts(0, False)
    import onnx

    last = any(
        node.op_type == _INTEGER_CONVOLUTION and node.domain not in ("", "ai.onnx")
        for node in onnx.load_from_string(integers).graph.node
    )
    return Layouts(_block(onnx.load_from_string(floats).graph), last)


def _block(graph: Any) -> int:
    """Return the size of a block: the weight of a convolution with one output channel is padded to a whole
    one."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and "nchwc" in node.domain:
            return int(sizes[node.input[1]][0])
    return 0


def _float_convolution() -> Any:
    weight = np.ones((1, 1, 3, 3), np.float32)
    return _model("Conv", ["x", "w"], {"w": weight}, 1)


def _integer_convolution() -> Any:
    scale, zero = np.float32(1), np.uint8(0)
    weight, offset = np.ones((1, 1, 3, 3), np.int8), np.int8(0)
    constants: dict[str, ArrayLike] = {"s": scale, "z": zero, "w": weight, "wz": offset}
    return _model(_INTEGER_CONVOLUTION, ["x", "s", "z", "w", "s", "wz", "s", "z"], constants, 2)


def _model(op: str, inputs: list[str], constants: Mapping[str, ArrayLike], kind: int) -> Any:
    """Return a model of one operator on images of 8 x 8; `kind` is the ONNX data type of its input."""
    from onnx import helper, numpy_helper

    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    x = helper.make_tensor_value_info("x", kind, (1, 1, 8, 8))
    y = helper.make_tensor_value_info("y", kind, (1, 1, 6, 6))
    graph = helper.make_graph([helper.make_node(op, inputs, ["y"])], "probe", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
