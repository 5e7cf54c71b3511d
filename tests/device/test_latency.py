"""Measuring against a clock that the tests drive: no assertion here depends on how fast a machine is."""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

from autocompress.device.measure import latency as measuring
from autocompress.device.measure.latency import CERTIFY, LatencySettings, machine_lock, measure, pin
from autocompress.device.measure.statistics import (
    LEAST_HALF_WIDTH,
    Measurement,
    drift,
    relative_spread,
    summarise,
)
from autocompress.errors import AutocompressError, InputError, NoisyDeviceError

SETTINGS = LatencySettings(blocks=6, block_s=0.1, block_runs=10, warm_up_s=0.1)


class Clock:
    """Time that passes only while a session runs."""

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def perf_counter(self) -> float:
        return self.now_ns / 1e9


class FakeSession:
    """Takes `time_ms(number of the run, now in s)` for each run."""

    def __init__(self, clock: Clock, time_ms: Callable[[int, float], float]) -> None:
        self.clock, self.time_ms, self.runs = clock, time_ms, 0

    def run_once(self) -> None:
        self.clock.now_ns += round(self.time_ms(self.runs, self.clock.now_ns / 1e9) * 1e6)
        self.runs += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measuring, "time", clock)
    return clock


@pytest.fixture
def own_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A lock of the test's own, so that it neither waits for other measurements nor holds them up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield tmp_path / measuring.LOCK_FILE


def constant(milliseconds: float) -> Callable[[int, float], float]:
    return lambda _run, _now: milliseconds


def test_the_latency_is_the_median_of_block_medians():
    found = summarise([[1, 1, 9], [2, 2, 2], [3, 0, 3]])
    assert found.block_medians_ms == (1, 2, 3)
    assert found.latency_ms == 2
    assert found.runs == 9


def test_percentiles_are_over_single_runs():
    times = [[float(value) for value in range(1, 51)], [float(value) for value in range(51, 102)]]
    found = summarise(times)
    assert (found.p90_ms, found.p95_ms, found.p99_ms) == (91, 96, 100)


def test_the_interval_holds_the_latency_and_lies_within_the_block_medians():
    rng = np.random.default_rng(1)
    blocks = [rng.normal(centre, 0.01, 50).tolist() for centre in (0.9, 0.95, 1.0, 1.05, 1.1, 1.0, 1.0)]
    found = summarise(blocks)
    low, high = found.latency_ms_ci95
    assert min(found.block_medians_ms) <= low <= found.latency_ms <= high <= max(found.block_medians_ms)
    assert high - low > 2 * LEAST_HALF_WIDTH * found.latency_ms


def test_equal_blocks_still_have_an_interval():
    found = summarise([[2.0] * 5] * 7)
    assert found.latency_ms_ci95 == pytest.approx((1.99, 2.01))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        blocks = rng.normal(1.0, 0.05, 15)[:, None] + np.zeros((15, 3))
        low, high = summarise(blocks.tolist()).latency_ms_ci95
        held += low <= 1.0 <= high
    assert held >= 176


def test_spread_is_the_interquartile_range_by_the_median():
    assert relative_spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert relative_spread([2.0] * 6 + [200.0]) == 0


def test_drift_compares_the_halves():
    assert drift([1.0, 1.0, 1.1, 1.1]) == pytest.approx(0.1)
    assert drift([1.0, 1.0, 0.9, 0.9]) == pytest.approx(0.1)
    assert drift([1.0]) == 0


def test_json_gives_the_equal_measurement_back():
    found = replace(summarise([[1.0, 2.0]] * 3, [[3.0]] * 3), process_peak_bytes=123, attempts=2)
    assert Measurement.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_steady_session_is_measured_at_the_first_attempt(clock: Clock):
    found = measure(FakeSession(clock, constant(2.0)), FakeSession(clock, constant(5.0)), SETTINGS)
    assert found.latency_ms == pytest.approx(2.0)
    assert found.reference_ms == pytest.approx(5.0)
    assert (found.attempts, found.spread, found.reference_drift) == (1, 0, 0)


@pytest.mark.parametrize(("run_ms", "runs_per_block"), [(1.0, 100), (50.0, 10)])
def test_a_block_has_enough_seconds_and_enough_runs(clock: Clock, run_ms: float, runs_per_block: int):
    found = measure(FakeSession(clock, constant(run_ms)), None, SETTINGS)
    assert found.runs == SETTINGS.blocks * runs_per_block
    assert found.reference_ms is None
    assert found.reference_drift is None


def test_warm_up_is_not_counted(clock: Clock):
    session = FakeSession(clock, lambda run, _now: 100.0 if run < 3 else 1.0)
    assert measure(session, None, SETTINGS).p99_ms == pytest.approx(1.0)


