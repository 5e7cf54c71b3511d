"""Choices that do not pay on a device, with the numbers that say so."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from priced_networks import Arithmetic, small_pricer
from torch import nn

from autocompress.api import Inspection, inspect
from autocompress.cost.kernels import Kernel
from autocompress.cost.pricer import Pricer
from autocompress.cost.worthless_choices import payoff
from autocompress.errors import SpaceError
from autocompress.pipeline.preparation import priced
from autocompress.problem.budgets import Budgets
from autocompress.problem.candidate import Candidate


@dataclass
class SlowInt8(Arithmetic):
    """8 bits take 30 % longer than 32."""

    def kernel_us(self, kernel: Kernel) -> float:
        return (1 + kernel.macs / 10_000) * (1.3 if kernel.precision == "int8" else 1.0)


def test_bits_that_are_never_faster_are_told_with_both_times():
    pricer, _ = small_pricer(SlowInt8())
    found = payoff(pricer)
    assert {option for _, option in found.only_smaller} == {8}
    assert {name.partition(":")[0] for name, _ in found.only_smaller} == {"bits"}
    reason = found.only_smaller["bits:blocks.0.conv1", 8]
    # 16 · 16 · 9 · 8 · 8 multiply-adds
    fast = 1 + 147_456 / 10_000
    assert "int8 is 1.3× slower than float32 for this layer on this device" in reason
    assert f"({1.3 * fast:.1f} against {fast:.1f} µs)" in reason


def test_bits_are_left_out_only_where_no_size_can_be_asked_for():
    pricer, _ = small_pricer(SlowInt8())
    found = payoff(pricer)
    assert set(found.dropped(Budgets(latency_ms=1).limited)) == {*found.useless, *found.only_smaller}
    for budgets in (Budgets(size_mib=1), Budgets(latency_ms=1, memory_ratio=0.5)):
        assert found.dropped(budgets.limited) == found.useless


def test_a_search_for_latency_alone_does_not_offer_slow_bits():
    bound = small_pricer()[0].bound
    assert priced(bound, SlowInt8(), ["latency_ms"]).bound.of_kind("bits") == ()
    assert priced(bound, SlowInt8(), ["latency_ms", "file_bytes"]).bound.of_kind("bits") != ()
    assert priced(bound, Arithmetic(), ["latency_ms"]).bound.of_kind("bits") != ()


def test_what_runs_operations_unlike_any_measured_is_not_priced_but_dropped():
    bound = small_pricer()[0].bound
    blocks = [site.name for site in bound.of_kind("block")]
    offered = {name: bound.by_name[name].options for name in blocks}
    assert all("depthwise_separable" in options for options in offered.values())
    kept = priced(bound, Arithmetic(measured=((3, 1), (1, 1))), ["latency_ms"]).bound
    reasons = {name: reason for name, option, reason in kept.dropped if option == "depthwise_separable"}
    assert reasons.keys() == set(blocks)
    for reason in reasons.values():
        assert reason.startswith("the device profile has measured nothing like conv fp32 depthwise 3×3")
    assert all("depthwise_separable" not in kept.by_name[name].options for name in blocks)
    everything = priced(bound, Arithmetic(), ["latency_ms"]).bound
    assert all("measured nothing" not in reason for *_, reason in everything.dropped)


def test_bits_that_are_faster_are_kept():
    assert payoff(small_pricer()[0]).only_smaller == {}


def test_fewer_than_8_bits_take_the_time_of_8():
    pricer, _ = small_pricer()
    sites = tuple(
        replace(site, options=("binary", 4, *site.options)) if 8 in site.options else site
        for site in pricer.bound.sites
    )
    few = Pricer(replace(pricer.bound, sites=sites), pricer.cost_model)
    eight, four = (few.price(Candidate.of({"bits:blocks.0.conv1": bits})) for bits in (8, 4))
    assert (eight.latency_ms, eight.file_bytes) == (four.latency_ms, four.file_bytes)
    found = payoff(few)
    assert found.useless == payoff(pricer).useless and found.only_smaller == {}
    told = {key: reason for key, reason in found.only_packed.items() if key[0].startswith("bits:")}
    assert {option for _, option in told} == {"binary", 4}
    assert set(told.values()) == {"makes only student.acz smaller, and nothing faster"}
    assert four.packed_bytes < eight.packed_bytes


def test_a_width_that_saves_nothing_is_told_with_both_times(monkeypatch: pytest.MonkeyPatch):
    pricer, _ = small_pricer()
    name = next(site.name for site in pricer.bound.of_kind("width") if site.target == "blocks.0.conv1")
    monkeypatch.setattr(pricer, "useless", lambda: {(name, 0.75): ""})
    (reason,) = payoff(pricer).useless.values()
    assert "width 12 of 16 takes 12.1 µs, 16 takes 15.7 µs" in reason


def test_where_nothing_pays_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch):
    pricer, _ = small_pricer()
    everything = {
        (site.name, option): "slower"
        for site in pricer.bound.free
        for option in site.options
        if option != site.default
    }
    monkeypatch.setattr("autocompress.cost.pricer.Pricer.useless", lambda _: everything)
    with pytest.raises(SpaceError, match="no choice of the space makes anything faster or smaller"):
        priced(pricer.bound, Arithmetic())
    kept = pricer.bound.without(everything)
    found = Inspection(kept.sites, kept.dropped, kept.log10_size, None, None)
    assert found.conclusion == "No choice of the space makes anything faster or smaller on this device."
    assert found.to_json()["conclusion"] == found.conclusion
    assert Inspection(pricer.bound.sites, (), 1.0, None, None).conclusion == ""


class Averaged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.second(self.first(x).relu()).relu().mean((2, 3)))


def test_inspect_drops_the_bits_that_a_profile_of_floats_does_not_know() -> None:
    found = inspect(Averaged(), device="epyc-zen5-torch-1-thread", input_size=32)
    reasons = {why for name, _, why in found.dropped if name.startswith("bits:")}
    assert reasons == {"torch was measured without 8-bit kernels"}
    assert found.teacher_cost is not None and found.teacher_cost.latency_ms > 0
