"""What a search knows of a candidate before and during training, against its accuracy after training.

    python benchmarks/after_training.py train --teacher cifar_resnet.py:load,depth=20 --data imagefolder:C
    python benchmarks/after_training.py report …    (the same arguments)

Random candidates inside the latency limit of `joint_space.py` are evaluated in one shot and then distilled
for `--epochs` in all, in 8 bits at the end where they have them. On the way they pass rungs of a ninth and a
third of the epochs, each going on from the one before, as those of a search do. `report` prints rank
correlations with the last accuracy, with bootstrap intervals, and what promotion by rungs gains: the most
accurate student that a budget of epochs buys, when those best in one shot are trained to the end, against
successive halving, over random draws of a dozen candidates. All accuracies are on held-out training images.

`--share-of-images 0.2` trains on so much of the training images. Everything is kept in --keep; `--part I/N`
trains every N-th candidate only.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joint_space import Bench

from autocompress.device.measure.statistics import rank_correlation
from autocompress.problem.candidate import Candidate
from autocompress.search.halving import KEPT_SHARE
from autocompress.students.builder import StudentBuilder
from autocompress.students.sensitivity import MEASURES
from autocompress.transforms.families.quantize import plan

QUANTIZED_EPOCHS = 0.5
DRAWN, DRAWS = 12, 2000
RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """One candidate: what was known of it before training, on the rungs and at the end."""

    choices: dict[str, Any]
    harm: dict[str, float]
    one_shot: float
    rungs: tuple[float, ...]
    trained: float
    seconds: float

    @property
    def stages(self) -> tuple[float, ...]:
        return (self.one_shot, *self.rungs, self.trained)


def epochs_of_rungs(epochs: float) -> tuple[float, ...]:
    return epochs / KEPT_SHARE**2, epochs / KEPT_SHARE


def trained(bench: Bench, builder: StudentBuilder, candidate: Candidate, epochs: float) -> Row:
    started = time.perf_counter()
    harm = {measure: bench.solver(measure).harm(candidate) for measure in MEASURES}
    one_shot, done, accuracies, module = bench.accuracy(candidate), 0.0, list[float](), None
    for part, reached in enumerate(epochs_of_rungs(epochs), start=1):
        weights = None if module is None else module.export_weights()
        module = builder.rung(candidate, weights, reached - done, part)
        accuracies.append(builder.validated(builder.quantized(module)).accuracy)
        done = reached
    rounded = QUANTIZED_EPOCHS if plan(module.source_network) else 0.0
    finished = builder.finish(candidate, epochs - done - rounded, rounded, start=module)
    assert finished is not None
    return Row(
        candidate.to_json(), harm, one_shot, tuple(accuracies), finished.validation.accuracy,
        time.perf_counter() - started,
    )  # fmt: skip


def train(bench: Bench, folder: Path, arguments: argparse.Namespace) -> None:
    shop = bench.one_shot.builder
    train_images = shop.data.train.subset(round(arguments.share_of_images * shop.data.train.size))
    builder = StudentBuilder(bench.bound, shop.weights, replace(shop.data, train=train_images), shop.saliency)
    part, parts = map(int, arguments.part.split("/"))
    for number, candidate in list(enumerate(bench.probes()[: arguments.candidates]))[part::parts]:
        path = folder / f"{number}.json"
        if path.is_file():
            continue
        row = trained(bench, builder, candidate, arguments.epochs)
        path.write_text(json.dumps(vars(row)), encoding="utf-8")
        print(
            f"{number}: " + ", ".join(f"{value:.4f}" for value in row.stages) + f" ({row.seconds:.0f} s)",
            flush=True,
        )


def report(rows: Sequence[Row], epochs: float) -> None:
    final = [row.trained for row in rows]
    print(f"{len(rows)} candidates, {epochs:g} epochs: {min(final):.2%} to {max(final):.2%}, "
          f"{statistics.median(row.seconds for row in rows):.0f} s each (median)")  # fmt: skip
    names = ["one shot", *(f"after {reached:.2g} epochs" for reached in epochs_of_rungs(epochs))]
    known: dict[str, list[float]] = {
        f"summed scores by {measure}": [-row.harm[measure] for row in rows] for measure in MEASURES
    }
    known |= {name: [row.stages[index] for row in rows] for index, name in enumerate(names)}
    for name, values in known.items():
        low, high = interval(values, final)
        print(f"rank correlation of {name} and the last accuracy: {rank_correlation(values, final):.3f} "
              f"(bootstrap 95 %: {low:.2f} to {high:.2f})")  # fmt: skip
    ablation(rows, epochs)


def interval(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(left), len(left)) for _ in range(RESAMPLES))
    found = [rank_correlation([left[i] for i in draw], [right[i] for i in draw]) for draw in draws]
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def ablation(rows: Sequence[Row], epochs: float) -> None:
    """Points behind the best of the drawn candidates, with and without rungs."""
    rng = random.Random(0)
    draws = [rng.sample(rows, min(DRAWN, len(rows))) for _ in range(DRAWS)]
    count = len(draws[0])
    first, second = epochs_of_rungs(epochs)
    kept = -(-count // KEPT_SHARE)
    ways: dict[str, tuple[float, Callable[[Sequence[Row]], Row]]] = {
        "best in one shot, trained": (epochs, lambda drawn: best_of(drawn, 0, 1)[0]),
        "three best in one shot, trained": (3 * epochs, lambda drawn: last(best_of(drawn, 0, 3))),
        f"promotion: {count} on the first rung, {kept} on the second, the best trained": (
            count * first + kept * (second - first) + epochs - second,
            lambda drawn: best_of(best_of(drawn, 1, kept), 2, 1)[0],
        ),
        f"promotion: {kept} best in one shot on both rungs, the best trained": (
            kept * second + epochs - second,
            lambda drawn: best_of(best_of(drawn, 0, kept), 2, 1)[0],
        ),
    }
    for name, (spent, way) in ways.items():
        behind = [100 * (last(drawn).trained - way(drawn).trained) for drawn in draws]
        print(f"{name}: {spent:.1f} epochs; {statistics.mean(behind):.2f} points behind the best of {count} "
              f"(mean of {DRAWS:,} draws; 90th percentile {np.percentile(behind, 90):.2f})")  # fmt: skip


def best_of(rows: Sequence[Row], stage: int, count: int) -> list[Row]:
    """By the accuracy of a stage, 0 being one shot."""
    return sorted(rows, key=lambda row: -row.stages[stage])[:count]


def last(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: row.trained)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["train", "report"])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--share-of-images", type=float, default=1.0, help="of the training images")
    parser.add_argument("--images", type=int, default=500, help="held-out training images in one shot")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th candidate from the I-th on")
    parser.add_argument("--keep", default="runs/joint-space", help="of joint_space.py, too")
    arguments = parser.parse_args()
    folder = Path(arguments.keep) / f"trained-{arguments.epochs:g}-{arguments.share_of_images:g}"
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.step == "train":
        torch.set_num_threads(1)
        train(Bench(arguments), folder, arguments)
        return 0
    kept = sorted(folder.glob("*.json"), key=lambda path: int(path.stem))
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in kept]
    report([Row(**{**row, "rungs": tuple(row["rungs"])}) for row in rows], arguments.epochs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
