"""Will this network go through? A few joint candidates of it are made, exported, run and compared.

Nothing is trained or timed, so that the answer is there within a minute or so, before a device is profiled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.cost.kernels import Kernel, kernels
from autocompress.device.runtimes.base import (
    Runtime,
    Session,
    SeveralTensorsSession,
    get_runtime,
    runs_torch_operators,
)
from autocompress.errors import AutocompressError, InputError
from autocompress.export.onnx import to_onnx
from autocompress.export.parity import Parity, check_calls, check_model, check_parity
from autocompress.files import JsonObject
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Weights
from autocompress.pipeline.preparation import OpenedTeacher, open_teacher
from autocompress.problem.candidate import Candidate, Site
from autocompress.problem.space import Space
from autocompress.problem.space_rules import Quantize
from autocompress.problem.specs import InputSize
from autocompress.problem.splits import Normalisation, Split, TensorSplit
from autocompress.progress import Console
from autocompress.runs.tasks import one_line
from autocompress.students.accuracy import recalibrate_batch_norms
from autocompress.students.calibration.quantization import quantized
from autocompress.transforms.apply import apply, deployed_network
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.quantize import plan
from autocompress.transforms.probe import probed
from autocompress.transforms.sampling import samples
from autocompress.transforms.sites import BoundSpace, bind

CANDIDATES = 8
TEACHER = "teacher"
CALIBRATION_IMAGES, COMPARED_IMAGES, COMPARED_NOISE = 16, 16, 8
REMOVING_KINDS = frozenset({"width", "rank", "structure", "block", "merge"})
"""Kinds of site whose choices remove multiply-adds."""

COMPARED_CALLS = 4
"""Of a network of several inputs or outputs."""
QUICK = Quantize(ranges="minmax", correct_biases=False)
"""Enough for whether a file computes what its network does."""


@dataclass(frozen=True)
class CheckedCandidate:
    """Say how one candidate went: `reason` is empty where it went through, else says at which step and why.

    `macs` are multiply-adds of one example; `parity` is None where it did not come to a comparison.
    """

    name: str
    key: str
    precision: str
    choices: int
    macs: int
    reason: str
    parity: Parity | None
    seconds: float


@dataclass(frozen=True)
class NetworkCheck:
    """Say what a check found of a teacher, and of each candidate of it; the first ones are the teacher
    itself.

    `changeable_share` is the share of the teacher's multiply-adds in layers whose width, rank, structure,
    block or merge is a decision. `examples` says what candidates were compared on.
    """

    teacher: str
    space: str
    runtime: str
    input_shape: tuple[int, ...]
    examples: str
    macs: int
    parameters: int
    changeable_share: float
    log10_size: float
    sites: tuple[Site, ...]
    candidates: tuple[CheckedCandidate, ...]
    seconds: float

    @property
    def failed(self) -> tuple[CheckedCandidate, ...]:
        """Return the candidates that did not go through."""
        return tuple(one for one in self.candidates if one.reason)

    @property
    def decisions(self) -> int:
        """Return how many sites have a choice."""
        return sum(not site.locked for site in self.sites)

    @property
    def passed(self) -> bool:
        """Return whether every candidate went through and there is something to decide."""
        return bool(self.decisions) and not self.failed

    @property
    def conclusion(self) -> str:
        """Return the answer in one sentence."""
        count = len(self.candidates)
        if self.failed:
            return f"{len(self.failed)} of {count} networks did not go through: {self.failed[0].reason}"
        if not self.decisions:
            return "the network goes through and nothing about it can be changed: every site is locked"
        share = f"{100 * self.changeable_share:.1f} % of the multiply-adds can be changed"
        return f"all {count} networks went through; {share}"

    def to_json(self) -> JsonObject:
        """Return every field by its name, and the answer."""
        return {
            "passed": self.passed,
            "conclusion": self.conclusion,
            **{
                name: getattr(self, name)
                for name in ("teacher", "space", "runtime", "examples", "macs", "parameters")
            },
            "input_shape": list(self.input_shape),
            "changeable_share": self.changeable_share,
            "log10_size": self.log10_size,
            "decisions": self.decisions,
            "locked": [{"site": site.name, "reason": site.locked} for site in self.sites if site.locked],
            "candidates": [asdict(one) for one in self.candidates],
            "seconds": self.seconds,
        }

    def table(self) -> Any:
        """Return the same for a terminal."""
        from autocompress.reporting.check_tables import check_table

        return check_table(self)


def check_network(
    teacher: str | nn.Module,
    space: Space,
    *,
    data: Any = None,
    input_size: InputSize | None = None,
    candidates: int = CANDIDATES,
    runtime: str = "onnxruntime",
    seed: int = 0,
    console: Console,
) -> NetworkCheck:
    """Open a teacher, draw so many joint candidates of it, apply, export, run and compare each.

    The teacher itself comes first, in each precision of the runtime. Weights are cut from the teacher's
    without a look at data, which says nothing of accuracy and all of whether shapes and files are right.

    Raises InputError where the teacher cannot be used at all, or less than one candidate is asked for.
    """
    if candidates < 1:
        raise InputError(f"candidates is {candidates}", fix="give 1 or more")
    get_runtime(runtime)
    opened = open_teacher(teacher, data, input_size, console=console, runtime=runtime)
    return check_opened(opened, space, candidates=candidates, runtime=runtime, seed=seed, console=console)


def check_opened(
    opened: OpenedTeacher,
    space: Space,
    *,
    candidates: int,
    runtime: str,
    seed: int,
    console: Console,
) -> NetworkCheck:
    """Check a teacher that is opened already; see `check_network`."""
    started = time.monotonic()
    engine = get_runtime(runtime)
    bound = probed(bind(space, opened.network), opened.weights)
    several = opened.network.signature is not None
    checker = _Checker(opened, bound, engine, *((None, None) if several else _examples(opened, seed)))
    found = kernels(deployed_network(bound, Candidate()))
    drawn = _drawn(bound, candidates, ("fp32",) if several else engine.precisions, seed)
    checked = []
    with console.stage("checking candidates", len(drawn)) as stage:
        for name, precision, candidate in drawn:
            checked.append(checker.check(name, precision, candidate))
            stage.update(len(checked))
    return NetworkCheck(
        teacher=opened.teacher.name,
        space=space.name,
        runtime=runtime,
        input_shape=tuple(opened.network.input_shape[1:]),
        examples="images of the data" if opened.data is not None else "random inputs",
        macs=sum(kernel.macs for kernel in found),
        parameters=sum(value.size for value in opened.weights.values()),
        changeable_share=changeable_share(bound, found),
        log10_size=bound.log10_size,
        sites=bound.sites,
        candidates=tuple(checked),
        seconds=time.monotonic() - started,
    )


def _drawn(
    bound: BoundSpace, count: int, precisions: Sequence[str], seed: int
) -> list[tuple[str, str, Candidate]]:
    """Return (name, precision, candidate) of the teacher in each precision, then of random candidates."""
    own = 2 if bound.of_kind("bits") and "int8" in precisions else 1
    return [
        (TEACHER if number < own else candidate.key, precision, candidate)
        for number, (precision, candidate) in enumerate(samples(bound, count + own, seed, precisions))
    ]


def changeable_share(bound: BoundSpace, found: Sequence[Kernel]) -> float:
    """Return the share of the kernels' multiply-adds in layers where choices of the space remove some."""
    layers = {layer for site in bound.free if site.kind in REMOVING_KINDS for layer in site.layers}
    total = sum(kernel.macs for kernel in found)
    return sum(kernel.macs for kernel in found if layers & {*kernel.nodes}) / max(1, total)


