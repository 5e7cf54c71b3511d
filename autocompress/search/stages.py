"""Decide on longer training: the rungs of successive halving, then the finalists' distillation."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autocompress.device.measure.statistics import rank_correlation
from autocompress.problem.candidate import Candidate
from autocompress.runs.events import Decision, Distilled, Promoted
from autocompress.runs.tasks import Job, Result, Stage
from autocompress.search.finalists import Finalists
from autocompress.search.halving import Plan, Rung, ranked, rungs, with_favourite
from autocompress.search.proposers.solver import Solver
from autocompress.search.time_budget import TimeBudget
from autocompress.search.trials import Trial, Trials

FEWEST_TO_RANK = 8
ONE_SHOT_EPOCHS = 0.01
"""What a trial in one shot counts as when time limits follow from epochs."""


@dataclass
class Stages:
    """Hold what follows the trials, as tasks in `queue`; `record` writes an event, and says a decision.

    `lost` are the keys of candidates that go no further; `enlarged` says that trials that leave more room
    were asked for, after students that do not keep the budgets.
    """

    plan: Plan
    trials: Trials
    time_budget: TimeBudget
    finalists: Finalists
    solver: Solver
    distilled_folder: Path
    record: Callable[[Decision | Promoted | Distilled], None]
    lost: set[str]
    enlarged: bool = False
    stage: Stage = Stage.TRIAL
    queue: deque[Job] = field(default_factory=deque)
    chosen: list[Candidate] = field(default_factory=list)
    final_epochs: float = 0.0
    _rungs: tuple[Rung, ...] = ()
    _rung: int = 0

    def advance(self, reason: str | None, elapsed_s: float) -> bool:
        """Move to the next stage and queue its tasks; False when there is none. `reason` ended the trials."""
        if self.stage == Stage.TRIAL:
            self.stage = Stage.PROMOTION
            self._plan_rungs(reason, elapsed_s)
        elif self.stage == Stage.FINAL:
            return False
        if self._rung < len(self._rungs):
            self._queue_rung()
        else:
            self.stage = Stage.FINAL
            self.chosen = self._choose_finalists(self.plan.students)
            self._queue_finals(elapsed_s)
        return True

    def back_to_trials(self) -> None:
        """Begin anew with trials that leave more room."""
        self.stage, self._rung, self.enlarged = Stage.TRIAL, 0, True

    def choose_again(self, elapsed_s: float, why: str) -> bool:
        """Queue other finalists, by predictions corrected by what was measured; False where there is none."""
        known = self.finalists.tried
        chosen = self._choose_finalists(self.plan.students + len(known))
        self.chosen = [one for one in chosen if one.key not in known][: self.plan.students]
        if self.chosen:
            self._decide(f"{why}; trying {len(self.chosen)} candidates that leave that much room")
            self._queue_finals(elapsed_s)
        return bool(self.chosen)

    def waiting(self, *, distilled: bool) -> list[Candidate]:
        """Return the finalists that were not measured yet, those that are, or are not, distilled."""
        return [
            candidate
            for candidate in self.chosen
            if candidate.key not in self.finalists.tried
            and (self.distilled_folder / candidate.key).is_dir() == distilled
        ]

    def tell(self, trial: Trial, result: Result) -> None:
        """Take over what a longer training brought."""
        key = trial.candidate.key
        if not result.ok:
            what = "training longer" if result.stage == Stage.PROMOTION else "the last distillation"
            self._decide(f"{what} of {key} failed: {result.error}")
        elif result.values.get("interrupted"):
            pass
        elif result.stage == Stage.PROMOTION:
            self._tell_rung(trial, result)
        else:
            accuracy = result.values["accuracy"]
            self.record(
                Distilled(candidate=key, accuracy=accuracy, epochs=self.final_epochs, seconds=result.seconds)
            )

    def _tell_rung(self, trial: Trial, result: Result) -> None:
        rung, accuracy = self._rungs[self._rung - 1], result.values["accuracy"]
        key = trial.candidate.key
        if not math.isfinite(accuracy):
            self._decide(f"{key} goes no further: its accuracy is not a finite number")
            return
        trial.trained[rung.epochs] = accuracy
        self.time_budget.saw_training(result.seconds, result.values.get("trained_epochs", 0.0))
        self.record(
            Promoted(
                candidate=key, rung=self._rung, accuracy=accuracy, epochs=rung.epochs, seconds=result.seconds
            )
        )

    def _plan_rungs(self, enough: str | None, elapsed_s: float) -> None:
        if self.enlarged and self._rungs:
            return
        known = self.trials.known
        self._judge_scores(known)
        asked = rungs(self.plan, len(known))
        self._rungs, why = self.time_budget.affordable(asked, elapsed_s)
        reason = enough or f"{len(known)} candidates evaluated"
        steps = ", ".join(f"{rung.count} to {rung.epochs:.2g} epochs" for rung in self._rungs)
        plan = f"training {steps}" if self._rungs else f"distilling the best {self.plan.students} at once"
        text = f"{reason} → {plan}" + (f" ({why})" if why else "")
        self.record(Decision(text=text, reason=reason, trials=self.plan.trials))

    def _judge_scores(self, known: list[Trial]) -> None:
        """Say how well the scores of single choices foretold what the trials found."""
        if not self.solver.damage or len(known) < FEWEST_TO_RANK:
            return
        sensitivities = [-self.solver.harm(trial.candidate) for trial in known]
        correlation = rank_correlation(sensitivities, [trial.best_known for trial in known])
        self._decide(f"summed scores rank the {len(known)} trials at {correlation:.2f}")

    def _queue_rung(self) -> None:
        """Queue the best of the rung below, without those that were on this one before an interruption.

        The candidate of the least summed score is on the first rung whatever its trial found, since trials
        are less sure of what training makes of a candidate than their accuracies look.
        """
        rung, below = self._rungs[self._rung], self._rungs[self._rung - 1].epochs if self._rung else 0.0
        self._rung += 1
        known = self._with_room() if self.enlarged else self._sound()
        pool = [trial for trial in known if math.isfinite(trial.at(below))]
        chosen = ranked(pool, below, rung.count)
        if below == 0 and self.solver.damage:
            chosen = with_favourite(chosen, pool, lambda trial: self.solver.harm(trial.candidate))
        for trial in (trial for trial in chosen if trial.epochs < rung.epochs):
            before = max((epochs for epochs in trial.trained if epochs < rung.epochs), default=0.0)
            payload = {"epochs": rung.epochs, "before": before, "rung": self._rung}
            length = self._length(rung.epochs - before)
            self.queue.append(Job(trial.number, trial.candidate.to_json(), Stage.PROMOTION, payload, length))

    def _choose_finalists(self, count: int) -> list[Candidate]:
        """Return the best of the highest rung that are expected to fit, then those of the rungs below."""
        fitting = self._with_room()
        order: list[Trial] = []
        for epochs in (*(rung.epochs for rung in reversed(self._rungs)), 0.0):
            taken = {trial.number for trial in order}
            pool = [t for t in fitting if math.isfinite(t.at(epochs)) and t.number not in taken]
            order += ranked(pool, epochs)
        return [trial.candidate for trial in order[:count]]

    def _with_room(self) -> list[Trial]:
        """Return the trials that are expected to keep the budgets once they are measured."""
        return [trial for trial in self._sound() if self.finalists.is_expected_to_fit(trial.cost)]

    def _sound(self) -> list[Trial]:
        """Return the trials but for those whose longer training brought a process down."""
        return [trial for trial in self.trials.known if trial.candidate.key not in self.lost]

    def _queue_finals(self, elapsed_s: float) -> None:
        todo = self.waiting(distilled=False)
        if not todo:
            return
        self.final_epochs, quantized, why = self.time_budget.final_epochs(len(todo), elapsed_s)
        students = "1 student" if len(todo) == 1 else f"{len(todo)} students"
        text = f"distilling {students} for {self.final_epochs:.3g} epochs each"
        self._decide(f"{text}: {why}" if why else text)
        payload = {"epochs": self.final_epochs, "quantized_epochs": quantized}
        length = self._length(self.final_epochs + quantized)
        self.queue.extend(
            Job(self.trials.of(candidate.key).number, candidate.to_json(), Stage.FINAL, payload, length)
            for candidate in todo
        )

    def _length(self, epochs: float) -> float:
        """Return how much longer than a trial a training may take."""
        return max(1.0, epochs / (self.plan.trial_epochs or ONE_SHOT_EPOCHS))

    def _decide(self, text: str) -> None:
        self.record(Decision(text=text))
