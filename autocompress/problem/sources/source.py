"""What a reader of data is asked for and gives: the options of a spec, and a `Source`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autocompress.errors import DataError
from autocompress.problem import specs
from autocompress.problem.splits import AUGMENTATIONS, Normalisation, Split
from autocompress.problem.teacher import Preprocessing

Progress = Callable[[str, int, int], None]
"""(what is being done, how many are done, how many there are)."""

CACHE_MEMORY_BYTES = 1536 * 2**20
"""Data that needs more is read from its place again and again."""
PROGRESS_EVERY = 1000
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTRED = Normalisation((0.5,), (0.5,))
"""For images of which nothing is known and that are not colours."""
OPTIONS = ("size", "channels", "mean", "std", "augment", "class_map")
CLASS_ORDERS = ("natural", "text")
FOLDER_OPTIONS = (*OPTIONS, "class_order", "class_folder")
LARGEST_SIDE = 8192


@dataclass(frozen=True)
class Reading:
    """How data is to be read: what the teacher says, what may be held in memory, who is told of progress, and
    what labels the task needs; None where that is not known."""

    hints: Preprocessing = field(default_factory=Preprocessing)
    cache_memory_bytes: int = CACHE_MEMORY_BYTES
    progress: Progress | None = None
    targets: str | None = "classes"

    def tell(self, what: str, done: int, total: int) -> None:
        if self.progress and done % PROGRESS_EVERY == 0:
            self.progress(what, done, total)


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader found; a missing validation or test split is cut from `train` later.

    `places` says where each split was found, `notes` whatever else is to be told; `class_map` is the number
    of the teacher's output for each class, where the user gave it. `targets` is what
    labels are, as in `Task`.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    normalisation: Normalisation
    train: Split
    validation: Split | None = None
    test: Split | None = None
    class_names: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    class_map: specs.Value | None = None
    targets: str = "classes"


@dataclass(frozen=True)
class Settings:
    """The options of a spec, checked; None where the user did not say. `size` is (height, width)."""

    size: tuple[int, int] | None
    channels: int | None
    normalisation: Normalisation | None
    augmentation: str | None
    class_order: str | None = None
    class_folder: str | None = None
    class_map: specs.Value | None = None


def read_settings(spec: specs.Spec, known: tuple[str, ...] = OPTIONS) -> Settings:
    """Return the options of a spec; raise DataError for an unknown option and for a value out of range."""
    spec.without_options(DataError, known)
    mean, std = _channel_values(spec, "mean"), _channel_values(spec, "std")
    if (mean is None) != (std is None):
        raise DataError("mean and std are given together", where=spec.text, fix="give both, or neither")
    if std is not None and min(std) <= 0:
        raise DataError(
            f"std must be above 0, not {min(std)}",
            where=spec.text,
            fix="give the standard deviation of each channel",
        )
    return Settings(
        size=_size(spec),
        channels=_whole(spec, "channels"),
        normalisation=Normalisation(mean, std) if mean is not None and std is not None else None,
        augmentation=_one_of(spec, "augment", AUGMENTATIONS),
        class_order=_one_of(spec, "class_order", CLASS_ORDERS),
        class_folder=_one_of(spec, "class_folder", ("first", "last")),
        class_map=spec.options.get("class_map"),
    )


def _one_of(spec: specs.Spec, key: str, known: tuple[str, ...]) -> str | None:
    value = spec.options.get(key)
    if value is None or value in known:
        return None if value is None else str(value)
    raise DataError(f"{key}={value} is not known", where=spec.text, fix=f"use one of {', '.join(known)}")


def _size(spec: specs.Spec) -> tuple[int, int] | None:
    """Read the size: `size=64` is a square, `size=32x96` is 32 high and 96 wide."""
    value = spec.options.get("size")
    if value is None:
        return None
    sides = value if isinstance(value, tuple) else str(value).lower().split("x")
    numbers = [int(side) for side in sides if str(side).isdigit()]
    if len(numbers) != len(sides) or len(sides) > 2 or not all(1 <= n <= LARGEST_SIDE for n in numbers):
        raise DataError(
            f"size={value} is not a size in pixels", where=spec.text,
            fix="size=64 for squares, size=32x96 for images 32 high and 96 wide",
        )  # fmt: skip
    return numbers[0], numbers[-1]


def _whole(spec: specs.Spec, key: str) -> int | None:
    value = spec.options.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_SIDE:
        raise DataError(
            f"{key}={value} is not a whole number above 0", where=spec.text, fix="give a number such as 224"
        )
    return value


def _channel_values(spec: specs.Spec, key: str) -> tuple[float, ...] | None:
    value = spec.options.get(key)
    if value is None:
        return None
    values = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in values):
        raise DataError(
            f"{key}={value} is not a number for each channel", where=spec.text, fix=f"{key}=0.5/0.5/0.5"
        )
    return tuple(float(item) for item in values)


def per_channel(normalisation: Normalisation, channels: int, where: str) -> Normalisation:
    """Repeat one value for all channels; average three for one channel."""

    def fit(values: tuple[float, ...]) -> tuple[float, ...]:
        if len(values) == channels:
            return values
        if len(values) == 1:
            return values * channels
        if channels == 1:
            return (sum(values) / len(values),)
        raise DataError(
            f"{len(values)} values of mean and std for {channels} channels",
            where=where,
            fix="give one value, or one for each channel",
        )

    return Normalisation(fit(normalisation.mean), fit(normalisation.std))


def existing_path(spec: specs.Spec) -> Path:
    """Return the path that a spec names; raise DataError where there is none."""
    path = Path(spec.target).expanduser()
    if not spec.kind or not path.exists():
        raise DataError(
            f"{spec.target} does not exist" if spec.kind else f"{spec.target} needs a folder",
            where=spec.text,
            fix=specs.path_fix(spec) if spec.kind else f"{spec.target}:DIR",
        )
    return path


def chosen_normalisation(
    settings: Settings, hints: Preprocessing, channels: int, where: str
) -> tuple[Normalisation, str]:
    """Return the user's normalisation, else the teacher's, else ImageNet's for colours; and whose it is."""
    if settings.normalisation:
        return per_channel(settings.normalisation, channels, where), "given"
    if hints.mean and hints.std and len(hints.mean) in (1, channels, 3 if channels == 1 else channels):
        return per_channel(Normalisation(hints.mean, hints.std), channels, where), "the teacher's"
    if channels in (1, 3):
        return per_channel(IMAGENET, channels, where), "ImageNet's, as the teacher says nothing"
    return per_channel(CENTRED, channels, where), "assumed, as nothing is known"


def said_normalisation(normalisation: Normalisation, whose: str) -> str:
    mean, std = (
        "/".join(f"{value:g}" for value in values) for values in (normalisation.mean, normalisation.std)
    )
    return f"normalised with mean {mean} and std {std} ({whose})"
