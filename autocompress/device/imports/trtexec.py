"""TensorRT: the JSON list that `trtexec --exportProfile` writes.

Its first entry is `{"count": runs}`, each further one a layer with `timeMs` over all runs, `averageMs`
and, in later versions, `medianMs`. Layers are named after the nodes that were fused into them.
"""

from __future__ import annotations

from autocompress.device.imports.parsing import Dump, OperatorTime

RUNTIME = "tensorrt"


def recognises(dump: Dump) -> bool:
    data = dump.json
    return isinstance(data, list) and any(
        isinstance(entry, dict) and "name" in entry and "timeMs" in entry for entry in data[:50]
    )


def parse(dump: Dump) -> list[OperatorTime]:
    count, found = 1, []
    for entry in dump.json:
        if "name" not in entry:
            count = int(entry.get("count", count))
            continue
        if "medianMs" in entry or "averageMs" in entry:
            time_ms = float(entry.get("medianMs", entry.get("averageMs")))
        else:
            time_ms = float(entry["timeMs"]) / count
        found.append(OperatorTime(str(entry["name"]), "", time_ms * 1e3, count))
    return found
