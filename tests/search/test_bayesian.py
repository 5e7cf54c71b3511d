"""The engine: asks each candidate once, keeps what is allowed, finds fronts with few evaluations."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from autocompress.problem.candidate import Candidate, Site
from autocompress.runs.pareto import hypervolume, non_dominated
from autocompress.search.proposers.bayesian import MOST_LEARNED, Engine
from autocompress.search.proposers.optuna_study import Told

SITES = (
    Site("width:a", "width", "a", (0.25, 0.5, 0.75, 1.0), 1.0),
    Site("rank:a", "rank", "a", (0.5, "full"), "full"),
    Site("bits:a", "bits", "a", (8, 32), 32),
    Site("block:b", "block", "b", ("keep", "drop", "depthwise_separable"), "keep"),
    Site("width:locked", "width", "c", (1.0,), 1.0, locked="the output"),
)
SPACE_SIZE = 4 * 2 * 2 * 3
MANY = tuple(Site(f"width:{i}", "width", str(i), (0.25, 0.5, 0.75, 1.0), 1.0) for i in range(30))


def price(candidate: Candidate) -> dict[str, float]:
    width = float(candidate.get(SITES[0]))
    latency = (
        (1 + 3 * width - 0.5 * (candidate.get(SITES[3]) == "drop")) * float(candidate.get(SITES[2])) / 32
    )
    return {"latency_ms": latency, "file_bytes": 1000 * width}


def accuracy(candidate: Candidate) -> float:
    return 0.5 + 0.4 * float(candidate.get(SITES[0])) - 0.2 * (candidate.get(SITES[3]) == "drop")


def price_of_many(candidate: Candidate) -> dict[str, float]:
    return {"latency_ms": 0.2 + sum(float(candidate.get(site)) for site in MANY) / 30}


def accuracy_of_many(candidate: Candidate) -> float:
    """Narrowing the later sites hurts most, and two neighbours hurt more than their sum."""
    cut = [1 - float(candidate.get(site)) for site in MANY]
    alone = sum((index + 1) * width for index, width in enumerate(cut)) / 465
    return 0.95 - 0.6 * alone - 0.1 * sum(a * b for a, b in itertools.pairwise(cut)) / 29


def run(engine: Engine, count: int, quality=accuracy) -> list[Candidate]:
    asked = []
    for _ in range(count):
        number, candidate = engine.ask() or pytest.fail("nothing was proposed")
        asked.append(candidate)
        engine.tell(number, {"accuracy": quality(candidate)})
    return asked


@pytest.mark.parametrize("listed", [20_000, 0])
def test_every_candidate_is_proposed_once_and_then_none(listed: int):
    engine = Engine(SITES, price, listed_up_to=listed, seed=1)
    asked = run(engine, SPACE_SIZE)
    assert len({candidate.key for candidate in asked}) == SPACE_SIZE
    assert engine.ask() is None


@pytest.mark.parametrize("listed", [20_000, 0])
def test_the_same_seed_gives_the_same_sequence(listed: int):
    first, second, other = (run(Engine(SITES, price, seed=s, listed_up_to=listed), 25) for s in (7, 7, 8))
    assert first == second != other


def test_what_is_not_allowed_is_never_proposed():
    engine = Engine(SITES, price, allowed=lambda candidate: price(candidate)["latency_ms"] <= 1.0, seed=0)
    asked = []
    while (found := engine.ask()) is not None:
        asked.append(found[1])
        engine.tell(found[0], {"accuracy": accuracy(found[1])})
    assert asked and all(price(candidate)["latency_ms"] <= 1.0 for candidate in asked)
    options = itertools.product(*(site.options for site in SITES[:4]))
    names = [site.name for site in SITES[:4]]
    every = [Candidate.of(zip(names, each, strict=True)) for each in options]
    assert len(asked) == sum(price(candidate)["latency_ms"] <= 1.0 for candidate in every)


def test_enqueued_come_first_in_their_canonical_form():
    engine = Engine(SITES, price, canonical=lambda c: Candidate.of(x for x in c.choices if x[0] != "rank:a"))
    assert engine.enqueue(Candidate.of({"width:a": 0.25, "rank:a": 0.5}))
    assert engine.enqueue(Candidate.of({"block:b": "drop"}))
    assert not engine.enqueue(Candidate.of({"width:a": 0.25}))
    assert run(engine, 2) == [Candidate.of({"width:a": 0.25}), Candidate.of({"block:b": "drop"})]


def test_several_can_be_under_way_and_failures_are_not_repeated():
    engine = Engine(SITES, price, seed=2)
    run(engine, 10)
    asked = [engine.ask() or pytest.fail("nothing was proposed") for _ in range(5)]
    assert len({candidate.key for _, candidate in asked}) == 5
    for number, _ in asked:
        engine.fail(number)
    rest = run(engine, SPACE_SIZE - 15)
    assert not {candidate.key for candidate in rest} & {candidate.key for _, candidate in asked}
    with pytest.raises(ValueError, match="not waiting"):
        engine.fail(0)


def test_replay_goes_on_without_repeating():
    before = run(Engine(SITES, price, seed=5), 20)
    after = Engine(SITES, price, seed=5)
    after.replay(
        Told(i, c, {"accuracy": accuracy(c), **price(c)} if i % 5 else None) for i, c in enumerate(before)
    )
    number, candidate = after.ask() or pytest.fail("nothing was proposed")
    assert number == 20
    after.tell(number, {"accuracy": accuracy(candidate)})
    rest = run(after, SPACE_SIZE - 21)
    assert not {candidate.key for candidate in before} & {c.key for c in [candidate, *rest]}
    assert after.ask() is None


@pytest.mark.parametrize("seed", [0, 1])
def test_in_a_large_space_it_beats_random_choice_by_far(seed: int):
    """With the additive part of the truth as its expectation, as a search has scores."""

    def additive(candidate: Candidate) -> tuple[float]:
        return (sum((i + 1) * (1 - float(candidate.get(site))) for i, site in enumerate(MANY)),)

    def volume(candidates: list[Candidate]) -> float:
        points = [(1 - accuracy_of_many(c), price_of_many(c)["latency_ms"]) for c in candidates]
        return hypervolume(points, (0.6, 1.2))

    engine = Engine(MANY, price_of_many, trusted=additive, seed=seed)
    found = volume(run(engine, 40, accuracy_of_many))
    rng = random.Random(seed)
    drawn = [Candidate.of({s.name: rng.choice(s.options) for s in MANY}) for _ in range(400)]
    assert found > volume(drawn)


def test_accuracies_that_are_not_numbers_teach_nothing():
    engine = Engine(SITES, price, seed=3)
    for index in range(20):
        number, candidate = engine.ask() or pytest.fail("nothing was proposed")
        engine.tell(number, {"accuracy": math.nan} if index % 2 else {"accuracy": accuracy(candidate)})
    assert len(engine._told) == 10


def test_with_many_workers_proposals_are_planned_together_and_none_is_repeated():
    engine = Engine(MANY, price_of_many, seed=0)
    run(engine, 12, accuracy_of_many)
    asked = [engine.ask() or pytest.fail("nothing was proposed") for _ in range(64)]
    assert len({candidate.key for _, candidate in asked}) == 64
    for number, candidate in asked:
        engine.tell(number, {"accuracy": accuracy_of_many(candidate)})
    further = [engine.ask() or pytest.fail("nothing was proposed") for _ in range(8)]
    assert not {c.key for _, c in further} & {c.key for _, c in asked}
    assert [number for number, _ in further] == list(range(76, 84))


def test_of_a_long_search_the_front_and_an_even_share_are_learned_from():
    rng = random.Random(0)
    drawn = [Candidate.of({s.name: rng.choice(s.options) for s in MANY}) for _ in range(2 * MOST_LEARNED)]
    engine = Engine(MANY, price_of_many, seed=0)
    engine.replay(Told(i, c, {"accuracy": accuracy_of_many(c)}) for i, c in enumerate(drawn))
    learned = engine._learned()
    assert len(learned) == len({known.candidate for known, _ in learned}) == MOST_LEARNED
    points = [(error, known.cost) for known, error in engine._told]
    taken = {(error, known.cost) for known, error in learned}
    assert {points[index] for index in non_dominated(points)} <= taken
    number, candidate = engine.ask() or pytest.fail("nothing was proposed")
    assert number == len(drawn) and candidate not in drawn
