"""Measures a student folder again, on the machine at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autocompress.device.measure.latency import CERTIFY, measure_in_fresh_process
from autocompress.errors import StudentError
from autocompress.export.student_folder import BENCH, MODEL, is_intact
from autocompress.problem.budgets import Limits
from autocompress.progress import Console


def measure_again(folder: Path, console: Console) -> dict[str, Any]:
    """The new measurement beside the recorded one, and the budgets that it breaks (by its median).

    Raises StudentError for a folder that is not a certified student's or was changed since.
    """
    if not is_intact(folder):
        raise StudentError(
            "the student's files are not those that were certified",
            where=str(folder),
            fix="copy the student folder again, or pick it again from its run",
        )
    recorded = _recorded(folder)
    console.say(f"measuring {folder} with {recorded['runtime']}, {recorded['threads']} thread(s)")
    measured = measure_in_fresh_process(
        folder / MODEL, None, runtime=recorded["runtime"], threads=recorded["threads"], settings=CERTIFY
    )
    limits = Limits.from_json(recorded["limits"])
    cost = {
        **recorded["student"],
        "latency_ms": measured.latency_ms,
        "file_bytes": (folder / MODEL).stat().st_size,
    }
    violated = limits.violated(cost)
    return {
        "student": recorded["student"]["key"],
        "measured": measured.to_json(),
        "recorded": recorded["measurement"],
        "latency_ms": measured.latency_ms,
        "recorded_latency_ms": recorded["student"]["latency_ms"],
        "ratio": measured.latency_ms / recorded["student"]["latency_ms"],
        "limits": limits.to_json(),
        "violated": violated,
        "within_budget": not violated,
    }


def _recorded(folder: Path) -> dict[str, Any]:
    path = folder / BENCH
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudentError(
            "the student has no readable measurement", where=str(path), why=str(error)
        ) from error
    if not isinstance(recorded, dict) or "measurement" not in recorded:
        raise StudentError(
            "the student was never certified", where=str(path), fix="pick a student from a finished run"
        )
    return recorded
