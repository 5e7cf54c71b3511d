"""The loop: ask → price → evaluate → tell → promote → finish → certify.

The parts that decide (study, pricing, repair) never train and the parts that train never decide.
Everything that happens is an event in the run store before it is acted upon, so a search that is
killed at any moment goes on where it stopped.
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from autocompress.budgets import Limits
from autocompress.candidate import Candidate
from autocompress.effects import EffectTable
from autocompress.errors import InterruptedSearchError, NoisyDeviceError, TooManyFailuresError
from autocompress.evaluation import WAIT, Executor, Result, Task, Wait
from autocompress.pareto import NAMES, hypervolume
from autocompress.pricing import Pricer, Repairer, seeds
from autocompress.progress import Console, Stage
from autocompress.promotion import Plan, Trial, ranked
from autocompress.quality.evaluator import FINAL, PROMOTION, TRIAL
from autocompress.run_store import RunStore
from autocompress.samplers import proposer
from autocompress.solver import Solver
from autocompress.study import Told

SEEDS = 6
PROMOTED_PER_STUDENT = 2
FAILURES_ALLOWED = 5
FAILURE_SHARE = 0.3
LATENCY_HEADROOM = 0.98
REPAIR_ROUNDS = 2
NOISY_ROUNDS = 4
REJECTIONS_IN_A_ROW = 200
LABELS = {TRIAL: "trials", PROMOTION: "longer training", FINAL: "final distillation"}


Certify = Callable[[Candidate], Mapping[str, Any]]
"""Examines a distilled candidate's files, records the outcome, and returns its student record."""


