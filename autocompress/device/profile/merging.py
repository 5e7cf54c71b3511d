"""Several profiles of one device as one that covers all of their networks.

Rows of equal kernels are pooled: counts add up, medians are count-weighted, and the interval spans
those of the parts, within ± 100 %. Sources keep their own fits, to which `DeviceProfile.for_network`
comes back. The pooled fit is, key by key, the median of the parts' fits, weighted with how many
networks each was fitted to; so are the coefficients of file sizes, as a mean. A source whose kernels
got other medians by the pooling has the shift of its predictions added to its error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autocompress.cost.kernels import Kernel
from autocompress.device.profile.latency_table import LatencyTable, Row
from autocompress.device.profile.profile import DeviceProfile, LatencyFit
from autocompress.device.profile.sources import ProfileSource, with_sources
from autocompress.device.profile.validation import Validation, validation_of
from autocompress.errors import ProfileError

_OF_DEVICE = ("cpu", "cpu_id", "gpu", "version", "provider")
"""What two parts must agree in beside runtime, threads, batch and layouts, where both say it."""


def merge_profiles(profiles: Sequence[DeviceProfile], name: str = "merged") -> DeviceProfile:
    """Return one profile with the sources of all, in their order; the device's description is that of the
    first.

    Raises ProfileError unless all are of one device, runtime, number of threads and batch size.
    """
    if not profiles:
        raise ProfileError("there is no profile to merge", fix="name two profiles or more")
    first = profiles[0]
    for other in profiles[1:]:
        _check_same(first, other)
    _check_once(profiles)
    table = LatencyTable(_pooled_rows(profiles))
    weights = [sum(source.networks for source in profile.sources) or 1 for profile in profiles]
    return replace(
        first,
        name=name,
        sources=tuple(source for profile in profiles for source in _own_sources(profile)),
        table=table,
        fit=_pooled_fit([profile.fit for profile in profiles], weights),
        file_coefficients=_mean([profile.file_coefficients for profile in profiles], weights),
        validation=_pooled_validation(profiles, table),
        basis="",
        source_index=None,
    )


def _check_same(first: DeviceProfile, other: DeviceProfile) -> None:
    of_device = [(key, getattr(first.device, key), getattr(other.device, key)) for key in _OF_DEVICE]
    pairs = [(key, mine, theirs) for key, mine, theirs in of_device if None not in (mine, theirs)]
    pairs += [
        (key, getattr(first, key), getattr(other, key)) for key in ("runtime", "threads", "batch", "layouts")
    ]
    for key, mine, theirs in pairs:
        if mine != theirs:
            raise ProfileError(
                f"the profiles {first.name!r} and {other.name!r} cannot be merged",
                where=key,
                why=f"one has {mine}, the other {theirs}",
                fix="merge profiles of one device, runtime, number of threads and batch size",
            )


def _check_once(profiles: Sequence[DeviceProfile]) -> None:
    """Raise ProfileError for a measurement that two profiles hold, which would count twice."""
    holder: dict[tuple[Any, ...], str] = {}
    for profile in profiles:
        for source in filter(lambda source: source.measured_at, profile.sources):
            plain = (source.network, source.space, source.input_shape, source.seed, source.measured_at)
            if plain in holder:
                raise ProfileError(
                    f"the profiles {holder[plain]!r} and {profile.name!r} cannot be merged",
                    where=source.network,
                    why=f"both hold what was measured of it at {source.measured_at}, which would count twice",
                    fix="merge profiles that were measured apart",
                )
            holder[plain] = profile.name


def _own_sources(profile: DeviceProfile) -> list[ProfileSource]:
    """Return the sources, each with its coefficients of file sizes: they fit one family of names and
    layers."""
    return [
        replace(source, file_coefficients=source.file_coefficients or profile.file_coefficients)
        for source in profile.sources
    ]


def _pooled_rows(profiles: Sequence[DeviceProfile]) -> list[Row]:
    found: dict[Kernel, list[Row]] = {}
    for profile in profiles:
        for row in profile.table.rows:
            found.setdefault(row.kernel, []).append(row)
    return [rows[0] if len(rows) == 1 else _pooled(rows) for rows in found.values()]


def _pooled(rows: Sequence[Row]) -> Row:
    counts = [row.count for row in rows]
    median = weighted_median([row.median_us for row in rows], counts)
    return Row(
        rows[0].kernel,
        sum(counts),
        weighted_median([row.operations for row in rows], counts),
        median,
        max(0.0, min(row.ci95_low_us for row in rows)),
        min(2 * median, max(row.ci95_high_us for row in rows)),
    )


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the value at half the weight; between two values where half lies between them."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(np.asarray(weights, dtype=float)[order])
    half = cumulative[-1] / 2
    low = int(np.searchsorted(cumulative, half, side="left"))
    high = int(np.searchsorted(cumulative, half, side="right"))
    return float((values[order[low]] + values[order[min(high, len(values) - 1)]]) / 2)


def _pooled_fit(fits: Sequence[LatencyFit], weights: Sequence[float]) -> LatencyFit:
    """Return the weighted medians of the constants and, group by group, of scales and overheads."""
    return LatencyFit(
        _medians_of([fit.scales for fit in fits], weights),
        _medians_of([fit.overheads_us for fit in fits], weights),
        weighted_median([fit.constant_us for fit in fits], weights),
    )


def _medians_of(given: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """Return for each name the median of the mappings that have it."""
    found = {}
    for name in dict.fromkeys(name for mapping in given for name in mapping):
        having = [place for place, mapping in enumerate(given) if name in mapping]
        found[name] = weighted_median(
            [given[place][name] for place in having], [weights[place] for place in having]
        )
    return found


def _mean(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.average(np.array(rows), axis=0, weights=weights))


def _pooled_validation(profiles: Sequence[DeviceProfile], table: LatencyTable) -> Validation:
    summaries: list[Validation] = []
    for profile in profiles:
        whole = profile.validation
        given = whole.sources or with_sources(whole, profile.sources).sources
        moved = [_shift(profile, source, table) for source in profile.sources]
        summaries += [_worse(one, shift) for one, shift in zip(given, moved, strict=True)]
    pooled = validation_of(
        [point for profile in profiles for point in profile.validation.networks],
        [one for profile in profiles for one in profile.validation.unpredicted],
    )
    errors = [one.error95 for one in summaries if one.error95 is not None]
    if errors and pooled.error95 is not None:
        pooled = replace(pooled, error95=max(pooled.error95, *errors))
    return replace(pooled, sources=tuple(summaries))


def _shift(profile: DeviceProfile, source: ProfileSource, table: LatencyTable) -> float:
    """Return how far the pooling moved predictions of the profile's own networks, as a share, on the
    average."""
    return _mean_share(profile, lambda kernel: table.lookup(kernel).median_us, source.fit)


def _mean_share(profile: DeviceProfile, median_us: Callable[[Kernel], float], fit: LatencyFit) -> float:
    rows = profile.table.rows
    before = [row.count * fit.kernel_us(row.kernel, row.median_us, row.operations) for row in rows]
    after = [row.count * fit.kernel_us(row.kernel, median_us(row.kernel), row.operations) for row in rows]
    return abs(sum(after) / sum(before) - 1)


def _worse(found: Validation, shift: float) -> Validation:
    """Return the errors with a bias, which adds to their mean square."""
    if found.error95 is None or shift == 0:
        return found
    error = float(np.hypot(found.error95, 1.96 * shift))
    return replace(found, error95=error, pooling_shift=shift)
