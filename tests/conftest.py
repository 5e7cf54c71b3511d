"""What holds for every test: one thread a process, for several run side by side; where larger data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from places import DATA

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@pytest.fixture
def shared_data() -> Path:
    """Return the folder of larger data sets and trained teachers, or skip the test."""
    if not DATA.is_dir():
        pytest.skip(f"needs data that is not at {DATA}; AUTOCOMPRESS_TEST_DATA names another place")
    return DATA
