"""Layers as products of smaller ones: accuracy by method, before any training and after a little.

    python benchmarks/factors.py low-rank --teacher cifar_resnet.py:load,depth=20 --data imagefolder:cifar10
    python benchmarks/factors.py compact --teacher cifar_resnet.py:load,depth=20 --data imagefolder:cifar10
    python benchmarks/factors.py structured --data mnist:mnist
    python benchmarks/factors.py merge --data mnist:mnist

`low-rank`: every k×k convolution is factorised by one method, with the largest share of the rank that leaves
at most half of the multiply-adds. `compact`: every residual block takes one form. `structured`: a
784-320-160-10 network is trained on the data, then its two wide layers take a structure, or a low rank of as
many parameters. `merge`: two layers in a row of that network become one, without the activation between.
Accuracies are on images held out of the training data; calibration images are drawn anew
for each seed. No test image is read.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from autocompress.cost.kernels import macs
from autocompress.graph.blocks import residual_blocks
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Weights
from autocompress.graph.trace import trace
from autocompress.pipeline.preparation import open_teacher
from autocompress.problem.data import Data, load_data
from autocompress.students.accuracy import evaluate, recalibrate_batch_norms
from autocompress.students.calibration.compensation import compensate
from autocompress.students.calibration.layer_inputs import collect_moments, solvable_layers
from autocompress.students.training.blockwise import BlockPart, learned
from autocompress.students.training.distill import distil
from autocompress.students.training.settings import DistillSettings
from autocompress.students.training.teacher_cache import TeacherOutputs
from autocompress.transforms.families.compact import COMPACT, compact
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.low_rank import FOR_KERNELS, factorize, method_for, parameters, ranks
from autocompress.transforms.families.merge import merge
from autocompress.transforms.families.structured import STRUCTURES, sizes, structure
from autocompress.transforms.families.structured import parameters as structured_parameters

CALIBRATION_SIZE = 512
BATCH = 128
Moments = dict[str, np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("low-rank", "compact", "structured", "merge"))
    parser.add_argument("--teacher")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--forms", nargs="*", help="Only these of `compact` or `structured`.")
    arguments = parser.parse_args()
    if arguments.part == "low-rank":
        low_rank(arguments.teacher, arguments.data, arguments.seeds, arguments.held_out)
    elif arguments.part == "compact":
        kinds = arguments.forms or list(COMPACT)
        compact_blocks(arguments.teacher, arguments.data, arguments.seeds, arguments.held_out, kinds)
    elif arguments.part == "merge":
        merged(arguments.data, arguments.seeds, arguments.epochs)
    else:
        structured(arguments.data, arguments.seeds, arguments.epochs, arguments.forms or list(STRUCTURES))
    return 0


def low_rank(teacher_spec: str, data_spec: str, seeds: int, held_out: int) -> None:
    opened = open_teacher(teacher_spec, data_spec)
    assert opened.data is not None
    network, weights = opened.network, opened.weights
    teacher = build(network, weights)
    data = replace(opened.data, validation=opened.data.validation.subset(held_out))
    print(f"teacher: {accuracy(teacher, data):.2f} % on {data.validation.size} held-out images")
    print("| method | share | MACs | recalibrated | data-aware, recalibrated | data-aware, compensated |")
    print("|---|---|---|---|---|---|")
    for method in FOR_KERNELS:
        share = next(s for s in np.arange(0.95, 0.02, -0.01) if _share_of_macs(network, method, s) <= 0.5)
        rows = [
            list(_starts(teacher, weights, calibrated(data, seed), method, share)) for seed in range(seeds)
        ]
        cells = " | ".join(spread(column) for column in zip(*rows, strict=True))
        print(
            f"| {method} | {share:.2f} | {_share_of_macs(network, method, share):.1%} | {cells} |", flush=True
        )


def _starts(teacher: GraphModule, weights: Weights, data: Data, method: str, share: float) -> Iterator[float]:
    network = teacher.source_network
    images = (images for images, _ in data.calibration.batches(BATCH))
    found = collect_moments(teacher, solvable_layers(network), images)
    moments = {name: one.second[0] for name, one in found.items()}
    for known in ({}, moments):
        student = build(*factorized(network, weights, method, share, known))  # type: ignore[arg-type]
        recalibrate_batch_norms(student, data.calibration.batches(BATCH))
        yield accuracy(student, data)
    student = build(*factorized(network, weights, method, share, moments))  # type: ignore[arg-type]
    compensate(student, teacher, data.calibration, {})
    recalibrate_batch_norms(student, data.calibration.batches(BATCH))
    yield accuracy(student, data)


def factorized(
    network: Network, weights: Weights | None, method: str, share: float, moments: Moments
) -> tuple[Network, Weights | None]:
    """Every k×k convolution by this method; the other layers stay."""
    for node in solvable_layers(network):
        shape = network.params[node.params[0]].shape
        if len(shape) == 4 and method_for(node, shape, method):
            second = moments.get(node.name)
            network, weights = factorize(network, weights, node.name, share, 1, method, second)
    return network, weights


def _share_of_macs(network: Network, method: str, share: float) -> float:
    return shipped_macs(factorized(network, None, method, share, {})[0]) / shipped_macs(network)


def shipped_macs(network: Network) -> int:
    return macs(fold_batch_norms(network, None)[0])


def compact_blocks(teacher_spec: str, data_spec: str, seeds: int, held_out: int, kinds: list[str]) -> None:
    opened = open_teacher(teacher_spec, data_spec)
    assert opened.data is not None
    teacher = build(opened.network, opened.weights)
    data = replace(opened.data, validation=opened.data.validation.subset(held_out))
    print("| form | MACs | parameters | recalibrated | compensated | block-wise |\n|---|---|---|---|---|---|")
    for kind in kinds:
        network, weights = opened.network, opened.weights
        for block in residual_blocks(network):
            network, weights = compact(network, weights, block, kind)  # type: ignore[assignment]
        rows = []
        for sample in (calibrated(data, seed) for seed in range(seeds)):
            plain, fitted = build(network, weights), build(network, weights)
            compensate(fitted, teacher, sample.calibration, {})
            for student in (plain, fitted):
                recalibrate_batch_norms(student, sample.calibration.batches(BATCH))
            block_wise = learned_blocks(teacher, network, weights, sample)
            rows.append(tuple(accuracy(one, sample) for one in (plain, fitted, block_wise)))
        cells = " | ".join(spread(column) for column in zip(*rows, strict=True))
        left = shipped_macs(network) / shipped_macs(opened.network)
        size = network.parameter_count / opened.network.parameter_count
        print(f"| {kind} | {left:.1%} | {size:.1%} | {cells} |", flush=True)


def learned_blocks(teacher: GraphModule, network: Network, weights: Weights, sample: Data) -> GraphModule:
    """Each block learns from the teacher's; then the other layers are fitted, as in a search."""
    taken = dict(weights)
    for block in residual_blocks(teacher.source_network):
        part = BlockPart(block.source, block.add)
        taken.update(learned(network, weights, part, teacher, sample.calibration) or {})
    student = build(network, taken)
    inside = {name for block in residual_blocks(teacher.source_network) for name in block.layers}
    compensate(student, teacher, sample.calibration, {}, fixed=inside)
    recalibrate_batch_norms(student, sample.calibration.batches(BATCH))
    return student


