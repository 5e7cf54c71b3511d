"""The surrogate by other means: gradients by differences, posteriors by inversion, gains by sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autocompress.runs.pareto import hypervolume
from autocompress.search.proposers.gaussian_process import (
    GaussianProcess,
    Posterior,
    Reference,
    error_to_beat,
    expected_gain,
    front,
    squashed,
)

GROUPS = ((0, 1), (2,), (3,))


def data(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 4))
    return features, np.sin(features[:, 0]) + 0.5 * features[:, 2] + 0.1 * rng.normal(size=rows)


def test_the_gradient_is_that_of_the_loss():
    features, targets = data(12)
    process = GaussianProcess(GROUPS, trusted=(3,))
    distances = np.stack(
        [((features[:, None, list(g)] - features[None, :, list(g)]) ** 2).sum(2) for g in GROUPS]
    )
    arguments = (distances, features @ features.T / 4, np.outer(features[:, 3], features[:, 3]), targets)
    at = process.log_parameters + np.linspace(-0.4, 0.3, len(process.log_parameters))
    _, gradient = process._loss(at, *arguments)
    for index in range(len(at)):
        step = np.zeros_like(at)
        step[index] = 1e-5
        rise = process._loss(at + step, *arguments)[0] - process._loss(at - step, *arguments)[0]
        assert gradient[index] == pytest.approx(rise / 2e-5, rel=1e-4, abs=1e-6)


def test_a_posterior_that_grew_equals_the_one_by_inversion():
    features, targets = data(20)
    pool = data(30, seed=1)[0]
    process = GaussianProcess(GROUPS, trusted=(3,))
    process.fit(features, targets)
    grown = Posterior(process, pool, features[:15], targets[:15])
    for row, target in zip(features[15:], targets[15:], strict=True):
        grown.add(row, target)
    own = process.covariance(features, features) + process.noise * np.eye(20)
    across = process.covariance(features, pool)
    mean = across.T @ np.linalg.solve(own, targets)
    variance = np.diag(process.covariance(pool, pool)) - np.einsum(
        "ij,ij->j", across, np.linalg.solve(own, across)
    )
    assert grown.mean == pytest.approx(mean, abs=1e-6)
    assert grown.variance == pytest.approx(variance, abs=1e-6)


def test_what_comes_out_as_expected_moves_no_mean_and_narrows_variances():
    features, targets = data(10)
    process = GaussianProcess(GROUPS)
    posterior = Posterior(process, features + 0.3, features, targets)
    other = posterior.copy()
    other.add(features[0] + 0.3, None)
    assert other.mean == pytest.approx(posterior.mean)
    assert other.variance[0] < 0.9 * posterior.variance[0]
    assert (other.variance <= posterior.variance + 1e-12).all()


def test_fitting_finds_which_columns_matter():
    features, targets = data(60)
    process = GaussianProcess(GROUPS)
    process.fit(features, targets, iterations=60)
    weights = process.log_parameters[:3]
    assert weights[0] > weights[2]
    held_out, truth = data(200, seed=5)
    predicted = Posterior(process, held_out, features, targets).mean
    assert np.corrcoef(predicted, truth)[0, 1] > 0.9


def test_expected_gain_equals_sampled_growth_of_the_hypervolume():
    reference = Reference(error=0.2, cost=10.0)
    errors, costs = [0.15, 0.1, 0.12, 0.3], [2.0, 6.0, 7.0, 1.0]
    known = front(errors, costs, reference)
    assert known[0].tolist() == [2.0, 6.0] and known[1].tolist() == [0.15, 0.1]
    mean, deviation = np.log([0.11, 0.05, 0.3, 0.14]), np.array([0.3, 0.1, 0.5, 0.2])
    cost = np.array([4.0, 9.5, 0.5, 1.0])
    found = expected_gain(mean, deviation, cost, known, reference)
    rng = np.random.default_rng(0)
    points = [(0.15, 2.0), (0.1, 6.0)]
    before = hypervolume(points, (0.2, 10.0))
    for index in range(4):
        drawn = np.exp(rng.normal(mean[index], deviation[index], 4000))
        grown = [hypervolume([*points, (e, cost[index])], (0.2, 10.0)) - before for e in drawn]
        assert found[index] == pytest.approx(np.mean(grown), abs=4 * np.std(grown) / math.sqrt(4000) + 1e-9)


def test_no_gain_is_expected_beyond_the_reference_or_behind_the_front():
    reference = Reference(error=0.2, cost=10.0)
    known = front([0.05], [1.0], reference)
    gains = expected_gain(np.log([0.1, 0.01]), np.full(2, 1e-3), np.array([5.0, 10.0]), known, reference)
    assert gains == pytest.approx([0.0, 0.0], abs=1e-12)
    assert error_to_beat(np.array([0.5, 1.0, 5.0]), known, reference).tolist() == [0.2, 0.05, 0.05]


def test_errors_beyond_the_reference_are_alike():
    logs = squashed([0.9, 0.2, 0.1, 0.0], Reference(0.2, 1.0))
    assert logs[0] == logs[1] == math.log(0.2)
    assert logs[2] == pytest.approx(math.log(0.1)) and math.isfinite(logs[3])
