"""What runs exported files: one file a runtime, all behind `Runtime` and `Session`.

Several runtimes may share a file, where they are one library on other processors.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from autocompress.device.runtimes.description import Plain
from autocompress.errors import InputError

WARM_UP_RUNS = 5
_NVIDIA = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvhost-ctrl", "/dev/dxg")


@dataclass(frozen=True)
class NodeTime:
    """Hold one operation as the runtime ran it: its name after the runtime's own optimisation, its operator,
    and its typical time in microseconds.

    `origins` are the names of the exported nodes that it carries out, where the runtime tells; the
    graph of `Runtime.optimized` tells it of the others. `implementation` is what the runtime calls the
    code that ran.
    """

    name: str
    op: str
    time_us: float
    origins: tuple[str, ...] = ()
    implementation: str = ""


class Session(Protocol):
    """Run a loaded model with fixed input shape."""

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    def run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Return the outputs for one batch, of a file of one input the first output."""

    def run_once(self) -> None:
        """Run one inference on a fixed random input, for timing."""


@runtime_checkable
class SeveralTensorsSession(Session, Protocol):
    """Run a loaded model of any number of inputs and outputs."""

    def run_all(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return all outputs of one batch of all inputs, in the order of the file."""


class Runtime(Protocol):
    """Run exported files. `package` is the distribution whose version counts, `precisions` what it computes
    in by kernels of that precision: networks of others are not profiled with it. `opaque` says why its
    operations cannot be timed one by one, empty where they can; `rounds` whether it computes in less than
    float32 what a file has in floats."""

    @property
    def name(self) -> str: ...

    @property
    def package(self) -> str: ...

    @property
    def precisions(self) -> tuple[str, ...]: ...

    @property
    def opaque(self) -> str: ...

    @property
    def rounds(self) -> bool: ...

    def available(self) -> str:
        """Return nothing where the runtime can be used, else why not and what to install."""

    def describe(self, threads: int) -> dict[str, Plain]:
        """Return version, build and the settings sessions are made with."""

    def load(self, model: bytes | Path, threads: int) -> Session:
        """Load a model. Raises InputError when the runtime cannot load the model."""

    def node_times(self, model: bytes, threads: int, repeats: int) -> list[NodeTime]:
        """Return the times of the operations, from the runtime's own profiler, in execution order.

        Raises InputError for a runtime that is opaque.
        """

    def optimized(self, model: bytes, threads: int) -> bytes:
        """Return the ONNX model as the runtime rewrote it; node names are those of `node_times`.

        Empty for a runtime that has no such file: its `NodeTime`s name their origins instead.
        """


_HERE = "autocompress.device.runtimes"
_MODULES = {
    "onnxruntime": f"{_HERE}.onnxruntime",
    "onnxruntime-cuda": f"{_HERE}.onnxruntime",
    "onnxruntime-tensorrt": f"{_HERE}.onnxruntime",
    "openvino": f"{_HERE}.openvino",
    "torch": f"{_HERE}.torch_cpu",
    "torch-compile": f"{_HERE}.torch_cpu",
    "torch-cuda": f"{_HERE}.torch_cuda",
    "torch-cuda-bf16": f"{_HERE}.torch_cuda",
    "torch-cuda-fp16": f"{_HERE}.torch_cuda",
}


def runtime_names() -> list[str]:
    return sorted(_MODULES)


def known_runtime(name: str) -> Runtime:
    """Return the runtime of that name, usable here or not. Raises InputError that names the known ones."""
    if name not in _MODULES:
        raise InputError(f"there is no runtime {name!r}", fix=f"use one of: {', '.join(runtime_names())}")
    runtime: Runtime = importlib.import_module(_MODULES[name]).RUNTIMES[name]
    return runtime


def get_runtime(name: str) -> Runtime:
    """Return the runtime of that name.

    Raises InputError that names the known ones, or says why this one cannot be used here and what
    to install.
    """
    runtime = known_runtime(name)
    missing = runtime.available()
    if missing:
        usable = [other for other in runtime_names() if not known_runtime(other).available()]
        raise InputError(
            f"the runtime {name!r} cannot be used here",
            why=missing,
            fix=f"install what it needs, or use one of: {', '.join(usable)}",
        )
    return runtime


def runs_torch_operators(name: str) -> bool:
    """Return whether files for a runtime may call torch's own operators, which need no form in ONNX."""
    return name.startswith("torch")


def check_transparent(runtime: Runtime) -> None:
    """Raise InputError for a runtime whose operations cannot be timed one by one."""
    if runtime.opaque:
        raise InputError(
            f"the runtime {runtime.name!r} cannot be profiled kernel by kernel",
            why=runtime.opaque,
            fix="import kernel times that its own tools write, or profile with another runtime",
        )


def not_installed(package: str, extra: str = "") -> str:
    """Return nothing when a package can be imported, else what to install; nothing is imported to tell."""
    if importlib.util.find_spec(package) is not None:
        return ""
    return f"{package} is not installed: pip install '{f'autocompress[{extra}]' if extra else package}'"


def no_nvidia_gpu() -> str:
    """Return nothing where there may be an NVIDIA GPU, else that there is none; told by the driver's files,
    before a library is asked."""
    if os.name == "nt" or any(Path(path).exists() for path in _NVIDIA):
        return ""
    return "there is no NVIDIA GPU, or its driver is not installed"


def model_bytes(model: bytes | Path, runtime: str) -> bytes:
    """Return the content of a model. Raises InputError, in the runtime's name, for a file that cannot be
    read."""
    try:
        data = model.read_bytes() if isinstance(model, Path) else model
    except OSError as error:
        raise cannot_load(runtime, error.strerror or str(error)) from error
    if not data:
        raise cannot_load(runtime, "it is empty")
    return data


def cannot_load(runtime: str, why: str) -> InputError:
    lines = [line for line in why.splitlines() if line.strip()]
    return InputError(
        f"{runtime} cannot load the model",
        why=" ".join(lines[:2])[:300],
        fix="use another runtime; docs/runtimes.md says what each can run",
    )


def random_input(shape: tuple[int, ...], dtype: str = "float32") -> NDArray[Any]:
    """Return what `Session.run_once` computes on: floats at random; integers, which may be places in a table,
    are zero."""
    if not dtype.startswith("float"):
        return np.zeros(shape, dtype)
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def middle_mean(values: list[float]) -> float:
    """Return the mean of the middle half: for clocks that count whole microseconds finer than a median."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    quarter = len(ordered) // 4
    return float(ordered[quarter : len(ordered) - quarter].mean())
