"""What a search could decide, as tables for a terminal; alike sites share a row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from autocompress.problem.candidate import Option
from autocompress.reporting.tables import escaped, new_table, patterns
from autocompress.reporting.units import COSTS, cost, percent, plain, ratio

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

    from autocompress.api import Inspection

_NUMBER = re.compile(r"\d+")
_HEADINGS = ("kind", "layers", "sites", "options")

Reason = tuple[str, str, str, str]
"""(kind, target, option, reason); the option is empty where the reason is of the whole site."""


def inspection_table(inspection: Inspection) -> Group:
    """Return what a search could decide, what it could not and why."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_choices_table(inspection)]
    for title, reasons in _left_out(inspection):
        if reasons:
            parts.append(reasons_table(title, reasons))
    if inspection.conclusion:
        parts.append(Text(inspection.conclusion, style="yellow"))
    if inspection.teacher_cost and inspection.smallest:
        parts.append(_reach_table(inspection))
    return Group(*parts)


def _left_out(inspection: Inspection) -> Iterator[tuple[str, list[Reason]]]:
    """Yield (title, reasons) of each cause that keeps something from being decided."""
    yield "locked", [(site.kind, site.target, "", site.locked) for site in inspection.sites if site.locked]
    yield (
        "have no form in ONNX: use a runtime of torch (--runtime torch)",
        [
            ("operation", name, "", f"{what}: {why}" if why else what)
            for name, what, why in inspection.without_onnx
        ],
    )
    yield "options left out", _reasons(inspection.dropped)
    yield "options left out unless --size or --memory is given", _reasons(inspection.only_smaller)
    yield "options left out unless --packed-size is given", _reasons(inspection.only_packed)


def _reasons(dropped: Iterable[tuple[str, Option, str]]) -> list[Reason]:
    return [(*name.partition(":")[::2], plain(option), why) for name, option, why in dropped]


def _choices_table(inspection: Inspection) -> Table:
    free = [site for site in inspection.sites if not site.locked]
    caption = (
        f"{len(free)} decisions at {len(inspection.sites)} sites, 10^{inspection.log10_size:.1f} candidates; "
        "bold: as in the teacher"
    )
    table = new_table("decisions", caption=caption)
    _add_columns(table, _HEADINGS)
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


def _add_columns(table: Table, headings: Sequence[str]) -> None:
    for heading in headings:
        table.add_column(heading, justify="right" if heading == "sites" else "left", overflow="fold")


def reasons_table(title: str, reasons: Sequence[Reason]) -> Table:
    """Return a table in which reasons that differ in numbers alone share a row."""
    table = new_table(title)
    _add_columns(table, (*_HEADINGS, "reason"))
    groups: dict[tuple[str, str], list[Reason]] = {}
    for reason in reasons:
        kind, _, _, why = reason
        groups.setdefault((kind, _NUMBER.sub("#", why)), []).append(reason)
    for (kind, _), found in groups.items():
        table.add_row(kind, *(escaped(cell) for cell in _shared_row(found)))
    if not any(option for _, _, option, _ in reasons):
        table.columns.pop(_HEADINGS.index("options"))
    return table


def _shared_row(reasons: Sequence[Reason]) -> tuple[str, str, str, str]:
    """Return layers, number of sites, options, and the most frequent reason."""
    targets = list(dict.fromkeys(target for _, target, _, _ in reasons))
    options = list(dict.fromkeys(option for _, _, option, _ in reasons if option))
    (first, _), *others = Counter(why for *_, why in reasons).most_common()
    why = f"{first} (and the like)" if others else first
    return ", ".join(patterns(targets)), str(len(targets)), ", ".join(options), why


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
