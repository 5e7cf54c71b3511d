"""Sparsity and shared values as choices: networks marked with them, and weights that keep to the marks.

A mark says what a layer's weights will be: `density` is the share of them that is not zero, `codebook` the
number of values that they share. Zeros are made when a student starts, from its weights at that moment;
values are shared when it is shipped, because folding a batch norm scales every filter by itself. The values
are then kept in half precision, and the biases of such layers as few levels of one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.network import Network, Node, Weights
from autocompress.graph.operations import WEIGHTED
from autocompress.graph.replace_layer import groups_of
from autocompress.problem.candidate import Option
from autocompress.problem.space_rules import density_of, n_of_m
from autocompress.transforms.arrays.codebooks import entropy_constrained, k_means
from autocompress.transforms.arrays.masks import Mask, magnitude_mask, n_of_m_mask
from autocompress.transforms.arrays.obs import obs

Array = NDArray[Any]

RATE_SHARE = 0.5
"""A bit of a shared weight's index is worth this much of the slope of rate and distortion at high rates."""

BIAS_LEVELS = 127
"""On either side of zero, for the biases of a layer with a codebook."""

_MOST_WEIGHTS = 1 << 16
"""Values are found on so many weights of a layer, drawn at random, where it has twice as many."""


@dataclass(frozen=True)
class Thinning:
    """Say how a layer is made sparse: an option of its site, and by which method."""

    keep: Option
    method: str

    @property
    def density(self) -> float:
        return density_of(self.keep)


@dataclass(frozen=True)
class WeightStatistics:
    """Hold what data says of weights: `scores` by parameter, of its shape; `moments` by layer, second moments
    of its input rows `(groups, fan_in, fan_in)`. What is missing, or of another shape, is not used."""

    scores: Mapping[str, Array]
    moments: Mapping[str, Array]


NO_EVIDENCE = WeightStatistics({}, {})


def marked(network: Network, thinnings: Mapping[str, Thinning], codebooks: Mapping[str, int]) -> Network:
    """Return the network with densities and codebooks at the named layers; those that it lacks are passed
    over."""
    if not thinnings and not codebooks:
        return network
    return network.with_nodes(
        node.but(
            density=thinnings[node.name].density if node.name in thinnings else node.density,
            codebook=codebooks.get(node.name, node.codebook),
        )
        if node.op in WEIGHTED and (node.name in thinnings or node.name in codebooks)
        else node
        for node in network.nodes
    )


def sparse_layers(network: Network) -> Iterator[Node]:
    return (node for node in network.nodes if node.density < 1)


def sharing_layers(network: Network) -> Iterator[Node]:
    return (node for node in network.nodes if node.codebook)


def thinned(
    network: Network,
    weights: Weights,
    thinnings: Mapping[str, Thinning],
    evidence: WeightStatistics = NO_EVIDENCE,
) -> Weights:
    """Return the weights with zeros where the marked layers among `thinnings` want them; others are the same
    arrays.

    By the method `magnitude` the largest weights stay, by `obd` those of the highest scores, and by `obs`
    (`transforms.arrays.obs`) they also change to make up for the others. A layer without statistics goes
    by magnitude.
    """
    changed = dict(weights)
    for node in (node for node in sparse_layers(network) if node.name in thinnings):
        (param, *_), thinning = node.params, thinnings[node.name]
        changed[param] = _thinned(node, weights[param], thinning, param, evidence)
    return changed


def _thinned(node: Node, weight: Array, thinning: Thinning, param: str, evidence: WeightStatistics) -> Array:
    if thinning.method == "obs" and (second := _moments_of(node, weight, evidence)) is not None:
        parts = zip(np.split(weight, len(second)), second, strict=True)
        found = [obs(part, moments, thinning.keep) for part, moments in parts]
        return np.concatenate(found).astype(weight.dtype)
    scores = evidence.scores.get(param)
    usable = thinning.method == "obd" and scores is not None and scores.shape == weight.shape
    return weight * mask_of(scores if usable and scores is not None else weight, thinning.keep)


