"""Where data comes from: one function for each kind of spec, each giving a `Source`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.errors import DataError
from autocompress.problem import specs
from autocompress.problem.splits import AUGMENTATIONS, Normalisation, Split, TensorSplit, spread
from autocompress.problem.teacher import Preprocessing

Progress = Callable[[str, int, int], None]
"""(what is being done, how many are done, how many there are)."""

IN_MEMORY_BYTES = 1536 * 2**20
PROGRESS_EVERY = 1000
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
MNIST = Normalisation((0.1307,), (0.3081,))
DIGITS_SPLIT_SEED = 0
OPTIONS = ("size", "channels", "mean", "std", "augment")


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader found; a missing validation or test split is cut from `train` later."""

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    normalisation: Normalisation
    train: Split
    validation: Split | None = None
    test: Split | None = None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """The options of a spec, checked; None where the user did not say."""

    size: int | None
    channels: int | None
    normalisation: Normalisation | None
    augmentation: str | None


def read_settings(spec: specs.Spec) -> Settings:
    """Raises DataError for an unknown option and for a value out of range."""
    spec.without_options(DataError, OPTIONS)
    size, channels = (_whole(spec, key) for key in ("size", "channels"))
    augmentation = spec.options.get("augment")
    if augmentation is not None and augmentation not in AUGMENTATIONS:
        raise DataError(
            f"augment={augmentation} is not known",
            where=spec.text,
            fix=f"use one of {', '.join(AUGMENTATIONS)}",
        )
    mean, std = _channel_values(spec, "mean"), _channel_values(spec, "std")
    if (mean is None) != (std is None):
        raise DataError("mean and std are given together", where=spec.text)
    if std is not None and min(std) <= 0:
        raise DataError(f"std must be above 0, not {min(std)}", where=spec.text)
    normalisation = Normalisation(mean, std) if mean is not None and std is not None else None
    return Settings(size, channels, normalisation, None if augmentation is None else str(augmentation))


def _whole(spec: specs.Spec, key: str) -> int | None:
    value = spec.options.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 8192:
        raise DataError(f"{key}={value} is not a whole number above 0", where=spec.text)
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
    """One value for all channels is repeated; three for one channel are averaged."""

    def fit(values: tuple[float, ...]) -> tuple[float, ...]:
        if len(values) == channels:
            return values
        if len(values) == 1:
            return values * channels
        if channels == 1:
            return (sum(values) / len(values),)
        raise DataError(f"{len(values)} values of mean and std for {channels} channels", where=where)

    return Normalisation(fit(normalisation.mean), fit(normalisation.std))


def digits(spec: specs.Spec, _hints: Preprocessing, _progress: Progress | None) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8×8 enlarged to `size` (32); 60/20/20 by a fixed seed."""
    from sklearn.datasets import load_digits

    settings = read_settings(spec)
    raw = load_digits()
    size, channels = settings.size or 32, settings.channels or 3
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None] * (255 / 16)
    images = functional.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    images = images.round().to(torch.uint8).expand(-1, channels, -1, -1).contiguous()
    labels = torch.tensor(raw.target, dtype=torch.int64)
    order = spread(labels, DIGITS_SPLIT_SEED)
    fifth = len(labels) // 5
    train = order[2 * fifth :].sort().values
    normalisation = per_channel(settings.normalisation or _measured(images[train]), channels, spec.text)
    whole = TensorSplit(images, labels, normalisation, settings.augmentation or "crop")
    return Source(
        name="digits",
        num_classes=10,
        input_shape=(channels, size, size),
        normalisation=normalisation,
        train=whole.select(train),
        validation=whole.select(order[:fifth].sort().values),
        test=whole.select(order[fifth : 2 * fifth].sort().values),
        class_names=tuple("0123456789"),
    )


def _measured(images: Tensor) -> Normalisation:
    """Mean and standard deviation over all pixels of 8-bit images, rounded so that they print in full."""
    values = images.float() / 255
    return Normalisation((round(float(values.mean()), 4),), (round(float(values.std()), 4),))


def mnist(spec: specs.Spec, _hints: Preprocessing, _progress: Progress | None) -> Source:
    """torchvision's MNIST layout: 60,000 training and 10,000 test images, 28×28."""
    from torchvision.datasets import MNIST as Mnist  # type: ignore[import-untyped]

    train, test = (_torchvision(Mnist, spec, train) for train in (True, False))
    return _from_arrays(
        spec,
        (train.data[:, None], train.targets),
        (test.data[:, None], test.targets),
        MNIST,
        "crop",
        train.classes,
    )


def cifar10(spec: specs.Spec, _hints: Preprocessing, _progress: Progress | None) -> Source:
    """torchvision's CIFAR-10 layout: 50,000 training and 10,000 test images, 3×32×32."""
    from torchvision.datasets import CIFAR10 as Cifar10

    sets = [_torchvision(Cifar10, spec, train) for train in (True, False)]
    train, test = (
        (torch.from_numpy(item.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(item.targets))
        for item in sets
    )
    return _from_arrays(spec, train, test, CIFAR10, "crop-flip", sets[0].classes)


def _torchvision(kind: Callable[..., Any], spec: specs.Spec, train: bool) -> Any:
    root = existing_path(spec)
    try:
        return kind(root=str(root), train=train, download=False)
    except Exception as problem:
        raise DataError(
            f"{root} does not hold the {spec.kind} data, or holds it damaged",
            where=spec.text,
            why=str(problem).splitlines()[0] if str(problem) else type(problem).__name__,
            fix="give the folder that torchvision calls root",
        ) from problem


def existing_path(spec: specs.Spec) -> Path:
    path = Path(spec.target).expanduser()
    if not spec.kind or not path.exists():
        raise DataError(
            f"{spec.target} does not exist" if spec.kind else f"{spec.target} needs a folder",
            where=spec.text,
            fix="check the path" if spec.kind else f"{spec.target}:DIR",
        )
    return path


def _from_arrays(
    spec: specs.Spec,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    normalisation: Normalisation,
    augmentation: str,
    class_names: Sequence[str],
) -> Source:
    settings = read_settings(spec)
    channels = settings.channels or train[0].shape[1]
    normalisation = per_channel(settings.normalisation or normalisation, channels, spec.text)

    def split(images: Tensor, labels: Tensor) -> Split:
        images = _resized(_with_channels(images, channels, spec.text), settings.size)
        return TensorSplit(
            images, labels.to(torch.int64), normalisation, settings.augmentation or augmentation
        )

    side = settings.size or train[0].shape[2]
    return Source(
        name=spec.kind,
        num_classes=len(class_names),
        input_shape=(channels, side, side),
        normalisation=normalisation,
        train=split(*train),
        test=split(*test),
        class_names=tuple(str(name) for name in class_names),
    )


def _with_channels(images: Tensor, channels: int, where: str) -> Tensor:
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1).contiguous()
    if channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        return torch.cat(
            [(part * weights).sum(1, True).round().to(torch.uint8) for part in images.split(4096)]
        )
    raise DataError(f"images of {images.shape[1]} channels cannot be read as {channels}", where=where)


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or size == images.shape[2]:
        return images
    parts = [
        functional.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
        .round()
        .to(torch.uint8)
        for part in images.split(4096)
    ]
    return torch.cat(parts)
