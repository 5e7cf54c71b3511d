"""The run folder, and `events.jsonl` in it: the truth about a search.

One process writes at a time. Reading needs only the standard library and PyYAML.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from autocompress.errors import InputError, RunError
from autocompress.files import JsonObject
from autocompress.problem.budgets import Limits
from autocompress.runs.event_log import EventLog, cannot_write, plain, read_events
from autocompress.runs.events import (
    Certified,
    Decision,
    Event,
    Promoted,
    RunFinished,
    RunStarted,
    SiteRecord,
    TrialEnd,
    TrialFailed,
    TrialFinished,
    TrialInfeasible,
    from_json,
)
from autocompress.runs.student import Student

Kind = TypeVar("Kind", bound=Event)

RECORDED_PACKAGES = (
    "autocompress",
    "torch",
    "timm",
    "optuna",
    "ray",
    "onnx",
    "onnxruntime",
    "numpy",
    "scipy",
    "fvcore",
)
MOST_CONFIG_BYTES = 16 * 1024**2
_NAMES = {
    "teacher": "the teacher",
    "data": "the data",
    "space": "the search space",
    "budgets": "the budgets",
    "device": "the device profile",
    "seed": "the seed",
}


@dataclass(frozen=True)
class RunPaths:
    """Name every path of a run."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def crash(self) -> Path:
        """Return what is left of a process that native code brought down."""
        return self.root / ".crash"

    @property
    def device(self) -> Path:
        return self.root / "device"

    @property
    def teacher(self) -> Path:
        return self.root / "teacher"

    @property
    def teacher_model(self) -> Path:
        return self.teacher / "model.onnx"

    @property
    def distilled(self) -> Path:
        """Return the file of students that are trained but not yet measured."""
        return self.root / "distilled"

    @property
    def students(self) -> Path:
        return self.root / "students"

    @property
    def front(self) -> Path:
        return self.root / "front.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def student(self, key: str) -> Path:
        return self.students / key

    def is_run(self) -> bool:
        return self.config.is_file() and self.events.is_file()

    @property
    def written(self) -> tuple[Path, ...]:
        """Return everything that autocompress writes here, in the order in which it may be deleted: what
        makes the folder a run goes last, so that a deletion that was cut short can be repeated."""
        return (
            self.report,
            self.front,
            self.students,
            self.distilled,
            self.device,
            self.teacher,
            self.crash,
            self.environment,
            self.events,
            self.config,
            self.lock,
        )

    def is_vacant(self) -> bool:
        """Return whether the folder is empty, or holds what is left when making or deleting a run was cut
        short."""
        left_over = {self.environment, self.config, _unfinished(self.config), self.lock}
        return self.root.is_dir() and left_over.issuperset(self.root.iterdir())


