"""Measures the networks of this folder, whole and operator by operator, on the device it is run on.

    python measure_kit.py [--runtime onnxruntime|openvino] [--threads N] [--cpus 4,5]

Needs numpy and the runtime, and nothing else. Writes results.jsonl, one line a network as soon as it is
measured, device.json, and the networks as the runtime rewrote them into optimized/. A run that was
stopped goes on where it stopped. Exit codes: 0 done, 2 something cannot be used, 5 too noisy.

Each network is timed without the runtime's profiler before and after it is read with it, in short blocks
of runs between blocks of a reference network. A block counts only when the reference took about as long as
in quiet moments right before and right after it. What was disturbed is measured again after the others,
with more patience.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

FORMAT = 1
USAGE, NOISY, INTERRUPTED = 2, 5, 130
PROFILED_WARM_UP_RUNS = 5
READINGS = 3
SETTLING_BLOCKS = 3
_FILE = re.compile(r"models/[A-Za-z0-9_-]{1,80}\.onnx\Z")
_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
    "asimddp": "ARM dot product",
    "i8mm": "ARM int8 matrix multiply",
}


class Stop(Exception):
    """End the script with a message and an exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def fail(message: str) -> NoReturn:
    """End the script: something cannot be used."""
    raise Stop(USAGE, message)


class KitModel(NamedTuple):
    """Hold a network that kit.json lists; `file` is relative to the kit."""

    name: str
    file: str
    sha256: str


class KitNode(NamedTuple):
    """Hold the time of one operation and the exported nodes it carries out, where the runtime tells."""

    name: str
    op: str
    time_us: float
    origins: list[str]


class MeasuredModel(NamedTuple):
    """Hold a line of results.jsonl: latencies of one network and of the reference beside it, load by load."""

    name: str
    sha256: str
    latency_ms: list[float]
    reference_ms: list[float]
    nodes: list[KitNode]
    optimized_sha256: str | None


class RunSetting(NamedTuple):
    """Hold the first line of results.jsonl: what results must share to belong together."""

    format: int
    kit: str
    runtime: str
    version: str
    threads: int


class MeasureSettings(NamedTuple):
    """Hold how kit.json asks for measuring; autocompress describes each where it measures itself."""

    blocks: int
    most_blocks: int
    block_s: float
    block_runs: int
    warm_up_runs: int
    tolerance: float
    window: int
    quiet_share: int
    natural: float
    patience: list[int]
    last_resort: float
    profiled_runs: int
    profiled_s: float
    profiled_attempts: int
    most_loads: int
    most_error: float
    most_slowdown: float


class KitRuntime(Protocol):
    """Run networks with one runtime and a number of threads."""

    def describe(self) -> dict[str, object]:
        """Return name, version, build and settings."""

    def load(self, path: Path) -> Callable[[], Any]:
        """Return a function that runs the network once."""

    def node_times(self, path: Path, runs: int) -> list[KitNode]:
        """Return the times of the operations, by the runtime's own profiler."""

    def save_optimized(self, path: Path, target: Path) -> None:
        """Write the network as the runtime rewrote it, where it shows that."""


class Onnxruntime:
    """Run networks with ONNX Runtime on the CPU."""

    def __init__(self, threads: int) -> None:
        self.library = importlib.import_module("onnxruntime")
        self.threads = threads

    def describe(self) -> dict[str, object]:
        return {
            "runtime": "onnxruntime",
            "version": self.library.__version__,
            "build": self.library.get_build_info(),
            "provider": "CPUExecutionProvider",
            "intra_op_threads": self.threads,
            "inter_op_threads": 1,
            "allow_spinning": True,
            "graph_optimization": "all",
        }

    def load(self, path: Path) -> Callable[[], Any]:
        return self._runner(self._session(path, self._options()))

    def node_times(self, path: Path, runs: int) -> list[KitNode]:
        with tempfile.TemporaryDirectory() as folder:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = self._session(path, options)
            run = self._runner(session)
            for _ in range(PROFILED_WARM_UP_RUNS + runs):
                run()
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        times: dict[str, list[float]] = {}
        ops: dict[str, str] = {}
        for event in events:
            name = event["name"]
            if event.get("cat") == "Node" and name.endswith("_kernel_time"):
                name = name[: -len("_kernel_time")]
                times.setdefault(name, []).append(float(event["dur"]))
                ops[name] = event["args"]["op_name"]
        return [KitNode(name, ops[name], middle_mean(values[-runs:]), []) for name, values in times.items()]

    def save_optimized(self, path: Path, target: Path) -> None:
        options = self._options()
        options.optimized_model_filepath = str(target)
        self._session(path, options)

    def _options(self) -> Any:
        options = self.library.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = self.library.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self.library.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        return options

    def _session(self, path: Path, options: Any) -> Any:
        return self.library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _runner(self, session: Any) -> Callable[[], Any]:
        feed = {
            one.name: random_input(tuple(one.shape), numpy_type(one.type)) for one in session.get_inputs()
        }
        return lambda: session.run(None, feed)


