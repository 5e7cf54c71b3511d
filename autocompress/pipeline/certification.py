"""Does the exported file really keep the budgets, on this device, at the accuracy claimed?

A student is certified when its ONNX file passes the checker, computes what the torch student
computes, keeps every budget at the upper end of the measured latency's 95 % interval, and its
accuracy was computed from that file by the runtime that will run it.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import nn

from autocompress.cost.pricer import Pricer
from autocompress.device.measure.latency import CERTIFY, measure_in_fresh_process
from autocompress.device.measure.machine import device_description
from autocompress.device.measure.statistics import Measurement
from autocompress.device.runtimes.base import get_runtime, runs_torch_operators
from autocompress.errors import StudentError
from autocompress.export.onnx import to_onnx
from autocompress.export.parity import Parity, check_model, check_parity
from autocompress.export.student_folder import (
    MODEL,
    coded_again,
    load_student,
    packed_size,
    read_spec,
    save_student,
)
from autocompress.files import JsonObject
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Weights
from autocompress.pipeline.preparation import OpenedTeacher
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Cost
from autocompress.problem.data import Data
from autocompress.problem.splits import Split
from autocompress.problem.tasks.metric import ACCURACY, SHARE, Metric
from autocompress.progress import Console
from autocompress.reporting.card import Origin, student_card
from autocompress.runs.certificate import Certificate
from autocompress.runs.events import Certified, Exported
from autocompress.runs.store import RunStore
from autocompress.runs.student import Student
from autocompress.students.accuracy import Evaluation, evaluate_session
from autocompress.students.checkpoints import discard

PARITY_EXAMPLES = 64


@dataclass(frozen=True)
class Device:
    """Hold what certification runs on."""

    runtime: str
    threads: int
    batch: int = 1

    @property
    def torch_operators(self) -> bool:
        """Return whether its files may call torch's own operators."""
        return runs_torch_operators(self.runtime)


@dataclass(frozen=True)
class ExaminedFile:
    """The evidence for one file. `test` is None where the data has no test split."""

    measurement: Measurement
    validation: Evaluation
    test: Evaluation | None
    parity: Parity | None
    file_bytes: int

    @property
    def reported(self) -> Evaluation:
        """Return the accuracy a student is reported with: on test data where there is some."""
        return self.test or self.validation


def examine(
    model_path: Path,
    data: Data,
    device: Device,
    *,
    module: GraphModule | None = None,
    reference: Path | None = None,
    any_noise: bool = False,
) -> ExaminedFile:
    """Run the file: checker, parity with `module`, accuracy, latency in a fresh process.

    With `any_noise` the latency is taken as it comes, however wide its interval: for where it has no budget.

    Raises:
        StudentError: the file is not valid ONNX or computes something else than `module`.
        NoisyDeviceError: no two blocks of timings agree.
    """
    check_model(onnx.load(model_path))
    runtime = get_runtime(device.runtime)
    session = runtime.load(model_path, device.threads)
    parity = None
    if module is not None:
        images = next(iter(data.validation.batches(PARITY_EXAMPLES)))[0]
        rounds = runtime.rounds or _is_quantized(module)
        parity = check_parity(module, session.run, images, rounds=rounds, runtime_batch=device.batch)
    validation = evaluate_session(
        session.run, whole_batches(data.validation, device.batch), device.batch, data.task
    )
    test = None
    if data.test is not None:
        test = evaluate_session(session.run, whole_batches(data.test, device.batch), device.batch, data.task)
    settings = replace(CERTIFY, most_spread=math.inf, most_drift=math.inf) if any_noise else CERTIFY
    measurement = measure_in_fresh_process(
        model_path, reference, runtime=device.runtime, threads=device.threads, settings=settings
    )
    return ExaminedFile(measurement, validation, test, parity, model_path.stat().st_size)


def whole_batches(split: Split, batch: int) -> Split:
    """Return the split without the examples that do not fill a batch of the exported file."""
    count = split.size // batch * batch
    return split if count == split.size else split.select(torch.arange(count))


@dataclass(frozen=True)
class Computed:
    """Hold what is computed of a student, not measured."""

    peak_memory_bytes: int
    packed_bytes: int
    macs: int
    parameters: int


def measured_student(
    key: str, path: str, evidence: ExaminedFile, computed: Computed, metric: Metric = ACCURACY
) -> Student:
    """Return the record of a measured student, which keeps every budget until `judged` says otherwise."""
    reported, measurement = evidence.reported, evidence.measurement
    return Student(
        key=key,
        accuracy=reported.accuracy,
        accuracy_std_err=reported.accuracy_std_err,
        accuracy_from="validation" if evidence.test is None else "test",
        validation_accuracy=evidence.validation.accuracy,
        latency_ms=measurement.latency_ms,
        latency_ms_ci95=measurement.latency_ms_ci95,
        file_bytes=evidence.file_bytes,
        peak_memory_bytes=computed.peak_memory_bytes,
        packed_bytes=computed.packed_bytes,
        macs=computed.macs,
        parameters=computed.parameters,
        certified=True,
        path=path,
        metric=metric,
    )


