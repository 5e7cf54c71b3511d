"""A model of quality over discrete candidates whose costs are known exactly, and what it is good for.

Knows nothing of networks: candidates are rows of numbers. A Gaussian process (Rasmussen and Williams 2006)
predicts the logarithm of the error, squashed where errors are too large to matter; as costs are exact, the
expected gain in hypervolume is a sum of closed forms. numpy, and scipy when something is fitted; no torch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Groups = Sequence[Sequence[int]]
"""Which columns of the features share a length scale."""

_JITTER = 1e-8
_LEAST_VARIANCE = 1e-10
_LOG_BOUNDS = ((-9.0, 4.0), (-5.0, 4.0), (-9.0, 4.0), (-9.0, 4.0), (-12.0, 0.0))
_CHUNK = 2048


@dataclass
class GaussianProcess:
    """Matérn-5/2 over groups of columns, plus a linear part over all, plus one over `trusted` columns.

    Hyperparameters, all logarithms: a weight for each group's squared distance, the variances of the
    three parts, the variance of the noise. They are found by maximum a posteriori under wide normal
    priors, starting from the last ones, so refitting is cheap. Targets should be standardised.
    """

    groups: Groups
    trusted: Sequence[int] = ()
    log_parameters: Array = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.groups)
        self._prior_mean = np.r_[np.full(count, -math.log(count)), 0.0, -1.0, 0.0, -6.0]
        self._prior_sd = np.full(count + 4, 1.5)
        self.log_parameters = self._prior_mean.copy()

    def fit(self, features: Array, targets: Array, iterations: int = 25) -> None:
        """Fit the hyperparameters to rows of `features` (n × d) with `targets` (n)."""
        from scipy.optimize import minimize

        distances = np.stack(
            [_squared_distances(features[:, g], features[:, g]) for g in map(list, self.groups)]
        )
        linear, trusted = self._linear(features, features), self._trusted(features, features)
        bounds = [_LOG_BOUNDS[0]] * len(self.groups) + list(_LOG_BOUNDS[1:])
        found = minimize(
            self._loss,
            self.log_parameters,
            args=(distances, linear, trusted, targets),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": iterations},
        )
        if np.isfinite(found.fun):
            self.log_parameters = found.x

    def _loss(
        self, log_parameters: Array, distances: Array, linear: Array, trusted: Array, targets: Array
    ) -> tuple[float, Array]:
        """Return the negative logarithm of the posterior density, and its gradient."""
        count, rows = len(self.groups), len(targets)
        weights = np.exp(log_parameters[:count])
        variances = np.exp(log_parameters[count:])
        kernel, slope = _matern(np.tensordot(weights, distances, 1))
        covariance = variances[0] * kernel + variances[1] * linear + variances[2] * trusted
        covariance[np.diag_indices(rows)] += variances[3] + _JITTER
        try:
            lower = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return 1e12, np.zeros_like(log_parameters)
        inverse = np.linalg.inv(covariance)
        solved = inverse @ targets
        scaled = (log_parameters - self._prior_mean) / self._prior_sd
        loss = 0.5 * targets @ solved + np.log(np.diag(lower)).sum() + 0.5 * scaled @ scaled
        outer = 0.5 * (inverse - np.outer(solved, solved))
        gradient = np.r_[
            np.einsum("ij,gij->g", variances[0] * outer * slope, distances) * weights,
            variances[0] * (outer * kernel).sum(),
            variances[1] * (outer * linear).sum(),
            variances[2] * (outer * trusted).sum(),
            variances[3] * np.trace(outer),
        ]
        return float(loss), gradient + scaled / self._prior_sd

    def covariance(self, left: Array, right: Array) -> Array:
        """Return the prior covariances of the rows of `left` with those of `right`, without noise."""
        count = len(self.groups)
        scales = np.zeros(left.shape[1])
        for group, weight in zip(self.groups, np.exp(self.log_parameters[:count]), strict=True):
            scales[list(group)] = math.sqrt(weight)
        variances = np.exp(self.log_parameters[count:])
        kernel, _ = _matern(_squared_distances(left * scales, right * scales))
        kernel *= variances[0]
        kernel += variances[1] * self._linear(left, right)
        if self.trusted:
            kernel += variances[2] * self._trusted(left, right)
        return kernel

    def variance(self, rows: Array) -> Array:
        """Return the prior variances of rows."""
        variances = np.exp(self.log_parameters[len(self.groups) :])
        own = rows[:, list(self.trusted)]
        return np.asarray(
            variances[0] + variances[1] * (rows**2).mean(1) + variances[2] * (own**2).sum(1), dtype=np.float64
        )

    @property
    def noise(self) -> float:
        return math.exp(self.log_parameters[-1]) + _JITTER

    def _linear(self, left: Array, right: Array) -> Array:
        return left @ right.T / left.shape[1]

    def _trusted(self, left: Array, right: Array) -> Array:
        own = list(self.trusted)
        return left[:, own] @ right[:, own].T


def _squared_distances(left: Array, right: Array) -> Array:
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * left @ right.T
    return np.maximum(squares, 0.0)


def _matern(squared: Array) -> tuple[Array, Array]:
    """Return the kernel at squared distances, and its derivative by them."""
    root = np.sqrt(5 * squared)
    decay = np.exp(-root)
    return (1 + root + root**2 / 3) * decay, -5 / 6 * (1 + root) * decay


class Posterior:
    """Hold means and variances over a fixed pool of candidates, given observations, to which more are added.

    A further observation costs O(n · pool), as the Cholesky factor only grows by a row.
    """

    def __init__(
        self, process: GaussianProcess, pool: Array, rows: Array, targets: Array, room: int = 16
    ) -> None:
        """Make room for `room` more observations."""
        from scipy.linalg import solve_triangular

        self._process, self._pool, self._count = process, pool, len(rows)
        size = self._count + room
        self._factors = np.empty((size, len(pool)))
        self._rows = np.empty((size, pool.shape[1]))
        self._lower = np.zeros((size, size))
        self._innovations = np.empty(size)
        own = process.covariance(rows, rows)
        own[np.diag_indices(self._count)] += process.noise
        lower = np.linalg.cholesky(own)
        self._lower[: self._count, : self._count] = lower
        self._rows[: self._count] = rows
        factors = solve_triangular(lower, process.covariance(rows, pool), lower=True)
        innovations = solve_triangular(lower, targets, lower=True)
        self._factors[: self._count], self._innovations[: self._count] = factors, innovations
        self.mean: Array = innovations @ factors
        self.variance: Array = np.maximum(process.variance(pool) - (factors**2).sum(0), _LEAST_VARIANCE)

    @property
    def room(self) -> int:
        """Return how many more observations can be added."""
        return len(self._innovations) - self._count

    def add(self, row: Array, target: float | None) -> None:
        """Take in an observation; without a target, one that will come out as expected."""
        from scipy.linalg import solve_triangular

        count = self._count
        own = self._process.covariance(row[None], np.vstack([self._rows[:count], row]))[0]
        known = solve_triangular(self._lower[:count, :count], own[:count], lower=True)
        diagonal = math.sqrt(max(own[count] + self._process.noise - known @ known, _LEAST_VARIANCE))
        factor = self._process.covariance(row[None], self._pool)[0]
        factor -= known @ self._factors[:count]
        factor /= diagonal
        expected = known @ self._innovations[:count]
        innovation = 0.0 if target is None else (target - expected) / diagonal
        self._lower[count, :count], self._lower[count, count] = known, diagonal
        self._factors[count], self._rows[count], self._innovations[count] = factor, row, innovation
        self._count += 1
        self.mean = self.mean + innovation * factor
        self.variance = np.maximum(self.variance - factor**2, _LEAST_VARIANCE)

    def copy(self) -> Posterior:
        """Return another one that can be added to without changing this."""
        other = copy.copy(self)
        for name in ("_factors", "_rows", "_lower", "_innovations"):
            setattr(other, name, getattr(self, name).copy())
        return other


@dataclass(frozen=True)
class Reference:
    """Say what hypervolume is measured from: errors and costs from here on are worth nothing."""

    error: float
    cost: float


def squashed(errors: Any, reference: Reference, least: float = 1e-4) -> Array:
    """Return the logarithms of errors; beyond the reference all are alike, as none of them can be on the
    front."""
    return np.log(np.clip(np.asarray(errors, dtype=np.float64), least, reference.error))


def front(errors: Sequence[float], costs: Sequence[float], reference: Reference) -> tuple[Array, Array]:
    """Return costs, increasing, and errors, decreasing, of what nothing beats inside the reference."""
    kept: list[tuple[float, float]] = []
    best = reference.error
    for cost, error in sorted(zip(costs, errors, strict=True)):
        if error < best and cost < reference.cost:
            kept.append((cost, error))
            best = error
    found = np.array(kept).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def expected_gain(
    mean: Array,
    deviation: Array,
    costs: Array,
    known: tuple[Array, Array],
    reference: Reference,
) -> Array:
    """Return the expected growth of the hypervolume by candidates whose log errors are normal and costs
    exact.

    `known` is the present `front`. Between two costs of the front the error to beat is constant, so the
    growth there is a width times the expected improvement of a lognormal error on it; these are summed
    (after Emmerich et al. 2011, doi:10.1109/CEC.2011.5949880, who take both objectives as uncertain).
    """
    from scipy.special import ndtr

    to_beat = np.r_[reference.error, known[1]]
    starts, ends = np.r_[-np.inf, known[0]], np.r_[known[0], reference.cost]
    gains = np.zeros(len(mean))
    for start in range(0, len(mean), _CHUNK):
        part = slice(start, start + _CHUNK)
        mu, sd, cost = mean[part, None], deviation[part, None], costs[part, None]
        widths = np.clip(ends - np.maximum(starts, cost), 0.0, None)
        above = (np.log(to_beat) - mu) / sd
        improvement = to_beat * ndtr(above) - np.exp(mu + sd**2 / 2) * ndtr(above - sd)
        gains[part] = (widths * np.maximum(improvement, 0.0)).sum(1)
    return gains


def error_to_beat(costs: Array, known: tuple[Array, Array], reference: Reference) -> Array:
    """Return the least error known at each of `costs` or below."""
    return np.r_[reference.error, known[1]][np.searchsorted(known[0], costs, side="right")]
