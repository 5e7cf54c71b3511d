"""Times of the single calls of a torch module, as it runs one after another.

`torch.profiler` takes longer for a call than many kernels do, so the clock is read beside each call;
on a GPU its events are.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import fx


class TimedCalls(fx.Interpreter):
    """Runs the module; the times of all runs so far are in `times_us`, by call and in order."""

    def __init__(self, module: fx.GraphModule, device: str) -> None:
        super().__init__(module)
        self._on_gpu = device == "cuda"
        self._found: dict[str, list[Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        assert callable(n.target)
        if self._on_gpu:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = n.target(*args, **kwargs)
            end.record()
            self._found.setdefault(n.name, []).append((start, end))
            return result
        begin = time.perf_counter_ns()
        result = n.target(*args, **kwargs)
        self._found.setdefault(n.name, []).append(time.perf_counter_ns() - begin)
        return result

    def times_us(self) -> dict[str, list[float]]:
        """In microseconds. On a GPU all work must have ended."""
        if self._on_gpu:
            return {
                name: [1e3 * start.elapsed_time(end) for start, end in pairs]
                for name, pairs in self._found.items()
            }
        return {name: [ns / 1e3 for ns in values] for name, values in self._found.items()}
