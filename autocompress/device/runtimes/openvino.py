"""OpenVINO on the CPU. The only file that imports openvino.

It reads the same file as ONNX Runtime. Its layer counters cut off fractions of a microsecond, of each
run and of the mean again; half a microsecond is put back for each.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.device.runtimes.base import (
    WARM_UP_RUNS,
    NodeTime,
    cannot_load,
    model_bytes,
    not_installed,
    random_input,
)
from autocompress.device.runtimes.description import Plain
from autocompress.errors import InputError

_DEVICE = "CPU"
_READINGS = 5
_BLOCK_RUNS = 5
_LOST_US = 0.5
_INTERRUPTION_US = 100
"""Less than a scheduler's time slice; rounding moves a block's total by as many µs as there were runs."""

_NOT_RUN = ("unknown", "undef")
"""Implementations of constants, inputs, and of what changes a shape and moves nothing."""


class OpenVinoSession:
    """Run one infer request; the shapes of its inputs are fixed."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        self.input_shape: tuple[int, ...] = tuple(compiled.input(0).shape)
        self._feed = [
            random_input(tuple(one.shape), np.dtype(one.element_type.to_dtype()).name)
            for one in compiled.inputs
        ]

    def run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        found = self._request.infer([np.ascontiguousarray(inputs, np.float32)], share_inputs=True)
        return np.array(found[0])

    def run_all(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return all outputs of one batch of all inputs, in the order of the file."""
        found = self._request.infer(list(inputs), share_inputs=True)
        return [np.array(found[index]) for index in range(len(self.compiled.outputs))]

    def run_once(self) -> None:
        self._request.infer(self._feed, share_inputs=True, share_outputs=True)

    def counters_us(self) -> dict[str, float]:
        """Return the mean times of the layers over all runs so far, in whole microseconds."""
        return {
            layer.node_name: layer.real_time.total_seconds() * 1e6 for layer in self._request.profiling_info
        }


class OpenVino:
    name = "openvino"
    package = "openvino"
    precisions = ("fp32", "int8")
    opaque = ""
    rounds = False

    def available(self) -> str:
        return not_installed("openvino", "openvino")

    def describe(self, threads: int) -> dict[str, Plain]:
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
        """Return medians over several models: the counters are coarse, and where code and data lie
        matters."""
        readings = [self._reading(model, threads, repeats) for _ in range(_READINGS)]
        return [
            replace(layers[0], time_us=statistics.median(layer.time_us for layer in layers))
            for layers in zip(*readings, strict=True)
        ]

    def optimized(self, model: bytes, threads: int) -> bytes:
        """Return nothing: its graph is no ONNX; the layers name their origins."""
        del model, threads
        return b""

    def _reading(self, model: bytes, threads: int, repeats: int) -> list[NodeTime]:
        """Return the mean times in a freshly compiled model, without those of the runs that warm it up.

        Layers without a counter prepare constants, once.
        """
        session = self._session(model, threads, counters=True)
        runs, counted = 0, []
        for block in (WARM_UP_RUNS, *[_BLOCK_RUNS] * -(-repeats // _BLOCK_RUNS)):
            for _ in range(block):
                session.run_once()
            runs += block
            counted.append((runs, session.counters_us()))
        return [
            replace(layer, time_us=_mean_us([(runs, means_us[layer.name]) for runs, means_us in counted]))
            for layer in _layers(session.compiled)
            if layer.name in counted[-1][1]
        ]

    def _session(self, model: bytes | Path, threads: int, *, counters: bool) -> OpenVinoSession:
        data = model_bytes(model, "OpenVINO")
        try:
            compiled = _core().compile_model(_core().read_model(data), _DEVICE, _settings(threads, counters))
            session = OpenVinoSession(compiled)
        except Exception as error:
            raise cannot_load("OpenVINO", str(error)) from error
        used = compiled.get_property("INFERENCE_NUM_THREADS")
        if used != threads:
            raise InputError(
                f"OpenVINO runs on {used} threads and not on {threads}",
                why="the process may use no more CPUs than that",
                fix=f"give --threads {used}, or let the process use more CPUs",
            )
        return session


def _settings(threads: int, counters: bool) -> dict[str, str | int]:
    """Return the settings of a model. Without the hint for floats it would compute in bfloat16 where the
    processor can.

    The second thread of a core is one to count; without that setting fewer run than were asked for.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "ENABLE_HYPER_THREADING": True,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERF_COUNT": counters,
    }


def _mean_us(counted: Sequence[tuple[int, float]]) -> float:
    """Return the mean time of the runs behind the first reading, from readings `(runs so far, their mean in
    µs)`.

    A block of runs within which the process was interrupted counts as a usual one. What never took a
    whole microsecond gets half of one.
    """
    if counted[-1][1] < 1:
        return _LOST_US
    totals_us = [runs * (mean_us + _LOST_US) for runs, mean_us in counted]
    steps_us = [after - before for before, after in pairwise(totals_us)]
    usual_us = statistics.median(steps_us)
    calm_us = [
        usual_us if step - usual_us > _INTERRUPTION_US + 3 * runs else step
        for step, (runs, _) in zip(steps_us, counted[1:], strict=True)
    ]
    return max(sum(calm_us) / (counted[-1][0] - counted[0][0]), 0.0) + _LOST_US


def _layers(compiled: Any) -> list[NodeTime]:
    """Return what ran, in execution order; its time is for the counters to tell."""
    operations = compiled.get_runtime_model().get_ordered_ops()
    ran = [layer for layer in map(_layer, operations) if layer.order >= 0]
    return [layer.time for layer in sorted(ran, key=lambda layer: layer.order)]


@dataclass(frozen=True)
class _Layer:
    """Hold an operation of the runtime model and its place in the order of execution, -1 if it is not run."""

    time: NodeTime
    order: int


def _layer(operation: Any) -> _Layer:
    about = _about(operation)
    implementation = about["primitiveType"]
    order = -1 if implementation.startswith(_NOT_RUN) else int(about["execOrder"])
    origins = next(_origins(operation), ())
    name = operation.get_friendly_name()
    return _Layer(NodeTime(name, about["layerType"], 0.0, origins, implementation), order)


def _origins(operation: Any) -> Iterator[tuple[str, ...]]:
    """Return layers that the operation was made of; of an inserted one, those of what reads or wrote its
    value."""
    seen, queue = set(), [operation]
    while queue:
        current = queue.pop(0)
        about = _about(current)
        named = about["originalLayersNames"]
        if named and (current is operation or about["layerType"] not in ("Input", "Const", "Output")):
            yield tuple(named.split(","))
        seen.add(current.get_friendly_name())
        readers = [target.get_node() for output in current.outputs() for target in output.get_target_inputs()]
        writers = [source.get_source_output().get_node() for source in current.inputs()]
        queue += [other for other in (*readers, *writers) if other.get_friendly_name() not in seen]


def _about(operation: Any) -> dict[str, str]:
    """Return what the runtime model says of an operation; values arrive wrapped or plain, by version."""
    return {key: str(getattr(value, "value", value)) for key, value in operation.get_rt_info().items()}


@lru_cache(maxsize=1)
def _core() -> Any:
    return _openvino().Core()


def _openvino() -> Any:
    """Return the library, kept from reporting its use, which it does on import unless its reporter is
    missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


RUNTIMES = {"openvino": OpenVino()}
