"""Latencies between blocks of a reference model, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from autocompress.device.measure import quiet_gate as quiet
from autocompress.device.measure.quiet_gate import Gate, QuietSettings

SETTINGS = QuietSettings(blocks=6, most_blocks=40, block_s=0.01, block_runs=3)


class Machine:
    """A clock, and how much slower than alone everything is at a time in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 0
        self.slower: Callable[[float], float] = lambda _: 1.0
        monkeypatch.setattr(quiet, "time", SimpleNamespace(perf_counter_ns=lambda: self.now_ns))

    def model(self, latency_ms: float) -> SimpleNamespace:
        def run_once() -> None:
            self.now_ns += round(latency_ms * 1e6 * self.slower(self.now_ns / 1e9))

        return SimpleNamespace(run_once=run_once)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_quiet_machine_is_measured_exactly(machine: Machine):
    found = Gate(machine.model(0.5), SETTINGS).latency(machine.model(2.0))
    assert found is not None
    assert (found.latency_ms, found.reference_ms) == (pytest.approx(2.0), pytest.approx(0.5))
    assert (found.spread, found.share) == (pytest.approx(0.0), 1.0)


def test_bursts_that_slow_everything_down_are_left_out(machine: Machine):
    machine.slower = lambda second: 1.6 if second % 0.2 > 0.09 else 1.0
    found = Gate(machine.model(0.5), SETTINGS).latency(machine.model(2.0))
    assert found is not None
    assert found.latency_ms == pytest.approx(2.0)
    assert found.share < 0.7


def test_the_quiet_level_is_the_references_own_fast_blocks(machine: Machine):
    machine.slower = lambda second: 1.0 if second < 0.2 else 1.5
    gate = Gate(machine.model(0.5), SETTINGS)
    for _ in range(6):
        gate.reference_ms()
    assert gate.level_ms == pytest.approx(0.5)
    assert gate.is_quiet(0.51, 0.514)
    assert not gate.is_quiet(0.51, 0.516)
    assert gate.is_quiet(0.516, tolerance=0.04)


def test_too_few_quiet_moments_are_no_latency(machine: Machine):
    gate = Gate(machine.model(0.5), SETTINGS)
    machine.slower = lambda _: 1.3
    assert gate.latency(machine.model(2.0)) is None
    lenient = gate.latency(machine.model(2.0), replace(SETTINGS, tolerance=0.5))
    assert lenient is not None
    assert lenient.latency_ms == pytest.approx(2.6)


def test_a_machine_that_became_slower_for_good_is_quiet_again_once_the_past_is_forgotten(machine: Machine):
    gate = Gate(machine.model(0.5), SETTINGS)
    for _ in range(100):
        gate.reference_ms()
    machine.slower = lambda second: 2.0 if second % 0.3 > 0.1 else 1.5
    assert gate.latency(machine.model(2.0), replace(SETTINGS, most_blocks=400, tolerance=0.1)) is None
    gate.forget()
    found = gate.latency(machine.model(2.0))
    assert found is not None
    assert (found.latency_ms, found.reference_ms) == (pytest.approx(3.0), pytest.approx(0.75))


def test_what_a_model_varies_by_itself_is_no_disturbance(machine: Machine):
    machine.slower = lambda second: 1.0 + 0.07 * (second * 7.3 % 1.0)
    found = Gate(machine.model(0.5), SETTINGS).latency(machine.model(2.0))
    assert found is not None
    assert 2.0 <= found.latency_ms <= 2.0 * 1.07


def test_a_block_begins_with_runs_that_do_not_count(machine: Machine):
    runs = 0

    def run_once() -> None:
        nonlocal runs
        runs += 1
        machine.now_ns += 5_000_000 if runs % 5 in (1, 2) else 1_000_000

    settings = replace(SETTINGS, block_s=0.0, warm_up_runs=2)
    found = Gate(machine.model(0.5), settings).latency(SimpleNamespace(run_once=run_once))
    assert found is not None
    assert found.latency_ms == pytest.approx(1.0)
