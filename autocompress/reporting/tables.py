"""A run's records, and what the commands find, as tables for a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autocompress.files import JsonObject
from autocompress.problem.budgets import Limits
from autocompress.reporting.units import (
    accuracy,
    beside_teacher,
    cost_of,
    interval_ms,
    known,
    less,
    limits,
    metric_of,
    milliseconds,
    names,
    plain,
    quantity,
    significant,
    size,
)
from autocompress.runs.student import Student

if TYPE_CHECKING:
    from rich.table import Table

    from autocompress.api import Status
    from autocompress.pipeline.bench_again import MeasuredAgain
    from autocompress.pipeline.budget_queries import Answer
    from autocompress.runs.front import Front

_NUMBER = re.compile(r"\d+")
_COUNTED = {"infeasible": "left out: over a budget", "promoted": "trained longer"}
"""Counts of a run in words for people."""


def front_table(front: Front) -> Table:
    """Return the teacher and each student of the front, measured costs beside the teacher's.

    Where the terminal is narrower than the table, cells are wrapped; nothing is cut off.
    """
    table = new_table("", caption=_front_caption(front))
    table.padding = (0, 1, 0, 0)
    table.add_column("model", overflow="fold")
    packed = "packed_bytes" in front.own_limits
    for heading in (
        _metric_heading(front),
        "latency",
        "memory",
        "file",
        *["packed"] * packed,
        "MACs",
        "params",
    ):
        table.add_column(heading, justify="right", overflow="fold")
    teacher = front.teacher
    table.add_row("teacher", *_cells(teacher, packed), end_section=True)
    for student in front.students:
        mark = "[green]✓ certified[/]" if student.certified else "[red]✗ not certified[/]"
        cells = _cells(student, packed) if teacher is None else _compared(student, teacher, packed)
        table.add_row(f"[bold]{escaped(student.key)}[/]\n{mark}", *cells)
    return table


def bench_table(found: MeasuredAgain) -> Table:
    """Return a new measurement beside the recorded one."""
    table = properties(f"student {found['student']}")
    for label, measured in (("measured now", found["measured"]), ("when certified", found["recorded"])):
        latency = milliseconds(measured.get("latency_ms"))
        row(table, label, f"{latency} {interval_ms(measured.get('latency_ms_ci95'))}")
    row(table, "now / then", f"{significant(found['ratio'])}×")
    for name in ("p90_ms", "p95_ms", "p99_ms"):
        row(table, name.removesuffix("_ms"), milliseconds(found["measured"].get(name)))
    row(table, "budgets", limits(Limits.from_json(found["limits"])))
    broken = names(found["violated"])
    table.add_row("verdict", f"[red]broken: {broken}[/]" if broken else "[green]kept[/]")
    return table


def answer_table(answer: Answer) -> Table:
    """Return the candidate that answers a budget: predicted costs, then its choices, alike ones in a row."""
    table = properties(f"candidate {answer.candidate.key}: predicted, not trained or measured")
    predicted = answer.predicted
    latency = f"{milliseconds(predicted.latency_ms)} {interval_ms(predicted.latency_ms_ci95)}"
    row(table, "latency", latency)
    row(table, "memory", size(predicted.peak_memory_bytes))
    row(table, "file size", size(predicted.file_bytes))
    row(table, "packed size", size(predicted.packed_bytes))
    row(table, "sensitivity", f"{significant(answer.summed_sensitivity)}, summed over its choices")
    row(table, "limits", limits(answer.limits))
    table.add_section()
    groups: dict[tuple[str, str], list[str]] = {}
    for name, option in answer.candidate.choices:
        kind, _, target = name.partition(":")
        groups.setdefault((kind, plain(option)), []).append(target)
    for (kind, option), targets in groups.items():
        row(table, f"{kind} {option}", ", ".join(patterns(targets)))
    return table


def doctor_table(found: JsonObject) -> Table:
    """Return what `doctor` found, problems last."""
    table = properties("this machine")
    for name, value in found.items():
        if name == "packages":
            _section(table, "packages", {key: item or "not installed" for key, item in value.items()})
        elif name == "runtimes":
            _section(table, "runtimes", value)
        elif name != "problems":
            row(table, name.removesuffix("_bytes").replace("_", " "), _measure(name, value))
    problems = found.get("problems") or ()
    for problem in problems:
        row(table, "problem", problem, style="yellow")
    if not problems:
        table.add_row("problems", "[green]none found[/]")
    return table


def status_table(status: Status) -> Table:
    """Return how far a run is and what it decided."""
    table = properties(status["run"])
    for name, value in status["counts"].items():
        row(table, _COUNTED.get(name, name), str(value))
    row(table, "certified", str(status["certified"]))
    ended = f"finished, exit code {status['exit_code']}"
    row(table, "state", ended if status["finished"] else "under way, or interrupted")
    for text in status["decisions"]:
        row(table, "decided", text)
    for line in status["damaged"]:
        row(table, "damaged", f"line {line} of events.jsonl cannot be read", style="yellow")
    return table


def _cells(model: Student | None, packed: bool) -> tuple[str, ...]:
    """Return accuracy, latency with its interval, and counts; the packed size where asked."""
    latency = milliseconds(cost_of(model, "latency_ms"))
    return (
        accuracy(model).removesuffix(" %"),
        f"{latency}\n{_interval(model)}",
        *(text(cost_of(model, name)) for name, text in _counts(packed)),
    )


def _compared(student: Student, teacher: Student, packed: bool) -> tuple[str, ...]:
    """Return the same cells with how they compare with the teacher's, in a second line."""

    def share(name: str) -> str:
        return f"[dim]{less(teacher, student, name)}[/]"

    percentage, _, *counts = _cells(student, packed)
    latency = milliseconds(student.latency_ms)
    return (
        f"{percentage}\n[dim]{beside_teacher(student, teacher)}[/]",
        f"{latency} {share('latency_ms')}\n{_interval(student)}",
        *(f"{text}\n{share(name)}" for text, (name, _) in zip(counts, _counts(packed), strict=True)),
    )


