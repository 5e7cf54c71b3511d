"""`bench.json` of a student's folder: what was measured of its file, on what, against which limits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from autocompress.errors import AutocompressError, StudentError
from autocompress.files import JsonObject
from autocompress.problem.budgets import Limits
from autocompress.runs.student import Student


@dataclass(frozen=True)
class Certificate:
    """The evidence for one student; `measurement`, `parity` and `device` are as their packages write them.

    `violated` names the limits that the student breaks, which leaves it uncertified.
    """

    student: Student
    teacher: Student
    limits: Limits
    violated: tuple[str, ...]
    measurement: JsonObject
    parity: JsonObject | None
    runtime: str
    threads: int
    batch: int
    device: JsonObject

    def to_json(self) -> JsonObject:
        """Return the certificate as it is written."""
        return {
            "student": self.student.to_json(),
            "teacher": self.teacher.to_json(),
            "limits": self.limits.to_json(),
            "violated": list(self.violated),
            "measurement": dict(self.measurement),
            "parity": self.parity and dict(self.parity),
            "accuracy_from": self.student.accuracy_from,
            "runtime": self.runtime,
            "threads": self.threads,
            "batch": self.batch,
            "device": dict(self.device),
        }

    @classmethod
    def from_json(cls, data: JsonObject) -> Certificate:
        """Return the certificate that `to_json` made `data` of. Raises KeyError, TypeError or ValueError."""
        return cls(
            Student.from_json(data["student"]),
            Student.from_json(data["teacher"]),
            Limits.from_json(data["limits"]),
            tuple(data["violated"]),
            dict(data["measurement"]),
            data.get("parity"),
            str(data["runtime"]),
            int(data["threads"]),
            int(data.get("batch", 1)),
            dict(data.get("device", {})),
        )


def read_certificate(path: Path) -> Certificate:
    """Return the certificate in a file. Raises StudentError where there is none that can be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StudentError(
            "the student has no readable measurement",
            where=str(path),
            why=str(error),
            fix="copy the student folder again, or pick it again from its run",
        ) from error
    if not isinstance(data, dict) or "measurement" not in data:
        raise StudentError(
            "the student was never certified", where=str(path), fix="pick a student from a finished run"
        )
    try:
        return Certificate.from_json(data)
    except (KeyError, TypeError, ValueError, AutocompressError) as error:
        raise StudentError(
            "the student's measurement is not one of autocompress",
            where=str(path),
            why=str(error),
            fix="copy the student folder again, or pick it again from its run",
        ) from error
