"""What runs exported files: one file a runtime, all behind `Runtime` and `Session`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from autocompress.errors import InputError


@dataclass(frozen=True)
class NodeTime:
    """One operation as the runtime ran it: its name after the runtime's own optimisation, its
    operator, and its typical time in microseconds."""

    name: str
    op: str
    time_us: float


class Session(Protocol):
    """A loaded model with fixed input shape."""

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    def run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """The outputs for one batch."""

    def run_once(self) -> None:
        """One inference on a fixed random input, for timing."""


class Runtime(Protocol):
    name: str

    def describe(self, threads: int) -> dict[str, Any]:
        """Version, build and the settings sessions are made with."""

    def load(self, model: bytes | Path, threads: int) -> Session:
        """Raises InputError when the runtime cannot load the model."""

    def node_times(self, model: bytes, threads: int, repeats: int) -> list[NodeTime]:
        """Times of the operations, from the runtime's own profiler, in execution order."""

    def optimized(self, model: bytes, threads: int) -> bytes:
        """The ONNX model as the runtime rewrote it; node names are those of `node_times`."""


_MODULES = {"onnxruntime": "autocompress.device.runtimes.onnxruntime"}


def runtime_names() -> list[str]:
    return sorted(_MODULES)


def get_runtime(name: str) -> Runtime:
    """The runtime of that name. Raises InputError that names the known ones."""
    if name not in _MODULES:
        raise InputError(f"there is no runtime {name!r}", fix=f"use one of: {', '.join(runtime_names())}")
    runtime: Runtime = importlib.import_module(_MODULES[name]).RUNTIME
    return runtime
