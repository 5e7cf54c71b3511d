"""Profiles of devices that autocompress does not run on: kits to measure there, and imports of dumps."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from autocompress.device.imports.imported_profile import Measured, profile_from_dumps
from autocompress.device.imports.parsing import parse_dump
from autocompress.device.kit.folder import (
    MANIFEST,
    METADATA,
    MOST_MODEL_BYTES,
    Kit,
    KitSettings,
    described,
    read_bytes,
    read_kit,
    write_kit,
)
from autocompress.device.kit.folder import RESULTS as RESULTS_FILE
from autocompress.device.kit.kit_profile import profile_from_kit
from autocompress.device.kit.remote import Host, run_remotely
from autocompress.device.kit.results import read_results
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile.sources import CandidateOrigin
from autocompress.device.profile_files.store import PROFILE, write_profile
from autocompress.device.profiler import Sample
from autocompress.errors import InputError, ProfileError
from autocompress.export.onnx import to_onnx
from autocompress.export.student_folder import SPEC, read_spec
from autocompress.graph.network import from_json
from autocompress.pipeline.options import KIT_RUNTIMES, ImportRequest, KitRequest
from autocompress.pipeline.preparation import bound_space, open_teacher
from autocompress.pipeline.profile_device import check_asked, origin_of, profile_samples
from autocompress.problem.budgets import Budgets
from autocompress.problem.space import Space
from autocompress.progress import Console


def make_kit(
    teacher: str | nn.Module,
    space: Space,
    output: Path,
    request: KitRequest,
    *,
    overwrite: bool,
    resume: bool,
    console: Console,
    settings: KitSettings | None = None,
) -> Kit:
    """Write a kit; see `api_profile.profile_kit`. With `resume` one that is there is kept, if it is the same.

    Raises ProfileError for a runtime that no kit has, too few networks, and a folder that is there.
    """
    if request.runtime not in KIT_RUNTIMES:
        raise ProfileError(
            f"a kit cannot run {request.runtime!r}",
            fix=f"use one of: {', '.join(KIT_RUNTIMES)}, or import a dump",
        )
    check_asked(request.networks, output, "folder", free=overwrite or resume)
    opened = open_teacher(teacher, request.data, request.input_size, runtime=request.runtime)
    origin = origin_of(opened, space, request.seed)
    if resume and (output / MANIFEST).exists():
        return _same_kit(read_kit(output), origin, request)
    if overwrite and output.exists():
        _remove_kit(output)
    bound = bound_space(opened, space)
    with console.stage("exporting", request.networks) as stage:
        samples = []
        for sample in profile_samples(bound, request.networks, request.seed, request.batch):
            samples.append(sample)
            stage.update(len(samples))
    return write_kit(
        output,
        samples,
        runtime=request.runtime,
        threads=request.threads,
        batch=request.batch,
        origin=origin,
        settings=settings,
    )


def measure_kit_over_ssh(
    kit: Kit, host: Host, output: Path, console: Console, *, overwrite: bool
) -> DeviceProfile:
    """Run the kit on the host and write the profile of its results into `output`."""
    _check_free(output, overwrite=overwrite)
    with console.stage(f"measuring on {host.name}", len(kit.entries)) as stage:
        run_remotely(kit, host, kit.runtime, kit.threads, lambda done, total: stage.update(done, total))
    return import_kit(kit.folder, output, overwrite=overwrite)


def import_kit(
    path: Path, output: Path, *, kit: Path | None = None, overwrite: bool = False
) -> DeviceProfile:
    """Return the profile of a kit's results: `path` is its folder or its results.jsonl. Raises
    ProfileError."""
    _check_free(output, overwrite=overwrite)
    results = path / RESULTS_FILE if path.is_dir() else path
    opened = read_kit(kit or results.parent)
    profile = profile_from_kit(opened, read_results(results, opened), output.resolve().name)
    write_profile(output, profile)
    return profile


def import_dumps(
    dumps: Sequence[Path], output: Path, request: ImportRequest, *, overwrite: bool = False
) -> DeviceProfile:
    """Write and return the profile of dumps of vendors' tools, each with the model that was profiled.

    Raises ProfileError.
    """
    _check_free(output, overwrite=overwrite)
    models, latencies, teacher = request.models, request.latencies, request.teacher
    for dump in dumps:
        if not dump.is_file():
            raise ProfileError(
                f"there is no file {dump}", fix="give a kit's folder or files that a tool wrote"
            )
    for name, given in (("model", models), ("latency", latencies)):
        if given and len(given) != len(dumps):
            raise ProfileError(
                f"{len(dumps)} dumps and {len(given)} times --{name} were given",
                fix=f"give --{name} once for each dump, in order",
            )
    if bool(models) == (teacher is not None):
        raise ProfileError(
            "a dump says which operators ran, not what they are",
            fix="give --model with the profiled file of a kit, once for each dump, or --teacher",
        )
    parsed = [parse_dump(dump, request.kind) for dump in dumps]
    kinds = {found for found, _ in parsed}
    if len(kinds) > 1:
        raise ProfileError(
            f"the dumps are of several tools: {', '.join(sorted(kinds))}", fix="import those of one tool"
        )
    samples = [_sample(Path(path)) for path in models] or [_of_teacher(request)] * len(dumps)
    times = [_latency_ms(text) for text in latencies] if latencies else [None] * len(dumps)
    measured = [
        Measured(path, tuple(operators), sample, latency_ms)
        for path, (_, operators), sample, latency_ms in zip(dumps, parsed, samples, times, strict=True)
    ]
    profile = profile_from_dumps(
        measured,
        kinds.pop(),
        name=output.resolve().name,
        threads=request.threads,
        batch=request.batch,
        device=request.device_name or output.resolve().name,
    )
    write_profile(output, profile)
    return profile


def _sample(path: Path) -> Sample:
    """Return a model of a kit, or the model.onnx of a student's folder."""
    data = read_bytes(path, MOST_MODEL_BYTES)
    if METADATA.encode() not in data and path.with_name(SPEC).is_file():
        network, model = from_json(read_spec(path.parent)["network"]), data
    else:
        network, model = described(data, path)
    return Sample(path.stem, network, model, "")


