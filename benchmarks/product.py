"""What the search finds against what is done by hand: test accuracy at a measured latency, after training.

    python benchmarks/product.py search --teacher cifar_resnet.py:load,depth=56 --data imagefolder:cifar10
    python benchmarks/product.py train …    (the same arguments; on a GPU where torch sees one)
    python benchmarks/product.py report …

For each share of the float teacher's measured latency: the engine (candidates in one shot, the best trained
shortly, the best of those for the rest), the solver's answer alone, blocks dropped evenly, and all widths
alike, each in 8 bits where that is faster. Every student is trained for the same number of epochs and
certified like those of a search; the engine's is chosen by validation accuracy. Test images of
students are read by `report` only. Everything is kept in --keep, so that each step goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joint_space import PROFILE, evenly

from autocompress.cost.repair import Repairer
from autocompress.device.profile_files.store import load_profile
from autocompress.export.onnx import to_onnx
from autocompress.export.student_folder import load_student, save_student
from autocompress.graph.module import GraphModule, build
from autocompress.pipeline.certification import Device, examine
from autocompress.pipeline.preparation import bound_space, open_teacher, priced, seen_by
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import load_space
from autocompress.search.halving import Plan
from autocompress.search.proposers.pair_terms import pair_terms
from autocompress.search.proposers.samplers import proposer
from autocompress.search.proposers.solver import Solver, pairs_of_rows
from autocompress.students.builder import StudentBuilder
from autocompress.students.importances import importances
from autocompress.students.one_shot import OneShot
from autocompress.students.sensitivity import Scorer, score
from autocompress.students.training.settings import DistillSettings

SHARES = (0.30, 0.215, 0.15)
HEADROOM = 0.985
"""Of the limit, so that what is measured keeps it too."""
MEASURE = "divergence"
SEEDS_OF_SEARCH = 6
IMAGES = 500
PROMOTED = 6
RUNG_EPOCHS, QUANTIZED_EPOCHS = 0.5, 0.5
ENGINE, SOLVER, SUMS = "engine", "solver alone", "solver alone, sums only"
EVENLY, WIDTHS = "blocks dropped evenly", "widths alike"
METHODS = (ENGINE, SOLVER, SUMS, EVENLY, WIDTHS)


@dataclass(frozen=True)
class Job:
    """Candidates that one method has for one limit and seed; those of the engine compete."""

    share: float
    seed: int
    method: str

    @property
    def name(self) -> str:
        return f"{self.share:g}-{self.seed}-{self.method.replace(' ', '-')}"


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.keep = Path(arguments.keep)
        self.keep.mkdir(parents=True, exist_ok=True)
        self.opened = open_teacher(arguments.teacher, arguments.data)
        assert self.opened.data is not None
        self.data = self.opened.data

    @cached_property
    def pricer(self) -> Any:
        space, profile = load_space("joint"), load_profile(PROFILE)
        bound = bound_space(self.opened, space)
        return priced(bound, seen_by(profile, self.opened, bound, space), ("latency_ms",))

    @property
    def bound(self) -> Any:
        return self.pricer.bound

    @cached_property
    def saliency(self) -> Any:
        return importances(self.bound, self.opened.weights, self.data)

    def builder(self, seed: int = 0) -> StudentBuilder:
        return StudentBuilder(
            self.bound, self.opened.weights, self.data, self.saliency, DistillSettings(seed=seed)
        )

    def jobs(self) -> list[Job]:
        seeds = range(self.arguments.seeds)
        return [Job(share, seed, method) for method in METHODS for share in SHARES for seed in seeds]

    def teacher_record(self) -> dict[str, Any]:
        """Measured latency and accuracies of the float teacher's file."""
        path = self.keep / "teacher.onnx"
        if not path.is_file():
            path.write_bytes(to_onnx(*self.opened.shipped).SerializeToString())
        return dict(self._kept("teacher.json", lambda: self._examined(path, build(*self.opened.shipped))))

    def _examined(self, path: Path, module: GraphModule) -> dict[str, Any]:
        found = examine(path, self.data, Device("onnxruntime", 1), module=module)
        assert found.test is not None
        return {
            "latency_ms": found.measurement.latency_ms,
            "upper_ms": found.measurement.latency_ms_ci95[1],
            "validation": found.validation.accuracy,
            "test": found.test.accuracy,
            "kib": found.file_bytes / 1024,
        }

    def limits(self, share: float) -> Limits:
        return Limits(latency_ms=share * HEADROOM * self.teacher_record()["latency_ms"])

    # search

    @cached_property
    def one_shot(self) -> OneShot:
        return OneShot(self.builder(), IMAGES, 2**30)

    def solver(self, share: float, with_pairs: bool = True) -> Solver:
        """As of a search: with the terms of pairs where sums of scores will not do for this limit."""

        def scored() -> list[list[Any]]:
            return [[*choice, value] for choice, value in score(self.one_shot)[MEASURE].items()]

        def paired() -> list[list[Any]]:
            scorer = Scorer(self.one_shot)
            limits = self.limits(share)
            found = pair_terms(solver, limits, lambda some: [scorer(one)[MEASURE] for one in some], print)
            return [[*one, *other, term] for (one, other), term in found.items()]

        rows = self._kept("scores.json", scored)
        solver = Solver(self.pricer, {(site, option): value for site, option, value in rows})
        if with_pairs:
            solver.pairs = pairs_of_rows(self._kept(f"pairs-{share:g}.json", paired))
        return solver

    def candidates(self, job: Job) -> list[Candidate]:
        """The best of the method for the limit, the most promising first; kept."""
        rows = self._kept(f"candidates/{job.name}.json", lambda: [one.to_json() for one in self._found(job)])
        return [Candidate.of(row) for row in rows]

    def _found(self, job: Job) -> list[Candidate]:
        limits = self.limits(job.share)
        if job.method == ENGINE:
            return self._searched(job, limits)
        if job.method in (SOLVER, SUMS):
            answer = self.solver(job.share, job.method == SOLVER).solve(limits)
            return [] if answer is None else [self.bound.canonical(answer)]
        every = map(self.bound.canonical, self._by_hand(job.method))
        return next(([one] for one in every if not limits.violated(self.pricer.price(one))), [])

    def _searched(self, job: Job, limits: Limits) -> list[Candidate]:
        solver = self.solver(job.share)
        repair = Repairer(self.pricer, limits, solver.damage)
        plan = Plan(self.arguments.evaluations, 0, 0, 0, 0, 1, seed=job.seed)
        study = proposer(plan.sampler, plan.seed, solver, repair, limits)
        for candidate in solver.sweep(limits, SEEDS_OF_SEARCH, least_share=0.9):
            study.enqueue(candidate)
        found: list[tuple[float, Candidate]] = []
        started = time.monotonic()
        for _ in range(self.arguments.evaluations):
            proposal = study.ask()
            if proposal is None:
                break
            number, candidate = proposal
            accuracy = self.one_shot(candidate).evaluation.accuracy
            study.tell(number, {"accuracy": accuracy, **self.pricer.price(candidate).to_json()})
            found.append((accuracy, candidate))
        best = sorted(found, key=lambda item: -item[0])[:PROMOTED]
        shown = [round(accuracy, 3) for accuracy, _ in best]
        print(f"{job.name}: {len(found)} in {time.monotonic() - started:.0f} s, accuracy in one shot first "
              f"{found[0][0]:.3f}, best {shown}", flush=True)  # fmt: skip
        return [candidate for _, candidate in best]

    def _by_hand(self, method: str) -> Iterator[Candidate]:
        """The mildest first."""
        low = dict(self.pricer.low_bits.choices)
        if method == EVENLY:
            sites = [site for site in self.bound.of_kind("block") if "drop" in site.options]
            for count in range(len(sites) + 1):
                yield Candidate.of({**low, **{site.name: "drop" for site in evenly(sites, count)}})
            return
        widths = self.bound.of_kind("width")
        for share in sorted({option for site in widths for option in site.options}, reverse=True):
            nearest = {
                site.name: min(site.options, key=lambda option: abs(option - share)) for site in widths
            }
            yield Candidate.of({**low, **nearest})

    # train

    def train(self, job: Job) -> None:
        """Distils the job's candidates, and keeps the finalists."""
        folder = self.keep / "students" / job.name
        if folder.is_dir():
            return
        shop, epochs = self.builder(job.seed), self.arguments.epochs
        candidates, started = self.candidates(job), time.monotonic()
        rungs: list[tuple[float, Candidate, Any]] = []
        if len(candidates) > 1:
            for candidate in candidates:
                module = shop.rung(candidate, None, RUNG_EPOCHS, part=1)
                rungs.append((shop.validated(shop.quantized(module)).accuracy, candidate, module))
            rungs.sort(key=lambda item: -item[0])
        finalists = rungs[: self.arguments.finalists] or [(0.0, candidate, None) for candidate in candidates]
        students = []
        for _, candidate, start in finalists:
            left = epochs - QUANTIZED_EPOCHS - (0.0 if start is None else RUNG_EPOCHS)
            students.append((candidate, shop.finish(candidate, left, QUANTIZED_EPOCHS, start=start)))
        for number, (candidate, finished) in enumerate(students):
            assert finished is not None
            save_student(
                folder / str(number),
                network=finished.network,
                weights=finished.weights,
                onnx_model=to_onnx(finished.network, finished.weights),
                spec_extra={"choices": candidate.to_json()},
                bench={"validation": finished.validation.accuracy},
                readme="",
                coded=False,
            )
        after = [round(finished.validation.accuracy, 4) for _, finished in students if finished]
        print(f"{job.name}: after {RUNG_EPOCHS} epochs {[round(one[0], 4) for one in rungs]}, after {epochs} "
              f"{after}, {time.monotonic() - started:.0f} s", flush=True)  # fmt: skip

    # report

    def measured(self, job: Job) -> dict[str, Any] | None:
        """The student with the best validation accuracy among those that keep the limit when measured."""
        folder = self.keep / "students" / job.name
        if not folder.is_dir():
            return None
        return self._kept(f"measured/{job.name}.json", lambda: self._best(job, folder))

    def _best(self, job: Job, folder: Path) -> dict[str, Any]:
        limit = job.share * self.teacher_record()["latency_ms"]
        found = []
        for student in sorted(folder.iterdir()):
            bench = json.loads((student / "bench.json").read_text(encoding="utf-8"))
            record = self._examined(student / "model.onnx", load_student(student))
            found.append((record["upper_ms"] <= limit, bench["validation"], record))
        kept, _, record = max(found, key=lambda item: item[:2])
        return {**record, "kept": kept, "limit_ms": limit}

    def _kept(self, name: str, make: Any) -> Any:
        path = self.keep / name
        if not path.is_file():
            found = make()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))


