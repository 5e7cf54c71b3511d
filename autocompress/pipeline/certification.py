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
from typing import Any

import onnx
import torch
from torch import nn

from autocompress.device.measure.latency import CERTIFY, measure_in_fresh_process
from autocompress.device.measure.statistics import Measurement
from autocompress.device.runtimes.base import get_runtime
from autocompress.export.parity import Parity, check_model, check_parity
from autocompress.graph.module import GraphModule
from autocompress.problem.budgets import Limits
from autocompress.problem.data import Data
from autocompress.problem.splits import Split
from autocompress.students.accuracy import Evaluation, evaluate_session

PARITY_EXAMPLES = 64


@dataclass(frozen=True)
class Device:
    """What certification runs on."""

    runtime: str
    threads: int
    batch: int = 1


@dataclass(frozen=True)
class Certificate:
    """The evidence for one file. `test` is None where the data has no test split."""

    measurement: Measurement
    validation: Evaluation
    test: Evaluation | None
    parity: Parity | None
    file_bytes: int

    @property
    def reported(self) -> Evaluation:
        """The accuracy a student is reported with: on test data where there is some."""
        return self.test or self.validation


def examine(
    model_path: Path,
    data: Data,
    device: Device,
    *,
    module: GraphModule | None = None,
    reference: Path | None = None,
    any_noise: bool = False,
) -> Certificate:
    """Runs the file: checker, parity with `module`, accuracy, latency in a fresh process.

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
    validation = evaluate_session(session.run, whole_batches(data.validation, device.batch), device.batch)
    test = None
    if data.test is not None:
        test = evaluate_session(session.run, whole_batches(data.test, device.batch), device.batch)
    settings = replace(CERTIFY, most_spread=math.inf, most_drift=math.inf) if any_noise else CERTIFY
    measurement = measure_in_fresh_process(
        model_path, reference, runtime=device.runtime, threads=device.threads, settings=settings
    )
    return Certificate(measurement, validation, test, parity, model_path.stat().st_size)


def whole_batches(split: Split, batch: int) -> Split:
    """The split without the examples that do not fill a batch of the exported file."""
    count = split.size // batch * batch
    return split if count == split.size else split.select(torch.arange(count))


def student_record(
    key: str,
    certificate: Certificate,
    peak_memory_bytes: int,
    counts: tuple[int, int],
    path: str,
    limits: Limits,
    packed_bytes: int,
) -> tuple[dict[str, Any], list[str]]:
    """The record of a measured student as `front` prints it, and the budgets it breaks."""
    macs, parameters = counts
    reported, measured = certificate.reported, certificate.measurement
    record: dict[str, Any] = {
        "key": key,
        "accuracy": reported.accuracy,
        "accuracy_std_err": reported.accuracy_std_err,
        "accuracy_from": "validation" if certificate.test is None else "test",
        "validation_accuracy": certificate.validation.accuracy,
        "latency_ms": measured.latency_ms,
        "latency_ms_ci95": list(measured.latency_ms_ci95),
        "peak_memory_bytes": peak_memory_bytes,
        "file_bytes": certificate.file_bytes,
        "macs": macs,
        "parameters": parameters,
        "packed_bytes": packed_bytes,
    }
    violated = limits.violated(record, upper=True)
    return {**record, "certified": not violated, "path": path}, violated


def count(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Multiply-adds of one example and trainable parameters, both by fvcore."""
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
