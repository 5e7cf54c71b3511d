"""OpenVINO: the layer counters of `benchmark_app -report_type detailed_counters` or `average_counters`.

Either as CSV or, with `-json_stats`, as JSON; times are milliseconds with three decimals. The tool says
NOT_RUN of fused layers and of those that took less than its clock sees. Fused layers have no
implementation and take no time of their own; half of the clock's step is counted for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autocompress.device.imports.parsing import Dump, OperatorTime, middle_mean

RUNTIME = "openvino"
LEAST_US = 0.5
_HEADER = "layerName;execStatus;layerType;execType;realTime (ms)"
_MOVES_NOTHING, _FUSED = "unknown", "undef"


def recognises(dump: Dump) -> bool:
    return _HEADER in dump.text[:4096] or (isinstance(dump.json, dict) and bool(_reports(dump.json)))


def parse(dump: Dump) -> list[OperatorTime]:
    """Return layers by name, over all infer requests."""
    lines = _of_json(dump.json) if isinstance(dump.json, dict) else _of_csv(dump.text)
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for name, status, kind, implementation, time_ms in lines:
        if implementation.startswith(_MOVES_NOTHING) or not implementation:
            continue
        if not status.endswith(("EXECUTED", "NOT_RUN")):
            continue
        kinds[name] = kind
        least_us = 0.0 if implementation.startswith(_FUSED) else LEAST_US
        times.setdefault(name, []).append(max(float(time_ms) * 1e3, least_us))
    return [
        OperatorTime(name, kinds[name], middle_mean(values), len(values)) for name, values in times.items()
    ]


def _of_csv(text: str) -> Iterator[tuple[str, str, str, str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.rsplit(";", 5)
        if len(cells) == 1 or line.startswith((_HEADER, "Total;")):
            continue
        if len(cells) != 6:
            raise ValueError(f"line {number} has {len(cells)} cells instead of 6")
        name, status, kind, implementation, real, _ = cells
        yield name, status, kind, implementation, real


def _of_json(data: Any) -> Iterator[tuple[str, str, str, str, str]]:
    for report in _reports(data):
        for node in report["nodes"]:
            yield (
                str(node["name"]),
                str(node["status"]),
                str(node["node_type"]),
                str(node["exec_type"]),
                str(node["real_time"]),
            )


def _reports(data: Any) -> list[Any]:
    detailed = data.get("detailed_performance")
    if isinstance(detailed, list):
        return detailed
    return [data["avg_performance"]] if isinstance(data.get("avg_performance"), dict) else []