def _moments_of(node: Node, weight: Array, evidence: WeightStatistics) -> Array | None:
    """Return the layer's second moments `(groups, fan_in, fan_in)`, if they are there and are of the weight
    as it is."""
    second = evidence.moments.get(node.name)
    fan_in = int(np.prod(weight.shape[1:]))
    groups = groups_of(node)
    fits = second is not None and second.size == groups * fan_in**2 and second.shape[-1] == fan_in
    return second.reshape(groups, fan_in, fan_in) if second is not None and fits else None


def mask_of(scores: Array, keep: Option) -> Mask:
    """Return True for the weights that stay: the highest scores of all, or of every M along the inputs, where
    a last group of fewer keeps at most N."""
    pattern = n_of_m(keep)
    if pattern is None:
        return magnitude_mask(scores, float(keep))
    inputs = scores.shape[1]
    spare = -inputs % pattern[1]
    padded = np.pad(scores, [(0, 0), (0, spare), *[(0, 0)] * (scores.ndim - 2)])
    return n_of_m_mask(padded, *pattern)[:, :inputs]


def shared(network: Network, weights: Weights) -> Weights:
    """Return the weights with few values at the marked layers; zeros stay zero, other arrays are the same
    ones.

    Values are those of least squared error and bits together (`entropy_constrained`), a bit being worth
    `RATE_SHARE` of what it saves at high rates, 2 ln 2 times the error of k-means.
    """
    changed = dict(weights)
    for node in sharing_layers(network):
        changed[node.params[0]] = share(weights[node.params[0]], node.codebook)
    return changed


def rounded(network: Network, weights: Weights) -> Weights:
    """Return the weights with the values of the marked layers in half precision, unless that lacks them, and
    the biases that only they have as multiples of a power of two, up to `BIAS_LEVELS` on either side."""
    changed = dict(weights)
    for node in sharing_layers(network):
        weight, *biases = node.params
        changed[weight] = _halved(weights[weight])
        own = (name for name in biases if len(network.param_users[name]) == 1)
        changed |= {name: _few_levels(weights[name]) for name in own}
    return changed


def _halved(weight: Array) -> Array:
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16).astype(np.float32)
    largest = float(np.abs(weight).max(initial=0))
    return half if np.allclose(half, weight, rtol=1e-3, atol=1e-3 * largest) else weight


def _few_levels(bias: Array) -> Array:
    largest = float(np.abs(bias).max(initial=0))
    if not np.isfinite(largest) or largest < np.finfo(np.float32).tiny:
        return bias
    step = np.float32(2.0 ** np.ceil(np.log2(largest / BIAS_LEVELS)))
    found: Array = np.rint(bias / step) * step
    return found.astype(np.float32)


def share(weight: Array, count: int) -> NDArray[np.float32]:
    """Return a weight with at most `count` values, zero being one of them where it pays; see `shared`."""
    if len(np.unique(weight)) <= count:
        return weight.astype(np.float32)
    is_large = weight.size >= 2 * _MOST_WEIGHTS
    sample = weight.ravel()
    if is_large:  # Even steps would meet the same tap of every kernel.
        sample = sample[np.random.default_rng(0).integers(weight.size, size=_MOST_WEIGHTS)]
    error = float(np.square(k_means(sample, count).weight - sample).mean())
    book = entropy_constrained(sample, count, RATE_SHARE * 2 * np.log(2) * error)
    if not is_large:
        return book.weight.reshape(weight.shape)
    values = book.values.copy()
    values[np.argmin(np.abs(values))] = 0
    nearest: NDArray[np.float32] = values[np.searchsorted((values[1:] + values[:-1]) / 2, weight)]
    return np.where(weight == 0, np.float32(0), nearest)
