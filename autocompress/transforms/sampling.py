"""Random candidates of a space, and random weights for them: what devices are profiled with."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np

from autocompress.graph.network import Network, Weights
from autocompress.problem.candidate import PACKED_KINDS, Candidate, Option, Site, eight_bits
from autocompress.transforms.sites import BoundSpace

PRECISIONS = ("fp32", "int8", "mixed")


def random_candidate(bound: BoundSpace, rng: random.Random, precision: str = "mixed") -> Candidate:
    """Draw a candidate whose overall strength is drawn first, so that light and heavy ones are equally
    likely."""
    strength = rng.random()
    choices: dict[str, Option] = {}
    for site in bound.free:
        if site.kind == "bits":
            choices[site.name] = _bits(site, rng, precision)
        elif rng.random() < strength:
            choices[site.name] = rng.choice(site.options)
    return bound.canonical(Candidate.of(choices))


def samples(
    bound: BoundSpace, count: int, seed: int, precisions: Sequence[str] = ("fp32", "int8")
) -> Iterator[tuple[str, Candidate]]:
    """Yield `(precision, candidate)` pairs without repeats: the teacher in each precision, then random ones.

    Sparsity and shared values, which change no kernel, are left out. `precisions` are those that the device
    computes in.
    """
    bound = bound.lock({site.name: "no runtime sees it" for site in bound.free if site.kind in PACKED_KINDS})
    rng = random.Random(seed)
    has_bits = bool(bound.of_kind("bits")) and "int8" in precisions
    kinds = PRECISIONS if has_bits else ("fp32",)
    seen: set[str] = set()
    lowest = {site.name: eight_bits(site) for site in bound.of_kind("bits")}
    for precision, candidate in (("fp32", Candidate()), ("int8", Candidate.of(lowest))):
        if precision in kinds and candidate.key not in seen:
            seen.add(candidate.key)
            yield precision, candidate
    for index in range(20 * count):
        if len(seen) >= count:
            return
        precision = kinds[index % len(kinds)]
        candidate = random_candidate(bound, rng, precision)
        if candidate.key not in seen:
            seen.add(candidate.key)
            yield precision, candidate


def random_weights(network: Network, seed: int = 0) -> Weights:
    """Draw weights of the network's shapes, small and without denormal numbers: timing does not depend on
    them."""
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    for name, spec in network.params.items():
        values = rng.uniform(0.01, 0.1, spec.shape)
        if spec.trainable and len(spec.shape) > 1:
            values *= rng.choice((-1.0, 1.0), spec.shape)
        weights[name] = values.astype(spec.dtype)
    return weights


def _bits(site: Site, rng: random.Random, precision: str) -> Option:
    if precision == "fp32":
        return site.default
    if precision == "int8":
        return eight_bits(site)
    return rng.choice(site.options) if len(site.options) == 2 else rng.choice((site.default, _few(site, rng)))


def _few(site: Site, rng: random.Random) -> Option:
    return rng.choice(site.options[:-1])
