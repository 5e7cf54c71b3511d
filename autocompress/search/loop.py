"""The loop: ask → price → evaluate → tell → promote → finish → certify.

The parts that decide (study, pricing, repair) never train and the parts that train never decide.
Everything that happens is an event in the run store before it is acted upon, so a search that is
killed at any moment goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from autocompress.cost.marginal import EffectTable
from autocompress.cost.pricer import Pricer
from autocompress.cost.repair import Repairer
from autocompress.files import JsonObject
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Cost
from autocompress.progress import Console, ProgressBar
from autocompress.runs.events import (
    ChoicesPriced,
    Decision,
    Distilled,
    Event,
    Promoted,
    TrialFailed,
    TrialFinished,
    TrialInfeasible,
    TrialStarted,
)
from autocompress.runs.in_process import Crash, read_crash
from autocompress.runs.store import RunStore
from autocompress.runs.student import Student
from autocompress.runs.tasks import WAIT, Executor, Job, Result, Stage, Wait
from autocompress.search.failures import Failures
from autocompress.search.finalists import Certify, Finalists
from autocompress.search.halving import Plan
from autocompress.search.interrupt import Interrupt
from autocompress.search.proposers.samplers import proposer
from autocompress.search.proposers.seeds import starting_points
from autocompress.search.proposers.solver import Pairs, Solver
from autocompress.search.replay import LONGEST_DETAIL, Past, record_crash, replay
from autocompress.search.stages import Stages
from autocompress.search.time_budget import TimeBudget
from autocompress.search.trials import Trial, Trials

REPAIR_ROUNDS = 2
REJECTIONS_IN_A_ROW = 200
SHOWN_EVERY_S = 0.3
TRIALS_A_TRIM = 10
THEN = {
    Stage.TRIAL: "longer training",
    Stage.PROMOTION: "final distillation",
    Stage.FINAL: "measuring",
}
LABELS = {
    Stage.TRIAL: "trials",
    Stage.PROMOTION: "longer training",
    Stage.FINAL: "final distillation",
}


@dataclass(frozen=True, eq=False)
class Setting:
    """Hold what a search works with.

    `certify` examines a distilled candidate; `starts` are candidates to try first beside the solver's, once
    they are repaired into the budgets; `crash` is what brought the last process of this run down, where that
    was read before.
    """

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
    pairs: Pairs = field(default_factory=dict)
    crash: Crash | None = None


class Search:
    """One search over one run store. `run()` returns when the plan is carried out."""

    def __init__(self, setting: Setting, history: Sequence[Event] = ()) -> None:
        """Take over `history`, the events of an earlier part of the same run."""
        self.setting, plan = setting, setting.plan
        self._started = time.monotonic()
        self._teller = _Teller(setting)
        self.interrupt = Interrupt(setting.store.paths.root, setting.console.say)
        table = next((event.table for event in history if isinstance(event, ChoicesPriced)), None)
        priced = None if table is None else EffectTable.from_json(table)
        self._solver = Solver(setting.pricer, setting.repair.damage, priced, setting.pairs)
        self._study = proposer(plan.sampler, plan.seed, self._solver, setting.repair, setting.limits)
        self._trials = Trials(setting.pricer.teacher.latency_ms)
        self._time_budget = TimeBudget(plan)
        self._past = self._taken_over(history)
        self._failures = Failures(setting.store.paths.root, "trials", "trial_failed", count=self._past.failed)
        self._finalists = Finalists(
            setting.certify, setting.limits, self._decide, self.interrupt.check, self._past.students
        )
        too_few_asked = self._past.enough is not None or len(self._trials) >= plan.trials
        self._stages = Stages(
            plan, self._trials, self._time_budget, self._finalists, self._solver,
            setting.distilled_folder, self._teller, self._past.lost,
            enlarged=bool(self._past.started) and too_few_asked,
        )  # fmt: skip
        self._infeasible, self._enough = self._past.infeasible, self._past.enough
        self._outstanding = 0
        self._display = _Display(self)

    def _taken_over(self, history: Sequence[Event]) -> Past:
        past = replay(history, Past(self._trials, self.setting.pricer.price), self.setting.plan.trials)
        crash = self.setting.crash or read_crash(self.setting.store.paths.crash)
        if crash is not None:
            record_crash(crash, past, self.setting.store)
        return past

    def run(self) -> list[Student]:
        """Carry the plan out; return the records of all measured students.

        A trial that had started in an earlier part of the run and did not finish runs first.

        Raises:
            TooManyFailuresError: more than 5 trials and more than 30 % of them failed, or the first 3
                failed alike.
            InterruptedSearchError: Ctrl-C; everything that finished is in the store.
            NoisyDeviceError: the machine was too noisy to measure any student.
            AutocompressError: no student could be measured, for what it says of the last one.
        """
        self._started = time.monotonic()
        self._study.replay(self._past.told)
        for candidate in self._past.started.values():
            self._study.enqueue(candidate)
        if not len(self._trials):
            self._enqueue_seeds()
        with self.interrupt.listening():
            for round_number in range(1 + REPAIR_ROUNDS):
                self._evaluate()
                self.interrupt.check()
                self._finalists.measure(self._stages.waiting(distilled=True))
                self._finalists.check_any_measured()
                if self._finalists.has_any or round_number == REPAIR_ROUNDS:
                    break
                self._plan_repair()
        return list(self._finalists.students.values())

    def show_step(self, what: str, done: int, total: int) -> None:
        """Say how far the training of the candidate under way is."""
        if total and done % max(1, total // 50) == 0:
            self._display.show(f", {what} {done / total:.0%}")

    def _enqueue_seeds(self) -> None:
        setting, is_known = self.setting, self._solver.table is not None
        found, what = starting_points(self._solver, setting.limits)
        if self._solver.table is not None and not is_known:
            setting.store.append(ChoicesPriced(table=self._solver.table.to_json()))
        self._decide(what)
        inside = [
            candidate
            for candidate in map(setting.repair, setting.starts)
            if not setting.limits.violated(setting.pricer.price(candidate), upper=True)
        ]
        for candidate in (*found, *inside):
            self._study.enqueue(candidate)

    def _evaluate(self) -> None:
        with self._display.of_stages():
            self.setting.executor.run(self._ask, self._tell, self.interrupt.asked)

    def _ask(self) -> Job | Wait | None:
        stages = self._stages
        task = stages.queue.popleft() if stages.queue else None
        if task is None and stages.stage == Stage.TRIAL:
            task = self._propose()
        if task is None:
            if self._outstanding:
                return WAIT
            return self._ask() if self._next_stage() else None
        self._outstanding += 1
        return task

    def _propose(self) -> Job | None:
        """Return the next trial that keeps the budgets by its predicted cost; None when none is left."""
        limits, store = self.setting.limits, self.setting.store
        for _ in range(REJECTIONS_IN_A_ROW):
            asked = None if self._has_enough() else self._study.ask()
            if asked is None:
                return None
            number, candidate = asked
            choices, cost = candidate.to_json(), self.setting.pricer.price(candidate)
            violated = limits.violated(cost, upper=True)
            if not violated:
                self._trials.add(number, candidate, cost)
                store.append(TrialStarted(trial=number, candidate=candidate.key, choices=choices))
                return Job(number, choices, Stage.TRIAL, self._trial_payload(cost))
            self._infeasible += 1
            store.append(
                TrialInfeasible(
                    trial=number,
                    candidate=candidate.key,
                    choices=choices,
                    predicted=cost,
                    violated=tuple(violated),
                )
            )
            self._study.tell(number, cost.to_json())
        self._decide(f"no candidate inside the budgets among the last {REJECTIONS_IN_A_ROW} proposals")
        return None

    def _trial_payload(self, cost: Cost) -> JsonObject:
        """Return what the evaluator needs. Without training a trial may end early: when it cannot reach the
        best that is as fast."""
        payload: dict[str, Any] = {"epochs": self.setting.plan.trial_epochs}
        if self.setting.plan.trial_epochs > 0:
            return payload
        best = self._trials.best_as_fast_as(cost)
        rival = None if best is None else {"key": best.candidate.key, "accuracy": best.accuracy}
        return {**payload, "rival": rival}

    def _tell(self, result: Result) -> None:
        self._outstanding -= 1
        trial = self._trials[result.trial]
        if result.stage == Stage.TRIAL:
            self._tell_trial(trial, result)
        else:
            self._stages.tell(trial, result)
        self._display.show()

    def _tell_trial(self, trial: Trial, result: Result) -> None:
        values = result.values
        accuracy = values.get("accuracy", math.nan)
        if not (result.ok and math.isfinite(accuracy) and math.isfinite(values.get("loss", math.nan))):
            self._tell_failure(trial, result)
            return
        self._trials.finish(trial, accuracy)
        self.setting.store.append(
            TrialFinished(
                trial=trial.number,
                candidate=trial.candidate.key,
                choices=trial.candidate.to_json(),
                predicted=trial.cost,
                accuracy=accuracy,
                accuracy_std_err=values.get("accuracy_std_err"),
                loss=values["loss"],
                images=values.get("images"),
                stopped=values.get("stopped"),
                seconds=result.seconds,
            )
        )
        self._study.tell(trial.number, {"accuracy": accuracy, **trial.cost.to_json()})
        if len(self._trials) % TRIALS_A_TRIM == 0:
            _give_memory_back()
        volume = self._trials.front_hypervolume()
        self._time_budget.saw_trial(result.seconds, volume, values.get("images", 0))

    def _tell_failure(self, trial: Trial, result: Result) -> None:
        reason = result.error or "its accuracy or loss is not a finite number"
        self.setting.store.append(
            TrialFailed(
                trial=trial.number,
                candidate=trial.candidate.key,
                choices=trial.candidate.to_json(),
                predicted=trial.cost,
                reason=reason,
                detail=result.detail[-LONGEST_DETAIL:],
            )
        )
        self._study.fail(trial.number)
        self._failures.add(reason, len(self._trials.known))
        self._failures.check_share(len(self._trials))

    def _next_stage(self) -> bool:
        """Move on; False when there is nothing more to evaluate."""
        self._display.show(at_once=True)
        while self._stages.advance(self._enough, self._elapsed_s()):
            if self._stages.queue:
                self._display.restart()
                return True
        return False

    def _has_enough(self) -> bool:
        """Return whether no further trial is worth starting; keep the reason."""
        if self._stages.enlarged:
            return not self._study.queued
        if self._enough is None and len(self._trials) >= self.setting.plan.trials:
            self._enough = f"{len(self._trials.known)} candidates evaluated, as many as were asked for"
        if self._enough is None:
            self._enough = self._time_budget.reason_to_move_on(self._elapsed_s())
        return self._enough is not None

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def _plan_repair(self) -> None:
        """Choose others where no student kept the budgets, by predictions that measurements corrected."""
        told = self._finalists.learn(lambda key: self._trials.of(key).cost)
        why = f"no student kept the budgets{told and f', {told}'}"
        if not self._stages.choose_again(self._elapsed_s(), why):
            self._find_room(why)

    def _find_room(self, why: str) -> None:
        """Go back to trials where none leaves that much room: the solver's answers to tighter budgets."""
        found, _ = starting_points(self._solver, self._finalists.tightened())
        price = self.setting.pricer.price
        inside = (one for one in found if self._finalists.is_expected_to_fit(price(one)))
        for candidate in islice(inside, self.setting.plan.students):
            self._study.enqueue(candidate)
        if self._study.queued:
            self._decide(f"{why}, and no trial leaves that much room; trying others that do")
            self._stages.back_to_trials()

    def _decide(self, text: str) -> None:
        self._teller(Decision(text=text))