def test_blocks_of_model_and_reference_are_mixed(clock: Clock):
    order: list[str] = []

    def noted(name: str) -> Callable[[int, float], float]:
        def time_ms(_run: int, _now: float) -> float:
            order.append(name)
            return 1.0

        return time_ms

    measure(FakeSession(clock, noted("model")), FakeSession(clock, noted("reference")), SETTINGS)
    changes = sum(before != after for before, after in itertools.pairwise(order))
    assert changes >= 5


def test_a_stray_block_is_survived_by_the_median(clock: Clock):
    found = measure(FakeSession(clock, lambda _run, now: 3.0 if 0.4 < now < 0.45 else 1.0), None, SETTINGS)
    assert found.latency_ms == pytest.approx(1.0)


def test_a_noisy_spell_is_measured_again(clock: Clock):
    session = FakeSession(clock, lambda run, now: 1.0 + (run // 150 % 2) * (now < 0.9))
    found = measure(session, None, SETTINGS)
    assert found.attempts > 1
    assert found.latency_ms == pytest.approx(1.0)


def test_blocks_that_never_agree_are_an_error(clock: Clock):
    session = FakeSession(clock, lambda _run, now: 1.0 + int(now * 7) % 5)
    with pytest.raises(NoisyDeviceError, match="too noisy") as caught:
        measure(session, None, SETTINGS)
    assert "4 attempts" in caught.value.why
    assert caught.value.exit_code == 5


def test_a_reference_that_drifts_is_an_error(clock: Clock):
    reference = FakeSession(clock, lambda _run, now: 1.0 * 1.05 ** (now / 0.1))
    with pytest.raises(NoisyDeviceError, match="the reference drifted"):
        measure(FakeSession(clock, constant(1.0)), reference, SETTINGS)


def test_certification_is_as_strict_as_promised():
    assert (CERTIFY.block_s, CERTIFY.block_runs) >= (0.5, 30)
    assert (CERTIFY.agreement, CERTIFY.most_spread, CERTIFY.most_drift) == (0.02, 0.05, 0.03)


def test_the_lock_is_exclusive_and_names_its_holder(own_lock: Path):
    with machine_lock():
        assert own_lock.read_text() == str(os.getpid())
        with own_lock.open("r+") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with own_lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_who_waits_for_the_lock_says_for_whom(own_lock: Path, caplog: pytest.LogCaptureFixture):
    code = (
        "import sys; from autocompress.device.measure.latency import machine_lock\n"
        "with machine_lock(): print('held', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"

        class Release(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                del record
                other.stdin.write("\n")
                other.stdin.flush()

        logger = logging.getLogger("autocompress")
        release = Release()
        logger.addHandler(release)
        try:
            with caplog.at_level(logging.WARNING, "autocompress"), machine_lock():
                assert own_lock.read_text() == str(os.getpid())
        finally:
            logger.removeHandler(release)
    assert f"process {other.pid}" in caplog.text


def test_a_fresh_process_reports_what_it_measured(own_lock: Path, tmp_path: Path):
    del own_lock
    model = tmp_path / "model.onnx"
    model.write_bytes(relu_model())
    lenient = LatencySettings(2, 0.01, 5, warm_up_s=0.01, most_spread=10, most_drift=10)
    found = measuring.measure_in_fresh_process(model, model, settings=lenient)
    assert found.runs >= 10
    assert found.latency_ms > 0
    assert found.reference_ms is not None
    assert found.latency_ms_ci95[0] <= found.latency_ms <= found.latency_ms_ci95[1]
    assert found.process_peak_bytes is None or found.process_peak_bytes >= 0


def test_noise_in_a_fresh_process_is_the_same_error(own_lock: Path, tmp_path: Path):
    del own_lock
    model = tmp_path / "model.onnx"
    model.write_bytes(relu_model())
    impossible = LatencySettings(2, 0.01, 5, warm_up_s=0.01, most_spread=-1, attempts=1)
    with pytest.raises(NoisyDeviceError, match="too noisy"):
        measuring.measure_in_fresh_process(model, settings=impossible)


def test_a_file_that_is_no_model_is_one_error(own_lock: Path, tmp_path: Path):
    del own_lock
    model = tmp_path / "model.onnx"
    model.write_bytes(b"not a model")
    with pytest.raises(InputError, match="cannot load the model"):
        measuring.measure_in_fresh_process(model, settings=SETTINGS)


def test_a_process_that_fails_otherwise_is_one_error(own_lock: Path, tmp_path: Path):
    del own_lock
    model = tmp_path / "model.onnx"
    model.write_bytes(relu_model())
    with pytest.raises(AutocompressError, match=r"measuring .* failed") as caught:
        measuring.measure_in_fresh_process(model, settings=replace(SETTINGS, blocks=0))
    assert caught.value.exit_code == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin processes")
def test_pinning_leaves_as_many_cpus_as_threads():
    allowed = os.sched_getaffinity(0)
    try:
        pin(1)
        assert os.sched_getaffinity(0) == {max(allowed)}
    finally:
        os.sched_setaffinity(0, allowed)


def relu_model() -> bytes:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "relu")], "g", [value], [result])
    opsets = [helper.make_opsetid("", 17)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return data