class RunStore:
    """The one writer of a run. Use as a context manager, or `close()` it."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self._lock = _locked(paths)
        try:
            self._log = EventLog(paths.events)
        except BaseException:
            self._lock.close()
            raise

    @classmethod
    def create(
        cls,
        root: str | Path,
        config: JsonObject,
        environment: JsonObject,
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> Self:
        """Make a new run folder, or open an existing one.

        `config["identity"]` is a flat mapping of what may not change between the parts of a run.

        Raises RunError when the folder exists and neither `resume` nor `overwrite` is given, holds
        something else than a run, cannot be written, is in use, or belongs to another search.
        """
        check_available(root, resume=resume, overwrite=overwrite)
        paths = RunPaths(Path(root))
        if paths.is_run() and resume:
            _check_same_search(paths, config)
            return cls._open(paths, config)
        if paths.is_run():
            _locked(paths).close()
            _remove(paths)
        return cls._make(paths, config, environment)

    @classmethod
    def _make(cls, paths: RunPaths, config: JsonObject, environment: JsonObject) -> Self:
        try:
            paths.root.mkdir(parents=True, exist_ok=True)
            paths.environment.write_text(json.dumps(plain(environment), indent=2), encoding="utf-8")
            _write_config(paths, config)
            paths.events.touch()
        except OSError as error:
            raise cannot_write(paths.root, error) from error
        return cls(paths)

    @classmethod
    def _open(cls, paths: RunPaths, config: JsonObject) -> Self:
        store = cls(paths)
        try:
            _write_config(paths, config)
        except OSError as error:
            store.close()
            raise cannot_write(paths.root, error) from error
        return store

    def append(self, event: Event) -> Event:
        """Record an event; it is on the disk when this returns. Return it with its number and time.

        Raises RunError when it cannot be written; the record then holds what it held before.
        """
        written = self._log.append(event.name, **event.to_json())
        return replace(event, seq=written["seq"], time=written["time"])

    def close(self) -> None:
        self._log.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class RunRecord:
    """Hold what a run's folder says.

    `damaged` holds the numbers, from 1, of lines that cannot be read or before which lines are
    missing.
    """

    paths: RunPaths
    config: JsonObject
    environment: JsonObject
    events: tuple[Event, ...]
    damaged: tuple[int, ...] = ()

    @cached_property
    def started(self) -> RunStarted | None:
        """Return the event that the teacher was measured; None before that."""
        return self.first(RunStarted)

    @property
    def teacher(self) -> Student | None:
        """Return the teacher's measured record; None before it was measured."""
        return None if self.started is None else self.started.teacher

    @property
    def limits(self) -> Limits | None:
        """Return the budgets in absolute units; None before the teacher was measured."""
        return None if self.started is None else self.started.limits

    @property
    def sites(self) -> tuple[SiteRecord, ...]:
        """Return the sites of the space as they were searched."""
        return () if self.started is None else self.started.sites

    @cached_property
    def trials(self) -> list[TrialEnd]:
        """Return the last word on each trial: finished, failed, or infeasible."""
        ends = (event for event in self.events if isinstance(event, TrialEnd))
        return list({event.trial: event for event in ends}.values())

    @cached_property
    def students(self) -> list[Certified]:
        """Return the last measurement of each student."""
        return list({event.candidate: event for event in self.of(Certified)}.values())

    @property
    def decisions(self) -> list[Decision]:
        """Return what was decided, in order."""
        return self.of(Decision)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Return how many trials finished, failed, were left out, were promoted, were measured."""
        return {
            "finished": sum(isinstance(trial, TrialFinished) for trial in self.trials),
            "failed": sum(isinstance(trial, TrialFailed) for trial in self.trials),
            "infeasible": sum(isinstance(trial, TrialInfeasible) for trial in self.trials),
            "promoted": len(self.of(Promoted)),
            "measured": len(self.students),
        }

    @property
    def is_finished(self) -> bool:
        """Return whether the last part of the run came to its end."""
        return bool(self.events) and isinstance(self.events[-1], RunFinished)

    @property
    def exit_code(self) -> int | None:
        """Return that of the last finished part of the run; None while it is under way or was interrupted."""
        last = self.events[-1] if self.events else None
        return last.exit_code if isinstance(last, RunFinished) else None

    def of(self, *kinds: type[Kind]) -> list[Kind]:
        """Return the events of these kinds, in order."""
        return [event for event in self.events if isinstance(event, kinds)]

    def first(self, kind: type[Kind]) -> Kind | None:
        """Return the first event of a kind; None where there is none."""
        return next((event for event in self.events if isinstance(event, kind)), None)


def read_run(root: str | Path) -> RunRecord:
    """Read a run folder, also one that is being written. Raises RunError when it is not one."""
    paths = RunPaths(Path(root))
    if not paths.is_run():
        known = sorted(path.parent.name for path in paths.root.parent.glob("*/events.jsonl"))[:8]
        raise RunError(
            f"{root} is not a run folder",
            why="config.yaml or events.jsonl is missing in it",
            fix=f"runs beside it: {', '.join(known)}" if known else "give the folder that --run named",
        )
    config = _read_config(paths)
    try:
        environment = json.loads(paths.environment.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            "the run's environment cannot be read",
            where=str(root),
            why=str(error),
            fix="restore environment.json from a copy, or start a new run",
        ) from error
    lines, broken = read_events(paths.events)
    events: list[Event] = []
    damaged = set(broken)
    for line in lines:
        try:
            events.append(from_json(line))
        except (KeyError, TypeError, ValueError, InputError):
            damaged.add(line["seq"] + 1)
    return RunRecord(paths, config, environment, tuple(events), tuple(sorted(damaged)))


def check_available(root: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse a folder that `RunStore.create` would refuse, without touching it.

    What a resumed run must agree on is left to `create`. Raises RunError.
    """
    paths = RunPaths(Path(root))
    if paths.is_run():
        if not (resume or overwrite):
            raise RunError(
                f"the run folder {root} exists",
                fix="give --resume to go on with it, --overwrite to replace it, or another --run",
            )
    elif (paths.root.is_symlink() or paths.root.exists()) and not paths.is_vacant():
        raise RunError(
            f"{root} exists and is not a run folder",
            why="autocompress never deletes what it did not write",
            fix="give another --run",
        )
    nearest = next(
        (path for path in (paths.root, *paths.root.absolute().parents) if path.exists()), Path("/")
    )
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise cannot_write(paths.root, OSError(errno.EACCES, f"{nearest} is not a folder you may write to"))


def environment_record(seed: int) -> JsonObject:
    """Return Python, platform and the versions of the packages that decide results."""
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": versions,
        "cpu_count": os.cpu_count(),
        "seed": seed,
    }


def _locked(paths: RunPaths) -> Any:
    try:
        lock = paths.lock.open("a+")
    except OSError as error:
        raise cannot_write(paths.root, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise RunError(
            f"the run {paths.root} is being written by another process",
            why=f"process {owner}" if owner else "",
            fix="wait for it, or end it first",
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _check_same_search(paths: RunPaths, config: JsonObject) -> None:
    before = _read_config(paths).get("identity", {})
    now = plain(config["identity"])
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        listed = ", ".join(_NAMES.get(name, name) for name in changed)
        details = "; ".join(
            f"{name}: {_shown(before.get(name))} → {_shown(now.get(name))}" for name in changed
        )
        raise RunError(
            f"the run {paths.root} belongs to another search: {listed} changed",
            why=details,
            fix="resume with the same, or give another --run",
        )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "none"
    return "none" if value is None else str(value)


def _read_config(paths: RunPaths) -> JsonObject:
    from autocompress.strict_yaml import StrictYamlError, read_document

    try:
        config = plain(read_document(paths.config, MOST_CONFIG_BYTES).data)
    except StrictYamlError as error:
        where = f"{paths.config}, line {error.line}" if error.line else str(paths.config)
        raise RunError(
            "the run's configuration cannot be read",
            where=where,
            why=error.message,
            fix="restore the file from a copy, or start a new run",
        ) from error
    if not isinstance(config, dict):
        raise RunError(
            "the run's configuration is not a mapping",
            where=str(paths.config),
            fix="restore the file from a copy, or start a new run",
        )
    return config


def _write_config(paths: RunPaths, config: JsonObject) -> None:
    """Replace the file in one step, so that a process killed here leaves the old one or the new one."""
    import yaml

    unfinished = _unfinished(paths.config)
    unfinished.write_text(yaml.safe_dump(plain(config), sort_keys=False), encoding="utf-8")
    unfinished.replace(paths.config)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _remove(paths: RunPaths) -> None:
    """Delete what a run writes, and leave what someone else put beside it."""
    try:
        for path in paths.written:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(paths.root, error) from error
