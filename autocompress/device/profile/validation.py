"""How well a profile predicts: what `validation.json` says, as records.

Fields that a later version adds are kept in `extra` and written again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.device.measure.statistics import rank_correlation
from autocompress.device.runtimes.description import Plain
from autocompress.files import JsonObject


@dataclass(frozen=True)
class Prediction:
    """Hold what one network took and what was predicted, in ms; `network` is the key of the candidate."""

    network: str
    precision: str
    measured_ms: float
    predicted_ms: float


@dataclass(frozen=True)
class Unpredicted:
    """Hold a network that could not be predicted from the others, and why."""

    network: str
    precision: str
    why: str


@dataclass(frozen=True)
class UnknownOperator:
    """Hold a kind of operator in a vendor's dump that is not known: how many there are, what they take."""

    operator: str
    count: int
    total_us: float


@dataclass(frozen=True)
class ImportGaps:
    """Hold what an import could not use of the dumps of `tool`, the slowest operators first."""

    tool: str
    unknown_operators: tuple[UnknownOperator, ...] = ()
    kernels_not_found: tuple[str, ...] = ()


_NUMBERS = (
    "mean_error", "largest_error", "within_5_percent", "within_10_percent", "rank_correlation", "error95",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PredictionErrors:
    """Hold errors of predictions, as shares of what was measured of `count` networks; None is not known.

    `error95` is the half width that holds 95 % of them, taken as 1.96 root mean squares; the shares are
    those within ± 5 % and ± 10 %.
    """

    count: int = 0
    mean_error: float | None = None
    largest_error: float | None = None
    within_5_percent: float | None = None
    within_10_percent: float | None = None
    rank_correlation: float | None = None
    error95: float | None = None

    @property
    def numbers(self) -> dict[str, float | None]:
        """Return the errors by name as they are written: without those that were not computed."""
        kept = {name for name in _NUMBERS if getattr(self, name) is not None} | {"error95"}
        if self.mean_error is not None:
            kept.add("rank_correlation")
        return {name: getattr(self, name) for name in _NUMBERS if name in kept}


@dataclass(frozen=True, kw_only=True)
class Validation(PredictionErrors):
    """Hold the errors of a profile, or of one of its sources, which then names its `network`.

    `networks` are the predictions themselves; `sources` has one entry for each source of the profile, or is
    empty. `pooling_shift` is how far merging moved the predictions, as a share. A `note` says why nothing
    was validated.
    """

    network: str = ""
    note: str = ""
    by_precision: Mapping[str, PredictionErrors] = field(default_factory=dict)
    unpredicted: tuple[Unpredicted, ...] = ()
    networks: tuple[Prediction, ...] = ()
    pooling_shift: float | None = None
    validated_at: str = ""
    sources: tuple[Validation, ...] = ()
    imported: ImportGaps | None = None
    extra: Mapping[str, Plain] = field(default_factory=dict)

    def to_json(self) -> dict[str, Plain]:
        """Return what is written."""
        return self._json(self.networks)

    def _json(self, networks: tuple[Prediction, ...] | None) -> dict[str, Plain]:
        found: dict[str, Plain] = {"network": self.network} if self.network else {}
        found |= {"count": self.count, **self.numbers}
        kinds = {kind: {"count": one.count, **one.numbers} for kind, one in self.by_precision.items()}
        lists: dict[str, Plain] = {
            "by_precision": kinds,
            "unpredicted": [dict(vars(one)) for one in self.unpredicted],
        }
        if networks is not None:
            lists["networks"] = [dict(vars(one)) for one in networks]
        if self.note:
            found["note"] = self.note
        found |= {name: value for name, value in lists.items() if value or not self.note}
        if self.pooling_shift is not None:
            found["pooling_shift"] = self.pooling_shift
        if self.validated_at:
            found["validated_at"] = self.validated_at
        if self.sources:
            found["sources"] = [one._json(None) for one in self.sources]
        if self.imported is not None:
            operators = [dict(vars(one)) for one in self.imported.unknown_operators]
            missing = list(self.imported.kernels_not_found)
            found["import"] = {
                "tool": self.imported.tool,
                "unknown_operators": operators,
                "kernels_not_found": missing,
            }
        return {**found, **self.extra}

    @classmethod
    def from_json(cls, data: JsonObject) -> Validation:
        """Return the validation that is written as `data`. Raises KeyError, TypeError or ValueError."""
        known = {name: data[name] for name in _PLAIN if data.get(name) is not None}
        imported = data.get("import")
        return cls(
            **known,
            by_precision={kind: _errors(one) for kind, one in data.get("by_precision", {}).items()},
            unpredicted=tuple(
                Unpredicted(str(one["network"]), str(one["precision"]), str(one["why"]))
                for one in data.get("unpredicted", ())
            ),
            networks=tuple(
                Prediction(
                    str(one.get("network", "")),
                    str(one.get("precision", "")),
                    float(one["measured_ms"]),
                    float(one["predicted_ms"]),
                )
                for one in data.get("networks", ())
            ),
            sources=tuple(cls.from_json(one) for one in data.get("sources") or ()),
            imported=None if imported is None else _gaps(imported),
            extra={name: value for name, value in data.items() if name not in _KNOWN},
        )


_PLAIN = ("network", "note", "count", *_NUMBERS, "pooling_shift", "validated_at")
_KNOWN = frozenset((*_PLAIN, "by_precision", "unpredicted", "networks", "sources", "import"))


def _gaps(data: Any) -> ImportGaps:
    return ImportGaps(
        str(data["tool"]),
        tuple(
            UnknownOperator(str(one["operator"]), int(one["count"]), float(one["total_us"]))
            for one in data["unknown_operators"]
        ),
        tuple(str(text) for text in data["kernels_not_found"]),
    )


def _errors(data: Any) -> PredictionErrors:
    known = {name: data[name] for name in ("count", *_NUMBERS) if data.get(name) is not None}
    return PredictionErrors(**known)


def summary(points: Sequence[Prediction]) -> PredictionErrors:
    """Return the errors of predictions; of none only that there are none."""
    if not points:
        return PredictionErrors()
    measured = np.array([point.measured_ms for point in points])
    predicted = np.array([point.predicted_ms for point in points])
    errors = np.abs(predicted / measured - 1)
    return PredictionErrors(
        count=len(points),
        mean_error=float(errors.mean()),
        largest_error=float(errors.max()),
        within_5_percent=float((errors <= 0.05).mean()),
        within_10_percent=float((errors <= 0.10).mean()),
        rank_correlation=_rank_correlation(measured, predicted),
        error95=float(max(1e-6, 1.96 * np.sqrt(np.mean(errors**2)))),
    )


def validation_of(points: Sequence[Prediction], unpredicted: Sequence[Unpredicted] = ()) -> Validation:
    """Return the errors of predictions, all together and by precision, with the predictions themselves."""
    kinds = sorted({point.precision for point in points})
    return Validation(
        **vars(summary(points)),
        by_precision={
            kind: summary([point for point in points if point.precision == kind]) for kind in kinds
        },
        unpredicted=tuple(unpredicted),
        networks=tuple(points),
    )


def _rank_correlation(measured: NDArray[np.float64], predicted: NDArray[np.float64]) -> float | None:
    """Return Spearman's; None where it is not defined."""
    if len(measured) < 3 or np.ptp(measured) == 0 or np.ptp(predicted) == 0:
        return None
    return rank_correlation(measured.tolist(), predicted.tolist())
