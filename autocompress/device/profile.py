"""A device profile: kernel times in context, the fit that turns them into latencies, and its own error.

    hardware_profiles/NAME/profile.yaml     device, runtime, threads, batch, layouts, fit
    hardware_profiles/NAME/kernels.csv      one row a kernel, units in the column names
    hardware_profiles/NAME/validation.json  errors on networks that no row came from

The folder is plain text, is read without torch, and is checked line by line when it is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress import locations
from autocompress.device.latency_table import LatencyTable
from autocompress.errors import ProfileError
from autocompress.kernels import Kernel
from autocompress.runtime_layouts import Layouts

LEAST_RELATIVE_ERROR = 0.015
LEAST_SHARE = 0.05
"""No kernel takes less than this share of what the profiler saw."""

UNKNOWN_RELATIVE_ERROR = 0.1


@dataclass(frozen=True)
class Fit:
    """A kernel's share of a latency = scale · its median - overhead · its operations, in µs.

    Scale and overhead, which is that of the runtime's profiler, belong to the kernel's group; `constant_us`
    is what an inference takes beside its kernels.
    """

    scales: Mapping[str, float]
    overheads_us: Mapping[str, float]
    constant_us: float

    def kernel_us(self, kernel: Kernel, median_us: float, operations: float) -> float:
        scale = self.scales.get(kernel.group, self.typical_scale)
        overhead = self.overheads_us.get(kernel.group, self.typical_overhead_us)
        return max(scale * median_us - overhead * operations, LEAST_SHARE * median_us)

    @cached_property
    def typical_scale(self) -> float:
        """For groups of kernels that none of the measured networks had."""
        return float(np.median(list(self.scales.values()) or [1.0]))

    @cached_property
    def typical_overhead_us(self) -> float:
        return float(np.median(list(self.overheads_us.values()) or [0.0]))


@dataclass(frozen=True, eq=False)
class DeviceProfile:
    """One device with one runtime, thread count and batch size. Prices networks for `cost.CostModel`."""

    name: str
    runtime: str
    threads: int
    batch: int
    device: Mapping[str, Any]
    source: Mapping[str, Any]
    layouts: Layouts
    table: LatencyTable
    fit: Fit
    file_coefficients: tuple[float, ...]
    validation: Mapping[str, Any] = field(default_factory=dict)

    def kernel_us(self, kernel: Kernel) -> float:
        """A kernel's share of a network's latency. Raises ProfileError when nothing like it was measured."""
        found = self.table.lookup(kernel)
        return self.fit.kernel_us(kernel, found.median_us, found.operations)

    @property
    def constant_us(self) -> float:
        return self.fit.constant_us

    @property
    def relative_error(self) -> float:
        error = self.validation.get("error95")
        return UNKNOWN_RELATIVE_ERROR if error is None else max(LEAST_RELATIVE_ERROR, float(error))

    @cached_property
    def file_overhead(self) -> NDArray[np.float64]:
        return np.array(self.file_coefficients)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over everything that decides a price."""
        content = repr((self.runtime, self.threads, self.batch, self.layouts, sorted(self.fit.scales.items()),
                        sorted(self.fit.overheads_us.items()), self.fit.constant_us, self.file_coefficients,
                        self.table.rows))  # fmt: skip
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def check_fits(
        self,
        input_shape: tuple[int, ...] | None = None,
        space_fingerprint: str = "",
        *,
        runtime: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Raises ProfileError when the profile was made for another input size, space, runtime or number
        of threads."""
        for name, wanted, own in (("runtime", runtime, self.runtime), ("threads", threads, self.threads)):
            if wanted is not None and wanted != own:
                raise ProfileError(
                    f"the device profile {self.name!r} was measured with {name} {own}",
                    why=f"{name} {wanted} is wanted, which may be faster or slower",
                    fix=f"use a profile with {name} {wanted}, or {name} {own} here",
                )
        measured = tuple(self.source.get("input_shape") or input_shape or ())
        if input_shape is not None and measured != tuple(input_shape):
            raise ProfileError(
                f"the device profile {self.name!r} is for inputs of shape {measured[1:]}",
                why=f"the teacher's are {tuple(input_shape)[1:]}",
                fix="profile the device with this teacher",
            )
        known = self.source.get("space_fingerprint", "")
        if space_fingerprint and known and known != space_fingerprint:
            raise ProfileError(
                f"the device profile {self.name!r} was made for the space {self.source.get('space')!r}",
                why="its kernels need not be those of this space",
                fix="profile the device with this space, or search the space it was made for",
            )

    def check_here(self, machine: Mapping[str, Any]) -> None:
        """Raises ProfileError when `machine` is another one than was profiled, or has too few CPUs."""
        mine, here = (
            [data.get(key) for key in ("cpu", "cpu_id") if self.device.get(key) is not None]
            for data in (self.device, machine)
        )
        if not mine or mine != here:
            raise ProfileError(
                f"the device profile {self.name!r} was measured on another machine",
                why=f"it names {' '.join(map(str, mine))}, this is {' '.join(map(str, here))}",
                fix="profile this machine: autocompress profile",
            )
        if self.threads > (machine.get("usable_cores") or self.threads):
            raise ProfileError(
                f"the device profile {self.name!r} uses {self.threads} threads",
                why=f"this process may use {machine.get('usable_cores')} CPUs",
                fix="use a profile of fewer threads",
            )


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """The profile of a shipped name or of a folder. Raises ProfileError naming file and line or key."""
    from autocompress.device.profile_files import read_profile

    path = locations.find("hardware_profiles", name_or_path)
    if path is None:
        known = locations.names("hardware_profiles")
        raise ProfileError(
            f"there is no device profile {str(name_or_path)!r}",
            why="it is neither a folder nor the name of a profile that ships with autocompress",
            fix=f"make one with: autocompress profile. Shipped: {', '.join(known) or 'none'}",
        )
    return read_profile(path)
