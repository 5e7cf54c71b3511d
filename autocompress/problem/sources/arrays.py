"""Arrays of images and labels, in memory or in a .npz file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import DataError
from autocompress.problem.sources.layout import split_of

IMAGE_WORDS = ("x", "image", "images", "data", "inputs", "arr_0")
LABEL_WORDS = ("y", "label", "labels", "target", "targets", "arr_1")


@dataclass(frozen=True, eq=False)
class ArraySet:
    """Images (N, C, H, W), 8-bit or float32, with a label for each: a map-style dataset."""

    images: Tensor
    labels: Sequence[Any]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.images[index], self.labels[index]


def is_pair(made: Any) -> bool:
    """Return whether this is (images, labels) as two arrays, not two datasets."""
    if not (isinstance(made, (tuple, list)) and len(made) == 2):
        return False
    images, labels = made
    arrays = all(isinstance(item, (np.ndarray, Tensor)) for item in made)
    return arrays and images.ndim in (3, 4) and labels.ndim in (1, 2, 3, 4) and len(images) == len(labels)


def array_set(images: Any, labels: Any, where: str) -> ArraySet:
    """Return arrays as a dataset; raise DataError for counts that differ and for images of no known form."""
    tensor = images_of(images, where)
    if len(tensor) != len(labels):
        raise DataError(
            f"{len(tensor)} images and {len(labels)} labels", where=where, fix="give one label for each image"
        )
    flat = labels.reshape(-1) if getattr(labels, "ndim", 1) == 2 and labels.shape[1] == 1 else labels
    return ArraySet(tensor, flat)


def images_of(images: Any, where: str) -> Tensor:
    """Return (N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W), 8-bit or float32.

    16-bit values become 8-bit ones, 0…65535 → 0…255. Raises DataError for other values.
    """
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.ndim not in (3, 4) or array.dtype.kind not in "uifb":
        raise DataError(
            f"images are an array of {array.dtype} of shape {array.shape}", where=where,
            fix="give (N, H, W), (N, H, W, C) or (N, C, H, W)",
        )  # fmt: skip
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[3] <= 4 < array.shape[1]:
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(eight_bits(array, where)))


def eight_bits(array: np.ndarray, where: str) -> np.ndarray:
    """Return floats as float32 and whole numbers as 8-bit; raise DataError where values would be lost."""
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return np.round(array / 257).astype(np.uint8)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0 or high > 255:
        raise DataError(
            f"images of {array.dtype} hold values from {low} to {high}, which are not 0 to 255", where=where,
            fix="give 8-bit images, or floats that are normalised already",
        )  # fmt: skip
    return array.astype(np.uint8)


def read_npz(path: Path) -> dict[str, ArraySet]:
    """Return the sets of a .npz by split, from keys such as x_train and y_train, or images and labels.

    Raises DataError where there are none. Nothing but plain arrays is read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as problem:
        raise DataError(
            f"the file {path} cannot be read as arrays", why=f"{type(problem).__name__}: {problem}",
            fix="save plain arrays: numpy.savez(FILE, x_train=…, y_train=…)",
        ) from problem  # fmt: skip
    return sets_of(arrays, str(path))


def sets_of(arrays: Mapping[str, NDArray[Any]], where: str) -> dict[str, ArraySet]:
    """Return the sets in named arrays by split; raise DataError where images or labels are not found."""
    images, labels = _by_split(arrays, IMAGE_WORDS), _by_split(arrays, LABEL_WORDS)
    if "train" not in images or images.keys() != labels.keys():
        raise DataError(
            f"there are arrays {', '.join(arrays)}, and not images and labels for each split", where=where,
            fix="name them x_train, y_train, x_val, y_val, x_test and y_test, or images and labels",
        )  # fmt: skip
    return {
        split: array_set(arrays[name], arrays[labels[split]], f"{where}, {split}")
        for split, name in images.items()
    }


def _by_split(arrays: Mapping[str, NDArray[Any]], words: tuple[str, ...]) -> dict[str, str]:
    """Return the names of arrays by the split they are of; an array without a split is for training."""
    found: dict[str, str] = {}
    for name in arrays:
        parts = [name.lower()] if name.startswith("arr_") else re.split(r"[_\-. ]+", name.lower())
        kind = [part for part in parts if part in words]
        others = [part for part in parts if part not in words]
        split = split_of(" ".join(others)) if others else "train"
        if len(kind) == 1 and split and split not in found:
            found[split] = name
    return found
