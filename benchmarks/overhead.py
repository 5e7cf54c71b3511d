"""What a search costs beside its evaluations: over Optuna, through Ray Tune, in memory.

    python benchmarks/overhead.py                    all three parts
    python benchmarks/overhead.py --parts tune

optuna: 10,000 trials that do nothing, 40 sites, 3 objectives, asked for and told by our `Study` and by
Optuna alone with the same sampler, distributions and values, all in memory. Processor time, taken in turns.
tune:   trials that do nothing through Ray Tune on one reused worker.
memory: a whole search in this process, 1,100 real trials of a toy network on a few handwritten digits: how
        much the process has grown from trial 100 to trial 1,100.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from predicted_students import as_predicted

from autocompress.problem.candidate import Site
from autocompress.runs.tasks import Evaluate, Factory, Job, Result

FOLDER = Path("runs/overhead")
OBJECTIVES = ("accuracy", "latency_ms", "file_bytes")
SITES, TRIALS = 40, 10_000
MEMORY_FROM, MEMORY_TO, STEP = 100, 1_100, 50


def sites() -> tuple[Site, ...]:
    widths = (0.25, 0.5, 0.75, 1.0)
    return tuple(Site(f"width:{i}", "width", str(i), widths, 1.0) for i in range(SITES))


def values_of(rng: random.Random) -> dict[str, float]:
    return {"accuracy": rng.random(), "latency_ms": 1 + rng.random(), "file_bytes": 1000 * rng.random()}


def study_alone(sampler: str) -> Callable[[], None]:
    """Ask and tell of Optuna, with nothing around them; a call is one trial."""
    import optuna

    from autocompress.search.proposers.optuna_study import _direction, _distribution, _sampler

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        directions=[_direction(name) for name in OBJECTIVES], sampler=_sampler(sampler, 0)
    )
    distributions = {site.name: _distribution(site) for site in sites()}
    rng = random.Random(0)

    def trial() -> None:
        asked = study.ask(distributions)
        study.tell(asked, list(values_of(rng).values()))

    return trial


def study_here(sampler: str) -> tuple[Callable[[], None], Callable[[], int]]:
    """The same by `optuna_study.Study`; also how many proposals it passed over because they were known."""
    from autocompress.search.proposers.optuna_study import Study

    study, rng = Study(sites(), OBJECTIVES, sampler=sampler, seed=0), random.Random(0)

    def trial() -> None:
        asked = study.ask()
        assert asked is not None
        study.tell(asked[0], values_of(rng))

    return trial, lambda: study.duplicates


def over_optuna(sampler: str, trials: int) -> None:
    """Both in turns of 100 trials, so that a busy machine slows both."""
    alone, (here, duplicates) = study_alone(sampler), study_here(sampler)
    seconds = {"alone": 0.0, "here": 0.0}
    ratios = []
    for _ in range(trials // 100):
        turn = {}
        for name, trial in (("alone", alone), ("here", here)):
            started = time.process_time()
            for _ in range(100):
                trial()
            turn[name] = time.process_time() - started
            seconds[name] += turn[name]
        ratios.append(turn["here"] / turn["alone"] - 1)
    quarters = statistics.quantiles(ratios, n=4)
    print(
        f"{sampler}: {trials:,} trials, {SITES} sites, 3 objectives: Optuna alone "
        f"{1000 * seconds['alone'] / trials:.2f} ms a trial, here {1000 * seconds['here'] / trials:.2f} ms: "
        f"{seconds['here'] / seconds['alone'] - 1:+.1%} (quartiles of {len(ratios)} turns {quarters[0]:+.1%} "
        f"to {quarters[2]:+.1%}), target 10 %; here {duplicates():,} proposals were known and asked anew",
        flush=True,
    )


def nothing(*_: Any) -> Evaluate:
    """The evaluator of the part `tune`."""
    return lambda _: {}


def through_tune(trials: int) -> None:
    from autocompress.runs.ray_workers import executor

    on = executor(Factory("overhead:nothing"), workers=1, cpus_per_trial=1)
    told: list[float] = []
    tasks = iter([Job(number, {}) for number in range(trials)])

    def tell(result: Result) -> None:
        assert result.ok, result.error
        told.append(time.perf_counter())

    try:
        on.run(lambda: next(tasks, None), tell, lambda: False)
    finally:
        on.close()
    gaps = [after - before for before, after in itertools.pairwise(told[10:])]
    low, _, high = statistics.quantiles(gaps, n=4)
    first, last = (statistics.median(some) for some in (gaps[:100], gaps[-100:]))
    print(
        f"Ray Tune: {trials} trials on one reused worker: {statistics.median(gaps):.3f} s a trial (quartiles "
        f"{low:.3f}–{high:.3f}; first and last hundred {first:.3f} and {last:.3f}), target 0.1 s",
        flush=True,
    )


SPACE = """
name: toy
rules:
  - match: {layer: conv}
    width: {keep: [0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0], importance: l2, round_to: 2}
    bits: [32, 8]
  - match: {layer: linear}
    bits: [32, 8]
