"""The metric that students are judged by: its name, its direction, and its value as a score.

Everything that compares students compares scores: 1 less an error, which is 0 for the best possible. For a
share, such as accuracy or mIoU, the score is the metric itself. No torch is needed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autocompress.files import JsonObject

SHARE, DECIBEL = "%", "dB"
_LEAST_ERROR = 1e-12


@dataclass(frozen=True)
class Metric:
    """Name a metric; `unit` is `%` for a share from 0 to 1, `dB`, any other text, or nothing.

    Where lower is better, `scale` is the value of an answer that knows nothing, such as the mean absolute
    deviation of the targets for a mean absolute error: it makes the score 0.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    unit: str = SHARE
    scale: float = 1.0

    def score(self, value: float) -> float:
        """Return the score of a value: the higher, the better, 1 at best."""
        if not self.higher_is_better:
            return 1 - value / self.scale
        return 1 - 10 ** (-value / 20) if self.unit == DECIBEL else value / self.scale

    def value(self, score: float) -> float:
        """Return the metric's value of a score."""
        if not self.higher_is_better:
            return (1 - score) * self.scale
        if self.unit == DECIBEL:
            return -20 * math.log10(max(1 - score, _LEAST_ERROR))
        return score * self.scale

    def spread(self, score: float, std_err: float) -> float:
        """Return the standard error of the value, of that of the score."""
        if self.higher_is_better and self.unit == DECIBEL:
            return std_err * 20 / math.log(10) / max(1 - score, _LEAST_ERROR)
        return std_err * self.scale

    @classmethod
    def from_json(cls, data: JsonObject) -> Metric:
        """Return the metric that `to_json` made `data` of. Raises KeyError, TypeError or ValueError."""
        return cls(
            str(data["name"]),
            bool(data["higher_is_better"]),
            str(data["unit"]),
            float(data["scale"]),
        )

    def to_json(self) -> JsonObject:
        """Return every field by its name."""
        return dict(vars(self))


ACCURACY = Metric()
