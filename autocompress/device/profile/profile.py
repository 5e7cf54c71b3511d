"""A device profile: kernel times in context, the fits that turn them into latencies, and its own error.

    hardware_profiles/NAME/profile.yaml     device, runtime, threads, batch, layouts, sources, fits
    hardware_profiles/NAME/kernels.csv      one row a kernel, units in the column names
    hardware_profiles/NAME/validation.json  errors on networks that no row came from

The folder is plain text, is read without torch, and is checked line by line when it is loaded:
docs/profile-format.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.cost.kernels import Kernel
from autocompress.cost.layouts import Layouts
from autocompress.device.profile.latency_table import LatencyTable
from autocompress.device.profile.sources import ProfileSource, match
from autocompress.device.profile.validation import Validation
from autocompress.device.runtimes.description import DeviceDescription
from autocompress.errors import ProfileError

LEAST_RELATIVE_ERROR = 0.015
LEAST_SHARE = 0.05
"""No kernel takes less than this share of what the profiler saw."""

UNKNOWN_RELATIVE_ERROR = 0.1
"""The least error of a network that the profile was not validated on."""

ELSEWHERE_RELATIVE_ERROR = 0.25
"""Where neither the network, nor its space at its input size, was measured: errors up to 48 % were seen."""


@dataclass(frozen=True)
class LatencyFit:
    """Hold a fit: a kernel's share of a latency = scale · its median - overhead · its operations, in µs.

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
        """Return the scale for groups of kernels that none of the measured networks had."""
        return float(np.median(list(self.scales.values()) or [1.0]))

    @cached_property
    def typical_overhead_us(self) -> float:
        return float(np.median(list(self.overheads_us.values()) or [0.0]))


