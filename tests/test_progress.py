"""What a long command says while it works."""

from __future__ import annotations

import io
import re

import pytest

from autocompress import progress
from autocompress.progress import Console, ProgressBar, clock, write_plainly


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    time = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_within_a_time_limit_what_is_left_of_it_and_the_next_stage_are_said(
    now: list[float], capsys: pytest.CaptureFixture[str]
):
    console = Console()
    console.within(900)
    console.within(60)  # The first one counts.
    bar = ProgressBar(console, "trials", None, "longer training")
    now[0] = 130.0
    bar.update(2, note="best 97 %")
    assert (
        capsys.readouterr().err == "trials: 2, 130 s, 12:50 of 15:00 left, then longer training; best 97 %\n"
    )
    now[0] = 961.0
    bar.update(3)
    assert "15:00 are over by 1:01" in capsys.readouterr().err


def test_without_a_limit_a_stage_tells_by_its_pace(now: list[float], capsys: pytest.CaptureFixture[str]):
    bar = ProgressBar(Console(), "profiling", 24)
    now[0] = 20.0
    bar.update(8)
    assert capsys.readouterr().err == "profiling: 8/24, 20 s, 40 s left\n"


def test_times_are_read_like_a_clock():
    assert [clock(seconds) for seconds in (0, 59.9, 200, 3800)] == ["0:00", "0:59", "3:20", "1:03:20"]


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii", "+-1 x -> ?"), ("latin-1", "±1 × -> ?"), ("utf-8", "±1 × → 猫")]
)
def test_what_an_encoding_lacks_is_written_plainly(encoding: str, expected: str):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    write_plainly(stream, None)
    stream.write("±1 × → 猫")
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding) == expected  # type: ignore[attr-defined]


def test_the_bar_fits_a_terminal_of_60_columns(monkeypatch: pytest.MonkeyPatch):
    from rich.console import Console as RichConsole

    console, written = Console(), io.StringIO()
    monkeypatch.setattr(console, "_terminal", lambda: True)
    console._console = RichConsole(file=written, force_terminal=True, width=60, color_system=None)
    console.within(900)
    with console.stage("trials", None, "longer training") as bar:
        bar.update(12, note="best feasible 97.22%, hypervolume 0.634, 3 failed, distil 40%")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue()).replace("\r", "\n").splitlines()
    shown = [line for line in lines if "trials" in line]
    assert all(len(line) <= 60 for line in lines)
    assert "12" in shown[-1] and "then longer training" in shown[-1] and "best fea" in shown[-1]
    assert not [line for line in lines if line.strip() and "trials" not in line]