def structured(data_spec: str, seeds: int, epochs: float, kinds: list[str]) -> None:
    data = load_data(data_spec)
    print(
        "| form | parameters of the two layers | before training | after "
        + f"{epochs:g} epochs |\n|---|---|---|---|"
    )
    found: dict[str, list[tuple[float, float]]] = {}
    counts: dict[str, int] = {}
    for seed in range(seeds):
        teacher = trained_perceptron(data, seed)
        network, weights = teacher.source_network, teacher.export_weights()
        found.setdefault("dense", []).append((accuracy(teacher, data), float("nan")))
        counts["dense"] = sum(int(np.prod(weight_shape(network, layer))) for layer in wide(network))
        for form, change in forms(kinds).items():
            student = build(*changed(network, weights, change))  # type: ignore[arg-type]
            before = accuracy(student, data)
            distil(student, TeacherOutputs(teacher), data, DistillSettings(epochs=epochs, seed=seed))
            found.setdefault(form, []).append((before, accuracy(student, data)))
            removed = network.parameter_count - student.source_network.parameter_count
            counts[form] = counts["dense"] - removed
    for form, pairs in found.items():
        before, after = zip(*pairs, strict=True)
        trained = "" if form == "dense" else spread(after)
        print(f"| {form} | {counts[form]} | {spread(before)} | {trained} |", flush=True)


