"""What a long command says while it works: bars on a terminal, plain lines elsewhere, all on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LINE_EVERY_S = 10.0
_SIGN_OF_LIFE_S = 30.0


class Console:
    """Say things and show how far a stage is. `quiet` keeps everything back."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._progress: Any = None
        self._console: Any = None
        self._last_line = 0.0

    def say(self, text: str) -> None:
        """Say one line to the user."""
        if self.quiet:
            return
        if self._terminal():
            self._rich().print(text, highlight=False, markup=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    @contextmanager
    def stage(self, name: str, total: float | None) -> Iterator[ProgressBar]:
        """Show a bar, or a line now and then, for as long as the block runs."""
        stage = ProgressBar(self, name, total)
        if self.quiet or not self._terminal():
            with stage.signs_of_life():
                yield stage
            stage.finish()
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            Remaining(),
        )
        note = TextColumn("{task.fields[note]}")
        with Progress(*columns, note, console=self._rich(), transient=True) as bar:
            stage.bar, stage.task = bar, bar.add_task(name, total=total, note="")
            yield stage

    def _terminal(self) -> bool:
        return sys.stderr.isatty()

    def _rich(self) -> Any:
        if self._console is None:
            from rich.console import Console as RichConsole

            self._console = RichConsole(stderr=True)
        return self._console


class ProgressBar:
    """One stage of work under way; `update` says how much is done."""

    def __init__(self, console: Console, name: str, total: float | None) -> None:
        self.console, self.name, self.total = console, name, total
        self.bar: Any = None
        self.task: Any = None
        self._done, self._note = 0.0, ""
        self._shown = -1.0
        self._started = self._last = time.monotonic()

    def restart(self, name: str, total: float | None) -> None:
        """Begin the same bar anew for the next part of the work."""
        self.finish()
        self.name, self.total = name, total
        self._done, self._shown = 0.0, -1.0
        self._started = self._last = time.monotonic()
        if self.bar is not None:
            self.bar.reset(self.task, total=total, description=name, note=self._note)

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self._done, self._note = done, note
        self.total = total if total is not None else self.total
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=self.total, note=note)
        elif time.monotonic() - self._last >= _LINE_EVERY_S:
            self._line()

    @contextmanager
    def signs_of_life(self) -> Iterator[None]:
        """Repeat the last line, with the time, where one step takes long."""
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(_SIGN_OF_LIFE_S):
                if time.monotonic() - self._last >= _SIGN_OF_LIFE_S:
                    self._line()

        thread = threading.Thread(target=repeat, daemon=True)
        if not self.console.quiet:
            thread.start()
        try:
            yield
        finally:
            ended.set()

    def finish(self) -> None:
        if self.bar is None and self._done and self._shown != self._done:
            self._line()

    def _line(self) -> None:
        self._last, self._shown = time.monotonic(), self._done
        of = "" if self.total is None else f"/{self.total:g}"
        left = f", {self._last - self._started:.0f} s"
        if self.total and 0 < self._done < self.total:
            seconds = (self._last - self._started) / self._done * (self.total - self._done)
            left += f", {seconds:.0f} s left"
        self.console.say(f"{self.name}: {self._done:g}{of}{left}{'; ' + self._note if self._note else ''}")
