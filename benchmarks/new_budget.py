"""How long a new budget takes to be answered from a run, as a command and in a Python session.

    python benchmarks/new_budget.py --teacher cifar_resnet.py:load,depth=20

Makes a run folder as a search leaves it after scoring, with made-up scores: the teacher, the `joint` space
priced by a shipped profile, no trials. Then answers latencies between 30 % and 80 % of the teacher's.
Medians with the range, by the clock and of the processor; also how near the exact price comes to the limit.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from predicted_students import as_predicted

from autocompress.cost.marginal import effects_of
from autocompress.device.profile_files.store import load_profile, profile_folder
from autocompress.graph.network import to_json
from autocompress.pipeline.budget_queries import Answers
from autocompress.pipeline.preparation import bound_space, open_teacher, priced, seen_by
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import load_space
from autocompress.runs.events import ChoicesPriced, RunStarted, Scored, SiteRecord
from autocompress.runs.store import RunStore

PROFILE = "epyc-zen4-onnxruntime-1-thread-resnet20"
FOLDER = Path("runs/new-budget")
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def scored_run(teacher: str, input_size: int) -> float:
    """Writes the run folder; the teacher's predicted latency."""
    space, profile = load_space("joint"), load_profile(PROFILE)
    opened = open_teacher(teacher, None, input_size)
    bound = bound_space(opened, space)
    started = time.perf_counter()
    pricer = priced(bound, seen_by(profile, opened, bound, space), ("latency_ms",))
    table = effects_of(pricer, pricer.low_bits)
    print(f"{len(pricer.bound.free)} sites, {len(table.effects)} choices, priced in "
          f"{time.perf_counter() - started:.1f} s")  # fmt: skip
    rng = random.Random(0)
    damage = [
        [site.name, option, rng.random() * (1.5 - option if isinstance(option, float) else 1.0)]
        for site in pricer.bound.free
        for option in site.options
        if site.kind != "bits" and option != site.default
    ]
    sites = tuple(
        SiteRecord(site.name, site.kind, site.options, locked=site.locked) for site in pricer.bound.sites
    )
    teacher = as_predicted(pricer)(Candidate())
    limits = Limits(latency_ms=pricer.teacher.latency_ms)
    config = {"identity": {"teacher": opened.teacher.fingerprint}, "space": space.to_json()}
    with RunStore.create(FOLDER, config, {}, overwrite=True) as store:
        store.append(RunStarted(teacher=teacher, limits=limits, sites=sites))
        store.append(Scored(damage=tuple(map(tuple, damage))))
        store.append(ChoicesPriced(table=table.to_json()))
        store.paths.teacher.mkdir()
        network = json.dumps(to_json(opened.network))
        (store.paths.teacher / "network.json").write_text(network, encoding="utf-8")
        shutil.copytree(profile_folder(PROFILE), store.paths.device)
    return pricer.teacher.latency_ms


def children_s() -> float:
    """Processor time of the commands that were run so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}–{max(seconds):.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--input-size", type=int, default=32)
    arguments = parser.parse_args()
    teacher_ms = scored_run(arguments.teacher, arguments.input_size)
    started = time.perf_counter()
    answers = Answers.of(FOLDER)
    print(f"reading the run: {time.perf_counter() - started:.2f} s")
    seconds, cpu, room = [], [], []
    for share in SHARES:
        started, started_cpu = time.perf_counter(), time.process_time()
        answer = answers.solve(latency_ms=share * teacher_ms)
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
        room.append(1 - answer.predicted.latency_ms_ci95[1] / (share * teacher_ms))
    print(f"a budget in a session that has read the run: {shown(seconds)}, of the processor {shown(cpu)}")
    print(f"room left below the limit: median {statistics.median(room):.2%}, largest {max(room):.2%}")
    seconds, cpu = [], []
    for share in SHARES:
        command = ["-m", "autocompress", "pick", str(FOLDER), "--solve", "--latency", f"{share:.0%}"]
        started, started_cpu = time.perf_counter(), children_s()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
        cpu.append(children_s() - started_cpu)
    print(f"the command, start of Python included: {shown(seconds)}, of the processor {shown(cpu)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
