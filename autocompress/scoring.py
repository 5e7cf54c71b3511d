"""The scores of a search: each single choice is a task of the executor, recorded as soon as it is known."""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from autocompress.budgets import Limits
from autocompress.candidate import Candidate, Option
from autocompress.evaluation import Executor, Result, Task
from autocompress.pricing import Pricer, Repairer
from autocompress.progress import Console
from autocompress.quality.evaluator import SCORE
from autocompress.quality.one_shot import OneShot
from autocompress.quality.scores import MEASURES, Damage, Ranking, choices_to_score, described, ranked
from autocompress.quality.student import Workshop
from autocompress.run_store import RunStore
from autocompress.solver import MOST_DAMAGE, Solver
from autocompress.transforms.sampling import random_candidate

SCORE_MACS = 2e13
"""What scoring may take: ten minutes or so of one core, less for small networks."""
SCORE_SHARE = 0.15
"""Of the time limit, where there is one."""
TIMED_IMAGES = 32
PROBES, PROBE_IMAGES = 16, 256


@dataclass
class Scoring:
    """Scores the free choices of a space once a run, on whatever workers the executor has."""

    workshop: Workshop
    pricer: Pricer
    limits: Limits
    store: RunStore
    executor: Executor
    console: Console
    seed: int = 0
    time_limit_s: float | None = None

    def damage(self, history: Sequence[Mapping[str, Any]]) -> Damage:
        """By the measure that ranks joint candidates best. What `history` has is not computed again."""
        known = next((event for event in history if event["event"] == "scored"), None)
        if known is not None:
            return {(name, option): value for name, option, value in known["damage"]}
        started, images = time.monotonic(), self._images()
        scores = self._scores(history, images)
        seconds = time.monotonic() - started
        rankings = self._rankings(scores, images)
        best = rankings[0].measure
        self.store.append(
            "scored",
            damage=[[name, option, value] for (name, option), value in scores[best].items()],
            measure=best,
            rankings=[asdict(ranking) for ranking in rankings],
        )
        text = f"scored {len(scores[best])} choices in {seconds:.0f} s on {images} images each"
        text += f"; {described(rankings)}"
        self.store.append("decision", text=text)
        self.console.say(text)
        return scores[best]

    def _scores(self, history: Sequence[Mapping[str, Any]], images: int) -> dict[str, Damage]:
        choices = list(choices_to_score(self.workshop.bound))
        found: dict[tuple[str, Option], Mapping[str, float]] = {
            (event["site"], event["option"]): event["damage"]
            for event in history
            if event["event"] == "choice_scored"
        }
        payload = {"images": images}
        todo = deque(
            Task(number, Candidate.of([choice]).to_json(), SCORE, payload)
            for number, choice in enumerate(choices)
            if choice not in found
        )

        def tell(result: Result) -> None:
            site, option = choices[result.trial]
            found[site, option] = _finite(result)
            failure = {} if result.ok else {"reason": result.error, "detail": result.detail[-2000:]}
            self.store.append(
                "choice_scored", site=site, option=option, damage=found[site, option], **failure
            )
            stage.update(len(found), len(choices))

        with self.console.stage("scoring choices", len(choices)) as stage:
            self.executor.run(lambda: todo.popleft() if todo else None, tell, lambda: False)
        return {measure: {choice: found[choice][measure] for choice in choices} for measure in MEASURES}

    def _rankings(self, scores: Mapping[str, Damage], images: int) -> list[Ranking]:
        """How well each measure ranks random candidates inside the budgets by their loss in one shot."""
        pricer, rng = self.pricer, random.Random(self.seed)
        one_shot = OneShot(self.workshop, images=PROBE_IMAGES, fit_images=images)
        repair = Repairer(pricer, self.limits, {})
        drawn = (repair(random_candidate(self.workshop.bound, rng)) for _ in range(PROBES))
        probes = list({probe.key: probe for probe in drawn}.values())
        losses = [one_shot(probe).evaluation.loss for probe in probes]
        return ranked({name: Solver(pricer, one).harm for name, one in scores.items()}, probes, losses)

    def _images(self) -> int:
        """Fewer for large networks: all choices together get a fixed number of multiply-adds, or a share of
        the time limit, by the speed of the teacher."""
        choices = sum(len(site.options) for site in self.workshop.bound.free)
        affordable = SCORE_MACS / (2 * choices * max(1, self.pricer.teacher.macs))
        if self.time_limit_s is not None:
            limit = SCORE_SHARE * self.time_limit_s
            affordable = min(affordable, limit / (2 * choices * self._image_s()))
        return 2 ** min(max(int(math.log2(max(affordable, 1))), 5), 8)

    def _image_s(self) -> float:
        """Seconds of the teacher for an image, in a batch."""
        images, _ = next(iter(self.workshop.data.calibration.batches(TIMED_IMAGES)))
        started = time.perf_counter()
        with torch.inference_mode():
            self.workshop.teacher(images)
        return (time.perf_counter() - started) / len(images)


def _finite(result: Result) -> dict[str, float]:
    """By measure. What could not be scored is taken for as bad as the solver takes anything to be."""
    values = {measure: float(result.values.get(measure, math.nan)) for measure in MEASURES}
    return {name: value if math.isfinite(value) else MOST_DAMAGE for name, value in values.items()}
