"""Does a device profile still tell what this machine does? New random candidates, measured and predicted."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from torch import nn

from autocompress.cost.model import CostModel
from autocompress.device.measure.latency import machine_lock
from autocompress.device.measure.log import FILE, LogSetting, Measurements, Timed
from autocompress.device.measure.machine import device_description
from autocompress.device.measure.quiet_gate import QuietSettings
from autocompress.device.profile.fitting import without_drift
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile.sources import ProfileSource
from autocompress.device.profile.validation import Prediction, PredictionErrors, Validation, validation_of
from autocompress.device.profile_files.store import write_validation
from autocompress.device.profiler import Bench, Sample
from autocompress.device.runtimes.base import get_runtime
from autocompress.device.runtimes.description import DeviceDescription, Plain
from autocompress.errors import ProfileError
from autocompress.pipeline.options import CheckRequest
from autocompress.pipeline.preparation import bound_space, open_teacher, seen_by
from autocompress.pipeline.profile_device import profile_samples
from autocompress.problem.space import Space, load_space
from autocompress.problem.specs import InputSize
from autocompress.progress import Console

FEWEST_NETWORKS = 3
_BUILDABLE = "timm:"


@dataclass(frozen=True, kw_only=True)
class ProfileCheck:
    """Hold what a profile was checked on, what it claimed, and the errors that were found.

    `basis` says what the predictions come from, `source` which of the profile's sources that is, if any;
    `claimed_error95` is a share.
    """

    profile: str
    network: str
    space: str
    basis: str
    seed: int
    measured_at: str
    device: DeviceDescription
    claimed_error95: float
    source: int | None
    found: Validation

    def to_json(self) -> dict[str, Plain]:
        """Return the check as `profile validate --format json` prints it."""
        head = {name: value for name, value in vars(self).items() if name != "found"}
        errors = {name: value for name, value in self.found.to_json().items() if name != "unpredicted"}
        return {**head, "device": dict(self.device.values), **errors}


def check_profile(profile: DeviceProfile, request: CheckRequest, console: Console) -> ProfileCheck:
    """Measure networks beside the teacher and compare; see `api_profile.validate_profile`.

    Raises ProfileError on another machine than was profiled, where the teacher or the space is not
    known, and for kernels that the profile cannot price; NoisyDeviceError on a noisy machine.
    """
    networks, seed, teacher = request.networks, request.seed, request.teacher
    if networks < FEWEST_NETWORKS:
        raise ProfileError(f"{networks} networks are too few", fix=f"give {FEWEST_NETWORKS} or more")
    runtime = get_runtime(profile.runtime)
    profile.check_here(device_description(profile.runtime, profile.threads))
    source = _source(profile, teacher)
    loaded = _space(profile, source, request.space)
    opened = open_teacher(
        _teacher(profile, source, teacher), request.data, _size(request, source), runtime=profile.runtime
    )
    bound = bound_space(opened, loaded)
    view = seen_by(profile, opened, bound, loaded)
    drawn = list(profile_samples(bound, networks + 2, seed, profile.batch, runtime))
    setting = LogSetting(profile.runtime, profile.threads, profile.batch, drawn[0].name)
    with console.stage("validating", len(drawn)) as stage, tempfile.TemporaryDirectory() as folder:
        known = Measurements(Path(folder) / FILE, setting, resume=False)
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
    return ProfileCheck(
        profile=profile.name,
        network=source.network if source and teacher is None else opened.teacher.name,
        space=loaded.name,
        basis=view.basis,
        seed=seed,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device_description(profile.runtime, profile.threads),
        claimed_error95=view.relative_error,
        source=view.source_index,
        found=found,
    )


def compared(
    view: DeviceProfile, drawn: Sequence[Sample], timed: Sequence[Timed], known: frozenset[str] = frozenset()
) -> Validation:
    """Return errors of the profile's predictions for measured networks, but for those it was made from."""
    measured_us = dict(zip((item.name for item in timed), without_drift(timed), strict=True))
    model = CostModel(view)
    return validation_of(
        [
            Prediction(
                sample.name,
                sample.precision,
                float(measured_us[sample.name]) / 1e3,
                model.price(sample.network).latency_ms,
            )
            for sample in drawn
            if sample.name in measured_us and sample.name not in known
        ]
    )


