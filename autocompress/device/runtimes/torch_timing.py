"""Times of the single calls of a torch module, as it runs one after another.

`torch.profiler` takes longer for a call than many kernels do, so the clock is read beside each call.
"""

from __future__ import annotations

import time
from typing import Any

from torch import fx


class TimedCalls(fx.Interpreter):
    """Run the module; the times of all runs so far are in `times_us`, by call and in order."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self._found_ns: dict[str, list[int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        assert callable(n.target)
        begin = time.perf_counter_ns()
        result = n.target(*args, **kwargs)
        self._found_ns.setdefault(n.name, []).append(time.perf_counter_ns() - begin)
        return result

    def times_us(self) -> dict[str, list[float]]:
        """Return the times of each call in microseconds."""
        return {name: [ns / 1e3 for ns in values] for name, values in self._found_ns.items()}
