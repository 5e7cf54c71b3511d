"""Profiles of this machine that are real and that no noise spoils, for tests of anything but measuring."""

from __future__ import annotations

import pytest

from autocompress.device import profiler
from autocompress.device.measure.quiet_gate import QuietSettings
from autocompress.pipeline import profile_check as revalidation

ANYTHING = 1e9
HURRIED = QuietSettings(blocks=2, most_blocks=2, block_s=0.001, tolerance=ANYTHING)
PATIENT = QuietSettings(tolerance=ANYTHING)
"""As long as usual, so that predictions are good where the machine is quiet."""


def take_any_noise(patch: pytest.MonkeyPatch, settings: QuietSettings = HURRIED) -> None:
    """Until `patch` is undone, every moment counts as quiet while profiles are measured."""
    patch.setattr(profiler, "QuietSettings", lambda: settings)
    patch.setattr(revalidation, "QuietSettings", lambda: settings)
    patch.setattr(profiler, "MOST_ERROR", ANYTHING)
    patch.setattr(profiler, "MOST_SLOWDOWN", ANYTHING)
    patch.setattr(profiler, "LAST_RESORT", ANYTHING)
