"""Makes a device profile: measures sampled networks, whole and kernel by kernel, and fits the table.

Each network is timed without the runtime's profiler before and after it is read with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.cost import file_features, weight_bytes
from autocompress.device.attribution import attribute
from autocompress.device.fitting import fitted, validation, without_drift
from autocompress.device.layouts import detect_layouts
from autocompress.device.measure import QUICK, Settings, machine_lock, measure
from autocompress.device.measurements import FILE, InMemory, Measurements, Timed
from autocompress.device.profile import DeviceProfile
from autocompress.device.profile_files import write_profile
from autocompress.device.profile_sources import Source, kernels_fingerprint, with_sources
from autocompress.device.runtimes import Runtime, Session
from autocompress.device.statistics import drift
from autocompress.errors import NoisyDeviceError, ProfileError
from autocompress.kernels import kernels
from autocompress.network import Network
from autocompress.runtime_layouts import Layouts

log = logging.getLogger("autocompress")

PROFILED_RUNS = 40
ROUNDS = 3
MOST_DISAGREEMENT = 0.05
MOST_SLOWDOWN = 0.1
LAST_RESORT = 1.0
"""Spread and drift that the last round still takes: noise of a busy machine, whose effect on
predictions the profile's own validation tells."""


@dataclass(frozen=True)
class Sample:
    """One exported network of the space; `network` is its shipped form, `name` identifies it."""

    name: str
    network: Network
    model: bytes
    precision: str


def make_profile(
    samples: Sequence[Sample],
    runtime: Runtime,
    threads: int,
    batch: int,
    output: Path,
    *,
    device: Mapping[str, Any],
    source: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
    resume: bool = False,
    settings: Settings = QUICK,
) -> DeviceProfile:
    """Measures the samples and writes the profile into `output`.

    Each sample's measurement is on disk before the next begins; with `resume` those are not
    repeated. The first sample, the teacher, is the reference against which the machine's drift is
    taken out.

    Raises NoisyDeviceError when the machine is too noisy, ProfileError when files cannot be used.
    """
    layouts = detect_layouts(runtime, threads)
    setting = {"runtime": runtime.name, "threads": threads, "batch": batch, "reference": samples[0].name}
    try:
        known = Measurements(output / FILE, setting, resume=resume)
        with machine_lock():
            _Bench(samples, runtime, threads, layouts, known, settings, progress).run()
    except OSError as error:
        raise ProfileError(f"{output} cannot be written", why=error.strerror or str(error)) from error
    wanted = {sample.name for sample in samples}
    timed = [item for item in known.found if item.name in wanted]
    latencies_us = without_drift(timed)
    table, fit = fitted(timed, latencies_us)
    teacher = next(item for item in timed if item.name == samples[0].name)
    made = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "networks": len(timed),
        "teacher_latency_ms": teacher.latency_ms,
        "reference_drift": drift([item.reference_ms for item in timed]),
        "kernels_fingerprint": kernels_fingerprint(kernels(samples[0].network, layouts)),
    }
    sources = (Source.from_mapping({**source, **made}, fit),)
    profile = DeviceProfile(
        name=output.name,
        runtime=runtime.name,
        threads=threads,
        batch=batch,
        device=device,
        sources=sources,
        layouts=layouts,
        table=table,
        fit=fit,
        file_coefficients=_file_coefficients(samples),
        validation=with_sources(validation(timed, latencies_us), sources),
    )
    write_profile(output, profile)
    return profile


def measure_samples(
    samples: Sequence[Sample],
    runtime: Runtime,
    threads: int,
    layouts: Layouts,
    *,
    progress: Callable[[int, int], None] | None = None,
    settings: Settings = QUICK,
) -> list[Timed]:
    """Measures the samples as profiling does, the first being the reference, and keeps nothing.

    Raises NoisyDeviceError when the machine is too noisy.
    """
    known = InMemory()
    with machine_lock():
        _Bench(samples, runtime, threads, layouts, known, settings, progress).run()
    by_name = {item.name: item for item in known.found}
    return [by_name[sample.name] for sample in samples]