"""


def memory_growth(end: int) -> None:
    import psutil
    import torch
    from torch import nn

    from autocompress.cost.model import CostModel
    from autocompress.cost.pricer import Pricer
    from autocompress.cost.repair import Repairer
    from autocompress.device.profile_files.store import load_profile
    from autocompress.graph.trace import trace
    from autocompress.problem.budgets import Limits
    from autocompress.problem.data import load_data
    from autocompress.problem.space import parse_space
    from autocompress.progress import Console
    from autocompress.runs.in_process import InProcess
    from autocompress.runs.store import RunStore
    from autocompress.search.halving import Plan
    from autocompress.search.loop import Search, Setting
    from autocompress.students.builder import StudentBuilder
    from autocompress.students.evaluator import Evaluator
    from autocompress.students.importances import importances
    from autocompress.transforms.sites import bind

    torch.manual_seed(0)
    digits = load_data("digits")
    data = replace(
        digits,
        train=digits.train.subset(256),
        validation=digits.validation.subset(64),
        calibration=digits.calibration.subset(64),
    )
    channels = (data.input_shape[0], 16, 16, 16, 16)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()
    network, weights = trace(module, data.input_shape)
    pricer = Pricer(
        bind(parse_space(SPACE), network), CostModel(load_profile("epyc-zen5-onnxruntime-1-thread"))
    )
    builder = StudentBuilder(pricer.bound, weights, data, importances(pricer.bound, weights, data))
    limits = Limits(latency_ms=0.95 * pricer.teacher.latency_ms)
    process, used = psutil.Process(), dict[int, int]()

    class Weighing(InProcess):
        """Notes the memory of this process now and then."""

        def run(self, ask: Any, tell: Any, stop: Any) -> None:
            def weighed(result: Result) -> None:
                tell(result)
                if result.trial % STEP == STEP - 1:
                    used[result.trial + 1] = process.memory_info().rss
                    print(f"trial {result.trial + 1}: {used[result.trial + 1] / 2**20:.0f} MiB", flush=True)

            super().run(ask, weighed, stop)

    plan = Plan(end, 0.1, 0.1, 0.1, 0, students=1, sampler="engine", seed=0)
    shutil.rmtree(FOLDER, ignore_errors=True)
    with RunStore.create(FOLDER, {"identity": {}}, {}) as store:
        setting = Setting(
            pricer, Repairer(pricer, limits, {}), limits, plan, store,
            Weighing(Evaluator(builder, FOLDER / "distilled")),
            as_predicted(pricer), FOLDER / "distilled", Console(quiet=True),
        )  # fmt: skip
        Search(setting).run()
    print(
        f"memory: from trial {MEMORY_FROM} to {end} of a toy network "
        f"{used[end] / used[MEMORY_FROM] - 1:+.1%}, target 5 %",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["optuna", "tune", "memory"])
    parser.add_argument("--samplers", nargs="+", default=["random", "nsga2"])
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--memory-trials", type=int, default=MEMORY_TO, help="a multiple of 50 above 100")
    parser.add_argument("--tune-trials", type=int, default=400)
    arguments = parser.parse_args()
    if "optuna" in arguments.parts:
        for sampler in arguments.samplers:
            over_optuna(sampler, arguments.trials)
    if "tune" in arguments.parts:
        through_tune(arguments.tune_trials)
    if "memory" in arguments.parts:
        memory_growth(arguments.memory_trials)
    return 0


if __name__ == "__main__":
    sys.exit(main())
