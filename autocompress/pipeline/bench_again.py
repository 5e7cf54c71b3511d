"""Measure a student folder again, on the machine at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from autocompress.device.measure.latency import CERTIFY, measure_in_fresh_process
from autocompress.errors import StudentError
from autocompress.export.student_folder import BENCH, MODEL, is_intact
from autocompress.files import JsonObject
from autocompress.progress import Console
from autocompress.runs.certificate import read_certificate


class MeasuredAgain(TypedDict):
    """A new measurement of a student beside the recorded one, as JSON; `ratio` is of the latencies."""

    student: str
    measured: JsonObject
    recorded: JsonObject
    latency_ms: float
    recorded_latency_ms: float
    ratio: float
    limits: Mapping[str, float | int | None]
    violated: list[str]
    within_budget: bool


def measure_again(folder: Path, console: Console) -> MeasuredAgain:
    """Return the new measurement beside the recorded one, and the budgets that it breaks (by its median).

    Raises StudentError for a folder that is not a certified student's or was changed since.
    """
    if not is_intact(folder):
        raise StudentError(
            "the student's files are not those that were certified",
            where=str(folder),
            fix="copy the student folder again, or pick it again from its run",
        )
    recorded = read_certificate(folder / BENCH)
    student = recorded.student
    console.say(f"measuring {folder} with {recorded.runtime}, {recorded.threads} thread(s)")
    measured = measure_in_fresh_process(
        folder / MODEL, None, runtime=recorded.runtime, threads=recorded.threads, settings=CERTIFY
    )
    now = replace(student, latency_ms=measured.latency_ms, file_bytes=(folder / MODEL).stat().st_size)
    violated = recorded.limits.violated(now)
    return {
        "student": student.key,
        "measured": measured.to_json(),
        "recorded": recorded.measurement,
        "latency_ms": measured.latency_ms,
        "recorded_latency_ms": student.latency_ms,
        "ratio": measured.latency_ms / student.latency_ms,
        "limits": recorded.limits.to_json(),
        "violated": violated,
        "within_budget": not violated,
    }