class Openvino:
    """Run networks with OpenVINO on the CPU. Its graph is no ONNX file, so none is saved."""

    def __init__(self, threads: int) -> None:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        self.library = importlib.import_module("openvino")
        self.core = self.library.Core()
        self.threads = threads

    def describe(self) -> dict[str, object]:
        return {
            "runtime": "openvino",
            "version": self.library.__version__.partition("-")[0],
            "build": self.library.__version__,
            "provider": "CPU",
            "intra_op_threads": self.threads,
            "streams": 1,
            "float_precision": "f32",
        }

    def load(self, path: Path) -> Callable[[], Any]:
        return self._runner(self._compiled(path, counters=False).create_infer_request())

    def node_times(self, path: Path, runs: int) -> list[KitNode]:
        """Return medians of several readings: the counters are means, which an interruption spoils."""
        readings = [self._reading(path, runs) for _ in range(READINGS)]
        return [
            layers[0]._replace(time_us=statistics.median(layer.time_us for layer in layers))
            for layers in zip(*readings)  # noqa: B905 - Python 3.9 knows no strict
        ]

    def _reading(self, path: Path, runs: int) -> list[KitNode]:
        """Return layers that name an implementation, with their mean times over the last runs.

        The counters are means over all runs so far and cut off fractions of a microsecond, of each run
        and of the mean again; half a microsecond is put back for each.
        """
        compiled = self._compiled(path, counters=True)
        request = compiled.create_infer_request()
        run = self._runner(request)
        for _ in range(PROFILED_WARM_UP_RUNS):
            run()
        cold = {layer.node_name: layer.real_time.total_seconds() * 1e6 for layer in request.profiling_info}
        for _ in range(runs):
            run()
        origins = {
            layer.get_friendly_name(): self._origins(layer)
            for layer in compiled.get_runtime_model().get_ops()
        }
        found = []
        for layer in request.profiling_info:
            if layer.exec_type.startswith(("unknown", "undef")):
                continue
            warm_us = layer.real_time.total_seconds() * 1e6
            total_us = (PROFILED_WARM_UP_RUNS + runs) * (warm_us + 0.5)
            total_us -= PROFILED_WARM_UP_RUNS * (cold[layer.node_name] + 0.5)
            time_us = 0.5 if warm_us < 1 else max(total_us / runs, 0.0) + 0.5
            name, kind = layer.node_name, layer.node_type
            found.append(KitNode(name, kind, time_us, origins.get(name, [])))
        return found

    def _origins(self, layer: Any) -> list[str]:
        named = dict(layer.get_rt_info().items()).get("originalLayersNames", "")
        return [name for name in str(getattr(named, "value", named)).split(",") if name]

    def save_optimized(self, path: Path, target: Path) -> None:
        del path, target

    def _compiled(self, path: Path, *, counters: bool) -> Any:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERF_COUNT": counters,
        }
        return self.core.compile_model(self.core.read_model(str(path)), "CPU", settings)

    def _runner(self, request: Any) -> Callable[[], Any]:
        feed = [random_input(tuple(one.shape), one.element_type.to_dtype()) for one in request.model_inputs]
        return lambda: request.infer(feed, share_inputs=True, share_outputs=True)


RUNTIMES: dict[str, Callable[[int], KitRuntime]] = {"onnxruntime": Onnxruntime, "openvino": Openvino}


