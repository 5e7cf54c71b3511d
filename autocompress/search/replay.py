"""What an earlier part of a run found out, read back from its events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from autocompress.problem.candidate import Candidate, Cost
from autocompress.runs.events import (
    BroughtDown,
    Certified,
    Decision,
    Event,
    Promoted,
    TrialEnd,
    TrialFailed,
    TrialFinished,
    TrialInfeasible,
    TrialStarted,
)
from autocompress.runs.in_process import Crash
from autocompress.runs.store import RunStore
from autocompress.runs.student import Student
from autocompress.runs.tasks import Stage
from autocompress.search.proposers.optuna_study import Told
from autocompress.search.trials import Trials

LONGEST_DETAIL = 2000
"""Characters of a traceback that an event keeps."""


@dataclass
class Past:
    """Hold what is known of earlier parts of a run beside its trials, which `replay` adds to `trials`.

    `started` are trials that began and did not end, `lost` the candidates whose longer training brought a
    process down, `enough` why no more trials were wanted.
    """

    trials: Trials
    price: Callable[[Candidate], Cost]
    told: list[Told] = field(default_factory=list)
    started: dict[int, Candidate] = field(default_factory=dict)
    students: dict[str, Student] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    infeasible: int = 0
    failed: int = 0
    enough: str | None = None

    def end(self, event: TrialEnd) -> None:
        """Remember the last word on a trial."""
        self.started.pop(event.trial, None)
        candidate = Candidate.of(event.choices)
        cost = self.price(candidate)
        values = None
        match event:
            case TrialFinished(accuracy=float() | int() as accuracy):
                self.trials.finish(self.trials.add(event.trial, candidate, cost), accuracy)
                values = {"accuracy": accuracy, **cost.to_json()}
            case TrialInfeasible():
                self.infeasible += 1
            case _:
                self.failed += 1
                self.trials.add(event.trial, candidate, cost)
        self.told.append(Told(event.trial, candidate, values, None))


def replay(events: Iterable[Event], past: Past, trials_asked: int) -> Past:
    """Return `past` with what the events say; that trials were enough holds for as many as are asked."""
    for event in events:
        match event:
            case TrialStarted():
                past.started[event.trial] = Candidate.of(event.choices)
            case TrialFinished() | TrialFailed() | TrialInfeasible():
                past.end(event)
            case Promoted():
                past.trials.of(event.candidate).trained[event.epochs] = event.accuracy
            case BroughtDown():
                past.lost.add(event.candidate)
            case Certified():
                past.students[event.candidate] = event.student
            case Decision(trials=asked, reason=reason) if asked == trials_asked:
                past.enough = reason
    return past


def record_crash(crash: Crash, past: Past, store: RunStore) -> None:
    """Record what brought the last process down, so that it is not tried once more: a trial that had started,
    or the longer training of a candidate, which then goes no further."""
    reason, detail = crash.reason, crash.text[-LONGEST_DETAIL:]
    if crash.stage in (Stage.PROMOTION, Stage.FINAL):
        key = Candidate.of(crash.candidate).key
        store.append(BroughtDown(candidate=key, stage=crash.stage, reason=reason, detail=detail))
        past.lost.add(key)
        return
    number = next((n for n, one in past.started.items() if one.to_json() == crash.candidate), None)
    if number is None:
        return
    candidate = past.started[number]
    failed = TrialFailed(
        trial=number, candidate=candidate.key, choices=candidate.to_json(),
        predicted=past.price(candidate), reason=reason, detail=detail,
    )  # fmt: skip
    store.append(failed)
    past.end(failed)
