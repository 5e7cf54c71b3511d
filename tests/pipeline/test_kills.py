"""A search that is killed again and again loses nothing that was finished."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from small_search import Setting, environment

import autocompress as ac
from autocompress.progress import Console
from autocompress.runs.store import read_run


def test_kill_9_at_twenty_random_moments_loses_and_repeats_nothing(setting: Setting, tmp_path: Path):
    """Every trial that was finished before a kill is there after it, once, with the same result."""
    run, rng = tmp_path / "run", random.Random(0)
    known: dict[int, dict[str, Any]] = {}
    for _ in range(20):
        more = ["--resume"] if (run / "events.jsonl").is_file() else []
        process = subprocess.Popen(
            setting.command(run, *more),
            env=environment(),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        events = run / "events.jsonl"
        size = events.stat().st_size if events.is_file() else 0
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if events.is_file() and events.stat().st_size > size:
                break
            time.sleep(0.02)
        time.sleep(rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        for trial in read_run(run).trials if events.is_file() else ():
            before = known.setdefault(trial.trial, trial)
            assert before == trial
        if read_run(run).exit_code == 0:
            break
    front = ac.resume(run, console=Console(quiet=True))
    assert front.students
    record = read_run(run)
    assert record.damaged == ()
    finished = [event.candidate for event in record.events if event.name == "trial_finished"]
    assert len(finished) == len(set(finished)) == 6
    assert {trial.trial for trial in record.trials} >= set(known)


def test_being_told_to_end_is_like_a_second_ctrl_c(setting: Setting, tmp_path: Path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        setting.command(run), env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    events, end = run / "events.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if events.is_file() and "trial_finished" in events.read_text(encoding="utf-8"):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "what had finished is kept" in said and f"autocompress resume {run}" in said
    record = read_run(run)
    assert record.trials and record.damaged == ()


def test_a_finished_search_is_told_in_ascii_too(finished: Path):
    """Where only ASCII can be written, no letter ends a command with an error."""
    for variables in (
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        for command in (["front"], ["status"]):
            done = subprocess.run(
                [sys.executable, "-m", "autocompress", *command, str(finished)],
                env={**environment(), **variables}, capture_output=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stdout.isascii() and done.stderr.isascii()
        assert b"teacher" in done.stdout or b"certified" in done.stdout
