"""How long the first answer takes: `--help`, `import autocompress`, and `front` on 10,000 trials.

    python benchmarks/startup.py

Each command runs in a fresh process; medians and ranges of seven runs after one that is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autocompress.runs.events import from_json
from autocompress.runs.store import RunStore

RUNS = 7
TRIALS = 10_000
STUDENTS = 20


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    autocompress = str(Path(sys.executable).with_name("autocompress"))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        record(run)
        show("autocompress --help", [autocompress, "--help"], 0.5)
        show("import autocompress", [sys.executable, "-c", "import autocompress"], 0.5)
        show(f"autocompress front, {TRIALS:,} trials", [autocompress, "front", str(run)], 1.0)


def record(root: Path) -> None:
    """Writes a run through the store, as a search does."""
    teacher = {**costs(1.0), "key": "teacher", "accuracy": 0.9, "accuracy_std_err": 0.003}
    teacher |= {"certified": True, "path": ""}
    with RunStore.create(root, {"identity": {}}, {}) as store:
        append(store, "run_started", teacher=teacher, limits={"latency_ms": 1.0})
        for trial in range(TRIALS):
            share = 0.2 + 0.6 * trial / TRIALS
            common = {"trial": trial, "candidate": f"{trial:012x}", "choices": {"width:conv1": share}}
            append(store, "trial_started", **common)
            append(
                store,
                "trial_finished",
                **common,
                accuracy=0.5 + share / 3,
                predicted=costs(share),
                seconds=1.0,
            )
        for index in range(STUDENTS):
            share = 0.2 + 0.6 * index / STUDENTS
            key = f"{index:012x}"
            student = {
                **costs(share),
                "key": key,
                "accuracy": 0.5 + share / 3,
                "validation_accuracy": 0.5 + share / 3,
                "accuracy_std_err": 0.003,
                "certified": True,
                "path": f"students/{key}",
            }
            append(store, "certified", candidate=key, student=student, violated=[])


def append(store: RunStore, event: str, **fields: object) -> None:
    """Record an event given by its fields."""
    store.append(from_json({"event": event, **fields}))


def costs(share: float) -> dict[str, object]:
    return {
        "latency_ms": share,
        "latency_ms_ci95": [0.99 * share, 1.01 * share],
        "peak_memory_bytes": int(4e6 * share),
        "file_bytes": int(4e6 * share),
        "macs": int(4e7 * share),
        "parameters": int(1e6 * share),
    }


def show(name: str, command: list[str], target_s: float) -> None:
    times = [seconds(command) for _ in range(RUNS + 1)][1:]
    median = statistics.median(times)
    verdict = "met" if median <= target_s else "missed"
    print(f"{name}: {median:.2f} s ({min(times):.2f}–{max(times):.2f}); target ≤ {target_s:g} s: {verdict}")


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
