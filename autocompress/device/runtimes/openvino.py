"""OpenVINO on the CPU. The only file that imports openvino.

It reads the same file as ONNX Runtime. Its layer counters cut off fractions of a microsecond, of each
run and of the mean again; half a microsecond is put back for each.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.device.runtimes import (
    WARM_UP_RUNS,
    NodeTime,
    cannot_load,
    model_bytes,
    not_installed,
    random_input,
)

_DEVICE = "CPU"
_READINGS = 5
_LOST_US = 0.5
_NOT_RUN = ("unknown", "undef")
"""Implementations of constants, inputs, and of what changes a shape and moves nothing."""



class OpenVinoSession:
    """One infer request; input and output are float32 and the shape is fixed."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        self.input_shape: tuple[int, ...] = tuple(compiled.input(0).shape)
        self._feed = [random_input(self.input_shape)]

    def run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        found = self._request.infer([np.ascontiguousarray(inputs, np.float32)], share_inputs=True)
        return np.array(found[0])

    def run_once(self) -> None:
        self._request.infer(self._feed, share_inputs=True, share_outputs=True)


class OpenVino:
    name = "openvino"
    package = "openvino"
    precisions = ("fp32", "int8")
    opaque = ""

    def available(self) -> str:
        return not_installed("openvino", "openvino")

    def describe(self, threads: int) -> dict[str, Any]:
        openvino = _openvino()
        capabilities = _core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        return {
            "runtime": self.name,
            "version": openvino.__version__.partition("-")[0],
            "build": openvino.__version__,
            "provider": _DEVICE,
            "intra_op_threads": threads,
            "streams": 1,
            "pinned_by_runtime": False,
            "float_precision": "f32",
            "integer_kernels": "INT8" in capabilities,
        }

    def load(self, model: bytes | Path, threads: int) -> OpenVinoSession:
        return self._session(model, threads, counters=False)

    def node_times(self, model: bytes, threads: int, repeats: int) -> list[NodeTime]:
        """The counters are means that an interruption spoils, so the median of several is taken."""
        readings = [self._reading(model, threads, repeats) for _ in range(_READINGS)]
        return [
            replace(layers[0], time_us=statistics.median(layer.time_us for layer in layers))
            for layers in zip(*readings, strict=True)
        ]

    def optimized(self, model: bytes, threads: int) -> bytes:
        """Its graph is no ONNX; the layers name their origins."""
        del model, threads
        return b""

    def _reading(self, model: bytes, threads: int, repeats: int) -> list[NodeTime]:
        """Mean times in a freshly compiled model, without those of the runs that warm it up."""
        session = self._session(model, threads, counters=True)
        for _ in range(WARM_UP_RUNS):
            session.run_once()
        cold = _layers(session.compiled)
        for _ in range(repeats):
            session.run_once()
        warm = _layers(session.compiled)
        return [
            replace(after, time_us=_mean_us(before.time_us, after.time_us, repeats))
            for before, after in zip(cold, warm, strict=True)
        ]

    def _session(self, model: bytes | Path, threads: int, *, counters: bool) -> OpenVinoSession:
        data = model_bytes(model, "OpenVINO")
        try:
            compiled = _core().compile_model(_core().read_model(data), _DEVICE, _settings(threads, counters))
            return OpenVinoSession(compiled)
        except Exception as error:
            raise cannot_load("OpenVINO", str(error)) from error


def _settings(threads: int, counters: bool) -> dict[str, Any]:
    """Without the hint for floats it would compute in bfloat16 where the processor can."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERF_COUNT": counters,
    }


def _mean_us(before_us: float, after_us: float, repeats: int) -> float:
    """Mean of the last `repeats` runs, from the counter's means before and after them.

    What never took a whole microsecond gets half of one.
    """
    if after_us < 1:
        return _LOST_US
    runs = WARM_UP_RUNS + repeats
    total_us = runs * (after_us + _LOST_US) - WARM_UP_RUNS * (before_us + _LOST_US)
    return max(total_us / repeats, 0.0) + _LOST_US


def _layers(compiled: Any) -> list[NodeTime]:
    """What ran, in execution order, with its counter's mean time in µs."""
    operations = compiled.get_runtime_model().get_ordered_ops()
    ran = [layer for layer in map(_layer, operations) if layer.order >= 0]
    return [layer.time for layer in sorted(ran, key=lambda layer: layer.order)]


@dataclass(frozen=True)
class _Layer:
    """An operation of the runtime model and its place in the order of execution, -1 if it is not run."""

    time: NodeTime
    order: int


def _layer(operation: Any) -> _Layer:
    about = _about(operation)
    implementation = about["primitiveType"]
    order = -1 if implementation.startswith(_NOT_RUN) else int(about["execOrder"])
    counted = about["execTimeMcs"]
    time_us = float(counted) if counted.isdigit() else 0.0
    origins = next(_origins(operation), ())
    name = operation.get_friendly_name()
    return _Layer(NodeTime(name, about["layerType"], time_us, origins, implementation), order)


def _origins(operation: Any) -> Iterator[tuple[str, ...]]:
    """Layers that the operation was made of; of an inserted one, those of what reads or wrote its value."""
    seen, queue = set(), [operation]
    while queue:
        current = queue.pop(0)
        named = _about(current)["originalLayersNames"]
        if named and (current is operation or _about(current)["layerType"] not in ("Input", "Const", "Output")):
            yield tuple(named.split(","))
        seen.add(current.get_friendly_name())
        readers = [target.get_node() for output in current.outputs() for target in output.get_target_inputs()]
        writers = [source.get_source_output().get_node() for source in current.inputs()]
        queue += [other for other in (*readers, *writers) if other.get_friendly_name() not in seen]


def _about(operation: Any) -> dict[str, str]:
    """What the runtime model says of an operation; values arrive wrapped or plain, by version."""
    return {key: str(getattr(value, "value", value)) for key, value in operation.get_rt_info().items()}


@lru_cache(maxsize=1)
def _core() -> Any:
    return _openvino().Core()


def _openvino() -> Any:
    """The library, kept from reporting its use: it does so when it is imported, unless its reporter is missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


RUNTIMES = {"openvino": OpenVino()}
