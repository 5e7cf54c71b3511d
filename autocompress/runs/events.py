"""The events of a run: one frozen record a kind, to and from the JSON of a line of `events.jsonl`.

Fields that a later version adds are kept in `extra`; kinds that are not known here are `OtherEvent`s.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from autocompress.files import JsonObject
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Cost, Option
from autocompress.runs.student import Student

Choices = Mapping[str, Option]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Hold what every event has: its number in the run and its time (ISO 8601), both given when it is
    recorded."""

    kind: ClassVar[str] = ""
    seq: int = -1
    time: str = ""
    extra: JsonObject = field(default_factory=dict)
    """Fields that are not known here."""

    @property
    def name(self) -> str:
        """Return the kind of the event as it is written."""
        return self.kind

    def to_json(self) -> JsonObject:
        """Return the fields of the event as it is written; those that are None are left out."""
        own = (one.name for one in fields(self) if one.name not in _COMMON)
        values = {name: value for name in own if (value := getattr(self, name)) is not None}
        return {**values, **self.extra}


_COMMON = ("seq", "time", "extra")


@dataclass(frozen=True)
class OtherEvent(Event):
    """An event of a kind that is not known here; its fields are in `extra`."""

    name_written: str = ""

    @property
    def name(self) -> str:
        """Return the kind of the event as it is written."""
        return self.name_written

    def to_json(self) -> JsonObject:
        """Return the fields of the event as it is written."""
        return dict(self.extra)


@dataclass(frozen=True)
class SiteRecord:
    """One site of the space as the run was searched; `default` is None in runs of earlier versions."""

    name: str
    kind: str
    options: tuple[Option, ...]
    default: Option | None = None
    locked: str = ""

    @classmethod
    def from_json(cls, data: JsonObject) -> SiteRecord:
        """Return the record that `to_json` made `data` of."""
        options = tuple(data["options"])
        return cls(data["name"], data["kind"], options, data.get("default"), data.get("locked") or "")

    def to_json(self) -> JsonObject:
        """Return the record as JSON."""
        return {**vars(self), "options": list(self.options)}


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """The teacher was measured, and the budgets became limits."""

    kind: ClassVar[str] = "run_started"
    teacher: Student
    limits: Limits
    predicted: Cost | None = None
    sites: tuple[SiteRecord, ...] = ()
    dropped: tuple[tuple[Any, ...], ...] = ()
    """(site, option, reason) of the choices that were left out."""


@dataclass(frozen=True, kw_only=True)
class Decision(Event):
    """Say that something was decided; `text` says what and why. `trials` and `reason` are of the end of
    trials."""

    kind: ClassVar[str] = "decision"
    text: str
    reason: str | None = None
    trials: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScoringStarted(Event):
    """Say that single choices are scored on so many images each."""

    kind: ClassVar[str] = "scoring_started"
    images: int


@dataclass(frozen=True, kw_only=True)
class ChoiceScored(Event):
    """Say what one choice alone does to the teacher, by each measure; with a `reason` it failed."""

    kind: ClassVar[str] = "choice_scored"
    site: str
    option: Option
    damage: Mapping[str, float]
    seconds: float
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class Scored(Event):
    """Say that every choice is scored: (site, option, sensitivity) by the measure that ranks candidates
    best."""

    kind: ClassVar[str] = "scored"
    damage: tuple[tuple[str, Option, float], ...]
    measure: str = ""
    rankings: tuple[JsonObject, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChoicesPriced(Event):
    """Say what each choice alone costs, as `cost.marginal` writes it."""

    kind: ClassVar[str] = "choices_priced"
    table: JsonObject


@dataclass(frozen=True, kw_only=True)
class JointScored(Event):
    """Say what several choices together do to the teacher; with a `reason` that failed."""

    kind: ClassVar[str] = "joint_scored"
    candidate: str
    choices: Choices
    damage: float
    seconds: float = 0.0
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class PairsScored(Event):
    """Say what pairs of choices do beyond their sum, as `proposers.solver` writes it."""

    kind: ClassVar[str] = "pairs_scored"
    pairs: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, kw_only=True)
class TrialEvent(Event):
    """An event of one trial: its number, the candidate's key, its choices."""

    trial: int
    candidate: str = ""
    choices: Choices = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialStarted(TrialEvent):
    """A trial began."""

    kind: ClassVar[str] = "trial_started"


