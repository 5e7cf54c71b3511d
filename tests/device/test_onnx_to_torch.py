"""ONNX files as torch modules: every operator that the exporter writes, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from operation_networks import LAYER_MODULES, OPERATIONS, TIMM, Function
from torch import nn
from torch.nn import functional

from autocompress.device.runtimes.base import get_runtime
from autocompress.device.runtimes.onnx_to_torch import torch_graph
from autocompress.device.runtimes.torch_operators import OPERATORS, torch_for
from autocompress.errors import InputError
from autocompress.export.onnx import to_onnx
from autocompress.graph.trace import trace
from autocompress.transforms.families.fold import fold_batch_norms


def assert_same(module: nn.Module, shape: tuple[int, ...], batch: int = 1, tolerance: float = 2e-5) -> None:
    """torch and ONNX Runtime compute the same from the exported file."""
    network, weights = trace(module.eval(), shape)
    network, weights = fold_batch_norms(network, weights)
    model = to_onnx(network, weights, batch=batch).SerializeToString()
    inputs = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
    wanted = get_runtime("onnxruntime").load(model, 1).run(inputs)
    found = get_runtime("torch").load(model, 1).run(inputs)
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("batch", [1, 3])
def test_operations(name: str, batch: int):
    assert_same(Function(OPERATIONS[name]), (4, 8, 8), batch)


@pytest.mark.parametrize("name", LAYER_MODULES)
def test_layers(name: str):
    assert_same(LAYER_MODULES[name], (4, 8, 8), batch=2)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "vit_tiny_patch16_224"])
def test_networks(name: str):
    torch.manual_seed(0)
    assert_same(timm.create_model(name, num_classes=10, **TIMM[name]), (3, 64, 64), tolerance=1e-4)


def test_every_call_leads_back_to_its_onnx_node():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    network, weights = trace(module.eval(), (3, 8, 8))
    model = to_onnx(network, weights)
    graph = torch_graph(model.SerializeToString(), "torch")
    calls = [node.name for node in graph.module.graph.nodes if node.op == "call_function"]
    assert list(graph.origins) == calls
    assert list(graph.origins.values()) == [node.name for node in model.graph.node]
    assert list(graph.operators.values()) == ["Conv", "Relu", "Flatten", "Gemm"]
    assert graph.input_shape == (1, 3, 8, 8)


def test_numbers_stay_numbers():
    network, weights = trace(Function(lambda x: functional.relu6(x) * 0.5).eval(), (2, 3))
    graph = torch_graph(to_onnx(network, weights).SerializeToString(), "torch")
    assert list(graph.module.buffers()) == []
    scaled = [node.args[1] for node in graph.module.graph.nodes if node.op == "call_function"]
    assert scaled == [0.0, 0.5]


def tiny(op: str) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], "odd")], "g", [x], [y])
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
    return data


def test_an_unknown_operator_is_named():
    with pytest.raises(InputError, match="torch cannot load") as caught:
        get_runtime("torch").load(tiny("Sinh"), 1)
    assert "Sinh" in caught.value.why
    assert "Conv" in caught.value.fix


def test_nodes_without_names_get_some():
    model = onnx.load_from_string(tiny("Relu"))
    model.graph.node[0].name = ""
    graph = torch_graph(model.SerializeToString(), "torch")
    assert graph.operators == {"Relu_0": "Relu"}


def test_an_operator_has_one_translation():
    with pytest.raises(ValueError, match="'Conv'"):
        torch_for("Conv")(OPERATORS["Conv"])
