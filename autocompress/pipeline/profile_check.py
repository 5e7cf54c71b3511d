"""Does a device profile still tell what this machine does? New random candidates, measured and predicted."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from autocompress.cost.model import CostModel
from autocompress.device.measure.latency import machine_lock
from autocompress.device.measure.log import FILE, Measurements, Timed
from autocompress.device.measure.machine import device_description
from autocompress.device.measure.quiet_gate import QuietSettings
from autocompress.device.profile.fitting import summary, without_drift
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile.sources import Source
from autocompress.device.profile_files.store import write_validation
from autocompress.device.profiler import Bench, Sample
from autocompress.device.runtimes.base import get_runtime
from autocompress.errors import ProfileError
from autocompress.pipeline.preparation import bound_space, open_teacher, seen_by
from autocompress.pipeline.profile_device import profile_samples
from autocompress.problem.space import Space, load_space
from autocompress.problem.specs import InputSize
from autocompress.progress import Console

FEWEST_NETWORKS = 3
_BUILDABLE = "timm:"


def validate_profile(
    profile: DeviceProfile,
    teacher: str | nn.Module | None,
    space: str | Path | None,
    networks: int,
    seed: int,
    data: Any,
    input_size: InputSize | None,
    console: Console,
) -> dict[str, Any]:
    """See `api_profile.validate_profile`. `networks` are measured beside the teacher.

    Raises ProfileError on another machine than was profiled, where the teacher or the space is not
    known, and for kernels that the profile cannot price; NoisyDeviceError on a noisy machine.
    """
    if networks < FEWEST_NETWORKS:
        raise ProfileError(f"{networks} networks are too few", fix=f"give {FEWEST_NETWORKS} or more")
    runtime = get_runtime(profile.runtime)
    profile.check_here(device_description(profile.runtime, profile.threads))
    source = _source(profile, teacher)
    loaded = _space(profile, source, space)
    size = input_size if data is not None or source is None else input_size or _shape(source)
    opened = open_teacher(_teacher(profile, source, teacher), data, size)
    bound = bound_space(opened, loaded)
    view = seen_by(profile, opened, bound, loaded)
    drawn = list(profile_samples(bound, networks + 2, seed, profile.batch, runtime.precisions))
    with console.stage("validating", len(drawn)) as stage, tempfile.TemporaryDirectory() as folder:
        known = Measurements(Path(folder) / FILE, {}, resume=False)
        bench = Bench(
            runtime,
            profile.threads,
            profile.layouts,
            known,
            drawn[0].name,
            QuietSettings(),
            stage.update,
            by_kernel=False,
        )
        with machine_lock():
            bench.run_all(drawn, None)
        timed = bench.measured(drawn)
    found = compared(view, drawn, timed, _names(profile))
    return {
        "profile": profile.name,
        "network": source.network if source and teacher is None else opened.teacher.name,
        "space": loaded.name,
        "basis": view.basis,
        "seed": seed,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_description(profile.runtime, profile.threads),
        "claimed_error95": view.relative_error,
        "source": view.source_index,
        **found,
    }


def compared(
    view: DeviceProfile, drawn: Sequence[Sample], timed: Sequence[Timed], known: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Errors of the profile's predictions for measured networks, but for those it was made from."""
    measured_us = dict(zip((item.name for item in timed), without_drift(timed), strict=True))
    model = CostModel(view)
    points = [
        {
            "network": sample.name,
            "precision": sample.precision,
            "measured_ms": float(measured_us[sample.name]) / 1e3,
            "predicted_ms": model.price(sample.network).latency_ms,
        }
        for sample in drawn
        if sample.name in measured_us and sample.name not in known
    ]
    kinds = sorted({str(point["precision"]) for point in points})
    by_precision = {kind: summary([one for one in points if one["precision"] == kind]) for kind in kinds}
    return {**summary(points), "by_precision": by_precision, "networks": points}


