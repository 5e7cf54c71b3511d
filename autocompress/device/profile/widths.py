"""Which widths, and which precisions, a device's own measurements say are worth offering.

Only measured pairs count: two rows that differ in nothing but one number of channels. Steps and
cliffs are read off as they are; where nothing was measured, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np

from autocompress.cost.kernels import Kernel
from autocompress.device.profile.latency_table import Row
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.runtimes.description import Plain

STEPS = (64, 32, 16, 8, 4, 2)
MOST_LOSS, MOST_LOSS_OF_ONE = 0.02, 0.05
"""What rounding up may typically cost, and at nearly every width, and still count as free: a single
pair of rows is no more exact than that."""

MOST_EXCEPTIONS = 0.1
FEWEST_PAIRS = 3
_EXAMPLES = 3
_CHANNELS = {"in": ("in_channels", "in_elements"), "out": ("out_channels", "out_elements")}


@dataclass(frozen=True)
class Cliff:
    """Hold a narrower kernel that takes longer than a wider one: times in µs."""

    width: int
    time_us: float
    wider: int
    wider_us: float
    channels: str

    @property
    def words(self) -> str:
        narrow = f"{self.channels} width {self.width} takes {self.time_us:.1f} µs"
        return f"{narrow}, {self.wider} {self.wider_us:.1f} µs"


@dataclass(frozen=True)
class Widths:
    """Hold what is known of one kind of kernel in one precision.

    `steps` gives for input and for output channels the coarsest step that pays: rounding up to its
    multiples costs nothing, so no width between them is worth offering. 1 means that finer widths
    pay too, None that too few pairs were measured to tell. `pairs` says how many there were.
    """

    group: str
    rows: int
    widths: tuple[int, ...]
    steps: Mapping[str, int | None]
    pairs: Mapping[str, int]
    cliffs: tuple[Cliff, ...]

    @property
    def words(self) -> str:
        if len(self.widths) == 1:
            return "a single width was measured, so nothing is known of steps"
        parts = [
            f"{name}: multiples of {step}" if step and step > 1 else f"{name}: any width"
            for name, step in self.steps.items()
            if step is not None
        ]
        return ", ".join(parts) or "too few widths that differ in nothing else were measured to tell steps"


def widths_that_pay(profile: DeviceProfile) -> tuple[Widths, ...]:
    """Return which widths pay for every kind of layer and precision, in the order of their names."""
    groups: dict[str, list[Row]] = {}
    for row in profile.table.rows:
        if row.kernel.op in ("conv", "linear"):
            groups.setdefault(row.kernel.group, []).append(row)
    return tuple(_widths(profile, name, groups[name]) for name in sorted(groups))


def _widths(profile: DeviceProfile, group: str, rows: Sequence[Row]) -> Widths:
    stairs = {name: list(_staircases(profile, rows, name)) for name in _CHANNELS}
    if group.startswith("depthwise."):
        del stairs["in"]
    ratios = {name: {step: _rounding_up(found, step) for step in STEPS} for name, found in stairs.items()}
    cliffs = sorted(
        (cliff for name, found in stairs.items() for stair in found for cliff in _cliffs(stair, name)),
        key=lambda cliff: cliff.wider_us / cliff.time_us,
    )
    return Widths(
        group,
        len(rows),
        tuple(sorted({row.kernel.out_channels for row in rows})),
        {name: _coarsest(found) for name, found in ratios.items()},
        {name: sum(len(stair) - 1 for stair in found) for name, found in stairs.items()},
        tuple(cliffs[:_EXAMPLES]),
    )


def _staircases(profile: DeviceProfile, rows: Sequence[Row], channels: str) -> Iterator[dict[int, Row]]:
    """Return rows by width where nothing else differs, times being shares of a network's latency."""
    own, count = _CHANNELS[channels]
    found: dict[Kernel, dict[int, Row]] = {}
    for row in rows:
        kernel = row.kernel
        blank = {own: 0, count: 0}
        if kernel.groups > 1 and kernel.groups == kernel.in_channels:
            blank = {"in_channels": 0, "in_elements": 0, "out_channels": 0, "out_elements": 0, "groups": 2}
        share = profile.fit.kernel_us(kernel, row.median_us, row.operations) / row.median_us
        scaled = replace(
            row,
            median_us=share * row.median_us,
            ci95_low_us=share * row.ci95_low_us,
            ci95_high_us=share * row.ci95_high_us,
        )
        found.setdefault(replace(kernel, **blank), {})[getattr(kernel, own)] = scaled  # type: ignore[arg-type]
    return (stair for stair in found.values() if len(stair) > 1)


