"""Channels pruned to half the multiply-adds: accuracy by importance, before any training.

    python benchmarks/pruning.py --teacher cifar_resnet.py:load,depth=56 --data imagefolder:cifar10
    python benchmarks/pruning.py --teacher cifar_resnet.py:load,depth=20 --data imagefolder:cifar10 --epochs 5

Every group of channels keeps the same share, the largest with which at most half of the multiply-adds are
left; `inner` leaves the channels of the residual stream alone. Each importance chooses channels on 512
training images, drawn anew for each seed, and the same images serve to recalibrate batch norms and to
compensate. Accuracies are on images held out of the training data; the teacher has been trained on them.
With --epochs, each seed's compensated student is then distilled, on all training images or a share of them,
in that seed's order. No test image is read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from autocompress.cost.kernels import macs
from autocompress.graph.coupling import Coupling, Group, couple
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Param
from autocompress.graph.operations import WEIGHTED
from autocompress.pipeline.preparation import open_teacher
from autocompress.problem.data import Data
from autocompress.problem.space_rules import Importance
from autocompress.students.accuracy import evaluate, recalibrate_batch_norms
from autocompress.students.calibration.compensation import compensate
from autocompress.students.importances import importance
from autocompress.students.training.distill import distil
from autocompress.students.training.settings import DistillSettings
from autocompress.students.training.teacher_cache import TeacherOutputs
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.prune import Keep, keep_mask, kept_outputs, prune

CALIBRATION_SIZE = 512
BATCH = 128
STEPS = ("nothing", "recalibrated", "compensated")
TRAINED = "trained"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--widths", choices=("all", "inner", "both"), default="both")
    parser.add_argument("--importance", nargs="+", default=list(get_args(Importance)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=0)
    parser.add_argument(
        "--share-of-images", type=float, default=1.0, help="of the training images, for these"
    )
    arguments = parser.parse_args()
    opened = open_teacher(arguments.teacher, arguments.data)
    assert opened.data is not None
    teacher = build(opened.network, opened.weights)
    trained_on = opened.data.train.subset(round(arguments.share_of_images * opened.data.train.size))
    held_out = opened.data.validation.subset(arguments.held_out)
    data = replace(opened.data, train=trained_on, validation=held_out)
    print(f"teacher: {accuracy(teacher, data):.2%} on {data.validation.size} held-out images")
    for widths in ("inner", "all") if arguments.widths == "both" else (arguments.widths,):
        bench = Bench.of(teacher, data, widths)
        bench.describe(widths, arguments.epochs)
        table(bench, arguments.importance, arguments.seeds, arguments.epochs)
    return 0


def table(bench: Bench, methods: list[str], seeds: int, epochs: float) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    steps = (*STEPS, TRAINED) if epochs else STEPS
    for method in methods:
        results = [dict(bench.steps(method, seed, epochs)) for seed in range(seeds)]
        found[method] = {step: [100 * result[step] for result in results] for step in steps}
        row = " | ".join(spread(found[method][step], 2 if step == TRAINED else 1) for step in steps)
        print(f"| {method} | {row} |", flush=True)
    if {"l1", "obs"} <= found.keys() and epochs:
        plain, surgeon = (float(np.median(found[method][TRAINED])) for method in ("l1", "obs"))
        print(f"after {epochs:g} epochs: obs {surgeon:.2f}, l1 {plain:.2f}: no worse: {surgeon >= plain}")
    if "l1" in found:
        plain = np.median(found["l1"]["nothing"])
        best = max(found, key=lambda method: np.median(found[method]["compensated"]))
        gain = np.median(found[best]["compensated"]) - plain
        print(f"{best}, compensated: {gain:+.1f} points against plain l1; at least 15: {gain >= 15}")


def spread(values: list[float], digits: int) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), np.median(values), max(values)))
    return f"{middle} ({low} to {high})"


@dataclass(frozen=True)
class Bench:
    """One teacher and the number of channels that each of its groups keeps."""

    teacher: GraphModule
    data: Data
    coupling: Coupling
    counts: Mapping[str, int]

    @classmethod
    def of(cls, teacher: GraphModule, data: Data, widths: str) -> Bench:
        coupling = couple(teacher.source_network)
        groups = [group for group in coupling.groups if not group.locked]
        if widths == "inner":
            groups = [group for group in groups if producers(coupling.network, group) == 1]
        half = shipped_macs(coupling.network) / 2
        shares = np.arange(0.99, 0.01, -0.005)
        counts = ({g.name: max(1, round(g.size * share)) for g in groups} for share in shares)
        fitting = next(c for c in counts if shipped_macs(cut(coupling, c)) <= half)
        return cls(teacher, data, coupling, fitting)

    def describe(self, widths: str, epochs: float) -> None:
        total, left = shipped_macs(self.coupling.network), shipped_macs(cut(self.coupling, self.counts))
        print(f"\n{widths}: {len(self.counts)} groups, {left / total:.1%} of {total / 1e6:.1f} million MACs")
        trained = f" after {epochs:g} epochs |" if epochs else ""
        print(f"| importance | nothing | recalibrated | compensated and recalibrated |{trained}")
        print("|---|---|---|---|" + "---|" * bool(epochs))

    def with_calibration(self, seed: int) -> Data:
        return replace(self.data, calibration=self.data.train.subset(CALIBRATION_SIZE, seed))

    def steps(self, method: str, seed: int, epochs: float) -> Iterator[tuple[str, float]]:
        """(what was done, accuracy on held-out images)."""
        data = self.with_calibration(seed)
        mask = self.mask(method, data)
        student = self.student(mask)
        yield STEPS[0], accuracy(student, data)
        recalibrate_batch_norms(student, data.calibration.batches(BATCH))
        yield STEPS[1], accuracy(student, data)
        student = self.compensated(mask, data)
        yield STEPS[2], accuracy(student, data)
        if epochs:
            distil(student, TeacherOutputs(self.teacher), data, DistillSettings(epochs=epochs, seed=seed))
            yield TRAINED, accuracy(student, data)

    def mask(self, method: str, data: Data) -> Keep:
        scores = importance(self.coupling, self.teacher, data, method, self.counts)
        return keep_mask(self.coupling, self.counts, dict.fromkeys(self.counts, scores))

    def student(self, mask: Keep) -> GraphModule:
        network, weights = prune(self.coupling, self.teacher.export_weights(), mask)
        assert weights is not None
        return build(network, weights)

    def compensated(self, mask: Keep, data: Data) -> GraphModule:
        student = self.student(mask)
        compensate(student, self.teacher, data.calibration, kept_outputs(self.coupling, mask))
        recalibrate_batch_norms(student, data.calibration.batches(BATCH))
        return student


def accuracy(student: GraphModule, data: Data) -> float:
    return evaluate(student, data.validation, precision="auto").accuracy


def producers(network: Network, group: Group) -> int:
    """Layers that compute the group's channels."""
    computed = {place.param for place in group.places if place.axis == 0}
    return sum(
        node.op in WEIGHTED and isinstance(node.args[1], Param) and node.args[1].name in computed
        for node in network.nodes
    )


def cut(coupling: Coupling, counts: Mapping[str, int]) -> Network:
    return prune(coupling, None, keep_mask(coupling, counts, None))[0]


def shipped_macs(network: Network) -> int:
    return macs(fold_batch_norms(network, None)[0])


if __name__ == "__main__":
    sys.exit(main())
