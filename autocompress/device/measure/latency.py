"""How latency is measured here.

A fresh process, pinned, with the number of threads it was told; warm-up until two blocks agree;
blocks of runs in random order with blocks of a reference model; the median of block medians with a
bootstrap interval. A measurement whose blocks disagree, or during which the reference drifts, is
thrown away and taken again, and after a few attempts the device is called noisy instead. No two
measurements run at once on one host.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from autocompress.device.measure.statistics import Measurement, summarise
from autocompress.device.runtimes.base import Runtime, Session, get_runtime
from autocompress.errors import AutocompressError, InputError, NoisyDeviceError

log = logging.getLogger("autocompress")

LOCK_FILE = "autocompress-measuring.lock"


@dataclass(frozen=True)
class LatencySettings:
    """Say how long to measure. A block has at least `block_s` seconds and `block_runs` runs."""

    blocks: int
    block_s: float
    block_runs: int
    warm_up_s: float = 0.5
    agreement: float = 0.02
    most_spread: float = 0.05
    most_drift: float = 0.03
    attempts: int = 4
    seed: int = 0


CERTIFY = LatencySettings(blocks=7, block_s=0.5, block_runs=30)


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Hold the host's measuring lock; wait, and say for whom, while another process has it."""
    path = Path(tempfile.gettempdir()) / LOCK_FILE
    with contextlib.suppress(OSError):
        path.touch(mode=0o666)
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log.warning(
                "waiting for process %s, which is measuring on this machine", file.read().strip() or "?"
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def measure(
    session: Session, reference: Session | None = None, settings: LatencySettings = CERTIFY
) -> Measurement:
    """Return the latency of one inference, in this process. The caller holds `machine_lock`.

    Raises NoisyDeviceError when no attempt's blocks agree.
    """
    sessions = {"model": session} if reference is None else {"model": session, "reference": reference}
    found = None
    for attempt in range(1, settings.attempts + 1):
        blocks = _blocks(sessions, replace(settings, seed=settings.seed + attempt))
        found = replace(summarise(blocks["model"], blocks.get("reference", ())), attempts=attempt)
        if found.spread <= settings.most_spread and (found.reference_drift or 0.0) <= settings.most_drift:
            return found
    assert found is not None
    drift = "" if found.reference_drift is None else f", the reference drifted by {found.reference_drift:.1%}"
    raise NoisyDeviceError(
        "the device is too noisy to measure",
        why=f"in {settings.attempts} attempts block medians varied by {found.spread:.1%}{drift}",
        fix="end other programs on this machine and try again",
    )


def _blocks(sessions: Mapping[str, Session], settings: LatencySettings) -> dict[str, list[list[float]]]:
    """Return the times in ms, by session and block; the order of blocks is random."""
    for session in sessions.values():
        _warm_up(session, settings)
    order = [name for name in sessions for _ in range(settings.blocks)]
    random.Random(settings.seed).shuffle(order)
    blocks: dict[str, list[list[float]]] = {name: [] for name in sessions}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for name in order:
            blocks[name].append(_block(sessions[name], settings.block_s, settings.block_runs))
    finally:
        if enabled:
            gc.enable()
    return blocks


def _warm_up(session: Session, settings: LatencySettings) -> None:
    """Run until two blocks agree, for at most three times the warm-up time."""
    end = time.perf_counter() + 3 * settings.warm_up_s
    before = float("inf")
    while time.perf_counter() < end:
        times = sorted(_block(session, settings.warm_up_s / 4, 5))
        now = times[len(times) // 2]
        if abs(now / before - 1) <= settings.agreement:
            return
        before = now


def _block(session: Session, seconds: float, least_runs: int) -> list[float]:
    """Return the times of single runs in ms."""
    times: list[float] = []
    clock = time.perf_counter_ns
    end = clock() + int(seconds * 1e9)
    while len(times) < least_runs or clock() < end:
        start = clock()
        session.run_once()
        times.append((clock() - start) / 1e6)
    return times


def measure_in_fresh_process(
    model: Path,
    reference: Path | None = None,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    settings: LatencySettings = CERTIFY,
) -> Measurement:
    """Measure in a new process that is pinned to as many CPUs as it has threads.

    Raises NoisyDeviceError as `measure` does, InputError for a file that the runtime cannot load, and
    AutocompressError when the process fails.
    """
    command = [sys.executable, "-m", "autocompress.device.measure.latency", str(model), "--runtime", runtime]
    command += ["--threads", str(threads), "--settings", json.dumps(asdict(settings))]
    if reference is not None:
        command += ["--reference", str(reference)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    kind = {error.exit_code: error for error in (InputError, NoisyDeviceError)}.get(done.returncode)
    if kind is not None and done.stdout:
        raise kind(**json.loads(done.stdout))
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise AutocompressError(f"measuring {model} failed", why=last)
    return Measurement.from_json(json.loads(done.stdout))


def pin(threads: int) -> None:
    """Bind this process to the last `threads` of the CPUs it may use; the first serve interrupts."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[-threads:])


def _peak_bytes() -> int | None:
    """Return the largest resident size of this process so far."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m autocompress.device.measure")
    parser.add_argument("model", type=Path)
    parser.add_argument("--runtime", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--reference", type=Path)
    arguments = parser.parse_args()
    try:
        found = _measure_alone(
            get_runtime(arguments.runtime),
            arguments.model,
            arguments.reference,
            arguments.threads,
            LatencySettings(**arguments.settings),
        )
    except (InputError, NoisyDeviceError) as error:
        problem = {"what": error.what, "where": error.where, "why": error.why, "fix": error.fix}
        sys.stdout.write(json.dumps(problem))
        return error.exit_code
    sys.stdout.write(json.dumps(found.to_json()))
    return 0


def _measure_alone(
    runtime: Runtime, model: Path, reference: Path | None, threads: int, settings: LatencySettings
) -> Measurement:
    """Pin and load only once the lock is held: every measuring process is pinned to the same CPUs."""
    runtime.describe(threads)
    with machine_lock():
        pin(threads)
        before = _peak_bytes()
        session = runtime.load(model, threads)
        session.run_once()
        after = _peak_bytes()
        loaded_reference = runtime.load(reference, threads) if reference is not None else None
        found = measure(session, loaded_reference, settings)
    return replace(found, process_peak_bytes=None if before is None or after is None else after - before)


if __name__ == "__main__":
    sys.exit(_main())
