"""Makes a device profile: measures sampled networks, whole and kernel by kernel, and fits the table.

Each network is timed without the runtime's profiler before and after it is read with it, each time loaded
anew. Networks drawn at random come first; then those are asked for whose kernels are known least.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

import numpy as np

from autocompress.cost.kernels import kernels
from autocompress.cost.layouts import Layouts
from autocompress.cost.memory import weight_bytes
from autocompress.cost.model import file_features
from autocompress.device.measure.attribution import attribute
from autocompress.device.measure.latency import machine_lock
from autocompress.device.measure.log import FILE, LogSetting, Measurements, Timed, Timing
from autocompress.device.measure.quiet_gate import Gate, QuietLatency, QuietSettings
from autocompress.device.measure.statistics import drift
from autocompress.device.profile.fitting import fitted, rows, validation, without_drift
from autocompress.device.profile.latency_table import LatencyTable
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile.sources import (
    CandidateOrigin,
    ProfileSource,
    kernels_fingerprint,
    with_sources,
)
from autocompress.device.profile_files.store import write_profile
from autocompress.device.runtimes.base import Runtime
from autocompress.device.runtimes.description import DeviceDescription
from autocompress.errors import NoisyDeviceError, ProfileError
from autocompress.graph.network import Network

log = logging.getLogger("autocompress")

PROFILED_RUNS, PROFILED_S = 40, 0.4
PROFILED_ATTEMPTS = 4
MOST_LOADS = 6
MOST_ERROR = 0.015
"""Standard error of a latency, as a share of it, over models that were loaded anew."""

MOST_SLOWDOWN = 0.1
MOST_LEFT_OUT = 0.25
"""Share of all networks asked for that noise may keep from being measured at all."""

PATIENCE = (1, 3, 8)
"""How often more than usual blocks are tried in each round."""

LAST_RESORT = 0.1
"""How far from quiet a block may be in the last round, whose effect the profile's own validation tells."""

More = Callable[[LatencyTable], Sequence["Sample"]]
"""Further samples, given what is known; called until it returns none."""


@dataclass(frozen=True)
class Sample:
    """Hold one exported network of the space; `network` is its shipped form, `name` identifies it."""

    name: str
    network: Network
    model: bytes
    precision: str


@dataclass(frozen=True)
class ProfileSubject:
    """Hold what a profile is of: a device with a runtime and its setting, and where the networks come from.

    `layouts` is how the runtime lays out values there.
    """

    name: str
    runtime: str
    threads: int
    batch: int
    device: DeviceDescription
    origin: CandidateOrigin
    layouts: Layouts

    def log_setting(self, reference: str) -> LogSetting:
        """Return what raw results of it share; `reference` names the network that tells quiet moments."""
        space, seed = self.origin.space_fingerprint, self.origin.seed
        return LogSetting(self.runtime, self.threads, self.batch, reference, space, seed)


def make_profile(
    samples: Sequence[Sample],
    runtime: Runtime,
    output: Path,
    subject: ProfileSubject,
    *,
    more: More | None = None,
    progress: Callable[[int], None] | None = None,
    resume: bool = False,
    settings: QuietSettings | None = None,
) -> DeviceProfile:
    """Measure the samples and write the profile of the `subject` into `output`.

    Each sample's measurement is on disk before the next begins; with `resume` those are not
    repeated. The first sample, the teacher, is the reference that tells quiet moments from disturbed
    ones, and against which the machine's drift is taken out. `progress` is told how many networks are
    measured. Only `samples`, not what `more` chose, tell how well the profile predicts.

    Raises NoisyDeviceError when the machine is too noisy, ProfileError when files cannot be used.
    """
    threads, layouts, reference = subject.threads, subject.layouts, samples[0].name
    try:
        known = Measurements(output / FILE, subject.log_setting(reference), resume=resume)
        bench = Bench(runtime, threads, layouts, known, reference, settings or QuietSettings(), progress)
        with machine_lock():
            every = bench.run_all(samples, more)
    except OSError as error:
        raise ProfileError(
            f"{output} cannot be written",
            why=error.strerror or str(error),
            fix="make room there, and go on with --resume",
        ) from error
    profile = profile_from(bench.measured(every), every, subject, {sample.name for sample in samples})
    write_profile(output, profile)
    return profile


