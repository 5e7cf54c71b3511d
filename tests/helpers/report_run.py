"""A run folder written by hand, line by line as `events.jsonl` is documented."""

from __future__ import annotations

import json
import random
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

TEACHER = {
    "key": "teacher",
    "accuracy": 0.9694,
    "accuracy_std_err": 0.0091,
    "validation_accuracy": 0.9701,
    "latency_ms": 1.482,
    "latency_ms_ci95": [1.474, 1.4902],
    "peak_memory_bytes": 2 * 1024 * 1024,
    "file_bytes": 4 * 1024 * 1024,
    "macs": 41_100_000,
    "parameters": 1_100_000,
    "certified": True,
    "path": "teacher/model.onnx",
}
LIMITS = {"latency_ms": 0.5, "peak_memory_bytes": None, "file_bytes": 512 * 1024}
BLOCKS = [f"layer{stage}.{index}" for stage in range(1, 5) for index in range(2)]


def sites() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for block in BLOCKS:
        for kind, target, options in (
            ("width", f"{block}.conv1", [0.25, 0.5, 0.75, 1.0]),
            ("rank", f"{block}.conv2", [0.25, 0.5, "full"]),
            ("bits", f"{block}.conv1", [32, 8]),
            ("block", block, ["keep", "drop", "depthwise_separable"]),
        ):
            found.append({"name": f"{kind}:{target}", "kind": kind, "options": options, "locked": ""})
    locked = {"name": "width:fc", "kind": "width", "options": [1.0], "locked": "it gives the classes <10>"}
    return [*found, locked]


def cost(latency_ms: float, share: float) -> dict[str, Any]:
    return {
        "latency_ms": latency_ms,
        "latency_ms_ci95": [latency_ms * 0.97, latency_ms * 1.03],
        "peak_memory_bytes": int(TEACHER["peak_memory_bytes"] * (0.2 + 0.6 * share)),
        "file_bytes": int(TEACHER["file_bytes"] * share),
        "macs": int(TEACHER["macs"] * share),
        "parameters": int(TEACHER["parameters"] * share),
    }


def student(key: str, accuracy: float, latency_ms: float, share: float, certified: bool) -> dict[str, Any]:
    return {
        "key": key,
        "accuracy": accuracy,
        "accuracy_std_err": 0.0087,
        "validation_accuracy": accuracy - 0.002,
        **cost(latency_ms, share),
        "latency_ms_ci95": [latency_ms * 0.995, latency_ms * 1.005],
        "certified": certified,
        "path": f"students/{key}",
    }


STUDENTS = [
    (student("a1b2c3d4e5f6", 0.9722, 0.4321, 0.08, True), 0.421),
    (student("0f1e2d3c4b5a", 0.9583, 0.2876, 0.05, True), 0.302),
    (student("77aa88bb99cc", 0.9361, 0.1904, 0.03, True), 0.188),
    (student("deadbeef0001", 0.9555, 0.3517, 0.06, True), 0.349),
    (student("badc0ffee000", 0.9777, 0.5402, 0.11, False), 0.489),
]


def write_run(root: Path, events: list[dict[str, Any]], config: str = "teacher: t\n") -> Path:
    """Write a run folder with these events; return where it is."""
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(config, encoding="utf-8")
    environment = {"python": "3.11.9", "packages": {"torch": "2.15.0"}, "seed": 0}
    (root / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    start = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    lines = []
    for number, event in enumerate(events):
        time = (start + timedelta(seconds=2 * number)).isoformat()
        body = json.dumps({"seq": number, "time": time, **event}, separators=(",", ":"))
        lines.append(f'{body[:-1]},"crc32":{zlib.crc32(body.encode())}}}\n')
    (root / "events.jsonl").write_text("".join(lines), encoding="utf-8")
    return root


def started() -> dict[str, Any]:
    return {
        "event": "run_started",
        "teacher": TEACHER,
        "limits": LIMITS,
        "predicted": cost(1.45, 1.0),
        "sites": sites(),
        "dropped": [],
    }


def trials(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return trained, failed and infeasible ones; the first are those that become students."""
    rng = random.Random(seed)
    events = []
    for number in range(count):
        chosen = STUDENTS[number][0]["key"] if number < len(STUDENTS) else f"{rng.getrandbits(48):012x}"
        choices = {
            site["name"]: rng.choice(site["options"])
            for site in sites()
            if not site["locked"] and rng.random() < 0.55
        }
        common = {"trial": number, "candidate": chosen, "choices": choices}
        if number >= len(STUDENTS) and rng.random() < 0.25:
            latency = rng.uniform(0.51, 1.3)
            broken = ["latency_ms"] if rng.random() < 0.6 else ["latency_ms", "file_bytes"]
            events.append(
                {"event": "trial_infeasible", **common, "predicted": cost(latency, 0.3), "violated": broken}
            )
        elif number >= len(STUDENTS) and rng.random() < 0.06:
            reason = rng.choice(["its accuracy or loss is not a finite number", "out of memory"])
            events.append({"event": "trial_failed", **common, "predicted": cost(0.4, 0.1), "reason": reason})
        else:
            latency = rng.uniform(0.12, 0.499)
            accuracy = min(
                0.96, 0.55 + 0.35 * (latency / 0.5) ** 0.5 + rng.gauss(0, 0.06) + 0.03 * number / count
            )
            predicted = cost(latency, rng.uniform(0.02, 0.12))
            found = {"accuracy": accuracy, "accuracy_std_err": 0.01, "loss": 0.3, "seconds": 1.5}
            events.append({"event": "trial_finished", **common, "predicted": predicted, **found})
    return events


def whole_run(root: Path, count: int = 120) -> Path:
    """Write a finished run with five measured students, one of which breaks a budget."""
    events = [started(), {"event": "decision", "text": "starting from 6 candidates"}, *trials(count)]
    events.append({"event": "decision", "text": "training the best 12 of them 5 times longer"})
    for record, predicted in STUDENTS:
        events.append(
            {"event": "promoted", "candidate": record["key"], "rung": 1, "accuracy": 0.95, "epochs": 5.0}
        )
        violated = [] if record["certified"] else ["latency_ms"]
        events.append(
            {
                "event": "certified",
                "candidate": record["key"],
                "student": record,
                "violated": violated,
                "predicted": cost(predicted, record["file_bytes"] / TEACHER["file_bytes"]),
            }
        )
    return write_run(root, [*events, {"event": "run_finished", "exit_code": 0}])
