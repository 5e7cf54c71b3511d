"""The solver against brute force: on additive problems, and on a small network by its exact prices."""

from __future__ import annotations

import ctypes
import itertools
import random

import pytest
from made_up_scores import made_up_damage
from priced_networks import Arithmetic, small_pricer, small_resnet

from autocompress.cost.marginal import Effect, EffectTable, effects_of, exclusions
from autocompress.cost.memory import live_bytes, peak_memory_bytes, weight_bytes
from autocompress.cost.pricer import Pricer, with_choice
from autocompress.graph.trace import trace
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Option, Site
from autocompress.problem.space import parse_space
from autocompress.search.proposers.solver import Solver, harm, knapsack, silent_stdout
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sites import bind


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    return small_pricer()[0]


SITES = (
    Site("block:b", "block", "b", ("keep", "drop"), "keep"),
    Site("width:in_b", "width", "in_b", (0.5, 0.75, 1.0), 1.0),
    Site("width:c", "width", "c", (0.25, 0.5, 1.0), 1.0),
    Site("rank:d", "rank", "d", (0.5, "full"), "full"),
)
CUTS = ("first", "second")
DROP = ("block:b", "drop")


def random_problem(seed: int) -> tuple[EffectTable, dict[tuple[str, Option], float]]:
    """Options other than the default save something and hurt; dropping the block takes its width away."""
    rng = random.Random(seed)
    effects, damage = {}, {}
    for site in SITES:
        for option in site.options:
            if option == site.default:
                effects[site.name, option] = Effect()
                continue
            live = {cut: -float(rng.randrange(0, 30)) for cut in CUTS if rng.random() < 0.7}
            effects[site.name, option] = Effect(
                -rng.random(), -float(rng.randrange(0, 50)), -float(rng.randrange(0, 20)), live
            )
            damage[site.name, option] = rng.random()
    table = EffectTable(
        4.0, 200.0, 80.0, dict.fromkeys(CUTS, 100.0), effects, {DROP: frozenset({"width:in_b"})}
    )
    return table, damage


def summed(table: EffectTable, candidate: Candidate) -> tuple[float, float, float]:
    taken = [
        table.effects[site.name, candidate.get(site)]
        for site in SITES
        if not (candidate.get(SITES[0]) == "drop" and site.name == "width:in_b")
    ]
    weights = table.weight_bytes + sum(effect.weight_bytes for effect in taken)
    memory = max(
        table.live_bytes[cut] + weights + sum(effect.live_bytes.get(cut, 0.0) for effect in taken)
        for cut in CUTS
    )
    latency = table.latency_ms + sum(effect.latency_ms for effect in taken)
    return latency, memory, table.file_bytes + sum(effect.file_bytes for effect in taken)


@pytest.mark.parametrize("seed", range(25))
def test_an_additive_problem_is_solved_as_by_brute_force(seed: int):
    table, damage = random_problem(seed)
    rng = random.Random(-seed - 1)
    limits = Limits(rng.uniform(1.5, 4), rng.randrange(80, 180), rng.randrange(60, 200))
    margin = rng.choice((0.0, 0.1))

    def total(candidate: Candidate) -> float:
        return sum(
            harm(damage, site, candidate.get(site)) for site in SITES if site.name in candidate.as_dict
        )

    feasible = []
    for options in itertools.product(*(site.options for site in SITES)):
        if options[0] == "drop" and options[1] != 1.0:
            continue
        candidate = Candidate.of(zip((site.name for site in SITES), options, strict=True))
        latency, memory, size = summed(table, candidate)
        if latency * (1 + margin) <= limits.latency_ms and memory <= limits.peak_memory_bytes:
            feasible += [candidate] if size <= limits.file_bytes else []
    found = knapsack(SITES, table, damage, limits, margin)
    if not feasible:
        assert found is None
        return
    assert found is not None
    least = min(sum(harm(damage, site, candidate.get(site)) for site in SITES) for candidate in feasible)
    assert total(found) == pytest.approx(least, rel=1e-3)
    latency, memory, size = summed(table, found)
    assert latency * (1 + margin) <= limits.latency_ms * (1 + 1e-6)
    assert memory <= limits.peak_memory_bytes * (1 + 1e-6)
    assert size <= limits.file_bytes * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(25))