def _rounding_up(stairs: Sequence[Mapping[int, Row]], step: int) -> list[float]:
    """Return for each measured width and the next multiple of `step`, where that was measured too: how many
    times as long the wider one takes."""
    found = []
    for stair in stairs:
        for width, row in stair.items():
            wider = stair.get(-(-width // step) * step)
            if wider is not None and wider is not row:
                found.append(wider.median_us / row.median_us)
    return found


def _coarsest(ratios: Mapping[int, Sequence[float]]) -> int | None:
    """Return the coarsest step with enough pairs, of which the typical one costs nothing and nearly none
    does; 1 where every step with enough pairs costs, None where there are too few pairs."""
    enough = {step: np.array(found) - 1 for step, found in ratios.items() if len(found) >= FEWEST_PAIRS}
    for step, losses in enough.items():
        exceptions = float((losses > MOST_LOSS_OF_ONE).mean())
        if np.median(losses) <= MOST_LOSS and exceptions <= MOST_EXCEPTIONS:
            return step
    return 1 if enough else None


def _cliffs(stair: Mapping[int, Row], channels: str) -> Iterator[Cliff]:
    """Return each width with the next wider one, where the wider is faster beyond both intervals."""
    ordered = sorted(stair)
    for width, wider in pairwise(ordered):
        slow, fast = stair[width], stair[wider]
        if fast.ci95_high_us < slow.ci95_low_us:
            yield Cliff(width, slow.median_us, wider, fast.median_us, channels)


@dataclass(frozen=True)
class PrecisionGain:
    """Hold how much faster one precision was than another for kernels of equal shapes.

    `ratios` of time to that of `than`: smallest, median, largest over `shapes` shapes.
    """

    kind: str
    precision: str
    than: str
    shapes: int
    ratios: tuple[float, float, float]

    @property
    def never_faster(self) -> bool:
        return self.shapes >= FEWEST_PAIRS and self.ratios[0] >= 1

    @property
    def words(self) -> str:
        low, middle, high = self.ratios
        spread = f"{low:.2f}–{high:.2f}, {self.shapes} shapes"
        if self.never_faster:
            return f"never faster than {self.than}: {middle:.2f}× as long ({spread})"
        return f"{middle:.2f}× as long as {self.than} ({spread})"


def precision_gains(profile: DeviceProfile, than: str = "fp32") -> tuple[PrecisionGain, ...]:
    """Compare every precision with rows against `than`, for each kind of kernel that has equal shapes in
    both."""
    times: dict[tuple[str, str], dict[Kernel, list[float]]] = {}
    for row in profile.table.rows:
        kernel = row.kernel
        if kernel.op in ("conv", "linear"):
            kind = kernel.group.partition(".")[0]
            time_us = profile.fit.kernel_us(kernel, row.median_us, row.operations)
            times.setdefault((kind, kernel.precision), {}).setdefault(_shape(kernel), []).append(time_us)
    found = []
    for (kind, precision), own in sorted(times.items()):
        other = times.get((kind, than), {})
        ratios = [float(np.median(own[shape]) / np.median(other[shape])) for shape in own if shape in other]
        if precision != than and ratios:
            spread = (min(ratios), float(np.median(ratios)), max(ratios))
            found.append(PrecisionGain(kind, precision, than, len(ratios), spread))
    return tuple(found)


def _shape(kernel: Kernel) -> Kernel:
    """Return the kernel without what precisions do differently."""
    return replace(kernel, precision="", layout="", activation="", adds=0, nodes=())


@dataclass(frozen=True)
class KernelCoverage:
    """Hold what was measured of one operation in one precision.

    `rows` are different kernels, `measured` all their occurrences; `out_channels` and `median_us` are the
    least and the most. `widths` says which steps pay, None for what has no widths.
    """

    kind: str
    precision: str
    rows: int
    measured: int
    out_channels: tuple[int, int] | None
    median_us: tuple[float, float]
    widths: Widths | None

    def to_json(self) -> dict[str, Plain]:
        """Return what `profile show --format json` prints."""
        own = {**vars(self), "out_channels": self.out_channels and list(self.out_channels)}
        found = self.widths
        return {
            **own,
            "median_us": list(self.median_us),
            "widths": None if found is None else len(found.widths),
            "steps": None if found is None else dict(found.steps),
            "pairs": None if found is None else dict(found.pairs),
            "cliffs": [] if found is None else [asdict(cliff) for cliff in found.cliffs],
            "steps_in_words": "" if found is None else found.words,
        }


def coverage(profile: DeviceProfile) -> list[KernelCoverage]:
    """Return what was measured of each operation and precision, in the order of their names."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in profile.table.rows:
        kind, precision = row.kernel.group.rpartition(".")[::2]
        kind = row.kernel.op if kind == "other" else kind
        groups.setdefault((kind, precision), []).append(row)
    known = {found.group: found for found in widths_that_pay(profile)}
    result = []
    for (kind, precision), rows in sorted(groups.items()):
        channels = [row.kernel.out_channels for row in rows if row.kernel.out_channels]
        times_us = [row.median_us for row in rows]
        result.append(
            KernelCoverage(
                kind=kind,
                precision=precision,
                rows=len(rows),
                measured=sum(row.count for row in rows),
                out_channels=(min(channels), max(channels)) if channels else None,
                median_us=(min(times_us), max(times_us)),
                widths=known.get(f"{kind}.{precision}"),
            )
        )
    return result
