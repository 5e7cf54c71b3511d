"""LeNets on MNIST by a search: what density and how many shared values each layer gets, and what comes out.

    python benchmarks/small_file.py --data MNIST_DIR --network lenet-300-100 --packed-size 1.23% --seeds 0 1 2

The teacher is that of `deep_compression.py`, whose plan was made by hand. Here everything after it is one
search with a budget of the packed size, as a user would start it, in the shipped space `small-file`: this
machine is profiled, 20 candidates are tried, four are distilled. The student with the fewest errors on
validation images is reported; its test images were read once, when it was certified. Runs are kept in
runs/small-file.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from deep_compression import NETWORKS, RECIPES, Warped, teacher_of

import autocompress as ac
from autocompress.export.student_folder import read_spec
from autocompress.graph.module import build
from autocompress.problem.data import load_data

FOLDER = Path("runs/small-file")
SPACE = "small-file"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder that torchvision's MNIST reads")
    parser.add_argument("--network", choices=NETWORKS, default="lenet-300-100")
    parser.add_argument("--packed-size", default="1.23%")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--distill-epochs", type=float, default=15)
    parser.add_argument("--resume", action="store_true", help="go on with the runs that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [searched(arguments, seed) for seed in arguments.seeds]
    ratios, errors = zip(*rows, strict=True)
    recipe = RECIPES[arguments.network]
    ratio, error = float(np.median(ratios)), float(np.median(errors))
    met = ratio >= recipe.target_ratio and error <= recipe.target_error
    print(
        f"{arguments.network}, seeds {arguments.seeds}: {ratio:.1f}× "
        f"({min(ratios):.1f} to {max(ratios):.1f}) "
        f"at {error:.2%} ({min(errors):.2%} to {max(errors):.2%}) test error"
    )
    print(f"target {recipe.target_ratio:.0f}× at {recipe.target_error:.2%}: {'met' if met else 'missed'}")
    return 0


def searched(arguments: argparse.Namespace, seed: int) -> tuple[float, float]:
    """(how many times fewer bytes than float32 weights, test error) of the best student."""
    started = time.monotonic()
    folder = FOLDER / f"{arguments.network}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    spec = f"mnist:{arguments.data},channels=1"
    data = load_data(spec)
    data = replace(data, train=Warped(data.train))
    network, weights = teacher_of(arguments.network, RECIPES[arguments.network], data, seed)
    teacher = build(network, weights)
    if not arguments.resume:
        ac.profile(teacher, SPACE, folder / "device", networks=20, data=spec, overwrite=True)
    front = ac.compress(
        teacher,
        spec,
        folder / "device",
        SPACE,
        ac.Budgets.parse(packed_size=arguments.packed_size),
        trials=arguments.trials,
        run=folder / "run",
        seed=seed,
        trial_epochs=1,
        distill_epochs=arguments.distill_epochs,
        resume=arguments.resume,
        overwrite=not arguments.resume,
    )
    best = front.best()
    size = (best.folder / "student.acz").stat().st_size
    ratio, error = 4 * sum(array.size for array in weights.values()) / size, 1 - best.accuracy
    minutes = (time.monotonic() - started) / 60
    print(
        f"{arguments.network}, seed {seed}: {size:,} bytes, {ratio:.1f}× at {error:.2%} test error, "
        f"{1 - best.validation_accuracy:.2%} on validation images (teacher "
        f"{1 - front.teacher.accuracy:.2%}), {minutes:.0f} minutes; {read_spec(best.folder)['choices']}",
        flush=True,
    )
    return ratio, error


if __name__ == "__main__":
    sys.exit(main())
