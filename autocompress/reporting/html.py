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
from autocompress.reporting import charts
from autocompress.reporting.units import (
    COSTS,
    UNKNOWN,
    accuracy,
    cost,
    interval_ms,
    known,
    limits,
    milliseconds,
    percent,
    plain,
    points,
    quantity,
    ratio,
    size,
)
from autocompress.runs.front import Front, front_of
from autocompress.runs.store import RunRecord, read_run
from autocompress.runs.student import Student

TEMPLATE = "report.html.j2"
MOST_TRIALS_NAMED = 8
LEAST_SHADE = 0.1
_AS_TEACHER = ("keep", "full", "none", 1, 1.0, 32)


def write_report(run: Path, output: Path | None = None) -> Path:
    """Writes the report of a run, by default to `report.html` in its folder; returns where it is.

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
    """The report as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(_context(record))


def _context(record: RunRecord) -> dict[str, Any]:
    front = front_of(record)
    labels = letters(front)
    shown = [name for name in list(COSTS)[1:] if name != "packed_bytes" or known(record.limits.get(name))]
    others = [charts.trade_off(record, front, labels, name, wide=False) for name in shown]
    others += [charts.prediction(record, front, labels), charts.progress(record)]
    return {
        "name": record.paths.root.resolve().name,
        "state": _state(record),
        "damaged": record.damaged,
        "headline": _headline(front, labels),
        "budgets": limits(record.limits),
        "tiles": _tiles(record, front),
        "rows": _rows(front, labels),
        "main_chart": charts.trade_off(record, front, labels, "latency_ms", wide=True),
        "charts": [chart for chart in others if chart is not None],
        "sites": _sites(record, front, labels),
        "locked": [site for site in record.sites if site.get("locked")],
        "failures": _failures(record),
        "left_out": _left_out(record),
        "decisions": _decisions(record),
        "environment": _flat(record.environment),
        "configuration": _flat(record.config),
    }