def judged(student: Student, limits: Limits) -> tuple[Student, tuple[str, ...]]:
    """Return the student, certified or not, and the limits that it breaks."""
    violated = tuple(limits.violated(student, upper=True))
    return replace(student, certified=not violated), violated


def count(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Count multiply-adds of one example and trainable parameters, both by fvcore."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis, parameter_count

        flops = FlopCountAnalysis(module.eval(), torch.zeros(1, *input_shape))
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        return int(flops.total()), int(parameter_count(module)[""])


def _is_quantized(module: GraphModule) -> bool:
    network = module.source_network
    return any(network.quantizer_of(value) for value in ("input", *network.by_name))


def computed(network: Network, weights: Weights, cost: Cost, packed_bytes: int) -> Computed:
    """Return what is computed of a network as it is in floats, and of its predicted cost."""
    nodes = tuple(replace(node, quantizer=None) for node in network.nodes)
    floating = replace(network, nodes=nodes, input_quantizer=None)
    macs, parameters = count(build(floating, weights), network.input_shape[1:])
    return Computed(cost.peak_memory_bytes, packed_bytes, macs, parameters)


@dataclass(frozen=True, eq=False)
class StudentCertifier:
    """Examine distilled students of one run, write their folders, record the outcome.

    With `any_noise` latencies are taken as they come.
    """

    opened: OpenedTeacher
    pricer: Pricer
    device: Device
    store: RunStore
    console: Console
    limits: Limits
    teacher: Student
    any_noise: bool

    def __call__(self, candidate: Candidate) -> Student:
        """Return the student's record. Raises StudentError for what cannot be loaded or computes something
        else than its model, NoisyDeviceError where it cannot be measured."""
        paths = self.store.paths
        source = paths.distilled / candidate.key
        module = _loaded(source)
        self.console.say(f"measuring student {candidate.key}")
        evidence = examine(
            source / MODEL, self._data, self.device,
            module=module, reference=paths.teacher_model, any_noise=self.any_noise,
        )  # fmt: skip
        network, weights = module.source_network, module.export_weights()
        spec = self._spec(source)
        coded = coded_again(source, spec)
        cost = self.pricer.price(candidate)
        packed_bytes = packed_size(source) if coded is None else len(coded)
        known = computed(network, weights, cost, packed_bytes)
        path = f"{paths.students.name}/{candidate.key}"
        student, violated = judged(
            measured_student(candidate.key, path, evidence, known, self._data.task.metric), self.limits
        )
        certificate = self._certificate(student, violated, evidence)
        self.store.append(Exported(candidate=candidate.key, path=path))
        save_student(
            paths.student(candidate.key),
            network=network,
            weights=weights,
            onnx_model=to_onnx(
                network, weights, batch=self.device.batch, torch_operators=self.device.torch_operators
            ),
            spec_extra=spec,
            bench=certificate.to_json(),
            readme=student_card(Origin.from_json(spec), certificate),
            coded=coded or False,
        )
        event = Certified(candidate=candidate.key, student=student, violated=violated, predicted=cost)
        self.store.append(event)
        discard(source)
        state = "certified" if student.certified else "breaks " + ", ".join(violated)
        self.console.say(f"student {candidate.key}: {described(student)}: {state}")
        return student

    @property
    def _data(self) -> Data:
        assert self.opened.data is not None
        return self.opened.data

    def _spec(self, source: Path) -> JsonObject:
        data = self._data
        return {
            "choices": read_spec(source)["choices"],
            "num_classes": data.num_classes,
            "class_names": list(data.class_names),
            "mean": list(data.mean),
            "std": list(data.std),
            "teacher": self.opened.teacher.name,
            "data": data.name,
            "task": data.task.name,
        }

    def _certificate(
        self, student: Student, violated: tuple[str, ...], evidence: ExaminedFile
    ) -> Certificate:
        runtime, threads = self.device.runtime, self.device.threads
        return Certificate(
            student=student,
            teacher=self.teacher,
            limits=self.limits,
            violated=violated,
            measurement=evidence.measurement.to_json(),
            parity=evidence.parity.to_json() if evidence.parity else None,
            runtime=runtime,
            threads=threads,
            batch=self.device.batch,
            device=device_description(runtime, threads).values,
        )


def metric_text(student: Student) -> str:
    """Return the value of the metric alone; of a share in percent."""
    if student.metric.unit == SHARE:
        return f"{student.value:.2%}"
    return f"{student.value:.4g} {student.metric.unit}".rstrip()


def shown_metric(student: Student) -> str:
    """Return the value of the metric and its name, such as `97.22% accuracy`."""
    return f"{metric_text(student)} {student.metric.name}"


def described(student: Student) -> str:
    """Return the metric, latency and size of a student in a few words."""
    return f"{metric_text(student)}, {student.latency_ms:.3f} ms, {student.file_bytes / 1024:.0f} KiB"


def _loaded(source: Path) -> GraphModule:
    """Return a distilled student; one that cannot be loaded is deleted, so that a resumed run distils it."""
    try:
        return load_student(source)
    except StudentError:
        discard(source)
        raise
