"""`kernels.csv` of a device profile: one row a kernel, units in the column names."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from autocompress.cost.kernels import COLUMNS, Kernel
from autocompress.device.profile.latency_table import LEAST_US, Row
from autocompress.device.profile_files.bounded_text import finite, read_text, refuse, whole

TIMES = ("count", "operations", "median_us", "ci95_low_us", "ci95_high_us")
LEAST_MEDIAN_US = 0.01
"""No kernel takes less than ten nanoseconds: such a number is in another unit."""

WIDEST = 2.0
"""Most width of an interval, as a multiple of the median: ± 100 %. Format 1 did not limit its own."""

MOST_ROWS = 200_000
_ROUNDING_US = 2e-4
_HEADER = (*COLUMNS, *TIMES)
_TEXTS = ("op", "precision", "activation", "layout")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.:]{0,100}\Z")


def rows_text(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for row in rows:
        measured = (row.operations, row.median_us, row.ci95_low_us, row.ci95_high_us)
        times = (row.count, *(f"{value:.4f}" for value in measured))
        writer.writerow((*(getattr(row.kernel, name) for name in COLUMNS), *times))
    return text.getvalue()


def read_rows(path: Path, widest: float = WIDEST) -> Iterator[Row]:
    """Return the rows in the order of the file. Raises ProfileError with the line, also for an interval that
    is wider than `widest` medians."""
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    seen: dict[Kernel, int] = {}
    try:
        _check_header(path, tuple(next(lines, ())))
        for cells in lines:
            number = lines.line_num
            row = _row(path, number, cells, widest)
            if row.kernel in seen:
                refuse(path, f"line {number}: line {seen[row.kernel]} is of the same kernel")
            if len(seen) >= MOST_ROWS:
                refuse(path, f"line {number}: it has more than {MOST_ROWS} rows")
            seen[row.kernel] = number
            yield row
    except csv.Error as error:
        refuse(path, f"line {lines.line_num}: {error}")


def _check_header(path: Path, header: tuple[str, ...]) -> None:
    if header == _HEADER:
        return
    missing = ", ".join(name for name in _HEADER if name not in header) or "none"
    unknown = ", ".join(name[:40] for name in header if name not in _HEADER)
    why = f"line 1: these are not the columns of a profile; missing: {missing}"
    refuse(path, why + (f"; not known: {unknown[:200]}" if unknown else ""))


def _row(path: Path, number: int, cells: list[str], widest: float) -> Row:
    if len(cells) != len(_HEADER):
        refuse(path, f"line {number}: {len(cells)} cells instead of {len(_HEADER)}")
    given = dict(zip(_HEADER, cells, strict=True))
    values: list[Any] = [
        (_word if name in _TEXTS else whole)(path, f"line {number}: {name}", given[name]) for name in COLUMNS
    ]
    kernel = Kernel(**dict(zip(COLUMNS, values, strict=True)))
    if not (kernel.op and kernel.precision) or not kernel.groups:
        refuse(path, f"line {number}: op and precision must not be empty, and groups not 0")
    count = whole(path, f"line {number}: count", given["count"])
    operations, median, low, high = (
        finite(path, f"line {number}: {name}", given[name], positive=name == "median_us")
        for name in TIMES[1:]
    )
    if count < 1 or operations < 0:
        refuse(path, f"line {number}: count must be 1 or more, and operations 0 or more")
    _check_times(path, number, median, (low, high), widest)
    return Row(kernel, count, operations, median, low, high)


def _check_times(
    path: Path, number: int, median: float, interval: tuple[float, float], widest: float
) -> None:
    low, high = interval
    if median < LEAST_MEDIAN_US:
        refuse(
            path,
            f"line {number}: median_us is {median:g}, less than 10 nanoseconds",
            "write microseconds: 0.0124 ms is 12.4 µs",
        )
    if not 0 <= low <= median <= high:
        refuse(path, f"line {number}: the interval {low} … {high} does not hold the median {median}")
    if high - low > max(widest * median, LEAST_US) + _ROUNDING_US:
        refuse(
            path,
            f"line {number}: the interval {low} … {high} is wider than ± {widest / 2:.0%} of the median "
            f"{median}",
            "measure that kernel again, or leave the row out",
        )


def _word(path: Path, where: str, cell: str) -> str:
    if cell and not _WORD.match(cell):
        refuse(path, f"{where} is {cell[:40]!r}, a plain word is expected")
    return cell
