"""A teacher of each task, compressed in one call each; test data is read once.

    python benchmarks/tasks.py --data DATA                       every task
    python benchmarks/tasks.py digits counts --data DATA --time 180 --latency 40%

DATA holds camvid/, blood-cells/, spoken-digits/, imagenet-sample/ and teachers/, as the recipes in
`benchmarks/tasks/` read them. Teachers that are not in FOLDER/teachers yet are trained first. Every student
is judged from its exported file; where none keeps the budget, the nearest one is shown as not certified.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import autocompress as ac
from autocompress.reporting import units

RECIPES = Path(__file__).resolve().parent / "tasks"
LITE0 = "teachers/tf_efficientnet_lite0.safetensors"


@dataclass(frozen=True)
class Job:
    """Say what is compressed: recipe and its words, callables of teacher and data, the task, the space."""

    recipe: str
    words: tuple[str, ...]
    teacher: str
    data: str
    task: str
    epochs: int
    space: str
    has_encoder: bool = False


JOBS = {
    "digits": Job("spoken_digits.py", (), "teacher", "datasets", "classification", 12, "conv1d"),
    "counts": Job(
        "blood_cells.py", ("counts",), "counts_teacher", "counts", "regression", 30, "mobilenet", True
    ),
    "presence": Job(
        "blood_cells.py", ("presence",), "presence_teacher", "presence", "multi-label", 20, "mobilenet", True
    ),
    "camvid": Job("camvid.py", (), "teacher", "datasets", "segmentation,ignored=11", 40, "mobilenet", True),
}
UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Result:
    """Hold the measured teacher and student of a task; no student where nothing was measured."""

    name: str
    teacher: ac.Student | None
    student: ac.Student | None
    certified: bool
    seconds: float
    problem: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [*JOBS, UNLABELLED]
    parser.add_argument("tasks", nargs="*", default=names, help=f"of {', '.join(names)}")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--folder", type=Path, default=Path("runs/tasks"), help="where runs and teachers go")
    parser.add_argument("--time", type=float, default=180.0, help="seconds of each search")
    parser.add_argument("--latency", default="40%", help="limit, as a share of the teacher's or a time")
    parser.add_argument(
        "--epochs", type=int, help="of the teachers that are trained; by default the recipe's"
    )
    parser.add_argument("--networks", type=int, help="profile the machine with so many networks beforehand")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side of unlabelled images")
    asked = parser.parse_args()
    unknown = [name for name in asked.tasks if name not in names]
    if unknown:
        parser.error(f"there is no task {unknown[0]!r}; known: {', '.join(names)}")
    results = []
    for name in asked.tasks:
        results.append(run(name, asked))
        show(results[-1:])
    print()
    show(results)
    return int(any(not result.certified for result in results))


def run(name: str, asked: argparse.Namespace) -> Result:
    """Train the teacher where it is not there, search once, and return what was measured."""
    teacher, data, task, space = what(name, asked)
    folder = asked.folder / name
    print(f"\n== {name}: {task}, latency {asked.latency}, {asked.time:.0f} s ==", flush=True)
    started = time.monotonic()
    problem = ""
    try:
        device = None if asked.networks is None else profile(name, teacher, data, space, asked)
        front = ac.compress(
            teacher, data, device, space, run=folder, latency=asked.latency, time_limit_s=asked.time,
            task=task, students=2, overwrite=True,
        )  # fmt: skip
    except ac.AutocompressError as error:
        problem = f"{type(error).__name__}: {error}"
        try:
            front = ac.front(folder)
        except ac.AutocompressError:
            return Result(name, None, None, False, time.monotonic() - started, problem)
    nearest = min(front.measured, key=lambda one: one.latency_ms, default=None)
    student = front.best() if front.students else nearest
    seconds = time.monotonic() - started
    return Result(name, front.teacher, student, bool(front.students), seconds, problem)


def profile(name: str, teacher: str, data: str, space: str, asked: argparse.Namespace) -> Path:
    """Return the folder of a profile of this machine, made where it is not there."""
    folder: Path = asked.folder / "devices" / name
    if not folder.exists():
        ac.profile(teacher, space, folder, data=data, networks=asked.networks)
    return folder


def what(name: str, asked: argparse.Namespace) -> tuple[str, str, str, str]:
    """Return the specs of teacher and data, the task, and the search space."""
    root = asked.data.resolve()
    if name == UNLABELLED:
        folder = asked.folder / "photographs"
        unpack(root / "imagenet-sample" / "images.tar", folder)
        teacher = f"timm:tf_efficientnet_lite0,num_classes=1000,weights={root / LITE0}"
        return teacher, f"images:{folder},size={asked.size}", "agreement", "mobilenet"
    job = JOBS[name]
    if asked.epochs:
        job = replace(job, epochs=asked.epochs)
    weights = asked.folder / "teachers" / f"{name}.safetensors"
    if not weights.exists():
        train(job, root, weights)
    recipe = RECIPES / job.recipe
    return (
        f"{recipe}:{job.teacher},weights={weights}",
        f"{recipe}:{job.data},root={root}",
        job.task,
        job.space,
    )


def train(job: Job, root: Path, weights: Path) -> None:
    command = [sys.executable, str(RECIPES / job.recipe), *job.words, "--data", str(root), "-o", str(weights)]
    command += ["--epochs", str(job.epochs)]
    if job.has_encoder:
        command += ["--encoder", str(root / LITE0)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})


def unpack(tar: Path, folder: Path) -> None:
    """Write every other photograph to train/, the others to test/, where they are not there yet."""
    if folder.is_dir():
        return
    with tarfile.open(tar) as source:
        names = sorted(member.name for member in source if member.isfile())
        for number, name in enumerate(names):
            file = source.extractfile(name)
            assert file is not None
            target = folder / ("train", "test")[number % 2] / Path(name).name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read())


def show(results: list[Result]) -> None:
    """Print a row for each task."""
    print("| task | metric | teacher | ms | student | ms | faster | certified | search |")
    print("|---|---|---|---|---|---|---|---|---|")
    for result in results:
        if result.teacher is None or result.student is None:
            print(
                f"| {result.name} | – | – | – | – | – | – | no: {result.problem} | {result.seconds:.0f} s |"
            )
            continue
        teacher, student = result.teacher, result.student
        cells = [
            result.name,
            student.metric.name,
            units.accuracy(teacher),
            f"{teacher.latency_ms:.3f}",
            units.accuracy(student),
            f"{student.latency_ms:.3f}",
            f"{teacher.latency_ms / student.latency_ms:.1f}×",
            "yes" if result.certified else f"no: {result.problem}",
            f"{result.seconds:.0f} s",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
