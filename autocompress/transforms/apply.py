"""Carries out a candidate: `apply(bound, weights, candidate)` is the student before it is trained.

With `weights=None` only shapes change, which is all that pricing needs, so the network that is
priced and the network that is built come out of the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from autocompress.graph.network import INPUT, Network, Weights
from autocompress.problem.candidate import (
    Candidate,
    Option,
    RankSettings,
    SparsitySettings,
    WidthSettings,
    settings_of,
)
from autocompress.transforms.families import compact, depth, low_rank, merge, prune, quantize, structured
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.quantize import makes_not_negative, plan, with_ranges
from autocompress.transforms.families.sparsity import Thinning, WeightStatistics, marked, thinned
from autocompress.transforms.sites import BoundSpace

Saliency = Mapping[str, Mapping[str, NDArray[Any]]]
"""What calibration data says of the teacher. Importance method → parameter name → importance of each
element, or of each output channel; under `MOMENTS`, layer → second moments of its input rows,
`(fan_in, fan_in)`, or one such matrix a group."""

MOMENTS = "moments"

CHAIN_SUFFIXES = (
    *("reduce", "core", "depthwise", "left", "right"),
    *("primary", "cheap", "squeeze", "point", "spread", "up", "down"),
)


def apply(
    bound: BoundSpace, weights: Weights | None, candidate: Candidate, saliency: Saliency | None = None
) -> tuple[Network, Weights | None]:
    """Return the network of a candidate and its weights, cut and factorised from the teacher's.

    Widths come first, on the teacher's coupled groups; then blocks are dropped or replaced and layers merged,
    then layers factorised or structured, then bit-widths and codebooks marked and zeros made. The arguments
    are not modified. Without `saliency` the first channels of a group stay, which is right for pricing only.

    Raises:
        KeyError: the candidate names a site that the space does not have.
    """
    bound.check(candidate)
    candidate = bound.canonical(candidate)
    network, weights = _widths(bound, weights, candidate, saliency)
    network, weights, separated = _blocks(bound, network, weights, candidate)
    for site in bound.of_kind("merge"):
        if candidate.get(site) != site.default:
            network, weights = merge.merge(network, weights, site.target)
    network, weights = _ranks(bound, network, weights, candidate, separated, saliency)
    network, weights = _structures(bound, network, weights, candidate)
    network, weights = _bits(bound, network, weights, candidate)
    thinnings = thinnings_of(bound, network, candidate)
    network = marked(network, thinnings, _codebooks(bound, network, candidate))
    if weights is not None and thinnings:
        weights = thinned(network, weights, thinnings, _evidence(saliency or {}))
    return network, weights


def dense(bound: BoundSpace, candidate: Candidate) -> Candidate:
    """Return the candidate without its choices of sparsity."""
    sparse = {site.name for site in bound.of_kind("sparsity")}
    return Candidate.of((name, option) for name, option in candidate.choices if name not in sparse)


def thinnings_of(bound: BoundSpace, network: Network, candidate: Candidate) -> dict[str, Thinning]:
    """Return how the layers of the candidate's network, parts of factorised ones included, are made
    sparse."""
    found: dict[str, Thinning] = {}
    canonical = bound.canonical(candidate)
    for site in bound.of_kind("sparsity"):
        keep = canonical.get(site)
        if keep != site.default:
            thinning = Thinning(keep, settings_of(site, SparsitySettings).method)
            found.update(dict.fromkeys(_parts(network, site.target), thinning))
    return found


def _codebooks(bound: BoundSpace, network: Network, candidate: Candidate) -> dict[str, int]:
    found: dict[str, int] = {}
    for site in bound.of_kind("codebook"):
        count = candidate.get(site)
        if count != site.default:
            found.update(dict.fromkeys(_parts(network, site.target), int(count)))
    return found


def _parts(network: Network, layer: str) -> list[str]:
    """Return the layer, and those that it became."""
    names = (layer, *(f"{layer}.{suffix}" for suffix in CHAIN_SUFFIXES))
    return [name for name in names if name in network.by_name]


def _evidence(saliency: Saliency) -> WeightStatistics:
    return WeightStatistics(saliency.get("obd", {}), saliency.get(MOMENTS, {}))


def deployed(network: Network, weights: Weights | None = None) -> tuple[Network, Weights | None]:
    """Return the network as it will be shipped: batch norms folded, quantizers in place (ranges still to be
    set).

    Values that cannot be negative get a range that starts at zero, as calibration will find, because
    runtimes fuse an activation into an integer kernel only then.
    """
    network, weights = fold_batch_norms(network, weights)
    return rounded(network, plan(network)), weights


def rounded(network: Network, planned: frozenset[str], input_from_zero: bool = False) -> Network:
    """Return the network with quantizers at these values, ranges still to be set. `input_from_zero` says of
    a section of a network that what it reads cannot be negative."""
    if not planned:
        return network
    ranges = _placeholders(network, planned)
    if input_from_zero:
        ranges[INPUT] = (0.0, 1.0)
    return with_ranges(network, ranges, planned)


def deployed_network(bound: BoundSpace, candidate: Candidate) -> Network:
    """Return the network that a candidate is shipped as, for what needs no weights."""
    network, _ = apply(bound, None, candidate)
    return deployed(network)[0]


def _placeholders(network: Network, planned: frozenset[str]) -> dict[str, tuple[float, float]]:
    """Return a range for each value of the plan, unlike those of other values as calibration will find them:
    equal ones would share their bytes in an exported file. A relu leaves what is positive as it is."""
    ranges: dict[str, tuple[float, float]] = {}
    for index, value in enumerate(name for name in (INPUT, *network.by_name) if name in planned):
        node = network.by_name.get(value)
        place = index * 0.618 % 1.0
        not_negative = node is not None and makes_not_negative(node)
        ranges[value] = (0.0 if not_negative else -0.5 - place, 1.0 + place / 2)
        if node is not None and node.op == "relu" and ranges.get(node.inputs[0], (-1.0, 0.0))[0] == 0:
            ranges[value] = ranges[node.inputs[0]]
    return ranges


def _widths(
    bound: BoundSpace, weights: Weights | None, candidate: Candidate, saliency: Saliency | None
) -> tuple[Network, Weights | None]:
    return prune.prune(bound.coupling, weights, _keep_mask(bound, candidate, saliency))


def _keep_mask(bound: BoundSpace, candidate: Candidate, saliency: Saliency | None) -> prune.Keep:
    counts, importances = {}, {}
    for site in bound.of_kind("width"):
        width = settings_of(site, WidthSettings)
        counts[site.target] = prune.kept_count(width.size, float(candidate.get(site)), width.round_to)
        if saliency is not None and counts[site.target] < width.size:
            importances[site.target] = saliency[width.importance]
    return prune.keep_mask(bound.coupling, counts, importances if saliency is not None else None)


def kept_channels(bound: BoundSpace, candidate: Candidate, saliency: Saliency) -> dict[str, prune.Keep]:
    """Return by layer of the teacher which of its output channels the candidate keeps, for those it cuts."""
    return prune.kept_outputs(bound.coupling, _keep_mask(bound, candidate, saliency))


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
        elif choice in compact.COMPACT:
            separated.update(compact.compact_layers(bound.network, block, str(choice)))
            network, weights = compact.compact(network, weights, block, str(choice))
    return network, weights, separated


def _ranks(
    bound: BoundSpace,
    network: Network,
    weights: Weights | None,
    candidate: Candidate,
    separated: set[str],
    saliency: Saliency | None,
) -> tuple[Network, Weights | None]:
    moments = {} if saliency is None else saliency.get(MOMENTS, {})
    mask = _keep_mask(bound, candidate, saliency) if moments else None
    turned = {site.target for site in bound.of_kind("structure") if candidate.get(site) != structured.DENSE}
    for site in bound.of_kind("rank"):
        keep = candidate.get(site)
        layer = next((name for name in site.layers if name in network.by_name), "")
        if keep == "full" or not layer or layer in separated or layer in turned:
            continue
        second, rank = None, settings_of(site, RankSettings)
        if mask is not None and rank.data_aware and layer in moments:
            second = prune.kept_moments(bound.coupling, layer, moments[layer], mask)
        network, weights = low_rank.factorize(
            network, weights, layer, float(keep), rank.round_to, rank.method, second
        )
    return network, weights


def _structures(
    bound: BoundSpace, network: Network, weights: Weights | None, candidate: Candidate
) -> tuple[Network, Weights | None]:
    for site in bound.of_kind("structure"):
        kind = candidate.get(site)
        if kind != structured.DENSE and site.target in network.by_name:
            network, weights = structured.structure(network, weights, site.target, str(kind))
    return network, weights


def _bits(
    bound: BoundSpace, network: Network, weights: Weights | None, candidate: Candidate
) -> tuple[Network, Weights | None]:
    chosen: dict[str, Option] = {}
    for site in bound.of_kind("bits"):
        choice = candidate.get(site)
        if choice != site.default:
            for layer in site.layers:
                chosen.update(dict.fromkeys(_parts(network, layer), choice))
    return quantize.with_bits(network, weights, chosen) if chosen else (network, weights)
