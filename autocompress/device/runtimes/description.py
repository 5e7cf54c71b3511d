"""What a device and its runtime say of themselves: plain values by name, as files hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Plain: TypeAlias = "str | int | float | bool | Sequence[Plain] | Mapping[str, Plain] | None"
"""What JSON and YAML can say."""


@dataclass(frozen=True)
class DeviceDescription:
    """Hold what a device is described by, in the order in which it is written; names differ by runtime.

    What decides something has a property here, which is None where the device does not say it.
    """

    values: Mapping[str, Plain] = field(default_factory=dict)

    @property
    def cpu(self) -> str | None:
        """Return the name of the processor."""
        return self._text("cpu")

    @property
    def cpu_id(self) -> str | None:
        """Return family, model and stepping of the processor, or what an ARM one has for them."""
        return self._text("cpu_id")

    @property
    def gpu(self) -> str | None:
        """Return the name of the GPU that the runtime computes on."""
        return self._text("gpu")

    @property
    def version(self) -> str | None:
        """Return the version of the runtime."""
        return self._text("version")

    @property
    def provider(self) -> str | None:
        """Return what runs the operations within the runtime."""
        return self._text("provider")

    @property
    def usable_cores(self) -> int | None:
        """Return how many CPUs a process may use."""
        found = self.values.get("usable_cores")
        return found if isinstance(found, int) else None

    def _text(self, name: str) -> str | None:
        found = self.values.get(name)
        return None if found is None else str(found)
