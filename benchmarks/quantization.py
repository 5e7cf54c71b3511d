"""8 bits without training: what each way of calibration loses.

    python benchmarks/quantization.py --teacher cifar_resnet.py:load,depth=20 --data imagefolder:cifar10

All layers compute in 8 bits; with `--weights 4` those between the first and the last have weights of 4 bits.
Each way sees 512 training images, drawn anew for each seed. Accuracy and divergence (mean Kullback-Leibler
divergence of the outputs from those in floating point, in thousandths of a nat) are on images held out of the
training data, from the exported file through ONNX Runtime. The ranges with the least median divergence are
combined with the other means; the files of the best way of all, one a seed, then read the test images, once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from autocompress.device.runtimes.base import get_runtime
from autocompress.export.onnx import to_onnx
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Weights
from autocompress.graph.operations import WEIGHTED
from autocompress.pipeline.preparation import open_teacher
from autocompress.problem.data import Data
from autocompress.problem.space_rules import Quantize, RangeMethod
from autocompress.problem.splits import Split
from autocompress.students.accuracy import logits_of
from autocompress.students.calibration.quantization import quantized
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.quantize import with_bits

CALIBRATION_SIZE = 512
TARGET_POINTS = 0.1
RANGES: tuple[RangeMethod, ...] = ("minmax", "percentile", "mse", "entropy", "auto")
MORE: dict[str, dict[str, object]] = {
    "equalised": {"equalise": True, "correct_biases": False},
    "biases corrected": {"correct_biases": True},
    "adaptive rounding": {"rounding": "adaptive", "correct_biases": False},
    "adaptive rounding, biases corrected": {"rounding": "adaptive", "correct_biases": True},
    "equalised, adaptive rounding, biases corrected": {
        "equalise": True,
        "rounding": "adaptive",
        "correct_biases": True,
    },
}
Run = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Reference:
    """Outputs of the network in floating point on one split."""

    split: Split
    logits: torch.Tensor

    @property
    def accuracy(self) -> float:
        return float((self.logits.argmax(1) == self.split.labels).float().mean())

    def compare(self, run: Run) -> tuple[float, float]:
        """(points of accuracy lost, divergence in thousandths of a nat)."""
        outputs = [torch.from_numpy(np.array(run(images.numpy()))) for images, _ in self.split.batches(1)]
        logits = torch.cat(outputs).float()
        accuracy = float((logits.argmax(1) == self.split.labels).float().mean())
        log_probabilities = [functional.log_softmax(one, 1) for one in (logits, self.logits)]
        divergence = functional.kl_div(*log_probabilities, log_target=True, reduction="batchmean")
        return 100 * (self.accuracy - accuracy), 1000 * float(divergence)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", default="8", choices=("8", "4", "3", "2", "ternary", "binary"))
    parser.add_argument("--ranges", nargs="+", choices=RANGES, default=list(RANGES))
    parser.add_argument("--more", nargs="*", choices=list(MORE), default=list(MORE))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    opened = open_teacher(arguments.teacher, arguments.data)
    data = opened.data
    assert data is not None and data.test is not None
    folded, values = fold_batch_norms(opened.network, opened.weights)
    assert values is not None
    teacher = build(folded, values)
    network, weights = in_bits(folded, values, arguments.weights)
    reference = teacher if network.steps else None
    held_out = Reference(data.validation, logits_of(teacher, data.validation))
    bench = Bench(network, weights, reference, data, held_out, arguments.seeds)
    print(f"float32: {held_out.accuracy:.2%} on {data.validation.size} held-out images")
    print("| way | points lost | divergence / 1000 |\n|---|---|---|")
    plain = {name: Quantize(ranges=name, correct_biases=False) for name in arguments.ranges}
    found = {name: bench.row(name, way) for name, way in plain.items()}
    ranges = min(found, key=lambda name: found[name][0])
    for more in arguments.more:
        if not (network.steps and "equalise" in MORE[more]):
            name = f"{ranges}, {more}"
            found[name] = bench.row(name, Quantize.model_validate({"ranges": ranges, **MORE[more]}))
    best = min(found, key=lambda name: found[name][0])
    test = Reference(data.test, logits_of(teacher, data.test))
    lost = [test.compare(run)[0] for run in found[best][1]]
    print(f"{best}, on {data.test.size} test images: {spread(lost, 2)} points below float32 ", end="")
    print(f"({test.accuracy:.2%}); at most {TARGET_POINTS}: {np.median(lost) <= TARGET_POINTS}")
    return 0


@dataclass
class Bench:
    network: Network
    weights: Weights
    reference: GraphModule | None
    data: Data
    held_out: Reference
    seeds: int

    def row(self, name: str, way: Quantize) -> tuple[float, list[Run]]:
        """Median divergence, and what runs the files; prints both measures."""
        runs = [
            self.exported(self.data.train.subset(CALIBRATION_SIZE, seed), way) for seed in range(self.seeds)
        ]
        lost, divergence = zip(*map(self.held_out.compare, runs), strict=True)
        print(f"| {name} | {spread(lost, 2)} | {spread(divergence, 2)} |", flush=True)
        return float(np.median(divergence)), runs

    def exported(self, calibration: Split, way: Quantize) -> Run:
        module = quantized(self.network, self.weights, calibration, way, self.reference)
        model = to_onnx(module.source_network, module.export_weights())
        return get_runtime("onnxruntime").load(model.SerializeToString(), 1).run


def in_bits(network: Network, weights: Weights, form: str) -> tuple[Network, Weights]:
    """The network, whose batch norms are folded, with its layers marked."""
    layers = [node.name for node in network.nodes if node.op in WEIGHTED]
    option = int(form) if form.isdigit() else form
    chosen = {name: 8 if name in (layers[0], layers[-1]) else option for name in layers}
    marked, fitted = with_bits(network, weights, chosen)
    assert fitted is not None
    return marked, fitted


def spread(values: Any, digits: int) -> str:
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
