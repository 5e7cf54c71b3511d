"""One contract for every runtime that is installed: a subclass of `RuntimeContract` a runtime."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.device.runtimes import NodeTime, Runtime, get_runtime, runtime_names
from autocompress.device.runtimes.onnxruntime import _typical_times
from autocompress.errors import InputError

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


class RuntimeContract:
    """What every runtime must do."""

    name: str

    @pytest.fixture
    def runtime(self) -> Runtime:
        return get_runtime(self.name)

    @pytest.mark.parametrize("batch", [1, 3])
    def test_it_computes_what_numpy_computes(self, runtime: Runtime, batch: int):
        inputs = np.random.default_rng(1).standard_normal((batch, IN_CHANNELS, SIZE, SIZE)).astype(np.float32)
        session = runtime.load(model(batch), threads=1)
        assert tuple(session.input_shape) == inputs.shape
        np.testing.assert_allclose(session.run(inputs), expected(inputs), rtol=1e-4, atol=1e-5)

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
        np.testing.assert_allclose(found, expected(inputs), rtol=1e-4, atol=1e-5)

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

    def test_node_times_are_positive_and_name_operations_of_the_optimised_graph(self, runtime: Runtime):
        times = runtime.node_times(model(), threads=1, repeats=5)
        assert times
        assert all(time.time_us >= 0 and time.name and time.op for time in times)
        assert len({time.name for time in times}) == len(times)
        graph = onnx.load_from_string(runtime.optimized(model(), threads=1)).graph
        assert sorted(time.op for time in times) == sorted(node.op_type for node in graph.node)

    def test_profiling_leaves_no_files(
        self, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        temporary, here = tmp_path / "temporary", tmp_path / "here"
        temporary.mkdir()
        here.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        monkeypatch.chdir(here)
        runtime.node_times(model(), threads=1, repeats=2)
        runtime.optimized(model(), threads=1)
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


def event(name: str, microseconds: int, category: str = "Node") -> dict[str, object]:
    return {"cat": category, "name": name, "dur": microseconds, "args": {"op_name": "Conv"}}


def test_only_the_last_runs_of_each_node_count_and_stray_ones_do_not():
    slow_start = [event("conv_kernel_time", 1000)] * 3
    counted = [event("conv_kernel_time", value) for value in (1, 2, 3, 4, 5, 6, 7, 900)]
    others = [event("conv_fence_before", 50), event("model_run", 60, "Session")]
    assert _typical_times([*slow_start, *others, *counted], repeats=8) == [NodeTime("conv", "Conv", 4.5)]


def test_there_is_a_contract_test_for_every_runtime():
    assert {contract.name for contract in RuntimeContract.__subclasses__()} == set(runtime_names())


def test_an_unknown_runtime_names_the_known_ones():
    with pytest.raises(InputError, match="'tflight'") as caught:
        get_runtime("tflight")
    assert "onnxruntime" in caught.value.fix
