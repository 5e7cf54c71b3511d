"""Profiling against a made-up device whose kernel times are known, and reading a real profiler's names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_networks import candidates

from autocompress.cost.kernels import Kernel, kernels
from autocompress.cost.layouts import Layouts
from autocompress.cost.memory import weight_bytes
from autocompress.cost.model import CostModel, file_features
from autocompress.device import profiler
from autocompress.device.measure.attribution import attribute
from autocompress.device.measure.layout_probe import detect_layouts
from autocompress.device.measure.log import FILE, LogSetting, Measurements, Timed, Timing
from autocompress.device.measure.quiet_gate import QuietLatency, QuietSettings
from autocompress.device.profile.fitting import validation, without_drift
from autocompress.device.profile.latency_table import LatencyTable
from autocompress.device.profile.sources import CandidateOrigin
from autocompress.device.profile.validation import Prediction, PredictionErrors, summary
from autocompress.device.profile_files.store import load_profile
from autocompress.device.profiler import ProfileSubject, Sample, make_profile
from autocompress.device.runtimes.base import get_runtime
from autocompress.device.runtimes.description import DeviceDescription
from autocompress.errors import NoisyDeviceError, ProfileError
from autocompress.export.onnx import to_onnx
from autocompress.graph.network import Network
from autocompress.transforms.sampling import random_weights

SETTING = LogSetting("onnxruntime", 1, 1, "n0")
OVERHEAD_US, CONSTANT_US = 1.7, 5.0
FEW_BYTES = 400


def true_us(kernel: Kernel) -> float:
    speed = 4e4 if kernel.precision == "int8" else 2e4
    return 0.4 + kernel.macs / speed + (kernel.in_elements + kernel.out_elements) / 1e4


class Device:
    """Runs nothing; a kernel takes what `true_us` says, and 1.7 µs longer when it is profiled."""

    name = "made-up"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, samples: list[Sample]) -> None:
        self.networks = {sample.model: sample.network for sample in samples}
        self.measured: list[bytes] = []
        self.slowly_profiled: dict[bytes, float] = {}
        self.forgotten = 0
        self.trouble: Callable[[int], float] = lambda _: 1.0
        monkeypatch.setattr(profiler, "Gate", lambda reference, _settings: MadeUpGate(self, reference))
        monkeypatch.setattr(profiler, "attribute", self.attribute)

    def load(self, model: bytes, _threads: int) -> Any:
        return model

    def node_times(self, model: bytes, *_: Any) -> list[float]:
        return [self.slowly_profiled.get(model, 1.0)]

    def optimized(self, *_: Any) -> bytes:
        return b""

    def latency_ms(self, model: bytes) -> float:
        return (sum(map(true_us, kernels(self.networks[model]))) + CONSTANT_US) / 1e3

    def measure(self, session: bytes, reference: bytes) -> QuietLatency | None:
        self.measured.append(session)
        slower = self.trouble(len(self.measured))
        if slower == float("inf"):
            return None
        return QuietLatency(*(slower * self.latency_ms(model) for model in (session, reference)), 0.0, 1.0)

    def attribute(
        self, times: list[float], _model: bytes, _optimized: bytes, found: Any
    ) -> tuple[Timing, ...]:
        return tuple(Timing(kernel, times[0] * (true_us(kernel) + OVERHEAD_US), 1) for kernel in found)


class MadeUpGate:
    """Always quiet; what is measured through it takes what the device says."""

    def __init__(self, device: Device, reference: bytes) -> None:
        self.device, self.reference = device, reference

    def latency(self, session: bytes, _settings: QuietSettings) -> QuietLatency | None:
        return self.device.measure(session, self.reference)

    def settled_ms(self) -> float:
        return 1.0

    def forget(self) -> None:
        self.device.forgotten += 1

    def is_quiet(self, *_times: float, tolerance: float) -> bool:
        return tolerance > 0


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    found = []
    for index, network in enumerate(candidates(30)):
        model = to_onnx(network, random_weights(network, index)).SerializeToString()
        found.append(Sample(f"n{index}", network, model, ("fp32", "int8", "mixed")[index % 3]))
    return found


def profile(device: Device, samples: list[Sample], folder: Path, seed: int = 0, **options: Any) -> Any:
    origin = CandidateOrigin(space="joint", seed=seed)
    described = DeviceDescription({"cpu": "none"})
    subject = ProfileSubject(folder.name, device.name, 1, 1, described, origin, Layouts(16))
    return make_profile(samples, device, folder, subject, **options)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, samples: list[Sample]) -> Device:
    return Device(monkeypatch, samples)


def test_latencies_of_unseen_networks_are_predicted(device: Device, samples: list[Sample], tmp_path: Path):
    made = profile(device, samples[:24], tmp_path / "p")
    assert made.validation.count == 24
    assert made.validation.mean_error < 0.03
    assert made.validation.unpredicted == ()
    price = CostModel(load_profile(tmp_path / "p")).price
    for sample in samples[24:]:
        assert price(sample.network).latency_ms == pytest.approx(device.latency_ms(sample.model), rel=0.1)


def test_the_overhead_of_the_profiler_is_found(device: Device, samples: list[Sample], tmp_path: Path):
    overheads = profile(device, samples, tmp_path / "p").fit.overheads_us
    assert all(0 <= overhead < 3 for overhead in overheads.values())
    assert np.median(list(overheads.values())) == pytest.approx(OVERHEAD_US, abs=0.5)


def test_predicted_costs_agree_with_the_network(device: Device, samples: list[Sample], tmp_path: Path):
    made = profile(device, samples[:24], tmp_path / "p")
    for sample in samples[24:]:
        cost = CostModel(made).price(sample.network)
        low, high = cost.latency_ms_ci95
        assert low < cost.latency_ms < high
        assert cost.file_bytes == pytest.approx(len(sample.model), rel=0.01, abs=FEW_BYTES)
        assert cost.parameters == sum(int(np.prod(spec.shape)) for spec in sample.network.params.values())
        assert cost.peak_memory_bytes > weight_bytes(sample.network)


def test_the_teacher_and_the_time_are_recorded(device: Device, samples: list[Sample], tmp_path: Path):
    made = profile(device, samples[:8], tmp_path / "p")
    source = load_profile(tmp_path / "p").sources[0]
    assert load_profile(tmp_path / "p").fingerprint == made.fingerprint
    assert source.teacher_latency_ms == pytest.approx(device.latency_ms(samples[0].model))
    assert source.networks == 8
    assert source.measured_at.endswith("+00:00")


def test_a_resumed_profiling_measures_nothing_twice(device: Device, samples: list[Sample], tmp_path: Path):
    first = profile(device, samples[:8], tmp_path / "p")
    assert len(device.measured) == 2 * 8
    device.measured.clear()
    second = profile(device, samples[:10], tmp_path / "p", resume=True)
    assert sorted(set(device.measured)) == sorted(sample.model for sample in samples[8:10])
    assert (first.sources[0].networks, second.sources[0].networks) == (8, 10)


def test_every_finished_network_is_on_disk_at_once(device: Device, samples: list[Sample], tmp_path: Path):
    def stop(count: int) -> float:
        if count > 7:
            raise KeyboardInterrupt
        return 1.0

    device.trouble = stop
    with pytest.raises(KeyboardInterrupt):
        profile(device, samples[:8], tmp_path / "p")
    lines = (tmp_path / "p" / FILE).read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines[1:]] == ["n0", "n1", "n2"]


def test_a_cut_off_last_line_is_dropped(device: Device, samples: list[Sample], tmp_path: Path):
    profile(device, samples[:8], tmp_path / "p")
    path = tmp_path / "p" / FILE
    path.write_text(path.read_text()[:-20])
    device.measured.clear()
    profile(device, samples[:8], tmp_path / "p", resume=True)
    assert set(device.measured) == {samples[7].model}
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_damage_inside_is_reported_with_its_line(device: Device, samples: list[Sample], tmp_path: Path):
    profile(device, samples[:8], tmp_path / "p")
    path = tmp_path / "p" / FILE
    lines = path.read_text().splitlines()
    lines[3] = lines[3][:40]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ProfileError, match="damaged") as caught:
        profile(device, samples[:8], tmp_path / "p", resume=True)
    assert "line 4" in caught.value.where


def test_with_another_seed_nothing_is_resumed(device: Device, samples: list[Sample], tmp_path: Path):
    profile(device, samples[:8], tmp_path / "p", seed=1)
    before = (tmp_path / "p" / "kernels.csv").read_bytes()
    with pytest.raises(ProfileError, match="not of this profiling"):
        profile(device, samples[8:16], tmp_path / "p", seed=2, resume=True)
    assert (tmp_path / "p" / "kernels.csv").read_bytes() == before


def test_measurements_that_were_written_before_are_gone_on_with(tmp_path: Path):
    head = (
        '{"format": 1, "runtime": "onnxruntime", "threads": 1, "batch": 1, "reference": "n0", '
        '"space": "f32859ca65832f9c", "seed": 3}'
    )
    line = '{"name": "n0", "precision": "fp32", "latency_ms": 1.5, "reference_ms": 1.25, "kernels": []}'
    (tmp_path / FILE).write_text(f"{head}\n{line}\n")
    setting = replace(SETTING, space="f32859ca65832f9c", seed=3)
    known = Measurements(tmp_path / FILE, setting, resume=True)
    assert known.found == [Timed("n0", "fp32", 1.5, 1.25, ())]
    assert (tmp_path / FILE).read_text() == f"{head}\n{line}\n"


def test_measurements_of_another_setting_are_not_mixed_in(tmp_path: Path):
    Measurements(tmp_path / FILE, SETTING, resume=False)
    with pytest.raises(ProfileError, match="not of this profiling"):
        Measurements(tmp_path / FILE, replace(SETTING, threads=2), resume=True)
    assert Measurements(tmp_path / FILE, replace(SETTING, threads=2), resume=False).found == []


def test_what_was_disturbed_is_measured_again_later(device: Device, samples: list[Sample], tmp_path: Path):
    """The third network falls into a slow phase of the machine, the fifth is too noisy."""
    device.trouble = lambda count: {5: 1.3, 6: 1.3, 9: float("inf")}.get(count, 1.0)
    made = profile(device, samples[:8], tmp_path / "p")
    assert len(device.measured) == 2 * 8 + 3
    assert device.measured[-4:] == [samples[2].model] * 2 + [samples[4].model] * 2
    assert made.sources[0].networks == 8


def test_a_few_disturbed_networks_of_many_that_wait_end_nothing(
    device: Device, samples: list[Sample], tmp_path: Path
):
    """All wait for the last round, in which only the second cannot be measured."""
    known = {sample.model for sample in samples[2:8]}

    def trouble(count: int) -> float:
        model = device.measured[count - 1]
        waits = model in known and device.measured.count(model) < len(profiler.PATIENCE)
        return float("inf") if waits or model == samples[1].model else 1.0

    device.trouble = trouble
    assert profile(device, samples[:8], tmp_path / "p").sources[0].networks == 7


def always_disturbed(device: Device, *samples: Sample) -> None:
    disturbed = {sample.model for sample in samples}
    device.trouble = lambda count: float("inf") if device.measured[count - 1] in disturbed else 1.0


def test_what_stays_disturbed_is_left_out(
    device: Device, samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    always_disturbed(device, samples[2], samples[8])
    left = [samples[8:10], []]
    made = profile(device, samples[:8], tmp_path / "p", more=lambda _: left.pop(0))
    assert device.forgotten == 2 * len(profiler.PATIENCE)
    assert [device.measured.count(samples[index].model) for index in (2, 8)] == [len(profiler.PATIENCE)] * 2
    assert made.sources[0].networks == 8
    assert "n2 is left out" in caplog.text and "n8 is left out" in caplog.text
    device.trouble = lambda _: 1.0
    assert profile(device, samples[:8], tmp_path / "p", resume=True).sources[0].networks == 8
    assert device.measured[-1] == samples[2].model


def test_what_was_left_out_changes_no_choice_of_a_resumed_profiling(
    device: Device, samples: list[Sample], tmp_path: Path
):
    def asks(tables: list[int]) -> Callable[[LatencyTable], list[Sample]]:
        def more(table: LatencyTable) -> list[Sample]:
            tables.append(len(table.rows))
            return samples[8:10] if len(tables) == 1 else []

        return more

    always_disturbed(device, samples[2])
    first: list[int] = []
    profile(device, samples[:8], tmp_path / "p", more=asks(first))
    device.trouble = lambda _: 1.0
    again: list[int] = []
    made = profile(device, samples[:8], tmp_path / "p", more=asks(again), resume=True)
    assert again[0] == first[0] < len(made.table.rows)
    assert made.sources[0].networks == 10


def test_what_a_slower_machine_gives_in_the_last_round_is_as_it_would_have_been_before(
    device: Device, samples: list[Sample], tmp_path: Path
):
    """The machine becomes 1.6 times slower for good while the last two networks wait."""
    quiet = profile(device, samples[:8], tmp_path / "quiet")
    device.slowly_profiled = {samples[6].model: 1.6, samples[7].model: 1.6}
    device.trouble = lambda count: device.slowly_profiled.get(device.measured[count - 1], 1.0)
    made = profile(device, samples[:8], tmp_path / "slow")
    assert device.forgotten == 2
    assert [row.kernel for row in made.table.rows] == [row.kernel for row in quiet.table.rows]
    np.testing.assert_allclose(
        [row.median_us for row in made.table.rows], [row.median_us for row in quiet.table.rows], rtol=1e-3
    )
    line = json.loads((tmp_path / "slow" / FILE).read_text().splitlines()[-1])
    assert line["latency_ms"] == pytest.approx(device.latency_ms(samples[7].model))
    assert line["reference_ms"] == pytest.approx(device.latency_ms(samples[0].model))


def test_the_reference_and_most_of_the_networks_are_not_left_out(
    device: Device, samples: list[Sample], tmp_path: Path
):
    always_disturbed(device, samples[0])
    with pytest.raises(NoisyDeviceError):
        profile(device, samples[:8], tmp_path / "p")
    always_disturbed(device, *samples[1:4])
    with pytest.raises(NoisyDeviceError):
        profile(device, samples[:8], tmp_path / "q")


def test_a_machine_that_stays_noisy_is_called_so(device: Device, samples: list[Sample], tmp_path: Path):
    device.trouble = lambda _: float("inf")
    with pytest.raises(NoisyDeviceError):
        profile(device, samples[:8], tmp_path / "p")


def test_progress_counts_to_the_end(device: Device, samples: list[Sample], tmp_path: Path):
    seen: list[int] = []
    profile(device, samples[:8], tmp_path / "p", progress=seen.append)
    assert seen == list(range(9))


def test_what_is_asked_for_is_measured_but_does_not_validate(
    device: Device, samples: list[Sample], tmp_path: Path
):
    left, tables = [samples[8:10], samples[10:11], []], []

    def more(table: LatencyTable) -> list[Sample]:
        tables.append(len(table.rows))
        return left.pop(0)

    made = profile(device, samples[:8], tmp_path / "p", more=more)
    assert made.sources[0].networks == 11
    assert made.validation.count + len(made.validation.unpredicted) == 8
    assert {point.network for point in made.validation.networks} <= {f"n{i}" for i in range(8)}
    assert tables == sorted(tables)
    assert tables[-1] == len(made.table.rows)


def timed(name: str, latency_ms: float, reference_ms: float = 1.0) -> Timed:
    return Timed(name, "fp32", latency_ms, reference_ms, ())


def test_slow_drift_is_taken_out_and_the_noise_of_the_reference_is_not_put_in():
    drifting = [timed(str(i), 2.0 * (1 + i / 100), 1 + i / 100) for i in range(41)]
    assert np.ptp(without_drift(drifting)[8:-8]) < 1e-6
    noisy = [timed(str(i), 2.0, 1.3 if i == 20 else 1.0) for i in range(41)]
    np.testing.assert_allclose(without_drift(noisy), 2000.0)


def test_errors_are_summed_up():
    points = [
        Prediction("n", "fp32", measured, predicted)
        for measured, predicted in ((1.0, 1.02), (2.0, 1.8), (4.0, 4.8))
    ]
    found = summary(points)
    assert found.count == 3
    assert found.mean_error == pytest.approx((0.02 + 0.1 + 0.2) / 3)
    assert found.largest_error == pytest.approx(0.2)
    assert found.within_5_percent == pytest.approx(1 / 3)
    assert found.rank_correlation == pytest.approx(1.0)
    assert found.error95 == pytest.approx(1.96 * ((0.02**2 + 0.1**2 + 0.2**2) / 3) ** 0.5)
    assert summary([]) == PredictionErrors()


def test_a_network_with_a_kernel_of_its_own_is_listed_as_unpredicted():
    common, rare = Kernel("relu", "fp32", in_elements=10), Kernel("softmax", "fp32", in_elements=10)
    items = [
        Timed(f"n{i}", "fp32", 1.0 + i / 10, 1.0, (Timing(rare if i == 3 else common, 900 + 100.0 * i, 1),))
        for i in range(8)
    ]
    found = validation(items, without_drift(items))
    assert [entry.network for entry in found.unpredicted] == ["n3"]
    assert found.count == 7


def test_all_time_that_a_real_profiler_saw_is_given_to_kernels(samples: list[Sample]):
    runtime = get_runtime("onnxruntime")
    layouts = detect_layouts(runtime, 1)
    for sample in samples[:6]:
        times = runtime.node_times(sample.model, 1, 3)
        cut = kernels(sample.network, layouts)
        found = attribute(times, sample.model, runtime.optimized(sample.model, 1), cut)
        assert tuple(timing.kernel for timing in found) == cut
        assert sum(timing.time_us for timing in found) == pytest.approx(sum(time.time_us for time in times))
        assert sum(timing.operations for timing in found) == len(times)
        layers = [timing.operations for timing in found if timing.kernel.op in ("conv", "linear")]
        assert min(layers) >= 1
        assert max(layers) <= 2


def test_file_features_explain_the_overhead_of_files(samples: list[Sample]):
    def overhead(network: Network, model: bytes) -> float:
        return len(model) - weight_bytes(network)

    coefficients = np.array(profiler.file_coefficients(samples))
    for sample in samples:
        predicted = coefficients @ file_features(sample.network)
        assert predicted == pytest.approx(
            overhead(sample.network, sample.model), abs=0.01 * len(sample.model)
        )
