"""What a check of a network found, as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autocompress.reporting.inspection_tables import reasons_table
from autocompress.reporting.tables import escaped, new_table, properties, row
from autocompress.reporting.units import UNKNOWN, percent, quantity, ratio, significant

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from autocompress.pipeline.before_search.candidate_check import CheckedCandidate, NetworkCheck


def check_table(check: NetworkCheck) -> Group:
    """Return what can be changed, what is locked and why, how each candidate went, and the answer."""
    from rich.console import Group
    from rich.text import Text

    locked = [(site.kind, site.target, "", site.locked) for site in check.sites if site.locked]
    answer = Text(check.conclusion, style="green" if check.passed else "red")
    parts = [_network_table(check), *([reasons_table("locked", locked)] if locked else [])]
    return Group(*parts, _candidates_table(check), answer)


def _network_table(check: NetworkCheck) -> Table:
    table = properties(check.teacher)
    row(table, "input", "×".join(map(str, check.input_shape)))
    row(table, "multiply-adds", quantity(check.macs))
    row(table, "parameters", quantity(check.parameters))
    row(table, "can be changed", f"{percent(check.changeable_share, 1)} of the multiply-adds")
    candidates = f"10^{check.log10_size:.1f} candidates"
    row(table, "decisions", f"{check.decisions} at {len(check.sites)} sites, {candidates}")
    return table


def _candidates_table(check: NetworkCheck) -> Table:
    caption = f"compared on {check.examples}; errors are shares of the outputs' range"
    table = new_table(f"candidates, exported and run in {check.runtime}", caption=caption)
    table.add_column("candidate", overflow="fold")
    for heading in ("bits", "choices", "MACs", "less", "largest error", "same class"):
        table.add_column(heading, justify="right")
    table.add_column("", overflow="fold")
    for one in check.candidates:
        parity = one.parity
        table.add_row(
            one.name,
            one.precision,
            str(one.choices),
            quantity(one.macs),
            ratio(check.macs, one.macs),
            _error(one),
            UNKNOWN if parity is None else percent(parity.agreement, 0),
            "[green]ok[/]" if not one.reason else f"[red]{escaped(one.reason)}[/]",
        )
    return table


def _error(one: CheckedCandidate) -> str:
    """Return the largest error; what is far below what counts as equal without its digits."""
    if one.parity is None:
        return UNKNOWN
    error = one.parity.max_error
    return "< 0.0001 %" if error < 1e-6 else f"{significant(100 * error, 2)} %"
