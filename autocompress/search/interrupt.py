"""Ctrl-C during a search: the first one lets the trial under way finish, and ends the distillation of a
student that is under way in this process; the second one ends at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from autocompress.errors import InterruptedSearchError


@dataclass
class Interrupt:
    """Know whether the user asked the run in folder `run` to stop; `say` tells what that does."""

    run: Path
    say: Callable[[str], None]
    _asked: bool = False

    def asked(self) -> bool:
        """Return whether Ctrl-C was pressed."""
        return self._asked

    def check(self) -> None:
        """Raise InterruptedSearchError where Ctrl-C was pressed."""
        if self._asked:
            raise InterruptedSearchError(
                "stopped; everything that finished is kept",
                fix=f"go on with: autocompress resume {self.run}",
            )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear Ctrl-C only within, and only in the main thread, the one that signals reach."""
        try:
            before = signal.signal(signal.SIGINT, self._hear)
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _hear(self, _signal: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self.say("stopping after what is under way; press Ctrl-C again to stop at once")
