"""Labels as data sets write them → class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import DataError

Label = int | str


def read_label(value: Any, position: int, where: str) -> Label:
    """Return a class as a number or name: of an integer, a whole float, a one-hot vector, or a text.

    Raises DataError that names the item for anything else.
    """
    if isinstance(value, str):
        return value
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    if array.dtype.kind in "iub" and array.size == 1:
        return int(array.item())
    if array.dtype.kind == "f" and array.size == 1 and float(array.item()).is_integer():
        return int(array.item())
    if array.dtype.kind in "iubf" and array.ndim == 1 and _is_one_hot(array):
        return int(array.argmax())
    raise DataError(
        f"the label of item {position} is {str(value)[:60]}, not a whole number",
        where=where,
        fix="give the class as a number from 0 to the number of classes - 1, as a name, or as a vector with "
        "a single 1",
    )


def _is_one_hot(array: np.ndarray) -> bool:
    return len(array) > 1 and int((array == 1).sum()) == 1 and int((array == 0).sum()) == len(array) - 1


def targets_of(
    parts: Sequence[tuple[Sequence[Any], str]], where: str, targets: str | None
) -> tuple[list[Tensor], tuple[str, ...], str]:
    """Return the labels of each part as a tensor, the names of classes, and what labels are.

    Labels are classes wherever they can be and nothing else was asked for; else numbers or arrays.
    """
    if targets in (None, "classes"):
        try:
            read = [[read_label(value, n, place) for n, value in enumerate(part)] for part, place in parts]
        except DataError:
            if targets is not None or not _is_numeric(parts[0][0]):
                raise
        else:
            return *numbered(read, where), "classes"
    if targets == "none":
        return [torch.zeros(len(part)) for part, _ in parts], (), "none"
    found = [_stacked(part, place) for part, place in parts]
    whole = not found[0].is_floating_point()
    kind = targets or ("masks" if whole and found[0].ndim == 3 else "values")
    return [_in_type(one, kind, where) for one in found], (), kind


def classes_in(labels: Tensor, names: Sequence[str], targets: str) -> int:
    """Return how many classes the training labels have; 0 where they are none."""
    if targets == "masks":
        return int(labels[labels < 255].max()) + 1
    return max(len(names), int(labels.max()) + 1) if targets == "classes" else 0


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(not isinstance(value, str) and np.asarray(value).dtype.kind in "uibf" for value in values)


def _stacked(values: Sequence[Any], where: str) -> Tensor:
    arrays = [np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value) for value in values]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1 or arrays[0].dtype.kind not in "uibf":
        shown = ", ".join(map(str, sorted(shapes)[:3]))
        raise DataError(
            f"labels are no numbers of one shape: {arrays[0].dtype}, {shown}", where=where,
            fix="give each item a number or an array of one shape; lists of boxes are padded with rows of -1",
        )  # fmt: skip
    return torch.from_numpy(np.stack(arrays))


def _in_type(labels: Tensor, kind: str, where: str) -> Tensor:
    if kind != "masks":
        return labels.float()
    if labels.ndim == 1:
        raise DataError(
            "labels are one number for each image, not masks", where=where,
            fix="--task classification or --task regression would fit",
        )  # fmt: skip
    if labels.is_floating_point() or labels.ndim != 3 or int(labels.min()) < 0 or int(labels.max()) > 255:
        raise DataError(
            f"masks are {labels.dtype} of shape {tuple(labels.shape[1:])}", where=where,
            fix="give each image a mask (height, width) of whole numbers from 0 to 255",
        )  # fmt: skip
    return labels.to(torch.uint8)


def numbered(parts: Sequence[Sequence[Label]], where: str) -> tuple[list[Tensor], tuple[str, ...]]:
    """Return the labels of each part as class numbers, and their names in text order where they are names."""
    names = sorted({label for part in parts for label in part if isinstance(label, str)})
    if names and any(isinstance(label, int) for part in parts for label in part):
        raise DataError("some labels are numbers and some are names", where=where, fix="use one of the two")
    index = {name: number for number, name in enumerate(names)}
    return [
        torch.tensor([index[x] if isinstance(x, str) else x for x in part], dtype=torch.int64)
        for part in parts
    ], tuple(names)
