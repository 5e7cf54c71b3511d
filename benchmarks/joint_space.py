"""The joint space of a network in one shot: which sampler finds the best front with 50, 100, 200 evaluations.

    python benchmarks/joint_space.py --teacher cifar_resnet.py:load,depth=20 --data imagefolder:cifar10

Width, rank, bits and blocks at once. An evaluation is the accuracy of a candidate without training (cut,
fitted in closed form, quantized) on held-out training images; latency is the price by a shipped device
profile and costs nothing. Hypervolume is that of (error, latency) below an error of 50 % and the latency
limit, as a share of that rectangle. Printed are medians over seeds with the lowest and highest, for the
engine and each sampler of Optuna by itself; for both with parts of the engine taken away; for the
solver's answers alone; for all widths scaled alike, and for blocks dropped evenly; and how well summed
scores rank random candidates.

Accuracies and finished sequences are kept in --keep, so that the command can be repeated and goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autocompress.cost.repair import Repairer
from autocompress.device.measure.statistics import rank_correlation
from autocompress.device.profile_files.store import load_profile
from autocompress.pipeline.preparation import bound_space, open_teacher, priced, seen_by
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Option, Site
from autocompress.problem.space import load_space
from autocompress.runs.pareto import hypervolume
from autocompress.search.halving import Plan
from autocompress.search.proposers.samplers import proposer
from autocompress.search.proposers.solver import Solver
from autocompress.students.builder import StudentBuilder
from autocompress.students.importances import importances
from autocompress.students.one_shot import OneShot
from autocompress.students.sensitivity import MEASURES, score
from autocompress.transforms.sampling import random_candidate

PROFILE = "epyc-zen5-onnxruntime-1-thread"
LIMIT_SHARE = 0.6
LARGEST_ERROR = 0.5
COUNTS = (50, 100, 200)
SEEDS = 6
PROBES = 100
CACHE_BYTES = 2**30
METHODS = {
    "engine": ("engine", True),
    "tpe": ("tpe", False),
    "nsga2": ("nsga2", False),
    "random": ("random", False),
    "engine without solver": ("engine", False),
    "tpe from the solver": ("tpe", True),
    "random from the solver": ("random", True),
}
"""Name → sampler, and whether it starts from the solver's answers."""


