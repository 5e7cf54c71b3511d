"""Profiles of this machine that are real and quick, for tests of something else than measuring."""

from __future__ import annotations

import pytest

from autocompress import revalidation
from autocompress.device import profiler
from autocompress.device.quiet import QuietSettings

ANYTHING = 1e9
ANYTHING_IS_QUIET = QuietSettings(blocks=2, most_blocks=2, block_s=0.001, tolerance=ANYTHING)


def measure_hurriedly(patch: pytest.MonkeyPatch) -> None:
    """Profiles are measured in a hurry until `patch` is undone, and no noise disturbs them."""
    patch.setattr(profiler, "QuietSettings", lambda: ANYTHING_IS_QUIET)
    patch.setattr(revalidation, "QuietSettings", lambda: ANYTHING_IS_QUIET)
    patch.setattr(profiler, "MOST_ERROR", ANYTHING)
    patch.setattr(profiler, "LAST_RESORT", ANYTHING)
