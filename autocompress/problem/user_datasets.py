"""The user's own datasets: map-style objects of (image, label) → a `Source`."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autocompress.errors import DataError
from autocompress.problem import specs
from autocompress.problem.sources import (
    IMAGENET,
    IN_MEMORY_BYTES,
    PROGRESS_EVERY,
    Progress,
    Source,
    per_channel,
)
from autocompress.problem.splits import LazySplit, Normalisation, TensorSplit, seeded
from autocompress.problem.teacher import Preprocessing


class MapStyle(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def from_callable(spec: specs.Spec, _hints: Preprocessing, progress: Progress | None) -> Source:
    """Data from the user's own function; options of the spec are its arguments."""
    made = specs.call(spec, specs.load_callable(spec, DataError), DataError)
    if not isinstance(made, (tuple, list)):
        raise DataError(
            f"{spec.target} returned a {type(made).__name__}",
            where=spec.text,
            fix="return (train, validation) or (train, validation, test) datasets",
        )
    return from_datasets(tuple(made), spec.text, progress)


def from_datasets(datasets: tuple[Any, ...], name: str, progress: Progress | None) -> Source:
    """Map-style datasets of (image, label): (train, validation) or (train, validation, test)."""
    if len(datasets) not in (2, 3):
        raise DataError(f"{len(datasets)} datasets", where=name, fix="give (train, validation[, test])")
    titles = ("training", "validation", "test")[: len(datasets)]
    for title, dataset in zip(titles, datasets, strict=True):
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise DataError(
                f"the {title} data is a {type(dataset).__name__}, not a map-style dataset",
                where=name,
                fix="give objects with __len__ and __getitem__, such as torch.utils.data.Dataset",
            )
        if not len(dataset):
            raise DataError(f"the {title} data is empty", where=name)
    first = _image(datasets[0], 0, name)
    splits = [
        _split_of(dataset, f"{name}, {title}", tuple(first.shape), progress)
        for title, dataset in zip(titles, datasets, strict=True)
    ]
    channels, height, width = first.shape
    return Source(
        name=name,
        num_classes=int(splits[0].labels.max()) + 1,
        input_shape=(channels, height, width),
        normalisation=_normalisation_of(first),
        train=splits[0],
        validation=splits[1],
        test=splits[2] if len(splits) == 3 else None,
        class_names=tuple(str(item) for item in getattr(datasets[0], "classes", ())),
    )


def _normalisation_of(image: Tensor) -> Normalisation:
    """Float images come normalised; for 8-bit ones nothing else is known than that they are images."""
    if image.dtype != torch.uint8:
        return Normalisation((0.0,) * image.shape[0], (1.0,) * image.shape[0])
    if image.shape[0] in (1, 3):
        return per_channel(IMAGENET, image.shape[0], "")
    return Normalisation((0.5,) * image.shape[0], (0.5,) * image.shape[0])


def _split_of(
    dataset: MapStyle, where: str, shape: tuple[int, ...], progress: Progress | None
) -> TensorSplit | LazySplit:
    first = _checked(dataset, 0, where, shape)
    if _is_random(dataset, where) or first.nbytes * len(dataset) > IN_MEMORY_BYTES:
        labels = _labels(dataset, where)
        return LazySplit(
            lambda position, _augment: _checked(dataset, position, where, shape),
            labels,
            _normalisation_of(first),
            identity=f"{where} {len(dataset)} {shape}",
            workers=0,
        )
    images = torch.empty((len(dataset), *shape), dtype=first.dtype)
    labels = torch.empty(len(dataset), dtype=torch.int64)
    for position in range(len(dataset)):
        item = _item(dataset, position, where)
        images[position] = _check_image(_as_tensor(item[0], where), position, where, shape)
        labels[position] = _label(item[1], position, where)
        if progress and (position + 1) % PROGRESS_EVERY == 0:
            progress(f"reading {where}", position + 1, len(dataset))
    return TensorSplit(images, labels, _normalisation_of(first), "none")


def _is_random(dataset: MapStyle, where: str) -> bool:
    """Whether the dataset augments by itself, so that reading it once would freeze that."""
    views = []
    for seed in (1, 2):
        with seeded(seed):
            views.append([_image(dataset, position, where) for position in range(min(4, len(dataset)))])
    return any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(*views, strict=True))


def _labels(dataset: MapStyle, where: str) -> Tensor:
    known = getattr(dataset, "targets", None)
    values = known if known is not None and len(known) == len(dataset) else None
    return torch.tensor(
        [
            _label(
                _item(dataset, position, where)[1] if values is None else values[position], position, where
            )
            for position in range(len(dataset))
        ],
        dtype=torch.int64,
    )


def _item(dataset: MapStyle, position: int, where: str) -> tuple[Any, Any]:
    try:
        item = dataset[position]
    except Exception as problem:
        raise DataError(
            f"item {position} cannot be read", where=where, why=f"{type(problem).__name__}: {problem}"
        ) from problem
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DataError(f"item {position} is not an (image, label) pair", where=where)
    return item[0], item[1]


def _image(dataset: MapStyle, position: int, where: str) -> Tensor:
    return _as_tensor(_item(dataset, position, where)[0], where)


def _checked(dataset: MapStyle, position: int, where: str, shape: tuple[int, ...]) -> Tensor:
    return _check_image(_image(dataset, position, where), position, where, shape)


def _as_tensor(image: Any, where: str) -> Tensor:
    if isinstance(image, Image.Image):
        array = np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))
        return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)
    tensor = torch.from_numpy(image) if isinstance(image, np.ndarray) else image
    if not isinstance(tensor, Tensor) or tensor.ndim != 3:
        shape = tuple(getattr(tensor, "shape", ()))
        raise DataError(
            f"an image is a {type(image).__name__} of shape {shape}",
            where=where,
            fix="give a PIL image or a tensor (channels, height, width)",
        )
    return tensor if tensor.dtype == torch.uint8 else tensor.float()


def _check_image(image: Tensor, position: int, where: str, shape: tuple[int, ...]) -> Tensor:
    if tuple(image.shape) != shape:
        raise DataError(
            f"image {position} has shape {tuple(image.shape)}, the first training image {shape}",
            where=where,
            fix="bring all images to one size",
        )
    if image.dtype != torch.uint8 and not bool(torch.isfinite(image).all()):
        raise DataError(f"image {position} holds NaN or infinite values", where=where)
    return image


def _label(value: Any, position: int, where: str) -> int:
    single = isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1)
    number = value.item() if single else value
    if isinstance(number, bool) or not isinstance(number, int):
        raise DataError(
            f"the label of item {position} is {str(value)[:60]}, not a whole number",
            where=where,
            fix="give the class as an int from 0 to the number of classes - 1",
        )
    return number