@dataclass
class _Bench:
    """Measures what is not known yet, and comes back to what was disturbed."""

    samples: Sequence[Sample]
    runtime: Runtime
    threads: int
    layouts: Layouts
    known: Measurements | InMemory
    settings: Settings
    progress: Callable[[int, int], None] | None

    def run(self) -> None:
        """Raises NoisyDeviceError when a sample cannot be measured even in the last round."""
        names = {item.name for item in self.known.found}
        waiting = [sample for sample in self.samples if sample.name not in names]
        reference = self.runtime.load(self.samples[0].model, self.threads)
        for index in range(ROUNDS):
            disturbed = []
            for sample in waiting:
                self._report()
                timed, trouble = self._time(sample, reference, last=index == ROUNDS - 1)
                if timed is None:
                    log.debug("%s will be measured again: %s", sample.name, trouble)
                    disturbed.append(sample)
                else:
                    self.known.add(timed)
            waiting = disturbed
            if not waiting:
                self._report()
                return

    def _report(self) -> None:
        if self.progress is not None:
            wanted = {sample.name for sample in self.samples}
            self.progress(sum(item.name in wanted for item in self.known.found), len(self.samples))

    def _time(self, sample: Sample, reference: Session, *, last: bool) -> tuple[Timed | None, str]:
        """The measurement, or why it has to be taken again; in the last round only noise is an error."""
        settings = replace(self.settings, attempts=1)
        if last:
            settings = replace(settings, most_spread=LAST_RESORT, most_drift=LAST_RESORT)
        try:
            before = self._latency(sample, reference, settings)
            times = self.runtime.node_times(sample.model, self.threads, PROFILED_RUNS)
            after = self._latency(sample, reference, settings)
        except NoisyDeviceError as error:
            if last:
                raise
            return None, error.why
        own = np.array([before[0], after[0]])
        beside = np.array([before[1], after[1]])
        trouble = self._trouble(own, beside)
        if trouble and not last:
            return None, trouble
        optimized = self.runtime.optimized(sample.model, self.threads)
        found = attribute(times, sample.model, optimized, kernels(sample.network, self.layouts))
        return Timed(sample.name, sample.precision, float(own.mean()), float(beside.mean()), found), ""

    def _latency(self, sample: Sample, reference: Session, settings: Settings) -> tuple[float, float]:
        """Latency of the sample in a session of its own and of the reference beside it, in ms."""
        found = measure(self.runtime.load(sample.model, self.threads), reference, settings)
        assert found.reference_ms is not None
        return found.latency_ms, found.reference_ms

    def _trouble(self, own: Any, beside: Any) -> str:
        if own.max() / own.min() - 1 > MOST_DISAGREEMENT:
            return f"two measurements differ by {own.max() / own.min() - 1:.1%}"
        usual = [item.reference_ms for item in self.known.found]
        slowdown = beside.mean() / np.median(usual) - 1 if usual else 0.0
        return f"the machine is {slowdown:.1%} slower than before" if slowdown > MOST_SLOWDOWN else ""


def _file_coefficients(samples: Sequence[Sample]) -> tuple[float, ...]:
    """Overhead of exported files over their weights, by least squares of relative errors."""
    features = np.stack([file_features(sample.network) for sample in samples])
    sizes = np.array([len(sample.model) for sample in samples], dtype=np.float64)
    overhead = sizes - np.array([weight_bytes(sample.network) for sample in samples])
    scale = np.maximum(np.abs(features).max(axis=0), 1.0)
    system = np.vstack([features / scale / sizes[:, None], 1e-7 * np.eye(features.shape[1])])
    goal = np.concatenate([overhead / sizes, np.zeros(features.shape[1])])
    solution = np.linalg.lstsq(system, goal, rcond=None)[0]
    return tuple(float(value) for value in solution / scale)
