"""Data sets that are known by name: scikit-learn's digits, and MNIST and CIFAR-10 in torchvision's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.errors import DataError
from autocompress.problem import specs
from autocompress.problem.sources.source import (
    Reading,
    Source,
    existing_path,
    per_channel,
    read_settings,
)
from autocompress.problem.splits import Normalisation, Split, TensorSplit, spread

CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
MNIST = Normalisation((0.1307,), (0.3081,))
DIGITS_SPLIT_SEED = 0


def digits(spec: specs.Spec, reading: Reading) -> Source:
    """Read scikit-learn's 1,797 handwritten digits, 8×8 enlarged to `size` (32); 60/20/20 by a fixed seed."""
    from sklearn.datasets import load_digits

    settings = read_settings(spec)
    raw = load_digits()
    size, channels = settings.size or (32, 32), settings.channels or reading.hints.channels or 3
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None] * (255 / 16)
    images = functional.interpolate(images, size, mode="bilinear", align_corners=False)
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
        input_shape=(channels, *size),
        normalisation=normalisation,
        train=whole.select(train),
        validation=whole.select(order[:fifth].sort().values),
        test=whole.select(order[fifth : 2 * fifth].sort().values),
        class_names=tuple("0123456789"),
        class_map=settings.class_map,
    )


def _measured(images: Tensor) -> Normalisation:
    """Return mean and deviation over all pixels of 8-bit images, rounded so that they print in full."""
    values = images.float() / 255
    return Normalisation((round(float(values.mean()), 4),), (round(float(values.std()), 4),))


def mnist(spec: specs.Spec, reading: Reading) -> Source:
    """Read torchvision's MNIST layout: 60,000 training and 10,000 test images, 28×28."""
    from torchvision.datasets import MNIST as Mnist  # type: ignore[import-untyped]

    train, test = (_torchvision(Mnist, spec, train) for train in (True, False))
    return _from_arrays(
        spec,
        reading,
        (train.data[:, None], train.targets),
        (test.data[:, None], test.targets),
        MNIST,
        "crop",
        train.classes,
    )


def cifar10(spec: specs.Spec, reading: Reading) -> Source:
    """Read torchvision's CIFAR-10 layout: 50,000 training and 10,000 test images, 3×32×32."""
    from torchvision.datasets import CIFAR10 as Cifar10

    sets = [_torchvision(Cifar10, spec, train) for train in (True, False)]
    train, test = (
        (torch.from_numpy(item.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(item.targets))
        for item in sets
    )
    return _from_arrays(spec, reading, train, test, CIFAR10, "crop-flip", sets[0].classes)


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


def _from_arrays(
    spec: specs.Spec,
    reading: Reading,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    normalisation: Normalisation,
    augmentation: str,
    class_names: Sequence[str],
) -> Source:
    settings = read_settings(spec)
    channels = settings.channels or reading.hints.channels or train[0].shape[1]
    normalisation = per_channel(settings.normalisation or normalisation, channels, spec.text)

    def split(images: Tensor, labels: Tensor) -> Split:
        images = _resized(_with_channels(images, channels, spec.text), settings.size)
        return TensorSplit(
            images, labels.to(torch.int64), normalisation, settings.augmentation or augmentation
        )

    height, width = settings.size or tuple(train[0].shape[2:])
    return Source(
        name=spec.kind,
        num_classes=len(class_names),
        input_shape=(channels, height, width),
        normalisation=normalisation,
        train=split(*train),
        test=split(*test),
        class_names=tuple(str(name) for name in class_names),
        class_map=settings.class_map,
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
    raise DataError(
        f"images of {images.shape[1]} channels cannot be read as {channels}",
        where=where,
        fix="give channels=1 or channels=3",
    )


def _resized(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is None or size == tuple(images.shape[2:]):
        return images
    parts = [
        functional.interpolate(part.float(), size, mode="bilinear", antialias=True).round().to(torch.uint8)
        for part in images.split(4096)
    ]
    return torch.cat(parts)
