"""Budgets as typed, as limits in absolute units, and against costs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import BudgetError
from autocompress.problem.budgets import Budgets, Limits, check_reachable
from autocompress.problem.candidate import Cost

TEACHER = Cost(4.0, (3.9, 4.2), 1_000_000, 500_001, 10, 10)


@pytest.mark.parametrize(
    ("latency", "milliseconds"),
    [("2ms", 2.0), ("0.5 ms", 0.5), ("500us", 0.5), ("500µs", 0.5), ("1s", 1000.0), (" 2e1ms ", 20.0)],
)
def test_latency_units(latency: str, milliseconds: float) -> None:
    assert Budgets.parse(latency=latency).resolve(TEACHER).latency_ms == pytest.approx(milliseconds)


@pytest.mark.parametrize(
    ("size", "file_bytes"),
    [
        ("1B", 1),
        ("300KB", 300_000),
        ("300KiB", 300 * 1024),
        ("1.5MB", 1_500_000),
        ("8MiB", 8 * 1024 * 1024),
        ("1GB", 10**9),
        ("1GiB", 2**30),
        ("40%", 200_000),
    ],
)
def test_byte_units_round_down(size: str, file_bytes: int) -> None:
    assert Budgets.parse(size=size).resolve(TEACHER) == Limits(file_bytes=file_bytes)


def test_relative_budgets_are_of_the_teacher() -> None:
    limits = Budgets.parse(latency="40%", memory="25 %").resolve(TEACHER)
    assert limits.latency_ms == pytest.approx(1.6)
    assert limits.peak_memory_bytes == 250_000
    assert limits.file_bytes is None


def test_python_form() -> None:
    budgets = Budgets(latency_ms=2.0, memory_mib=8, size_mib=1)
    assert budgets == Budgets.parse("2ms", "8MiB", "1MiB")
    assert budgets.resolve(TEACHER) == Limits(2.0, 8 * 1024**2, 1024**2)
    assert Budgets(**budgets.to_json()) == budgets


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("latency", "0ms", "not above zero"),
        ("latency", "-1", "not above zero"),
        ("latency", "10 parsecs", "unknown unit 'parsecs'"),
        ("latency", "nan", "not above zero"),
        ("latency", "NaNms", "not above zero"),
        ("latency", "inf%", "not above zero"),
        ("latency", "1e999ms", "not above zero"),
        ("latency", "fast", "not a number with a unit"),
        ("latency", "2,5ms", "unknown unit"),
        ("latency", "2", "did you mean 2ms"),
        ("latency", "2MS", "did you mean 2ms"),
        ("latency", "1001%", "%"),
        ("memory", "8", "did you mean 8MiB"),
        ("memory", "8mib", "did you mean 8MiB"),
        ("memory", "8ms", "unknown unit 'ms'"),
        ("size", "", "not a number with a unit"),
        ("size", "0.5B", "below one byte"),
    ],
)
def test_what_cannot_be_meant_is_refused(kind: str, text: str, said: str) -> None:
    with pytest.raises(BudgetError) as error:
        Budgets.parse(**{kind: text}).resolve(TEACHER)
    assert said in str(error.value)
    assert error.value.fix


def test_python_form_is_checked_too() -> None:
    for wrong in (
        {},
        {"latency_ms": 0},
        {"latency_ms": math.nan},
        {"latency_ms": "2ms"},
        {"latency_ms": True},
        {"latency_ms": 1.0, "latency_ratio": 0.5},
        {"size_ratio": 10.5},
    ):
        with pytest.raises(BudgetError):
            Budgets(**wrong)  # type: ignore[arg-type]
    with pytest.raises(BudgetError):
        Limits()


def test_limits_name_what_is_violated() -> None:
    limits = Limits(latency_ms=4.0, peak_memory_bytes=999_999, file_bytes=500_001)
    assert limits.violated(TEACHER) == ["peak_memory_bytes"]
    assert limits.violated(TEACHER, upper=True) == ["latency_ms", "peak_memory_bytes"]
    assert limits.violated(TEACHER.to_json(), upper=True) == ["latency_ms", "peak_memory_bytes"]
    assert limits.excess(TEACHER, upper=True)["latency_ms"] == pytest.approx(0.05)
    assert Limits(latency_ms=1.0).violated({"latency_ms": math.nan}) == ["latency_ms"]
    assert Limits.from_json(limits.to_json()) == limits


def test_unreachable_budget_says_what_is_reachable() -> None:
    smallest = Cost(0.12, (0.11, 0.13), 2 * 1024**2, 90 * 1024, 1, 1)
    check_reachable(Limits(0.12, 2 * 1024**2, 90 * 1024), smallest)
    with pytest.raises(BudgetError) as error:
        check_reachable(Limits(latency_ms=0.1, file_bytes=10**6), smallest)
    assert "latency ≤ 0.1 ms" in error.value.what
    assert "size" not in error.value.what
    assert error.value.why == "smallest reachable model: latency 0.12 ms, memory 2 MiB, size 90 KiB"


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused_with_a_budget_error(text: str) -> None:
    for kind in ("latency", "memory", "size", "packed_size"):
        try:
            limits = Budgets.parse(**{kind: text}).resolve(TEACHER)
        except BudgetError:
            continue
        assert all(value > 0 for value in limits.as_dict.values())