def test_pairs_count_where_both_choices_are_taken(seed: int):
    table, damage = random_problem(seed)
    rng = random.Random(-seed - 1)
    limits = Limits(rng.uniform(1.5, 4))
    choices = sorted(damage, key=str)
    every = [(one, other) for one, other in itertools.combinations(choices, 2) if one[0] != other[0]]
    pairs = {pair: rng.uniform(-0.8, 1.5) for pair in rng.sample(every, 6)}

    def total(candidate: Candidate) -> float:
        taken = set(candidate.choices)
        single = sum(harm(damage, site, candidate.get(site)) for site in SITES)
        return single + sum(term for pair, term in pairs.items() if taken.issuperset(pair))

    feasible = []
    for options in itertools.product(*(site.options for site in SITES)):
        named = zip(SITES, options, strict=True)
        if options[0] != "drop" or options[1] == 1.0:
            candidate = Candidate.of((site.name, one) for site, one in named if one != site.default)
            feasible += [candidate] if summed(table, candidate)[0] <= limits.latency_ms else []
    found = knapsack(SITES, table, damage, limits, pairs=pairs)
    assert (found is None) == (not feasible)
    if found is not None:
        assert summed(table, found)[0] <= limits.latency_ms * (1 + 1e-6)
        assert total(found) == pytest.approx(min(map(total, feasible)), rel=1e-3, abs=1e-5)


def test_a_pair_that_hurts_is_avoided(pricer: Pricer):
    damage = made_up_damage(pricer, 0)
    limits = Limits(latency_ms=0.3 * pricer.teacher.latency_ms)
    plain = Solver(pricer, damage).solve(limits)
    assert plain is not None
    one, other = sorted((choice for choice in plain.choices if choice in damage), key=str)[:2]
    solver = Solver(pricer, damage, pairs={(one, other): 50.0})
    found = solver.solve(limits)
    assert found is not None
    assert not {one, other} <= set(found.choices)
    assert solver.harm(plain) == pytest.approx(Solver(pricer, damage).harm(plain) + 50)
    assert solver.harm(found) == Solver(pricer, damage).harm(found)


def test_a_table_adds_up_to_the_exact_price_of_each_single_choice(pricer: Pricer):
    base = pricer.low_bits
    table = effects_of(pricer, base)
    for (name, option), effect in table.effects.items():
        candidate = with_choice(base, name, option)
        exact = pricer.price(candidate)
        assert table.latency_ms + effect.latency_ms == pytest.approx(exact.latency_ms)
        assert table.file_bytes + effect.file_bytes == pytest.approx(exact.file_bytes)
        network = deployed_network(pricer.bound, pricer.bound.canonical(candidate))
        cuts = {cut: table.live_bytes.get(cut, 0) + effect.live_bytes.get(cut, 0) for cut in table.cuts}
        assert {cut: size for cut, size in cuts.items() if size} == live_bytes(network)
        assert table.weight_bytes + effect.weight_bytes == weight_bytes(network)
        assert max(cuts.values()) + weight_bytes(network) == peak_memory_bytes(network)


def test_a_table_survives_json(pricer: Pricer):
    import json

    table = effects_of(pricer, pricer.low_bits)
    assert EffectTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_a_dropped_block_takes_the_choices_inside_it_away(pricer: Pricer):
    dropped = exclusions(pricer.bound)["block:blocks.0", "drop"]
    inside = {site.name for site in pricer.bound.free if "blocks.0" in site.name} - {"block:blocks.0"}
    assert {"bits:blocks.0.conv1", "bits:blocks.0.conv2"} <= inside
    assert dropped == inside


