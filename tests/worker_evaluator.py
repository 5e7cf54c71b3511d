"""Evaluators for test_workers.py: importable by name in a worker process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autocompress.workers import Task


def make(config: Mapping[str, Any]) -> Callable[[Task], dict[str, Any]]:
    """Squares x; `do` in a task's payload makes it misbehave. Notes each evaluator that is made."""
    if config.get("broken"):
        raise ValueError("the teacher is gone")
    if "made" in config:
        with Path(config["made"]).open("a") as file:
            file.write(f"{os.getpid()}\n")

    def evaluate(task: Task) -> dict[str, Any]:
        do = task.payload.get("do", "")
        if do == "raise":
            raise ArithmeticError("no\nnumber")
        if do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "kill once" and not Path(task.payload["mark"]).exists():
            Path(task.payload["mark"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "sleep":
            time.sleep(60)
        return {"square": task.candidate["x"] ** 2, "threads": os.environ.get("OMP_NUM_THREADS")}

    return evaluate
