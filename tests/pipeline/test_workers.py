"""A search on several workers, on this machine."""

from __future__ import annotations

from pathlib import Path

from small_search import Setting, compress

from autocompress.runs.store import read_run


def test_two_workers_find_and_certify_too(setting: Setting, tmp_path: Path):
    front = compress(setting, tmp_path / "run", workers=2)
    assert front.students
    trials = read_run(tmp_path / "run").trials
    assert [trial.name for trial in trials] == ["trial_finished"] * 4
