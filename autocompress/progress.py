"""What a long command says while it works: bars on a terminal, plain lines elsewhere, all on stderr."""

from __future__ import annotations

import codecs
import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PLAINLY = "autocompress-plainly"
"""Name of what is done with letters that an encoding lacks, for `errors` of a stream."""

_PLAIN = {
    "±": "+-", "×": "x", "≤": "<=", "≥": ">=", "→": "->", "–": "-", "—": "-", "−": "-", "…": "...", "µ": "u",
    "✓": "+", "✗": "x", "²": "^2", "·": "*", "½": "1/2", "∂": "d", "’": "'", "“": '"', "”": '"',
}  # fmt: skip
_RULES = range(0x2500, 0x2580)


_LINE_EVERY_S = 10.0
_SIGN_OF_LIFE_S = 30.0
WIDE = 80
"""Columns of a terminal from which a bar is drawn beside the words."""


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for the letters that an encoding lacks, and where it goes on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    text = "".join("-" if ord(one) in _RULES else _PLAIN.get(one, "?") for one in letters)
    return text, error.end


codecs.register_error(PLAINLY, _plainly)


def write_plainly(*streams: object) -> None:
    """Let streams that only take ASCII or Latin-1 write other letters in words or as `?`, and never fail."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors=PLAINLY)


class Console:
    """Say things and show how far a stage is. `quiet` keeps everything back."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._progress: Any = None
        self._console: Any = None
        self._limit_s, self._begun = 0.0, 0.0

    def within(self, limit_s: float) -> None:
        """Show from now on what is left of so many seconds; the first call counts."""
        if not self._limit_s:
            self._limit_s, self._begun = limit_s, time.monotonic()

    @property
    def time_left(self) -> str:
        """Return `3:20 of 15:00 left`; empty where no limit was set."""
        if not self._limit_s:
            return ""
        left_s = self._limit_s - (time.monotonic() - self._begun)
        if left_s < 0:
            return f"{clock(self._limit_s)} are over by {clock(-left_s)}"
        return f"{clock(left_s)} of {clock(self._limit_s)} left"

    def say(self, text: str) -> None:
        """Say one line to the user."""
        if self.quiet:
            return
        write_plainly(sys.stderr)
        if self._terminal():
            self._rich().print(text, highlight=False, markup=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    @contextmanager
    def stage(self, name: str, total: float | None, then: str = "") -> Iterator[ProgressBar]:
        """Show a bar, or a line now and then, for as long as the block runs; `then` names the next stage."""
        stage = ProgressBar(self, name, total, then)
        if self.quiet or not self._terminal():
            with stage.signs_of_life():
                yield stage
            stage.finish()
            return
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
        from rich.table import Column
        from rich.text import Text

        limit_s = self._limit_s

        class Left(ProgressColumn):
            def render(self, task: Any) -> Text:  # noqa: ARG002
                return Text(stage.left.replace(f" of {clock(limit_s)}", ""))

        def cut(ratio: int | None = None) -> Column:
            return Column(no_wrap=True, overflow="ellipsis", ratio=ratio)

        is_wide = self._rich().width >= WIDE
        columns = (
            TextColumn("{task.description}"),
            *[BarColumn(bar_width=20)] * is_wide,
            TextColumn("{task.fields[count]}", table_column=cut()),
            *[Elapsed()] * (is_wide or not self._limit_s),
            Left(table_column=cut()),
            TextColumn("{task.fields[note]}", table_column=cut(1)),
        )
        with Progress(*columns, console=self._rich(), transient=True, expand=True) as bar:
            stage.bar, stage.task = bar, bar.add_task(name, total=total, note="", count="")
            yield stage

    def _terminal(self) -> bool:
        return sys.stderr.isatty()

    def _rich(self) -> Any:
        if self._console is None:
            from rich.console import Console as RichConsole

            self._console = RichConsole(stderr=True)
        return self._console


def clock(seconds: float) -> str:
    """Return `3:20`, or `1:03:20`, in whole seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressBar:
    """One stage of work under way; `update` says how much is done."""

    def __init__(self, console: Console, name: str, total: float | None, then: str = "") -> None:
        self.console, self.name, self.total, self.then = console, name, total, then
        self.bar: Any = None
        self.task: Any = None
        self._done, self._note = 0.0, ""
        self._shown = -1.0
        self._started = self._last = time.monotonic()

    @property
    def left(self) -> str:
        """Return what is left of the time limit, else of this stage by its pace so far, and what is next."""
        left = self.console.time_left
        if not left and self.total and 0 < self._done < self.total:
            seconds = (time.monotonic() - self._started) / self._done * (self.total - self._done)
            left = f"{seconds:.0f} s left"
        return ", ".join(filter(None, (left, self.then and f"then {self.then}")))

    def restart(self, name: str, total: float | None, then: str = "") -> None:
        """Begin the same bar anew for the next part of the work."""
        self.finish()
        self.name, self.total, self.then = name, total, then
        self._done, self._shown = 0.0, -1.0
        self._started = self._last = time.monotonic()
        if self.bar is not None:
            self.bar.reset(self.task, total=total, description=name, note=self._note)

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        self._done, self._note = done, note
        self.total = total if total is not None else self.total
        if self.bar is not None:
            of = "" if self.total is None else f"/{self.total:g}"
            self.bar.update(self.task, completed=done, total=self.total, note=note, count=f"{done:g}{of}")
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
        gone = f"{self._last - self._started:.0f} s"
        told = ", ".join(filter(None, (f"{self.name}: {self._done:g}{of}", gone, self.left)))
        self.console.say(f"{told}; {self._note}" if self._note else told)
