"""One evaluation as data: what the owner of a search gives an executor, and what it gets back.

`in_process.py` has the simple executor, `ray_workers.py` the one with several processes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from autocompress.files import JsonObject

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Stage(StrEnum):
    """Say what an evaluation is for, from the cheapest to the longest."""

    SCORE = "score"
    TRIAL = "trial"
    PROMOTION = "promotion"
    FINAL = "final"


@dataclass(frozen=True)
class Job:
    """One evaluation: `candidate` as `Candidate.to_json()`, `stage` and `payload` for the evaluator.

    `length` is how much longer than a trial it may take: time limits are times that.
    """

    trial: int
    candidate: JsonObject
    stage: Stage = Stage.TRIAL
    payload: JsonObject = field(default_factory=dict)
    length: float = 1.0

    @classmethod
    def from_json(cls, data: JsonObject) -> Job:
        """Return the task that `dataclasses.asdict` made `data` of."""
        return cls(**{**data, "stage": Stage(data["stage"])})


@dataclass(frozen=True)
class Result:
    """Say what became of a task. `error` is one line, `detail` the traceback; both empty when `ok`."""

    trial: int
    ok: bool
    values: JsonObject = field(default_factory=dict)
    error: str = ""
    detail: str = ""
    seconds: float = 0.0
    stage: Stage = Stage.TRIAL


class Wait(Enum):
    """Say, given by `ask`, that there is nothing to do until another task has finished."""

    WAIT = "wait"


WAIT = Wait.WAIT

Evaluate = Callable[[Job], JsonObject]
Ask = Callable[[], Job | Wait | None]
Tell = Callable[[Result], None]
Stop = Callable[[], bool]
Arrays = Mapping[str, Mapping[str, "NDArray[Any]"]]
"""Large, by group and name; nobody writes to them."""


@dataclass(frozen=True)
class Factory:
    """Name a function that makes an evaluator: `target(config, arrays)` returns an `Evaluate`.

    `target` is `package.module:function`, importable in every worker; `config` is JSON. `arrays` are what
    is too large for that; workers of one machine share one copy of them.
    """

    target: str
    config: JsonObject = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)

    def make(self) -> Evaluate:
        module, _, function = self.target.partition(":")
        evaluate: Evaluate = getattr(importlib.import_module(module), function)(self.config, self.arrays)
        return evaluate

    @property
    def array_bytes(self) -> int:
        return sum(array.nbytes for group in self.arrays.values() for array in group.values())


class Executor(Protocol):
    @property
    def workers(self) -> int:
        """Return how many tasks are under way at once."""

    def run(self, ask: Ask, tell: Tell, stop: Stop) -> None:
        """Run tasks until `ask` returns None or `stop` is true; tasks under way are finished first.

        `ask`, `tell` and `stop` are called in the caller's thread, and what they raise is raised
        here. Every task that `ask` gave is told exactly once, whatever happens to its worker.
        """

    def close(self) -> None:
        """End the workers."""


def one_line(error: BaseException) -> str:
    """Return the kind and first line of an exception."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
