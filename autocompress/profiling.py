"""Makes a device profile of this machine from random candidates of a space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from autocompress.device.doctor import device_description
from autocompress.device.profile import DeviceProfile
from autocompress.device.profiler import Sample, make_profile
from autocompress.device.runtimes import check_transparent, get_runtime
from autocompress.errors import ProfileError
from autocompress.export.onnx import to_onnx
from autocompress.preparation import bound_space, open_teacher
from autocompress.progress import Console
from autocompress.space import Space
from autocompress.transforms.apply import apply, deployed
from autocompress.transforms.sampling import random_weights, samples
from autocompress.transforms.sites import BoundSpace

FEWEST_NETWORKS = 8


def measure_profile(
    teacher: str | nn.Module,
    space: Space,
    output: Path,
    runtime: str,
    threads: int,
    batch: int,
    networks: int,
    seed: int,
    data: Any,
    input_size: int | None,
    *,
    overwrite: bool,
    resume: bool,
    console: Console,
) -> DeviceProfile:
    """See `api.profile`. Raises ProfileError for a folder that exists and for too few networks."""
    if networks < FEWEST_NETWORKS:
        raise ProfileError(
            f"{networks} networks are too few to profile and validate with",
            fix=f"give --networks {FEWEST_NETWORKS} or more",
        )
    if output.exists() and not (overwrite or resume):
        raise ProfileError(
            f"the profile folder {output} exists", fix="give --resume, --overwrite, or another --output"
        )
    engine = get_runtime(runtime)
    check_transparent(engine)
    opened = open_teacher(teacher, data, input_size)
    bound = bound_space(opened, space)
    source = {
        "space": space.name,
        "space_fingerprint": space.fingerprint,
        "teacher": opened.teacher.name,
        "teacher_fingerprint": opened.teacher.fingerprint,
        "input_shape": list(opened.network.input_shape),
        "seed": seed,
    }
    with console.stage("profiling", networks) as stage:
        return make_profile(
            list(profile_samples(bound, networks, seed, batch, engine.precisions)),
            engine,
            threads,
            batch,
            output,
            device=device_description(runtime, threads),
            source=source,
            progress=lambda done, total: stage.update(done, total),
            resume=resume and not overwrite,
        )


def profile_samples(
    bound: BoundSpace, count: int, seed: int, batch: int, precisions: Sequence[str] = ("fp32", "int8")
) -> Iterator[Sample]:
    """Exported random candidates, the teacher in the runtime's precisions first; weights are random."""
    for precision, candidate in samples(bound, count, seed, precisions):
        network, _ = deployed(apply(bound, None, candidate)[0])
        model = to_onnx(network, random_weights(network), batch=batch).SerializeToString()
        yield Sample(candidate.key, network, model, precision)
