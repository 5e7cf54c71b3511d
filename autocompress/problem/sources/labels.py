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
