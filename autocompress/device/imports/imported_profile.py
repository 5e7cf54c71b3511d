"""From vendors' dumps to a device profile: as much as they allow, and it says what they do not.

Without latencies of whole networks a dump's sums are taken as they are: nothing is fitted and nothing
validated. A few latencies correct the common scale. Enough of them give what a measured profile has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from autocompress.cost.kernels import Kernel, kernels
from autocompress.cost.layouts import Layouts
from autocompress.device.imports.operators import Attributed, attribute_operators
from autocompress.device.imports.parsing import OperatorTime, get_parser
from autocompress.device.measure.log import Timed
from autocompress.device.profile.fitting import fitted, rows, validation
from autocompress.device.profile.latency_table import LatencyTable
from autocompress.device.profile.profile import DeviceProfile, LatencyFit
from autocompress.device.profile.sources import ProfileSource, kernels_fingerprint, with_sources
from autocompress.device.profile.validation import ImportGaps, UnknownOperator, Validation
from autocompress.device.profiler import Sample, file_coefficients
from autocompress.device.runtimes.description import DeviceDescription
from autocompress.errors import ProfileError

FEWEST_VALIDATED = 8
MOST_LISTED = 50
SCALES = (0.3, 3.0)
"""A latency further than this from the sum of its operators was typed in another unit."""

_REORDERS = ("ReorderInput", "ReorderOutput")


@dataclass(frozen=True)
class Measured:
    """Hold one dump: what it is of, what it says, and the latency of the whole network where it is known."""

    path: Path
    operators: tuple[OperatorTime, ...]
    sample: Sample
    latency_ms: float | None = None


def profile_from_dumps(
    measured: Sequence[Measured], kind: str, *, name: str, threads: int, batch: int, device: str
) -> DeviceProfile:
    """Return the profile of dumps made on the `device` of that name.

    Its validation lists, under `import`, operators that are not known and
    kernels that were not found.

    Raises ProfileError when a dump is not of its network, or latencies and dumps contradict each other.
    """
    layouts = _layouts(kind, measured)
    attributed = [_attributed(item, layouts) for item in measured]
    timed = [_timed(item, found) for item, found in zip(measured, attributed, strict=True)]
    table, fit, checked = _fit(timed, measured)
    samples = [item.sample for item in measured]
    source = ProfileSource(
        network="",
        space="",
        fit=fit,
        kernels_fingerprint=kernels_fingerprint(kernels(samples[0].network, layouts)),
        input_shape=tuple(samples[0].network.input_shape),
        networks=len(measured),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        teacher_latency_ms=measured[0].latency_ms,
    )
    gaps = ImportGaps(kind, _unknown(attributed), _missing(attributed))
    return DeviceProfile(
        name=name,
        runtime=get_parser(kind).RUNTIME,
        threads=threads,
        batch=batch,
        device=DeviceDescription({"runtime": get_parser(kind).RUNTIME, "cpu": device}),
        sources=(source,),
        layouts=layouts,
        table=table,
        fit=fit,
        file_coefficients=file_coefficients(samples),
        validation=replace(with_sources(checked, (source,)), imported=gaps),
    )


def _attributed(item: Measured, layouts: Layouts) -> Attributed:
    try:
        network = item.sample.network
        return attribute_operators(item.operators, item.sample.model, network, kernels(network, layouts))
    except ProfileError as error:
        raise ProfileError(error.what, where=str(item.path), why=error.why, fix=error.fix) from error


def _timed(item: Measured, found: Attributed) -> Timed:
    total_ms = sum(timing.time_us for timing in found.timings) / 1e3
    latency_ms = total_ms if item.latency_ms is None else item.latency_ms
    low, high = SCALES
    if not low <= latency_ms / total_ms <= high:
        raise ProfileError(
            "a latency and its dump contradict each other",
            where=str(item.path),
            why=f"operators: {total_ms:.4g} ms together, network: {latency_ms:.4g} ms",
            fix="check the unit of --latency (us, ms, s) and the order of dumps and latencies",
        )
    return Timed(
        item.sample.name,
        precision_of([timing.kernel for timing in found.timings]),
        latency_ms,
        1.0,
        found.timings,
    )


def precision_of(found: Sequence[Kernel]) -> str:
    """Return `fp32`, `int8` or `mixed`, by the layers that compute."""
    kinds = {kernel.precision for kernel in found if kernel.macs}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _fit(timed: Sequence[Timed], measured: Sequence[Measured]) -> tuple[LatencyTable, LatencyFit, Validation]:
    known = [item.latency_ms for item in measured if item.latency_ms is not None]
    if len(known) == len(measured) >= FEWEST_VALIDATED:
        latencies_us = np.array([item.latency_ms for item in timed]) * 1e3
        table, fit = fitted(timed, latencies_us)
        return table, fit, validation(timed, latencies_us)
    table = LatencyTable(rows(timed))
    groups = sorted({timing.kernel.group for item in timed for timing in item.kernels})
    sums = [sum(timing.time_us for timing in item.kernels) / 1e3 for item in timed]
    ratios = [
        item.latency_ms / total
        for item, total, given in zip(timed, sums, measured, strict=True)
        if given.latency_ms is not None
    ]
    scale = float(np.median(ratios)) if ratios else 1.0
    note = f"not validated: that takes latencies of {FEWEST_VALIDATED} whole networks, {len(known)} are known"
    fit = LatencyFit(dict.fromkeys(groups, scale), dict.fromkeys(groups, 0.0), 0.0)
    return table, fit, Validation(note=note)


def _layouts(kind: str, measured: Sequence[Measured]) -> Layouts:
    """Return how the tool's runtime lays out values. Only ONNX Runtime shows its reorderings as operators;
    whether it has blocks, not how large they are."""
    ops = {operator.op for item in measured for operator in item.operators}
    if kind != "onnxruntime":
        return Layouts(0, False)
    block = Layouts().float_block if ops.intersection(_REORDERS) else 0
    return Layouts(block, "QLinearConv" in ops and "Transpose" in ops)


def _unknown(attributed: Sequence[Attributed]) -> tuple[UnknownOperator, ...]:
    """Return operators by kind, the slowest first: how many there are, and what they take together."""
    found: dict[str, list[float]] = {}
    for item in attributed:
        for operator in item.unknown:
            found.setdefault((operator.op or operator.name)[:80], []).append(operator.time_us)
    ordered = sorted(found.items(), key=lambda entry: -sum(entry[1]))
    return tuple(
        UnknownOperator(name, len(times), round(sum(times), 3)) for name, times in ordered[:MOST_LISTED]
    )


def _missing(attributed: Sequence[Attributed]) -> tuple[str, ...]:
    texts = {
        f"{kernel.op} {kernel.precision} ({', '.join(kernel.nodes)})"
        for item in attributed
        for kernel in item.missing
    }
    return tuple(sorted(texts)[:MOST_LISTED])
