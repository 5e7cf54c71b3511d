"""torch.profiler: the Chrome trace of `export_chrome_trace`.

The outermost operators count, each with all that it calls. On a GPU an operator's time is that of the
kernels that it started. Runs are told apart by `ProfilerStep#` where the profiler was stepped, else by
the repetition of the operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autocompress.device.imports.parsing import Dump, OperatorTime, middle_mean

RUNTIME = "torch"
_STEP = "ProfilerStep#"
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
Event = Mapping[str, Any]


def recognises(dump: Dump) -> bool:
    events = dump.json.get("traceEvents") if isinstance(dump.json, dict) else None
    return isinstance(events, list) and any(
        isinstance(event, dict) and event.get("cat") == "cpu_op" for event in events
    )


def parse(dump: Dump) -> list[OperatorTime]:
    """Operators are named after their kind and their place in a run."""
    events = [
        event for event in dump.json["traceEvents"] if isinstance(event, dict) and event.get("ph") == "X"
    ]
    outer = _outermost([event for event in events if event.get("cat") == "cpu_op"])
    gpu = _gpu_times(events, outer)
    times = [gpu.get(index, 0.0) if gpu else float(event["dur"]) for index, event in enumerate(outer)]
    names = [str(event["name"]).removeprefix("aten::") for event in outer]
    steps = [event for event in events if str(event.get("name")).startswith(_STEP)]
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


def _outermost(events: Sequence[Event]) -> list[Event]:
    """Operators that no other one on their thread called, on the thread that ran most of them."""
    threads: dict[Any, list[Event]] = {}
    for event in sorted(events, key=lambda event: (float(event["ts"]), -float(event["dur"]))):
        thread = threads.setdefault((event.get("pid"), event.get("tid")), [])
        if not thread or float(event["ts"]) >= float(thread[-1]["ts"]) + float(thread[-1]["dur"]):
            thread.append(event)
    return max(threads.values(), key=len, default=[])


def _gpu_times(events: Sequence[Event], outer: Sequence[Event]) -> dict[int, float]:
    """Sums of the kernels of each operator in µs; empty where nothing ran on a GPU."""
    started: dict[Any, float] = {}
    for event in events:
        if event.get("cat") == "cpu_op" and "External id" in event.get("args", {}):
            started[event["args"]["External id"]] = float(event["ts"])
    found: dict[int, float] = {}
    for event in events:
        if event.get("cat") in _ON_GPU and event.get("args", {}).get("External id") in started:
            index = _place(outer, started[event["args"]["External id"]])
            if index is not None:
                found[index] = found.get(index, 0.0) + float(event["dur"])
    return found


def _place(outer: Sequence[Event], time: float) -> int | None:
    """Index of the operator that was running at a time; `outer` is in order of time."""
    low, high = 0, len(outer)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if float(outer[middle]["ts"]) <= time else (low, middle)
    if low == 0:
        return None
    event = outer[low - 1]
    return low - 1 if time <= float(event["ts"]) + float(event["dur"]) else None


def _stepped(outer: Sequence[Event], steps: Sequence[Event]) -> list[list[int]]:
    """Indices of the operators of each step that has some."""
    runs = []
    for step in sorted(steps, key=lambda step: float(step["ts"])):
        start, end = float(step["ts"]), float(step["ts"]) + float(step["dur"])
        runs.append([index for index, event in enumerate(outer) if start <= float(event["ts"]) < end])
    return [run for run in runs if run] or _repeated([str(event["name"]) for event in outer])


def _repeated(names: Sequence[str]) -> list[list[int]]:
    """Runs are the shortest sequence that makes up the whole by repetition."""
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
