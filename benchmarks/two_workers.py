"""Two workers of one thread each against one process with two threads: candidates per minute.

    python benchmarks/two_workers.py --teacher cifar_resnet.py:load,depth=20 --data imagefolder:cifar10

The same search (seed, plan, space `joint`, a shipped profile) in turns in both ways. Counted are the trials
from the moment at which the evaluator is asked for, so starting Ray and its workers is included. Nothing is
certified. Needs a machine with two free processors.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from predicted_students import as_predicted

from autocompress.cost.pricer import Pricer
from autocompress.cost.repair import Repairer
from autocompress.device.profile_files.store import load_profile
from autocompress.pipeline.preparation import OpenedTeacher, bound_space, open_teacher, priced, seen_by
from autocompress.problem.budgets import Limits
from autocompress.problem.data import Data
from autocompress.problem.space import load_space
from autocompress.progress import Console
from autocompress.runs.in_process import InProcess
from autocompress.runs.ray_workers import executor
from autocompress.runs.store import RunStore
from autocompress.runs.tasks import Executor, Stage
from autocompress.search.halving import Plan
from autocompress.search.loop import Search, Setting
from autocompress.students.builder import StudentBuilder
from autocompress.students.evaluator import Evaluator
from autocompress.students.importances import importances
from autocompress.students.remote import remote_evaluator

DEVICE, SPACE = "epyc-zen4-onnxruntime-1-thread-resnet20", "joint"
FOLDER = Path("runs/two-workers")
TARGET = 1.5


class Clocked:
    """An executor that notes when trials end."""

    def __init__(self, on: Executor) -> None:
        self.on, self.ends = on, list[float]()
        self.workers = on.workers

    def run(self, ask: Any, tell: Any, stop: Any) -> None:
        def noted(result: Any) -> None:
            if result.stage == Stage.TRIAL:
                assert result.ok, result.error
                self.ends.append(time.perf_counter())
            tell(result)

        self.on.run(ask, noted, stop)

    def close(self) -> None:
        self.on.close()


def per_minute(
    opened: OpenedTeacher, pricer: Pricer, builder: StudentBuilder, plan: Plan, workers: int
) -> tuple[float, float]:
    """Candidates per minute over the whole search, and from the third to the last."""
    limits = Limits(latency_ms=0.5 * pricer.teacher.latency_ms)
    shutil.rmtree(FOLDER, ignore_errors=True)
    started = time.perf_counter()
    if workers:
        factory = remote_evaluator(
            builder,
            load_space(SPACE),
            FOLDER / "distilled",
            data_spec=None,
            preprocessing=opened.teacher.preprocessing,
        )
        on = Clocked(executor(factory, workers))
    else:
        torch.set_num_threads(2)
        on = Clocked(InProcess(Evaluator(builder, FOLDER / "distilled")))
    with RunStore.create(FOLDER, {"identity": {}}, {}) as store:
        try:
            setting = Setting(
                pricer, Repairer(pricer, limits, {}), limits, plan, store, on,
                as_predicted(pricer), FOLDER / "distilled", Console(quiet=True),
            )  # fmt: skip
            Search(setting).run()
        finally:
            on.close()
            torch.set_num_threads(1)
    steady = 60 * (len(on.ends) - 3) / (on.ends[-1] - on.ends[2])
    return 60 * len(on.ends) / (on.ends[-1] - started), steady


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=float, default=0.1)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    opened = open_teacher(arguments.teacher, arguments.data)
    data: Data | None = opened.data
    assert data is not None
    space, profile = load_space(SPACE), load_profile(DEVICE)
    bound = bound_space(opened, space)
    pricer = priced(bound, seen_by(profile, opened, bound, space), ("latency_ms",))
    saliency = importances(pricer.bound, opened.weights, data)
    found: dict[int, list[tuple[float, float]]] = {0: [], 2: []}
    for turn in range(arguments.turns):
        plan = Plan(
            arguments.trials, arguments.epochs, arguments.epochs, 0.01, 0, 1, sampler="random", seed=turn
        )
        for workers in found:
            # The teacher's outputs are kept in a builder; each way starts without them.
            builder = StudentBuilder(pricer.bound, opened.weights, data, saliency)
            found[workers].append(per_minute(opened, pricer, builder, plan, workers))
            whole, steady = found[workers][-1]
            print(f"turn {turn}, {workers} workers: {whole:.1f} a minute, steady {steady:.1f}", flush=True)
    for index, what in enumerate(("whole search", "from the third trial on")):
        ratios = [two[index] / one[index] for one, two in zip(found[0], found[2], strict=True)]
        print(
            f"{what}: two 1-thread workers against one 2-thread process: {statistics.median(ratios):.2f}× "
            f"({min(ratios):.2f}–{max(ratios):.2f}, {len(ratios)} turns of {arguments.trials} trials), "
            f"target {TARGET}×"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
