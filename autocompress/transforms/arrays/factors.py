"""Weights as products of smaller ones: the arithmetic behind `transforms.families.low_rank`, on arrays alone.

Each function takes a dense weight `(out, in, kh, kw)`, or `(out, in)` where it says so, and where it
can the second moments of the layer's input rows (`quality.layer_rows.Moments`): then it keeps what
matters for the layer's output on that data, not for the weight. Singular vectors come from the
smaller Gram matrix, which is far quicker and exact enough in double precision.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Double = NDArray[np.float64]

DAMPING = 1e-3
"""Added to the diagonal of second moments before they are inverted, as a share of its mean."""

ALS_SWEEPS = 40
ALS_RIDGE = 1e-6


def svd(weight: Array, rank: int, second: Array | None = None) -> tuple[Double, Double]:
    """Turn `(out, in)` into `(rank, in)` and `(out, rank)`, whose product is the closest of that rank.

    Denton et al. 2014 (arXiv:1404.0736). With `second` `(in, in)` the mean squared error of the output is
    the least possible: outputs are projected on the principal directions of what the layer computes
    (Zhang et al. 2015, arXiv:1411.4229).
    """
    matrix = weight.astype(np.float64)
    outer = matrix @ matrix.T if second is None else matrix @ second @ matrix.T
    basis = _top_vectors(outer, rank)
    return _balanced(basis.T @ matrix, basis)


def tucker2(
    weight: Array, rank_out: int, rank_in: int, second: Array | None = None
) -> tuple[Double, Double, Double]:
    """Turn `(out, in, kh, kw)` into `(rank_in, in)`, core `(rank_out, rank_in, kh, kw)` and
    `(out, rank_out)`.

    Kim et al. 2016 (arXiv:1511.06530), by higher-order SVD, which is within a factor √2 of the best.
    """
    dense = weight.astype(np.float64)
    out, into = dense.shape[:2]
    flat = dense.reshape(out, -1)
    expand = _top_vectors(flat @ flat.T if second is None else flat @ second @ flat.T, rank_out)
    root, inverse_root = _roots(_of_channels(second, into), into)
    inputs = root @ dense.transpose(1, 0, 2, 3).reshape(into, -1)
    basis = _top_vectors(inputs @ inputs.T, rank_in)
    core = np.einsum("oikl,or,is->rskl", dense, expand, root @ basis, optimize=True)
    return (inverse_root @ basis).T, core, expand


def spatial_svd(weight: Array, rank: int, second: Array | None = None) -> tuple[Double, Double]:
    """Turn `(out, in, kh, kw)` into a column filter `(rank, in, kh, 1)` and a row filter
    `(out, rank, 1, kw)`.

    Jaderberg et al. 2014 (arXiv:1405.3866), scheme 2, by the SVD of the `(in·kh, out·kw)` matrix.
    """
    out, into, height, width = weight.shape
    matrix = weight.astype(np.float64).transpose(1, 2, 0, 3).reshape(into * height, out * width)
    root, inverse_root = _roots(_of_columns(second, into, height, width), len(matrix))
    weighted = root @ matrix
    if len(weighted) <= weighted.shape[1]:
        basis = _top_vectors(weighted @ weighted.T, rank)
        left, right = inverse_root @ basis, basis.T @ weighted
    else:
        basis = _top_vectors(weighted.T @ weighted, rank)
        left, right = inverse_root @ weighted @ basis, basis.T
    rows, columns = _balanced(right, left)
    first = columns.reshape(into, height, rank).transpose(2, 0, 1)[..., None]
    return first, rows.reshape(rank, out, width).transpose(1, 0, 2)[:, :, None]


def cp(weight: Array, rank: int, sweeps: int = ALS_SWEEPS) -> tuple[Double, Double, Double]:
    """Turn `(out, in, kh, kw)` into `(rank, in)`, one filter a channel `(rank, 1, kh, kw)`, and
    `(out, rank)`.

    Lebedev et al. 2015 (arXiv:1412.6553), with both spatial axes as one, by alternating least squares from
    a start of the leading vectors of each axis; a tiny ridge keeps terms from growing against each other.
    """
    out, into, *kernel = weight.shape
    dense = weight.astype(np.float64).reshape(out, into, -1)
    rng = np.random.default_rng(0)
    factors = [_start(dense, axis, rank, rng) for axis in range(3)]
    products = ("oik,ir,kr->or", "oik,or,kr->ir", "oik,or,ir->kr")
    for _ in range(sweeps):
        for axis, product in enumerate(products):
            one, two = (factor for other, factor in enumerate(factors) if other != axis)
            gram = (one.T @ one) * (two.T @ two)
            gram += ALS_RIDGE * max(float(np.trace(gram)) / rank, 1e-30) * np.eye(rank)
            moment = np.einsum(product, dense, one, two, optimize=True)
            factors[axis] = np.linalg.solve(gram, moment.T).T
    sizes = [np.maximum(np.linalg.norm(factor, axis=0), 1e-30) for factor in factors]
    level = np.cbrt(sizes[0] * sizes[1] * sizes[2])
    expand, reduce, filters = (factor / size * level for factor, size in zip(factors, sizes, strict=True))
    return reduce.T, filters.T.reshape(rank, 1, *kernel), expand


def _start(dense: Double, axis: int, rank: int, rng: np.random.Generator) -> Double:
    unfolded = np.moveaxis(dense, axis, 0).reshape(dense.shape[axis], -1)
    leading = _top_vectors(unfolded @ unfolded.T, min(rank, len(unfolded)))
    extra = rng.normal(size=(len(unfolded), rank - leading.shape[1])) / len(unfolded) ** 0.5
    return np.concatenate([leading, extra], axis=1)


def _top_vectors(symmetric: Double, count: int) -> Double:
    """Return the eigenvectors of the largest eigenvalues, as columns."""
    return np.ascontiguousarray(_eigenvectors(symmetric.tobytes(), len(symmetric))[:, ::-1][:, :count])


@lru_cache(maxsize=4)
def _eigenvectors(content: bytes, size: int) -> Double:
    """Return the eigenvectors of a symmetric matrix, by rising eigenvalue; cached, as the ranks of one layer
    ask for the same."""
    return np.asarray(np.linalg.eigh(np.frombuffer(content).reshape(size, size))[1])


def _balanced(first: Double, second: Double) -> tuple[Double, Double]:
    """Return both factors with equal norms for each term, which training likes better; the product is the
    same."""
    sizes = [
        np.maximum(np.linalg.norm(first, axis=1), 1e-30),
        np.maximum(np.linalg.norm(second, axis=0), 1e-30),
    ]
    scale = np.sqrt(sizes[1] / sizes[0])
    return first * scale[:, None], second / scale


def _of_channels(second: Array | None, into: int) -> Double | None:
    """Return the second moments of channels, the mean over the taps of the kernel."""
    if second is None:
        return None
    taps = len(second) // into
    return np.einsum("itjt->ij", second.astype(np.float64).reshape(into, taps, into, taps)) / taps


def _of_columns(second: Array | None, into: int, height: int, width: int) -> Double | None:
    """Return the second moments of channels and rows of the kernel together, the mean over its columns."""
    if second is None:
        return None
    split = second.astype(np.float64).reshape(into, height, width, into, height, width)
    return np.einsum("iyxjzx->iyjz", split).reshape(into * height, into * height) / width


def _roots(second: Double | None, size: int) -> tuple[Double, Double]:
    """Return the symmetric square root of the damped moments and its inverse; without moments the
    identity."""
    if second is None:
        return np.eye(size), np.eye(size)
    values, vectors = np.linalg.eigh(second)
    level = DAMPING * max(float(values.mean()), 1e-30)
    values = np.sqrt(np.maximum(values, 0) + level)
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def energy_rank(matrix: Array, share: float = 0.9) -> int:
    """Count the fewest singular values of a matrix whose squares make up `share` of the sum of all."""
    squares = np.square(np.linalg.svd(matrix.astype(np.float64), compute_uv=False))
    wanted = share * squares.sum() * (1 - 1e-12)
    return int(np.searchsorted(np.cumsum(squares), wanted) + 1)


def vbmf_rank(matrix: Array) -> int:
    """Count the singular values of a matrix that stand out of noise, which is estimated as well; may be 0.

    The global solution of empirical variational Bayesian matrix factorisation (Nakajima et al. 2013,
    JMLR 14, theorem 2 and corollary 1), the start that Kim et al. 2016 (arXiv:1511.06530) use.
    """
    rows, columns = sorted(matrix.shape)
    squares = np.square(np.linalg.svd(matrix.astype(np.float64), compute_uv=False)) / columns
    ratio = rows / columns
    edge = 2.5129 * ratio**0.5
    threshold = (1 + edge) * (1 + ratio / edge)
    most = min(int(np.ceil(rows / (1 + ratio))) - 1, rows - 1)
    low = max(float(squares[most]) / threshold, float(squares[most:].mean()))
    high = float(squares.mean())
    if high <= 0:
        return 0
    trials = np.geomspace(min(max(low, 1e-12 * high), high), high, 400)
    noise = min(trials, key=lambda variance: _free_energy(squares / variance, ratio, threshold))
    return int((squares > noise * threshold).sum())


def _free_energy(x: Double, ratio: float, threshold: float) -> float:
    """Return the free energy up to constants, as a function of squared singular values in units of the
    noise."""
    signal, noise = x[x > threshold], np.maximum(x[x <= threshold], 1e-300)
    excess = signal - 1 - ratio
    tau = (excess + np.sqrt(np.maximum(excess**2 - 4 * ratio, 0))) / 2
    terms = signal - tau + np.log((tau + 1) / signal) + ratio * np.log(tau / ratio + 1)
    return float((noise - np.log(noise)).sum() + terms.sum())