def letters(front: Front) -> dict[str, str]:
    """A short name for each measured student: those of the front first, A, B, …, Z, A2, …"""
    order = list(dict.fromkeys([s.key for s in front.students] + [s.key for s in front.measured]))
    return {
        key: chr(65 + index % 26) + (str(index // 26 + 1) if index > 25 else "")
        for index, key in enumerate(order)
    }


def _state(record: RunRecord) -> str:
    if record.exit_code is None:
        return "under way, or interrupted"
    return {0: "finished", 3: "finished, nothing keeps the budgets"}.get(
        record.exit_code, f"ended with exit code {record.exit_code}"
    )


def _headline(front: Front, labels: Mapping[str, str]) -> dict[str, str] | None:
    """What the student that `pick` takes gains, by default."""
    if not front.students:
        return None
    best, teacher = front.best(), front.teacher
    return {
        "label": labels[best.key],
        "key": best.key,
        "faster": ratio(teacher.get("latency_ms"), best.latency_ms),
        "smaller": ratio(teacher.get("file_bytes"), best.file_bytes),
        "less_memory": ratio(teacher.get("peak_memory_bytes"), best.peak_memory_bytes),
        "accuracy": percent(best.accuracy),
        "points": points(best.accuracy, teacher.get("accuracy")),
    }


def _tiles(record: RunRecord, front: Front) -> list[tuple[str, str]]:
    counts = record.counts
    certified = sum(1 for student in front.measured if student.certified)
    return [
        (str(counts.get("finished", 0)), "trials trained"),
        (str(counts.get("infeasible", 0)), "left out: would break a budget"),
        (str(counts.get("failed", 0)), "trials failed"),
        (str(counts.get("promoted", 0)), "trained longer"),
        (f"{certified} of {len(front.measured)}", "measured students certified"),
        (str(len(front.students)), "on the front"),
    ]


@dataclass(frozen=True)
class Row:
    """One model of the table; `state` is certified, beaten, violated, or teacher."""

    label: str
    key: str
    state: str
    verdict: str
    cells: tuple[tuple[str, str], ...]
    """(value, comparison) from accuracy to parameters."""


def _rows(front: Front, labels: Mapping[str, str]) -> list[Row]:
    teacher = front.teacher
    rows = [Row("", "teacher", "teacher", "", _cells(teacher, {}))] if teacher else []
    by_key = {student.key: student for student in front.measured}
    for key, label in labels.items():
        student = by_key[key]
        state, verdict = _verdict(student, front)
        rows.append(Row(label, key, state, verdict, _cells(student.to_json(), teacher)))
    return rows


def _verdict(student: Student, front: Front) -> tuple[str, str]:
    if not student.certified:
        broken = ", ".join(COSTS.get(name, name) for name in front.violated.get(student.key, ()))
        return "violated", f"breaks {broken or 'a budget'}"
    if any(other.key == student.key for other in front.students):
        return "certified", "certified"
    return "beaten", "certified, beaten by another"


def _cells(record: Mapping[str, Any], teacher: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    def beside(name: str) -> str:
        return ratio(teacher.get(name), record.get(name)) if teacher else ""

    difference = f"{points(record.get('accuracy'), teacher.get('accuracy'))} points" if teacher else ""
    speed = beside("latency_ms")
    interval = interval_ms(record.get("latency_ms_ci95"))
    return (
        (accuracy(record), difference),
        (milliseconds(record.get("latency_ms")), f"{speed} {interval}".strip()),
        (size(record.get("peak_memory_bytes")), beside("peak_memory_bytes")),
        (size(record.get("file_bytes")), beside("file_bytes")),
        (quantity(record.get("macs")), beside("macs")),
        (quantity(record.get("parameters")), beside("parameters")),
    )


@dataclass(frozen=True)
class SiteRow:
    """What each student decided at one site; `strength` from 0 (as in the teacher) to 1."""

    kind: str
    target: str
    options: str
    cells: tuple[tuple[str, float], ...]


def _sites(record: RunRecord, front: Front, labels: Mapping[str, str]) -> dict[str, Any]:
    """Rows of the sites that were free; those where no student changed anything are only counted."""
    choices = {
        trial["candidate"]: trial.get("choices") or {} for trial in record.trials if "candidate" in trial
    }
    students = [key for key in labels if key in choices]
    rows, unchanged = [], 0
    for site in record.sites:
        if site.get("locked"):
            continue
        cells = tuple(_cell(choices[key], site) for key in students)
        if not any(shade for _, shade in cells):
            unchanged += 1
            continue
        kind, _, target = site["name"].partition(":")
        rows.append(SiteRow(kind, target, plain(site.get("options")).replace("_", " "), cells))
    return {
        "rows": rows,
        "unchanged": unchanged,
        "labels": [labels[key] for key in students],
        "states": [
            _verdict(student, front)[0]
            for key in students
            for student in front.measured
            if student.key == key
        ],
    }


def _cell(choices: Mapping[str, Any], site: Mapping[str, Any]) -> tuple[str, float]:
    if site["name"] not in choices:
        return "", 0.0
    option = choices[site["name"]]
    return plain(option).replace("_", " "), strength(option, site.get("default"))


def strength(option: Any, default: Any = None) -> float:
    """How far an option is from the teacher's, the site's default, from 0 to 1, for its shade. Without a
    default, as runs of earlier versions have none, from what usually is one."""
    if option == default if default is not None else option in _AS_TEACHER:
        return 0.0
    if known(option) and option <= 1:
        return 1 - option
    most = 32 if default is None else default
    if known(option) and known(most):
        return max(LEAST_SHADE, 1 - option / most)
    return 1.0 if option == "drop" else 0.5


def _failures(record: RunRecord) -> list[tuple[str, int, str]]:
    """(reason, how often, which trials), the most frequent first."""
    failed = [trial for trial in record.trials if trial["event"] == "trial_failed"]
    reasons = Counter(str(trial.get("reason") or "no reason recorded") for trial in failed)
    found = []
    for reason, count in reasons.most_common():
        numbers = [
            str(trial["trial"])
            for trial in failed
            if str(trial.get("reason") or "no reason recorded") == reason
        ]
        more = ", …" if len(numbers) > MOST_TRIALS_NAMED else ""
        found.append((reason, count, ", ".join(numbers[:MOST_TRIALS_NAMED]) + more))
    return found


def _left_out(record: RunRecord) -> list[tuple[str, int]]:
    """(budgets that were predicted to break, how often)."""
    sets = Counter(
        " and ".join(COSTS.get(name, name) for name in trial.get("violated") or ()) or "unknown"
        for trial in record.trials
        if trial["event"] == "trial_infeasible"
    )
    return sets.most_common()


def _decisions(record: RunRecord) -> list[tuple[str, str]]:
    start = record.events[0]["time"] if record.events else ""
    return [
        (elapsed(start, decision["time"]), str(decision.get("text", ""))) for decision in record.decisions
    ]


def elapsed(start: str, time: str) -> str:
    """Time since the start as `h:mm:ss`; a dash where a time cannot be read."""
    try:
        seconds = int((datetime.fromisoformat(time) - datetime.fromisoformat(start)).total_seconds())
    except (ValueError, TypeError):
        return UNKNOWN
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value)."""
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