@dataclass(frozen=True, eq=False)
class DeviceProfile:
    """Describe one device with one runtime, thread count and batch size. Prices networks for
    `cost.model.CostModel`.

    `fit`, `file_coefficients` and `validation` are pooled over the sources, or, in a view that
    `for_network` gives, those of the source that speaks for that network, `source_index`, if there
    is one; `basis` says it in words, and errors are never taken to be less than `least_relative_error`.
    """

    name: str
    runtime: str
    threads: int
    batch: int
    device: DeviceDescription
    sources: tuple[ProfileSource, ...]
    layouts: Layouts
    table: LatencyTable
    fit: LatencyFit
    file_coefficients: tuple[float, ...]
    validation: Validation = field(default_factory=Validation)
    basis: str = ""
    source_index: int | None = None
    least_relative_error: float = LEAST_RELATIVE_ERROR

    def kernel_us(self, kernel: Kernel) -> float:
        """Return a kernel's share of a network's latency. Raises ProfileError when nothing like it was
        measured."""
        found = self.table.lookup(kernel)
        return self.fit.kernel_us(kernel, found.median_us, found.operations)

    @property
    def constant_us(self) -> float:
        return self.fit.constant_us

    @property
    def relative_error(self) -> float:
        """Return how far predictions may be off, as a share: the half width that holds 95 % of the errors."""
        error = self.validation.error95
        return max(self.least_relative_error, UNKNOWN_RELATIVE_ERROR if error is None else error)

    @cached_property
    def file_overhead(self) -> NDArray[np.float64]:
        return np.array(self.file_coefficients)

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits over everything that decides a price."""
        others = [source.fit for source in self.sources if source.fit != self.fit]
        fits = [_content(fit) for fit in others]
        # The names of the classes `Row`, `Kernel` and `Layouts` are in it: another name, another fingerprint.
        content = repr((self.runtime, self.threads, self.batch, self.layouts, *_content(self.fit),
                        self.file_coefficients, self.table.rows, *fits))  # fmt: skip
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def for_network(
        self,
        input_shape: Sequence[int],
        space_fingerprint: str = "",
        teacher_fingerprint: str = "",
        network_kernels: Sequence[Kernel] = (),
    ) -> DeviceProfile:
        """Return the same profile with the fit and the error of the source that speaks for a network.

        A network that no source speaks for gets the pooled fit and, as its error, the largest of the
        pooled one, ± 25 % and what the table says of its kernels. Raises ProfileError for one of
        whose `network_kernels` nothing is known.
        """
        self.check_prices(network_kernels)
        found = match(self.sources, input_shape, space_fingerprint, teacher_fingerprint, network_kernels)
        least = LEAST_RELATIVE_ERROR
        if not found.trusted:
            least = UNKNOWN_RELATIVE_ERROR if found.index is not None else ELSEWHERE_RELATIVE_ERROR
            least = max(least, self.relative_error, self._table_error(network_kernels))
        elif found.also:
            least = max(self._source_error(index) for index in found.also)
        view = replace(self, basis=found.basis, least_relative_error=least)
        if found.index is None:
            return view
        source = self.sources[found.index]
        return replace(
            view,
            source_index=found.index,
            fit=source.fit,
            file_coefficients=source.file_coefficients or self.file_coefficients,
            validation=self.validation_of(found.index),
        )

    def validation_of(self, index: int) -> Validation:
        """Return the summary of one source's errors; an empty one where it was not validated by itself."""
        if self.validation.sources:
            return self.validation.sources[index]
        return self.validation if len(self.sources) == 1 else Validation()

    def _source_error(self, index: int) -> float:
        error = self.validation_of(index).error95
        return max(UNKNOWN_RELATIVE_ERROR, self.relative_error) if error is None else error

    def _table_error(self, network_kernels: Sequence[Kernel]) -> float:
        """Return the mean error of kernels by their time, as if all erred to the same side."""
        found = [self.table.lookup(kernel) for kernel in network_kernels]
        total = sum(estimate.median_us for estimate in found)
        return sum(one.relative_error * one.median_us for one in found) / total if total else 0.0

    def check_prices(self, network_kernels: Sequence[Kernel]) -> None:
        """Raise ProfileError naming the operations of which the profile knows nothing."""
        missing = self.table.missing(network_kernels)
        if missing:
            raise ProfileError(
                f"the device profile {self.name!r} cannot price this network",
                where=", ".join(missing),
                why="none of these operations was measured on the device, in that precision",
                fix="profile the device with this teacher, and merge the two profiles",
            )

    def check_fits(
        self, *, runtime: str | None = None, threads: int | None = None, batch: int | None = None
    ) -> None:
        """Raise ProfileError when the profile was made with another runtime, number of threads or batch size
        than is wanted."""
        wanted = {"runtime": runtime, "threads": threads, "batch": batch}
        for name, value in wanted.items():
            own = getattr(self, name)
            if value is not None and value != own:
                raise ProfileError(
                    f"the device profile {self.name!r} was measured with {name} {own}",
                    why=f"{name} {value} is wanted, which may be faster or slower",
                    fix=f"use a profile with {name} {value}, or {name} {own} here",
                )

    def check_here(self, machine: DeviceDescription) -> None:
        """Raise ProfileError when `machine` has another processor than was profiled, or another GPU where
        the profile is of one, or too few CPUs."""
        names = ("gpu",) if self.device.gpu else ("cpu", "cpu_id")
        known = [name for name in names if getattr(self.device, name) is not None]
        mine, here = ([getattr(one, name) for name in known] for one in (self.device, machine))
        if not mine or mine != here:
            raise ProfileError(
                f"the device profile {self.name!r} was measured on another machine",
                why=f"it names {' '.join(map(str, mine))}, this is {' '.join(map(str, here))}",
                fix="profile this machine: autocompress profile",
            )
        if self.threads > (machine.usable_cores or self.threads):
            raise ProfileError(
                f"the device profile {self.name!r} uses {self.threads} threads",
                why=f"this process may use {machine.usable_cores} CPUs",
                fix="use a profile of fewer threads",
            )


def _content(fit: LatencyFit) -> list[Any]:
    """Return a fit's numbers in a fixed order."""
    values = [getattr(fit, each.name) for each in fields(fit)]
    return [sorted(value.items()) if isinstance(value, Mapping) else value for value in values]
