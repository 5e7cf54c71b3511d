"""What a worker costs before its first trial: with images from the object store, and on its own.

    python benchmarks/worker_start.py --teacher cifar_resnet.py:load,depth=20 --data imagefolder:cifar10

Two workers of a local Ray start at once, each way. Seconds until the evaluator stands, and the memory that
only this worker holds (unique set size), with the teacher and the training images, imports not counted. On
its own a worker reads the images and computes the channels' importances again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from autocompress.pipeline.preparation import bound_space, open_teacher
from autocompress.problem.space import load_space
from autocompress.runs.ray_workers import executor
from autocompress.runs.tasks import Arrays, Evaluate, Factory, Job, Result
from autocompress.students.builder import StudentBuilder
from autocompress.students.importances import importances
from autocompress.students.remote import make, remote_evaluator

SPACE = "joint"
WORKERS = 2


def weighed(config: Mapping[str, Any], arrays: Arrays) -> Evaluate:
    """Makes the evaluator and answers every task with what that took."""
    process = psutil.Process()
    before, started = process.memory_full_info().uss, time.perf_counter()
    evaluator: Any = make(config, arrays)
    if "spec" in config:  # such a worker finds the importances by itself
        builder = evaluator.builder
        importances(builder.bound, builder.weights, builder.data)
    seconds, used = time.perf_counter() - started, process.memory_full_info().uss - before

    def evaluate(_: Job) -> Mapping[str, Any]:
        time.sleep(2)  # so that the other worker gets a task, too
        return {"pid": process.pid, "seconds": seconds, "used_bytes": used}

    return evaluate


def measured(factory: Factory) -> dict[int, tuple[float, float]]:
    """By worker: seconds and MiB until its evaluator stood."""
    on = executor(factory, WORKERS)
    tasks = iter([Job(number, {}) for number in range(2 * WORKERS)])
    found: dict[int, tuple[float, float]] = {}

    def tell(result: Result) -> None:
        assert result.ok, result.error
        values = result.values
        found[values["pid"]] = (values["seconds"], values["used_bytes"] / 2**20)

    try:
        on.run(lambda: next(tasks, None), tell, lambda: False)
    finally:
        on.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True)
    arguments = parser.parse_args()
    opened = open_teacher(arguments.teacher, arguments.data)
    assert opened.data is not None
    space = load_space(SPACE)
    bound = bound_space(opened, space)
    saliency = importances(bound, opened.weights, opened.data)
    packed = remote_evaluator(
        StudentBuilder(bound, opened.weights, opened.data, saliency), space, Path.cwd() / "distilled"
    )
    config = {key: value for key, value in packed.config.items() if key != "data"}
    hints = vars(opened.teacher.preprocessing)
    alone = Factory(
        "worker_start:weighed",
        {**config, "spec": arguments.data, "preprocessing": hints},
        {"weights": packed.arrays["weights"]},
    )
    shared = Factory("worker_start:weighed", packed.config, packed.arrays)
    for what, factory in (("by itself", alone), ("from the object store", shared)):
        for pid, (seconds, mebibytes) in measured(factory).items():
            print(f"{what}: worker {pid}: {seconds:.2f} s, {mebibytes:.0f} MiB of its own", flush=True)
    print(f"once a node in the object store: {packed.array_bytes / 2**20:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