def test_a_structure_takes_the_rank_of_its_layer_away_and_nothing_else():
    rules = """
name: forms
rules:
  - match: {layer: linear}
    rank: {keep: [0.25, full]}
    structure: [dense, kronecker]
    bits: [32, 8]
  - match: {block: residual}
    block: [keep, drop]
"""
    network, _ = trace(small_resnet(classes=10), (1, 16, 16))
    bound = bind(parse_space(rules), network)
    (structure,) = bound.of_kind("structure")
    (rank,) = bound.of_kind("rank")
    assert structure.target == rank.target
    assert exclusions(bound) == {(structure.name, "kronecker"): frozenset({rank.name})}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.7, 0.45])
def test_the_exact_optimum_of_a_small_space_is_found(pricer: Pricer, seed: int, share: float):
    bits = {site.name: "few enough choices to try all" for site in pricer.bound.of_kind("bits")}
    small = Pricer(pricer.bound.lock(bits), pricer.cost_model)
    damage = made_up_damage(small, seed)
    limits = Limits(latency_ms=share * small.teacher.latency_ms)
    solver = Solver(small, damage)
    every = itertools.product(*(site.options for site in small.bound.free))
    names = [site.name for site in small.bound.free]
    candidates = (small.bound.canonical(Candidate.of(zip(names, options, strict=True))) for options in every)
    feasible = (c for c in candidates if not limits.violated(small.price(c), upper=True))
    least = min(solver.harm(candidate) for candidate in feasible)
    found = solver.solve(limits)
    assert found is not None
    assert not limits.violated(small.price(found), upper=True)
    assert solver.harm(found) <= least * 1.05 + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_every_seed_keeps_all_budgets_by_its_exact_price(seed: int):
    rng = random.Random(seed)
    pricer = small_pricer(
        Arithmetic(relative_error=rng.choice((0.0, 0.08)), constant_us=rng.choice((0.0, 3.0)))
    )[0]
    teacher = pricer.teacher
    limits = Limits(
        latency_ms=rng.uniform(0.3, 0.9) * teacher.latency_ms,
        peak_memory_bytes=int(rng.uniform(0.4, 1.0) * teacher.peak_memory_bytes),
        file_bytes=int(rng.uniform(0.3, 0.9) * teacher.file_bytes),
    )
    solver = Solver(pricer, made_up_damage(pricer, seed))
    seeds = solver.sweep(limits, 4)
    assert seeds
    assert len({candidate.key for candidate in seeds}) == len(seeds)
    for candidate in seeds:
        assert pricer.bound.canonical(candidate) == candidate
        assert not limits.violated(pricer.price(candidate), upper=True)


def test_equal_questions_have_equal_answers(pricer: Pricer):
    damage = made_up_damage(pricer, 1)
    limits = Limits(latency_ms=0.4 * pricer.teacher.latency_ms)
    first, second = (Solver(pricer, damage).solve(limits) for _ in range(2))
    assert first == second


def test_nothing_is_answered_where_nothing_keeps_the_limits(pricer: Pricer):
    assert Solver(pricer, {}).solve(Limits(latency_ms=0.5 * pricer.smallest.latency_ms)) is None


def test_scores_that_are_not_numbers_are_the_worst(pricer: Pricer):
    site = pricer.bound.of_kind("block")[0]
    worst = harm({(site.name, "drop"): float("inf")}, site, "drop")
    assert worst == harm({(site.name, "drop"): float("nan")}, site, "drop") > 100


def test_what_c_code_prints_while_solving_does_not_reach_stdout(capfd: pytest.CaptureFixture[str]):
    library = ctypes.CDLL(None)
    with silent_stdout():
        library.puts(b"a debugging line")
    library.puts(b"a result")
    library.fflush(None)
    assert capfd.readouterr().out == "a result\n"
