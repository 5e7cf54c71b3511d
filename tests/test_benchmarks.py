"""Benchmarks run for minutes to hours, so that tests only see that each starts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from places import BENCHMARKS

SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if "def main" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_says_what_it_takes(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 0
    assert "usage" in capsys.readouterr().out.lower()
