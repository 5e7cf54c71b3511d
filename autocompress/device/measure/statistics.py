"""From times of single runs to a latency with an interval: no clock here, arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np

from autocompress.device.runtimes.description import Plain
from autocompress.files import JsonObject

BOOTSTRAP_RESAMPLES = 2000
LEAST_HALF_WIDTH = 0.005
"""No interval is narrower than ± 0.5 %: blocks of one process do not show how processes differ."""


@dataclass(frozen=True)
class Measurement:
    """Hold a latency: `latency_ms` is the median of block medians; percentiles are over all single runs.

    `spread` is the interquartile range of the block medians by their median, `reference_drift` how
    far the reference's block medians moved over the measurement, as a share; None without one.
    """

    latency_ms: float
    latency_ms_ci95: tuple[float, float]
    p90_ms: float
    p95_ms: float
    p99_ms: float
    runs: int
    block_medians_ms: tuple[float, ...]
    spread: float
    reference_ms: float | None = None
    reference_drift: float | None = None
    attempts: int = 1
    process_peak_bytes: int | None = None

    def to_json(self) -> dict[str, Plain]:
        """Return the measurement as it is written."""
        data = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}

    @classmethod
    def from_json(cls, data: JsonObject) -> Self:
        """Return the measurement that `to_json` made `data` of. Raises KeyError or TypeError."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        known["latency_ms_ci95"] = tuple(data["latency_ms_ci95"])
        known["block_medians_ms"] = tuple(data["block_medians_ms"])
        return cls(**known)


def summarise(
    blocks_ms: Sequence[Sequence[float]], reference_blocks_ms: Sequence[Sequence[float]] = ()
) -> Measurement:
    """Return one measurement out of blocks of single-run times in milliseconds.

    The interval is a bootstrap over blocks (Efron 1979, doi:10.1214/aos/1176344552), at least
    ± 0.5 % wide.
    """
    medians = np.array([float(np.median(block)) for block in blocks_ms])
    every = np.concatenate([np.asarray(block, dtype=float) for block in blocks_ms])
    latency = float(np.median(medians))
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(medians), (BOOTSTRAP_RESAMPLES, len(medians)))
    low, high = np.percentile(np.median(medians[picks], axis=1), (2.5, 97.5))
    reference = [float(np.median(block)) for block in reference_blocks_ms]
    return Measurement(
        latency_ms=latency,
        latency_ms_ci95=(
            float(min(low, latency * (1 - LEAST_HALF_WIDTH))),
            float(max(high, latency * (1 + LEAST_HALF_WIDTH))),
        ),
        p90_ms=float(np.percentile(every, 90)),
        p95_ms=float(np.percentile(every, 95)),
        p99_ms=float(np.percentile(every, 99)),
        runs=len(every),
        block_medians_ms=tuple(medians.tolist()),
        spread=relative_spread(medians.tolist()),
        reference_ms=float(np.median(reference)) if reference else None,
        reference_drift=drift(reference) if reference else None,
    )


def relative_spread(medians: Sequence[float]) -> float:
    """Return the interquartile range by the median; a single stray block does not count as noise."""
    low, middle, high = np.percentile(medians, (25, 50, 75))
    return float((high - low) / middle)


def drift(medians: Sequence[float]) -> float:
    """Return how far the second half's median lies from the first half's, as a share."""
    half = len(medians) // 2
    if half == 0:
        return 0.0
    return float(abs(np.median(medians[half:]) / np.median(medians[:half]) - 1))


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Return Spearman's rank correlation, equal values sharing the mean of their places; 0 where either side
    does not vary."""
    from scipy.stats import spearmanr

    if len(set(left)) < 2 or len(set(right)) < 2:
        return 0.0
    return float(spearmanr(left, right).statistic)
