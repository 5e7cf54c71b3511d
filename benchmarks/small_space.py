"""A small space of a real network, evaluated whole: how much of its front samplers find with 5 % of it.

    python benchmarks/small_space.py --seeds 10

A residual network is trained on scikit-learn's digits; some of its blocks can be dropped, others
narrowed. Every candidate's accuracy is taken in one shot (cut, batch norms recalibrated, no training) on
validation data; its latency is the price by a shipped device profile. A sampler pays for accuracies only.
Printed are the shares of the true hypervolume after 5 % and 10 % of the evaluations, medians over seeds
with the 10th and 90th percentile, for the solver's answers alone, the engine from them and without them,
and Optuna's samplers from the same answers. Accuracies are kept in --keep.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.cost.kernels import kernels
from autocompress.cost.model import CostModel
from autocompress.cost.pricer import Pricer
from autocompress.cost.repair import Repairer
from autocompress.device.profile_files.store import load_profile
from autocompress.graph.trace import trace
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate
from autocompress.problem.data import Data, load_data
from autocompress.problem.space import parse_space
from autocompress.runs.pareto import hypervolume
from autocompress.search.halving import Plan
from autocompress.search.proposers.samplers import proposer
from autocompress.search.proposers.solver import Solver
from autocompress.students.builder import StudentBuilder
from autocompress.students.importances import importances
from autocompress.students.one_shot import OneShot
from autocompress.students.sensitivity import score
from autocompress.students.training.distill import distil
from autocompress.students.training.settings import DistillSettings
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sites import bind

PROFILE = "epyc-zen4-onnxruntime-1-thread-resnet20"
SPACE = """
name: small-space
rules:
  - match: {layer: conv, name: "blocks.[135].inner"}
    width: {keep: [0.25, 0.5, 0.75, 1.0], importance: l2, round_to: 4}
  - match: {block: residual}
    block: [keep, drop]
"""
SHARES = (0.05, 0.1)
CHANNELS = 16
SEEDS = 6


class Block(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(CHANNELS)
        self.outer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.outer_norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.inner_norm(self.inner(x)))
        return functional.relu(x + self.outer_norm(self.outer(inner)))


class Residual(nn.Module):
    """A stem, six blocks that can all be dropped, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.blocks = nn.Sequential(*(Block() for _ in range(6)))
        self.classify = nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.norm(self.stem(x))))
        return self.classify(x.mean((2, 3)))


def pricer_of_teacher(data: Data) -> tuple[Pricer, StudentBuilder]:
    """The network, trained on the digits, its space, and a builder that makes candidates of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Residual()
    distil(
        model,
        None,
        data,
        DistillSettings(epochs=12, batch_size=64, learning_rate=0.05, seed=0, precision="float32"),
    )
    network, weights = trace(model.eval(), data.input_shape)
    space, profile = parse_space(SPACE), load_profile(PROFILE)
    bound = bind(space, network)
    found = kernels(deployed_network(bound, Candidate()), profile.layouts)
    pricer = Pricer(bound, CostModel(profile.for_network(network.input_shape, network_kernels=found)))
    return pricer, StudentBuilder(bound, weights, data, importances(bound, weights, data))


def accuracies(pricer: Pricer, builder: StudentBuilder, keep: Path) -> dict[str, float]:
    """One-shot accuracy of every candidate by its key."""
    if keep.is_file():
        return dict(json.loads(keep.read_text(encoding="utf-8")))
    found: dict[str, float] = {}
    one_shot = OneShot(builder)
    for candidate in every(pricer):
        found[candidate.key] = one_shot(candidate).evaluation.accuracy
    keep.parent.mkdir(parents=True, exist_ok=True)
    keep.write_text(json.dumps(found), encoding="utf-8")
    return found


def every(pricer: Pricer) -> list[Candidate]:
    sites = pricer.bound.free
    options = itertools.product(*(site.options for site in sites))
    named = (Candidate.of(zip((site.name for site in sites), each, strict=True)) for each in options)
    return list({found.key: found for found in map(pricer.bound.canonical, named)}.values())


def share(candidates: list[Candidate], pricer: Pricer, accuracy: Mapping[str, float], true: float) -> float:
    return volume(candidates, pricer, accuracy) / true


def volume(candidates: list[Candidate], pricer: Pricer, accuracy: Mapping[str, float]) -> float:
    """Of error and latency, from an error of 50 % and the teacher's latency."""
    points = [(1 - accuracy[found.key], pricer.price(found).latency_ms) for found in candidates]
    return hypervolume(points, (0.5, pricer.teacher.latency_ms * 1.01))


def searched(
    sampler: str, seed: int, solver: Solver, accuracy: Mapping[str, float], count: int, with_seeds: bool
) -> list[Candidate]:
    limits = Limits(latency_ms=1.2 * solver.pricer.teacher.latency_ms)
    repair = Repairer(solver.pricer, limits, solver.damage)
    plan = Plan(count, 0, 0, 0, 0, 1, sampler=sampler, seed=seed)
    study = proposer(plan.sampler, plan.seed, solver, repair, limits)
    for candidate in seeds_of(solver) if with_seeds else ():
        study.enqueue(candidate)
    asked: list[Candidate] = []
    while len(asked) < count and (proposal := study.ask()) is not None:
        number, candidate = proposal
        asked.append(candidate)
        cost = solver.pricer.price(candidate).to_json()
        study.tell(number, {"accuracy": accuracy[candidate.key], **cost})
    return asked


def seeds_of(solver: Solver) -> list[Candidate]:
    """The solver's answers over the whole range of latencies."""
    return solver.sweep(Limits(latency_ms=0.95 * solver.pricer.teacher.latency_ms), SEEDS, least_share=0.2)


def shown(values: list[float]) -> str:
    low, median, high = np.percentile(values, (10, 50, 90))
    return f"{median:.3f} ({low:.3f}–{high:.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--keep", type=Path, default=Path("runs/small-space/accuracies.json"))
    arguments = parser.parse_args()
    data = load_data("digits")
    pricer, builder = pricer_of_teacher(data)
    accuracy = accuracies(pricer, builder, arguments.keep)
    candidates = every(pricer)
    damage = score(OneShot(builder))["divergence"]
    solver = Solver(pricer, damage)
    ranks = [
        np.argsort(np.argsort(values))
        for values in (
            [accuracy[found.key] for found in candidates],
            [-solver.harm(found) for found in candidates],
        )
    ]
    print(f"{len(candidates)} candidates, teacher {accuracy[Candidate().key]:.2%} on validation data")
    print(f"rank correlation of summed scores and one-shot accuracy: {np.corrcoef(*ranks)[0, 1]:.3f}")
    true = volume(candidates, pricer, accuracy)
    counts = [round(part * len(candidates)) for part in SHARES]
    print(
        f"share of the true hypervolume after {counts} evaluations, {arguments.seeds} seeds; target 0.98, –"
    )
    alone = share(seeds_of(solver), pricer, accuracy, true)
    print(f"  {'solver alone':20} {alone:.3f} with its {len(seeds_of(solver))} answers")
    runs = [("engine", True), ("engine", False), ("tpe", True), ("nsga2", True), ("random", True)]
    for sampler, with_seeds in runs:
        rows = []
        for seed in range(arguments.seeds):
            asked = searched(sampler, seed, solver, accuracy, counts[-1], with_seeds)
            rows.append([share(asked[:count], pricer, accuracy, true) for count in counts])
        name = sampler if with_seeds else f"{sampler} without seeds"
        print(f"  {name:20}", "   ".join(map(shown, zip(*rows, strict=True))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
