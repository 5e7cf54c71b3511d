"""Evaluators for test_workers.py: importable by name in a worker process."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autocompress.runs.tasks import Arrays, Job


def meet(folder: Path, count: int) -> None:
    """Comes back when `count` processes are here at once."""
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(list(folder.iterdir())) < count:
        if time.monotonic() > end:
            raise TimeoutError("nobody comes")
        time.sleep(0.05)


def make(config: Mapping[str, Any], arrays: Arrays) -> Callable[[Job], dict[str, Any]]:
    """Squares x; `do` in a task's payload makes it misbehave. Notes each evaluator that is made."""
    if config.get("broken"):
        raise ValueError("the teacher is gone")
    if "made" in config:
        with Path(config["made"]).open("a") as file:
            file.write(f"{os.getpid()}\n")

    def evaluate(task: Job) -> dict[str, Any]:
        do = task.payload.get("do", "")
        if do == "raise":
            raise ArithmeticError("no\nnumber")
        if do == "kill once" and not Path(task.payload["mark"]).exists():
            Path(task.payload["mark"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "sleep":
            time.sleep(60)
        if do == "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock: no Python runs meanwhile
        if do == "segfault":
            ctypes.string_at(0)
        if do == "exhaust memory":
            raise MemoryError
        if do == "meet":
            meet(Path(task.payload["folder"]), task.payload["count"])
        if do == "sum":
            shared = arrays["numbers"]["few"]
            return {"sum": int(shared.sum()), "writable": bool(shared.flags.writeable)}
        return {"square": task.candidate["x"] ** 2, "threads": os.environ.get("OMP_NUM_THREADS")}

    return evaluate