class Bench:
    """Everything that is evaluated, once."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.images = arguments.images
        self.keep = Path(arguments.keep) / f"{self.images}-images"
        self.keep.mkdir(parents=True, exist_ok=True)
        opened = open_teacher(arguments.teacher, arguments.data)
        space, profile = load_space("joint"), load_profile(PROFILE)
        bound = bound_space(opened, space)
        self.pricer = priced(bound, seen_by(profile, opened, bound, space), ("latency_ms",))
        assert opened.data is not None
        self.opened, self.bound = opened, self.pricer.bound
        self.limits = Limits(latency_ms=LIMIT_SHARE * self.pricer.teacher.latency_ms)
        self.seconds: list[float] = []
        self._known = dict(map(json.loads, self._lines("accuracies.jsonl")))

    @cached_property
    def one_shot(self) -> OneShot:
        saliency = importances(self.bound, self.opened.weights, self.opened.data)
        builder = StudentBuilder(self.bound, self.opened.weights, self.opened.data, saliency)
        return OneShot(builder, self.images, CACHE_BYTES)

    @cached_property
    def damage(self) -> dict[str, dict[tuple[str, Option], float]]:
        """By measure."""
        kept = self.keep / "scores.json"
        if not kept.is_file():
            started = time.perf_counter()
            found = score(self.one_shot)
            print(f"scores took {time.perf_counter() - started:.0f} s", flush=True)
            rows = {name: [[*choice, value] for choice, value in one.items()] for name, one in found.items()}
            kept.write_text(json.dumps(rows), encoding="utf-8")
        rows = json.loads(kept.read_text(encoding="utf-8"))
        return {name: {(site, option): value for site, option, value in one} for name, one in rows.items()}

    def solver(self, measure: str) -> Solver:
        return Solver(self.pricer, self.damage[measure])

    def accuracy(self, candidate: Candidate) -> float:
        key = self.bound.canonical(candidate).key
        if key not in self._known:
            started = time.perf_counter()
            self._known[key] = self.one_shot(candidate).evaluation.accuracy
            self.seconds.append(time.perf_counter() - started)
            with (self.keep / "accuracies.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self._known[key]]) + "\n")
        return self._known[key]

    def volume(self, candidates: Iterable[Candidate]) -> float:
        points = [
            (1 - self.accuracy(candidate), self.pricer.price(candidate).latency_ms)
            for candidate in candidates
        ]
        assert self.limits.latency_ms is not None
        reference = (LARGEST_ERROR, self.limits.latency_ms)
        return hypervolume(points, reference) / (reference[0] * reference[1])

    def volumes(self, method: str, seed: int, measure: str) -> list[float]:
        """After each of `COUNTS` evaluations; kept once it is known."""
        kept = self.keep / f"{method.replace(' ', '-')}-{seed}.json"
        if not kept.is_file():
            sampler, from_solver = METHODS[method]
            asked: list[Candidate] = []
            for candidate in self._asked(sampler, from_solver, seed, measure):
                asked.append(candidate)
                if len(asked) in COUNTS:
                    print(f"  {method}, seed {seed}, {len(asked)}: {self.volume(asked):.3f}", flush=True)
            record = {"volumes": [self.volume(asked[:count]) for count in COUNTS], "asked": len(asked)}
            kept.write_text(json.dumps(record), encoding="utf-8")
        return list(json.loads(kept.read_text(encoding="utf-8"))["volumes"])

    def _asked(self, sampler: str, from_solver: bool, seed: int, measure: str) -> Iterator[Candidate]:
        """Without the solver there are no scores either: every choice counts as equally harmful."""
        solver = self.solver(measure) if from_solver else Solver(self.pricer, {})
        repair = Repairer(self.pricer, self.limits, solver.damage)
        plan = Plan(COUNTS[-1], 0, 0, 0, 0, 1, sampler=sampler, seed=seed)
        study = proposer(plan.sampler, plan.seed, solver, repair, self.limits, beyond=1.0)
        for candidate in solver.sweep(self.limits, SEEDS, least_share=0.3) if from_solver else ():
            study.enqueue(candidate)
        for _ in range(COUNTS[-1]):
            proposal = study.ask()
            if proposal is None:
                return
            number, candidate = proposal
            cost = self.pricer.price(candidate).to_json()
            study.tell(number, {"accuracy": self.accuracy(candidate), **cost})
            yield candidate

    def uniform_widths(self) -> list[Candidate]:
        """All widths at the same share, in float and in 8 bits."""
        shares = sorted({option for site in self.bound.of_kind("width") for option in site.options})
        alike = [
            {site.name: min(site.options, key=lambda option: abs(option - share))
             for site in self.bound.of_kind("width")}
            for share in shares
        ]  # fmt: skip
        return self._in_both_precisions(alike)

    def uniform_depths(self) -> list[Candidate]:
        """Every number of the blocks that can be dropped, spread evenly, in float and in 8 bits."""
        sites = [site for site in self.bound.of_kind("block") if "drop" in site.options]
        chosen = [{site.name: "drop" for site in evenly(sites, count)} for count in range(len(sites) + 1)]
        return self._in_both_precisions(chosen)

    def _in_both_precisions(self, choices: Sequence[dict[str, Any]]) -> list[Candidate]:
        low = dict(self.pricer.low_bits.choices)
        every = [Candidate.of({**chosen, **bits}) for chosen in choices for bits in ({}, low)]
        return [
            found
            for found in map(self.bound.canonical, every)
            if not self.limits.violated(self.pricer.price(found), upper=True)
        ]

    def probes(self) -> list[Candidate]:
        """Random candidates inside the limits."""
        rng, repair = random.Random(0), Repairer(self.pricer, self.limits, {})
        found: dict[str, Candidate] = {}
        while len(found) < PROBES:
            candidate = repair(random_candidate(self.bound, rng))
            if not self.limits.violated(self.pricer.price(candidate), upper=True):
                found[candidate.key] = candidate
        return list(found.values())

    def _lines(self, name: str) -> list[str]:
        path = self.keep / name
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def evenly(sites: Sequence[Site], count: int) -> list[Site]:
    return [sites[int((index + 0.5) * len(sites) / count)] for index in range(count)]


def shown(values: Sequence[float]) -> str:
    return f"{np.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=500, help="held-out training images of an evaluation")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS), help="those of METHODS, with commas")
    parser.add_argument("--keep", default="runs/joint-space")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments)
    teacher = bench.accuracy(Candidate())
    options = sum(len(site.options) for site in bench.bound.free)
    print(f"{len(bench.bound.free)} sites, {options} options; limit {bench.limits.latency_ms:.3f} ms; "
          f"teacher {teacher:.2%} on {arguments.images} images")  # fmt: skip
    probes = bench.probes()
    accuracies = [bench.accuracy(probe) for probe in probes]
    ranks = {}
    for measure in MEASURES:
        harms = [-bench.solver(measure).harm(probe) for probe in probes]
        ranks[measure] = rank_correlation(harms, accuracies)
        print(f"rank correlation of summed scores by {measure} and one-shot accuracy over {PROBES} random "
              f"candidates inside the limit: {ranks[measure]:.3f}", flush=True)  # fmt: skip
    measure = max(ranks, key=lambda name: ranks[name])
    rows: dict[str, list[list[float]]] = {name: [] for name in arguments.methods.split(",") if name}
    for seed in range(arguments.seeds):
        for name, found in rows.items():
            found.append(bench.volumes(name, seed, measure))
            print(f"  seed {seed}, {name}:", *(f"{value:.3f}" for value in found[-1]), flush=True)
    print(f"hypervolume after {COUNTS} evaluations, {arguments.seeds} seeds:")
    for name, found in rows.items():
        print(f"  {name:24}", "   ".join(shown(column) for column in zip(*found, strict=True)))
    for name, candidates in (
        ("uniform width", bench.uniform_widths()),
        ("uniform depth", bench.uniform_depths()),
        ("solver alone", bench.solver(measure).sweep(bench.limits, COUNTS[0], least_share=0.3)),
    ):
        print(
            f"{name}: hypervolume {bench.volume(candidates):.3f} with its {len(candidates)} candidates",
            flush=True,
        )
    if bench.seconds:
        cache = bench.one_shot.cache
        print(f"an evaluation took {np.median(bench.seconds):.2f} s (median of {len(bench.seconds)}); "
              f"{cache.hits} of {cache.hits + cache.misses} passes went on from a kept block")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
