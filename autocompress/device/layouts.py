"""Finds out how a runtime lays out values: shows it two convolutions and reads what it makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from autocompress.device.runtimes import Runtime
from autocompress.runtime_layouts import Layouts

_INTEGER_CONVOLUTION = "QLinearConv"


def detect_layouts(runtime: Runtime, threads: int) -> Layouts:
    """The layouts of a runtime on this machine; they depend on its vector instructions.

    A runtime that does not show its graph reorders within its own operations, for all one can tell.
    """
    floats = _optimized(runtime, _float_convolution(), threads)
    if floats is None:
        return Layouts(0, False)
    integers = _optimized(runtime, _integer_convolution(), threads)
    last = any(
        node.op_type == _INTEGER_CONVOLUTION and node.domain not in ("", "ai.onnx") for node in integers.node
    )
    return Layouts(_block(floats), last)


def _block(graph: Any) -> int:
    """The weight of a convolution with one output channel is padded to a whole block."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and "nchwc" in node.domain:
            return int(sizes[node.input[1]][0])
    return 0


def _optimized(runtime: Runtime, model: Any, threads: int) -> Any:
    """The graph that the runtime makes of a model, None if it does not show it."""
    import onnx

    optimized = runtime.optimized(model.SerializeToString(), threads)
    return onnx.load_from_string(optimized).graph if optimized else None


def _float_convolution() -> Any:
    weight = np.ones((1, 1, 3, 3), np.float32)
    return _model("Conv", ["x", "w"], {"w": weight}, 1)


def _integer_convolution() -> Any:
    scale, zero = np.float32(1), np.uint8(0)
    constants = {"s": scale, "z": zero, "w": np.ones((1, 1, 3, 3), np.int8), "wz": np.int8(0)}
    return _model(_INTEGER_CONVOLUTION, ["x", "s", "z", "w", "s", "wz", "s", "z"], constants, 2)


def _model(op: str, inputs: list[str], constants: dict[str, Any], kind: int) -> Any:
    """A model of one operator on images of 8 x 8; `kind` is the ONNX data type of its input."""
    from onnx import helper, numpy_helper

    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    x = helper.make_tensor_value_info("x", kind, (1, 1, 8, 8))
    y = helper.make_tensor_value_info("y", kind, (1, 1, 6, 6))
    graph = helper.make_graph([helper.make_node(op, inputs, ["y"])], "probe", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
