"""One offline HTML file about a run: no scripts, no requests, everything inline and escaped."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from autocompress.errors import RunError
from autocompress.files import JsonObject
from autocompress.reporting.charts import prediction, progress
from autocompress.reporting.rows import model_rows, site_table
from autocompress.reporting.trade_off import trade_off
from autocompress.reporting.units import (
    COSTS,
    UNKNOWN,
    beside_teacher,
    cost,
    known,
    less,
    limits,
    metric_of,
    metric_value,
    names,
    plain,
)
from autocompress.runs.events import TrialFailed, TrialInfeasible
from autocompress.runs.front import Front, front_of
from autocompress.runs.store import RunRecord, read_run

TEMPLATE = "report.html.j2"
MOST_TRIALS_NAMED = 8


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write the report of a run, by default to `report.html` in its folder; return where it is.

    Works at any moment of a run. Raises RunError when `run` is not one or the file cannot be written.
    """
    record = read_run(run)
    target = record.paths.report if output is None else Path(output)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(render(record), encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise RunError(
            "the report cannot be written",
            where=str(target),
            why=error.strerror or str(error),
            fix="give another --output",
        ) from error
    return target


def render(record: RunRecord) -> str:
    """Return the report as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(_context(record))


def _context(record: RunRecord) -> JsonObject:
    front = front_of(record)
    labels = letters(front)
    shown = [name for name in list(COSTS)[1:] if name != "packed_bytes" or name in front.own_limits]
    others = [trade_off(record, front, labels, name, wide=False) for name in shown]
    others += [prediction(record, front, labels), progress(record)]
    return {
        "name": record.paths.root.resolve().name,
        "state": _state(record),
        "damaged": record.damaged,
        "metric": metric_of(front.teacher).name,
        "headline": _headline(front, labels),
        "budgets": limits(record.limits),
        "tiles": _tiles(record, front),
        "rows": model_rows(front, labels),
        "main_chart": trade_off(record, front, labels, "latency_ms", wide=True),
        "charts": [chart for chart in others if chart is not None],
        "sites": site_table(record, front, labels),
        "locked": [site for site in record.sites if site.locked],
        "failures": _failures(record),
        "left_out": _left_out(record),
        "decisions": _decisions(record),
        "environment": _flat(record.environment),
        "configuration": _flat(record.config),
    }


def letters(front: Front) -> dict[str, str]:
    """Return a short name for each measured student: those of the front first, A, B, …, Z, A2, …"""
    order = list(dict.fromkeys([s.key for s in front.students] + [s.key for s in front.measured]))
    return {
        key: chr(65 + index % 26) + (str(index // 26 + 1) if index > 25 else "")
        for index, key in enumerate(order)
    }


def _state(record: RunRecord) -> str:
    match record.exit_code:
        case None:
            return "under way, or interrupted"
        case 0:
            return "finished"
        case 3:
            return "finished, nothing keeps the budgets"
        case code:
            return f"ended with exit code {code}"


@dataclass(frozen=True)
class Headline:
    """Say what the student gains that `pick` takes by default."""

    label: str
    key: str
    faster: str
    smaller: str
    less_memory: str
    accuracy: str
    points: str


def _headline(front: Front, labels: Mapping[str, str]) -> Headline | None:
    if not front.students:
        return None
    best, teacher = front.best(), front.teacher
    return Headline(
        label=labels[best.key],
        key=best.key,
        faster=less(teacher, best, "latency_ms"),
        smaller=less(teacher, best, "file_bytes"),
        less_memory=less(teacher, best, "peak_memory_bytes"),
        accuracy=metric_value(best.metric, best.accuracy),
        points=beside_teacher(best, teacher),
    )


def _tiles(record: RunRecord, front: Front) -> list[tuple[str, str]]:
    counts = record.counts
    certified = sum(1 for student in front.measured if student.certified)
    return [
        (str(counts["finished"]), "trials trained"),
        (str(counts["infeasible"]), "left out: would break a budget"),
        (str(counts["failed"]), "trials failed"),
        (str(counts["promoted"]), "trained longer"),
        (f"{certified} of {len(front.measured)}", "measured students certified"),
        (str(len(front.students)), "on the front"),
    ]


def _failures(record: RunRecord) -> list[tuple[str, int, str]]:
    """Return (reason, how often, which trials), the most frequent first."""
    trials: dict[str, list[str]] = {}
    for trial in record.trials:
        if isinstance(trial, TrialFailed):
            trials.setdefault(trial.reason or "no reason recorded", []).append(str(trial.trial))
    found = []
    for reason, numbers in sorted(trials.items(), key=lambda item: -len(item[1])):
        more = ", …" if len(numbers) > MOST_TRIALS_NAMED else ""
        found.append((reason, len(numbers), ", ".join(numbers[:MOST_TRIALS_NAMED]) + more))
    return found


def _left_out(record: RunRecord) -> list[tuple[str, int]]:
    """Return (budgets that were predicted to break, how often), the most frequent first."""
    sets = Counter(
        names(trial.violated, between=" and ") or "unknown"
        for trial in record.trials
        if isinstance(trial, TrialInfeasible)
    )
    return sets.most_common()


def _decisions(record: RunRecord) -> list[tuple[str, str]]:
    start = record.events[0].time if record.events else ""
    return [(elapsed(start, decision.time), decision.text) for decision in record.decisions]


def elapsed(start: str, time: str) -> str:
    """Return the time since the start as `h:mm:ss`; a dash where a time cannot be read."""
    try:
        seconds = int((datetime.fromisoformat(time) - datetime.fromisoformat(start)).total_seconds())
    except (ValueError, TypeError):
        return UNKNOWN
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _flat(data: JsonObject, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted name, value)."""
    found: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", _setting(name, value)))
    return found


def _setting(name: str, value: Any) -> str:
    if name in COSTS and known(value):
        return cost(name, value)
    if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        return "; ".join(plain(item) for item in value)
    return plain(value)
