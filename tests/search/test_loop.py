"""The loop, with quality from a formula instead of training: what is tried, recorded, resumed, certified."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from priced_networks import Arithmetic, small_pricer, small_resnet

from autocompress.cost.model import CostModel
from autocompress.cost.pricer import Pricer
from autocompress.cost.repair import Repairer
from autocompress.errors import (
    InputError,
    InterruptedSearchError,
    NoisyDeviceError,
    NothingFeasibleError,
    StudentError,
    TooManyFailuresError,
)
from autocompress.graph.trace import trace
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Cost
from autocompress.problem.space import parse_space
from autocompress.progress import Console
from autocompress.runs.events import Certified, RunStarted, TrialEnd
from autocompress.runs.front import front_of
from autocompress.runs.in_process import InProcess
from autocompress.runs.store import RunPaths, RunStore, read_run
from autocompress.runs.student import Student
from autocompress.runs.tasks import Job, Stage
from autocompress.search.finalists import NOISY_ROUNDS, patiently
from autocompress.search.halving import EpochPlan, Epochs, Plan, planned, ranked
from autocompress.search.loop import Search, Setting
from autocompress.search.proposers.solver import Solver
from autocompress.search.trials import Trial
from autocompress.transforms.sites import bind

PLAN = Plan(trials=12, trial_epochs=1, promotion_epochs=3, final_epochs=9, quantized_epochs=1, students=2)
Evaluate = Callable[[Job], Mapping[str, Any]]


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    return small_pricer()[0]


@pytest.fixture(scope="module")
def limits(pricer: Pricer) -> Limits:
    return Limits(latency_ms=0.7 * pricer.teacher.latency_ms)


class Bench:
    """Runs searches in one folder. A student measures what was predicted, times `slower` and `larger`."""

    def __init__(self, root: Path, pricer: Pricer, limits: Limits) -> None:
        self.root, self.pricer, self.limits = root, pricer, limits
        self.slower = self.larger = 1.0
        self.tasks: list[Job] = []

    def evaluate(self, task: Job) -> Mapping[str, Any]:
        """More multiply-adds, more accurate; longer training adds a little."""
        self.tasks.append(task)
        candidate = Candidate.of(task.candidate)
        if task.stage == Stage.FINAL:
            (self.root / "distilled" / candidate.key).mkdir(parents=True)
        accuracy = 0.5 + 0.4 * self.pricer.price(candidate).macs / self.pricer.teacher.macs
        return {"accuracy": accuracy + task.payload["epochs"] / 1000, "loss": 1.0}

    def certify(self, store: RunStore, candidate: Candidate) -> Student:
        cost = self.pricer.price(candidate)
        latency = self.slower * cost.latency_ms
        measured = replace(
            cost,
            latency_ms=latency,
            latency_ms_ci95=(latency, latency),
            file_bytes=int(cost.file_bytes * self.larger),
        )
        violated = tuple(self.limits.violated(measured, upper=True))
        student = Student(
            key=candidate.key,
            accuracy=0.9,
            accuracy_std_err=0.01,
            certified=not violated,
            path="",
            **vars(measured),
        )
        store.append(Certified(candidate=candidate.key, student=student, violated=violated))
        return student

    def run(self, plan: Plan = PLAN, evaluate: Evaluate | None = None, resume: bool = False) -> list[Any]:
        options = {"resume": resume, "overwrite": not resume}
        with RunStore.create(self.root, {"identity": {}}, {}, **options) as store:
            setting = Setting(
                pricer=self.pricer,
                repair=Repairer(self.pricer, self.limits, {}),
                limits=self.limits,
                plan=plan,
                store=store,
                executor=InProcess(evaluate or self.evaluate),
                certify=lambda candidate: self.certify(store, candidate),
                distilled_folder=self.root / "distilled",
                console=Console(quiet=True),
            )
            return Search(setting, read_run(self.root).events).run()

    @property
    def trials(self) -> list[TrialEnd]:
        return read_run(self.root).trials


@pytest.fixture
def bench(tmp_path: Path, pricer: Pricer, limits: Limits) -> Bench:
    return Bench(tmp_path / "run", pricer, limits)


def test_every_trial_keeps_the_budgets_and_none_is_repeated(bench: Bench):
    bench.run()
    finished = [trial for trial in bench.trials if trial.name == "trial_finished"]
    assert len(finished) == PLAN.trials
    assert len({trial.candidate for trial in finished}) == PLAN.trials
    for trial in finished:
        assert trial.predicted.latency_ms <= bench.limits.latency_ms
        assert Candidate.of(trial.choices).key == trial.candidate


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_every_sampler_keeps_the_budgets_and_starts_from_the_solver(bench: Bench, sampler: str):
    bench.run(Plan(**{**vars(PLAN), "sampler": sampler}))
    finished = [trial for trial in bench.trials if trial.name == "trial_finished"]
    assert len({trial.candidate for trial in finished}) == PLAN.trials
    assert all(trial.predicted.latency_ms_ci95[1] <= bench.limits.latency_ms for trial in finished)
    seeds = Solver(bench.pricer, {}).sweep(bench.limits, 6)
    assert [trial.candidate for trial in finished][: len(seeds)] == [seed.key for seed in seeds]
    assert any("integer programming" in event.text for event in read_run(bench.root).decisions)


def test_an_unknown_sampler_is_refused(bench: Bench):
    with pytest.raises(InputError, match="sampler 'tpee'") as caught:
        bench.run(Plan(**{**vars(PLAN), "sampler": "tpee"}))
    assert "engine" in caught.value.fix and "nsga2" in caught.value.fix


def test_limits_that_nothing_keeps_are_searched_from_repaired_candidates(bench: Bench, pricer: Pricer):
    bench.limits = Limits(latency_ms=0.5 * pricer.smallest.latency_ms)
    assert bench.run() == []
    teacher = Student("teacher", 0.9, 0.01, 1.0, (1.0, 1.0), 1, 1, 1, 1, True, "")
    begun = RunStarted(teacher=teacher, limits=bench.limits)
    record = replace(read_run(bench.root), events=(begun, *read_run(bench.root).events))
    with pytest.raises(NothingFeasibleError) as caught:
        front_of(record).best()
    nearest = min(bench.trials, key=lambda trial: trial.predicted.latency_ms_ci95[1])
    assert nearest.candidate in caught.value.why and "latency" in caught.value.why
    (decision,) = [e.text for e in read_run(bench.root).decisions if "solver" in e.text]
    assert "nothing inside the budgets" in decision and "above the latency budget" in decision


def test_the_stages_follow_each_other(bench: Bench):
    students = bench.run()
    stages = [task.stage for task in bench.tasks]
    promoted = stages.count(Stage.PROMOTION)
    assert stages == [Stage.TRIAL] * 12 + [Stage.PROMOTION] * promoted + [Stage.FINAL] * 2
    assert promoted == 4
    assert len(students) == 2
    best = max(trial.accuracy for trial in bench.trials)
    keys = {student.key for student in students}
    assert best in {trial.accuracy for trial in bench.trials if trial.candidate in keys}
    events = [event.name for event in read_run(bench.root).events]
    assert [events.count(name) for name in ("promoted", "distilled", "certified")] == [4, 2, 2]


def test_the_same_seed_gives_the_same_trials(tmp_path: Path, pricer: Pricer, limits: Limits):
    def keys(root: Path, seed: int) -> list[str]:
        other = Bench(root, pricer, limits)
        other.run(Plan(**{**vars(PLAN), "seed": seed}))
        return [trial.candidate for trial in other.trials]

    assert keys(tmp_path / "a", 3) == keys(tmp_path / "b", 3)
    assert keys(tmp_path / "a", 4) != keys(tmp_path / "b", 3)


def test_a_search_goes_on_where_it_was_killed(bench: Bench):
    """Killed within the eighth trial: the seven before are kept, the eighth is tried again, first."""

    def killed(task: Job) -> Mapping[str, Any]:
        if len(bench.tasks) == 7:
            raise KeyboardInterrupt
        return bench.evaluate(task)

    with pytest.raises(KeyboardInterrupt):
        bench.run(evaluate=killed)
    before = [trial.candidate for trial in bench.trials]
    started = [event for event in read_run(bench.root).events if event.name == "trial_started"]
    assert len(before) == 7
    bench.tasks.clear()
    bench.run(resume=True)
    trials = [task for task in bench.tasks if task.stage == Stage.TRIAL]
    assert Candidate.of(trials[0].candidate).key == started[-1].candidate
    finished = [trial.candidate for trial in bench.trials]
    assert finished[:7] == before
    assert len(set(finished)) == len(finished) == PLAN.trials


@pytest.mark.parametrize("stage", [Stage.PROMOTION, Stage.FINAL])
def test_later_stages_are_not_repeated_either(bench: Bench, stage: str):
    def killed(task: Job) -> Mapping[str, Any]:
        if sum(done.stage == stage for done in bench.tasks) == 1 and task.stage == stage:
            raise KeyboardInterrupt
        return bench.evaluate(task)

    with pytest.raises(KeyboardInterrupt):
        bench.run(evaluate=killed)
    done = {(task.stage, Candidate.of(task.candidate).key) for task in bench.tasks}
    bench.tasks.clear()
    assert len(bench.run(resume=True)) == 2
    again = {(task.stage, Candidate.of(task.candidate).key) for task in bench.tasks}
    assert not done & again


RUNGS = Plan(**{**vars(PLAN), "trials": 14, "trial_epochs": 0, "promotion_epochs": 9, "least_epochs": 2})


def test_a_third_climbs_each_rung_from_where_it_was(bench: Bench):
    """14 candidates for 3 epochs would be twice 2 students times 3, so 12; then 4 for 9."""
    bench.run(RUNGS)
    rungs = [task for task in bench.tasks if task.stage == Stage.PROMOTION]
    steps = [(task.payload["rung"], task.payload["before"], task.payload["epochs"]) for task in rungs]
    assert steps == [(1, 0, 3)] * 12 + [(2, 3, 9)] * 4
    assert {task.trial for task in rungs[12:]} < {task.trial for task in rungs[:12]}
    assert {task.trial for task in bench.tasks if task.stage == Stage.FINAL} < {
        task.trial for task in rungs[12:]
    }
    promoted = [event for event in read_run(bench.root).events if event.name == "promoted"]
    assert [(event.rung, event.epochs) for event in promoted] == [(1, 3)] * 12 + [(2, 9)] * 4
    (decision,) = [e.text for e in read_run(bench.root).decisions if "→" in e.text]
    assert (
        decision
        == "14 candidates evaluated, as many as were asked for → training 12 to 3 epochs, 4 to 9 epochs"
    )


@pytest.mark.parametrize("done", [5, 12, 14])
def test_rungs_go_on_after_a_kill(bench: Bench, tmp_path: Path, done: int):
    """Within the first rung, between the two, and within the second; nobody climbs a rung twice."""
    undisturbed = Bench(tmp_path / "undisturbed", bench.pricer, bench.limits)
    undisturbed.run(RUNGS)

    def killed(task: Job) -> Mapping[str, Any]:
        if (
            task.stage == Stage.PROMOTION
            and sum(other.stage == Stage.PROMOTION for other in bench.tasks) == done
        ):
            raise KeyboardInterrupt
        return bench.evaluate(task)

    with pytest.raises(KeyboardInterrupt):
        bench.run(RUNGS, evaluate=killed)
    bench.run(RUNGS, resume=True)

    def climbed(some: Bench) -> list[tuple[int, int]]:
        return sorted(
            (task.payload["rung"], task.trial) for task in some.tasks if task.stage == Stage.PROMOTION
        )

    assert climbed(bench) == climbed(undisturbed)


def test_a_trial_in_one_shot_races_against_the_best_that_is_as_fast(bench: Bench):
    bench.run(RUNGS)
    trials = {trial.trial: trial for trial in bench.trials}
    for task in bench.tasks[:14]:
        latency = trials[task.trial].predicted.latency_ms
        before = [trials[other.trial] for other in bench.tasks[: bench.tasks.index(task)]]
        faster = [trial for trial in before if trial.predicted.latency_ms <= latency]
        best = max((trial.accuracy for trial in faster), default=None)
        assert (task.payload["rival"] or {"accuracy": None})["accuracy"] == best


def test_a_front_that_stands_still_ends_the_trials(bench: Bench):
    def first_is_best(task: Job) -> Mapping[str, Any]:
        return {**bench.evaluate(task), "accuracy": 0.9 if task.trial == 0 else 1e-4}

    bench.run(Plan(**{**vars(PLAN), "trials": 60, "patience": 15}), evaluate=first_is_best)
    assert len(bench.trials) < 40
    assert any("front unchanged for" in event.text for event in read_run(bench.root).decisions)
    count = len(bench.trials)
    bench.run(Plan(**{**vars(PLAN), "trials": 60, "patience": 15}), evaluate=first_is_best, resume=True)
    assert len(bench.trials) == count


def test_a_finished_search_has_nothing_left_to_do(bench: Bench):
    first = bench.run()
    bench.tasks.clear()
    assert {student.key for student in bench.run(resume=True)} == {student.key for student in first}
    assert bench.tasks == []


def test_more_trials_continue_a_finished_search(bench: Bench):
    bench.run()
    bench.run(Plan(**{**vars(PLAN), "trials": 18}), resume=True)
    assert len({trial.candidate for trial in bench.trials}) == 18


def test_failed_trials_are_recorded_with_their_reason(bench: Bench):
    def fails_twice(task: Job) -> Mapping[str, Any]:
        if task.trial in (2, 5):
            raise ValueError("no gradient")
        return bench.evaluate(task)

    bench.run(evaluate=fails_twice)
    failed = {t.trial: t.reason for t in bench.trials if t.name == "trial_failed"}
    assert failed == {2: "ValueError: no gradient", 5: "ValueError: no gradient"}


@pytest.mark.parametrize("name", ["loss", "accuracy"])
def test_a_result_that_is_not_finite_is_a_failure(bench: Bench, name: str):
    def diverges(task: Job) -> Mapping[str, Any]:
        return {**bench.evaluate(task), name: float("nan")} if task.trial == 1 else bench.evaluate(task)

    bench.run(evaluate=diverges)
    (failed,) = [trial for trial in bench.trials if trial.name == "trial_failed"]
    assert failed.trial == 1 and "finite" in failed.reason


def test_a_search_in_which_all_fails_is_given_up(bench: Bench):
    def fails(_: Job) -> Mapping[str, Any]:
        raise RuntimeError("out of luck")

    with pytest.raises(TooManyFailuresError) as caught:
        bench.run(evaluate=fails)
    assert "out of luck" in caught.value.why
    assert len(bench.trials) < PLAN.trials


def test_a_search_whose_first_trials_fail_alike_is_given_up_at_once(bench: Bench):
    def fails(task: Job) -> Mapping[str, Any]:
        raise RuntimeError(f"no disk at trial {task.trial}")

    with pytest.raises(TooManyFailuresError, match="first 3 trials failed in the same way") as caught:
        bench.run(evaluate=fails)
    assert "no disk at trial" in caught.value.why and "autocompress resume" in caught.value.fix
    assert len(bench.trials) == 3
    bench.run(resume=True)
    kinds = [trial.name for trial in bench.trials]
    assert kinds == ["trial_failed"] * 3 + ["trial_finished"] * (PLAN.trials - 3)


def brought_down(bench: Bench, stage: str, number: int, plan: Plan = PLAN) -> Job:
    """Runs until the task of that number in its stage ends the process, and leaves what a crash leaves."""
    seen: list[Job] = []

    def killed(task: Job) -> Mapping[str, Any]:
        if task.stage == stage:
            seen.append(task)
            if len(seen) == number:
                raise KeyboardInterrupt
        return bench.evaluate(task)

    with pytest.raises(KeyboardInterrupt):
        bench.run(plan, evaluate=killed, resume=(bench.root / "events.jsonl").is_file())
    note = {"stage": stage, "candidate": dict(seen[-1].candidate)}
    text = "Fatal Python error: Segmentation fault\n\nThread 1\n"
    RunPaths(bench.root).crash.write_text(f"{json.dumps(note)}\n{text}")
    return seen[-1]


def test_a_trial_that_brought_the_process_down_is_recorded_and_not_repeated(bench: Bench):
    task = brought_down(bench, Stage.TRIAL, 3)
    bench.run(resume=True)
    failed = [trial for trial in bench.trials if trial.name == "trial_failed"]
    assert [trial.trial for trial in failed] == [task.trial]
    assert "Segmentation fault" in failed[0].reason and "Thread 1" in failed[0].detail
    finished = [trial.candidate for trial in bench.trials if trial.name == "trial_finished"]
    assert failed[0].candidate not in finished and len(set(finished)) == PLAN.trials - 1
    assert not RunPaths(bench.root).crash.exists()


@pytest.mark.parametrize("stage", [Stage.PROMOTION, Stage.FINAL])
def test_longer_training_that_brought_the_process_down_is_not_repeated(bench: Bench, stage: str):
    task = brought_down(bench, stage, 1)
    bench.tasks.clear()
    students = bench.run(resume=True)
    again = [(one.stage, one.candidate) for one in bench.tasks]
    assert again and all(candidate != task.candidate for _, candidate in again)
    key = Candidate.of(task.candidate).key
    assert students and key not in {student.key for student in students}
    (event,) = [event for event in read_run(bench.root).events if event.name == "brought_down"]
    assert (event.candidate, event.stage) == (key, stage) and "Segmentation" in event.reason
    bench.tasks.clear()
    bench.run(resume=True)
    assert bench.tasks == []


def test_a_kill_leaves_no_crash(bench: Bench):
    task = brought_down(bench, Stage.TRIAL, 3)
    note = RunPaths(bench.root).crash
    note.write_text(note.read_text().splitlines()[0] + "\n")
    bench.run(resume=True)
    assert task.candidate in [trial.choices for trial in bench.trials if trial.name == "trial_finished"]


@pytest.mark.parametrize(("slower", "larger", "told"), [(1.25, 1.0, "latency"), (1.0, 1.3, "size")])
def test_when_no_student_keeps_the_budgets_others_that_leave_room_are_tried(
    bench: Bench, slower: float, larger: float, told: str
):
    bench.slower, bench.larger = slower, larger
    file_bytes = round(0.3 * bench.pricer.teacher.file_bytes)
    bench.limits = Limits(latency_ms=bench.limits.latency_ms, file_bytes=file_bytes)
    students = bench.run(Plan(**{**vars(PLAN), "students": 1}))
    first = [student for student in students if not student.certified]
    repaired = [student for student in students if student.certified]
    assert first and repaired
    assert not any(bench.limits.violated(student, upper=True) for student in repaired)
    texts = [event.text for event in read_run(bench.root).decisions]
    assert any(f"{told} up to" in text and "above the prediction" in text for text in texts)


ONE = Plan(**{**vars(PLAN), "trials": 1, "students": 1})


def tightened(bench: Bench) -> Candidate:
    """What the solver answers where a student of its first answer was measured to be slower."""
    found = Solver(bench.pricer, {}).sweep(bench.limits.scaled(0.98 / bench.slower), 6)
    return found[0]


@pytest.mark.parametrize("sampler", ["engine", "tpe"])
def test_when_no_trial_leaves_room_either_the_solver_is_asked_again(bench: Bench, sampler: str):
    """The only trial is as slow as the budget allows, and measured to take twice that."""
    bench.slower = 2.0
    plan = replace(ONE, sampler=sampler)
    students = bench.run(plan)
    first, *_, last = students
    assert not first.certified and last.certified
    finished = [trial for trial in bench.trials if trial.name == "trial_finished"]
    assert tightened(bench).key in {trial.candidate for trial in finished[1:]}
    texts = [event.text for event in read_run(bench.root).decisions]
    assert any("latency up to 100.0% above the prediction, and no trial leaves" in text for text in texts)
    trained = [Candidate.of(task.candidate).key for task in bench.tasks if task.stage != Stage.TRIAL]
    assert trained.count(first.key) <= 2, "what does not fit is not trained on"
    before = read_run(bench.root).events
    assert bench.run(plan, resume=True) == students
    added = read_run(bench.root).events[len(before) :]
    assert not any(event.name.startswith("trial") for event in added)


def test_a_search_that_was_killed_while_it_looked_for_room_goes_on_with_that(bench: Bench):
    bench.slower = 2.0

    def killed(task: Job) -> Mapping[str, Any]:
        if task.trial == 1:
            raise KeyboardInterrupt
        return bench.evaluate(task)

    with pytest.raises(KeyboardInterrupt):
        bench.run(ONE, evaluate=killed)
    (started,) = [event for event in read_run(bench.root).events if getattr(event, "trial", None) == 1]
    students = bench.run(ONE, resume=True)
    assert any(student.certified for student in students)
    finished = [trial.candidate for trial in bench.trials if trial.name == "trial_finished"]
    assert finished[1] == started.candidate and len(finished) == len(set(finished))


def test_accuracy_counts_where_every_candidate_takes_the_teachers_latency(bench: Bench):
    """A budget of the packed size and a space of codebooks: trials go on while they become better."""
    network, _ = trace(small_resnet(), (1, 16, 16))
    rules = "name: packed\nrules:\n  - match: {layer: any}\n    codebook: [none, 32, 16, 8, 4]"
    bench.pricer = Pricer(bind(parse_space(rules), network), CostModel(Arithmetic()))
    bench.limits = Limits(packed_bytes=bench.pricer.teacher.packed_bytes)

    def ever_better(task: Job) -> Mapping[str, Any]:
        return {**bench.evaluate(task), "accuracy": 0.5 + 0.01 * task.trial}

    bench.run(Plan(**{**vars(PLAN), "trials": 30, "patience": 5}), evaluate=ever_better)
    finished = [trial for trial in bench.trials if trial.name == "trial_finished"]
    assert len(finished) == 30
    latencies = {trial.predicted.latency_ms for trial in finished}
    assert latencies == {bench.pricer.teacher.latency_ms}


def test_students_that_noise_disturbed_are_measured_again_after_the_others(bench: Bench):
    certify, calls = bench.certify, []

    def noisy_at_first(store: RunStore, candidate: Candidate) -> Mapping[str, Any]:
        calls.append(candidate.key)
        if len(calls) in (1, 3):
            raise NoisyDeviceError("the device is too noisy to measure", why="of a neighbour")
        return certify(store, candidate)

    bench.certify = noisy_at_first  # type: ignore[method-assign]
    assert len(bench.run()) == 2
    first, second, *again = calls
    assert first != second and again == [first, first]


def test_a_student_that_cannot_be_examined_keeps_no_other_from_being_measured(bench: Bench):
    certify, seen = bench.certify, []

    def failing_first(store: RunStore, candidate: Candidate) -> Mapping[str, Any]:
        seen.append(candidate.key)
        if candidate.key == seen[0]:
            raise StudentError("the exported file computes something else", why="a parity of 0.3")
        return certify(store, candidate)

    bench.certify = failing_first  # type: ignore[method-assign]
    students = bench.run()
    assert seen[0] not in {student.key for student in students} and len(students) == 1
    texts = [event.text for event in read_run(bench.root).decisions]
    assert any(f"student {seen[0]} cannot be certified" in text and "0.3" in text for text in texts)
    assert seen.count(seen[0]) == 1


def test_where_no_student_can_be_examined_the_last_error_is_raised(bench: Bench):
    def failing(*_: Any) -> Mapping[str, Any]:
        raise StudentError("the exported file computes something else", why="a parity of 0.3")

    bench.certify = failing  # type: ignore[method-assign]
    with pytest.raises(StudentError, match="something else"):
        bench.run()


def test_the_teacher_is_measured_as_often_as_a_student_where_noise_disturbs_it():
    said: list[str] = []
    answers = [NoisyDeviceError("too noisy", why="of a neighbour")] * (NOISY_ROUNDS - 1)

    def examine() -> str:
        if answers:
            raise answers.pop()
        return "measured"

    assert patiently(examine, said.append) == "measured"
    assert len(said) == NOISY_ROUNDS - 1 and "of a neighbour" in said[0]
    answers[:] = [NoisyDeviceError("too noisy")] * NOISY_ROUNDS
    with pytest.raises(NoisyDeviceError):
        patiently(examine, said.append)


def test_noise_that_does_not_end_is_an_error_that_a_resume_can_mend(bench: Bench):
    certify = bench.certify

    def noisy(*_: Any) -> Mapping[str, Any]:
        raise NoisyDeviceError("the device is too noisy to measure")

    bench.certify = noisy  # type: ignore[method-assign]
    with pytest.raises(NoisyDeviceError):
        bench.run()
    bench.certify = certify  # type: ignore[method-assign]
    bench.tasks.clear()
    assert len(bench.run(resume=True)) == 2
    assert bench.tasks == []


def test_an_interrupt_is_drained_and_says_how_to_go_on(bench: Bench):
    def interrupted(task: Job) -> Mapping[str, Any]:
        if task.trial == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return bench.evaluate(task)

    with pytest.raises(InterruptedSearchError) as caught:
        bench.run(evaluate=interrupted)
    assert f"autocompress resume {bench.root}" in caught.value.fix
    assert [trial.name for trial in bench.trials] == ["trial_finished"] * 4


def trial(number: int, accuracy: float, latency_ms: float) -> Trial:
    cost = Cost(latency_ms, (latency_ms, latency_ms), 1, 1, 1, 1)
    return Trial(number, Candidate.of({"bits:x": number}), cost, accuracy)


def test_ranking_puts_the_front_first_and_the_most_accurate_before_the_rest():
    trials = [
        trial(0, 0.80, 1.0),
        trial(1, 0.90, 2.0),
        trial(2, 0.85, 2.5),
        trial(3, 0.95, 4.0),
        trial(4, 0.94, 5.0),
    ]
    order = [found.number for found in ranked(trials)]
    assert order[0] == 3
    assert set(order[:3]) == {0, 1, 3}
    assert order[3:] == [4, 2]


def test_epochs_left_open_follow_from_the_size_of_the_data():
    large = planned(Epochs(), 320)
    assert (large.trial, large.final, large.quantized) == (0.1, 10, 1)
    assert large.promotion == pytest.approx(1.0)
    small = planned(Epochs(), 2)
    assert (small.trial, small.final) == (4, 30)
    assert planned(Epochs(1, 3, 9, 1), 2) == EpochPlan(1, 3, 9, 1, least=4)
    one_shot = planned(Epochs(trial=0), 320)
    assert one_shot.trial == 0
    assert (one_shot.least, one_shot.promotion) == pytest.approx((0.1, 1.0))
