"""The rows of a report's tables: the models, and what they decided at each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocompress.problem.candidate import Option
from autocompress.reporting.charts import state_of
from autocompress.reporting.units import (
    accuracy,
    beside_teacher,
    interval_ms,
    known,
    less,
    milliseconds,
    names,
    plain,
    quantity,
    size,
)
from autocompress.runs.events import Choices, SiteRecord
from autocompress.runs.front import Front
from autocompress.runs.store import RunRecord
from autocompress.runs.student import Student

LEAST_SHADE = 0.1
_AS_TEACHER = ("keep", "full", "none", 1, 1.0, 32)


@dataclass(frozen=True)
class Row:
    """One model of the table; `state` is certified, beaten, violated, or teacher."""

    label: str
    key: str
    state: str
    verdict: str
    cells: tuple[tuple[str, str], ...]
    """(value, comparison) from accuracy to parameters."""


def model_rows(front: Front, labels: Mapping[str, str]) -> list[Row]:
    """Return the teacher, then each measured student."""
    teacher = front.teacher
    rows = [Row("", "teacher", "teacher", "", _cells(teacher, None))] if teacher else []
    by_key = {student.key: student for student in front.measured}
    for key, label in labels.items():
        student = by_key[key]
        state = state_of(student, front)
        verdict = _verdict(state, front.violated.get(key, ()))
        rows.append(Row(label, key, state, verdict, _cells(student, teacher)))
    return rows


def _verdict(state: str, violated: Sequence[str]) -> str:
    match state:
        case "violated":
            return f"breaks {names(violated) or 'a budget'}"
        case "beaten":
            return "certified, beaten by another"
        case _:
            return "certified"


def _cells(model: Student, teacher: Student | None) -> tuple[tuple[str, str], ...]:
    def beside(name: str) -> str:
        return less(teacher, model, name) if teacher else ""

    difference = beside_teacher(model, teacher) if teacher else ""
    interval = interval_ms(model.latency_ms_ci95)
    return (
        (accuracy(model), difference),
        (milliseconds(model.latency_ms), f"{beside('latency_ms')} {interval}".strip()),
        (size(model.peak_memory_bytes), beside("peak_memory_bytes")),
        (size(model.file_bytes), beside("file_bytes")),
        (quantity(model.macs), beside("macs")),
        (quantity(model.parameters), beside("parameters")),
    )


@dataclass(frozen=True)
class SiteRow:
    """Say what each student decided at one site; `strength` from 0 (as in the teacher) to 1."""

    kind: str
    target: str
    options: str
    cells: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class SiteTable:
    """The sites at which some student changed something, and how many more were free."""

    rows: list[SiteRow]
    unchanged: int
    labels: list[str]
    states: list[str]


def site_table(record: RunRecord, front: Front, labels: Mapping[str, str]) -> SiteTable:
    """Return what the students decided at the sites that were free."""
    choices = {trial.candidate: trial.choices for trial in record.trials}
    states = {student.key: state_of(student, front) for student in front.measured}
    students = [key for key in labels if key in choices]
    free = [site for site in record.sites if not site.locked]
    rows = [_site_row(site, [choices[key] for key in students]) for site in free]
    changed = [row for row in rows if any(shade for _, shade in row.cells)]
    return SiteTable(
        changed,
        len(rows) - len(changed),
        [labels[key] for key in students],
        [states[key] for key in students],
    )


def _site_row(site: SiteRecord, choices: Sequence[Choices]) -> SiteRow:
    kind, _, target = site.name.partition(":")
    cells = tuple(_cell(one.get(site.name), site.default) for one in choices)
    return SiteRow(kind, target, _words(site.options), cells)


def _cell(option: Option | None, default: Option | None) -> tuple[str, float]:
    return ("", 0.0) if option is None else (_words(option), strength(option, default))


def _words(options: Option | Sequence[Option]) -> str:
    return plain(options).replace("_", " ")


def strength(option: Option, default: Option | None = None) -> float:
    """Return how far an option is from the teacher's, the site's default, from 0 to 1, for its shade.

    Without a default, as runs of earlier versions have none, from what usually is one.
    """
    if option == default if default is not None else option in _AS_TEACHER:
        return 0.0
    if known(option) and option <= 1:
        return 1 - option
    most = 32 if default is None else default
    if known(option) and known(most):
        return max(LEAST_SHADE, 1 - option / most)
    return 1.0 if option == "drop" else 0.5