def _of_teacher(request: ImportRequest) -> Sample:
    assert request.teacher is not None
    network, weights = open_teacher(request.teacher, None, request.input_size).shipped
    model = to_onnx(network, weights, batch=request.batch).SerializeToString()
    return Sample("teacher", network, model, "fp32")


def _latency_ms(text: str) -> float:
    latency_ms = Budgets.parse(latency=text).latency_ms
    if latency_ms is None:
        raise ProfileError(f"{text!r} is not a latency", fix="give a time such as 1.2ms or 800us")
    return latency_ms


def _check_free(output: Path, *, overwrite: bool) -> None:
    if (output / PROFILE).exists() and not overwrite:
        raise ProfileError(f"the profile folder {output} exists", fix="give --overwrite, or another folder")


def _same_kit(kit: Kit, origin: CandidateOrigin, request: KitRequest) -> Kit:
    names = ("runtime", "threads", "batch", "networks")
    wanted = {**origin.to_json(), **{name: getattr(request, name) for name in names}}
    there = {**kit.origin.to_json(), "runtime": kit.runtime, "threads": kit.threads, "batch": kit.batch}
    there["networks"] = len(kit.entries)
    differ = [name for name, value in wanted.items() if there.get(name) != value]
    if differ:
        raise ProfileError(
            f"the kit in {kit.folder} is another one",
            why=", ".join(f"its {name} is {there.get(name)}, now {wanted[name]}" for name in differ[:3]),
            fix="give --overwrite, or another --output",
        )
    return kit


def _remove_kit(folder: Path) -> None:
    """Remove a kit, and only a kit: another folder was named by mistake."""
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} is not a kit and is not replaced", fix="give another --output")
    shutil.rmtree(folder)