def _examples(opened: OpenedTeacher, seed: int) -> tuple[Split, Tensor]:
    """Return (images to calibrate with, inputs to compare on): the data's, else random ones."""
    if opened.data is not None:
        images = opened.data.calibration.select(
            torch.arange(opened.data.calibration.size)[:CALIBRATION_IMAGES]
        )
        return images, next(iter(opened.data.validation.batches(COMPARED_IMAGES)))[0]
    generator = torch.Generator().manual_seed(seed)
    shape = opened.network.input_shape[1:]
    noise = torch.randn((CALIBRATION_IMAGES + COMPARED_NOISE, *shape), generator=generator)
    labels = torch.zeros(CALIBRATION_IMAGES, dtype=torch.int64)
    split = TensorSplit(noise[:CALIBRATION_IMAGES], labels, Normalisation((), ()))
    return split, noise[CALIBRATION_IMAGES:]


@dataclass(frozen=True, eq=False)
class _Checker:
    """Take candidates through every step that a search would, but for training and timing.

    Without `examples` and `compared`, as for networks of several tensors, candidates are in floats and whole
    calls are compared.
    """

    opened: OpenedTeacher
    bound: BoundSpace
    engine: Runtime
    examples: Split | None
    compared: Tensor | None

    def check(self, name: str, precision: str, candidate: Candidate) -> CheckedCandidate:
        """Return how a candidate went; whatever fails is its reason."""
        started, step, macs, parity = time.monotonic(), "applying its choices", 0, None
        reason = ""
        try:
            macs = sum(kernel.macs for kernel in kernels(deployed_network(self.bound, candidate)))
            network, weights = apply(self.bound, self.opened.weights, candidate)
            assert weights is not None
            step = "calibrating"
            module = self._shipped(network, weights)
            step = "exporting"
            model = to_onnx(
                module.source_network,
                module.export_weights(),
                torch_operators=runs_torch_operators(self.engine.name),
            )
            check_model(model)
            step = f"running in {self.engine.name}"
            session = self.engine.load(model.SerializeToString(), 1)
            step = "comparing"
            parity = self._parity(module, session, classes=name == TEACHER and self.opened.data is not None)
        except AutocompressError as error:
            reason = f"{step}: {error.what}" + (f": {error.why}" if error.why else "")
        except Exception as error:
            reason = f"{step}: {one_line(error)}"
        seconds = time.monotonic() - started
        return CheckedCandidate(
            name, candidate.key, precision, len(candidate.choices), macs, reason, parity, seconds
        )

    def _parity(self, module: GraphModule, session: Session, *, classes: bool) -> Parity:
        """Compare a network with its exported file, by best classes only where it knows its classes: to a
        candidate that was cut and never trained many are as good."""
        if self.compared is None:
            if not isinstance(session, SeveralTensorsSession):
                raise InputError(
                    f"{self.engine.name} runs networks of one input and one output",
                    fix="check it with --runtime onnxruntime",
                )
            calls = [self.opened.example.at(1, seed) for seed in range(COMPARED_CALLS)]
            return check_calls(module, session.run_all, calls)
        rounds = self.engine.rounds or bool(plan(module.source_network))
        return check_parity(module, session.run, self.compared, rounds=rounds, classes=classes)

    def _shipped(self, network: Network, weights: Weights) -> GraphModule:
        """Return the network as it would be exported, with ranges of the examples where it has 8 bits."""
        module = build(network, weights)
        if self.examples is not None:
            recalibrate_batch_norms(module, self.examples.batches(CALIBRATION_IMAGES))
        folded, folded_weights = fold_batch_norms(module.source_network, module.export_weights())
        assert folded_weights is not None
        if self.examples is None:
            return build(folded, folded_weights)
        return quantized(folded, folded_weights, self.examples, QUICK)
