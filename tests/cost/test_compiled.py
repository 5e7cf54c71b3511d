"""Prices that are sums over pieces of a network are those of the whole network, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from piece_networks import NETWORKS, pieces_pricer
from priced_networks import Arithmetic, small_resnet

from autocompress.cost.compiled.pieces import Uncuttable
from autocompress.cost.compiled.pricing import MOST_ROWS, SumPricer
from autocompress.cost.compiled.sections import cut
from autocompress.cost.layouts import Layouts
from autocompress.cost.memory import live_bytes, weight_bytes
from autocompress.cost.model import CostModel
from autocompress.cost.pricer import Pricer, with_choice
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import parse_space
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sampling import PRECISIONS, random_candidate
from autocompress.transforms.sites import BoundSpace, bind


def drawn(bound: BoundSpace, count: int, seed: int = 0) -> Iterator[Candidate]:
    """Random candidates, those whose choices are all drawn alike, and walks of ten changes from either."""
    rng = random.Random(seed)
    candidate = Candidate()
    for index in range(count):
        if index % 12 == 0:
            candidate = random_candidate(bound, rng, PRECISIONS[index // 12 % 3])
        elif index % 12 == 6:
            candidate = Candidate.of({site.name: rng.choice(site.options) for site in bound.free})
        else:
            site = rng.choice(bound.free)
            candidate = with_choice(candidate, site.name, rng.choice(site.options))
        yield candidate


@pytest.mark.parametrize("name", NETWORKS)
def test_prices_in_pieces_are_those_of_the_whole_network(name: str):
    pricer = pieces_pricer(name)
    pieces = SumPricer(pricer.bound.folded, pricer.cost_model)
    for candidate in drawn(pricer.bound, 250):
        network = deployed_network(pricer.bound.folded, candidate)
        cost = pieces.price(candidate)
        assert cost == pricer.cost_model.price(network) == pricer.price(candidate)
        assert cost.peak_memory_bytes - weight_bytes(network) == max(live_bytes(network).values())


@pytest.mark.parametrize("layouts", [Layouts(0, False), Layouts(0, True), Layouts(8, False)])
def test_so_they_are_for_other_runtimes(layouts: Layouts):
    pricer = pieces_pricer("shortcuts", layouts)
    for candidate in drawn(pricer.bound, 60, seed=1):
        assert pricer.price(candidate) == pricer.price_whole(candidate)


def test_a_pricer_that_remembers_too_much_starts_anew():
    pricer = pieces_pricer("resnet")
    pieces = SumPricer(pricer.bound.folded, pricer.cost_model)
    candidates = list(drawn(pricer.bound, 20))
    before = [pieces.price(candidate) for candidate in candidates]
    pieces._rows = MOST_ROWS + 1
    assert [pieces.price(candidate) for candidate in candidates] == before
    assert 0 < pieces._rows < MOST_ROWS


def test_a_network_is_cut_where_everything_passes_through_one_value():
    bound = pieces_pricer("resnet").bound.folded
    sections, _ = cut(bound, 16)
    assert [section.entry for section in sections][:2] == ["input", "relu"]
    assert sum(len(section.pieces) for section in sections) > len(sections) > 3


MERGES = """
name: merges
rules:
  - match: {layer: conv}
    width: {keep: [0.5, 1.0], importance: l2, round_to: 4}
    bits: [32, 8]
    merge: [keep, merge]
"""


def test_a_space_that_cannot_be_cut_is_priced_whole():
    network, _ = trace(small_resnet(), (1, 16, 16))
    bound = bind(parse_space(MERGES), network)
    pricer = Pricer(bound, CostModel(Arithmetic()))
    if bound.of_kind("merge"):
        with pytest.raises(Uncuttable):
            cut(bound.folded, 16)
    for candidate in drawn(bound, 20):
        assert pricer.price(candidate) == pricer.price_whole(candidate)


@pytest.mark.parametrize("choice", [("width:nowhere", 0.5), ("bits:fc", 5)])
def test_a_choice_that_the_space_does_not_have_is_refused(choice: tuple[str, object]):
    with pytest.raises(KeyError, match=r"width:nowhere|bits:fc|does not have"):
        pieces_pricer("resnet").price(Candidate.of([choice]))