def updated(folder: Path, profile: DeviceProfile, found: Mapping[str, Any]) -> DeviceProfile:
    """The profile with these errors in place of its own, in `folder` too.

    With several sources only those of the one that was checked are replaced, and the totals are made of all.
    A check of fewer networks than were known does not make the error smaller. Raises ProfileError when
    the profile has no source of its own for what was checked.
    """
    index = found["source"]
    if index is None:
        raise ProfileError(
            f"the device profile {profile.name!r} has no source for {found['network']!r}",
            why=f"its predictions are {found['basis']}",
            fix="profile the device with this teacher and space, and merge the two",
        )
    kept = ("count", "mean_error", "largest_error", "within_5_percent", "within_10_percent",
            "rank_correlation", "error95", "by_precision")  # fmt: skip
    own = {name: found[name] for name in kept if name in found}
    own |= {"network": profile.sources[index].network, "validated_at": found["measured_at"]}
    before = profile.validation_of(index)
    if not found["count"]:
        raise ProfileError(
            f"the device profile {profile.name!r} was checked on no network",
            why="all that were measured are among those it was made from",
            fix="give another --seed, or more --networks",
        )
    if found["count"] < before.get("count", 0):
        own["error95"] = max(found["error95"], before.get("error95") or 0.0)
    summaries = [dict(profile.validation_of(i)) for i in range(len(profile.sources))]
    summaries[index] = own
    for one in summaries:
        one.pop("networks", None)
        one.pop("sources", None)
    if len(profile.sources) == 1:
        top: dict[str, Any] = {**own, "unpredicted": [], "networks": found["networks"]}
    else:
        top = {**profile.validation, **_totals(summaries)}
        kinds = sorted({kind for one in summaries for kind in one.get("by_precision", ())})
        top["by_precision"] = {
            kind: _totals([one.get("by_precision", {}).get(kind, {}) for one in summaries]) for kind in kinds
        }
    validation = {**top, "sources": summaries}
    write_validation(folder, validation)
    return replace(profile, validation=validation)


def _totals(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several sources' errors: means weighted with their networks, the largest of the others; without what
    one of them does not say."""
    known = [one for one in summaries if one.get("count")]
    found: dict[str, Any] = {"count": sum(one["count"] for one in known)}
    for name in ("mean_error", "within_5_percent", "within_10_percent", "rank_correlation"):
        values = [one.get(name) for one in known]
        if None not in values:
            total = sum(one["count"] * value for one, value in zip(known, values, strict=True))
            found[name] = float(total / found["count"])
    for name in ("largest_error", "error95"):
        numbers = [float(one[name]) for one in known if one.get(name) is not None]
        if len(numbers) == len(known):
            found[name] = max(numbers)
    return found


def _source(profile: DeviceProfile, teacher: str | nn.Module | None) -> Source | None:
    """The source that is meant: that of the teacher's name, else the only one, or the first that can be
    built again."""
    if isinstance(teacher, str):
        return next((source for source in profile.sources if source.network == teacher), None)
    if teacher is not None:
        return None
    buildable = [source for source in profile.sources if source.network.startswith(_BUILDABLE)]
    return next(iter(buildable), None)


def _teacher(
    profile: DeviceProfile, source: Source | None, teacher: str | nn.Module | None
) -> str | nn.Module:
    if teacher is not None:
        return teacher
    if source is not None:
        return source.network
    names = ", ".join(repr(source.network) for source in profile.sources)
    raise ProfileError(
        f"the networks of the device profile {profile.name!r} cannot be built from their names",
        why=f"it was measured on {names}",
        fix="give --teacher",
    )


def _space(profile: DeviceProfile, source: Source | None, space: str | Path | None) -> Space:
    """The space given, else that of the source, else of the only source, as long as it is a known one."""
    if space is not None:
        return load_space(space)
    names = [source.space] if source else list(dict.fromkeys(one.space for one in profile.sources))
    if len(names) != 1 or not names[0]:
        raise ProfileError(
            "the space is not known", why="the profile names none, or several", fix="give --space"
        )
    return load_space(names[0])


def _shape(source: Source) -> InputSize | None:
    """(channels, height, width) of the source's input images."""
    return tuple(source.input_shape[1:]) if len(source.input_shape) == 4 else None


def _names(profile: DeviceProfile) -> frozenset[str]:
    return frozenset(point["network"] for point in profile.validation.get("networks", ()))
