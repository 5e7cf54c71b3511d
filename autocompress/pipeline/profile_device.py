"""Makes a device profile of this machine from random candidates of a space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from autocompress.cost.kernels import Kernel, kernels
from autocompress.cost.layouts import Layouts
from autocompress.device.measure.layout_probe import detect_layouts
from autocompress.device.measure.machine import device_description, usable_cores
from autocompress.device.profile.latency_table import LatencyTable
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile.sources import CandidateOrigin
from autocompress.device.profiler import ProfileSubject, Sample, make_profile
from autocompress.device.runtimes.base import Runtime, check_transparent, get_runtime, runs_torch_operators
from autocompress.errors import ProfileError
from autocompress.export.onnx import to_onnx
from autocompress.graph.network import Network
from autocompress.pipeline.options import ProfileRequest
from autocompress.pipeline.preparation import OpenedTeacher, bound_space, open_teacher
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import Space
from autocompress.problem.teacher import Teacher
from autocompress.progress import Console
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sampling import random_weights, samples
from autocompress.transforms.sites import BoundSpace

FEWEST_NETWORKS = 8
CHOSEN_SHARE = 0.3
"""Of the networks that are measured; the others are drawn at random."""

CHOICE_ROUNDS = 3
_WEIGHTS = ("weights", "pretrained")
POOL = 6
"""Candidates looked at for each one that is chosen."""


def measure_profile(
    teacher: str | nn.Module | Teacher,
    space: Space,
    output: Path,
    request: ProfileRequest,
    *,
    overwrite: bool,
    resume: bool,
    console: Console,
) -> DeviceProfile:
    """Measure this machine; see `api_profile.profile`.

    Raises ProfileError for a folder that exists and for too few networks.
    """
    threads, batch, networks, seed = request.threads, request.batch, request.networks, request.seed
    check_asked(networks, output, "profile folder", free=overwrite or resume)
    check_threads(threads)
    engine = get_runtime(request.runtime)
    check_transparent(engine)
    opened = open_teacher(teacher, request.data, request.input_size, runtime=request.runtime)
    bound = bound_space(opened, space)
    subject = ProfileSubject(
        output.name,
        request.runtime,
        threads,
        batch,
        device_description(request.runtime, threads),
        replace(origin_of(opened, space, seed), network=network_name(opened.teacher)),
        detect_layouts(engine, threads),
    )
    chooser = Chooser(
        bound,
        subject.layouts,
        engine.precisions,
        batch,
        seed,
        round(CHOSEN_SHARE * networks),
        runs_torch_operators(engine.name),
    )
    drawn = list(profile_samples(bound, networks - chooser.wanted, seed, batch, engine))
    with console.stage("profiling", networks) as stage:
        return make_profile(
            drawn,
            engine,
            output,
            subject,
            more=chooser,
            progress=lambda done: stage.update(done, networks),
            resume=resume and not overwrite,
        )


def check_asked(networks: int, output: Path, kind: str, *, free: bool) -> None:
    """Raise ProfileError for too few networks, and for an output that is there unless it is `free`."""
    if networks < FEWEST_NETWORKS:
        raise ProfileError(
            f"{networks} networks are too few to profile and validate with",
            fix=f"give --networks {FEWEST_NETWORKS} or more",
        )
    if output.exists() and not free:
        raise ProfileError(
            f"the {kind} {output} exists", fix="give --resume, --overwrite, or another --output"
        )


def check_threads(threads: int) -> None:
    """Raise ProfileError for more threads than this process may use CPUs."""
    usable = usable_cores()
    if usable is not None and threads > usable:
        raise ProfileError(
            f"{threads} threads were asked for and this process may use {usable} CPUs",
            why="threads that share a CPU wait for each other, and no search would use the profile",
            fix=f"give --threads {usable} or fewer",
        )


def origin_of(opened: OpenedTeacher, space: Space, seed: int) -> CandidateOrigin:
    """Return what a profile says of the network and the space that its candidates come from."""
    return CandidateOrigin(
        network=opened.teacher.name,
        space=space.name,
        space_fingerprint=space.fingerprint,
        teacher_fingerprint=opened.teacher.fingerprint,
        input_shape=tuple(opened.network.input_shape),
        seed=seed,
    )


@dataclass
class Chooser:
    """Ask for the networks of whose kernels the least is known: active learning of the latency table.

    From a pool of random candidates, one after the other is taken whose predicted latency is the least
    certain, supposing that the kernels of those taken before are known by then.
    """

    bound: BoundSpace
    layouts: Layouts
    precisions: Sequence[str]
    batch: int
    seed: int
    wanted: int
    torch_operators: bool = False
    asked: int = 0
    pool: dict[str, tuple[str, Candidate, tuple[Kernel, ...]]] = field(default_factory=dict)

    def __call__(self, table: LatencyTable) -> Sequence[Sample]:
        """Return the next samples; none when as many as wanted were asked for."""
        count = min(-(-self.wanted // CHOICE_ROUNDS), self.wanted - self.asked)
        if count <= 0:
            return []
        if not self.pool:
            self.pool = self._drawn()
        doubts = {name: _doubts(table, entry[2]) for name, entry in self.pool.items()}
        found = []
        for _ in range(min(count, len(doubts))):
            name = max(doubts, key=lambda name: sum(doubts[name].values()))
            for kernel in doubts.pop(name):
                for other in doubts.values():
                    other.pop(kernel, None)
            precision, candidate, _ = self.pool.pop(name)
            network = deployed_network(self.bound, candidate)
            found.append(_sample(precision, candidate, network, self.batch, self.torch_operators))
        self.asked += count
        return found

    def _drawn(self) -> dict[str, tuple[str, Candidate, tuple[Kernel, ...]]]:
        """Return candidates by key, without the ones that profiling begins with."""
        count = POOL * self.wanted
        drawn = samples(self.bound, count, self.seed + 1, self.precisions)
        return {
            candidate.key: (
                precision,
                candidate,
                kernels(deployed_network(self.bound, candidate), self.layouts),
            )
            for precision, candidate in drawn
        }


def _doubts(table: LatencyTable, found: Sequence[Kernel]) -> dict[Kernel, float]:
    """Return for each kernel that was not measured the share of the latency by which it may be wrong."""
    total, doubts = 0.0, {}
    for kernel in found:
        try:
            known = table.lookup(kernel)
        except ProfileError:
            doubts[kernel] = 1.0
            continue
        total += known.median_us
        if known.how == "interpolated":
            doubts[kernel] = doubts.get(kernel, 0.0) + known.relative_error * known.median_us
    return {kernel: doubt / (total or 1.0) for kernel, doubt in doubts.items()}


def network_name(teacher: Teacher) -> str:
    """Return how a profile names a network: a spec from which it can be built again where timm has it,
    without its weights, which no time depends on; else its own name."""
    if not teacher.spec.startswith("timm:"):
        return teacher.name
    head, *options = teacher.spec.split(",")
    kept = [option for option in options if option.partition("=")[0].strip() not in _WEIGHTS]
    return ",".join([head, *kept])


def profile_samples(
    bound: BoundSpace, count: int, seed: int, batch: int, engine: Runtime | None = None
) -> Iterator[Sample]:
    """Return exported random candidates, the teacher in the runtime's precisions first; weights are
    random."""
    precisions = ("fp32", "int8") if engine is None else engine.precisions
    torch_operators = engine is not None and runs_torch_operators(engine.name)
    for precision, candidate in samples(bound, count, seed, precisions):
        yield _sample(precision, candidate, deployed_network(bound, candidate), batch, torch_operators)


def _sample(
    precision: str, candidate: Candidate, network: Network, batch: int, torch_operators: bool
) -> Sample:
    model = to_onnx(network, random_weights(network), batch=batch, torch_operators=torch_operators)
    return Sample(candidate.key, network, model.SerializeToString(), precision)
