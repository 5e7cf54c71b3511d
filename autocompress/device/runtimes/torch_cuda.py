"""torch on an NVIDIA GPU. What one inference launches is captured once, as a CUDA graph, and replayed.

Launched one by one, small kernels take as long as the processor needs to launch them, and no smaller
network would be faster; replayed, the GPU alone counts. A runtime a number format: files in floats run
in float32 (without TF32), float16 or bfloat16 throughout.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autocompress.device.runtimes.base import (
    NodeTime,
    cannot_load,
    middle_mean,
    model_bytes,
    no_nvidia_gpu,
    not_installed,
    random_input,
)
from autocompress.device.runtimes.description import Plain

if TYPE_CHECKING:
    from autocompress.device.runtimes.onnx_to_torch import TorchGraph

_WARM_UP = 3
_REPEATS = 10
"""How often an operation is captured in a row, so that its time stands out from the graph's own."""


@dataclass(frozen=True)
class TorchCudaRuntime:
    name: str
    number_format: str = "float32"
    package: str = "torch"
    precisions: tuple[str, ...] = ("fp32",)
    opaque: str = ""

    def available(self) -> str:
        return not_installed("torch") or no_nvidia_gpu() or _no_cuda()

    def describe(self, threads: int) -> dict[str, Plain]:
        import torch

        return {
            "runtime": self.name,
            "version": torch.__version__,
            "build": torch.version.git_version,
            "provider": "CUDA",
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "intra_op_threads": threads,
            "computes_in": self.number_format,
            "tf32": False,
            "memory_format": "contiguous" if not self.rounds else "channels last",
            "launch": "CUDA graph",
        }

    def load(self, model: bytes | Path, threads: int) -> TorchCudaSession:
        """Load a model; `threads` is not used: a replay needs none."""
        del threads
        graph = self._graph(model)
        try:
            return TorchCudaSession(graph.module, self._laid_out(random_input(graph.input_shape)))
        except Exception as error:
            raise cannot_load(self.name, str(error)) from error

    def node_times(self, model: bytes, threads: int, repeats: int) -> list[NodeTime]:
        del threads
        graph = self._graph(model)
        calls = _timed_calls(graph.module, math.ceil(repeats / _REPEATS))
        return graph.node_times(calls(self._laid_out(random_input(graph.input_shape))))

    def optimized(self, model: bytes, threads: int) -> bytes:
        """Return nothing: torch has no such file; the times name their origins."""
        del model, threads
        return b""

    @property
    def rounds(self) -> bool:
        return self.number_format != "float32"

    def _graph(self, model: bytes | Path) -> TorchGraph:
        data = model_bytes(model, self.name)
        import torch

        from autocompress.device.runtimes.onnx_to_torch import torch_graph

        graph = torch_graph(data, self.name)
        graph.module.to("cuda", getattr(torch, self.number_format))
        if self.rounds:
            graph.module.to(memory_format=torch.channels_last)
        return graph

    def _laid_out(self, inputs: NDArray[Any]) -> Any:
        import torch

        x = torch.from_numpy(inputs).to("cuda", getattr(torch, self.number_format))
        channels_last = x.ndim == 4 and self.rounds
        return x.contiguous(memory_format=torch.channels_last) if channels_last else x


class TorchCudaSession:
    """Run a network on the GPU: `run` copies inputs and outputs to and from it, `run_once` does not."""

    def __init__(self, function: Callable[[Any], Any], inputs: Any) -> None:
        import torch

        self._torch, self._inputs = torch, inputs
        self._function = function  # Its weights are where the graph reads them.
        self.input_shape = tuple(inputs.shape)
        self._replay, self._output = _captured(lambda: function(inputs))

    def run(self, inputs: NDArray[Any]) -> NDArray[Any]:
        given = self._torch.from_numpy(np.ascontiguousarray(inputs, np.float32))
        with self._torch.inference_mode():
            self._inputs.copy_(given)
            self._replay()
            found: NDArray[Any] = self._output.float().cpu().numpy()
        return found

    def run_once(self) -> None:
        self._replay()
        self._torch.cuda.synchronize()


def _captured(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Return (what replays the function, where its result lies then)."""
    import torch

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.inference_mode(), _settings(), torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            function()
        torch.cuda.synchronize()
        graph.capture_begin()
        try:
            result = function()
        finally:
            graph.capture_end()
    torch.cuda.synchronize()
    return graph.replay, result


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Allow no TF32, and take algorithms by cuDNN's heuristics: those found by trying differ from load to
    load."""
    from torch.backends import cuda, cudnn

    before = cuda.matmul.allow_tf32
    with cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
        cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            cuda.matmul.allow_tf32 = before


def _timed_calls(module: Any, blocks: int) -> Callable[[Any], dict[str, float]]:
    """Return a function: input → microseconds of each call of the module. A call is captured several times in
    a row; calls that only view their input differently launch nothing and take none."""
    import torch
    from torch import fx

    class TimedCalls(fx.Interpreter):
        def __init__(self) -> None:
            super().__init__(module)
            self.times_us: dict[str, float] = {}

        def run_node(self, n: fx.Node) -> Any:
            if n.op != "call_function":
                return super().run_node(n)
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            assert callable(n.target)
            result = n.target(*args, **kwargs)
            views = _is_view(result, [self.env[value] for value in n.all_input_nodes])
            call = partial(n.target, *args, **kwargs)
            self.times_us[n.name] = 0.0 if views else _time_us(call, blocks)
            return result

    def timed(x: Any) -> dict[str, float]:
        calls = TimedCalls()
        with torch.inference_mode(), _settings():
            calls.run(x)
        return calls.times_us

    return timed


def _is_view(result: Any, inputs: list[Any]) -> bool:
    import torch

    found = result if isinstance(result, (list, tuple)) else [result]
    known = {
        part.untyped_storage().data_ptr()
        for value in inputs
        for part in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(part, torch.Tensor)
    }
    return all(
        not isinstance(part, torch.Tensor) or part.untyped_storage().data_ptr() in known for part in found
    )


def _time_us(call: Callable[[], Any], blocks: int) -> float:
    """Time replays; one before each that is timed keeps the GPU busy while the next is launched."""
    import torch

    def repeated() -> None:
        for _ in range(_REPEATS):
            call()

    replay, _ = _captured(repeated)
    times = []
    for _ in range(max(3, blocks)):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        replay()
        start.record()
        replay()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return middle_mean([1e3 * start.elapsed_time(end) / _REPEATS for start, end in times])


def _no_cuda() -> str:
    import torch

    return "" if torch.cuda.is_available() else "this torch sees no CUDA GPU: install the build for CUDA"


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        TorchCudaRuntime("torch-cuda"),
        TorchCudaRuntime("torch-cuda-fp16", "float16"),
        TorchCudaRuntime("torch-cuda-bf16", "bfloat16"),
    )
}
