"""ONNX Runtime on the CPU, and by its CUDA and TensorRT providers. The only file that imports onnxruntime."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.device.runtimes.base import (
    WARM_UP_RUNS,
    NodeTime,
    cannot_load,
    check_transparent,
    middle_mean,
    no_nvidia_gpu,
    not_installed,
    random_input,
)
from autocompress.device.runtimes.description import Plain
from autocompress.errors import InputError
from autocompress.files import JsonObject

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_PROFILED_SUFFIX = "_kernel_time"
_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_ONE_OPERATION = "it sees one operation where TensorRT runs many; trtexec --exportProfile has them"


class OnnxRuntimeSession:
    """Run one `InferenceSession` with fixed thread counts; the shapes of its inputs are fixed."""

    def __init__(self, session: Any) -> None:
        self._session = session
        arguments = session.get_inputs()
        self._input = arguments[0].name
        self.input_shape: tuple[int, ...] = tuple(arguments[0].shape)
        self._feed = {one.name: random_input(tuple(one.shape), _dtype(one.type)) for one in arguments}

    def run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        outputs: NDArray[Any] = self._session.run(
            None, {self._input: np.ascontiguousarray(inputs, np.float32)}
        )[0]
        return outputs

    def run_all(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return all outputs of one batch of all inputs, in the order of the file."""
        found: list[NDArray[Any]] = self._session.run(None, dict(zip(self._feed, inputs, strict=True)))
        return found

    def run_once(self) -> None:
        self._session.run(None, self._feed)


def _dtype(kind: str) -> str:
    """Return ONNX Runtime's name of a type, such as `tensor(int64)`, as numpy's."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


@dataclass(frozen=True)
class OnnxRuntime:
    """Run files with ONNX Runtime; `provider` is what runs the operations; those that it cannot run stay on
    the CPU."""

    name: str
    provider: str
    precisions: tuple[str, ...]
    opaque: str = ""
    package: str = "onnxruntime"
    rounds: bool = False

    def available(self) -> str:
        if self.provider == _CPU:
            return not_installed("onnxruntime")
        missing = not_installed("onnxruntime") or no_nvidia_gpu()
        if missing:
            return missing
        import onnxruntime

        if self.provider in onnxruntime.get_available_providers():
            return ""
        return f"this onnxruntime has no {self.provider}: pip install onnxruntime-gpu in its place"

    def describe(self, threads: int) -> dict[str, Plain]:
        import onnxruntime

        return {
            "runtime": self.name,
            "version": onnxruntime.__version__,
            "build": onnxruntime.get_build_info(),
            "provider": self.provider,
            "intra_op_threads": threads,
            "inter_op_threads": 1,
            "allow_spinning": True,
            "graph_optimization": "all",
        }

    def load(self, model: bytes | Path, threads: int) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(self._session(model, self._options(threads)))

    def node_times(self, model: bytes, threads: int, repeats: int) -> list[NodeTime]:
        check_transparent(self)
        with tempfile.TemporaryDirectory() as folder:
            options = self._options(threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = OnnxRuntimeSession(self._session(model, options))
            for _ in range(WARM_UP_RUNS + repeats):
                session.run_once()
            events = json.loads(Path(session._session.end_profiling()).read_text(encoding="utf-8"))
        return _typical_times(events, repeats)

    def optimized(self, model: bytes, threads: int) -> bytes:
        if self.opaque:
            return b""
        with tempfile.TemporaryDirectory() as folder:
            options = self._options(threads)
            path = Path(folder) / "optimized.onnx"
            options.optimized_model_filepath = str(path)
            self._session(model, options)
            return path.read_bytes()

    def _options(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        return options

    def _session(self, model: bytes | Path, options: Any) -> Any:
        import onnxruntime

        source = str(model) if isinstance(model, Path) else model
        providers = [self.provider] if self.provider == _CPU else [self.provider, _CPU]
        try:
            session = onnxruntime.InferenceSession(source, options, providers=providers)
        except Exception as error:
            raise cannot_load("ONNX Runtime", str(error)) from error
        if self.provider not in session.get_providers():
            raise InputError(
                f"{self.name} cannot load the model",
                why=f"{self.provider} did not start, its libraries are missing or of another version",
                fix="install the CUDA, cuDNN and TensorRT versions that this onnxruntime-gpu was built for",
            )
        return session


def _typical_times(events: Sequence[JsonObject], repeats: int) -> list[NodeTime]:
    """Return the times of each node over the last `repeats` runs, in execution order.

    The profiler counts whole microseconds, so the mean of the middle half is taken, which has a
    finer resolution than a median.
    """
    times: dict[str, list[float]] = {}
    ops: dict[str, str] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(_PROFILED_SUFFIX):
            continue
        name = event["name"].removesuffix(_PROFILED_SUFFIX)
        times.setdefault(name, []).append(float(event["dur"]))
        ops[name] = event["args"]["op_name"]
    return [NodeTime(name, ops[name], middle_mean(values[-repeats:])) for name, values in times.items()]


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        OnnxRuntime("onnxruntime", _CPU, ("fp32", "int8")),
        OnnxRuntime("onnxruntime-cuda", _CUDA, ("fp32",)),
        OnnxRuntime("onnxruntime-tensorrt", _TENSORRT, ("fp32", "int8"), _ONE_OPERATION),
    )
}
