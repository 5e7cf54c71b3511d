"""Which candidate to try next, by a surrogate of accuracy and exact costs; asked and told like a `Study`.

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

from autocompress.problem.candidate import Candidate, Option, Site
from autocompress.search.proposers.gaussian_process import (
    Reference,
    error_to_beat,
    expected_gain,
    front,
    squashed,
)
from autocompress.search.proposers.surrogate_features import Expectations, Known, encoded, groups

if TYPE_CHECKING:
    from autocompress.search.proposers.optuna_study import Told

INITIAL = 8
FRESH, MOST_KEPT = 32, 512
PENDING_PER_PLANNED = 8
"""With many workers, several proposals are planned at once: one for each so many that are under way."""
MOST_LEARNED, MOST_PENDING = 384, 256
"""Of more results than this the surrogate sees those nearest the front and an even share of the others; of
more candidates under way only the latest. So a proposal takes the same time at any length of a search."""
_ATTEMPTS = 3
_FRESH_PER_PLANNED = 4
_WIDTHS_OF_HOPE = 3.0
_LEAST_ERROR = 1e-4

Price = Callable[[Candidate], Mapping[str, float]]
Features = Callable[[Candidate], Sequence[float]]


@dataclass
class Engine:
    """Propose candidates of `sites` for accuracy and one cost, those that `allowed` refuses never.

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
        self._planned: deque[Known] = deque()
        self._pool: dict[str, Known] = {}
        self._seen: set[str] = set()
        self._pending: dict[int, Known] = {}
        self._told: list[tuple[Known, float]] = []
        self._next_trial = 0
        count = math.prod(len(site.options) for site in self.sites)
        self._is_listed = count <= self.listed_up_to
        self._model = Expectations(groups(self.sites), self._is_listed)
        if self._is_listed:
            every = itertools.product(*(site.options for site in self.sites))
            for options in every:
                self._consider(dict(zip((site.name for site in self.sites), options, strict=True)))
            self._listed = list(self._pool.values())
            self._costs = np.array([known.cost for known in self._listed])
            self._place = {known.candidate.key: index for index, known in enumerate(self._listed)}
            self._open = np.ones(len(self._listed), dtype=bool)

    def enqueue(self, candidate: Candidate) -> bool:
        """Propose `candidate` before anything else; return False, and do nothing, if it is known
        already."""
        candidate = self.canonical(candidate)
        if candidate.key in self._seen or candidate in self._queue:
            return False
        self._queue.append(candidate)
        return True

    @property
    def queued(self) -> bool:
        """Return whether a candidate that was enqueued waits to be proposed."""
        return any(candidate.key not in self._seen for candidate in self._queue)

    def ask(self) -> tuple[int, Candidate] | None:
        """Return the number of a new trial and its candidate; None when nothing allowed is left to
        propose."""
        while self._queue:
            candidate = self._queue.popleft()
            if candidate.key not in self._seen:
                return self._start(self._pool.get(candidate.key) or self._known(candidate))
        while self._planned:
            known = self._planned.popleft()
            if known.candidate.key not in self._seen:
                return self._start(known)
        count = max(1, len(self._pending) // PENDING_PER_PLANNED)
        if not self._is_listed:
            self._grow(count)
            self._listed = [known for key, known in self._pool.items() if key not in self._seen]
            self._costs = np.array([known.cost for known in self._listed])
            self._open = np.ones(len(self._listed), dtype=bool)
        if not self._open.any():
            return None
        is_early = len(self._told) + len(self._pending) < INITIAL
        first, *later = [self._spread()] if is_early else self._best(count)
        self._planned.extend(self._listed[place] for place in later)
        return self._start(self._listed[first])

    def tell(
        self,
        trial_number: int,
        values: Mapping[str, float],
        constraints: Mapping[str, float] | None = None,  # noqa: ARG002
    ) -> None:
        """Record the accuracy of a trial that `ask` proposed; without one, record only that it was seen."""
        known = self._take(trial_number)
        self._learn(known, values)

    def fail(self, trial_number: int) -> None:
        """Record that a trial has no result; its candidate is not proposed again."""
        self._take(trial_number)

    def replay(self, trials: Iterable[Told]) -> None:
        """Take over trials finished earlier, as if they had been asked for and told now."""
        count = 0
        for told in trials:
            count += 1
            self._see(told.candidate)
            self._next_trial = max(self._next_trial, told.trial + 1)
            if told.values is not None:
                self._learn(self._pool.get(told.candidate.key) or self._known(told.candidate), told.values)
        if count:
            self._random = random.Random(self.seed + 1_000_003 * count)

    def _start(self, known: Known) -> tuple[int, Candidate]:
        number = self._next_trial
        self._next_trial += 1
        self._see(known.candidate)
        self._pending[number] = known
        return number, known.candidate

    def _see(self, candidate: Candidate) -> None:
        self._seen.add(candidate.key)
        if self._is_listed and candidate.key in self._place:
            self._open[self._place[candidate.key]] = False

    def _take(self, trial_number: int) -> Known:
        if trial_number not in self._pending:
            raise ValueError(f"trial {trial_number} is not waiting for a result")
        return self._pending.pop(trial_number)

    def _learn(self, known: Known, values: Mapping[str, float]) -> None:
        accuracy = float(values.get("accuracy", math.nan))
        if math.isfinite(accuracy):
            self._told.append((known, max(1.0 - accuracy, _LEAST_ERROR)))

    def _known(self, candidate: Candidate) -> Known:
        costs = self.price(candidate)
        numbers = [math.log(value) for value in costs.values()]
        row = (*encoded(self.sites, candidate), *numbers, *self.features(candidate))
        return Known(candidate, float(costs[self.cost]), row, tuple(self.trusted(candidate)))

    def _consider(self, choices: Mapping[str, Option]) -> bool:
        """Add a candidate to the pool; return False where it is there already, was tried or is not
        allowed."""
        named = {site.name: choices[site.name] for site in self.sites if choices[site.name] != site.default}
        candidate = self.canonical(Candidate.of(named))
        if candidate.key in self._pool or candidate.key in self._seen or not self.allowed(candidate):
            return False
        self._pool[candidate.key] = self._known(candidate)
        return True

    def _spread(self) -> int:
        """Return where one stands whose cost is unlike, as a ratio, what was proposed before."""
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

    def _best(self, count: int) -> list[int]:
        """Return where the largest expected gains stand, up to `count` of them, each as if those before had
        come out as expected; where no gain is expected, the best chance of any."""
        still_open = self._open.copy()
        if not self._told:
            places = np.flatnonzero(still_open).tolist()
            return self._random.sample(places, min(count, len(places)))
        told = self._learned()
        errors, costs = [error for _, error in told], [known.cost for known, _ in told]
        reference = self._reference(errors, costs)
        targets = squashed(errors, reference)
        pending = list(self._pending.values())[-MOST_PENDING:]
        posterior = self._model.posterior(
            self._listed, [known for known, _ in told], targets, pending, len(self._told), count
        )
        best = front(errors, costs, reference)
        chosen: list[int] = []
        while len(chosen) < count and still_open.any():
            mean, deviation = self._model.predicted(posterior)
            hope = (np.log(error_to_beat(self._costs, best, reference)) - mean) / deviation
            place = int(np.argmax(np.where(still_open, hope, -np.inf)))
            hopeful = np.flatnonzero(still_open & (hope > -_WIDTHS_OF_HOPE))
            if len(hopeful):
                gains = expected_gain(
                    mean[hopeful], deviation[hopeful], self._costs[hopeful], best, reference
                )
                if not self._is_listed and not chosen:
                    self._trim([self._listed[index] for index in hopeful[np.argsort(-gains)][:MOST_KEPT]])
                if gains.max() > 0:
                    place = int(hopeful[np.argmax(gains)])
            chosen.append(place)
            still_open[place] = False
            if len(chosen) < count:
                self._model.expect(posterior, self._listed[place])
        return chosen

    def _learned(self) -> list[tuple[Known, float]]:
        """Return all results, or of very many those nearest the front and an even share of the others."""
        if len(self._told) <= MOST_LEARNED:
            return self._told
        errors = np.array([error for _, error in self._told])
        costs = np.array([known.cost for known, _ in self._told])
        unlimited = Reference(math.inf, math.inf)
        best = front(errors.tolist(), costs.tolist(), unlimited)
        order = np.argsort(errors / error_to_beat(costs, best, unlimited), kind="stable")
        near, far = order[: MOST_LEARNED // 2], np.sort(order[MOST_LEARNED // 2 :])
        even = far[np.linspace(0, len(far) - 1, MOST_LEARNED - len(near)).astype(int)]
        return [self._told[index] for index in np.sort(np.r_[near, even])]

    def _reference(self, errors: Sequence[float], costs: Sequence[float]) -> Reference:
        found = front(errors, costs, Reference(math.inf, math.inf))
        return Reference(
            self.largest_error or min(1.0, 1.2 * float(found[1].max())),
            self.largest_cost or 1.2 * max(costs),
        )

    def _trim(self, kept: Sequence[Known]) -> None:
        self._pool = {known.candidate.key: known for known in kept}

    def _grow(self, count: int) -> None:
        """Add to the pool, from which `count` will be proposed: ideas, and children of the front and of what
        is waiting."""
        for candidate in self.ideas(self._random):
            self._consider(self._choices(candidate))
        parents = self._parents()
        wanted, fresh = FRESH + _FRESH_PER_PLANNED * (count - 1), 0
        for _ in range(_ATTEMPTS * wanted):
            fresh += self._consider(self._child(parents) if parents else self._anything())
            if fresh >= wanted:
                return

    def _parents(self) -> list[Candidate]:
        """Return the front, and what was evaluated last, so that the pool does not close around the front."""
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
