"""What the machine at hand is and can do, from the operating system and package metadata.

Libraries are imported only where there is a GPU, to ask whether they can use it.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from autocompress.device.runtimes.description import DeviceDescription, Plain

FLAGS = {
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
_INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
PACKAGES = (
    "autocompress",
    "torch",
    "timm",
    "optuna",
    "ray",
    "onnx",
    "onnxruntime",
    "openvino",
    "scipy",
    "numpy",
)
LEAST_FREE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Machine:
    """Hold what identifies a device: what profiles and runs record of it. None is not known, or no limit."""

    cpu: str
    cpu_id: str | None
    architecture: str
    system: str
    cores: int | None
    usable_cores: int | None
    cpu_quota: float | None
    governor: str


@dataclass(frozen=True)
class Examination:
    """Hold what a machine is and can do, and what is in the way of measuring on it.

    `runtimes` says of each whether it can be used or why not, `packages` the versions that are installed.
    """

    machine: Machine
    features: tuple[str, ...]
    int8: str
    memory_bytes: int | None
    free_disk_bytes: int
    load_average: tuple[float, ...]
    gpu: str
    runtimes: Mapping[str, str]
    packages: Mapping[str, str | None]

    @property
    def problems(self) -> list[str]:
        """Return what disturbs measurements or endangers a run, each with a way out."""
        cores, quota, governor = self.machine.usable_cores, self.machine.cpu_quota, self.machine.governor
        problems = []
        if cores and self.load_average[0] > 0.5 * cores:
            problems.append("other programs are running: timings will be noisy; end them before profiling")
        if governor not in ("performance", "unknown"):
            problems.append(f"the CPU governor is {governor!r}: set it to 'performance' for steady timings")
        if quota is not None and quota < (cores or 1):
            problems.append(f"a quota of {quota:g} CPUs throttles the process: use at most that many threads")
        if self.free_disk_bytes < LEAST_FREE_BYTES:
            problems.append("less than 2 GiB of disk are free: runs may not be recorded completely")
        return problems

    def to_json(self) -> dict[str, Plain]:
        """Return the examination as `doctor --format json` prints it."""
        own = {name: value for name, value in vars(self).items() if name != "machine"}
        lists = {"features": list(self.features), "load_average": list(self.load_average)}
        return {**vars(self.machine), **own, **lists, "problems": self.problems}


def doctor() -> Examination:
    """Return processor, precisions, cores and quotas, memory, disk, runtimes, versions and problems."""
    flags = _cpu_flags()
    return Examination(
        machine=machine(),
        features=_features(flags),
        int8="accelerated" if flags & _INT8 else "not accelerated: 8 bits may be slower and less accurate",
        memory_bytes=_memory_bytes(),
        free_disk_bytes=shutil.disk_usage(Path.cwd()).free,
        load_average=os.getloadavg(),
        gpu="nvidia-smi found" if shutil.which("nvidia-smi") else "none found",
        runtimes=_runtimes(),
        packages={name: _version(name) for name in PACKAGES},
    )


def usable_cores() -> int | None:
    """Return CPUs that this process may run on; None where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine() -> Machine:
    """Return what identifies this machine."""
    return Machine(
        cpu=_cpu_model(),
        cpu_id=_cpu_id(),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cores=os.cpu_count(),
        usable_cores=usable_cores(),
        cpu_quota=_cpu_quota(),
        governor=_governor(),
    )


def device_description(runtime: str, threads: int) -> DeviceDescription:
    """Return the machine, its state now, and the runtime with its build and thread settings."""
    from autocompress.device.runtimes.base import get_runtime

    return DeviceDescription(
        {
            **vars(machine()),
            "features": list(_features(_cpu_flags())),
            "memory_bytes": _memory_bytes(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
            **get_runtime(runtime).describe(threads),
        }
    )


def _features(flags: set[str]) -> tuple[str, ...]:
    """Return the vector instructions that these flags of a processor stand for."""
    return tuple(label for flag, label in FLAGS.items() if flag in flags)


def _runtimes() -> dict[str, str]:
    """Return for each runtime the version that is installed, or why it cannot be used here."""
    from autocompress.device.runtimes.base import known_runtime, runtime_names

    found = {}
    for name in runtime_names():
        runtime = known_runtime(name)
        missing = runtime.available()
        found[name] = f"not available: {missing}" if missing else f"available, {_version(runtime.package)}"
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_info() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _cpu_model() -> str:
    for line in _cpu_info():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_id() -> str | None:
    """Return family, model and stepping, or their ARM counterparts: virtual machines often hide the name."""
    keys = ("cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU revision")
    found: dict[str, str] = {}
    for line in _cpu_info():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            found.setdefault(key.strip(), value.strip())
    return "-".join(found[key] for key in keys if key in found) or None


def _cpu_flags() -> set[str]:
    for line in _cpu_info():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _cpu_quota() -> float | None:
    """Return CPUs that a control group allows; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _governor() -> str:
    try:
        path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