@dataclass
class Search:
    """One search over one run store. `run()` returns when the plan is carried out."""

    pricer: Pricer
    repair: Repairer
    limits: Limits
    plan: Plan
    store: RunStore
    executor: Executor
    certify: Certify
    distilled_folder: Path
    console: Console = field(default_factory=Console)
    starts: Sequence[Candidate] = ()
    """Candidates to try first beside the solver's, once they are repaired into the budgets."""
    _trials: dict[int, Trial] = field(default_factory=dict)
    _finished: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _queue: deque[Task] = field(default_factory=deque)
    _outstanding: int = 0
    _in_stage: int = 0
    _failed: int = 0
    _infeasible: int = 0
    _stage: str = TRIAL
    _finalists: list[Candidate] = field(default_factory=list)
    _stop_asked: bool = False
    _bar: Stage | None = None
    _scale: float = 1.0

    def run(self, history: Sequence[Mapping[str, Any]] = ()) -> list[Mapping[str, Any]]:
        """Carries the plan out, after `history`, the events of an earlier part of the same run.

        Returns the records of all measured students.

        Raises:
            TooManyFailuresError: more than 5 trials and more than 30 % of them failed.
            InterruptedSearchError: Ctrl-C; everything that finished is in the store.
            NoisyDeviceError: the machine was too noisy to measure any student.
        """
        self._started = time.monotonic()
        table = next((event["table"] for event in history if event["event"] == "choices_priced"), None)
        self._solver = Solver(
            self.pricer, self.repair.damage, None if table is None else EffectTable.from_json(table)
        )
        self._study = proposer(self.pricer, self.repair, self._solver, self.limits, self.plan)
        self._replay(history)
        if not self._trials:
            self._enqueue_seeds()
        with self._drained_on_interrupt():
            for round_number in range(1 + REPAIR_ROUNDS):
                self._evaluate()
                self._check_stopped()
                self._certify_all()
                if not self._needs_repair() or round_number == REPAIR_ROUNDS:
                    break
                self._plan_repair()
        return list(self._finished.values())

    def _replay(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Rebuilds what is known from events; a trial that had started but not finished runs first."""
        told: list[Told] = []
        started: dict[int, Candidate] = {}
        for event in history:
            kind = event["event"]
            if kind == "trial_started":
                started[event["trial"]] = Candidate.of(event["choices"])
            elif kind in ("trial_finished", "trial_failed", "trial_infeasible"):
                started.pop(event["trial"], None)
                told.append(self._remember(event))
            elif kind == "promoted":
                self._by_key(event["candidate"]).promoted_accuracy = event["accuracy"]
            elif kind == "certified":
                self._finished[event["candidate"]] = event["student"]
        self._study.replay(told)
        for candidate in started.values():
            self._study.enqueue(candidate)
        self._started_before = len(told)

    def _remember(self, event: Mapping[str, Any]) -> Told:
        candidate = Candidate.of(event["choices"])
        cost = self.pricer.price(candidate)
        values = None
        if event["event"] == "trial_finished":
            self._trials[event["trial"]] = Trial(event["trial"], candidate, cost, event["accuracy"])
            values = {"accuracy": event["accuracy"], **cost.to_json()}
        elif event["event"] == "trial_failed":
            self._failed += 1
            self._trials[event["trial"]] = Trial(event["trial"], candidate, cost)
        else:
            self._infeasible += 1
        return Told(event["trial"], candidate, values, None)

    def _enqueue_seeds(self) -> None:
        is_known = self._solver.table is not None
        found = self._solver.sweep(self.limits, SEEDS)
        if self._solver.table is not None and not is_known:
            self.store.append("choices_priced", table=self._solver.table.to_json())
        if found:
            self._decide(
                f"starting from {len(found)} candidates that keep the budgets at the least estimated damage, "
                "by integer programming"
            )
        else:
            found = self._repaired_seeds()
        repaired = map(self.repair, self.starts)
        started = [candidate for candidate in repaired if max(self._excess(candidate).values()) <= 0]
        for candidate in (*found, *started):
            self._study.enqueue(candidate)

    def _repaired_seeds(self) -> list[Candidate]:
        """Where the solver finds nothing: step by step towards the budgets, saying how near that comes."""

        def repairer(limits: Limits) -> Repairer:
            return Repairer(self.pricer, limits, self.repair.damage)

        found = seeds(self.pricer, repairer, self.limits, SEEDS)
        nearest = min(found, key=lambda candidate: max(self._excess(candidate).values()))
        excess = self._excess(nearest)
        binding = max(excess, key=lambda name: excess[name])
        miss = f"the nearest, {nearest.key}, is {excess[binding]:.1%} above the {NAMES[binding]} budget"
        self._decide(
            f"the solver finds nothing inside the budgets; starting from {len(found)} repaired candidates"
            + (f"; {miss}" if excess[binding] > 0 else "")
        )
        return found

    def _excess(self, candidate: Candidate) -> dict[str, float]:
        return self.limits.excess(self.pricer.price(candidate), upper=True)

    def _evaluate(self) -> None:
        first, total = (LABELS[TRIAL], self.plan.trials) if self._stage == TRIAL else (LABELS[FINAL], None)
        with self.console.stage(first, total) as self._bar:
            self._in_stage = len(self._queue)
            self.executor.run(self._ask, self._tell, self.stopped)

    def _ask(self) -> Task | Wait | None:
        if self._queue:
            task = self._queue.popleft()
        else:
            proposed = self._propose() if self._stage == TRIAL else None
            if proposed is None:
                if self._outstanding:
                    return WAIT
                return self._ask() if self._next_stage() else None
            task = proposed
        self._outstanding += 1
        return task

    def _propose(self) -> Task | None:
        """The next trial that keeps the budgets by its predicted cost; None when there is none left."""
        if len(self._trials) >= self.plan.trials or self._trial_time_is_over():
            return None
        for _ in range(REJECTIONS_IN_A_ROW):
            asked = self._study.ask()
            if asked is None:
                return None
            number, candidate = asked
            cost = self.pricer.price(candidate)
            common = {"trial": number, "candidate": candidate.key, "choices": candidate.to_json()}
            violated = self.limits.violated(cost, upper=True)
            if violated:
                self._infeasible += 1
                self.store.append("trial_infeasible", **common, predicted=cost.to_json(), violated=violated)
                self._study.tell(number, cost.to_json())
                continue
            self._trials[number] = Trial(number, candidate, cost)
            self.store.append("trial_started", **common)
            return Task(number, candidate.to_json(), TRIAL, {"epochs": self.plan.trial_epochs})
        self._decide(f"no candidate inside the budgets among the last {REJECTIONS_IN_A_ROW} proposals")
        return None

    def _tell(self, result: Result) -> None:
        self._outstanding -= 1
        trial = self._trials[result.trial]
        if result.stage == TRIAL:
            self._tell_trial(trial, result)
        elif not result.ok:
            self._decide(f"{result.stage} of {trial.candidate.key} failed: {result.error}")
        elif result.values.get("interrupted"):
            pass
        elif result.stage == PROMOTION:
            trial.promoted_accuracy = result.values["accuracy"]
            self.store.append(
                "promoted", candidate=trial.candidate.key, rung=1, accuracy=trial.promoted_accuracy,
                epochs=self.plan.promotion_epochs, seconds=result.seconds,
            )  # fmt: skip
        else:
            self.store.append(
                "distilled", candidate=trial.candidate.key, accuracy=result.values["accuracy"],
                epochs=self.plan.final_epochs, seconds=result.seconds,
            )  # fmt: skip
        self._show()

    def _tell_trial(self, trial: Trial, result: Result) -> None:
        common = {
            "trial": trial.number,
            "candidate": trial.candidate.key,
            "choices": trial.candidate.to_json(),
            "predicted": trial.cost.to_json(),
        }
        accuracy = result.values.get("accuracy", math.nan)
        if (
            not result.ok
            or not math.isfinite(accuracy)
            or not math.isfinite(result.values.get("loss", math.nan))
        ):
            reason = result.error or "its accuracy or loss is not a finite number"
            self.store.append("trial_failed", **common, reason=reason, detail=result.detail[-2000:])
            self._study.fail(trial.number)
            self._failed += 1
            self._check_failures(reason)
            return
        trial.accuracy = accuracy
        self.store.append("trial_finished", **common, **result.values, seconds=result.seconds)
        self._study.tell(trial.number, {"accuracy": accuracy, **trial.cost.to_json()})

    def _check_failures(self, reason: str) -> None:
        if self._failed > max(FAILURES_ALLOWED, FAILURE_SHARE * len(self._trials)):
            raise TooManyFailuresError(
                f"{self._failed} of {len(self._trials)} trials failed",
                why=f"the last one: {reason}",
                fix="read the trial_failed events of the run, or lock the layers involved in the space",
            )

    def _next_stage(self) -> bool:
        """Moves on; false when there is nothing more to evaluate."""
        if self._stage == TRIAL:
            self._stage = PROMOTION
            self._promote()
        elif self._stage == PROMOTION:
            self._stage = FINAL
            self._finalists = self._choose_finalists(self.plan.students)
            self._queue_finals()
        else:
            return False
        self._in_stage = len(self._queue)
        if self._bar is not None and self._queue:
            self._bar.restart(LABELS[self._stage], self._in_stage)
        return bool(self._queue) or self._next_stage()

    def _promote(self) -> None:
        wanted = PROMOTED_PER_STUDENT * self.plan.students
        known = [trial for trial in self._trials.values() if trial.accuracy is not None]
        chosen = ranked(known)[:wanted]
        if self.plan.promotion_epochs <= self.plan.trial_epochs or len(chosen) <= self.plan.students:
            return
        self._decide(
            f"{len(known)} candidates evaluated; training the best {len(chosen)} of them "
            f"{self.plan.promotion_epochs / max(self.plan.trial_epochs, 1e-9):.0f} times longer"
        )
        self._queue.extend(
            Task(trial.number, trial.candidate.to_json(), PROMOTION, {"epochs": self.plan.promotion_epochs})
            for trial in chosen
            if trial.promoted_accuracy is None
        )

    def _choose_finalists(self, count: int) -> list[Candidate]:
        promoted = [trial for trial in self._trials.values() if trial.promoted_accuracy is not None]
        pool = promoted or [trial for trial in self._trials.values() if trial.accuracy is not None]
        allowed = [trial for trial in pool if self._is_expected_to_fit(trial)]
        return [trial.candidate for trial in ranked(allowed)[:count]]

    def _is_expected_to_fit(self, trial: Trial) -> bool:
        """By its predicted cost, corrected by what was measured on the students so far."""
        latency = self.limits.latency_ms
        return latency is None or trial.cost.latency_ms * self._scale <= latency * LATENCY_HEADROOM

    def _queue_finals(self) -> None:
        todo = [
            candidate
            for candidate in self._finalists
            if candidate.key not in self._finished and not (self.distilled_folder / candidate.key).is_dir()
        ]
        if not todo:
            return
        epochs = self.plan.final_epochs
        self._decide(f"distilling {len(todo)} students for {epochs:g} epochs each")
        payload = {"epochs": epochs, "quantized_epochs": self.plan.quantized_epochs}
        self._queue.extend(
            Task(self._by_key(candidate.key).number, candidate.to_json(), FINAL, payload)
            for candidate in todo
        )

    def _certify_all(self) -> None:
        """Measures the distilled students; those that noise disturbed are measured again after the others.

        Raises NoisyDeviceError when the noise does not end and no student is certified.
        """
        waiting = [
            candidate
            for candidate in self._finalists
            if candidate.key not in self._finished and (self.distilled_folder / candidate.key).is_dir()
        ]
        noise: NoisyDeviceError | None = None
        for _ in range(NOISY_ROUNDS):
            waiting, noise = self._certify_each(waiting)
            if noise is None:
                return
        if noise is not None and not any(student["certified"] for student in self._finished.values()):
            raise noise
        self._decide(f"{len(waiting)} students could not be measured; resume the run on a calmer machine")

    def _certify_each(self, candidates: list[Candidate]) -> tuple[list[Candidate], NoisyDeviceError | None]:
        """The students whose measurement noise disturbed, and the last such error."""
        disturbed, noise = [], None
        for candidate in candidates:
            try:
                self._finished[candidate.key] = self.certify(candidate)
            except NoisyDeviceError as error:
                noise = error
                disturbed.append(candidate)
                self._decide(f"the measurement of {candidate.key} was disturbed: {error.why}")
            self._check_stopped()
        return disturbed, noise

    def _needs_repair(self) -> bool:
        return not any(student["certified"] for student in self._finished.values())

    def _plan_repair(self) -> None:
        """No student kept the budgets: choose others, with predictions corrected by what was measured."""
        ratios = [
            student["latency_ms_ci95"][1] / self._by_key(key).cost.latency_ms
            for key, student in self._finished.items()
        ]
        self._scale = max([1.0, *ratios])
        self._finalists = [
            candidate
            for candidate in self._choose_finalists(self.plan.students + len(self._finished))
            if candidate.key not in self._finished
        ][: self.plan.students]
        if self._finalists:
            self._decide(
                f"no student kept the budgets, latency came out up to {self._scale - 1:.1%} above the "
                f"prediction; trying {len(self._finalists)} candidates that leave that much room"
            )
        self._queue_finals()

    def _by_key(self, key: str) -> Trial:
        return next(trial for trial in self._trials.values() if trial.candidate.key == key)

    def _trial_time_is_over(self) -> bool:
        limit = self.plan.time_limit_s
        return limit is not None and time.monotonic() - self._started > 0.4 * limit

    def _decide(self, text: str) -> None:
        self.store.append("decision", text=text)
        self.console.say(text)

    def show_step(self, what: str, done: int, total: int) -> None:
        """Says how far the training of the candidate under way is."""
        if total and done % max(1, total // 50) == 0:
            self._show(f", {what} {done / total:.0%}")

    def _show(self, step: str = "") -> None:
        if self._bar is None:
            return
        done = [trial for trial in self._trials.values() if trial.accuracy is not None]
        best = max((trial.best_known for trial in done), default=math.nan)
        note = f"best feasible {best:.2%}, hypervolume {self._hypervolume(done):.3f}"
        note += f", {self._infeasible} infeasible, {self._study.duplicates} duplicates, {self._failed} failed"
        note += step
        if self._stage == TRIAL:
            self._bar.update(len(done) + self._failed, self.plan.trials, note)
        else:
            self._bar.update(self._in_stage - len(self._queue) - self._outstanding, self._in_stage, note)

    def _hypervolume(self, trials: list[Trial]) -> float:
        """Of (error, latency) under the teacher's latency and an error of 1, as a share."""
        reference = self.pricer.teacher.latency_ms
        points = [(1 - trial.best_known, trial.cost.latency_ms / reference) for trial in trials]
        return hypervolume(points, (1.0, 1.0)) if points else 0.0

    def stopped(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._stop_asked

    def _check_stopped(self) -> None:
        if self._stop_asked:
            raise InterruptedSearchError(
                "stopped; everything that finished is kept",
                fix=f"go on with: autocompress resume {self.store.paths.root}",
            )

    @contextmanager
    def _drained_on_interrupt(self) -> Iterator[None]:
        """The first Ctrl-C lets what is under way finish; the second one ends at once."""

        def interrupt(_signal: int, _frame: FrameType | None) -> None:
            if self._stop_asked:
                raise KeyboardInterrupt
            self._stop_asked = True
            self.console.say("stopping after what is under way; press Ctrl-C again to stop at once")

        try:
            before = signal.signal(signal.SIGINT, interrupt)
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
