"""torch on the CPU, operation by operation or compiled. Files run in floats only.

Threads are one number for the whole process in torch; a session sets its own for each of its runs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autocompress.device.runtimes.base import (
    WARM_UP_RUNS,
    NodeTime,
    cannot_load,
    check_transparent,
    middle_mean,
    model_bytes,
    not_installed,
    random_input,
)
from autocompress.device.runtimes.description import Plain

if TYPE_CHECKING:
    from autocompress.device.runtimes.onnx_to_torch import TorchGraph


class TorchSession:
    def __init__(self, function: Any, shape: tuple[int, ...], threads: int) -> None:
        import torch

        self._torch, self._function = torch, function
        self.threads = threads
        self.input_shape = shape
        self._feed = torch.from_numpy(random_input(shape))

    def run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        torch = self._torch
        before = torch.get_num_threads()
        x = torch.from_numpy(np.ascontiguousarray(inputs, np.float32))
        try:
            torch.set_num_threads(self.threads)
            with torch.inference_mode():
                found: NDArray[Any] = self._function(x).numpy()
            return found
        finally:
            torch.set_num_threads(before)

    def run_once(self) -> None:
        """Run once and leave the process with the session's number of threads: setting it back would be timed
        too."""
        torch = self._torch
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            self._function(self._feed)


@dataclass(frozen=True)
class TorchRuntime:
    name: str
    compiles: bool = False
    package: str = "torch"
    precisions: tuple[str, ...] = ("fp32",)
    rounds: bool = False

    @property
    def opaque(self) -> str:
        return "the kernels that the compiler writes do not say what they carry out" if self.compiles else ""

    def available(self) -> str:
        missing = not_installed("torch")
        if missing:
            return missing
        return _no_compiler() if self.compiles else ""

    def describe(self, threads: int) -> dict[str, Plain]:
        import torch

        described: dict[str, Plain] = {
            "runtime": self.name,
            "version": torch.__version__,
            "build": torch.version.git_version,
            "provider": "CPU",
            "intra_op_threads": threads,
            "memory_format": "contiguous",
        }
        return {**described, "compiler": "inductor, frozen weights"} if self.compiles else described

    def load(self, model: bytes | Path, threads: int) -> TorchSession:
        return self._session(self._graph(model), threads)

    def node_times(self, model: bytes, threads: int, repeats: int) -> list[NodeTime]:
        check_transparent(self)
        graph = self._graph(model)
        from autocompress.device.runtimes.torch_timing import TimedCalls

        calls = TimedCalls(graph.module)
        session = TorchSession(calls.run, graph.input_shape, threads)
        for _ in range(WARM_UP_RUNS + repeats):
            session.run_once()
        return graph.node_times(
            {call: middle_mean(values[-repeats:]) for call, values in calls.times_us().items()}
        )

    def optimized(self, model: bytes, threads: int) -> bytes:
        """Return nothing: torch has no such file; the times name their origins."""
        del model, threads
        return b""

    def _graph(self, model: bytes | Path) -> TorchGraph:
        data = model_bytes(model, self.name)
        from autocompress.device.runtimes.onnx_to_torch import torch_graph

        return torch_graph(data, self.name)

    def _session(self, graph: TorchGraph, threads: int) -> TorchSession:
        function = _compiled(graph.module) if self.compiles else graph.module
        session = TorchSession(function, graph.input_shape, threads)
        try:
            with _frozen_weights() if self.compiles else contextlib.nullcontext():
                session.run(random_input(graph.input_shape))
        except Exception as error:
            raise cannot_load(self.name, str(error)) from error
        return session


def _compiled(module: Any) -> Any:
    """Return the module compiled for its one shape when it is first called."""
    import torch

    return torch.compile(module, dynamic=False, fullgraph=True)


def _frozen_weights() -> contextlib.AbstractContextManager[Any]:
    """Take weights as constants in what is compiled meanwhile, laid out once and fused with what follows.

    As an option of `torch.compile` it comes too late for the part that reads the module.
    """
    from torch._inductor import config

    return config.patch(freezing=True)  # type: ignore[no-any-return,attr-defined]


def _no_compiler() -> str:
    """Return that there is no compiler, else nothing: Inductor writes C++."""
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "cl")
    if any(name and shutil.which(name) for name in compilers):
        return ""
    return "torch.compile needs a C++ compiler: install g++ or clang++"


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        TorchRuntime("torch"),
        TorchRuntime("torch-compile", compiles=True),
    )
}
