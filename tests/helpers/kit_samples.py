"""A few networks of a small space, and a kit of them that is measured in a second or two."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from priced_networks import small_pricer

from autocompress.device.kit.folder import Kit, KitSettings, write_kit
from autocompress.device.measure.quiet_gate import QuietSettings
from autocompress.device.profile.sources import CandidateOrigin
from autocompress.device.profiler import Sample
from autocompress.pipeline.profile_device import profile_samples

COUNT = 8
ANYTHING = 1e9
QUICKLY = KitSettings(
    QuietSettings(blocks=3, most_blocks=4, block_s=0.001, tolerance=ANYTHING),
    patience=(1,),
    profiled_runs=12,
    most_loads=2,
    most_slowdown=ANYTHING,
    last_resort=ANYTHING,
)
ORIGIN = CandidateOrigin("small", "small", input_shape=(1, 1, 16, 16))


@lru_cache(maxsize=1)
def kit_samples() -> tuple[Sample, ...]:
    return tuple(profile_samples(small_pricer()[0].bound, COUNT, 0, 1))


def small_kit(folder: Path, settings: KitSettings = QUICKLY) -> Kit:
    return write_kit(
        folder,
        kit_samples(),
        runtime="onnxruntime",
        threads=1,
        batch=1,
        origin=ORIGIN,
        settings=settings,
    )
