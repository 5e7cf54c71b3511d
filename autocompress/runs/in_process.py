"""Carry tasks out in this process: one after another, within their time, without bringing it down.

`WorkerSession` does so in a process of its own, for `ray_workers.py`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from autocompress.files import JsonObject
from autocompress.runs.tasks import Ask, Evaluate, Factory, Job, Result, Stage, Stop, Tell, Wait, one_line


class InProcess:
    """One task after another in this process.

    A task longer than `trial_timeout_s` is interrupted at its next Python instruction. Where native code
    brings the process down, what Python knows of that is found in `crash_file`; see `read_crash`.
    """

    def __init__(
        self, evaluate: Evaluate, trial_timeout_s: float | None = None, crash_file: Path | None = None
    ) -> None:
        self._evaluate, self._trial_timeout_s = evaluate, trial_timeout_s
        self._crash_file = crash_file
        self.workers = 1

    def run(self, ask: Ask, tell: Tell, stop: Stop) -> None:
        with _crashes_noted(self._crash_file) as note:
            self._run(ask, tell, stop, note)

    def _run(self, ask: Ask, tell: Tell, stop: Stop, note: Callable[[Job | None], None]) -> None:
        while not stop():
            task = ask()
            if task is None:
                return
            if isinstance(task, Wait):
                raise RuntimeError("ask waits for a result although no task is under way")
            note(task)
            result = evaluate_task(self._evaluate, task, self._trial_timeout_s)
            note(None)
            tell(result)

    def close(self) -> None:
        pass


@contextlib.contextmanager
def _crashes_noted(file: Path | None) -> Iterator[Callable[[Job | None], None]]:
    """Write a traceback to the file when the process gets a deadly signal, and delete it otherwise. Yield
    what is to be told of each task that begins, whose line comes before the traceback, and, by None, that
    none is under way."""
    if file is None:
        yield lambda _: None
        return
    was_enabled = faulthandler.is_enabled()
    with file.open("w", encoding="utf-8") as opened:
        faulthandler.enable(opened)

        def note(task: Job | None) -> None:
            opened.seek(0)
            opened.truncate()
            if task is not None:
                opened.write(json.dumps({"stage": task.stage, "candidate": dict(task.candidate)}) + "\n")
            opened.flush()

        try:
            yield note
        finally:
            faulthandler.disable()
            if was_enabled:
                # A notebook's stderr is no file.
                with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
                    faulthandler.enable()
            file.unlink()


BROUGHT_DOWN = "it brought the process down"


@dataclass(frozen=True)
class Crash:
    """Hold what native code left of a process: the stage and candidate under way, and a traceback."""

    stage: Stage
    candidate: JsonObject
    text: str

    @property
    def reason(self) -> str:
        """Say in one line what it did."""
        return f"{BROUGHT_DOWN}: {self.text.splitlines()[0]}"


def read_crash(file: Path) -> Crash | None:
    """Return what an `InProcess` executor that was brought down left behind, and forget it; None if nothing,
    as after a kill."""
    if not file.is_file():
        return None
    line, _, text = file.read_text(encoding="utf-8", errors="replace").partition("\n")
    file.unlink()
    try:
        task = json.loads(line)
        return Crash(Stage(task["stage"]), dict(task["candidate"]), text) if text.strip() else None
    except (ValueError, KeyError, TypeError):
        return None


def evaluate_task(evaluate: Evaluate, task: Job, timeout_s: float | None = None) -> Result:
    """Return the result of `evaluate(task)`; an exception or a timeout becomes a failed result."""
    start = time.perf_counter()
    timeout_s = timeout_s and timeout_s * task.length

    def result(ok: bool, values: JsonObject, error: str = "", detail: str = "") -> Result:
        return Result(task.trial, ok, values, error, detail, time.perf_counter() - start, task.stage)

    try:
        with _time_limit(timeout_s):
            values = dict(evaluate(task))
    except _TimeoutReached:
        return result(False, {}, f"took longer than {timeout_s:g} s", traceback.format_exc())
    except (Exception, SystemExit) as error:
        return result(False, {}, one_line(error), traceback.format_exc())
    return result(True, values)


class _TimeoutReached(BaseException):
    """End an evaluation; it is no Exception, so that code that is evaluated does not swallow it."""


@contextlib.contextmanager
def _time_limit(timeout_s: float | None) -> Iterator[None]:
    if not timeout_s or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise _TimeoutReached

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class WorkerSession:
    """One worker process: makes the evaluator at the first task and keeps it.

    `folder` and `import_paths` are the owner's working directory and `sys.path`; what of them
    exists where the worker runs is used there too.
    """

    factory: Factory
    threads: int
    trial_timeout_s: float | None
    folder: str
    import_paths: tuple[str, ...]
    evaluate: Evaluate | None = None

    def prepare(self) -> None:
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        sys.path += [path for path in self.import_paths if path not in sys.path and Path(path).exists()]

    def run(self, task_json: str) -> str:
        task = Job(**json.loads(task_json))
        with self._watchdog(task.length):
            result = evaluate_task(self._evaluate, task, self.trial_timeout_s)
        return json.dumps(asdict(result), default=_plain)

    def _evaluate(self, task: Job) -> JsonObject:
        if self.evaluate is None:
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(self.threads)
            self.evaluate = self.factory.make()
            if torch := sys.modules.get("torch"):
                torch.set_num_threads(self.threads)
        values = self.evaluate(task)
        json.dumps(values, default=_plain)
        return values

    @contextlib.contextmanager
    def _watchdog(self, length: float) -> Iterator[None]:
        """End the process when native code does not come back long after the time limit."""
        if not self.trial_timeout_s:
            yield
            return
        faulthandler.dump_traceback_later(1.5 * length * self.trial_timeout_s + 1, exit=True, file=2)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in the values of a result is not JSON")
