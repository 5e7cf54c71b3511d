"""Weights of few bits, ternary, binary and xnor: accuracy after distillation, and bits a weight on disk.

    python benchmarks/low_bits.py --teacher cifar_resnet.py:load,depth=20 --data imagefolder:cifar10 \\
        --forms 4 3 2 binary --epochs 10 10 10 30

The first and the last layer have 8-bit weights, all others the form; activations have 8 bits, but what
`xnor` layers read has one. A student starts from the teacher's weights, learns from its outputs with learned
steps, and is then trained for `--quantized-epochs` more with its 8-bit activations in the loop, which is kept
where it helps on images held out of the training data. The test images are read once for each form, through
ONNX Runtime from the exported file, and choose nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np

from autocompress.device.runtimes.base import get_runtime
from autocompress.export.acz import acz_bytes, tensor_bytes
from autocompress.export.onnx import to_onnx
from autocompress.graph.network import Network, Weights
from autocompress.pipeline.preparation import OpenedTeacher, open_teacher
from autocompress.problem.candidate import Candidate
from autocompress.problem.data import Data
from autocompress.problem.space import parse_space
from autocompress.students.accuracy import Evaluation, evaluate_session
from autocompress.students.builder import Finished, StudentBuilder
from autocompress.students.importances import importances
from autocompress.students.training.settings import DistillSettings
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.low_bit import to_levels
from autocompress.transforms.sites import bind

SPACE = """
name: low-bits
rules:
  - match: {layer: any}
    bits: [32, 8, 4, 3, 2, ternary, binary, xnor]
"""
LIMIT_POINTS = {"4": 0.5, "3": 1.0, "2": 2.5, "binary": 3.0}


@dataclass(frozen=True)
class Row:
    validation: float
    test: float
    std_err: float
    bits_a_weight: float
    acz_bytes: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--forms", nargs="+", default=["4", "3", "2", "ternary", "binary", "xnor"])
    parser.add_argument("--epochs", nargs="+", type=float, default=[10])
    parser.add_argument("--quantized-epochs", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    epochs = arguments.epochs * (len(arguments.forms) if len(arguments.epochs) == 1 else 1)
    opened = open_teacher(arguments.teacher, arguments.data)
    assert opened.data is not None and opened.data.test is not None
    builder = workshop_of(opened, arguments.seed, arguments.learning_rate)
    teacher = tested(*fold_batch_norms(opened.network, opened.weights), opened.data).accuracy
    print(f"teacher, float32: {teacher:.2%} on {opened.data.test.size} test images")
    print("| weights | epochs | held-out, % | test, % | points lost | bits a weight | student.acz, KiB |")
    print("|---|---|---|---|---|---|---|")
    for form, count in zip(arguments.forms, epochs, strict=True):
        one = row(builder, form, count, arguments.quantized_epochs)
        lost = 100 * (teacher - one.test)
        print(
            f"| {form} | {count:g} + {arguments.quantized_epochs:g} | {100 * one.validation:.2f} "
            f"| {100 * one.test:.2f} ± {100 * one.std_err:.2f} | {lost:.2f} | {one.bits_a_weight:.2f} "
            f"| {one.acz_bytes / 1024:.1f} |",
            flush=True,
        )
        if form in LIMIT_POINTS:
            print(f"{form}: at most {LIMIT_POINTS[form]} points lost: {lost <= LIMIT_POINTS[form]}")
    return 0


def tell(what: str, done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"{what}: {done} of {total} steps, {time.strftime('%X')}", file=sys.stderr, flush=True)


def workshop_of(opened: OpenedTeacher, seed: int = 0, learning_rate: float | None = None) -> StudentBuilder:
    assert opened.data is not None
    bound = bind(parse_space(SPACE), opened.network)
    saliency = importances(bound, opened.weights, opened.data)
    return StudentBuilder(
        bound, opened.weights, opened.data, saliency, DistillSettings(seed=seed, learning_rate=learning_rate)
    )


def row(builder: StudentBuilder, form: str, epochs: float, quantized_epochs: float) -> Row:
    """Trains, exports, and reads the test images."""
    sites = builder.bound.of_kind("bits")
    option = int(form) if form.isdigit() else form
    ends = {sites[0].name, sites[-1].name}
    candidate = Candidate.of({site.name: 8 if site.name in ends else option for site in sites})
    finished = builder.finish(candidate, epochs, quantized_epochs, tell)
    assert finished is not None
    test = tested(finished.network, finished.weights, builder.data)
    bits, size = bits_a_weight(finished.network, finished.weights), len(acz_of(finished))
    return Row(finished.validation.accuracy, test.accuracy, test.accuracy_std_err, bits, size)


def tested(network: Network, weights: Weights | None, data: Data) -> Evaluation:
    """On the test images, from the exported file."""
    assert weights is not None and data.test is not None
    session = get_runtime("onnxruntime").load(to_onnx(network, weights).SerializeToString(), 1)
    return evaluate_session(session.run, data.test)


def acz_of(finished: Finished) -> bytes:
    return acz_bytes(finished.network, finished.weights)


def bits_a_weight(network: Network, weights: Weights) -> float:
    """Of the weights on a grid, with their steps, as `student.acz` stores them."""
    levels = to_levels(network, weights)
    stored = sum(tensor_bytes(array.astype(np.float32)) for array in levels.values())
    stored += sum(weights[name].nbytes for name in network.steps)
    return 8 * stored / sum(array.size for array in levels.values())


if __name__ == "__main__":
    sys.exit(main())