def updated(folder: Path, profile: DeviceProfile, check: ProfileCheck) -> DeviceProfile:
    """Return the profile with these errors in place of its own, which it has in `folder` too.

    With several sources only those of the one that was checked are replaced, and the totals are made of all.
    A check of fewer networks than were known does not make the error smaller. Raises ProfileError when
    the profile has no source of its own for what was checked.
    """
    index, found = check.source, check.found
    if index is None:
        raise ProfileError(
            f"the device profile {profile.name!r} has no source for {check.network!r}",
            why=f"its predictions are {check.basis}",
            fix="profile the device with this teacher and space, and merge the two",
        )
    if not found.count:
        raise ProfileError(
            f"the device profile {profile.name!r} was checked on no network",
            why="all that were measured are among those it was made from",
            fix="give another --seed, or more --networks",
        )
    before = profile.validation_of(index)
    own = replace(
        found,
        network=profile.sources[index].network,
        validated_at=check.measured_at,
        error95=_not_smaller(found, before),
    )
    summaries = [profile.validation_of(i) for i in range(len(profile.sources))]
    summaries[index] = own
    sources = tuple(replace(one, networks=(), sources=()) for one in summaries)
    if len(profile.sources) == 1:
        validation = replace(own, sources=sources)
    else:
        kinds = sorted({kind for one in summaries for kind in one.by_precision})
        by_precision = {
            kind: _totals([one.by_precision.get(kind, PredictionErrors()) for one in summaries])
            for kind in kinds
        }
        totals = {name: value for name, value in vars(_totals(summaries)).items() if value is not None}
        validation = replace(profile.validation, **totals, by_precision=by_precision, sources=sources)
    write_validation(folder, validation)
    return replace(profile, validation=validation)


def _not_smaller(found: Validation, before: Validation) -> float | None:
    """Return the error that was found, or the one before where more networks told that and it is larger."""
    if found.error95 is None or before.error95 is None or found.count >= before.count:
        return found.error95
    return max(found.error95, before.error95)


def _totals(summaries: Sequence[PredictionErrors]) -> PredictionErrors:
    """Return the errors of several sources: means weighted with their networks, the largest of the others.

    What one of them does not say is not known of all.
    """
    known = [one for one in summaries if one.count]
    total = sum(one.count for one in known)

    def mean(values: list[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        if len(numbers) < len(known) or not known:
            return None
        weighted = sum(one.count * value for one, value in zip(known, numbers, strict=True))
        return float(weighted / total)

    def largest(values: list[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return max(numbers) if numbers and len(numbers) == len(known) else None

    return PredictionErrors(
        count=total,
        mean_error=mean([one.mean_error for one in known]),
        largest_error=largest([one.largest_error for one in known]),
        within_5_percent=mean([one.within_5_percent for one in known]),
        within_10_percent=mean([one.within_10_percent for one in known]),
        rank_correlation=mean([one.rank_correlation for one in known]),
        error95=largest([one.error95 for one in known]),
    )


def _source(profile: DeviceProfile, teacher: str | nn.Module | None) -> ProfileSource | None:
    """Return the source that is meant: that of the teacher's name, else the only one, or the first that can
    be built again."""
    if isinstance(teacher, str):
        return next((source for source in profile.sources if source.network == teacher), None)
    if teacher is not None:
        return None
    buildable = [source for source in profile.sources if source.network.startswith(_BUILDABLE)]
    return next(iter(buildable), None)


def _teacher(
    profile: DeviceProfile, source: ProfileSource | None, teacher: str | nn.Module | None
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


def _space(profile: DeviceProfile, source: ProfileSource | None, space: str | Path | None) -> Space:
    """Return the space given, else that of the source, else of the only source, as long as it is a known
    one."""
    if space is not None:
        return load_space(space)
    names = [source.space] if source else list(dict.fromkeys(one.space for one in profile.sources))
    if len(names) != 1 or not names[0]:
        raise ProfileError(
            "the space is not known", why="the profile names none, or several", fix="give --space"
        )
    return load_space(names[0])


def _size(request: CheckRequest, source: ProfileSource | None) -> InputSize | None:
    """Return the input size that was asked for, else that of the source where no data say it."""
    if request.data is not None or request.input_size is not None or source is None:
        return request.input_size
    return tuple(source.input_shape[1:]) if len(source.input_shape) == 4 else None


def _names(profile: DeviceProfile) -> frozenset[str]:
    return frozenset(point.network for point in profile.validation.networks)
