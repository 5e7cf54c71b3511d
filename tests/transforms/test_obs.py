"""Optimal brain surgeon on single weights, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autocompress.transforms.arrays.masks import kept_weights
from autocompress.transforms.arrays.obs import DAMPING, compensated, obs
from autocompress.transforms.families.sparsity import mask_of

Double = NDArray[np.float64]


def problem(shape: tuple[int, ...], seed: int = 0) -> tuple[Double, Double]:
    """A weight and the second moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    fan_in = int(np.prod(shape[1:]))
    inputs = rng.normal(size=(4 * fan_in, fan_in)) @ rng.normal(size=(fan_in, fan_in))
    return rng.normal(size=shape), inputs.T @ inputs / len(inputs)


def error(weight: Double, found: Double, second: Double) -> float:
    """Mean squared change of the outputs, the damping counted in."""
    change = (weight - found).reshape(len(weight), -1)
    damped = second + DAMPING * np.trace(second) / len(second) * np.eye(len(second))
    return float(np.einsum("oi,ij,oj->", change, damped, change))


def least(row: Double, damped: Double, stays: list[int]) -> tuple[float, Double]:
    """By the normal equations of the columns that stay: the error, and the row."""
    found = np.zeros_like(row)
    found[stays] = np.linalg.lstsq(damped[np.ix_(stays, stays)], (damped @ row)[stays], rcond=None)[0]
    return float((row - found) @ damped @ (row - found)), found


def greedy_by_hand(row: Double, damped: Double, count: int) -> Double:
    """Takes away, one by one, the column without which the least error of the rest is smallest."""
    stays = list(range(len(row)))
    for _ in range(count):
        options = [[other for other in stays if other != column] for column in stays]
        stays = min(options, key=lambda kept: least(row, damped, kept)[0])
    return least(row, damped, stays)[1]


@pytest.mark.parametrize("seed", range(3))
def test_a_row_loses_what_trying_each_column_finds(seed: int) -> None:
    weight, second = problem((1, 7), seed)
    damped = second + DAMPING * np.trace(second) / 7 * np.eye(7)
    for kept in (5, 3):
        expected = greedy_by_hand(weight[0], damped, 7 - kept)
        np.testing.assert_allclose(obs(weight, second, kept / 7)[0], expected, atol=1e-8)


def test_with_uncorrelated_inputs_the_largest_weights_stay_as_they_are() -> None:
    weight = np.array([[0.1, -3.0, 2.0, 0.5], [0.2, 1.0, -0.3, 4.0]])
    found = obs(weight, np.eye(4), 0.5)
    np.testing.assert_allclose(found, np.where(np.abs(weight) >= 1, weight, 0), atol=1e-12)


def test_compensation_is_least_squares() -> None:
    weight, second = problem((3, 6), 1)
    gone = np.random.default_rng(0).random((3, 6)) < 0.4
    found = compensated(weight, second, gone)
    for row in range(3):
        stays = np.flatnonzero(~gone[row]).tolist()
        np.testing.assert_allclose(found[row], least(weight[row], second, stays)[1], atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from([(5, 12), (4, 3, 2, 2), (3, 6, 1, 3)]),
    keep=st.sampled_from([0.2, 0.5, 0.9, 1.0, "2:4", "1:3"]),
    seed=st.integers(0, 5),
    exact=st.booleans(),
)
def test_zeros_are_as_many_as_a_mask_has_and_hurt_less(
    shape: tuple[int, ...], keep: float | str, seed: int, exact: bool
) -> None:
    weight, second = problem(shape, seed)
    found = obs(weight, second, keep, most_exact_work=1e12 if exact else 0)
    mask = mask_of(weight, keep)
    assert found.shape == weight.shape
    if isinstance(keep, str):
        np.testing.assert_array_equal((found != 0).sum(1), mask.sum(1))
    else:
        assert np.count_nonzero(found) == kept_weights(weight.size, keep)
    if exact:
        assert error(weight, found, second) <= error(weight, weight * mask, second) + 1e-9


def test_exact_is_better_than_blocked_and_both_than_magnitude_on_the_whole() -> None:
    totals = np.zeros(3)
    for seed, keep in itertools.product(range(4), (0.3, 0.5, "2:4")):
        weight, second = problem((16, 24), seed)
        found = (
            obs(weight, second, keep),
            obs(weight, second, keep, most_exact_work=0),
            weight * mask_of(weight, keep),
        )
        totals += [error(weight, one, second) for one in found]
    assert totals[0] < 0.6 * totals[1] and totals[1] < totals[2], totals


def test_dead_inputs_do_no_harm() -> None:
    weight, second = problem((4, 8), 2)
    second[:, 3] = second[3] = 0
    found = obs(weight, second, 0.5)
    assert np.isfinite(found).all() and (found[:, 3] == 0).all()
