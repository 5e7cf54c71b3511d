"""torch.profiler: the Chrome trace of `export_chrome_trace`.

The outermost operators count, each with all that it calls. On a GPU an operator's time is that of the
kernels that it started. Runs are told apart by `ProfilerStep#` where the profiler was stepped, else by
the repetition of the operators.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from autocompress.device.imports.parsing import Dump, OperatorTime, middle_mean

RUNTIME = "torch"
_STEP = "ProfilerStep#"
_ON_CPU = "cpu_op"
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")


class TraceEvent(NamedTuple):
    """Hold one event of the trace; what a GPU ran has the `external_id` of the operator that started it."""

    name: str
    category: str
    start_us: float
    duration_us: float
    thread: tuple[Any, Any]
    external_id: Any

    @property
    def end_us(self) -> float:
        """Return when it ended."""
        return self.start_us + self.duration_us


def recognises(dump: Dump) -> bool:
    events = dump.json.get("traceEvents") if isinstance(dump.json, dict) else None
    return isinstance(events, list) and any(
        isinstance(event, dict) and event.get("cat") == _ON_CPU for event in events
    )


def parse(dump: Dump) -> list[OperatorTime]:
    """Return the operators, named after their kind and their place in a run."""
    events = list(_events(dump.json["traceEvents"]))
    outer = _outermost([event for event in events if event.category == _ON_CPU])
    gpu = _gpu_times(events, outer)
    times = [gpu.get(index, 0.0) if gpu else event.duration_us for index, event in enumerate(outer)]
    names = [event.name.removeprefix("aten::") for event in outer]
    steps = [event for event in events if event.name.startswith(_STEP)]
    runs = _stepped(outer, steps) if steps else _repeated(names)
    places = runs[-1]
    alike = [run for run in runs if [names[index] for index in run] == [names[index] for index in places]]
    return [
        OperatorTime(
            f"{names[index]}#{place}",
            names[index],
            middle_mean([times[run[place]] for run in alike]),
            len(alike),
        )
        for place, index in enumerate(places)
    ]


def _events(found: list[Any]) -> Iterator[TraceEvent]:
    """Yield operators, what they started on a GPU, and steps; nothing else of a trace is read."""
    for event in found:
        if not isinstance(event, dict) or event.get("ph") != "X":
            continue
        name, category = str(event.get("name")), str(event.get("cat"))
        if category in (_ON_CPU, *_ON_GPU) or name.startswith(_STEP):
            yield TraceEvent(
                name,
                category,
                float(event["ts"]),
                float(event["dur"]),
                (event.get("pid"), event.get("tid")),
                event.get("args", {}).get("External id"),
            )


def _outermost(events: Sequence[TraceEvent]) -> list[TraceEvent]:
    """Return operators that no other one on their thread called, on the thread that ran most of them."""
    threads: dict[Any, list[TraceEvent]] = {}
    for event in sorted(events, key=lambda event: (event.start_us, -event.duration_us)):
        thread = threads.setdefault(event.thread, [])
        if not thread or event.start_us >= thread[-1].end_us:
            thread.append(event)
    return max(threads.values(), key=len, default=[])


def _gpu_times(events: Sequence[TraceEvent], outer: Sequence[TraceEvent]) -> dict[int, float]:
    """Return the sums of the kernels of each operator in µs; empty where nothing ran on a GPU."""
    started: dict[Any, float] = {}
    for event in events:
        if event.category == _ON_CPU and event.external_id is not None:
            started[event.external_id] = event.start_us
    found: dict[int, float] = {}
    for event in events:
        if event.category in _ON_GPU and event.external_id in started:
            index = _place(outer, started[event.external_id])
            if index is not None:
                found[index] = found.get(index, 0.0) + event.duration_us
    return found


def _place(outer: Sequence[TraceEvent], time_us: float) -> int | None:
    """Return the index of the operator that was running at a time; `outer` is in order of time."""
    low, high = 0, len(outer)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if outer[middle].start_us <= time_us else (low, middle)
    if low == 0:
        return None
    return low - 1 if time_us <= outer[low - 1].end_us else None


def _stepped(outer: Sequence[TraceEvent], steps: Sequence[TraceEvent]) -> list[list[int]]:
    """Return the indices of the operators of each step that has some."""
    runs = []
    for step in sorted(steps, key=lambda step: step.start_us):
        inside = [step.start_us <= event.start_us < step.end_us for event in outer]
        runs.append([index for index, is_inside in enumerate(inside) if is_inside])
    return [run for run in runs if run] or _repeated([event.name for event in outer])


def _repeated(names: Sequence[str]) -> list[list[int]]:
    """Return the runs: repetitions of the shortest sequence that makes up the whole."""
    count = len(names)
    if not count:
        raise ValueError("no operator ran")
    failure = [0] * count
    for index in range(1, count):
        length = failure[index - 1]
        while length and names[index] != names[length]:
            length = failure[length - 1]
        failure[index] = length + (names[index] == names[length])
    period = count - failure[-1]
    period = period if count % period == 0 else count
    return [list(range(start, start + period)) for start in range(0, count, period)]
