"""Single weights set to zero, and shared values: accuracy by method.

    python benchmarks/sparsity.py at-once --teacher cifar_resnet.py:load,depth=20 --data imagefolder:cifar10
    python benchmarks/sparsity.py codebooks --teacher cifar_resnet.py:load,depth=20 --data imagefolder:cifar10
    python benchmarks/sparsity.py trained --data mnist:mnist

`at-once`: every convolution but the first keeps the same share of its weights, or two of every four, chosen
by one method; then batch norms are recalibrated and nothing is trained. `codebooks`: the weights of all of
them, batch norms folded, share so many values. `trained`: a 784-300-100-10 network is distilled from itself
with one share of the weights of each layer left, chosen at once or found in training. Accuracies are on
images held out of the training data; no test image is read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from autocompress.graph.module import GraphModule, build
from autocompress.graph.trace import trace
from autocompress.pipeline.preparation import open_teacher
from autocompress.problem.candidate import Option
from autocompress.problem.data import Data, load_data
from autocompress.students.accuracy import evaluate, recalibrate_batch_norms
from autocompress.students.calibration.layer_inputs import solvable_layers
from autocompress.students.calibration.weight_statistics import evidence
from autocompress.students.training.constraints import held
from autocompress.students.training.distill import distil
from autocompress.students.training.settings import DistillSettings
from autocompress.students.training.sparsification import METHODS, Thinner
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.sparsity import Thinning, marked, mask_of, share, thinned

CALIBRATION_SIZE, BATCH = 512, 128
AT_ONCE: tuple[Option, ...] = (0.5, "2:4", 0.3)
CODEBOOKS = (32, 16, 8, 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("at-once", "codebooks", "trained"))
    parser.add_argument("--teacher")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--density", type=float, default=0.03)
    arguments = parser.parse_args()
    if arguments.part == "trained":
        trained(arguments.data, arguments.seeds, arguments.epochs, arguments.density)
        return 0
    opened = open_teacher(arguments.teacher, arguments.data)
    assert opened.data is not None
    data = replace(opened.data, validation=opened.data.validation.subset(arguments.held_out))
    teacher = build(opened.network, opened.weights)
    print(f"teacher: {accuracy(teacher, data):.2f} % on {data.validation.size} held-out images", flush=True)
    if arguments.part == "codebooks":
        codebooks(teacher, data)
    else:
        at_once(teacher, data, arguments.seeds)
    return 0


def at_once(teacher: GraphModule, data: Data, seeds: int) -> None:
    print("| kept | magnitude | obd | obs |\n|---|---|---|---|")
    for keep in AT_ONCE:
        cells = []
        for method in ("magnitude", "obd", "obs"):
            found = [cut(teacher, calibrated(data, seed), Thinning(keep, method)) for seed in range(seeds)]
            cells.append(spread(found))
        print(f"| {keep} | {' | '.join(cells)} |", flush=True)


def cut(teacher: GraphModule, data: Data, thinning: Thinning) -> float:
    layers = [node.name for node in solvable_layers(teacher.source_network) if node.op != "linear"][1:]
    thinnings = dict.fromkeys(layers, thinning)
    network = marked(teacher.source_network, thinnings, {})
    known = evidence(teacher, data.calibration, thinnings)
    student = build(network, thinned(network, teacher.export_weights(), thinnings, known))
    recalibrate_batch_norms(student, data.calibration.batches(BATCH))
    return accuracy(student, data)


def codebooks(teacher: GraphModule, data: Data) -> None:
    network, weights = fold_batch_norms(teacher.source_network, teacher.export_weights())
    assert weights is not None
    print("| values | accuracy |\n|---|---|")
    for count in CODEBOOKS:
        few = {
            name: share(array, count) if array.ndim > 1 and array.size > 2 * count else array
            for name, array in weights.items()
        }
        print(f"| {count} | {accuracy(build(network, few), data):.2f} |", flush=True)


def trained(data_spec: str, seeds: int, epochs: float, density: float) -> None:
    data = load_data(data_spec)
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        )
        distil(module, None, data, DistillSettings(epochs=6, seed=seed, learning_rate=0.02))
        teacher = build(*trace(module.eval(), data.input_shape))
        found.setdefault("dense", []).append(accuracy(teacher, data))
        for method, student in sparse(teacher, data, epochs, density, seed):
            found.setdefault(method, []).append(accuracy(student, data))
    print(f"| found by | held-out accuracy, {density:.0%} of the weights |\n|---|---|")
    for method, values in found.items():
        print(f"| {method} | {spread(values)} |", flush=True)


def sparse(
    teacher: GraphModule, data: Data, epochs: float, density: float, seed: int
) -> Iterator[tuple[str, GraphModule]]:
    layers = [node.name for node in solvable_layers(teacher.source_network)]
    params = [teacher.source_network.by_name[name].params[0] for name in layers]
    for method in ("magnitude", "obs"):
        thinnings = dict.fromkeys(layers, Thinning(density, method))
        network = marked(teacher.source_network, thinnings, {})
        known = evidence(teacher, data.calibration, thinnings)
        student = build(network, thinned(network, teacher.export_weights(), thinnings, known))
        with held(student):
            distil(student, teacher, data, DistillSettings(epochs=epochs, seed=seed, learning_rate=0.02))
        yield f"`{method}`, at once", student
    for method in METHODS:
        student = build(teacher.source_network, teacher.export_weights())
        thinner = Thinner(student, method, dict.fromkeys(params, (density, partial(mask_of, keep=density))))
        distil(
            student,
            teacher,
            data,
            DistillSettings(epochs=epochs, seed=seed, learning_rate=0.02),
            progress=thinner,
        )
        thinner.settle()
        yield f"`{method}`, in training", student


def calibrated(data: Data, seed: int) -> Data:
    return replace(data, calibration=data.train.subset(CALIBRATION_SIZE, seed))


def accuracy(student: GraphModule, data: Data) -> float:
    return 100 * evaluate(student, data.validation, precision="auto").accuracy


def spread(values: list[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