def random_input(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return floats at random; integers, which may be places in a table, are zero."""
    numpy = importlib.import_module("numpy")
    if numpy.dtype(dtype).kind != "f":
        return numpy.zeros(shape, dtype)
    return numpy.random.default_rng(0).standard_normal(shape).astype(dtype)


def numpy_type(kind: str) -> str:
    """Return numpy's name of a type that ONNX Runtime calls, for example, `tensor(int64)`."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def middle_mean(values: list[float]) -> float:
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return statistics.fmean(ordered[quarter : len(ordered) - quarter])


class Manifest:
    """Hold what kit.json says, checked against the files beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            text = (folder / "kit.json").read_bytes()
            data = json.loads(text)
        except (OSError, ValueError) as error:
            fail(f"kit.json cannot be read: {error}")
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            fail(f"kit.json is not of format {FORMAT}: make the kit with the same version of autocompress")
        self.identity = hashlib.sha256(text).hexdigest()
        try:
            self.runtime, self.threads = str(data["runtime"]), int(data["threads"])
            self.reference = str(data["reference"])
            self.settings: MeasureSettings = _record(MeasureSettings, data["settings"])
            self.models: list[KitModel] = [_record(KitModel, entry) for entry in data["models"]]
            self.probes: list[KitModel] = [_record(KitModel, entry) for entry in data["probes"]]
        except (KeyError, TypeError, ValueError) as error:
            fail(f"kit.json is damaged ({type(error).__name__} {error}): make the kit again")
        for entry in (*self.models, *self.probes):
            self._check(entry)

    def path(self, entry: KitModel) -> Path:
        """Return where the file of a network lies."""
        return self.folder / entry.file

    def _check(self, entry: KitModel) -> None:
        if not _FILE.match(entry.file):
            fail(f"kit.json names a file outside of models/: {entry.file!r}")
        try:
            found = hashlib.sha256(self.path(entry).read_bytes()).hexdigest()
        except OSError as error:
            fail(f"{entry.file} cannot be read: {error.strerror}")
        if found != entry.sha256:
            fail(f"{entry.file} is not the file that kit.json lists: copy the kit again")


def _record(kind: Any, data: Any) -> Any:
    """Return the record of these fields of a JSON object. Raises KeyError for one that is missing."""
    return kind(*(data[name] for name in kind._fields))


class ResultsFile:
    """Keep results.jsonl: a line about the setting, then one a network. Only whole lines count."""

    def __init__(self, path: Path, setting: RunSetting) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        try:
            parsed = [json.loads(line) for line in lines]
            if parsed and parsed[0] != setting._asdict():
                fail(
                    f"{path.name} is of another kit, runtime or number of threads: {parsed[0]}, now "
                    f"{setting._asdict()}; delete it, or give --output another folder"
                )
            self.found: list[MeasuredModel] = [_record(MeasuredModel, line) for line in parsed[1:]]
        except (KeyError, TypeError, ValueError) as error:
            fail(f"{path.name} is damaged ({error}): delete it")
        whole = [setting._asdict(), *(line._asdict() for line in self.found)]
        text = "".join(json.dumps(line) + "\n" for line in whole)
        path.write_text(text, encoding="utf-8")

    @property
    def names(self) -> set[str]:
        """Return the networks that were measured."""
        return {line.name for line in self.found}

    def add(self, line: MeasuredModel) -> None:
        """Keep a result; it is in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line._asdict()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.found.append(line)


class ReferenceGate:
    """Time a reference network, which tells whether the device is quiet."""

    def __init__(self, reference: Callable[[], Any], settings: MeasureSettings) -> None:
        self.reference, self.settings = reference, settings
        self._recent: deque[float] = deque(maxlen=settings.window)
        self.forget()

    def forget(self) -> None:
        """Learn anew how quiet it gets here: a device may have become slower for good."""
        self._recent.clear()
        for _ in range(self.settings.blocks):
            self.reference_ms()

    def reference_ms(self) -> float:
        now = block_ms(self.reference, self.settings)
        self._recent.append(now)
        return now

    def settled_ms(self) -> float:
        """Return the least of a few blocks: after other work the first may only show empty caches."""
        return min(self.reference_ms() for _ in range(SETTLING_BLOCKS))

    def is_quiet(self, tolerance: float, *reference_ms: float) -> bool:
        ordered = sorted(self._recent)
        level = ordered[len(ordered) * self.settings.quiet_share // 100]
        middle = min(ordered[len(ordered) // 2], level * (1 + self.settings.natural))
        return max(reference_ms) <= max(level * (1 + tolerance), middle)

    def latency(self, run: Callable[[], Any], patience: int, tolerance: float) -> tuple[float, float] | None:
        """Return medians over quiet blocks, of `run` and of the reference, in ms; None when there were too
        few."""
        block_ms(run, self.settings)
        kept: list[float] = []
        references: list[float] = []
        before = self.reference_ms()
        for _ in range(patience * self.settings.most_blocks):
            own = block_ms(run, self.settings)
            after = self.reference_ms()
            if self.is_quiet(tolerance, before, after):
                kept.append(own)
                references += [before, after]
            if len(kept) == self.settings.blocks:
                return statistics.median(kept), statistics.median(references)
            before = after
        return None


class KitBench:
    """Measure what is not known yet, and come back to what was disturbed."""

    def __init__(self, kit: Manifest, engine: KitRuntime, results: ResultsFile, output: Path) -> None:
        self.kit, self.engine, self.results = kit, engine, results
        self.optimized = output / "optimized"
        self.settings = kit.settings

    def run(self) -> None:
        self.optimized.mkdir(parents=True, exist_ok=True)
        for entry in self.kit.probes:
            self._rewritten(entry)
        first = next(entry for entry in self.kit.models if entry.name == self.kit.reference)
        gate = ReferenceGate(self.engine.load(self.kit.path(first)), self.settings)
        waiting = [entry for entry in self.kit.models if entry.name not in self.results.names]
        for patience in self.settings.patience:
            disturbed = []
            for entry in waiting:
                self._say()
                if not self._measured(entry, gate, patience):
                    disturbed.append(entry)
            waiting = disturbed
            if waiting:
                gate.forget()
        self._say()
        if waiting:
            raise Stop(NOISY, f"the device is too noisy: {len(waiting)} networks could not be measured")

    def _say(self) -> None:
        sys.stdout.write(f"{len(self.results.found)} of {len(self.kit.models)} networks\n")
        sys.stdout.flush()

    def _measured(self, entry: KitModel, gate: ReferenceGate, patience: int) -> bool:
        """Add a result; return False when it was disturbed. In the last round being slower than before is no
        disturbance: times become what they would have been, by the reference."""
        path = self.kit.path(entry)
        last = patience == self.settings.patience[-1]
        tolerance = self.settings.last_resort if last else self.settings.tolerance
        first = gate.latency(self.engine.load(path), patience, tolerance)
        nodes = first and self._node_times(path, gate, first[0], patience, tolerance)
        loads = first and nodes and self._loads(path, gate, patience, tolerance, first)
        if not nodes or not loads:
            return False
        slower = self._slower([reference_ms for _, reference_ms in loads])
        if slower > 1 + self.settings.most_slowdown:
            if not last:
                return False
            loads = [(latency_ms / slower, reference_ms / slower) for latency_ms, reference_ms in loads]
            nodes = [node._replace(time_us=node.time_us / slower) for node in nodes]
        self.results.add(
            MeasuredModel(
                entry.name,
                entry.sha256,
                [latency_ms for latency_ms, _ in loads],
                [reference_ms for _, reference_ms in loads],
                nodes,
                self._rewritten(entry),
            )
        )
        return True

    def _loads(
        self, path: Path, gate: ReferenceGate, patience: int, tolerance: float, first: tuple[float, float]
    ) -> list[tuple[float, float]] | None:
        """Return latencies of the network loaded again and again, since where its data come to lie matters,
        until their mean is known well enough; None when there were too few quiet moments."""
        found = [first]
        while len(found) < self.settings.most_loads:
            again = gate.latency(self.engine.load(path), patience, tolerance)
            if again is None:
                return None
            found.append(again)
            times = [latency_ms for latency_ms, _ in found]
            error = statistics.stdev(times) / len(times) ** 0.5
            if error <= self.settings.most_error * statistics.fmean(times):
                break
        return found

    def _node_times(
        self, path: Path, gate: ReferenceGate, latency_ms: float, patience: int, tolerance: float
    ) -> list[KitNode] | None:
        """Return the times operator by operator, read between two quiet moments; None when there were
        none."""
        most, seconds = self.settings.profiled_runs, self.settings.profiled_s
        runs = max(min(8, most), min(most, round(seconds / latency_ms * 1e3)))
        for _ in range(patience * self.settings.profiled_attempts):
            before = gate.settled_ms()
            nodes = self.engine.node_times(path, runs)
            if gate.is_quiet(tolerance, before, gate.settled_ms()):
                return nodes
        return None

    def _rewritten(self, entry: KitModel) -> str | None:
        """Save the network as the runtime rewrote it and return its digest; None for a runtime that does not
        show it."""
        target = self.optimized / f"{entry.name}.onnx"
        self.engine.save_optimized(self.kit.path(entry), target)
        return hashlib.sha256(target.read_bytes()).hexdigest() if target.exists() else None

    def _slower(self, reference_ms: list[float]) -> float:
        """Return how many times as long the reference took as usual."""
        usual = [value for line in self.results.found for value in line.reference_ms]
        return statistics.median(reference_ms) / statistics.median(usual) if usual else 1.0


def block_ms(run: Callable[[], Any], settings: MeasureSettings) -> float:
    """Return the median of single runs over one block, in ms, after those that warm up."""
    for _ in range(settings.warm_up_runs):
        run()
    times: list[int] = []
    clock = time.perf_counter_ns
    end = clock() + int(settings.block_s * 1e9)
    while len(times) < settings.block_runs or clock() < end:
        start = clock()
        run()
        times.append(clock() - start)
    return statistics.median(times) / 1e6


def device(usable_cores: int | None) -> dict[str, object]:
    """Return what identifies the device, and how busy it is."""
    info = _lines("/proc/cpuinfo")
    flags = next(
        (set(_after(line).split()) for line in info if line.startswith(("flags", "Features"))), set()
    )
    return {
        "cpu": next((_after(line) for line in info if line.startswith(("model name", "Model"))), "")
        or platform.processor()
        or platform.machine(),
        "cpu_id": _cpu_id(info),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count(),
        "usable_cores": usable_cores,
        "cpu_quota": _quota(),
        "governor": "".join(_lines("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")[:1]) or "unknown",
        "board": "".join(_lines("/proc/device-tree/model")[:1]).strip("\0") or None,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "features": [label for flag, label in _FLAGS.items() if flag in flags],
    }


def _cpu_id(info: list[str]) -> str | None:
    keys = ("cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU revision")
    found: dict[str, str] = {}
    for line in info:
        if line.partition(":")[0].strip() in keys:
            found.setdefault(line.partition(":")[0].strip(), _after(line))
    return "-".join(found[key] for key in keys if key in found) or None


def _quota() -> float | None:
    parts = " ".join(_lines("/sys/fs/cgroup/cpu.max")).split()
    return int(parts[0]) / int(parts[1]) if len(parts) == 2 and parts[0].isdigit() else None


def _after(line: str) -> str:
    return line.partition(":")[2].strip()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Let no two measurements run at once on one host; autocompress itself holds the same lock."""
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:
        yield
        return
    path = Path(tempfile.gettempdir()) / "autocompress-measuring.lock"
    with contextlib.suppress(OSError):
        path.touch(mode=0o666)
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def pin(threads: int, cpus: str | None) -> None:
    """Bind this process to `cpus`, or to the last of those it may use; the first serve interrupts."""
    if not hasattr(os, "sched_setaffinity"):
        return
    try:
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, [int(cpu) for cpu in cpus.split(",")] if cpus else allowed[-threads:])
    except (OSError, ValueError) as error:
        if cpus:
            fail(f"this process cannot be bound to the CPUs {cpus}: {error}")


def open_engine(wanted: str | None, threads: int) -> KitRuntime:
    """Return the runtime asked for, else the first that is installed."""
    for name in (wanted,) if wanted else RUNTIMES:
        try:
            return RUNTIMES[name](threads)
        except ImportError as error:
            missing = str(error)
    fail(f"the runtime cannot be imported ({missing}): pip install numpy {wanted or ' or '.join(RUNTIMES)}")


def measure(arguments: argparse.Namespace) -> None:
    kit = Manifest(Path(__file__).resolve().parent)
    threads = kit.threads if arguments.threads is None else arguments.threads
    if threads < 1:
        fail("--threads must be 1 or more")
    output: Path = arguments.output or kit.folder
    output.mkdir(parents=True, exist_ok=True)
    wanted = arguments.runtime or (kit.runtime if kit.runtime in RUNTIMES else None)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with machine_lock():
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        pin(threads, arguments.cpus)
        engine = open_engine(wanted, threads)
        about = {**device(usable), **engine.describe()}
        (output / "device.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        setting = RunSetting(FORMAT, kit.identity, str(about["runtime"]), str(about["version"]), threads)
        KitBench(kit, engine, ResultsFile(output / "results.jsonl", setting), output).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), help="default: the one the kit was made for")
    parser.add_argument("--threads", type=int, help="threads of one inference; default: those of the kit")
    parser.add_argument("--cpus", help="CPUs to run on, such as 4,5; default: the last ones")
    parser.add_argument("--output", type=Path, help="folder to write to; default: that of the kit")
    try:
        measure(parser.parse_args())
    except Stop as stop:
        sys.stderr.write(f"error: {stop}\n")
        return stop.code
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on\n")
        return INTERRUPTED
    except OSError as error:
        sys.stderr.write(f"error: {error.filename or 'a file'}: {error.strerror or error}\n")
        return 2
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        sys.stderr.write(f"error: {type(error).__name__}: {first}\n")
        return 1
    sys.stdout.write("done: import results.jsonl with autocompress profile import\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
