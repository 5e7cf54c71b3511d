"""The raw results of a profiling, one line a network, so that one that was cut off can go on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from autocompress.cost.kernels import COLUMNS, Kernel
from autocompress.device.runtimes.description import Plain
from autocompress.errors import ProfileError
from autocompress.files import JsonObject

FILE = "measurements.jsonl"
FORMAT = 1


@dataclass(frozen=True)
class Timing:
    """Hold a kernel where it occurred: the profiler's time, and how many operations it took."""

    kernel: Kernel
    time_us: float
    operations: int


@dataclass(frozen=True)
class Timed:
    """Hold what was measured of one network. `reference_ms` is the latency of the reference beside it."""

    name: str
    precision: str
    latency_ms: float
    reference_ms: float
    kernels: tuple[Timing, ...]

    def scaled(self, factor: float) -> Timed:
        """Return all times, the reference's too, so many times as long."""
        kernels = tuple(replace(timing, time_us=factor * timing.time_us) for timing in self.kernels)
        return replace(
            self,
            latency_ms=factor * self.latency_ms,
            reference_ms=factor * self.reference_ms,
            kernels=kernels,
        )


@dataclass(frozen=True)
class LogSetting:
    """Hold what results must share to belong together.

    `reference` names the network that tells quiet moments; `space` is the fingerprint of the space that
    candidates are drawn from, by `seed`. Empty and None mean that there are none.
    """

    runtime: str
    threads: int
    batch: int
    reference: str
    space: str = ""
    seed: int | None = None


class Measurements:
    """Keep `Timed` in an append-only file whose first line says what they were measured with."""

    def __init__(self, path: Path, setting: LogSetting, *, resume: bool) -> None:
        """Open the file, with no results or, with `resume`, those that are in it.

        With `resume` the results in the file are kept; a cut-off last line is dropped. Raises
        ProfileError for a file of another setting or one that is damaged, OSError when it cannot
        be written.
        """
        self.path = path
        self.setting = {"format": FORMAT, **vars(setting)}
        self.found: list[Timed] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.exists():
            self.found = self._read()
        lines = [self.setting, *(_to_json(item) for item in self.found)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def add(self, item: Timed) -> None:
        """Keep a result; it is in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_to_json(item)) + "\n")
        self.found.append(item)

    def _read(self) -> list[Timed]:
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        whole = lines[:-1]
        if not whole:
            return []
        try:
            setting = json.loads(whole[0])
        except ValueError:
            setting = None
        if setting != json.loads(json.dumps(self.setting)):
            raise ProfileError(
                f"the unfinished measurements are not of this profiling: {setting}",
                where=f"{self.path}, line 1",
                why=f"this one is {self.setting}",
                fix="profile with --overwrite, or into another folder",
            )
        return [self._parsed(number, line) for number, line in enumerate(whole[1:], start=2)]

    def _parsed(self, number: int, line: str) -> Timed:
        try:
            return _from_json(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ProfileError(
                "the unfinished measurements are damaged",
                where=f"{self.path}, line {number}",
                why=str(error),
                fix="delete that line, or profile with --overwrite",
            ) from error


def _to_json(item: Timed) -> dict[str, Plain]:
    data = asdict(item)
    data["kernels"] = [
        [*(getattr(timing.kernel, name) for name in COLUMNS), timing.time_us, timing.operations]
        for timing in item.kernels
    ]
    return data


def _from_json(data: JsonObject) -> Timed:
    timings = []
    for *columns, time_us, operations in data["kernels"]:
        kernel = Kernel(**dict(zip(COLUMNS, columns, strict=True)))
        timings.append(Timing(kernel, float(time_us), int(operations)))
    latency_ms, reference_ms = float(data["latency_ms"]), float(data["reference_ms"])
    return Timed(data["name"], data["precision"], latency_ms, reference_ms, tuple(timings))
