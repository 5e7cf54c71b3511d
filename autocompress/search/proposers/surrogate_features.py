"""What is expected of candidates before they are evaluated: the surrogate over their choices and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.problem.candidate import Candidate, Site
from autocompress.search.proposers.gaussian_process import Array, GaussianProcess, Posterior

OWN_SCALE_SITES = 12
_LEAST_SCALE = 0.02


@dataclass(eq=False)
class Known:
    """A candidate with what is known of it without evaluation."""

    candidate: Candidate
    cost: float
    numbers: tuple[float, ...]
    trusted: tuple[float, ...]


class Expectations:
    """The surrogate over standardised columns; fitted again, ever more rarely, as observations come in.

    Columns are those of `encoded`, then the logarithms of costs, features and trusted features, each of
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

    def posterior(
        self,
        pool: Sequence[Known],
        told: Sequence[Known],
        targets: Array,
        pending: Sequence[Known],
        seen: int,
        planned: int,
    ) -> Posterior:
        """Return the posterior over the pool, given `told`, which are all or some of the `seen` results.

        What is `pending` is taken to come out as expected, so that it is not proposed again in disguise.
        There is room for as many more as are `planned`.
        """
        if not self._pool_is_fixed or not len(self._pool):
            self._describe(pool, told)
        room = len(pending) + planned
        posterior = self._updated([self._row(known) for known in told], targets, seen, room)
        if room > 1:
            posterior = posterior.copy()
        for known in pending:
            self.expect(posterior, known)
        return posterior

    def expect(self, posterior: Posterior, known: Known) -> None:
        """Add to the posterior as if the candidate had been evaluated and had come out as expected."""
        posterior.add(self._row(known), None)

    def predicted(self, posterior: Posterior) -> tuple[Array, Array]:
        """Return means and standard deviations over the pool, in the targets' units."""
        middle, scale = self._scale
        return posterior.mean * scale + middle, np.sqrt(posterior.variance) * scale

    def _updated(self, rows: list[Array], targets: Array, seen: int, room: int) -> Posterior:
        """Return the posterior with all that was told: extended where that suffices, else made anew."""
        count = len(self._targets)
        old = self._posterior
        extends = old is not None and np.array_equal(self._targets, targets[:count]) and self._pool_is_fixed
        if old is None or not extends or seen >= self._next_fit or old.room < len(targets) - count + room:
            old = self._remade(np.array(rows), targets, seen, room)
        else:
            for row, target in zip(rows[count:], targets[count:], strict=True):
                old.add(row, float((target - self._scale[0]) / self._scale[1]))
        self._posterior, self._targets = old, targets
        return old

    def _remade(self, rows: Array, targets: Array, seen: int, room: int) -> Posterior:
        assert self._process is not None
        if seen >= self._next_fit:
            self._scale = (float(targets.mean()), max(float(targets.std()), _LEAST_SCALE))
            self._process.fit(rows, (targets - self._scale[0]) / self._scale[1])
            self._next_fit = seen + (4 if seen < 40 else 20 if seen < 120 else max(40, seen // 10))
        standard = (targets - self._scale[0]) / self._scale[1]
        return Posterior(self._process, self._pool, rows, standard, len(rows) + 16 + room)

    def _describe(self, pool: Sequence[Known], told: Sequence[Known]) -> None:
        """Standardise what is not a choice, over everything that is known."""
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

    def _row(self, known: Known) -> Array:
        row: Array = (np.array([*known.numbers, *known.trusted]) - self._middle) / self._spread
        return row


def groups(sites: Sequence[Site]) -> list[list[int]]:
    """Return the columns of `encoded` by site, or by kind of site where there are many."""
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


def encoded(sites: Sequence[Site], candidate: Candidate) -> list[float]:
    """Return a place in [0, 1] for an ordered option; for others a one in a row of zeros, scaled so that two
    different options are at distance 1."""
    row: list[float] = []
    for site in sites:
        option = candidate.get(site)
        if _is_ordered(site):
            row.append(site.options.index(option) / (len(site.options) - 1))
        else:
            row.extend(math.sqrt(0.5) * (option == other) for other in site.options)
    return row
