"""Exported files are run by ONNX Runtime and compared with torch, or with integers computed by hand."""

import importlib.util
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from operation_networks import LAYER_MODULES, OPERATIONS, TIMM, Function, quantized
from places import DATA

from autocompress.errors import StudentError, TeacherError
from autocompress.export.onnx import to_onnx
from autocompress.export.onnx_registry import RULES, exports
from autocompress.export.parity import check_model, check_parity, compare
from autocompress.graph.module import build
from autocompress.graph.network import INPUT, Network, Node, Param, ParamSpec, Quantizer, Ref
from autocompress.graph.trace import trace
from autocompress.transforms.families.fold import fold_batch_norms


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def session(model: onnx.ModelProto, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def runner(model: onnx.ModelProto) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    loaded = session(model)
    return lambda array: loaded.run(None, {"input": array})[0]


def kernels(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operators that the runtime really runs, after its own fusions."""
    session(model, folder / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("batch", [1, 3])
def test_operation_gives_what_torch_gives(name: str, batch: int) -> None:
    module = Function(OPERATIONS[name]).eval()
    x = torch.randn(batch, 4, 8, 8)
    model = to_onnx(*trace(module, (4, 8, 8)), batch=batch)
    check_model(model)
    np.testing.assert_allclose(runner(model)(x.numpy()), module(x).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYER_MODULES)
def test_layer_gives_what_torch_gives(name: str) -> None:
    module = LAYER_MODULES[name].eval()
    x = torch.randn(2, 4, 8, 8)
    model = to_onnx(*trace(module, (4, 8, 8)), batch=2)
    check_model(model)
    with torch.no_grad():
        np.testing.assert_allclose(runner(model)(x.numpy()), module(x).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TIMM)
def test_timm_model_in_float_and_8_bits(name: str) -> None:
    module = timm.create_model(name, num_classes=10, **TIMM[name]).eval()
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    network, weights = fold_batch_norms(*trace(module, (3, 64, 64)))
    assert weights is not None
    x = torch.randn(3, 3, 64, 64)
    model = to_onnx(network, weights)
    check_model(model)
    assert check_parity(module, runner(model), x, rounds=False).max_error < 1e-4
    in_8_bits = quantized(network, weights, x)
    model = to_onnx(in_8_bits, weights)
    check_model(model)
    parity = check_parity(build(in_8_bits, weights), runner(model), x, rounds=True)
    assert parity.mean_error < 0.05


def test_nodes_carry_the_names_of_the_network() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(), nn.Linear(144, 2))
    network, weights = fold_batch_norms(*trace(module.eval(), (3, 8, 8)))
    assert weights is not None
    for one in (network, quantized(network, weights, torch.randn(2, 3, 8, 8))):
        names = [node.name for node in to_onnx(one, weights).graph.node]
        assert {node.name for node in network.nodes} <= set(names)
        assert {name.partition("/")[0] for name in names} <= {node.name for node in network.nodes} | {INPUT}
        assert len(set(names)) == len(names)


def test_slices_of_slices_are_one_node_and_idle_ones_none() -> None:
    model = to_onnx(*trace(Function(lambda x: x[:, :, ::2, ::2][:, 0:4] * 2).eval(), (4, 8, 8)))
    assert [node.op_type for node in model.graph.node] == ["Slice", "Mul"]


def test_equal_constants_are_stored_once() -> None:
    model = to_onnx(*trace(Function(lambda x: (x.clamp(0, 6) + 6).clamp(0, 6) * 6).eval(), (2,)))
    assert len(model.graph.initializer) == 2


def test_output_that_is_the_input_or_quantized() -> None:
    network = Network((1, 2), (), INPUT, {}, Quantizer(0.5, 1))
    x = np.array([[0.26, -7.0]], np.float32)
    np.testing.assert_array_equal(runner(to_onnx(network, {}))(x), [[0.5, -0.5]])
    np.testing.assert_array_equal(runner(to_onnx(replace(network, input_quantizer=None), {}))(x), x)


def test_8_bit_convolution_by_hand() -> None:
    """Integer arithmetic: (q_x - z_x) w summed in int32, plus bias, rescaled and rounded half to even."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 3, 1, 1)).astype(np.float32)
    bias = rng.normal(size=5).astype(np.float32)
    s_x, z_x, s_y, z_y = 0.02, 120, 0.03, 99
    node = Node(
        "c",
        "conv2d",
        (Ref(INPUT), Param("w"), Param("b")),
        (1, 5, 4, 4),
        bits=8,
        quantizer=Quantizer(s_y, z_y),
    )
    params = {"w": ParamSpec(weight.shape), "b": ParamSpec(bias.shape)}
    network = Network((1, 3, 4, 4), (node,), "c", params, Quantizer(s_x, z_x))
    x = rng.normal(size=(1, 3, 4, 4)).astype(np.float32)

    q_x = np.clip(np.rint(x / np.float32(s_x)) + z_x, 0, 255).astype(np.int64)
    s_w = np.abs(weight).max(axis=(1, 2, 3)) / 127
    q_w = np.rint(weight / s_w[:, None, None, None])[:, :, 0, 0].astype(np.int64)
    q_b = np.rint(bias / (s_x * s_w)).astype(np.int64)
    sums = np.einsum("oc,nchw->nohw", q_w, q_x - z_x) + q_b[None, :, None, None]
    real = sums * (s_x * s_w)[None, :, None, None] / s_y
    expected = (np.clip(np.rint(real) + z_y, 0, 255) - z_y) * s_y

    weights = {"w": weight, "b": bias}
    model = to_onnx(network, weights)
    np.testing.assert_allclose(runner(model)(x), expected, atol=1e-5)
    fake = build(network, weights)(torch.from_numpy(x)).detach().numpy()
    assert (np.abs(fake - expected) < 1e-5).mean() > 0.95
    assert np.abs(fake - expected).max() < s_y * 1.01


def test_8_bit_weights_biases_and_nothing_else_are_stored() -> None:
    network, weights = trace(nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU()).eval(), (16, 8, 8))
    model = to_onnx(quantized(network, weights, torch.randn(2, 16, 8, 8)), weights)
    stored = {(i.data_type, tuple(i.dims)) for i in model.graph.initializer}
    assert (onnx.TensorProto.INT8, (32, 16, 3, 3)) in stored
    assert (onnx.TensorProto.INT32, (32,)) in stored
    floats = [dims for kind, dims in stored if kind == onnx.TensorProto.FLOAT]
    assert all(int(np.prod(dims)) <= 32 for dims in floats)


def test_channel_of_tiny_weights_keeps_its_bias() -> None:
    network, weights = trace(nn.Conv2d(2, 2, 1).eval(), (2, 4, 4))
    weights["weight"][0] = 1e-20
    weights["bias"][:] = (3.0, -2.0)
    x = torch.randn(1, 2, 4, 4)
    one = quantized(network, weights, x)
    actual = runner(to_onnx(one, weights))(x.numpy())
    np.testing.assert_allclose(actual[:, 0], 3.0, atol=0.05)
    np.testing.assert_allclose(actual, build(one, weights)(x).detach().numpy(), atol=0.05)


class Block(nn.Module):
    """Residual, squeeze-and-excitation, subsampling shortcut, concatenation, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.conv1 = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32))
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.conv3 = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        y = self.conv2(self.conv1(x))
        y = y * self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        y = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))
        y = torch.cat([y, F.relu(self.conv3(y))], 1)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


def test_runtime_runs_integer_kernels_only(tmp_path: Path) -> None:
    network, weights = fold_batch_norms(*trace(Block().eval(), (3, 16, 16)))
    assert weights is not None
    found = kernels(to_onnx(quantized(network, weights, torch.randn(4, 3, 16, 16)), weights), tmp_path)
    moves = {"Transpose", "Slice", "Pad", "Flatten", "NhwcMaxPool", "MaxPool"}
    integer = {
        "QLinearConv": 6,
        "QLinearAdd": 1,
        "QLinearMul": 1,
        "QLinearSigmoid": 1,
        "QLinearConcat": 1,
        "QLinearGlobalAveragePool": 2,
        "QGemm": 1,
        "QuantizeLinear": 1,
    }
    assert {kind: count for kind, count in found.items() if kind not in moves} == integer


def test_linear_layers_on_sequences_run_as_integer_gemm(tmp_path: Path) -> None:
    mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)).eval()
    network, weights = trace(mlp, (5, 16))
    x = torch.randn(4, 5, 16)
    one = quantized(network, weights, x)
    model = to_onnx(one, weights)
    found = kernels(model, tmp_path)
    assert found["QGemm"] == 2 and found["QuantizeLinear"] == 2 and not found["DequantizeLinear"]
    check_parity(build(one, weights), runner(model), x, rounds=True)


def test_float_layer_between_8_bit_layers(tmp_path: Path) -> None:
    convs = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))).eval()
    network, weights = trace(convs, (4, 8, 8))
    x = torch.randn(4, 4, 8, 8)
    one = quantized(network, weights, x, floats=(network.nodes[1].name,))
    model = to_onnx(one, weights)
    found = kernels(model, tmp_path)
    assert found["QLinearConv"] == 2 and found["Conv"] == 1
    check_parity(build(one, weights), runner(model), x, rounds=True)


@pytest.mark.skipif(not (DATA / "teachers/cifar_resnet.py").exists(), reason="needs the CIFAR teachers")
def test_cifar_resnet20(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("cifar_resnet", DATA / "teachers/cifar_resnet.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    teacher = module.load(20)
    network, weights = fold_batch_norms(*trace(teacher, (3, 32, 32)))
    assert weights is not None
    x = torch.randn(16, 3, 32, 32)
    check_parity(teacher, runner(to_onnx(network, weights)), x, rounds=False)
    one = quantized(network, weights, x)
    model = to_onnx(one, weights)
    check_parity(build(one, weights), runner(model), x, rounds=True)
    assert len(model.SerializeToString()) < 300_000
    found = kernels(model, tmp_path)
    assert found["QLinearConv"] == 19 and found["QLinearAdd"] == 9 and found["QGemm"] == 1
    assert found["DequantizeLinear"] == 0 and found["QuantizeLinear"] == 1


@pytest.mark.parametrize(
    "node",
    [
        Node("here", "aten::cummax", (Ref(INPUT), 1), ((1, 4, 4, 4), (1, 4, 4, 4))),
        Node("here", "relu", (Ref(INPUT), 1, 2), (1, 4)),
    ],
)
def test_what_onnx_cannot_express_is_named(node: Node) -> None:
    with pytest.raises(TeacherError, match=f"{node.op}[\\s\\S]*here[\\s\\S]*--runtime torch"):
        to_onnx(Network((1, 4, 4, 4), (node,), "here", {}), {})


def test_registry_refuses_duplicates() -> None:
    assert "relu" in RULES
    with pytest.raises(ValueError, match="relu"):
        exports("relu")(lambda: "")


def test_parity_refuses_what_differs() -> None:
    x = torch.randn(8, 3)
    module = nn.Identity()
    assert check_parity(module, lambda a: a, x, rounds=False).max_error == 0
    with pytest.raises(StudentError, match="output range"):
        check_parity(module, lambda a: a + 0.1, x, rounds=False)
    assert check_parity(module, lambda a: a + 0.01, x, rounds=True).agreement == 1
    with pytest.raises(StudentError, match="on average"):
        check_parity(module, lambda a: -a, x, rounds=True)
    nearly_equal = torch.tensor([[1.0, 0.9] + [-1.0] * 98] * 8)
    with pytest.raises(StudentError, match="best class"):
        check_parity(module, lambda a: a[:, [1, 0, *range(2, 100)]], nearly_equal, rounds=True)
    with pytest.raises(StudentError, match="shape"):
        check_parity(module, lambda a: a[:, :1], x, rounds=False)
    with pytest.raises(StudentError, match="finite"):
        check_parity(module, lambda a: a / 0, x, rounds=False)


def test_parity_by_hand() -> None:
    parity = compare(np.array([[0.0, 10.0], [4.0, 2.0]]), np.array([[1.0, 10.0], [1.0, 2.0]]))
    assert (parity.max_error, parity.mean_error, parity.agreement) == (0.3, 0.1, 0.5)
    nearly_equal = compare(np.array([[5.0, 5.05, -5.0]]), np.array([[5.05, 5.0, -5.0]]))
    assert nearly_equal.agreement == 1.0