def profile_from(
    timed: Sequence[Timed],
    samples: Sequence[Sample],
    subject: ProfileSubject,
    drawn: Container[str] | None = None,
) -> DeviceProfile:
    """Return the profile that measurements of the samples make; the first sample is the teacher.

    Only networks that were `drawn` at random (all, when not given) tell how well it predicts.
    """
    latencies_us = without_drift(timed)
    table, fit = fitted(timed, latencies_us)
    source = ProfileSource(
        **vars(subject.origin),
        fit=fit,
        kernels_fingerprint=kernels_fingerprint(kernels(samples[0].network, subject.layouts)),
        networks=len(timed),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        teacher_latency_ms=next(item.latency_ms for item in timed if item.name == samples[0].name),
        reference_drift=drift([item.reference_ms for item in timed]),
    )
    found = validation(timed, latencies_us, drawn)
    return DeviceProfile(
        name=subject.name,
        runtime=subject.runtime,
        threads=subject.threads,
        batch=subject.batch,
        device=subject.device,
        sources=(source,),
        layouts=subject.layouts,
        table=table,
        fit=fit,
        file_coefficients=file_coefficients(samples),
        validation=with_sources(found, (source,)),
    )


@dataclass
class Bench:
    """Measure what is not known yet, and come back to what was disturbed.

    `reference` names the network that tells quiet moments. Without `by_kernel` only whole networks are
    timed, as is enough to check predictions.
    """

    runtime: Runtime
    threads: int
    layouts: Layouts
    known: Measurements
    reference: str
    settings: QuietSettings
    progress: Callable[[int], None] | None = None
    by_kernel: bool = True
    _asked: int = 0
    _left_out: int = 0

    def run_all(self, samples: Sequence[Sample], more: More | None) -> list[Sample]:
        """Measure the samples, the first of which is the reference, and what `more` asks for; return both."""
        every = list(samples)
        gate = Gate(self.runtime.load(samples[0].model, self.threads), self.settings)
        self.run(samples, gate)
        while more is not None:
            chosen = more(LatencyTable(rows(self._known_at_first(every))))
            if not chosen:
                break
            every += chosen
            self.run(chosen, gate)
        return every

    def _known_at_first(self, samples: Sequence[Sample]) -> list[Timed]:
        """Return what was known before anything else was measured. A resumed profiling may have measured
        since what was left out then, and must ask for the same networks as before."""
        names = {sample.name for sample in samples}
        return list(takewhile(lambda item: item.name in names, self.known.found))

    def measured(self, samples: Sequence[Sample]) -> list[Timed]:
        """Return what is known of these samples, in the order in which it was measured."""
        names = {sample.name for sample in samples}
        return [item for item in self.known.found if item.name in names]

    def run(self, samples: Sequence[Sample], gate: Gate) -> None:
        """Measure the samples; leave out what cannot be measured even in the last round.

        Raises NoisyDeviceError when that is the reference, or more than `MOST_LEFT_OUT` of all asked for.
        """
        self._asked += len(samples)
        names = {item.name for item in self.known.found}
        waiting = [sample for sample in samples if sample.name not in names]
        self._report()
        for patience in PATIENCE:
            disturbed: list[Sample] = []
            for sample in waiting:
                timed, trouble = self._time(sample, gate, patience)
                if timed is not None:
                    self.known.add(timed)
                else:
                    log.debug("%s was disturbed: %s", sample.name, trouble)
                    disturbed.append(sample)
                    if patience == PATIENCE[-1]:
                        self._leave_out(sample)
                self._report()
            waiting = disturbed
            if waiting:
                gate.forget()

    def _leave_out(self, sample: Sample) -> None:
        self._left_out += 1
        is_reference = sample.name == self.reference
        if is_reference or self._left_out > MOST_LEFT_OUT * self._asked:
            what = "the reference model" if is_reference else f"{self._left_out} of {self._asked} networks"
            raise NoisyDeviceError(
                "the device is too noisy to measure",
                why=f"{what} never ran between two quiet moments, in {len(PATIENCE)} rounds",
                fix="end other programs on this machine and try again; `profile` goes on with --resume",
            )
        log.warning("%s is left out: the machine was too noisy to measure it", sample.name)

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(len(self.known.found))

    def _time(self, sample: Sample, gate: Gate, patience: int) -> tuple[Timed | None, str]:
        """Return the measurement, or why it has to be taken again. In the last round it is taken from a
        machine that is slower than before, too, as the times it would have had before, by the reference."""
        last = patience == PATIENCE[-1]
        settings = replace(self.settings, most_blocks=patience * self.settings.most_blocks)
        if last:
            settings = replace(settings, tolerance=LAST_RESORT)
        first = self._latency(sample, gate, settings)
        found = loads = None
        if first is not None:
            found = self._timings(sample, first.latency_ms, gate, patience, settings.tolerance)
        if first is not None and found is not None:
            loads = self._loads(sample, gate, settings, first)
        if found is None or loads is None:
            return None, "there were too few quiet moments"
        latency_ms, reference_ms = np.median([(one.latency_ms, one.reference_ms) for one in loads], axis=0)
        timed = Timed(sample.name, sample.precision, float(latency_ms), float(reference_ms), found)
        slower = self._slower(timed)
        if slower > 1 + MOST_SLOWDOWN:
            if not last:
                return None, f"the machine is {slower - 1:.1%} slower than before"
            log.warning("%s was measured while the machine was %.2f times slower", sample.name, slower)
            return timed.scaled(1 / slower), ""
        return timed, ""

    def _latency(self, sample: Sample, gate: Gate, settings: QuietSettings) -> QuietLatency | None:
        return gate.latency(self.runtime.load(sample.model, self.threads), settings)

    def _loads(
        self, sample: Sample, gate: Gate, settings: QuietSettings, first: QuietLatency
    ) -> list[QuietLatency] | None:
        """Return latencies of the model loaded again and again, since where its data come to lie matters,
        until their mean is known well enough; None when there were too few quiet moments."""
        found = [first]
        while len(found) < MOST_LOADS:
            again = self._latency(sample, gate, settings)
            if again is None:
                return None
            found.append(again)
            times = [one.latency_ms for one in found]
            if np.std(times, ddof=1) <= MOST_ERROR * np.mean(times) * np.sqrt(len(times)):
                break
        return found

    def _timings(
        self, sample: Sample, latency_ms: float, gate: Gate, patience: int, tolerance: float
    ) -> tuple[Timing, ...] | None:
        """Return the times kernel by kernel, read between two quiet moments; None when there were none."""
        if not self.by_kernel:
            return ()
        runs = max(8, min(PROFILED_RUNS, round(PROFILED_S / latency_ms * 1e3)))
        for _ in range(patience * PROFILED_ATTEMPTS):
            before = gate.settled_ms()
            times = self.runtime.node_times(sample.model, self.threads, runs)
            if gate.is_quiet(before, gate.settled_ms(), tolerance=tolerance):
                optimized = self.runtime.optimized(sample.model, self.threads)
                return attribute(times, sample.model, optimized, kernels(sample.network, self.layouts))
        return None

    def _slower(self, timed: Timed) -> float:
        """Return how many times as long the reference took as usual."""
        usual = [item.reference_ms for item in self.known.found]
        return float(timed.reference_ms / np.median(usual)) if usual else 1.0


def file_coefficients(samples: Sequence[Sample]) -> tuple[float, ...]:
    """Return the overhead of exported files over their weights, by least squares of relative errors."""
    features = np.stack([file_features(sample.network) for sample in samples])
    sizes = np.array([len(sample.model) for sample in samples], dtype=np.float64)
    overhead = sizes - np.array([weight_bytes(sample.network) for sample in samples])
    scale = np.maximum(np.abs(features).max(axis=0), 1.0)
    system = np.vstack([features / scale / sizes[:, None], 1e-7 * np.eye(features.shape[1])])
    goal = np.concatenate([overhead / sizes, np.zeros(features.shape[1])])
    solution = np.linalg.lstsq(system, goal, rcond=None)[0]
    return tuple(float(value) for value in solution / scale)
