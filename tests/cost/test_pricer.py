"""Prices by hand, repair into budgets, and choices that do not pay."""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from priced_networks import Arithmetic, small_pricer

from autocompress.cost.kernels import Kernel
from autocompress.cost.pricer import Pricer, with_choice
from autocompress.cost.repair import Repairer, seeds
from autocompress.pipeline.preparation import _in_measured_precisions
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate
from autocompress.transforms.sampling import random_candidate

MACS = 16 * 8 * 8 * 9 + 4 * 16 * 16 * 8 * 8 * 9 + 16 * 3
BLOCK = "block:blocks.0"


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    return small_pricer()[0]


def test_the_teacher_by_hand(pricer: Pricer):
    """Convolutions take their activations along; left are two additions with theirs, and the mean."""
    cost = pricer.teacher
    assert cost.macs == MACS
    kernels = 1 + 4 + 2 + 1 + 1
    assert cost.latency_ms == pytest.approx((kernels + MACS / 10_000) / 1e3, rel=0.25)
    assert cost.file_bytes == 4 * (9 * 16 + 16 + 4 * (16 * 16 * 9 + 16) + 16 * 3 + 3)


def test_a_dropped_block_saves_its_multiply_adds_and_weights(pricer: Pricer):
    dropped = pricer.price(Candidate.of({BLOCK: "drop"}))
    assert pricer.teacher.macs - dropped.macs == 2 * 16 * 16 * 8 * 8 * 9
    assert pricer.teacher.file_bytes - dropped.file_bytes == 4 * 2 * (16 * 16 * 9 + 16)
    assert dropped.latency_ms < pricer.teacher.latency_ms


def test_choices_inside_a_dropped_block_cost_nothing_more(pricer: Pricer):
    width = next(site for site in pricer.bound.of_kind("width") if site.target == "blocks.0.conv1")
    alone, both = {BLOCK: "drop"}, {BLOCK: "drop", width.name: 0.25}
    assert pricer.price(Candidate.of(both)) == pricer.price(Candidate.of(alone))
    assert pricer.bound.canonical(Candidate.of(both)) == Candidate.of(alone)


def test_bits_that_the_runtime_was_not_measured_in_are_dropped(pricer: Pricer):
    def profile(precision: str) -> Any:
        row = SimpleNamespace(kernel=Kernel("conv", precision))
        return SimpleNamespace(runtime="torch", table=SimpleNamespace(rows=(row,)))

    assert _in_measured_precisions(pricer.bound, profile("int8")) is pricer.bound
    floats = _in_measured_precisions(pricer.bound, profile("fp32"))
    assert pricer.bound.of_kind("bits")
    assert not floats.of_kind("bits")
    assert {reason for name, _, reason in floats.dropped if name.startswith("bits:")} == {
        "torch was measured without 8-bit kernels"
    }


def test_the_smallest_is_a_bound_for_random_candidates(pricer: Pricer):
    rng = random.Random(0)
    for _ in range(60):
        cost = pricer.price(random_candidate(pricer.bound, rng))
        assert cost.file_bytes >= pricer.smallest.file_bytes
        assert cost.peak_memory_bytes >= pricer.smallest.peak_memory_bytes
        assert cost.latency_ms >= 0.999 * pricer.smallest.latency_ms


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_a_repaired_candidate_keeps_the_budgets(pricer: Pricer, share: float):
    limits = Limits(pricer.teacher.latency_ms * share, None, int(pricer.teacher.file_bytes * share))
    repair = Repairer(pricer, limits, {})
    rng = random.Random(1)
    for _ in range(20):
        candidate = random_candidate(pricer.bound, rng)
        repaired = repair(candidate)
        assert not limits.violated(pricer.price(repaired), upper=True)
        assert repair(repaired) == repaired
        assert repair(candidate) == repaired


def test_no_change_of_a_repair_is_unnecessary(pricer: Pricer):
    """Taking back any single change breaks the budget again."""
    limits = Limits(latency_ms=0.5 * pricer.teacher.latency_ms)
    repair = Repairer(pricer, limits, {})
    rng = random.Random(2)
    for _ in range(10):
        asked = pricer.bound.canonical(random_candidate(pricer.bound, rng))
        repaired = repair(asked)
        for site in pricer.bound.free:
            if repaired.get(site) != asked.get(site):
                back = with_choice(repaired, site.name, asked.get(site))
                same = pricer.bound.canonical(back) == repaired
                assert same or limits.violated(pricer.price(back), upper=True)


def test_what_keeps_the_budgets_is_left_alone(pricer: Pricer):
    repair = Repairer(pricer, Limits(latency_ms=1e3), {})
    candidate = Candidate.of({BLOCK: "depthwise_separable"})
    assert repair(candidate) == candidate


def test_the_less_harmful_block_is_given_up(pricer: Pricer):
    """Both blocks save the same; the damage decides."""
    blocks = [site.name for site in pricer.bound.of_kind("block")]
    limits = Limits(latency_ms=pricer.price(pricer.low_bits).latency_ms * 0.8)
    for spared, given_up in (blocks, blocks[::-1]):
        damage = {
            (site.name, option): 10.0
            for site in pricer.bound.free
            for option in site.options
            if site.kind != "bits" and option != site.default
        }
        damage[given_up, "drop"] = 0.001
        repaired = Repairer(pricer, limits, damage)(Candidate()).as_dict
        assert repaired.get(given_up) == "drop"
        assert repaired.get(spared, "keep") == "keep"


def test_seeds_keep_the_budgets_at_several_levels(pricer: Pricer):
    limits = Limits(latency_ms=pricer.teacher.latency_ms * 0.7)
    found = seeds(pricer, lambda tightened: Repairer(pricer, tightened, {}), limits, 4)
    latencies = [pricer.price(candidate).latency_ms for candidate in found]
    assert len({candidate.key for candidate in found}) == len(found) > 1
    assert max(latencies) <= limits.latency_ms
    assert min(latencies) <= 0.75 * limits.latency_ms


def test_choices_that_save_nothing_are_found():
    @dataclass
    class NoGain(Arithmetic):
        """Depthwise convolutions are so slow here that separating never pays, and files weigh nothing."""

        def kernel_us(self, kernel: Kernel) -> float:
            return 1e4 if kernel.groups > 1 else super().kernel_us(kernel)

    useless = small_pricer(NoGain())[0].useless()
    # It still makes the file smaller, so it is offered.
    assert (BLOCK, "depthwise_separable") not in useless
    pricer, _ = small_pricer()
    assert pricer.useless() == {}


def test_a_margin_of_error_tightens_the_budget():
    sure, unsure = small_pricer()[0], small_pricer(Arithmetic(relative_error=0.2))[0]
    limits = Limits(latency_ms=sure.teacher.latency_ms * 0.6)
    fast, faster = (Repairer(pricer, limits, {})(Candidate()) for pricer in (sure, unsure))
    assert unsure.price(faster).latency_ms_ci95[1] <= limits.latency_ms
    assert unsure.price(faster).latency_ms < sure.price(fast).latency_ms
