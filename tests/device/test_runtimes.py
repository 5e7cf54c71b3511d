"""One contract for every runtime: a subclass of `RuntimeContract` a runtime.

Those that cannot be used here are skipped, with the reason that they give.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from operation_networks import quantized
from torch import Tensor, nn
from torch.nn import functional

from autocompress.cost.kernels import kernels
from autocompress.cost.layouts import Layouts
from autocompress.device.measure.attribution import attribute
from autocompress.device.measure.layout_probe import detect_layouts
from autocompress.device.measure.log import Timing
from autocompress.device.runtimes import base as runtimes
from autocompress.device.runtimes.base import (
    NodeTime,
    Runtime,
    Session,
    check_transparent,
    get_runtime,
    known_runtime,
    runtime_names,
)
from autocompress.device.runtimes.onnxruntime import _typical_times
from autocompress.device.runtimes.openvino import _mean_us
from autocompress.errors import InputError
from autocompress.export.onnx import to_onnx
from autocompress.graph.network import Network
from autocompress.graph.trace import trace

OPSETS = [helper.make_opsetid("", 17)]
IN_CHANNELS, OUT_CHANNELS, SIZE = 16, 32, 8


def weights() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((OUT_CHANNELS, IN_CHANNELS, 1, 1)).astype(np.float32)
    return weight, rng.standard_normal(OUT_CHANNELS).astype(np.float32)


def model(batch: int = 1) -> bytes:
    """relu(pointwise convolution), then a mean over the map."""
    weight, bias = weights()
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["conv_out"], "conv"),
        helper.make_node("Relu", ["conv_out"], ["relu_out"], "relu"),
        helper.make_node("GlobalAveragePool", ["relu_out"], ["y"], "pool"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, IN_CHANNELS, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, OUT_CHANNELS, 1, 1])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    data: bytes = helper.make_model(graph, opset_imports=OPSETS, ir_version=9).SerializeToString()
    return data


def expected(inputs: np.ndarray) -> np.ndarray:
    weight, bias = weights()
    convolved = np.einsum("oi,bihw->bohw", weight[:, :, 0, 0], inputs) + bias[None, :, None, None]
    return np.maximum(convolved, 0).mean((2, 3), keepdims=True)


class SmallNet(nn.Module):
    """A residual block, a depthwise convolution and a classifier, for (3, 16, 16) inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(x + self.inner(x))
        x = functional.relu(self.down(functional.relu(self.deep(x))))
        return self.fc(x.mean((2, 3)))


SMALL = (3, 16, 16)
CPUS = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


