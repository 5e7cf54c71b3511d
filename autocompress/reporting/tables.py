"""The same records as tables for a terminal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    significant,
    size,
)

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

    from autocompress.api import Inspection
    from autocompress.pipeline.budget_queries import Answer
    from autocompress.runs.front import Front

_NUMBER = re.compile(r"\d+")


def front_table(front: Front) -> Table:
    """The teacher and each student of the front, measured costs beside the teacher's; fits 80 columns."""
    table = new_table("", caption=_front_caption(front))
    table.padding = (0, 1, 0, 0)
    table.add_column("model", no_wrap=True)
    packed = known(front.limits.get("packed_bytes"))
    for heading in ("accuracy %", "latency", "memory", "file", *["packed"] * packed, "MACs", "params"):
        table.add_column(heading, justify="right", no_wrap=True)
    teacher = front.teacher
    table.add_row("teacher", *_numbers(teacher, {}, packed), end_section=True)
    for student in front.students:
        mark = "[green]✓ certified[/]" if student.certified else "[red]✗ not certified[/]"
        table.add_row(
            f"[bold]{escaped(student.key)}[/]\n{mark}", *_numbers(student.to_json(), teacher, packed)
        )
    return table


def inspection_table(inspection: Inspection) -> Group:
    """What a search could decide, what it could not and why; alike sites share a row."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_choices_table(inspection)]
    locked = [site for site in inspection.sites if site.locked]
    if locked:
        parts.append(_reasons_table("locked", ((site.kind, site.target, "", site.locked) for site in locked)))
    if inspection.dropped:
        rows = ((*name.partition(":")[::2], plain(option), why) for name, option, why in inspection.dropped)
        parts.append(_reasons_table("options left out", rows))
    if inspection.only_smaller:
        rows = (
            (*name.partition(":")[::2], plain(option), why) for name, option, why in inspection.only_smaller
        )
        parts.append(_reasons_table("options left out unless --size or --memory is given", rows))
    if inspection.only_packed:
        rows = (
            (*name.partition(":")[::2], plain(option), why) for name, option, why in inspection.only_packed
        )
        parts.append(_reasons_table("options left out unless --packed-size is given", rows))
    if inspection.conclusion:
        parts.append(Text(inspection.conclusion, style="yellow"))
    if inspection.teacher_cost and inspection.smallest:
        parts.append(_reach_table(inspection))
    return Group(*parts)


def bench_table(bench: Mapping[str, Any]) -> Table:
    """A new measurement beside the recorded one."""
    table = properties(f"student {bench.get('student', '')}".strip())
    measured = bench.get("measured") or {}
    recorded = bench.get("recorded") or {}
    for label, found in (("measured now", measured), ("when certified", recorded)):
        if found:
            row(
                table,
                label,
                f"{milliseconds(found.get('latency_ms'))} {interval_ms(found.get('latency_ms_ci95'))}",
            )
    if known(bench.get("ratio")):
        row(table, "now / then", f"{significant(bench['ratio'])}×")
    for name in ("p90_ms", "p95_ms", "p99_ms"):
        if known(measured.get(name)):
            row(table, name.removesuffix("_ms"), milliseconds(measured[name]))
    row(table, "budgets", limits(bench.get("limits") or {}) or "none")
    violated = [COSTS.get(name, name) for name in bench.get("violated") or ()]
    verdict = f"[red]broken: {', '.join(violated)}[/]" if violated else "[green]kept[/]"
    table.add_row("verdict", verdict)
    return table


def answer_table(answer: Answer) -> Table:
    """The candidate that answers a budget: predicted costs, then its choices, alike ones in a row."""
    table = properties(f"candidate {answer.candidate.key}: predicted, not trained or measured")
    predicted = answer.predicted
    latency = f"{milliseconds(predicted.latency_ms)} {interval_ms(predicted.latency_ms_ci95)}"
    row(table, "latency", latency)
    row(table, "memory", size(predicted.peak_memory_bytes))
    row(table, "file size", size(predicted.file_bytes))
    row(table, "packed size", size(predicted.packed_bytes))
    row(table, "expected damage", f"{significant(answer.expected_damage)}, summed over its choices")
    row(table, "limits", limits(answer.limits.to_json()))
    table.add_section()
    groups: dict[tuple[str, str], list[str]] = {}
    for name, option in answer.candidate.choices:
        kind, _, target = name.partition(":")
        groups.setdefault((kind, plain(option)), []).append(target)
    for (kind, option), targets in groups.items():
        row(table, f"{kind} {option}", ", ".join(patterns(targets)))
    return table


def doctor_table(found: Mapping[str, Any]) -> Table:
    """What `doctor` found, problems last."""
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


def status_table(status: Mapping[str, Any]) -> Table:
    """How far a run is and what it decided."""
    table = properties(str(status.get("run", "run")))
    for name, value in (status.get("counts") or {}).items():
        row(table, name, str(value))
    row(table, "certified", str(status.get("certified", UNKNOWN)))
    state = "finished" if status.get("finished") else "under way, or interrupted"
    if status.get("finished"):
        state += f", exit code {status.get('exit_code')}"
    row(table, "state", state)
    for text in status.get("decisions") or ():
        row(table, "decided", text)
    for line in status.get("damaged") or ():
        row(table, "damaged", f"line {line} of events.jsonl cannot be read", style="yellow")
    return table


def _numbers(record: Mapping[str, Any], teacher: Mapping[str, Any], packed: bool = False) -> tuple[str, ...]:
    """Cells from accuracy to parameters, that of the packed size where asked; with a teacher the second line
    compares with it."""

    def cell(value: str, name: str) -> str:
        return f"{value}\n[dim]{ratio(teacher.get(name), record.get(name))}[/]" if teacher else value

    latency = milliseconds(record.get("latency_ms"))
    if teacher:
        latency += f" [dim]{ratio(teacher.get('latency_ms'), record.get('latency_ms'))}[/]"
    difference = points(record.get("accuracy"), teacher.get("accuracy"))
    percentage = accuracy(record).removesuffix(" %")
    return (
        f"{percentage}\n[dim]{difference} points[/]" if teacher else percentage,
        f"{latency}\n[dim]{escaped(interval_ms(record.get('latency_ms_ci95')))}[/]",
        cell(size(record.get("peak_memory_bytes")), "peak_memory_bytes"),
        cell(size(record.get("file_bytes")), "file_bytes"),
        *([cell(size(record.get("packed_bytes")), "packed_bytes")] if packed else []),
        cell(quantity(record.get("macs")), "macs"),
        cell(quantity(record.get("parameters")), "parameters"),
    )


def _front_caption(front: Front) -> str:
    budgets = limits(front.limits)
    caption = "n×: n times less than the teacher; [ ]: 95 % interval"
    if "accuracy_from" in front.teacher:
        caption += f"; accuracy on {front.teacher['accuracy_from']} data, ± standard error"
    if budgets:
        caption = f"budgets: {budgets}\n{caption}"
    if not front.students:
        caption += f"\nno certified student; {len(front.measured)} measured"
    beaten = sum(student.certified for student in front.measured) - len(front.students)
    if beaten > 0:
        caption += f"\nnot shown: {beaten} certified, but beaten in validation accuracy and every cost"
    broken = len(front.violated)
    if broken:
        caption += f"\nnot shown: {broken} measured student{'s' if broken > 1 else ''} that broke a budget"
    return escaped(caption)


def _choices_table(inspection: Inspection) -> Table:
    free = [site for site in inspection.sites if not site.locked]
    caption = (
        f"{len(free)} decisions at {len(inspection.sites)} sites, 10^{inspection.log10_size:.1f} candidates; "
        "bold: as in the teacher"
    )
    table = new_table("decisions", caption=caption)
    for heading in ("kind", "layers", "sites", "options"):
        table.add_column(heading, justify="right" if heading == "sites" else "left", overflow="fold")
    groups: dict[tuple[str, str], list[str]] = {}
    for site in free:
        options = "  ".join(
            f"[bold]{escaped(plain(option))}[/]" if option == site.default else escaped(plain(option))
            for option in site.options
        )
        groups.setdefault((site.kind, options), []).append(site.target)
    for (kind, options), targets in groups.items():
        table.add_row(kind, escaped(", ".join(patterns(targets))), str(len(targets)), options)
    return table


def _reasons_table(title: str, rows: Iterable[tuple[str, str, str, str]]) -> Table:
    """Rows of (kind, target, option, reason); those whose reasons differ in numbers alone are one."""
    table = new_table(title)
    for heading in ("kind", "layers", "sites", "options", "reason"):
        table.add_column(heading, justify="right" if heading == "sites" else "left", overflow="fold")
    groups: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for kind, target, option, reason in rows:
        groups.setdefault((kind, _NUMBER.sub("#", reason)), []).append((target, option, reason))
    for (kind, _), found in groups.items():
        targets = list(dict.fromkeys(target for target, _, _ in found))
        options = list(dict.fromkeys(option for _, option, _ in found if option))
        cells = (
            ", ".join(patterns(targets)),
            str(len(targets)),
            ", ".join(options),
            _shared([r for *_, r in found]),
        )
        table.add_row(kind, *(escaped(cell) for cell in cells))
    if all(not option for found in groups.values() for _, option, _ in found):
        table.columns.pop(3)
    return table


def _shared(reasons: Sequence[str]) -> str:
    (first, _), *others = Counter(reasons).most_common()
    return f"{first} (and the like)" if others else first


def _reach_table(inspection: Inspection) -> Table:
    caption = (
        f"latencies {inspection.basis}, ± {percent(inspection.relative_error, 1)}" if inspection.basis else ""
    )
    table = new_table("predicted cost of one inference", caption=caption)
    teacher, least = inspection.teacher_cost, inspection.smallest
    for heading in ("", "teacher", "least reachable", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, label in COSTS.items():
        before, after = getattr(teacher, name), getattr(least, name)
        table.add_row(label, cost(name, before), cost(name, after), ratio(before, after))
    return table


def patterns(names: Sequence[str]) -> list[str]:
    """Names that differ in their numbers alone, as one: `layer[1-4].[0-1].conv1`.

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
    table.add_row(escaped(label), escaped(text), style=style or None)


def escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
