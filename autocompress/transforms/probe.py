"""Tries every kind of change once, before a search, and locks what the network does not survive.

Coupling follows the data flow by rules; the probe is their check. All groups are halved at once;
if the network then fails to run, they are tried one by one and those that fail are locked. The same
is done for merges and for the choices at blocks. Compact forms of blocks are tried with random weights, since
decomposing the teacher's takes a while.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from autocompress.graph.module import build, zero_inputs
from autocompress.graph.network import Weights
from autocompress.problem.candidate import Candidate, Option, Site
from autocompress.transforms.apply import apply
from autocompress.transforms.sampling import random_weights
from autocompress.transforms.sites import BoundSpace


def probed(bound: BoundSpace, weights: Weights) -> BoundSpace:
    """Return the space without the choices that make the network fail."""
    drops: dict[tuple[str, Option], str] = {}
    merges: list[tuple[str, Option]] = [(site.name, "merge") for site in bound.of_kind("merge")]
    widths = [(site.name, site.options[0]) for site in bound.of_kind("width")]
    blocks = [
        (site.name, option) for site in bound.of_kind("block") for option in site.options if option != "keep"
    ]
    dropped = [choice for choice in blocks if choice[1] == "drop"]
    compact = [choice for choice in blocks if choice[1] != "drop"]
    for choices, known in ((widths, weights), (merges, weights), (dropped, weights), (compact, None)):
        for name, option in _failing(choices, partial(_runs, bound, known)):
            site = bound.by_name[name]
            drops.update({(name, other): "the network does not run with it" for other in _like(site, option)})
    return bound.without(drops) if drops else bound


def _like(site: Site, option: Option) -> list[Option]:
    return [other for other in site.options if other != site.default] if site.kind == "width" else [option]


def _failing(
    choices: Sequence[tuple[str, Option]], runs: Callable[[Candidate], bool]
) -> list[tuple[str, Option]]:
    """Find the choices that fail by halving."""
    if not choices or runs(Candidate.of(choices)):
        return []
    if len(choices) == 1:
        return list(choices)
    half = len(choices) // 2
    return [*_failing(choices[:half], runs), *_failing(choices[half:], runs)]


def _runs(bound: BoundSpace, weights: Weights | None, candidate: Candidate) -> bool:
    try:
        network, cut = apply(bound, weights, candidate)
        with torch.no_grad():
            module = build(network, random_weights(network) if cut is None else cut)
            shapes = [tuple(one.shape) for one in module.outputs_of(zero_inputs(network, 2))]
        expected = [bound.network.shape_of(name)[1:] for name in bound.network.outputs]
        batches = {shape[0] for shape in shapes} if network.signature is None else {2}
        return batches == {2} and [shape[1:] for shape in shapes] == expected
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError):
        return False
