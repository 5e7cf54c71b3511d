"""Which candidate to try next, by a surrogate of accuracy and exact costs; asked and told like `study.Study`.

A Gaussian process over the choices, their exact costs and whatever `features` add (expected damage, paths
of a cell, …) predicts errors, and the candidate with the largest expected gain in hypervolume is proposed.
Small spaces are scored whole. In large ones a pool grows around the front, by mutation and crossover and
by what `ideas` adds. Decides and never trains; knows nothing of networks.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from autocompress.candidate import Candidate, Option, Site
from autocompress.surrogate import (
    Array,
    GaussianProcess,
    Posterior,
    Reference,
    error_to_beat,
    expected_gain,
    front,
    squashed,
)

if TYPE_CHECKING:
    from autocompress.study import Told

INITIAL = 8
OWN_SCALE_SITES = 12
FRESH, MOST_KEPT = 32, 512
_ATTEMPTS = 3
_WIDTHS_OF_HOPE = 3.0
_LEAST_ERROR = 1e-4
_LEAST_SCALE = 0.02

Price = Callable[[Candidate], Mapping[str, float]]
Features = Callable[[Candidate], Sequence[float]]


@dataclass(eq=False)
class _Known:
    """A candidate with what is known of it without evaluation."""

    candidate: Candidate
    cost: float
    numbers: tuple[float, ...]
    trusted: tuple[float, ...]


@dataclass
class Engine:
    """Proposes candidates of `sites` for accuracy and one cost, those that `allowed` refuses never.

    `price` gives exact costs by name, all positive; the cost named `cost` is the second objective and all
    of them are features. `trusted` gives features that the error is expected to be linear in, such as the
    expected damage. `ideas` are candidates for the pool of a large space. Hypervolume is measured from
    `largest_error` and `largest_cost`; where they are not given, from a fifth beyond what is found.
    Equal arguments and answers give equal proposals.
    """

    sites: Sequence[Site]
    price: Price
    cost: str = "latency_ms"
    allowed: Callable[[Candidate], bool] = lambda _: True
    canonical: Callable[[Candidate], Candidate] = lambda candidate: candidate
    features: Features = lambda _: ()
    trusted: Features = lambda _: ()
    ideas: Callable[[random.Random], Iterable[Candidate]] = lambda _: ()
    largest_error: float | None = None
    largest_cost: float | None = None
    seed: int = 0
    listed_up_to: int = 20_000
    duplicates: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.sites = tuple(site for site in self.sites if len(site.options) > 1 and not site.locked)
        self._random = random.Random(self.seed)
        self._queue: deque[Candidate] = deque()
        self._pool: dict[str, _Known] = {}
        self._seen: set[str] = set()
        self._pending: dict[int, _Known] = {}
        self._told: list[tuple[_Known, float]] = []
        self._next_trial = 0
        count = math.prod(len(site.options) for site in self.sites)
        self._is_listed = count <= self.listed_up_to
        self._model = _Model(_groups(self.sites), self._is_listed)
        if self._is_listed:
            every = itertools.product(*(site.options for site in self.sites))
            for options in every:
                self._consider(dict(zip((site.name for site in self.sites), options, strict=True)))
            self._listed = list(self._pool.values())
            self._costs = np.array([known.cost for known in self._listed])
            self._place = {known.candidate.key: index for index, known in enumerate(self._listed)}
            self._open = np.ones(len(self._listed), dtype=bool)

    def enqueue(self, candidate: Candidate) -> bool:
        """Proposes `candidate` before anything else; False, and nothing done, if it is known already."""
        candidate = self.canonical(candidate)
        if candidate.key in self._seen or candidate in self._queue:
            return False
        self._queue.append(candidate)
        return True

    def ask(self) -> tuple[int, Candidate] | None:
        """The number of a new trial and its candidate; None when nothing allowed is left to propose."""
        while self._queue:
            candidate = self._queue.popleft()
            if candidate.key not in self._seen:
                return self._start(self._pool.get(candidate.key) or self._known(candidate))
        if not self._is_listed:
            self._grow()
            self._listed = [known for key, known in self._pool.items() if key not in self._seen]
            self._costs = np.array([known.cost for known in self._listed])
            self._open = np.ones(len(self._listed), dtype=bool)
        if not self._open.any():
            return None
        is_early = len(self._told) + len(self._pending) < INITIAL
        return self._start(self._listed[self._spread() if is_early else self._best()])

    def tell(
        self,
        trial_number: int,
        values: Mapping[str, float],
        constraints: Mapping[str, float] | None = None,  # noqa: ARG002
    ) -> None:
        """Records the accuracy of a trial that `ask` proposed; without one only that it was seen."""
        known = self._take(trial_number)
        self._learn(known, values)

    def fail(self, trial_number: int) -> None:
        """Records that a trial has no result; its candidate is not proposed again."""
        self._take(trial_number)

    def replay(self, trials: Iterable[Told]) -> None:
        """Takes over trials finished earlier, as if they had been asked for and told now."""
        count = 0
        for told in trials:
            count += 1
            self._see(told.candidate)
            self._next_trial = max(self._next_trial, told.trial + 1)
            if told.values is not None:
                self._learn(self._pool.get(told.candidate.key) or self._known(told.candidate), told.values)
        if count:
            self._random = random.Random(self.seed + 1_000_003 * count)

    def _start(self, known: _Known) -> tuple[int, Candidate]:
        number = self._next_trial
        self._next_trial += 1
        self._see(known.candidate)
        self._pending[number] = known
        return number, known.candidate

    def _see(self, candidate: Candidate) -> None:
        self._seen.add(candidate.key)
        if self._is_listed and candidate.key in self._place:
            self._open[self._place[candidate.key]] = False

    def _take(self, trial_number: int) -> _Known:
        if trial_number not in self._pending:
            raise ValueError(f"trial {trial_number} is not waiting for a result")
        return self._pending.pop(trial_number)

    def _learn(self, known: _Known, values: Mapping[str, float]) -> None:
        accuracy = float(values.get("accuracy", math.nan))
        if math.isfinite(accuracy):
            self._told.append((known, max(1.0 - accuracy, _LEAST_ERROR)))

    def _known(self, candidate: Candidate) -> _Known:
        costs = self.price(candidate)
        numbers = [math.log(value) for value in costs.values()]
        row = (*_encoded(self.sites, candidate), *numbers, *self.features(candidate))
        return _Known(candidate, float(costs[self.cost]), row, tuple(self.trusted(candidate)))

    def _consider(self, choices: Mapping[str, Option]) -> bool:
        """Adds a candidate to the pool; False where it is there already, was tried or is not allowed."""
        named = {site.name: choices[site.name] for site in self.sites if choices[site.name] != site.default}
        candidate = self.canonical(Candidate.of(named))
        if candidate.key in self._pool or candidate.key in self._seen or not self.allowed(candidate):
            return False
        self._pool[candidate.key] = self._known(candidate)
        return True

    def _spread(self) -> int:
        """Where one stands whose cost is unlike, as a ratio, what was proposed before."""
        places = np.flatnonzero(self._open).tolist()
        taken = [known.cost for known, _ in self._told] + [known.cost for known in self._pending.values()]
        costs = np.log(self._costs)
        edges = np.linspace(costs.min(), costs.max() + 1e-9, INITIAL + 1)
        bins = np.digitize(costs, edges) - 1
        empty = sorted(set(range(INITIAL)) - set((np.digitize(np.log(taken), edges) - 1).tolist()))
        for bin_ in self._random.sample(empty, len(empty)):
            inside = [place for place in places if bins[place] == bin_]
            if inside:
                return int(self._random.choice(inside))
        return int(self._random.choice(places))

    def _best(self) -> int:
        """Where the largest expected gain stands; where none is expected, the best chance of any."""
        if not self._told:
            return int(self._random.choice(np.flatnonzero(self._open).tolist()))
        told = [known for known, _ in self._told]
        errors, costs = [error for _, error in self._told], [known.cost for known in told]
        reference = self._reference(errors, costs)
        targets = squashed(errors, reference)
        mean, deviation = self._model.predict(self._listed, told, targets, list(self._pending.values()))
        best = front(errors, costs, reference)
        hope = (np.log(error_to_beat(self._costs, best, reference)) - mean) / deviation
        hopeful = np.flatnonzero(self._open & (hope > -_WIDTHS_OF_HOPE))
        if len(hopeful):
            gains = expected_gain(mean[hopeful], deviation[hopeful], self._costs[hopeful], best, reference)
            if not self._is_listed:
                self._trim([self._listed[place] for place in hopeful[np.argsort(-gains)][:MOST_KEPT]])
            if gains.max() > 0:
                return int(hopeful[np.argmax(gains)])
        return int(np.argmax(np.where(self._open, hope, -np.inf)))

    def _reference(self, errors: Sequence[float], costs: Sequence[float]) -> Reference:
        found = front(errors, costs, Reference(math.inf, math.inf))
        return Reference(
            self.largest_error or min(1.0, 1.2 * float(found[1].max())),
            self.largest_cost or 1.2 * max(costs),
        )

    def _trim(self, kept: Sequence[_Known]) -> None:
        self._pool = {known.candidate.key: known for known in kept}

    def _grow(self) -> None:
        """Adds to the pool: ideas, and children of the front and of what is waiting."""
        for candidate in self.ideas(self._random):
            self._consider(self._choices(candidate))
        parents = self._parents()
        fresh = 0
        for _ in range(_ATTEMPTS * FRESH):
            fresh += self._consider(self._child(parents) if parents else self._anything())
            if fresh >= FRESH:
                return

    def _parents(self) -> list[Candidate]:
        """The front, and what was evaluated last, so that the pool does not close around the front."""
        errors = [error for _, error in self._told]
        costs = [known.cost for known, _ in self._told]
        told = [known.candidate for known, _ in self._told]
        best, parents = math.inf, []
        for index in sorted(range(len(told)), key=lambda index: (costs[index], errors[index])):
            if errors[index] < best:
                best = errors[index]
                parents.append(told[index])
        return [*parents, *told[-3:], *(known.candidate for known in self._pending.values())]

    def _child(self, parents: Sequence[Candidate]) -> dict[str, Option]:
        choices = self._choices(self._random.choice(parents))
        if self._random.random() < 0.25:
            other = self._choices(self._random.choice(parents))
            choices = {name: self._random.choice((choices[name], other[name])) for name in choices}
        for site in self._random.sample(
            self.sites, min(len(self.sites), self._random.choice((1, 1, 2, 2, 3)))
        ):
            choices[site.name] = self._random.choice(site.options)
        return choices

    def _anything(self) -> dict[str, Option]:
        strength = self._random.random()
        return {
            site.name: self._random.choice(site.options) if self._random.random() < strength else site.default
            for site in self.sites
        }

    def _choices(self, candidate: Candidate) -> dict[str, Option]:
        return {site.name: candidate.get(site) for site in self.sites}


class _Model:
    """The surrogate over standardised columns; fitted again, ever more rarely, as observations come in.

    Columns are those of `_encoded`, then the logarithms of costs, features and trusted features, each of
    which has a length scale of its own.
    """

    def __init__(self, groups: list[list[int]], pool_is_fixed: bool) -> None:
        self._groups, self._pool_is_fixed = groups, pool_is_fixed
        self._process: GaussianProcess | None = None
        self._posterior: Posterior | None = None
        self._pool: Array = np.empty((0, 0))
        self._targets: Array = np.empty(0)
        self._scale = (0.0, 1.0)
        self._next_fit = 0

    def predict(
        self, pool: Sequence[_Known], told: Sequence[_Known], targets: Array, pending: Sequence[_Known]
    ) -> tuple[Array, Array]:
        """Means and standard deviations over the pool, in the targets' units.

        What is `pending` is taken to come out as expected, so that it is not proposed again in disguise.
        """
        if not self._pool_is_fixed or not len(self._pool):
            self._describe(pool, told)
        posterior = self._updated([self._row(known) for known in told], targets)
        if pending:
            posterior = posterior.copy()
            for known in pending[: posterior.room]:
                posterior.add(self._row(known), None)
        middle, scale = self._scale
        return posterior.mean * scale + middle, np.sqrt(posterior.variance) * scale

    def _updated(self, rows: list[Array], targets: Array) -> Posterior:
        """The posterior with all that was told: extended where that suffices, else made anew."""
        count = len(self._targets)
        old = self._posterior
        extends = old is not None and np.array_equal(self._targets, targets[:count]) and self._pool_is_fixed
        if old is None or not extends or len(targets) >= self._next_fit or old.room < len(targets) - count:
            old = self._remade(np.array(rows), targets)
        else:
            for row, target in zip(rows[count:], targets[count:], strict=True):
                old.add(row, float((target - self._scale[0]) / self._scale[1]))
        self._posterior, self._targets = old, targets
        return old

    def _remade(self, rows: Array, targets: Array) -> Posterior:
        assert self._process is not None
        count = len(targets)
        if count >= self._next_fit:
            self._scale = (float(targets.mean()), max(float(targets.std()), _LEAST_SCALE))
            self._process.fit(rows, (targets - self._scale[0]) / self._scale[1])
            self._next_fit = count + (4 if count < 40 else 20 if count < 120 else 40)
        return Posterior(self._process, self._pool, rows, (targets - self._scale[0]) / self._scale[1])

    def _describe(self, pool: Sequence[_Known], told: Sequence[_Known]) -> None:
        """Standardises what is not a choice, over everything that is known."""
        choices = sum(map(len, self._groups))
        everything = np.array([[*known.numbers, *known.trusted] for known in (*pool, *told)])
        self._middle = np.r_[np.zeros(choices), everything[:, choices:].mean(0)]
        spread = everything[:, choices:].std(0)
        self._spread = np.r_[np.ones(choices), np.where(spread > 1e-9, spread, 1.0)]
        self._pool = (everything[: len(pool)] - self._middle) / self._spread
        if self._process is None:
            width, trusted = everything.shape[1], len(pool[0].trusted)
            own = [[column] for column in range(choices, width)]
            self._process = GaussianProcess([*self._groups, *own], tuple(range(width - trusted, width)))

    def _row(self, known: _Known) -> Array:
        row: Array = (np.array([*known.numbers, *known.trusted]) - self._middle) / self._spread
        return row


def _groups(sites: Sequence[Site]) -> list[list[int]]:
    """Columns of `_encoded` by site, or by kind of site where there are many."""
    groups: dict[str, list[int]] = {}
    column = 0
    for site in sites:
        width = 1 if _is_ordered(site) else len(site.options)
        name = site.name if len(sites) <= OWN_SCALE_SITES else site.kind
        groups.setdefault(name, []).extend(range(column, column + width))
        column += width
    return list(groups.values())


def _is_ordered(site: Site) -> bool:
    return site.kind != "block"


def _encoded(sites: Sequence[Site], candidate: Candidate) -> list[float]:
    """A place in [0, 1] for an ordered option; for others a one in a row of zeros, scaled so that two
    different options are at distance 1."""
    row: list[float] = []
    for site in sites:
        option = candidate.get(site)
        if _is_ordered(site):
            row.append(site.options.index(option) / (len(site.options) - 1))
        else:
            row.extend(math.sqrt(0.5) * (option == other) for other in site.options)
    return row
