"""What proposes the candidates of a search: the engine, or one of Optuna's samplers in a `Study`."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from autocompress.cost.repair import Repairer
from autocompress.errors import InputError
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate
from autocompress.search.proposers.bayesian import Engine
from autocompress.search.proposers.optuna_study import SAMPLERS as OPTUNA
from autocompress.search.proposers.optuna_study import Study, Told
from autocompress.search.proposers.solver import Solver

ENGINE = "engine"
SAMPLERS = (ENGINE, *OPTUNA)
WORTH_BEYOND_LIMIT = 30.0
"""How far beyond the limit hypervolume is measured: the more, the more accuracy just inside it counts."""
IDEAS, DOUBT = 2, 0.5
_MOST_LISTED = 2_500


class Proposer(Protocol):
    """Propose candidates, and be told what became of them; see `optuna_study.Study`."""

    duplicates: int

    @property
    def queued(self) -> bool: ...
    def enqueue(self, candidate: Candidate) -> bool: ...
    def ask(self) -> tuple[int, Candidate] | None: ...
    def tell(self, trial_number: int, values: Mapping[str, float]) -> None: ...
    def fail(self, trial_number: int) -> None: ...
    def replay(self, trials: Iterable[Told]) -> None: ...


def proposer(
    sampler: str,
    seed: int,
    solver: Solver,
    repair: Repairer,
    limits: Limits,
    beyond: float = WORTH_BEYOND_LIMIT,
) -> Proposer:
    """Return the sampler of this name. The engine measures hypervolume from `beyond` times the latency limit.

    Raises InputError for a sampler that does not exist.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"unknown sampler {sampler!r}", fix=f"known: {', '.join(SAMPLERS)}")
    if sampler == ENGINE:
        return _engine(seed, solver, repair, limits, beyond)
    return Study(
        solver.pricer.bound.free,
        objectives=("accuracy", "latency_ms"),
        limits=limits,
        sampler=sampler,
        seed=seed,
        canonical=repair,
    )


def _engine(seed: int, solver: Solver, repair: Repairer, limits: Limits, beyond: float) -> Engine:
    pricer = solver.pricer

    def price(candidate: Candidate) -> dict[str, float]:
        cost = pricer.price(candidate).to_json()
        return {name: max(float(cost[name]), 1e-9) for name in cost if name != "latency_ms_ci95"}

    def expected_damage(candidate: Candidate) -> tuple[float, float]:
        harm = solver.harm(candidate)
        return harm, math.sqrt(harm)

    largest = limits.latency_ms or pricer.teacher.latency_ms
    return Engine(
        pricer.bound.free,
        price,
        allowed=lambda candidate: not limits.violated(pricer.price(candidate), upper=True),
        canonical=pricer.bound.canonical,
        trusted=expected_damage,
        ideas=Ideas(solver, repair, limits),
        largest_cost=beyond * largest,
        seed=seed,
        listed_up_to=_MOST_LISTED,
    )


@dataclass
class Ideas:
    """Hold what the solver answers when it doubts the scores: for damages drawn around them, and other
    limits."""

    solver: Solver
    repair: Repairer
    limits: Limits

    def __call__(self, rng: random.Random) -> Iterator[Candidate]:
        for _ in range(IDEAS):
            doubted = {
                choice: value * math.exp(rng.gauss(0.0, DOUBT))
                for choice, value in self.solver.damage.items()
            }
            answer = self.solver.guess(self.limits.scaled(rng.uniform(0.5, 1.0)), doubted)
            if answer is not None:
                yield self.repair(answer)
