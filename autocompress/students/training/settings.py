"""How a student is trained, as one value that needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from autocompress.files import JsonObject

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class DistillSettings:
    """Say how a student is trained; every field has a default, and what is None is found out.

    `epochs` are passes over the training data and may be a fraction. `learning_rate` is the highest of the
    cycle, by default one that suits the optimiser. `temperature` and `alpha` are those of `Task.distilled`.
    `precision` "auto" is bfloat16 where the processor has it; `train_on` "auto" is the GPU that torch sees,
    else the processor. `time_limit_s` shortens the cycle after a few steps were timed.
    """

    epochs: float = 1.0
    batch_size: int = 128
    learning_rate: float | None = None
    temperature: float = 4.0
    alpha: float = 0.9
    augment: bool = True
    seed: int = 0
    precision: Precision = "auto"
    train_on: DeviceName = "auto"
    time_limit_s: float | None = None

    @classmethod
    def from_json(cls, data: JsonObject) -> DistillSettings:
        """Return the settings that `to_json` made `data` of. Raises TypeError for a field that is none."""
        return cls(**data)

    def to_json(self) -> JsonObject:
        """Return every field by its name."""
        return asdict(self)
