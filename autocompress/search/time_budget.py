"""How a search spends its time: when it has tried enough, how long to train, how many go on. Decides only.

Everything follows from what was measured so far: seconds of trials and of epochs, growth of the front. Each
decision comes with its reason in words, for the record of the run.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from autocompress.search.halving import Plan, Rung

TRIAL_SHARE, RUNG_SHARE = 0.4, 0.3
"""Of the time limit, and of what then is left: what trials and rungs may take. Distillation gets the rest."""
PATIENCE_SHARE = 1 / 3
"""Of all trials, those without growth of the front after which no more are made."""
GROWTH = 1e-3
PASSES_A_STEP = 3.0
"""A training step costs about three forward passes."""
FINAL_SHARE = 0.9
"""Of the time that is left for distillation: exporting and measuring take some, too."""


@dataclass
class TimeBudget:
    """Say what to do next, told what things took and what they brought. Times count from the start."""

    plan: Plan
    _trial_s: list[float] = field(default_factory=list)
    _epoch_s: list[float] = field(default_factory=list)
    _image_s: list[float] = field(default_factory=list)
    _volume: float = 0.0
    unchanged: int = 0
    """How many of the last trials together let the front's hypervolume grow by less than 0.1 %."""

    def saw_trial(self, seconds: float, hypervolume: float, images: int = 0) -> None:
        """Record that a trial took `seconds` and left the front at `hypervolume`; without training it saw
        `images`."""
        self._trial_s.append(seconds)
        if hypervolume > (1 + GROWTH) * self._volume:
            self._volume, self.unchanged = hypervolume, 0
        else:
            self.unchanged += 1
        if self.plan.trial_epochs > 0:
            self.saw_training(seconds, self.plan.trial_epochs)
        elif images:
            self._image_s.append(seconds / images)

    def saw_training(self, seconds: float, epochs: float) -> None:
        if epochs > 0:
            self._epoch_s.append(seconds / epochs)

    @property
    def epoch_s(self) -> float | None:
        """Return the seconds of an epoch on one worker: the median of the last few measured, else three
        forward passes for every image, else unknown."""
        if self._epoch_s:
            return statistics.median(self._epoch_s[-9:])
        if self._image_s and self.plan.epoch_images:
            return PASSES_A_STEP * self.plan.epoch_images * statistics.median(self._image_s)
        return None

    def reason_to_move_on(self, elapsed_s: float) -> str | None:
        """Say why no further trial is worth starting; None while one is."""
        known = len(self._trial_s)
        limit = self.plan.time_limit_s
        if limit is not None and elapsed_s > TRIAL_SHARE * limit:
            each = f", {statistics.median(self._trial_s):.2g} s each" if self._trial_s else ""
            return (
                f"{known} candidates evaluated{each}; {elapsed_s:.0f} of {limit:.0f} s are gone, "
                f"{TRIAL_SHARE:.0%} of which were for this"
            )
        patience = self.plan.patience
        if patience is not None and self.unchanged >= max(patience, PATIENCE_SHARE * known):
            return f"{known} candidates evaluated; front unchanged for {self.unchanged}"
        return None

    def affordable(self, rungs: Sequence[Rung], elapsed_s: float) -> tuple[tuple[Rung, ...], str]:
        """Return (the rungs, with fewer candidates where the time that is left is too short, why).

        A rung that would only hold as many candidates as there will be students is left out.
        """
        left, epoch_s = self._left_s(elapsed_s), self.epoch_s
        if left is None or epoch_s is None or not rungs:
            return tuple(rungs), ""
        needed, room = epoch_s * _epochs(rungs) / self.plan.workers, RUNG_SHARE * left
        if needed <= room:
            return tuple(rungs), f"{needed:.0f} of {left:.0f} s left, at {epoch_s:.2g} s an epoch"
        fewer = [replace(rung, count=int(rung.count * room / needed)) for rung in rungs]
        kept = tuple(rung for rung in fewer if rung.count > self.plan.students)
        return kept, f"{left:.0f} s are left and an epoch takes {epoch_s:.2g} s"

    def final_epochs(self, students: int, elapsed_s: float) -> tuple[float, float, str]:
        """Return (epochs, of those in 8 bits besides, why) for each student; fewer where time is short."""
        plan, left, epoch_s = self.plan, self._left_s(elapsed_s), self.epoch_s
        if left is None or epoch_s is None or not students:
            return plan.final_epochs, plan.quantized_epochs, ""
        wanted = plan.final_epochs + plan.quantized_epochs
        rounds = -(-students // plan.workers)
        affordable = FINAL_SHARE * left / (epoch_s * rounds)
        why = f"{left:.0f} s are left and an epoch takes {epoch_s:.2g} s"
        if affordable >= wanted:
            return plan.final_epochs, plan.quantized_epochs, why
        share = max(affordable, plan.least_epochs) / wanted
        return share * plan.final_epochs, share * plan.quantized_epochs, why

    def _left_s(self, elapsed_s: float) -> float | None:
        return None if self.plan.time_limit_s is None else max(0.0, self.plan.time_limit_s - elapsed_s)


def _epochs(rungs: Sequence[Rung]) -> float:
    """Count all epochs of all rungs: each one goes on where the one below stopped."""
    before, total = 0.0, 0.0
    for rung in rungs:
        total += rung.count * (rung.epochs - before)
        before = rung.epochs
    return total
