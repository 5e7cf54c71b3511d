"""Device profiles as tables for a terminal: one, a comparison of two, and a check of one on its device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autocompress.device.profile.validation import Validation
from autocompress.device.profile.widths import coverage, precision_gains
from autocompress.files import JsonObject
from autocompress.reporting.tables import escaped, new_table, properties, row
from autocompress.reporting.units import UNKNOWN, known, milliseconds, percent, plain, significant

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

    from autocompress.device.profile.profile import DeviceProfile
    from autocompress.device.profile.validation import PredictionErrors

_DEVICE = {"cpu": "processor", "version": "runtime version", "cpu_quota": "CPU quota"}
_SHOWN = (
    "cpu",
    "features",
    "cores",
    "usable_cores",
    "cpu_quota",
    "governor",
    "load_average",
    "system",
    "version",
)
_ERRORS = (
    ("mean_error", "mean error of latency"),
    ("largest_error", "largest error"),
    ("error95", "95 % of errors within ±"),
    ("within_5_percent", "networks within ± 5 %"),
    ("within_10_percent", "networks within ± 10 %"),
)


def profile_table(profile: DeviceProfile) -> Table:
    """Draw a device profile: where it was made, of what, and how well it predicts networks it has not
    seen."""
    table = properties(f"device profile {profile.name}")
    for name in ("runtime", "threads", "batch"):
        row(table, name, plain(getattr(profile, name)))
    row(table, "kernels measured", str(len(profile.table.rows)))
    for source in profile.sources:
        parts = [source.network, source.space and f"space {source.space}", _size(source.input_shape)]
        row(table, "measured on", ", ".join(part for part in parts if part) or UNKNOWN)
    table.add_section()
    for name in _SHOWN:
        if name in profile.device.values:
            row(table, _DEVICE.get(name, name.replace("_", " ")), plain(profile.device.values[name]))
    table.add_section()
    for label, text in _validation(profile.validation):
        row(table, label, text)
    return table


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape[1:]))


def _validation(found: PredictionErrors) -> list[tuple[str, str]]:
    """Return errors on networks that were held out, each left out where it was not computed."""
    if not found.count:
        return [("validation", "none: no network was held out")]
    rows = [("networks held out", plain(found.count))]
    errors = found.numbers
    rows += [(label, percent(errors[name], 1)) for name, label in _ERRORS if known(errors.get(name))]
    if known(found.rank_correlation):
        rows.append(("rank correlation", f"{found.rank_correlation:.3f}"))
    return rows


def profile_report(profile: DeviceProfile) -> Group:
    """Draw the profile, its errors by source and precision, its rows by kind, and what pays on the device."""
    from rich.console import Group

    parts: list[RenderableType] = [profile_table(profile)]
    errors = [
        (source.network or UNKNOWN, kind, summary)
        for index, source in enumerate(profile.sources)
        for kind, summary in _by_precision(profile.validation_of(index)).items()
    ]
    if errors:
        parts.append(_errors_table("errors", errors))
    parts.append(_coverage_table(profile))
    gains = precision_gains(profile)
    if gains:
        table = properties("precisions, kernels of equal shapes")
        for gain in gains:
            row(
                table,
                f"{gain.kind} {gain.precision}",
                gain.words,
                style="yellow" if gain.never_faster else "",
            )
        parts.append(table)
    return Group(*parts)


def _by_precision(validation: Validation) -> Mapping[str, PredictionErrors]:
    return {"all": validation, **validation.by_precision} if validation.count else {}


def _errors_table(title: str, errors: Sequence[tuple[str, str, PredictionErrors]]) -> Table:
    table = new_table(title)
    for heading in ("network", "precision"):
        table.add_column(heading)
    for heading in ("networks", "mean", "largest", "± 5 %", "± 10 %", "rank"):
        table.add_column(heading, justify="right", overflow="fold")
    for network, kind, found in errors:
        rank = found.rank_correlation
        numbers = (found.mean_error, found.largest_error, found.within_5_percent, found.within_10_percent)
        shares = [percent(number, 1) for number in numbers]
        cells = (network, kind, plain(found.count), *shares, f"{rank:.3f}" if known(rank) else UNKNOWN)
        table.add_row(*map(escaped, cells))
    return table


def _coverage_table(profile: DeviceProfile) -> Table:
    table = new_table(
        "kernels",
        caption="steps that pay: rounding widths up to their multiples costs nothing, so none between",
    )
    for heading in ("kernel", "precision", "rows", "channels", "widths", "µs", "steps that pay"):
        numbers = heading in ("rows", "widths")
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for found in coverage(profile):
        channels, times, widths = found.out_channels, found.median_us, found.widths
        words = [widths.words, *(cliff.words for cliff in widths.cliffs[:1])] if widths else []
        cells = (
            found.kind,
            found.precision,
            str(found.rows),
            f"{channels[0]}–{channels[1]}" if channels else "",
            plain(len(widths.widths)) if widths else "",
            f"{significant(times[0], 2)}–{significant(times[1], 2)}",
            "; ".join(filter(None, words)),
        )
        table.add_row(*map(escaped, cells))
    return table


def difference_table(found: JsonObject) -> Group:
    """Draw what `profile_difference` found."""
    from rich.console import Group

    parts: list[RenderableType] = []
    if found["settings"]:
        settings = new_table("what differs in how they were measured")
        for heading in ("", found["first"], found["second"]):
            settings.add_column(escaped(heading), overflow="fold")
        for name, pair in found["settings"].items():
            settings.add_row(escaped(name), *(escaped(plain(value)) for value in pair))
        parts.append(settings)
    kernels = found["kernels"]
    caption = (
        f"ratios of medians, {found['second']} by {found['first']}; {kernels['in_common']} in common, "
        f"{kernels['only_in_first']} and {kernels['only_in_second']} are in one of them only"
    )
    table = new_table("kernels", caption=escaped(caption))
    table.add_column("kind")
    for heading in ("kernels", "median ratio", "beyond ± 5 %", "± 10 %", "smallest", "largest"):
        table.add_column(heading, justify="right")
    for name, ratios in {**found["families"], "all": found["all"]}.items():
        table.add_row(
            escaped(name),
            str(ratios["count"]),
            significant(ratios["median_ratio"], 4),
            percent(ratios.get("beyond_5_percent"), 1),
            percent(ratios.get("beyond_10_percent"), 1),
            significant(ratios.get("smallest_ratio")),
            significant(ratios.get("largest_ratio")),
        )
    return Group(*parts, table)


def revalidation_table(found: JsonObject) -> Group:
    """Draw what a check of a profile on its device found."""
    from rich.console import Group

    table = properties(f"device profile {found['profile']}, checked here")
    row(table, "network", f"{found['network']}, space {found['space']}, seed {found['seed']}")
    row(table, "predictions", f"{found['basis']}, said to be within ± {percent(found['claimed_error95'], 1)}")
    measured = [point["measured_ms"] for point in found["networks"]]
    if measured:
        row(table, "measured", f"{milliseconds(min(measured))} to {milliseconds(max(measured))}")
    errors = [
        (found["network"], kind, one) for kind, one in _by_precision(Validation.from_json(found)).items()
    ]
    return Group(table, _errors_table("errors of predictions for networks measured now", errors))
