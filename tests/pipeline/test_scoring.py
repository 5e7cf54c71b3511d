"""Scores as tasks: each is computed once in a run, wherever it stopped; one that fails spoils no other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from priced_networks import SPACE, Arithmetic, small_resnet

from autocompress.cost.model import CostModel
from autocompress.cost.pricer import Pricer
from autocompress.errors import TooManyFailuresError
from autocompress.graph.trace import trace
from autocompress.pipeline.scoring import Scoring
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Option
from autocompress.problem.data import load_data
from autocompress.problem.space import parse_space
from autocompress.progress import Console
from autocompress.runs.in_process import InProcess, read_crash
from autocompress.runs.store import RunPaths, RunStore, read_run
from autocompress.runs.tasks import Job, Stage
from autocompress.search.proposers.solver import MOST_DAMAGE, Pairs
from autocompress.students.builder import StudentBuilder
from autocompress.students.evaluator import SCORE_ROWS, Evaluator
from autocompress.students.importances import importances
from autocompress.students.one_shot import OneShot
from autocompress.students.sensitivity import Scorer, choices_to_score, score
from autocompress.transforms.sites import bind


@pytest.fixture(scope="module")
def builder() -> StudentBuilder:
    data = load_data("digits,size=16")
    network, weights = trace(small_resnet(in_channels=3, classes=10), data.input_shape)
    assert weights is not None
    bound = bind(parse_space(SPACE), network)
    return StudentBuilder(bound, weights, data, importances(bound, weights, data))


@pytest.fixture(scope="module")
def widths(builder: StudentBuilder) -> StudentBuilder:
    """With three widths to choose and nothing else."""
    bound = builder.bound
    locked = {site.name: "not asked for" for kind in ("block", "bits") for site in bound.of_kind(kind)}
    return replace(builder, bound=bound.lock(locked))


class Bench:
    """Evaluates like a worker; notes what it was asked, and can fail or be brought down."""

    def __init__(self, builder: StudentBuilder, folder: Path, fails_at: int = -1, killed_at: int = -1,
                 fails_from: int = 10_000) -> None:  # fmt: skip
        self.evaluate, self.asked = Evaluator(builder, folder), list[Mapping[str, Any]]()
        self.fails_at, self.killed_at, self.fails_from = fails_at, killed_at, fails_from

    def __call__(self, task: Job) -> Mapping[str, Any]:
        assert task.stage == Stage.SCORE
        if len(self.asked) == self.killed_at:
            raise KeyboardInterrupt
        self.asked.append(task.candidate)
        if len(self.asked) - 1 == self.fails_at or len(self.asked) > self.fails_from:
            raise MemoryError("no room")
        return self.evaluate(task)


@contextmanager
def scoring_of(builder: StudentBuilder, bench: Bench, run: Path, is_tight: bool = False) -> Iterator[Scoring]:
    pricer = Pricer(builder.bound, CostModel(Arithmetic()))
    limits = Limits(
        latency_ms=1.05 * pricer.smallest.latency_ms if is_tight else 0.9 * pricer.teacher.latency_ms
    )
    with RunStore.create(run, {"identity": {}}, {}, resume=run.exists(), overwrite=False) as store:
        crash = read_crash(RunPaths(run).crash)
        yield Scoring(builder, pricer, limits, store, InProcess(bench), Console(quiet=True), crash=crash)


def scored(builder: StudentBuilder, bench: Bench, run: Path) -> dict[Any, float]:
    with scoring_of(builder, bench, run) as scoring:
        return scoring.singles(read_run(run)).damage


def paired(builder: StudentBuilder, bench: Bench, run: Path) -> Pairs:
    with scoring_of(builder, bench, run, is_tight=True) as scoring:
        record = read_run(run)
        return scoring.pairs(record, scoring.singles(record))


def in_order(builder: StudentBuilder) -> list[tuple[str, Option]]:
    """Return the choices as they are scored: those last whose layers learn from the teacher's first."""
    kinds = {site.name: site.kind for site in builder.bound.free}
    return sorted(
        choices_to_score(builder.bound),
        key=lambda choice: kinds[choice[0]] in ("block", "structure") and choice[1] != "drop",
    )


def test_an_interrupted_scoring_goes_on_where_it_stopped(builder: StudentBuilder, tmp_path: Path):
    choices = [Candidate.of([choice]).to_json() for choice in in_order(builder)]
    first = Bench(builder, tmp_path, killed_at=5)
    with pytest.raises(KeyboardInterrupt):
        scored(builder, first, tmp_path / "run")
    second = Bench(builder, tmp_path)
    found = scored(builder, second, tmp_path / "run")
    assert first.asked + second.asked == choices
    third = Bench(builder, tmp_path)
    assert scored(builder, third, tmp_path / "run") == found
    assert third.asked == []
    whole = score(OneShot(builder, fit_images=256, fit_rows=SCORE_ROWS))
    assert found in [pytest.approx(damage) for damage in whole.values()]


