"""TFLite and LiteRT: what `benchmark_model --enable_op_profiling` prints or writes as CSV.

The table "Run Order" is read, by the names of its columns, which differ between versions; its times are
milliseconds. Where a delegate ran the network and reports its own operators, those take its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from autocompress.device.imports.parsing import Dump, OperatorTime

RUNTIME = "tflite"
_TITLE = re.compile(r"=+ *Run Order *=+")
_DELEGATE = re.compile(r"delegate", re.IGNORECASE)
_INTERNAL = re.compile(r"^\s*Delegate internal", re.MULTILINE)
_NODE = re.compile(r":\d+\Z")


def recognises(dump: Dump) -> bool:
    return _TITLE.search(dump.text) is not None and re.search(r"avg[_ ]ms", dump.text) is not None


def parse(dump: Dump) -> list[OperatorTime]:
    """Return the operators; those named `[tensor]:number` are named after their output tensors."""
    internal = _INTERNAL.search(dump.text)
    primary = dump.text[: internal.start()] if internal else dump.text
    found = list(_table(primary))
    inner = list(_table(dump.text[internal.start() :])) if internal else []
    place = next((index for index, item in enumerate(found) if _DELEGATE.search(item.op)), None)
    if place is None or not inner:
        return found
    others = [item for item in found[place + 1 :] if not _DELEGATE.search(item.op)]
    return [*found[:place], *inner, *others]


def _table(text: str) -> Iterator[OperatorTime]:
    """Return rows of every "Run Order" table, up to the empty line after it."""
    parts = _TITLE.split(text)[1:]
    for part in parts:
        lines = part.strip("\n").splitlines()
        columns = [cell.strip("[] ").lower().replace("_", " ") for cell in _cells(lines[0])]
        for line in lines[1:]:
            if not line.strip() or line.lstrip().startswith("="):
                break
            yield _row(columns, line)


def _row(columns: list[str], line: str) -> OperatorTime:
    cells = _cells(line, len(columns))
    if len(cells) != len(columns):
        raise ValueError(f"{line.strip()[:80]!r} has {len(cells)} cells instead of {len(columns)}")
    row = dict(zip(columns, cells, strict=True))
    calls = max(1, int(float(row.get("times called", "1"))))
    name = _NODE.sub("", row["name"]).strip("[] ")
    return OperatorTime(name, row["node type"], float(row["avg ms"]) * 1e3 * calls, 1)


def _cells(line: str, count: int = 0) -> list[str]:
    """Return the cells of a line: tabs divide those of the printed table, commas those of the CSV; a name may
    hold some."""
    divider = "\t" if "\t" in line else ","
    cells = line.lstrip("\t").split(divider)
    if count and len(cells) > count:
        cells = [*cells[: count - 1], divider.join(cells[count - 1 :])]
    return [cell.strip() for cell in cells]