@lru_cache(maxsize=2)
def small_network(precision: str) -> tuple[Network, bytes]:
    """The network in shipped form, and its file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, weights = trace(SmallNet().eval(), SMALL)
    assert weights is not None
    if precision == "int8":
        network = quantized(network, weights, torch.from_numpy(examples(16)))
    return network, to_onnx(network, weights).SerializeToString()


def examples(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, *SMALL)).astype(np.float32)


def outputs(session: Session) -> np.ndarray:
    return np.concatenate([session.run(one[None]) for one in examples(16)])


class RuntimeContract:
    """What every runtime must do where it can be used."""

    name: str
    tolerance = 1e-5
    """Of outputs around 1."""

    def assert_close(self, found: np.ndarray, wanted: np.ndarray) -> None:
        np.testing.assert_allclose(found, wanted, rtol=10 * self.tolerance, atol=self.tolerance)

    @pytest.fixture
    def runtime(self) -> Runtime:
        missing = known_runtime(self.name).available()
        if missing:
            pytest.skip(missing)
        return get_runtime(self.name)

    @pytest.fixture
    def transparent(self, runtime: Runtime) -> Runtime:
        if runtime.opaque:
            pytest.skip(runtime.opaque)
        return runtime

    @pytest.mark.parametrize("batch", [1, 3])
    def test_it_computes_what_numpy_computes(self, runtime: Runtime, batch: int):
        inputs = np.random.default_rng(1).standard_normal((batch, IN_CHANNELS, SIZE, SIZE)).astype(np.float32)
        session = runtime.load(model(batch), threads=1)
        assert tuple(session.input_shape) == inputs.shape
        self.assert_close(session.run(inputs), expected(inputs))

    def test_bytes_and_files_are_the_same_model(self, runtime: Runtime, tmp_path: Path):
        path = tmp_path / "model.onnx"
        path.write_bytes(model())
        inputs = np.ones((1, IN_CHANNELS, SIZE, SIZE), np.float32)
        from_file, from_bytes = runtime.load(path, threads=1), runtime.load(model(), threads=1)
        np.testing.assert_array_equal(from_file.run(inputs), from_bytes.run(inputs))

    def test_inputs_of_other_types_and_strides_are_taken(self, runtime: Runtime):
        inputs = np.arange(IN_CHANNELS * SIZE * SIZE, dtype=np.float64).reshape(1, SIZE, SIZE, IN_CHANNELS)
        inputs = (inputs / inputs.size).transpose(0, 3, 1, 2)
        found = runtime.load(model(), threads=1).run(inputs)
        self.assert_close(found, expected(inputs))

    def test_timing_runs_return_nothing_and_change_nothing(self, runtime: Runtime):
        session = runtime.load(model(), threads=1)
        inputs = np.ones((1, IN_CHANNELS, SIZE, SIZE), np.float32)
        before = session.run(inputs)
        assert session.run_once() is None
        np.testing.assert_array_equal(session.run(inputs), before)

    @pytest.mark.parametrize("data", [b"", b"not a model", model()[:100]])
    def test_what_is_no_model_is_an_input_error(self, runtime: Runtime, data: bytes):
        with pytest.raises(InputError, match="cannot load"):
            runtime.load(data, threads=1)

    def test_a_missing_file_is_an_input_error(self, runtime: Runtime, tmp_path: Path):
        with pytest.raises(InputError, match="cannot load"):
            runtime.load(tmp_path / "none.onnx", threads=1)

    def test_a_network_in_floats_gives_what_onnx_runtime_gives(self, runtime: Runtime):
        _, data = small_network("fp32")
        wanted = outputs(get_runtime("onnxruntime").load(data, threads=1))
        self.assert_close(outputs(runtime.load(data, threads=1)), wanted)

    def test_a_network_in_8_bits_is_run_or_refused(self, runtime: Runtime):
        _, data = small_network("int8")
        if "int8" not in runtime.precisions:
            with pytest.raises(InputError, match="cannot load") as caught:
                runtime.load(data, threads=1)
            assert "no integer kernels" in caught.value.why
            return
        wanted = outputs(get_runtime("onnxruntime").load(data, threads=1))
        found = outputs(runtime.load(data, threads=1))
        assert np.abs(found - wanted).max() < 0.05 * np.ptp(wanted)
        assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.9

    def test_two_sessions_do_not_interfere(self, runtime: Runtime):
        other = onnx.load_from_string(model())
        scaled = 2 * numpy_helper.to_array(other.graph.initializer[0])
        other.graph.initializer[0].CopyFrom(numpy_helper.from_array(scaled, "w"))
        first, second = runtime.load(model(), 1), runtime.load(other.SerializeToString(), CPUS)
        inputs = np.ones((1, IN_CHANNELS, SIZE, SIZE), np.float32)
        before = first.run(inputs)
        assert np.abs(second.run(inputs) - before).max() > 0.1
        second.run_once()
        np.testing.assert_array_equal(first.run(inputs), before)

    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_all_time_goes_to_the_kernels_that_computed(self, transparent: Runtime, precision: str):
        if precision not in transparent.precisions:
            pytest.skip(f"{self.name} does not run {precision}")
        network, data = small_network(precision)
        times = transparent.node_times(data, threads=1, repeats=5)
        assert all(time.time_us >= 0 and time.name and time.op for time in times)
        assert len({time.name for time in times}) == len(times)
        cut = kernels(network, detect_layouts(transparent, 1))
        found = attribute(times, data, transparent.optimized(data, 1), cut)
        assert tuple(timing.kernel for timing in found) == cut
        assert sum(timing.time_us for timing in found) == pytest.approx(sum(time.time_us for time in times))
        layers = [timing for timing in found if timing.kernel.op in ("conv", "linear")]
        assert len(layers) == 5
        assert all(timing.time_us > 0 and timing.operations >= 1 for timing in layers)

    def test_operations_lead_back_to_the_file(self, transparent: Runtime):
        """By the graph that the runtime shows, or by themselves."""
        network, data = small_network("fp32")
        times = transparent.node_times(data, threads=1, repeats=2)
        optimized = transparent.optimized(data, threads=1)
        if optimized:
            ops = [node.op_type for node in onnx.load_from_string(optimized).graph.node]
            assert sorted(time.op for time in times) == sorted(ops)
        else:
            named = {origin.partition("/")[0] for time in times for origin in time.origins}
            layers = {node.name for node in network.nodes if node.op in ("conv2d", "relu")}
            assert layers <= named

    def test_an_opaque_runtime_says_so_before_anything_is_measured(self, runtime: Runtime):
        if not runtime.opaque:
            check_transparent(runtime)
            return
        with pytest.raises(InputError, match="kernel by kernel"):
            runtime.node_times(model(), threads=1, repeats=1)
        with pytest.raises(InputError, match="kernel by kernel"):
            check_transparent(runtime)
        assert runtime.optimized(model(), threads=1) == b""

    def test_profiling_leaves_no_files(
        self, transparent: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        temporary, here = tmp_path / "temporary", tmp_path / "here"
        temporary.mkdir()
        here.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        monkeypatch.chdir(here)
        transparent.node_times(model(), threads=1, repeats=2)
        transparent.optimized(model(), threads=1)
        assert [*temporary.iterdir(), *here.iterdir()] == []

    def test_it_describes_its_version_and_threads_in_json(self, runtime: Runtime):
        found = runtime.describe(2)
        assert json.loads(json.dumps(found)) == found
        assert found["runtime"] == self.name
        assert found["intra_op_threads"] == 2
        assert found["version"]


class TestOnnxRuntime(RuntimeContract):
    name = "onnxruntime"

    def test_it_sends_nothing(self, runtime: Runtime):
        del runtime
        assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"

    def test_the_settings_it_describes_are_those_of_its_sessions(self, runtime: Runtime):
        described = runtime.describe(1)
        options = runtime.load(model(), threads=1)._session.get_session_options()
        assert options.intra_op_num_threads == described["intra_op_threads"]
        assert options.inter_op_num_threads == described["inter_op_threads"]

    def test_the_activation_runs_within_the_convolution(self, runtime: Runtime):
        ops = [time.op for time in runtime.node_times(model(), threads=1, repeats=2)]
        assert "Conv" in ops
        assert "Relu" not in ops


class TestOpenVino(RuntimeContract):
    name = "openvino"

    def test_it_sends_nothing(self, runtime: Runtime, tmp_path: Path):
        """Its reporter writes into the home folder and opens connections as soon as it is imported."""
        del runtime
        code = (
            "import socket, sys\n"
            "def refuse(*_): raise AssertionError('connects')\n"
            "socket.socket.connect = refuse\n"
            "from autocompress.device.runtimes import get_runtime\n"
            "get_runtime('openvino').describe(1)\n"
            "assert 'openvino' in sys.modules\n"
            "assert not sys.modules.get('openvino_telemetry')\n"
        )
        environment = {**os.environ, "HOME": str(tmp_path), "CI": ""}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        assert list(tmp_path.iterdir()) == []

    def test_the_settings_it_describes_are_those_of_its_sessions(self, runtime: Runtime):
        for threads in {1, CPUS}:
            described, compiled = runtime.describe(threads), runtime.load(model(), threads).compiled
            assert compiled.get_property("INFERENCE_NUM_THREADS") == described["intra_op_threads"] == threads
            assert compiled.get_property("NUM_STREAMS") == described["streams"]
            assert compiled.get_property("ENABLE_CPU_PINNING") is described["pinned_by_runtime"]
            assert str(compiled.get_property("INFERENCE_PRECISION_HINT")).endswith("float32'>")

    def test_fewer_threads_than_asked_for_are_refused(self, runtime: Runtime):
        with pytest.raises(InputError, match="and not on 999") as caught:
            runtime.load(model(), threads=999)
        assert "--threads" in caught.value.fix

    def test_8_bit_layers_run_as_integer_kernels(self, runtime: Runtime):
        if not runtime.describe(1)["integer_kernels"]:
            pytest.skip("this processor has no integer kernels in OpenVINO")
        _, data = small_network("int8")
        ran = {time.op: time.implementation for time in runtime.node_times(data, 1, 2)}
        assert ran["Convolution"].endswith("_I8")
        assert ran["FullyConnected"].endswith("_I8")
        _, data = small_network("fp32")
        assert not any("I8" in time.implementation for time in runtime.node_times(data, 1, 2))

    def test_counters_are_whole_microseconds_and_half_of_one_is_put_back_twice(self):
        # Runs of 12.4 µs are counted as 12 each; those that warm up took 30.
        assert _mean_us([(5, 30.0), (10, 21.0), (15, 18.0), (20, 16.0)]) == pytest.approx(
            (20 * 16.5 - 5 * 30.5) / 15 + 0.5
        )
        assert _mean_us([(5, 0.0), (45, 0.0)]) == 0.5

    def test_an_interruption_does_not_count(self):
        totals_us, runs, counted = 0, 0, []
        for block in range(9):
            runs += 5
            totals_us += 5 * 20 + (4000 if block == 4 else 0)
            counted.append((runs, float(totals_us // runs)))
        assert _mean_us(counted) == pytest.approx(20.5, rel=0.1)


class TestTorch(RuntimeContract):
    name = "torch"

    def test_threads_are_set_for_a_run_and_set_back(self, runtime: Runtime):
        before = torch.get_num_threads()
        session = runtime.load(model(), threads=before + 1)
        seen = []
        session._function = lambda x: seen.append(torch.get_num_threads()) or x
        session.run(np.ones((1, IN_CHANNELS, SIZE, SIZE)))
        assert torch.get_num_threads() == before
        session.run_once()
        torch.set_num_threads(before)
        assert seen == [before + 1] * 2


@pytest.mark.slow
class TestTorchCompile(RuntimeContract):
    name = "torch-compile"


class TestTorchCuda(RuntimeContract):
    name = "torch-cuda"

    def test_every_operation_that_computes_takes_time(self, runtime: Runtime):
        network, data = small_network("fp32")
        times = {time.name: time.time_us for time in runtime.node_times(data, threads=1, repeats=20)}
        computing = {node.name for node in network.nodes if node.op in ("conv2d", "relu", "add")}
        assert all(times[name] > 0 for name in computing & times.keys())


class TestTorchCudaFp16(RuntimeContract):
    name = "torch-cuda-fp16"
    tolerance = 3e-3


class TestTorchCudaBf16(RuntimeContract):
    name = "torch-cuda-bf16"
    tolerance = 2e-2


class TestOnnxRuntimeCuda(RuntimeContract):
    name = "onnxruntime-cuda"


class TestOnnxRuntimeTensorRt(RuntimeContract):
    name = "onnxruntime-tensorrt"


def event(name: str, microseconds: int, category: str = "Node") -> dict[str, object]:
    return {"cat": category, "name": name, "dur": microseconds, "args": {"op_name": "Conv"}}


def test_only_the_last_runs_of_each_node_count_and_stray_ones_do_not():
    slow_start = [event("conv_kernel_time", 1000)] * 3
    counted = [event("conv_kernel_time", value) for value in (1, 2, 3, 4, 5, 6, 7, 900)]
    others = [event("conv_fence_before", 50), event("model_run", 60, "Session")]
    assert _typical_times([*slow_start, *others, *counted], repeats=8) == [NodeTime("conv", "Conv", 4.5)]


def test_there_is_a_contract_test_for_every_runtime():
    assert {contract.name for contract in RuntimeContract.__subclasses__()} == set(runtime_names())


def test_a_runtime_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        runtimes.importlib.util, "find_spec", lambda name: None if name == "openvino" else name
    )
    with pytest.raises(InputError, match="'openvino' cannot be used") as caught:
        get_runtime("openvino")
    assert "autocompress[openvino]" in caught.value.why
    assert "onnxruntime" in caught.value.fix


def test_without_a_gpu_its_runtimes_say_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtimes, "_NVIDIA", ())
    for name in ("onnxruntime-cuda", "onnxruntime-tensorrt", "torch-cuda", "torch-cuda-bf16"):
        assert "NVIDIA GPU" in known_runtime(name).available()


def test_times_belong_to_the_kernel_that_computes_most_of_those_they_name():
    network, data = small_network("fp32")
    cut = kernels(network, Layouts(0, False))
    times = [
        NodeTime("fused", "Fused", 5.0, ("relu_1", "inner", "add", "unheard of")),
        NodeTime("reorder", "Reorder", 2.0, ()),
        NodeTime("add", "Add", 1.0, ("add",)),
    ]
    found = {timing.kernel.nodes[0]: timing for timing in attribute(times, data, b"", cut)}
    assert (found["inner"].time_us, found["inner"].operations) == (7.0, 2)
    assert (found["add"].time_us, found["add"].operations) == (1.0, 1)
    assert found["stem"] == Timing(cut[0], 0.0, 0)


def test_an_unknown_runtime_names_the_known_ones():
    with pytest.raises(InputError, match="'tflight'") as caught:
        get_runtime("tflight")
    assert "onnxruntime" in caught.value.fix
