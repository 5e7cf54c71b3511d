"""Carries out a candidate: `apply(bound, weights, candidate)` is the student before it is trained.

With `weights=None` only shapes change, which is all that pricing needs, so the network that is
priced and the network that is built come out of the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from autocompress.candidate import Candidate
from autocompress.network import INPUT, Network, Weights
from autocompress.transforms import compact, depth, low_rank, prune
from autocompress.transforms.fold import fold_batch_norms
from autocompress.transforms.quantize import plan, with_ranges
from autocompress.transforms.sites import BoundSpace

Saliency = Mapping[str, Mapping[str, NDArray[Any]]]
"""Importance method → parameter name → elementwise importance, of the parameter's shape."""

_NOT_NEGATIVE = frozenset({"relu", "relu6", "hardtanh", "sigmoid", "hardsigmoid"})
CHAIN_SUFFIXES = ("reduce", "core", "depthwise")


def apply(
    bound: BoundSpace, weights: Weights | None, candidate: Candidate, saliency: Saliency | None = None
) -> tuple[Network, Weights | None]:
    """The network of a candidate and its weights, cut and factorised from the teacher's.

    Widths come first, on the teacher's coupled groups; then blocks are dropped or replaced, then
    layers factorised, then bit-widths marked. The arguments are not modified. Without `saliency`
    the first channels of a group stay, which is right for pricing only.

    Raises:
        KeyError: the candidate names a site that the space does not have.
    """
    bound.check(candidate)
    network, weights = _widths(bound, weights, candidate, saliency)
    network, weights, separated = _blocks(bound, network, weights, candidate)
    network, weights = _ranks(bound, network, weights, candidate, separated)
    return _bits(bound, network, candidate), weights


def deployed(network: Network, weights: Weights | None = None) -> tuple[Network, Weights | None]:
    """The network as it will be shipped: batch norms folded, quantizers in place (ranges still to be set).

    Values that cannot be negative get a range that starts at zero, as calibration will find, because
    runtimes fuse an activation into an integer kernel only then.
    """
    network, weights = fold_batch_norms(network, weights)
    planned = plan(network)
    if not planned:
        return network, weights
    return with_ranges(network, _placeholders(network, planned), planned), weights


def _placeholders(network: Network, planned: frozenset[str]) -> dict[str, tuple[float, float]]:
    """A range for each value of the plan, unlike those of other values as calibration will find them:
    equal ones would share their bytes in an exported file. A relu leaves what is positive as it is."""
    ranges: dict[str, tuple[float, float]] = {}
    for index, value in enumerate(name for name in (INPUT, *network.by_name) if name in planned):
        node = network.by_name.get(value)
        place = index * 0.618 % 1.0
        not_negative = node is not None and node.op in _NOT_NEGATIVE
        ranges[value] = (0.0 if not_negative else -0.5 - place, 1.0 + place / 2)
        if node is not None and node.op == "relu" and ranges.get(node.inputs[0], (-1.0, 0.0))[0] == 0:
            ranges[value] = ranges[node.inputs[0]]
    return ranges


def _widths(
    bound: BoundSpace, weights: Weights | None, candidate: Candidate, saliency: Saliency | None
) -> tuple[Network, Weights | None]:
    counts, importances = {}, {}
    for site in bound.of_kind("width"):
        size, round_to = site.settings["size"], site.settings["round_to"]
        counts[site.target] = prune.kept_count(size, float(candidate.get(site)), round_to)
        if saliency is not None:
            importances[site.target] = saliency[site.settings["importance"]]
    mask = prune.keep_mask(bound.coupling, counts, importances if saliency is not None else None)
    return prune.prune(bound.coupling, weights, mask)


def _blocks(
    bound: BoundSpace, network: Network, weights: Weights | None, candidate: Candidate
) -> tuple[Network, Weights | None, set[str]]:
    separated: set[str] = set()
    for site in bound.of_kind("block"):
        block, choice = bound.blocks[site.target], candidate.get(site)
        if block.add not in network.by_name:
            continue
        if choice == "drop":
            network, weights = depth.drop(network, weights, block)
        elif choice == "depthwise_separable":
            separated.update(compact.separable_layers(network, block))
            network, weights = compact.depthwise_separable(network, weights, block)
    return network, weights, separated


def _ranks(
    bound: BoundSpace, network: Network, weights: Weights | None, candidate: Candidate, separated: set[str]
) -> tuple[Network, Weights | None]:
    for site in bound.of_kind("rank"):
        keep = candidate.get(site)
        if keep == "full" or site.target not in network.by_name or site.target in separated:
            continue
        network, weights = low_rank.factorize(
            network, weights, site.target, float(keep), site.settings["round_to"]
        )
    return network, weights


def _bits(bound: BoundSpace, network: Network, candidate: Candidate) -> Network:
    bits: dict[str, int] = {}
    for site in bound.of_kind("bits"):
        choice = int(candidate.get(site))
        if choice != 32:
            bits[site.target] = choice
            bits.update({f"{site.target}.{suffix}": choice for suffix in CHAIN_SUFFIXES})
    if not bits:
        return network
    return network.with_nodes(
        node.but(bits=bits[node.name]) if node.name in bits else node for node in network.nodes
    )
