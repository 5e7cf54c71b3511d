"""ONNX Runtime: the Chrome trace that a session writes with `enable_profiling`."""

from __future__ import annotations

from autocompress.device.imports.parsing import Dump, OperatorTime, middle_mean

RUNTIME = "onnxruntime"
_SUFFIX = "_kernel_time"


def recognises(dump: Dump) -> bool:
    return isinstance(dump.json, list) and any(
        isinstance(event, dict) and event.get("cat") in ("Session", "Node") for event in dump.json[:50]
    )


def parse(dump: Dump) -> list[OperatorTime]:
    """Return nodes by name. The file counts whole microseconds of each run."""
    times: dict[str, list[float]] = {}
    ops: dict[str, str] = {}
    for event in dump.json:
        if event.get("cat") != "Node" or not str(event.get("name")).endswith(_SUFFIX):
            continue
        name = event["name"].removesuffix(_SUFFIX)
        times.setdefault(name, []).append(float(event["dur"]))
        ops[name] = str(event["args"]["op_name"])
    return [OperatorTime(name, ops[name], middle_mean(values), len(values)) for name, values in times.items()]