def test_a_choice_that_brought_the_process_down_is_not_tried_again(builder: StudentBuilder, tmp_path: Path):
    choices = in_order(builder)
    with pytest.raises(KeyboardInterrupt):
        scored(builder, Bench(builder, tmp_path, killed_at=2), tmp_path / "run")
    note = {"stage": Stage.SCORE, "candidate": Candidate.of([choices[4]]).to_json()}
    text = "Fatal Python error: Segmentation fault\n\nThread 1\n"
    RunPaths(tmp_path / "run").crash.write_text(f"{json.dumps(note)}\n{text}")
    second = Bench(builder, tmp_path)
    found = scored(builder, second, tmp_path / "run")
    assert found[choices[4]] == MOST_DAMAGE
    assert second.asked == [
        Candidate.of([choice]).to_json() for choice in choices[2:] if choice != choices[4]
    ]


def test_scores_that_fail_from_the_start_end_the_run_and_are_tried_again(
    builder: StudentBuilder, tmp_path: Path
):
    with pytest.raises(TooManyFailuresError, match="first 3 choices") as caught:
        scored(builder, Bench(builder, tmp_path, fails_from=0), tmp_path / "run")
    assert "no room" in caught.value.why
    found = scored(builder, Bench(builder, tmp_path), tmp_path / "run")
    assert max(found.values()) < MOST_DAMAGE


def test_a_choice_that_cannot_be_scored_is_not_taken(builder: StudentBuilder, tmp_path: Path):
    found = scored(builder, Bench(builder, tmp_path, fails_at=3), tmp_path / "run")
    choices = in_order(builder)
    assert found[choices[3]] == MOST_DAMAGE
    assert all(value < 100 for choice, value in found.items() if choice != choices[3])
    failed = [event for event in read_run(tmp_path / "run").events if getattr(event, "reason", None)]
    assert [(event.site, event.option) for event in failed] == [choices[3]]
    assert "no room" in failed[0].reason


def test_pairs_are_scored_where_sums_will_not_do(
    widths: StudentBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("autocompress.search.proposers.pair_terms.NOT_ADDITIVE", -1e6)
    count = len(list(choices_to_score(widths.bound)))
    first = Bench(widths, tmp_path, killed_at=count + 2)
    with pytest.raises(KeyboardInterrupt):
        paired(widths, first, tmp_path / "run")
    second = Bench(widths, tmp_path)
    pairs = paired(widths, second, tmp_path / "run")
    asked = [Candidate.of(one).key for one in first.asked + second.asked]
    assert len(asked) == len(set(asked)) > count + 2
    third = Bench(widths, tmp_path)
    assert paired(widths, third, tmp_path / "run") == pairs
    assert third.asked == []
    events = read_run(tmp_path / "run").events
    measure = next(event.measure for event in events if event.name == "scored")
    joint = [event for event in events if event.name == "joint_scored"]
    assert len(joint) == len(asked) - count
    scorer = Scorer(OneShot(widths, fit_images=256, fit_rows=SCORE_ROWS))
    for event in joint[:3]:
        assert event.damage == pytest.approx(scorer(Candidate.of(event.choices))[measure], abs=1e-9)


def test_pairs_are_left_alone_where_sums_will_do(
    widths: StudentBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("autocompress.search.proposers.pair_terms.NOT_ADDITIVE", 1e6)
    bench = Bench(widths, tmp_path)
    assert paired(widths, bench, tmp_path / "run") == {}
    assert len(bench.asked) <= len(list(choices_to_score(widths.bound))) + 1
    said = [event.text for event in read_run(tmp_path / "run").events if event.name == "decision"]
    assert "sums will do" in said[-1]


def test_a_pair_that_cannot_be_scored_is_the_worst(
    widths: StudentBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("autocompress.search.proposers.pair_terms.NOT_ADDITIVE", -1e6)
    count = len(list(choices_to_score(widths.bound)))
    paired(widths, Bench(widths, tmp_path, fails_at=count + 1), tmp_path / "run")
    joint = [event for event in read_run(tmp_path / "run").events if event.name == "joint_scored"]
    assert joint[1].damage == MOST_DAMAGE
    assert "no room" in joint[1].reason


def test_a_joint_score_that_failed_is_tried_once_more_on_resume(
    widths: StudentBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("autocompress.search.proposers.pair_terms.NOT_ADDITIVE", -1e6)
    count = len(list(choices_to_score(widths.bound)))
    first = Bench(widths, tmp_path, fails_at=count, killed_at=count + 2)
    with pytest.raises(KeyboardInterrupt):
        paired(widths, first, tmp_path / "run")
    second = Bench(widths, tmp_path)
    paired(widths, second, tmp_path / "run")
    assert second.asked[0] == first.asked[count]
    said = [event.text for event in read_run(tmp_path / "run").events if event.name == "decision"]
    assert len(said) == len(set(said))
