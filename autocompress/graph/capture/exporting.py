"""nn.Module → the program that `torch.export` makes of it, with errors that say what to change."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import nn

from autocompress.errors import TeacherError

EXPORT_BATCH = 2


def exported(module: nn.Module, input_shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """Return the module's program at any batch size.

    Raises TeacherError with torch's reason when it cannot be captured.
    """
    example = torch.zeros(EXPORT_BATCH, *input_shape)
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(
                module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
            )
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TeacherError(
            "the teacher cannot be traced",
            where=type(module).__name__,
            why=f"torch.export: {first_line[:300]}",
            fix=_fix(error),
        ) from error


def _fix(error: Exception) -> str:
    text = f"{type(error).__name__} {error}"
    if "data-dependent" in text or "GuardOnDataDependent" in text:
        return "replace branches on the values of tensors by torch.where, and .item() by tensor arithmetic"
    if "Constraints violated" in text or "specialized" in text:
        return "make forward() work for any batch size: no branch on it, x.shape[0] instead of a number"
    if "same dtype" in text or ("dtype" in text and "Half" in text):
        return "let forward() compute in the type of its input: without .half(), .bfloat16() or .double()"
    return "make forward() take one tensor of any batch size, without branches on the values of tensors"
