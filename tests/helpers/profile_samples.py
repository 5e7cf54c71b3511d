"""Small device profiles, and how to damage one on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autocompress.cost.kernels import Kernel
from autocompress.cost.layouts import Layouts
from autocompress.cost.model import file_features_count
from autocompress.device.profile import latency_table
from autocompress.device.profile.profile import DeviceProfile, LatencyFit
from autocompress.device.profile.sources import ProfileSource
from autocompress.device.profile.validation import Validation
from autocompress.device.runtimes.description import DeviceDescription

FIT = LatencyFit({"conv.fp32": 0.9}, {"conv.fp32": 1.5}, 2.0)


def source(**changes: Any) -> ProfileSource:
    known = {"space_fingerprint": "abc", "teacher_fingerprint": "t1", "input_shape": (1, 3, 32, 32)}
    return ProfileSource(
        **{"network": "resnet20", "space": "joint", "fit": FIT, "networks": 2, **known, **changes}
    )


def example() -> DeviceProfile:
    rows = [
        latency_table.Row(
            Kernel(
                "conv",
                "fp32",
                in_channels=channels,
                out_channels=channels,
                height=8,
                width=8,
                kernel_height=3,
                kernel_width=3,
                in_elements=64 * channels,
                out_elements=64 * channels,
            ),
            5,
            1.0,
            channels / 2,
            channels / 2 - 0.5,
            channels / 2 + 0.5,
        )
        for channels in (8, 16, 24)
    ]
    return DeviceProfile(
        name="example",
        runtime="onnxruntime",
        threads=1,
        batch=1,
        device=DeviceDescription({"cpu": "An Example", "usable_cores": 2}),
        sources=(source(),),
        layouts=Layouts(8, False),
        table=latency_table.LatencyTable(rows),
        fit=FIT,
        file_coefficients=tuple(float(value) for value in range(file_features_count())),
        validation=Validation(count=2, mean_error=0.01, error95=0.04),
    )


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text(encoding="utf-8")
    after = change(before)
    assert after != before
    path.write_text(after, encoding="utf-8")


def cell(name: str, value: str, line: int = 3) -> Callable[[str], str]:
    """Writes `value` into one cell of kernels.csv; lines count from 1."""

    def change(text: str) -> str:
        lines = [row.split(",") for row in text.splitlines()]
        lines[line - 1][lines[0].index(name)] = value
        return "\n".join(",".join(row) for row in lines) + "\n"

    return change
