"""Ask and tell: which candidate to try next, by Optuna. The only file that imports optuna.

The study decides and never trains. It lives in memory; the run store is the truth, and `replay`
rebuilds a study from it. Widths, ranks and bits are ordered parameters, blocks are categories;
sites with one option are none. No candidate is proposed twice.
"""

from __future__ import annotations

import itertools
import math
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from autocompress.errors import InputError
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Option, Site

MAXIMIZED = ("accuracy",)
MINIMIZED = ("loss", "latency_ms", "peak_memory_bytes", "file_bytes", "packed_bytes", "macs", "parameters")

_REPEATS = 10
_STEPS = 1_000
_ENUMERABLE = 100_000
_LARGEST_EXCESS = 1e9


@dataclass(frozen=True)
class Told:
    """A finished trial as the run store knows it; `values` is None for one that failed."""

    trial: int
    candidate: Candidate
    values: Mapping[str, float] | None
    constraints: Mapping[str, float] | None = None


@dataclass(frozen=True)
class _Pending:
    trial: Any
    candidate: Candidate
    as_asked: bool


class Study:
    """Propose candidates for `sites`, minimising or maximising `objectives` under `limits`.

    `sampler` is one of SAMPLERS. `canonical` maps a proposal to the candidate that is meant by it
    (moot choices removed, repaired into the budgets); it must be deterministic. Equal arguments
    and equal answers give equal proposals.

    Raises InputError for an unknown objective or sampler.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        objectives: Sequence[str] = ("accuracy", "latency_ms"),
        limits: Limits | None = None,
        sampler: str = "tpe",
        seed: int = 0,
        canonical: Callable[[Candidate], Candidate] | None = None,
    ) -> None:
        self.sites = tuple(site for site in sites if len(site.options) > 1 and not site.locked)
        self.objectives = tuple(objectives)
        self._limits, self._sampler_name, self._seed = limits, sampler, seed
        self._canonical = canonical or (lambda candidate: candidate)
        self._random = random.Random(seed)
        self._distributions = {site.name: _distribution(site) for site in self.sites}
        self._decoders = [
            (site.name, _decoder(site), site.default) for site in sorted(self.sites, key=lambda s: s.name)
        ]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            directions=[_direction(name) for name in self.objectives], sampler=_sampler(sampler, seed)
        )
        self._pending: dict[int, _Pending] = {}
        self._seen: set[str] = set()
        self._next_trial = 0
        self.duplicates = 0
        """Proposals of the sampler that had been proposed before, and were passed over."""

    def enqueue(self, candidate: Candidate) -> bool:
        """Propose `candidate` before anything else; return False, and do nothing, if it is known
        already."""
        if self._canonical(candidate).key in self._seen:
            return False
        self._study.enqueue_trial(self._params(candidate))
        return True

    @property
    def queued(self) -> bool:
        """Return whether a candidate that was enqueued waits to be proposed."""
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def ask(self) -> tuple[int, Candidate] | None:
        """Return the number of a new trial and its candidate; None when every candidate has been proposed.

        The candidate names only the sites that differ from the teacher.
        """
        for _ in range(_REPEATS):
            trial = self._study.ask(self._distributions)
            asked = self._candidate(trial.params)
            candidate = self._canonical(asked)
            if candidate.key not in self._seen:
                return self._start(trial, asked, candidate)
            self.duplicates += 1
            self._study.tell(trial, state=TrialState.FAIL)
        unseen = self._unseen_near(asked)
        if unseen is None:
            return None
        self._study.enqueue_trial(self._params(unseen))
        return self._start(self._study.ask(self._distributions), unseen, self._canonical(unseen))

    def tell(
        self,
        trial_number: int,
        values: Mapping[str, float],
        constraints: Mapping[str, float] | None = None,
    ) -> None:
        """Record the result of a trial that `ask` proposed.

        `values` gives every objective; for a candidate that breaks a constraint, those that are
        maximised may be missing. `constraints` are ≤ 0 where kept; without them they follow from
        the limits and `values`. A value that is not finite makes the trial a failed one.
        """
        constraints = self._constraints(values, constraints)
        numbers = self._numbers(values, constraints)
        pending = self._take(trial_number)
        if not all(map(math.isfinite, numbers)):
            self._study.tell(pending.trial, state=TrialState.FAIL)
        elif pending.as_asked:
            self._complete(pending.trial, numbers, constraints)
        else:
            self._study.tell(pending.trial, state=TrialState.FAIL)
            self._add(pending.candidate, numbers, constraints)

    def fail(self, trial_number: int) -> None:
        """Record that a trial has no result; its candidate is not proposed again."""
        self._study.tell(self._take(trial_number).trial, state=TrialState.FAIL)

    def replay(self, trials: Iterable[Told]) -> None:
        """Take over trials finished earlier, as if they had been asked for and told now.

        The sampler starts from another seed, so that it does not repeat its first proposals.
        """
        count = 0
        for told in trials:
            count += 1
            self._seen.add(told.candidate.key)
            self._next_trial = max(self._next_trial, told.trial + 1)
            if told.values is None:
                continue
            constraints = self._constraints(told.values, told.constraints)
            numbers = self._numbers(told.values, constraints)
            if all(map(math.isfinite, numbers)):
                self._add(told.candidate, numbers, constraints)
        if count:
            self._study.sampler = _sampler(self._sampler_name, self._seed + 1_000_003 * count)

    def _start(self, trial: Any, asked: Candidate, candidate: Candidate) -> tuple[int, Candidate]:
        number = self._next_trial
        self._next_trial += 1
        self._seen.add(candidate.key)
        self._pending[number] = _Pending(trial, candidate, asked == candidate)
        return number, candidate

    def _take(self, trial_number: int) -> _Pending:
        if trial_number not in self._pending:
            raise ValueError(f"trial {trial_number} is not waiting for a result")
        return self._pending.pop(trial_number)

    def _constraints(
        self, values: Mapping[str, float], given: Mapping[str, float] | None
    ) -> Mapping[str, float]:
        if given is not None:
            return given
        return self._limits.excess(values) if self._limits else {}

    def _numbers(self, values: Mapping[str, float], constraints: Mapping[str, float]) -> list[float]:
        broken = any(value > 0 for value in constraints.values())
        fill = dict.fromkeys(MAXIMIZED, 0.0) if broken else {}
        missing = [name for name in self.objectives if name not in values and name not in fill]
        if missing:
            raise ValueError(f"the result has no value for {', '.join(missing)}")
        return [float(values.get(name, fill.get(name, math.nan))) for name in self.objectives]

    def _complete(self, trial: Any, numbers: Sequence[float], constraints: Mapping[str, float]) -> None:
        for name, value in constraints.items():
            trial.set_constraint(name, _finite_excess(value))
        self._study.tell(trial, list(numbers))

    def _add(self, candidate: Candidate, numbers: Sequence[float], constraints: Mapping[str, float]) -> None:
        params = self._params(candidate)
        if isinstance(self._study.sampler, optuna.samplers.BaseGASampler):
            # Only a trial that was asked for belongs to a generation.
            self._study.enqueue_trial(params)
            self._complete(self._study.ask(self._distributions), numbers, constraints)
            return
        trial = optuna.trial.create_trial(
            params=params,
            distributions=self._distributions,
            values=list(numbers),
            constraints={name: _finite_excess(value) for name, value in constraints.items()},
        )
        self._study.add_trial(trial)

    def _unseen_near(self, start: Candidate) -> Candidate | None:
        """Find an unseen candidate by a random walk from `start`, or by enumeration of a small space."""
        choices = {site.name: start.get(site) for site in self.sites}
        for _ in range(_STEPS if self.sites else 0):
            site = self._random.choice(self.sites)
            choices[site.name] = self._random.choice(site.options)
            if self._is_unseen(candidate := self._of(choices)):
                return candidate
        if math.prod(len(site.options) for site in self.sites) > _ENUMERABLE:
            return None
        names = [site.name for site in self.sites]
        every = itertools.product(*(site.options for site in self.sites))
        candidates = (self._of(dict(zip(names, options, strict=True))) for options in every)
        return next(filter(self._is_unseen, candidates), None)

    def _is_unseen(self, candidate: Candidate) -> bool:
        return self._canonical(candidate).key not in self._seen

    def _of(self, choices: Mapping[str, Option]) -> Candidate:
        return Candidate.of(
            {site.name: choices[site.name] for site in self.sites if choices[site.name] != site.default}
        )

    def _candidate(self, params: Mapping[str, Any]) -> Candidate:
        return Candidate(
            tuple(
                (name, option)
                for name, options, default in self._decoders
                if (option := options[params[name]]) != default
            )
        )

    def _params(self, candidate: Candidate) -> dict[str, Any]:
        return {
            site.name: candidate.get(site)
            if site.kind == "block"
            else site.options.index(candidate.get(site))
            for site in self.sites
        }


def _distribution(site: Site) -> BaseDistribution:
    if site.kind == "block":
        return CategoricalDistribution(site.options)
    return IntDistribution(0, len(site.options) - 1)


def _decoder(site: Site) -> Mapping[Any, Option]:
    """Return what a value of the site's parameter stands for."""
    if site.kind == "block":
        return {option: option for option in site.options}
    return dict(enumerate(site.options))


def _direction(objective: str) -> str:
    if objective in MAXIMIZED:
        return "maximize"
    if objective in MINIMIZED:
        return "minimize"
    raise InputError(f"unknown objective {objective!r}", fix=f"known: {', '.join(MAXIMIZED + MINIMIZED)}")


def _finite_excess(value: float) -> float:
    return _LARGEST_EXCESS if math.isnan(value) else max(-_LARGEST_EXCESS, min(_LARGEST_EXCESS, float(value)))


_MAKERS: dict[str, Callable[[int], Any]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=20),
    "nsga3": lambda seed: optuna.samplers.NSGAIIISampler(seed=seed, population_size=20),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
SAMPLERS = tuple(_MAKERS)
"""tpe is multivariate TPE (arXiv:2304.11127); nsga2 and nsga3 keep a population of 20."""


def _sampler(name: str, seed: int) -> Any:
    if name not in _MAKERS:
        raise InputError(f"unknown sampler {name!r}", fix=f"known: {', '.join(SAMPLERS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _MAKERS[name](seed % 2**32)