@dataclass(frozen=True)
class _Teller:
    """Record events; say decisions, too."""

    setting: Setting

    def __call__(self, event: Decision | Promoted | Distilled) -> None:
        self.setting.store.append(event)
        if isinstance(event, Decision):
            self.setting.console.say(event.text)


class _Display:
    """The progress of a search on the console."""

    def __init__(self, search: Search) -> None:
        self._search, self._bar = search, ProgressBar(search.setting.console, "", None)
        self._in_stage, self._shown = 0, -math.inf

    @contextlib.contextmanager
    def of_stages(self) -> Any:
        """Show a bar while the stages are under way."""
        search = self._search
        stage = Stage.TRIAL if search._stages.stage == Stage.TRIAL else Stage.FINAL
        total = self._trials_asked if stage == Stage.TRIAL else None
        with search.setting.console.stage(LABELS[stage], total, THEN[stage]) as self._bar:
            self._in_stage = len(search._stages.queue)
            yield

    @property
    def _trials_asked(self) -> int | None:
        """Return how many trials there will be at most; None where the time decides."""
        plan = self._search.setting.plan
        return None if plan.time_limit_s is not None else max(plan.trials, len(self._search._trials))

    def restart(self) -> None:
        """Begin a bar for the stage that was just queued."""
        stages = self._search._stages
        self._in_stage = len(stages.queue)
        self._bar.restart(LABELS[stages.stage], self._in_stage, THEN[stages.stage])

    def show(self, step: str = "", *, at_once: bool = False) -> None:
        """Show the state, at most a few times a second: with many trials it takes longer than telling one."""
        if not at_once and time.monotonic() - self._shown < SHOWN_EVERY_S:
            return
        self._shown = time.monotonic()
        search = self._search
        stages, trials, failed = search._stages, search._trials, search._failures.count
        done = trials.known
        best = max((trial.best_known for trial in done), default=math.nan)
        note = f"best feasible {best:.2%}, hypervolume {trials.hypervolume():.3f}"
        counts = {
            "infeasible": search._infeasible,
            "duplicates": search._study.duplicates,
            "failed": failed,
        }
        note = ", ".join([note, *(f"{count} {what}" for what, count in counts.items() if count)]) + step
        if stages.stage == Stage.TRIAL:
            self._bar.update(len(done) + failed, self._trials_asked, note)
        else:
            left = len(stages.queue) + search._outstanding
            self._bar.update(self._in_stage - left, self._in_stage, note)


def _give_memory_back() -> None:
    """Let the C library return what was freed to the system, where it can. Else it keeps the pages of every
    trial's tensors and of the surrogate's growing matrices."""
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
