"""Latencies on a machine that is shared: blocks of runs between blocks of a reference model.

What neighbours take comes in bursts, slows every program, and never speeds one up. A block of runs counts
only when the reference was at its own quiet level right before and right after it, so that a disturbed
moment is left out instead of averaged in. Each block begins with runs that fill the caches.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from autocompress.device.runtimes.base import Session

WINDOW = 4000
QUIET_SHARE = 10
"""The reference's quiet level is this percentile of its recent blocks."""

SETTLING_BLOCKS = 3
NATURAL = 0.08
"""Large models vary by themselves, with what lies in shared caches. So the quieter half of the reference's
blocks always counts as quiet, unless they lie further above its quiet level than this."""


@dataclass(frozen=True)
class QuietSettings:
    """Say how many quiet blocks are wanted, how long one is, and how many are tried at the most."""

    blocks: int = 8
    most_blocks: int = 80
    block_s: float = 0.008
    block_runs: int = 3
    warm_up_runs: int = 2
    tolerance: float = 0.03


@dataclass(frozen=True)
class QuietLatency:
    """Hold medians over quiet blocks, in ms; `share` of the blocks that were tried were quiet."""

    latency_ms: float
    reference_ms: float
    spread: float
    share: float


class Gate:
    """Time a reference model, which tells whether the machine is quiet."""

    def __init__(self, reference: Session, settings: QuietSettings | None = None) -> None:
        self.reference = reference
        self.settings = settings or QuietSettings()
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self.forget()

    def forget(self) -> None:
        """Learn anew how quiet it gets here: a machine may have become slower for good."""
        self._recent.clear()
        for _ in range(self.settings.blocks):
            self.reference_ms()

    @property
    def level_ms(self) -> float:
        """Return the reference's latency when nothing disturbs it."""
        return float(np.percentile(self._recent, QUIET_SHARE))

    def reference_ms(self) -> float:
        """Return the latency of the reference now."""
        now = _block_ms(self.reference, self.settings)
        self._recent.append(now)
        return now

    def settled_ms(self) -> float:
        """Return the least of a few blocks: after other work the first may only show empty caches."""
        return min(self.reference_ms() for _ in range(SETTLING_BLOCKS))

    def is_quiet(self, *reference_ms: float, tolerance: float | None = None) -> bool:
        """Return whether the reference took no more than its quiet level and a tolerance each time, or than
        it takes half of the time."""
        allowed = self.settings.tolerance if tolerance is None else tolerance
        level, middle = (float(value) for value in np.percentile(self._recent, (QUIET_SHARE, 50)))
        return max(reference_ms) <= max(level * (1 + allowed), min(middle, level * (1 + NATURAL)))

    def latency(self, session: Session, settings: QuietSettings | None = None) -> QuietLatency | None:
        """Return the latency of `session` in quiet moments; None when there were too few of them."""
        settings = settings or self.settings
        _block_ms(session, settings)
        kept: list[float] = []
        references: list[float] = []
        before = self.reference_ms()
        for tried in range(1, settings.most_blocks + 1):
            own = _block_ms(session, settings)
            after = self.reference_ms()
            if self.is_quiet(before, after, tolerance=settings.tolerance):
                kept.append(own)
                references += [before, after]
            if len(kept) == settings.blocks:
                low, middle, high = np.percentile(kept, (25, 50, 75))
                spread = float((high - low) / middle)
                return QuietLatency(float(middle), float(np.median(references)), spread, len(kept) / tried)
            before = after
        return None


def _block_ms(session: Session, settings: QuietSettings) -> float:
    """Return the median of single runs over one block, in ms, after those that warm up."""
    for _ in range(settings.warm_up_runs):
        session.run_once()
    times: list[int] = []
    clock = time.perf_counter_ns
    end = clock() + int(settings.block_s * 1e9)
    while len(times) < settings.block_runs or clock() < end:
        start = clock()
        session.run_once()
        times.append(clock() - start)
    return float(np.median(times)) / 1e6