@dataclass(frozen=True, kw_only=True)
class TrialFinished(TrialEvent):
    """A trial was evaluated on validation data; one that was `stopped` early on part of it."""

    kind: ClassVar[str] = "trial_finished"
    predicted: Cost | None = None
    accuracy: float | None = None
    accuracy_std_err: float | None = None
    loss: float | None = None
    images: int | None = None
    stopped: bool | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrialFailed(TrialEvent):
    """A trial has no result; `detail` is the end of its traceback."""

    kind: ClassVar[str] = "trial_failed"
    predicted: Cost | None = None
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class TrialInfeasible(TrialEvent):
    """A proposal breaks limits by its predicted cost and was not evaluated."""

    kind: ClassVar[str] = "trial_infeasible"
    predicted: Cost | None = None
    violated: tuple[str, ...] = ()


TrialEnd = TrialFinished | TrialFailed | TrialInfeasible


@dataclass(frozen=True, kw_only=True)
class Promoted(Event):
    """A candidate was trained up to a rung."""

    kind: ClassVar[str] = "promoted"
    candidate: str
    rung: int = 0
    accuracy: float
    epochs: float
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BroughtDown(Event):
    """Say that longer training of a candidate brought the process down; it goes no further."""

    kind: ClassVar[str] = "brought_down"
    candidate: str
    stage: str = ""
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Distilled(Event):
    """A finalist was distilled; `accuracy` is on validation data, of the model in memory."""

    kind: ClassVar[str] = "distilled"
    candidate: str
    accuracy: float
    epochs: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Exported(Event):
    """A student's folder is written."""

    kind: ClassVar[str] = "exported"
    candidate: str
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class Certified(Event):
    """A student was measured; `violated` names the limits that it breaks, which leaves it uncertified."""

    kind: ClassVar[str] = "certified"
    candidate: str
    student: Student
    violated: tuple[str, ...] = ()
    predicted: Cost | None = None


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """A part of the run came to its end with an exit code."""

    kind: ClassVar[str] = "run_finished"
    exit_code: int | None = None


def _kinds(base: type[Event] = Event) -> dict[str, type[Event]]:
    found: dict[str, type[Event]] = {}
    for one in base.__subclasses__():
        found |= {one.kind: one} if one.kind else {}
        found |= _kinds(one)
    return found


KINDS = _kinds()
"""Every kind of event, by the name that it is written with."""


def from_json(data: JsonObject) -> Event:
    """Return the event that a line holds.

    Raises KeyError, TypeError or ValueError for one that lacks what its kind needs.
    """
    name = data["event"]
    if not isinstance(name, str):
        raise TypeError("the kind of an event is text")
    rest = {key: value for key, value in data.items() if key not in ("seq", "time", "event", "crc32")}
    common: dict[str, Any] = {"seq": int(data.get("seq", -1)), "time": str(data.get("time", ""))}
    kind = KINDS.get(name)
    if kind is None:
        return OtherEvent(name_written=name, extra=rest, **common)
    readers = _readers(kind)
    known = {key: readers[key](value) for key, value in rest.items() if key in readers and value is not None}
    extra = {key: value for key, value in rest.items() if key not in readers}
    return kind(**known, extra=extra, **common)


Reader = Callable[[Any], Any]


_READERS: dict[str, dict[str, Reader]] = {}


def _readers(kind: type[Event]) -> dict[str, Reader]:
    if kind.kind not in _READERS:
        _READERS[kind.kind] = _made_readers(kind)
    return _READERS[kind.kind]


def _made_readers(kind: type[Event]) -> dict[str, Reader]:
    hints = get_type_hints(kind)
    return {one.name: _reader(hints[one.name]) for one in fields(kind) if one.name not in _COMMON}


def _reader(hint: Any) -> Reader:
    """Return what turns JSON into a value of the type; it raises TypeError or ValueError where it cannot."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        rest = [part for part in parts if part is not type(None)]
        return _reader(rest[0]) if len(rest) == 1 else _any_of(tuple(rest))
    if origin is tuple:
        return _tuple_of(_reader(parts[0])) if parts[-1] is Ellipsis else _row_of([*map(_reader, parts)])
    if origin is not None:
        return _any_of((Mapping,))
    if hasattr(hint, "from_json"):
        return _record_of(hint.from_json)
    if hint is Any:
        return lambda value: value
    return _any_of((int, float) if hint is float else (hint,))


def _any_of(allowed: tuple[type, ...]) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise TypeError(f"{value!r} is not one of {', '.join(one.__name__ for one in allowed)}")
        return value

    return read


def _record_of(from_mapping: Reader) -> Reader:
    return lambda value: from_mapping(_any_of((Mapping,))(value))


def _tuple_of(item: Reader) -> Reader:
    return lambda value: tuple(map(item, _any_of((list, tuple))(value)))


def _row_of(items: list[Reader]) -> Reader:
    return lambda value: tuple(item(one) for item, one in zip(items, value, strict=True))
