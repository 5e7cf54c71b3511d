"""Toeplitz-like matrices: sums of products of a circulant and a skew-circulant matrix.

P turns a vector by one, Q does too and changes the sign of what comes around. `matrix - P⁻¹ · matrix · Q` is
the displacement of a matrix; where its rank is r the matrix is the sum of r products of a circulant matrix (a
polynomial in P) and a skew-circulant one (in Q) (Sindhwani et al. 2015, arXiv:1510.01722). Toeplitz matrices
and their inverses have displacement rank 2 at most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Double = NDArray[np.float64]

SWEEPS = 6
_RIDGE = 1e-9


def circulant_matrix(vector: Array) -> Double:
    """Turn `(n,)` into `(n, n)` with vector[(j - i) mod n] at row i, column j."""
    row, column = np.indices((len(vector), len(vector)))
    return vector.astype(np.float64)[(column - row) % len(vector)]


def skew_matrix(vector: Array) -> Double:
    """Return the matrix as `circulant_matrix` does, with the other sign below the diagonal."""
    return circulant_matrix(vector) * (1 - 2 * np.tri(len(vector), k=-1))


def toeplitz_like(matrix: Array, rank: int, sweeps: int = SWEEPS) -> tuple[Double, Double]:
    """Turn `(n, n)` into vectors `(rank, n)` of the circulant and of the skew-circulant factors, whose
    products sum up to a matrix close to it: from its displacement's best approximation of that rank, then by
    alternating least squares."""
    dense = matrix.astype(np.float64)
    first, second = _from_displacement(dense, rank)
    for _ in range(sweeps):
        first = _fit_circulant(dense, second)
        second = _fit_skew(dense, first)
    return first, second


def product(first: Array, second: Array) -> Double:
    """Return the matrix that the vectors stand for."""
    pairs = zip(first, second, strict=True)
    return np.sum([circulant_matrix(one) @ skew_matrix(two) for one, two in pairs], axis=0)


def _from_displacement(dense: Double, rank: int) -> tuple[Double, Double]:
    """Start from the displacement: twice a matrix is the sum over k of P^-k · displacement · Q^k, as Pⁿ is
    one and Qⁿ minus one."""
    turned = np.roll(np.roll(dense, 1, axis=0), 1, axis=1)
    turned[:, 0] *= -1
    left, sizes, right = np.linalg.svd(dense - turned)
    roots = np.sqrt(sizes[:rank])[:, None]
    columns = left[:, :rank].T * roots
    back = -np.arange(len(dense)) % len(dense)
    return columns[:, back] / 2, right[:rank] * roots


def _fit_circulant(dense: Double, second: Double) -> Double:
    """Return the circulant factors of least squared error, the others fixed."""
    skews = [skew_matrix(vector) for vector in second]
    return _solved(
        [[_turns(one @ two.T, 1) for two in skews] for one in skews],
        [_turns(dense @ one.T, 1) for one in skews],
        1,
    )


def _fit_skew(dense: Double, first: Double) -> Double:
    circulants = [circulant_matrix(vector) for vector in first]
    return _solved(
        [[_turns(two.T @ one, -1) for two in circulants] for one in circulants],
        [_turns(one.T @ dense, -1) for one in circulants],
        -1,
    )


def _turns(matrix: Double, sign: int) -> Double:
    """Return for each k the sum of the entries of the matrix where P^k has a one, or Q^k a one or minus
    one."""
    size = len(matrix)
    row, column = np.indices((size, size))
    signs = np.where(column < row, sign, 1)
    found = np.bincount(((column - row) % size).ravel(), (matrix * signs).ravel(), size)
    return found.astype(np.float64)


def _solved(grams: list[list[Double]], moments: list[Double], sign: int) -> Double:
    """Solve the normal equations; what two powers have in common depends on how far apart they are alone."""
    size = len(moments[0])
    lag = np.arange(size) - np.arange(size)[:, None]
    signs = np.where(lag < 0, sign, 1)
    blocks = [[signs * one[lag % size] for one in row] for row in grams]
    gram = np.block(blocks)
    gram += _RIDGE * max(float(np.trace(gram)) / len(gram), 1e-30) * np.eye(len(gram))
    return np.linalg.solve(gram, np.concatenate(moments)).reshape(len(moments), size)