def report(bench: Bench) -> None:
    teacher = bench.teacher_record()
    print(
        f"teacher in float: {teacher['test']:.2%}, {teacher['latency_ms']:.3f} ms, {teacher['kib']:.0f} KiB"
    )
    print(f"{bench.arguments.epochs} epochs each; test accuracy of each seed; latency of the first")
    for share in SHARES:
        print(f"limit {share:.1%} of the teacher, {share * teacher['latency_ms']:.3f} ms:")
        for method in METHODS:
            jobs = [job for job in bench.jobs() if (job.share, job.method) == (share, method)]
            rows = [row for row in map(bench.measured, jobs) if row is not None]
            if not rows:
                print(f"  {method:24} none")
                continue
            tests = [row["test"] for row in rows]
            each = ", ".join(f"{one:.2%}" for one in tests)
            kept = "kept" if all(row["kept"] for row in rows) else "NOT KEPT"
            print(f"  {method:24} median {np.median(tests):.2%} ({each}), {rows[0]['latency_ms']:.4f} ms, "
                  f"{rows[0]['kib']:.0f} KiB, {kept}")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=["search", "train", "report"])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--finalists", type=int, default=2, help="of the engine, trained for all epochs")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--part", default="0/1", help="I/N: every N-th job from the I-th on")
    parser.add_argument("--keep", default="runs/product")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(arguments)
    if arguments.step == "report":
        report(bench)
        return 0
    part, parts = map(int, arguments.part.split("/"))
    for job in bench.jobs()[part::parts]:
        if arguments.step == "search":
            bench.candidates(job)
        elif bench.candidates(job):
            bench.train(job)
    return 0


if __name__ == "__main__":
    sys.exit(main())
