"""How a search scales with workers: the real owner on a simulated cluster, in virtual time.

    python benchmarks/cluster.py --teacher cifar_resnet.py:load,depth=20
    python benchmarks/cluster.py --teacher cifar_resnet.py:load,depth=20 --workers 1 16 --seeds 3

Trials train nothing: their durations are drawn (lognormal, 60 s in the mean, shape 0.5) and their accuracy
follows from made-up scores. What the owner does is real: proposals of the engine over the joint space of
ResNet-20 on a shipped profile, exact prices, the run store on disk. While the owner works no worker gets its
next trial; how long it works is the processor's time plus, for each event, the median time of writing one.
Ideal is all durations divided by the workers; an owner that takes no time reaches less, as the last trials
end at different times, which is printed beside it. Not simulated: Ray itself.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from predicted_students import as_predicted

from autocompress.cost.pricer import Pricer
from autocompress.cost.repair import Repairer
from autocompress.device.profile_files.store import load_profile
from autocompress.pipeline.preparation import bound_space, open_teacher, priced, seen_by
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import load_space
from autocompress.progress import Console
from autocompress.runs.events import Decision
from autocompress.runs.store import RunStore
from autocompress.runs.tasks import Ask, Job, Result, Stage, Stop, Tell, Wait
from autocompress.search.halving import Plan
from autocompress.search.loop import Search, Setting
from autocompress.search.proposers.solver import Solver

DEVICE, SPACE = "epyc-zen4-onnxruntime-1-thread-resnet20", "joint"
FOLDER = Path("runs/cluster")
TARGETS = {1: 0.95, 16: 0.9, 256: 0.85, 1024: 0.7}
MEAN_S, SHAPE = 60.0, 0.5


class VirtualCluster:
    """An executor whose workers take virtual time. `now_s` is the clock of the owner."""

    def __init__(self, workers: int, quality: Any, event_s: float, seed: int) -> None:
        self.workers, self.quality, self.event_s = workers, quality, event_s
        self.random = random.Random(seed)
        self.durations_s: list[float] = []
        self.now_s, self.trials_end_s = 0.0, 0.0
        self.owner_s: list[float] = []

    def run(self, ask: Ask, tell: Tell, stop: Stop) -> None:
        under_way: list[tuple[float, int, Job]] = []
        while not stop():
            while len(under_way) < self.workers:
                task = self._owner(ask)
                if task is None or isinstance(task, Wait):
                    break
                duration = self.random.lognormvariate(math.log(MEAN_S) - SHAPE**2 / 2, SHAPE)
                if task.stage == Stage.TRIAL:
                    self.durations_s.append(duration)
                heapq.heappush(under_way, (self.now_s + duration, task.trial, task))
            if not under_way:
                return
            end_s, _, task = heapq.heappop(under_way)
            self.now_s = max(self.now_s, end_s)
            result = Result(task.trial, True, self.quality(task), stage=task.stage)
            self._owner(lambda result=result: tell(result))
            if task.stage == Stage.TRIAL:
                self.trials_end_s = self.now_s

    def _owner(self, do: Any) -> Any:
        """Lets the clock run while the owner works; each call of it writes one event."""
        started = time.process_time()
        answer = do()
        seconds = time.process_time() - started + self.event_s
        self.now_s += seconds
        self.owner_s.append(seconds)
        return answer

    def close(self) -> None:
        pass


def without_owner(durations_s: list[float], workers: int) -> float:
    """Share of the ideal speed-up where every worker always has its next trial at once."""
    free = [0.0] * workers
    for duration in durations_s:
        heapq.heapreplace(free, free[0] + duration)
    return sum(durations_s) / workers / max(free)


def made_up_scores(pricer: Pricer) -> dict[tuple[str, Any], float]:
    rng = random.Random(0)
    return {
        (site.name, option): 0.05 * rng.random() * (1.5 - option if isinstance(option, float) else 1.0)
        for site in pricer.bound.free
        for option in site.options
        if site.kind != "bits" and option != site.default
    }


def event_seconds(store: RunStore, count: int = 100) -> float:
    """The median time of writing an event that the processor has no part in."""
    waited = []
    for index in range(count):
        started, started_cpu = time.perf_counter(), time.process_time()
        store.append(Decision(text=f"event {index} of {count}"))
        waited.append(time.perf_counter() - started - (time.process_time() - started_cpu))
    return max(0.0, statistics.median(waited))


def simulate(
    pricer: Pricer, workers: int, trials: int, sampler: str, seed: int
) -> tuple[float, float, list[float]]:
    """Share of the ideal speed-up, that of an owner who takes no time, and the owner's seconds for each trial
    by tenths of the search."""
    damage = made_up_scores(pricer)
    limits = Limits(latency_ms=0.6 * pricer.teacher.latency_ms)
    solver = Solver(pricer, damage)

    def quality(task: Job) -> dict[str, float]:
        candidate = Candidate.of(task.candidate)
        noise = 0.01 * int(candidate.key[:3], 16) / 4096
        error = 0.05 + 0.94 * (1 - math.exp(-solver.harm(candidate))) + noise
        return {"accuracy": 1 - error, "loss": error}

    plan = Plan(trials, 1, 1, 1, 0, students=1, sampler=sampler, seed=seed)
    folder = FOLDER / f"{workers}-workers"
    shutil.rmtree(folder, ignore_errors=True)
    with RunStore.create(folder, {"identity": {}}, {}) as store:
        cluster = VirtualCluster(workers, quality, event_seconds(store), seed)
        setting = Setting(
            pricer, Repairer(pricer, limits, damage), limits, plan, store, cluster,
            as_predicted(pricer), folder / "distilled", Console(quiet=True),
        )  # fmt: skip
        search = Search(setting)
        search.run()
    share = sum(cluster.durations_s) / workers / cluster.trials_end_s
    size = max(1, len(cluster.owner_s) // 10)
    tenths = [sum(cluster.owner_s[start : start + size]) / (size / 2) for start in range(0, size * 10, size)]
    return share, without_owner(cluster.durations_s, workers), tenths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--input-size", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=list(TARGETS))
    parser.add_argument("--trials-per-worker", type=int, default=12)
    parser.add_argument("--least-trials", type=int, default=200)
    parser.add_argument("--sampler", default="engine")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    space, profile = load_space(SPACE), load_profile(DEVICE)
    opened = open_teacher(arguments.teacher, None, arguments.input_size)
    bound = bound_space(opened, space)
    first = priced(bound, seen_by(profile, opened, bound, space), ("latency_ms",))
    print(f"{len(first.bound.free)} sites, sampler {arguments.sampler}", flush=True)
    for workers in arguments.workers:
        trials = max(arguments.least_trials, workers * arguments.trials_per_worker)
        shares, bounds, owner = [], [], []
        for seed in range(arguments.seeds):
            pricer = Pricer(first.bound, first.cost_model)
            share, bound_of_share, tenths = simulate(pricer, workers, trials, arguments.sampler, seed)
            shares.append(share)
            bounds.append(bound_of_share)
            owner.append(tenths)
        each = [statistics.median(column) for column in zip(*owner, strict=True)]
        print(
            f"{workers} workers, {trials} trials: {statistics.median(shares):.3f} of the ideal speed-up "
            f"({min(shares):.3f}–{max(shares):.3f}), target {TARGETS.get(workers, 0):g}; "
            f"{statistics.median(bounds):.3f} if the owner took no time; it takes "
            f"{1000 * statistics.mean(each):.0f} ms a trial, by tenths of the search "
            + " ".join(f"{1000 * value:.0f}" for value in each),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
