"""The whole job on handwritten digits, on this machine, by the commands a user would type.

    python benchmarks/demo.py            what `make demo` runs; writes to runs/demo
    python benchmarks/demo.py --again    also measures every certified student again

The last lines compare the chosen student with the teacher, both in ONNX Runtime with one thread.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from demo_teacher import ARCHITECTURE

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("runs/demo")
TEACHER = FOLDER / "teacher.safetensors"
DEVICE = FOLDER / "device"
RUN = FOLDER / "search"
STUDENT = FOLDER / "student"
SPEC = f"{ARCHITECTURE},weights={TEACHER}"
BUDGETS = ["--latency", "33%", "--memory", "40%", "--size", "16%"]
AUTOCOMPRESS = str(Path(sys.executable).with_name("autocompress"))

YOUR_OWN = """
With a model and images of your own (model.py defines build(), which returns your trained module):

  . .venv/bin/activate
  autocompress inspect --teacher model.py:build --data imagefolder:images
  autocompress profile --teacher model.py:build --data imagefolder:images -o hardware_profiles/mine
  autocompress search  --teacher model.py:build --data imagefolder:images \\
      --device hardware_profiles/mine --latency 40% --size 30% --trials 20 --run runs/mine
  autocompress pick runs/mine -o student
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="measure every certified student again")
    parser.add_argument("--seed", default="0", help="seed of the teacher and of the search")
    arguments = parser.parse_args()
    started = time.monotonic()
    seed = ["--seed", arguments.seed]
    call(sys.executable, str(Path(__file__).with_name("demo_teacher.py")), str(TEACHER), *seed)
    teacher = ["--teacher", SPEC, "--data", "digits", "--space", "digits-demo"]
    call(AUTOCOMPRESS, "profile", *teacher, "--networks", "20", "-o", str(DEVICE), "--overwrite")
    budget = [*BUDGETS, "--trials", "12", "--students", "3"]
    epochs = ["--trial-epochs", "2", "--distill-epochs", "10"]
    run = ["--run", str(RUN), "--overwrite"]
    call(AUTOCOMPRESS, "search", *teacher, "--device", str(DEVICE), *budget, *epochs, *seed, *run)
    call(AUTOCOMPRESS, "pick", str(RUN), "-o", str(STUDENT), "--overwrite")
    call(AUTOCOMPRESS, "bench", str(STUDENT))
    call(AUTOCOMPRESS, "report", str(RUN))
    call(AUTOCOMPRESS, "front", str(RUN))
    seconds = time.monotonic() - started
    front = json.loads(output_of(AUTOCOMPRESS, "front", str(RUN), "--format", "json"))
    say(f"\n{summary(front['teacher'], chosen())}\n{seconds:.0f} s in all.")
    say(YOUR_OWN)
    return again(front["students"]) if arguments.again else 0


def call(*command: str) -> None:
    """Runs a command after showing it as one would type it; ends the demo where it fails."""
    typed = [Path(command[0]).name if index == 0 else word for index, word in enumerate(command)]
    say(f"\n$ {shlex.join(typed)}")
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def output_of(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def chosen() -> dict[str, Any]:
    bench = json.loads((ROOT / STUDENT / "bench.json").read_text(encoding="utf-8"))
    student: dict[str, Any] = bench["student"]
    return student


def summary(teacher: dict[str, Any], student: dict[str, Any]) -> str:
    faster = teacher["latency_ms"] / student["latency_ms"]
    smaller = teacher["file_bytes"] / student["file_bytes"]
    points = 100 * (student["accuracy"] - teacher["accuracy"])
    return (
        f"The chosen student, {student['key']}, is {faster:.1f}× faster and {smaller:.1f}× smaller than "
        f"the teacher; its accuracy on test data is {student['accuracy']:.2%} ± "
        f"{student['accuracy_std_err']:.2%}, {points:+.2f} points. "
        f"It is in {STUDENT}, the report in {RUN / 'report.html'}."
    )


def again(students: list[dict[str, Any]]) -> int:
    """Measures the certified students again; 1 where one of them breaks a budget."""
    broken = 0
    for student in students:
        command = [AUTOCOMPRESS, "bench", str(RUN / student["path"]), "--format", "json"]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        found = json.loads(done.stdout)
        broken += not found["within_budget"]
        say(
            f"{student['key']}: certified at {student['latency_ms']:.4f} ms, "
            f"again {found['latency_ms']:.4f} ms (limit {found['limits']['latency_ms']:.4f} ms)"
        )
    say(f"{broken} of {len(students)} certified students break a budget when measured again")
    return int(broken > 0)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