def trained_perceptron(data: Data, seed: int) -> GraphModule:
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 320), nn.ReLU(), nn.Linear(320, 160), nn.ReLU(), nn.Linear(160, 10)
    )
    distil(module, None, data, DistillSettings(epochs=6, seed=seed, learning_rate=0.02))
    network, weights = trace(module.eval(), data.input_shape)
    assert weights is not None
    return build(network, weights)


def merged(data_spec: str, seeds: int, epochs: float) -> None:
    data = load_data(data_spec)
    rows: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(seeds):
        teacher = trained_perceptron(data, seed)
        network, weights = teacher.source_network, teacher.export_weights()
        rows.setdefault(f"none, {network.parameter_count}", []).append((accuracy(teacher, data),) * 3)
        sample = calibrated(data, seed)
        for layer, into in itertools.pairwise(node.name for node in solvable_layers(network)):
            student = build(*merge(network, weights, layer))  # type: ignore[arg-type]
            name = f"{layer} into {into}, {student.source_network.parameter_count}"
            before = accuracy(student, data)
            compensate(student, teacher, sample.calibration, {})
            fitted = accuracy(student, data)
            distil(student, TeacherOutputs(teacher), data, DistillSettings(epochs=epochs, seed=seed))
            rows.setdefault(name, []).append((before, fitted, accuracy(student, data)))
    print(f"| merged, parameters | as they are | fitted | after {epochs:g} epochs |\n|---|---|---|---|")
    for name, found in rows.items():
        print(f"| {name} | {' | '.join(spread(column) for column in zip(*found, strict=True))} |")


Change = Callable[[Network, Weights | None, str], tuple[Network, Weights | None]]


def forms(kinds: list[str]) -> dict[str, Change]:
    made: dict[str, Change] = {}
    for kind in kinds:
        made[kind] = lambda network, weights, layer, kind=kind: structure(network, weights, layer, kind)
        made[f"low rank, as small as {kind}"] = lambda network, weights, layer, kind=kind: factorize(
            network, weights, layer, _share_as_small_as(weight_shape(network, layer), kind)
        )
    return made


def _share_as_small_as(shape: tuple[int, ...], kind: str) -> float:
    most = structured_parameters(kind, *shape[:2], sizes(kind, *shape[:2]))
    shares = (share for share in np.arange(0.99, 0, -0.005) if parameters(shape, ranks(shape, share)) <= most)
    return float(next(shares, 0.005))


def changed(network: Network, weights: Weights, change: Change) -> tuple[Network, Weights | None]:
    found: tuple[Network, Weights | None] = network, weights
    for layer in wide(network):
        found = change(*found, layer)
    return found


def wide(network: Network) -> list[str]:
    return [node.name for node in solvable_layers(network)][:2]


def weight_shape(network: Network, layer: str) -> tuple[int, ...]:
    return network.params[network.by_name[layer].params[0]].shape


def calibrated(data: Data, seed: int) -> Data:
    return replace(data, calibration=data.train.subset(CALIBRATION_SIZE, seed))


def accuracy(student: GraphModule, data: Data) -> float:
    return 100 * evaluate(student, data.validation, precision="auto").accuracy


def spread(values: tuple[float, ...] | list[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main())
