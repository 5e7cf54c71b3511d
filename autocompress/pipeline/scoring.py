"""The scores of a search: each single choice is a task of the executor, recorded as soon as it is known.

So are pairs of choices, where the solver's answer hurts much more than the sum of its choices.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from autocompress.cost.pricer import Pricer
from autocompress.cost.repair import Repairer
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Option
from autocompress.problem.data import Data
from autocompress.progress import Console
from autocompress.runs.events import (
    ChoiceScored,
    ChoicesPriced,
    Decision,
    JointScored,
    PairsScored,
    Scored,
    ScoringStarted,
)
from autocompress.runs.in_process import BROUGHT_DOWN, Crash
from autocompress.runs.store import RunRecord, RunStore
from autocompress.runs.tasks import Executor, Job, Result, Stage, Tell, one_line
from autocompress.search.failures import Failures
from autocompress.search.proposers.pair_terms import most_scored, pair_terms
from autocompress.search.proposers.solver import MOST_DAMAGE, Pairs, Solver, pairs_of_rows
from autocompress.search.replay import LONGEST_DETAIL
from autocompress.students.builder import StudentBuilder
from autocompress.students.one_shot import OneShot
from autocompress.students.sensitivity import MEASURES, Damage, Ranking, choices_to_score, described, ranked
from autocompress.transforms.sampling import random_candidate

log = logging.getLogger("autocompress")

SCORE_MACS = 2e13
"""What scoring may take: ten minutes or so of one core, less for small networks."""
SCORE_SHARE = 0.15
"""Of the time limit, where there is one."""
LEARNING_SHARE = 0.25
"""Of the time limit, after which neither pairs are scored nor choices that learn from the teacher first."""
OUT_OF_TIME = "no time was left to score it"
TIMED_IMAGES, TIMED_RUNS = 32, 3
PROBES, PROBE_IMAGES = 16, 256
LENGTH = 10.0
"""Of a task: the first of a process also reads the data and runs the teacher."""


@dataclass(frozen=True)
class Scores:
    """Hold what each single choice loses, by `measure`, each seen on so many `images`."""

    damage: Damage
    measure: str
    images: int


@dataclass(frozen=True)
class Scoring:
    """Score the free choices of a space once a run, on whatever workers the executor has.

    `crash` is what brought the last process of this run down.
    """

    builder: StudentBuilder
    pricer: Pricer
    limits: Limits
    store: RunStore
    executor: Executor
    console: Console
    seed: int = 0
    time_limit_s: float | None = None
    crash: Crash | None = None
    started: float = field(default_factory=time.monotonic)

    def singles(self, history: RunRecord) -> Scores:
        """Score single choices by the measure that ranks joint candidates best. What `history` has is not
        computed again."""
        known, begun = history.first(Scored), history.first(ScoringStarted)
        images = self._images() if begun is None else begun.images
        if known is not None:
            damage = {(name, option): value for name, option, value in known.damage}
            return Scores(damage, known.measure, images)
        if begun is None:
            self.store.append(ScoringStarted(images=images))
        found = _Found(history)
        self._score(found, images)
        rankings = self._rankings(found.by_measure, images)
        best = rankings[0].measure
        damage = found.by_measure[best]
        self.store.append(
            Scored(
                damage=tuple((name, option, value) for (name, option), value in damage.items()),
                measure=best,
                rankings=tuple(asdict(ranking) for ranking in rankings),
            )
        )
        failed = f", {found.failed} of which failed" if found.failed else ""
        failed += f", {found.left_out} left out for want of time" if found.left_out else ""
        text = f"scored {len(damage) - found.left_out} choices in {found.seconds:.0f} s of work"
        self._say(f"{text} on {images} images each{failed}; {described(rankings)}")
        return Scores(damage, best, images)

    def pairs(self, history: RunRecord, scores: Scores) -> Pairs:
        """Score what pairs of choices lose beyond their sum, where that matters; see `pair_terms`. The run
        keeps what single choices cost, which is found on the way."""
        known = history.first(PairsScored)
        if known is not None:
            return pairs_of_rows(known.pairs)
        if not self._has_time():
            self._say("no pairs of choices are scored: there is no time for them")
            self.store.append(PairsScored(pairs=()))
            return {}
        solver, joint = Solver(self.pricer, scores.damage), _Joint(self, history, scores)
        said = {decision.text for decision in history.decisions}

        def say(text: str) -> None:
            if text not in said:
                self._say(text)

        found = pair_terms(solver, self.limits, joint.damage, say)
        rows = tuple((*one, *other, term) for (one, other), term in found.items())
        if solver.table is not None:
            self.store.append(ChoicesPriced(table=solver.table.to_json()))
        self.store.append(PairsScored(pairs=rows))
        return found

    def _say(self, text: str) -> None:
        self.store.append(Decision(text=text))
        self.console.say(text)

    def _score(self, found: _Found, images: int) -> None:
        """Compute what is not found yet. Raises TooManyFailuresError where scores fail from the start."""
        choices = list(choices_to_score(self.builder.bound))
        failures = Failures(self.store.paths.root, "choices", "choice_scored", only_alike=False)

        def tell(result: Result) -> None:
            found.add(self._recorded(choices[result.trial], result))
            if not result.ok:
                failures.add(result.error, len(found.damage) - found.failed)

        todo = {
            number: Candidate.of([choice])
            for number, choice in enumerate(choices)
            if choice not in found.damage
        }
        learned = {number: one for number, one in todo.items() if self._learns(choices[number])}
        quick = {number: one for number, one in todo.items() if number not in learned}
        self.run("scoring choices", quick, images, tell, len(choices) - len(learned))
        if learned:
            self.run("scoring choices that learn", learned, images, tell, len(learned), self._has_time)
        for number in learned:
            if choices[number] not in found.damage:
                found.add(self._recorded(choices[number], Result(number, False, error=OUT_OF_TIME)))

    def _learns(self, choice: tuple[str, Option]) -> bool:
        """Return whether what replaces a part of the teacher learns from that part first."""
        site = self.builder.bound.by_name[choice[0]]
        return site.kind in ("block", "structure") and choice[1] != "drop"

    def _has_time(self) -> bool:
        if self.time_limit_s is None:
            return True
        return time.monotonic() - self.started < LEARNING_SHARE * self.time_limit_s

    def run(
        self,
        label: str,
        candidates: Mapping[int, Candidate],
        images: int,
        tell: Tell,
        total: int,
        goes_on: Callable[[], bool] = lambda: True,
    ) -> None:
        """Score candidates by their numbers, as long as it `goes_on`. What brought the last process down is
        told as failed."""
        payload = {"images": images}
        todo = deque(
            Job(number, candidate.to_json(), Stage.SCORE, payload, LENGTH)
            for number, candidate in candidates.items()
        )
        crash = self.crash
        if crash is not None and crash.stage == Stage.SCORE:
            for task in [task for task in todo if task.candidate == crash.candidate]:
                todo.remove(task)
                tell(Result(task.trial, False, error=crash.reason, detail=crash.text))
        done = total - len(todo)
        with self.console.stage(label, total, "trials") as stage:

            def told(result: Result) -> None:
                nonlocal done
                tell(result)
                done += 1
                stage.update(done, total)

            self.executor.run(lambda: todo.popleft() if todo and goes_on() else None, told, lambda: False)

    def _recorded(self, choice: tuple[str, Option], result: Result) -> ChoiceScored:
        reason, detail = _failure(result)
        event = ChoiceScored(
            site=choice[0], option=choice[1], damage=_finite(result), seconds=result.seconds,
            reason=reason, detail=detail,
        )  # fmt: skip
        self.store.append(event)
        return event

    def _rankings(self, scores: Mapping[str, Damage], images: int) -> list[Ranking]:
        """Measure how well each measure ranks random candidates inside the budgets by their loss in one
        shot."""
        pricer, rng = self.pricer, random.Random(self.seed)
        one_shot = OneShot(self.builder, images=PROBE_IMAGES, fit_images=images)
        repair = Repairer(pricer, self.limits, {})
        drawn = (repair(random_candidate(self.builder.bound, rng)) for _ in range(PROBES))
        probes = list({probe.key: probe for probe in drawn}.values())
        losses = {probe: loss for probe in probes if math.isfinite(loss := _loss(one_shot, probe))}
        harms = {name: Solver(pricer, one).harm for name, one in scores.items()}
        return ranked(harms, list(losses), list(losses.values()))

    def _images(self) -> int:
        """Return how many images to score with, fewer for large networks: all choices together get a fixed
        number of multiply-adds, or a share of the time limit, by the speed of the teacher."""
        choices = sum(len(site.options) for site in self.builder.bound.free)
        choices += most_scored(choices)
        affordable = SCORE_MACS / (2 * choices * max(1, self.pricer.teacher.macs))
        if self.time_limit_s is not None:
            limit = SCORE_SHARE * self.time_limit_s
            each_s = image_s(self.builder.teacher, self.builder.data)
            affordable = min(affordable, limit / (2 * choices * each_s))
        return 2 ** min(max(int(math.log2(max(affordable, 1))), 5), 8)


def image_s(module: nn.Module, data: Data) -> float:
    """Return the seconds that a network takes for an image, in a batch, when it is least disturbed."""
    images, _ = next(iter(data.calibration.batches(TIMED_IMAGES)))
    times = []
    with torch.inference_mode():
        for _ in range(TIMED_RUNS):
            started = time.perf_counter()
            module(images)
            times.append(time.perf_counter() - started)
    return min(times) / len(images)


class _Found:
    """Hold the scores so far. Those that failed in an earlier part of the run, but for one that brought its
    process down, are forgotten, so that they are tried once more."""

    def __init__(self, history: RunRecord) -> None:
        self.damage: dict[tuple[str, Option], Mapping[str, float]] = {}
        self.seconds, self.failed, self.left_out = 0.0, 0, 0
        for event in history.of(ChoiceScored):
            if not _may_succeed(event):
                self.add(event)

    def add(self, event: ChoiceScored) -> None:
        self.damage[event.site, event.option] = event.damage
        self.seconds += event.seconds
        self.left_out += event.reason == OUT_OF_TIME
        self.failed += event.reason not in (None, OUT_OF_TIME)

    @property
    def by_measure(self) -> dict[str, Damage]:
        return {name: {choice: one[name] for choice, one in self.damage.items()} for name in MEASURES}


def _loss(one_shot: OneShot, probe: Candidate) -> float:
    """Return the loss, NaN for a candidate that fails, as one may in a trial."""
    try:
        return one_shot(probe).evaluation.loss
    except Exception as error:
        log.warning("the candidate %s tells nothing about the scores: %s", probe.key, one_line(error))
        return math.nan


def _may_succeed(event: ChoiceScored | JointScored) -> bool:
    """Return whether a failed score is worth another try."""
    return event.reason is not None and not event.reason.startswith(BROUGHT_DOWN)


def _finite(result: Result) -> dict[str, float]:
    """Return the damage by measure. What could not be scored is taken for as bad as the solver takes anything
    to be."""
    values = {measure: float(result.values.get(measure, math.nan)) for measure in MEASURES}
    return {
        name: min(value, MOST_DAMAGE) if math.isfinite(value) else MOST_DAMAGE
        for name, value in values.items()
    }


class _Joint:
    """Find damages of joint candidates by the measure that is used, as tasks of the executor; each is
    recorded."""

    def __init__(self, scoring: Scoring, history: RunRecord, scores: Scores) -> None:
        self.scoring, self.scores = scoring, scores
        self.known: dict[str, float] = {
            event.candidate: event.damage for event in history.of(JointScored) if not _may_succeed(event)
        }

    def damage(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the damage of each; what could not be scored is as bad as the solver takes anything to
        be."""
        missing = dict(enumerate(one for one in candidates if one.key not in self.known))
        scoring = self.scoring

        def tell(result: Result) -> None:
            one = missing[result.trial]
            self.known[one.key] = _finite(result)[self.scores.measure]
            reason, detail = _failure(result)
            scoring.store.append(
                JointScored(
                    candidate=one.key,
                    choices=one.to_json(),
                    damage=self.known[one.key],
                    seconds=result.seconds,
                    reason=reason,
                    detail=detail,
                )
            )

        if missing:
            scoring.run("scoring pairs", missing, self.scores.images, tell, len(missing))
        return [self.known[one.key] for one in candidates]


def _failure(result: Result) -> tuple[str | None, str | None]:
    """Return (reason, end of the traceback); None where it did not fail."""
    return (None, None) if result.ok else (result.error, result.detail[-LONGEST_DETAIL:])
