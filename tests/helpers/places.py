"""Where things lie that tests read."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
HELPERS, NETWORKS, GOLDEN = TESTS / "helpers", TESTS / "networks", TESTS / "golden"
DOCS, BENCHMARKS = ROOT / "docs", ROOT / "benchmarks"
DATA = Path(os.environ.get("AUTOCOMPRESS_TEST_DATA", ROOT.parent / "shared" / "data"))
"""Larger data sets and trained teachers; tests that need them skip where they are not."""
