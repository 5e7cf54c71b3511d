"""When failed tasks end a run: early where the first ones fail alike, later where too many of them do."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from autocompress.errors import TooManyFailuresError

ALIKE = 3
ALLOWED = 5
ALLOWED_SHARE = 0.3


@dataclass
class Failures:
    """Count the failures of tasks of one kind, `named` in the plural; `event` is the run's at `root` that
    records one."""

    root: Path
    named: str
    event: str
    only_alike: bool = True
    count: int = 0
    _reasons: list[str] = field(default_factory=list)

    def add(self, reason: str, finished: int) -> None:
        """Count one more. Raises TooManyFailuresError where none is `finished` and the first failed alike,
        or, without `only_alike`, for whatever reasons."""
        self.count += 1
        self._reasons.append(reason)
        alike = len(set(map(_kind, self._reasons))) == 1
        if finished == 0 and len(self._reasons) >= ALIKE and (alike or not self.only_alike):
            how = " in the same way" if alike else ""
            raise TooManyFailuresError(
                f"the first {len(self._reasons)} {self.named} failed{how}",
                why=reason,
                fix=f"mend that, then: autocompress resume {self.root}; the {self.event} events of the run "
                "have the traceback",
            )

    def check_share(self, total: int) -> None:
        """Raise TooManyFailuresError, after `add`, where more than `ALLOWED` and `ALLOWED_SHARE` failed."""
        if self.count > max(ALLOWED, ALLOWED_SHARE * total):
            raise TooManyFailuresError(
                f"{self.count} of {total} {self.named} failed",
                why=f"the last one: {self._reasons[-1]}",
                fix=f"read the {self.event} events of the run, or lock the layers involved in the space",
            )


def _kind(reason: str) -> str:
    """Return a reason without its numbers, so that reasons can be compared."""
    return re.sub(r"\d+", "#", reason)