def _counts(packed: bool) -> list[tuple[str, Callable[[float | None], str]]]:
    """Return the columns behind the latency: (cost, how it is shown)."""
    sizes = ["peak_memory_bytes", "file_bytes", *["packed_bytes"] * packed]
    return [*((name, size) for name in sizes), ("macs", quantity), ("parameters", quantity)]


def _metric_heading(front: Front) -> str:
    metric = metric_of(front.teacher)
    return f"{metric.name} {metric.unit}".rstrip()


def _interval(model: Student | None) -> str:
    return f"[dim]{escaped(interval_ms(model.latency_ms_ci95 if model else None))}[/]"


def _front_caption(front: Front) -> str:
    budgets = limits(front.limits)
    metric = metric_of(front.teacher).name
    caption = "n×: n times less than the teacher; [ ]: 95 % interval"
    if front.teacher and front.teacher.accuracy_from:
        caption += f"; {metric} on {front.teacher.accuracy_from} data, ± standard error"
    if budgets:
        caption = f"budgets: {budgets}\n{caption}"
    if not front.students:
        caption += f"\nno certified student; {len(front.measured)} measured"
    beaten = sum(student.certified for student in front.measured) - len(front.students)
    if beaten > 0:
        caption += f"\nnot shown: {beaten} certified, but beaten in validation {metric} and every cost"
    broken = len(front.violated)
    if broken:
        caption += f"\nnot shown: {broken} measured student{'s' if broken > 1 else ''} that broke a budget"
    return escaped(caption)


def patterns(names: Sequence[str]) -> list[str]:
    """Return names that differ in their numbers alone as one: `layer[1-4].[0-1].conv1`.

    Such a pattern may also describe names that do not exist; the count beside it is exact.
    """
    groups: dict[str, list[list[str]]] = {}
    for name in names:
        groups.setdefault(_NUMBER.sub("\0", name), []).append(_NUMBER.findall(name))
    found = []
    for shape, numbers in groups.items():
        pieces = shape.split("\0")
        ranges = [_range(column) for column in zip(*numbers, strict=True)] if pieces[1:] else []
        found.append("".join(piece + number for piece, number in zip(pieces, [*ranges, ""], strict=True)))
    return found


def _range(numbers: Sequence[str]) -> str:
    values = sorted({int(number) for number in numbers})
    if len(values) == 1:
        return numbers[0]
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return "[" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) + "]"


def new_table(title: str, caption: str = "") -> Table:
    """Return an empty table in the style of all of them."""
    from rich import box
    from rich.table import Table

    return Table(
        title=title or None,
        caption=caption or None,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )


def properties(title: str) -> Table:
    """Return an empty table of names and values."""
    table = new_table(escaped(title))
    table.show_header = False
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _section(table: Table, title: str, values: Any) -> None:
    if not values:
        return
    if not isinstance(values, Mapping):
        row(table, title, plain(values))
        return
    table.add_section()
    for name, value in values.items():
        row(table, name.removesuffix("_bytes").replace("_", " "), _measure(name, value))
    table.add_section()


def _measure(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith("_ms") and known(value):
        return milliseconds(value)
    if name == "load_average" and value:
        return " ".join(f"{load:.2f}" for load in value)
    return plain(value)


def row(table: Table, label: str, text: str, style: str = "") -> None:
    """Add a row to a table of names and values; nothing in it is markup."""
    table.add_row(escaped(label), escaped(text), style=style or None)


def escaped(text: str) -> str:
    """Return text in which nothing is markup."""
    from rich.markup import escape

    return escape(text)
