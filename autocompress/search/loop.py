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
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from autocompress.cost.marginal import EffectTable
from autocompress.cost.pricer import Pricer, Repairer
from autocompress.device.measure.statistics import rank_correlation
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Cost
from autocompress.progress import Console, ProgressBar
from autocompress.runs.failures import Failures
from autocompress.runs.in_process import Crash, read_crash
from autocompress.runs.interrupt import Interrupt
from autocompress.runs.store import RunStore
from autocompress.runs.tasks import WAIT, Executor, Result, Stage, Task, Wait
from autocompress.search.finalists import Certified, Certify
from autocompress.search.halving import Plan, Rung, ranked, rungs, with_favourite
from autocompress.search.proposers.optuna_study import Told
from autocompress.search.proposers.samplers import proposer
from autocompress.search.proposers.seeds import starting_points
from autocompress.search.proposers.solver import Pairs, Solver
from autocompress.search.time_budget import Agent
from autocompress.search.trials import Trial, Trials

FEWEST_TO_RANK = 8
REPAIR_ROUNDS = 2
REJECTIONS_IN_A_ROW = 200
SHOWN_EVERY_S = 0.3
TRIALS_A_TRIM = 10
LABELS = {Stage.TRIAL: "trials", Stage.PROMOTION: "longer training", Stage.FINAL: "final distillation"}


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
    pairs: Pairs = field(default_factory=dict)
    crash: Crash | None = None
    """What brought the last process of this run down, where that was read before."""
    interrupt: Interrupt = field(init=False)
    _queue: deque[Task] = field(default_factory=deque)
    _outstanding: int = 0
    _in_stage: int = 0
    _infeasible: int = 0
    _stage: Stage = Stage.TRIAL
    _enough: str | None = None
    _enlarged: bool = False
    """Whether trials that leave more room were asked for, after students that do not keep the budgets."""
    _rungs: tuple[Rung, ...] = ()
    _rung: int = 0
    _finalists: list[Candidate] = field(default_factory=list)
    _lost: set[str] = field(default_factory=set)
    _final_epochs: float = 0.0
    _bar: ProgressBar | None = None
    _shown: float = -math.inf

    def __post_init__(self) -> None:
        self.interrupt = Interrupt(self.store.paths.root, self.console.say)

    def run(self, history: Sequence[Mapping[str, Any]] = ()) -> list[Mapping[str, Any]]:
        """Carries the plan out, after `history`, the events of an earlier part of the same run.

        Returns the records of all measured students.

        Raises:
            TooManyFailuresError: more than 5 trials and more than 30 % of them failed, or the first 3
                failed alike.
            InterruptedSearchError: Ctrl-C; everything that finished is in the store.
            NoisyDeviceError: the machine was too noisy to measure any student.
            AutocompressError: no student could be measured, for what it says of the last one.
        """
        self._started = time.monotonic()
        self._trials = Trials(self.pricer.teacher.latency_ms)
        self._agent = Agent(self.plan)
        self._failures = Failures(self.store.paths.root, "trials", "trial_failed")
        self._certified = Certified(self.certify, self.limits, self._decide, self.interrupt.check)
        table = next((event["table"] for event in history if event["event"] == "choices_priced"), None)
        priced = None if table is None else EffectTable.from_json(table)
        self._solver = Solver(self.pricer, self.repair.damage, priced, self.pairs)
        self._study = proposer(self.plan.sampler, self.plan.seed, self._solver, self.repair, self.limits)
        self._replay(history)
        if not len(self._trials):
            self._enqueue_seeds()
        with self.interrupt.listening():
            for round_number in range(1 + REPAIR_ROUNDS):
                self._evaluate()
                self.interrupt.check()
                self._certified.measure(self._waiting(distilled=True))
                self._certified.check_any_measured()
                if self._certified.has_any or round_number == REPAIR_ROUNDS:
                    break
                self._plan_repair()
        return list(self._certified.students.values())

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
                self._trials.of(event["candidate"]).trained[event["epochs"]] = event["accuracy"]
            elif kind == "brought_down":
                self._lost.add(event["candidate"])
            elif kind == "certified":
                self._certified.students[event["candidate"]] = event["student"]
            elif kind == "decision" and event.get("trials") == self.plan.trials:
                self._enough = event["reason"]
        crash = self.crash or read_crash(self.store.paths.crash)
        if crash is not None:
            told += self._crashed(crash, started)
        self._enlarged = bool(started) and (self._enough is not None or len(self._trials) >= self.plan.trials)
        self._study.replay(told)
        for candidate in started.values():
            self._study.enqueue(candidate)

    def _crashed(self, crash: Crash, started: dict[int, Candidate]) -> list[Told]:
        """Records what brought the last process down, so that it is not tried once more: a trial, taken from
        `started`, or the longer training of a candidate, which then goes no further."""
        what = {"reason": crash.reason, "detail": crash.text[-2000:]}
        if crash.stage in (Stage.PROMOTION, Stage.FINAL):
            key = Candidate.of(crash.candidate).key
            self.store.append("brought_down", candidate=key, stage=crash.stage, **what)
            self._lost.add(key)
            return []
        number = next((n for n, one in started.items() if one.to_json() == crash.candidate), None)
        if number is None:
            return []
        candidate = started.pop(number)
        event = self.store.append(
            "trial_failed", trial=number, candidate=candidate.key, choices=candidate.to_json(),
            predicted=self.pricer.price(candidate).to_json(), **what,
        )  # fmt: skip
        return [self._remember(event)]

    def _remember(self, event: Mapping[str, Any]) -> Told:
        candidate = Candidate.of(event["choices"])
        cost = self.pricer.price(candidate)
        values = None
        if event["event"] == "trial_finished":
            self._trials.finish(self._trials.add(event["trial"], candidate, cost), event["accuracy"])
            values = {"accuracy": event["accuracy"], **cost.to_json()}
        elif event["event"] == "trial_failed":
            self._failures.count += 1
            self._trials.add(event["trial"], candidate, cost)
        else:
            self._infeasible += 1
        return Told(event["trial"], candidate, values, None)

    def _enqueue_seeds(self) -> None:
        is_known = self._solver.table is not None
        found, what = starting_points(self._solver, self.limits)
        if self._solver.table is not None and not is_known:
            self.store.append("choices_priced", table=self._solver.table.to_json())
        self._decide(what)
        inside = [
            candidate
            for candidate in map(self.repair, self.starts)
            if not self.limits.violated(self.pricer.price(candidate), upper=True)
        ]
        for candidate in (*found, *inside):
            self._study.enqueue(candidate)

    def _evaluate(self) -> None:
        first, total = (
            (LABELS[Stage.TRIAL], self.plan.trials)
            if self._stage == Stage.TRIAL
            else (LABELS[Stage.FINAL], None)
        )
        with self.console.stage(first, total) as self._bar:
            self._in_stage = len(self._queue)
            self.executor.run(self._ask, self._tell, self.interrupt.asked)

    def _ask(self) -> Task | Wait | None:
        if self._queue:
            task = self._queue.popleft()
        else:
            proposed = self._propose() if self._stage == Stage.TRIAL else None
            if proposed is None:
                if self._outstanding:
                    return WAIT
                return self._ask() if self._next_stage() else None
            task = proposed
        self._outstanding += 1
        return task

    def _propose(self) -> Task | None:
        """The next trial that keeps the budgets by its predicted cost; None when there is none left."""
        for _ in range(REJECTIONS_IN_A_ROW):
            if self._has_enough():
                return None
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
            self._trials.add(number, candidate, cost)
            self.store.append("trial_started", **common)
            return Task(number, candidate.to_json(), Stage.TRIAL, self._trial_payload(cost))
        self._decide(f"no candidate inside the budgets among the last {REJECTIONS_IN_A_ROW} proposals")
        return None

    def _trial_payload(self, cost: Cost) -> dict[str, Any]:
        """Without training a trial may end early: when it cannot reach the best that is as fast."""
        payload: dict[str, Any] = {"epochs": self.plan.trial_epochs}
        if self.plan.trial_epochs > 0:
            return payload
        best = self._trials.best_as_fast_as(cost)
        rival = None if best is None else {"key": best.candidate.key, "accuracy": best.accuracy}
        return {**payload, "rival": rival}

    def _tell(self, result: Result) -> None:
        self._outstanding -= 1
        trial = self._trials[result.trial]
        if result.stage == Stage.TRIAL:
            self._tell_trial(trial, result)
        elif not result.ok:
            self._decide(f"{result.stage} of {trial.candidate.key} failed: {result.error}")
        elif result.values.get("interrupted"):
            pass
        elif result.stage == Stage.PROMOTION:
            self._tell_rung(trial, result)
        else:
            self.store.append(
                "distilled", candidate=trial.candidate.key, accuracy=result.values["accuracy"],
                epochs=self._final_epochs, seconds=result.seconds,
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
            self._failures.add(reason, len(self._trials.known))
            self._failures.check_share(len(self._trials))
            return
        self._trials.finish(trial, accuracy)
        self.store.append("trial_finished", **common, **result.values, seconds=result.seconds)
        self._study.tell(trial.number, {"accuracy": accuracy, **trial.cost.to_json()})
        if len(self._trials) % TRIALS_A_TRIM == 0:
            _give_memory_back()
        volume = self._trials.front_hypervolume()
        self._agent.saw_trial(result.seconds, volume, result.values.get("images", 0))

    def _tell_rung(self, trial: Trial, result: Result) -> None:
        rung, accuracy = self._rungs[self._rung - 1], result.values["accuracy"]
        if not math.isfinite(accuracy):
            self._decide(f"{trial.candidate.key} goes no further: its accuracy is not a finite number")
            return
        trial.trained[rung.epochs] = accuracy
        self._agent.saw_training(result.seconds, result.values.get("trained_epochs", 0.0))
        self.store.append(
            "promoted", candidate=trial.candidate.key, rung=self._rung, accuracy=accuracy,
            epochs=rung.epochs, seconds=result.seconds,
        )  # fmt: skip

    def _next_stage(self) -> bool:
        """Moves on; false when there is nothing more to evaluate."""
        self._shown = -math.inf
        self._show()
        if self._stage == Stage.TRIAL:
            self._stage = Stage.PROMOTION
            self._plan_rungs()
        elif self._stage == Stage.FINAL:
            return False
        if self._rung < len(self._rungs):
            self._queue_rung()
        else:
            self._stage = Stage.FINAL
            self._finalists = self._choose_finalists(self.plan.students)
            self._queue_finals()
        self._in_stage = len(self._queue)
        if self._bar is not None and self._queue:
            self._bar.restart(LABELS[self._stage], self._in_stage)
        return bool(self._queue) or self._next_stage()

    def _has_enough(self) -> bool:
        """Whether no further trial is worth starting; keeps the reason."""
        if self._enlarged:
            return not self._study.queued
        if self._enough is None and len(self._trials) >= self.plan.trials:
            self._enough = f"{len(self._trials.known)} candidates evaluated, as many as were asked for"
        if self._enough is None:
            self._enough = self._agent.reason_to_move_on(self._elapsed_s())
        return self._enough is not None

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def _plan_rungs(self) -> None:
        if self._enlarged and self._rungs:
            return
        known = self._trials.known
        self._judge_scores(known)
        asked = rungs(self.plan, len(known))
        self._rungs, why = self._agent.affordable(asked, self._elapsed_s())
        reason = self._enough or f"{len(known)} candidates evaluated"
        steps = ", ".join(f"{rung.count} to {rung.epochs:.2g} epochs" for rung in self._rungs)
        plan = f"promoting {steps}" if self._rungs else f"distilling the best {self.plan.students} at once"
        text = f"{reason} → {plan}" + (f" ({why})" if why else "")
        self._decide(text, reason=reason, trials=self.plan.trials)

    def _judge_scores(self, known: list[Trial]) -> None:
        """Says how well the scores of single choices foretold what the trials found."""
        if not self.repair.damage or len(known) < FEWEST_TO_RANK:
            return
        harms = [-self._solver.harm(trial.candidate) for trial in known]
        correlation = rank_correlation(harms, [trial.best_known for trial in known])
        self._decide(f"summed scores rank the {len(known)} trials at {correlation:.2f}")

    def _queue_rung(self) -> None:
        """The best of the rung below, those left out that were on this one before an interruption.

        The candidate of the least summed score is on the first rung whatever its trial found, since trials
        are less sure of what training makes of a candidate than their accuracies look.
        """
        rung, below = self._rungs[self._rung], self._rungs[self._rung - 1].epochs if self._rung else 0.0
        self._rung += 1
        known = self._with_room() if self._enlarged else self._sound()
        pool = [trial for trial in known if math.isfinite(trial.at(below))]
        chosen = ranked(pool, below, rung.count)
        if below == 0 and self.repair.damage:
            chosen = with_favourite(chosen, pool, lambda trial: self._solver.harm(trial.candidate))
        for trial in (trial for trial in chosen if trial.epochs < rung.epochs):
            before = max((epochs for epochs in trial.trained if epochs < rung.epochs), default=0.0)
            payload = {"epochs": rung.epochs, "before": before, "rung": self._rung}
            length = self._length(rung.epochs - before)
            self._queue.append(
                Task(trial.number, trial.candidate.to_json(), Stage.PROMOTION, payload, length)
            )

    def _choose_finalists(self, count: int) -> list[Candidate]:
        """The best of the highest rung that are expected to fit, then those of the rungs below."""
        fitting = self._with_room()
        order: list[Trial] = []
        for epochs in (*(rung.epochs for rung in reversed(self._rungs)), 0.0):
            taken = {trial.number for trial in order}
            pool = [t for t in fitting if math.isfinite(t.at(epochs)) and t.number not in taken]
            order += ranked(pool, epochs)
        return [trial.candidate for trial in order[:count]]

    def _with_room(self) -> list[Trial]:
        """The trials that are expected to keep the budgets once they are measured."""
        return [trial for trial in self._sound() if self._certified.is_expected_to_fit(trial.cost)]

    def _sound(self) -> list[Trial]:
        """The trials but for those whose longer training brought a process down."""
        return [trial for trial in self._trials.known if trial.candidate.key not in self._lost]

    def _queue_finals(self) -> None:
        todo = self._waiting(distilled=False)
        if not todo:
            return
        self._final_epochs, quantized, why = self._agent.final_epochs(len(todo), self._elapsed_s())
        students = "1 student" if len(todo) == 1 else f"{len(todo)} students"
        text = f"distilling {students} for {self._final_epochs:.3g} epochs each"
        self._decide(f"{text}: {why}" if why else text)
        payload = {"epochs": self._final_epochs, "quantized_epochs": quantized}
        length = self._length(self._final_epochs + quantized)
        self._queue.extend(
            Task(self._trials.of(candidate.key).number, candidate.to_json(), Stage.FINAL, payload, length)
            for candidate in todo
        )

    def _length(self, epochs: float) -> float:
        """How much longer than a trial a training may take; a trial in one shot counts as 0.01 epochs."""
        return max(1.0, epochs / (self.plan.trial_epochs or 0.01))

    def _waiting(self, distilled: bool) -> list[Candidate]:
        """The finalists that were not measured yet, those that are, or are not, distilled."""
        return [
            candidate
            for candidate in self._finalists
            if candidate.key not in self._certified.tried
            and (self.distilled_folder / candidate.key).is_dir() == distilled
        ]

    def _plan_repair(self) -> None:
        """No student kept the budgets: choose others, with predictions corrected by what was measured."""
        told = self._certified.learn(lambda key: self._trials.of(key).cost)
        why = f"no student kept the budgets{told and f', {told}'}"
        known = self._certified.tried
        chosen = self._choose_finalists(self.plan.students + len(known))
        self._finalists = [one for one in chosen if one.key not in known][: self.plan.students]
        if self._finalists:
            self._decide(f"{why}; trying {len(self._finalists)} candidates that leave that much room")
            self._queue_finals()
        else:
            self._find_room(why)

    def _find_room(self, why: str) -> None:
        """No trial leaves that much room: back to trials, with the solver's answers to tighter budgets."""
        found, _ = starting_points(self._solver, self._certified.tightened())
        inside = (one for one in found if self._certified.is_expected_to_fit(self.pricer.price(one)))
        for candidate in islice(inside, self.plan.students):
            self._study.enqueue(candidate)
        if self._study.queued:
            self._decide(f"{why}, and no trial leaves that much room; trying others that do")
            self._stage, self._rung, self._enlarged = Stage.TRIAL, 0, True

    def _decide(self, text: str, **fields: Any) -> None:
        self.store.append("decision", text=text, **fields)
        self.console.say(text)

    def show_step(self, what: str, done: int, total: int) -> None:
        """Says how far the training of the candidate under way is."""
        if total and done % max(1, total // 50) == 0:
            self._show(f", {what} {done / total:.0%}")

    def _show(self, step: str = "") -> None:
        """At most a few times a second: with many trials it takes longer than telling a result."""
        if self._bar is None or time.monotonic() - self._shown < SHOWN_EVERY_S:
            return
        self._shown = time.monotonic()
        done = self._trials.known
        best = max((trial.best_known for trial in done), default=math.nan)
        note = f"best feasible {best:.2%}, hypervolume {self._trials.hypervolume():.3f}"
        failed = self._failures.count
        note += f", {self._infeasible} infeasible, {self._study.duplicates} duplicates, {failed} failed{step}"
        if self._stage == Stage.TRIAL:
            total = max(self.plan.trials, len(self._trials))
            self._bar.update(len(done) + failed, total, note)
        else:
            self._bar.update(self._in_stage - len(self._queue) - self._outstanding, self._in_stage, note)


def _give_memory_back() -> None:
    """Lets the C library return what was freed to the system, where it can. Else it keeps the pages of every
    trial's tensors and of the surrogate's growing matrices."""
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
