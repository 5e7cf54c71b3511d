"""ONNX operators that pool, resize or move data, by torch calls; see `torch_operators`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from autocompress.device.runtimes.torch_operators import Attributes, torch_for, torch_pads
from autocompress.errors import InputError


@torch_for("GlobalAveragePool")
def global_average_pool(emit: Any, _attributes: Attributes, x: Any) -> Any:
    return emit(_global_mean, x)


@torch_for("GlobalMaxPool")
def global_max_pool(emit: Any, _attributes: Attributes, x: Any) -> Any:
    return emit(_global_max, x)


def _global_mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean(tuple(range(2, x.ndim)), True)


def _global_max(x: torch.Tensor) -> torch.Tensor:
    return x.amax(tuple(range(2, x.ndim)), True)


@torch_for("MaxPool")
def max_pool(emit: Any, attributes: Attributes, x: Any) -> Any:
    kernel, strides, before, ceil = _window(attributes)
    dilations = list(attributes.get("dilations", [1] * len(kernel)))
    function = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[len(kernel)]
    return emit(function, x, kernel, strides, before, dilations, ceil)


@torch_for("AveragePool")
def average_pool(emit: Any, attributes: Attributes, x: Any) -> Any:
    kernel, strides, before, ceil = _window(attributes)
    counted = bool(attributes.get("count_include_pad", 0))
    function = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[len(kernel)]
    return emit(function, x, kernel, strides, before, ceil, counted)


def _window(attributes: Attributes) -> tuple[list[int], list[int], list[int], bool]:
    kernel = list(attributes["kernel_shape"])
    pads = list(attributes.get("pads", [0] * 2 * len(kernel)))
    before, after = pads[: len(kernel)], pads[len(kernel) :]
    if before != after:
        raise InputError(
            "torch pools with the same padding before and after only",
            why=f"it is {pads}",
            fix="pad alike on both sides in the teacher, or use the runtime onnxruntime",
        )
    strides = list(attributes.get("strides", [1] * len(kernel)))
    return kernel, strides, before, bool(attributes.get("ceil_mode", 0))


@torch_for("Reshape")
def reshape(emit: Any, _attributes: Attributes, x: Any, shape: Any) -> Any:
    """Reshape a tensor; a size of 0 keeps the input's."""
    given = [
        emit(torch.Tensor.size, x, axis) if size == 0 else size for axis, size in enumerate(shape.tolist())
    ]
    return emit(torch.reshape, x, given)


@torch_for("Transpose")
def transpose(emit: Any, attributes: Attributes, x: Any) -> Any:
    return emit(torch.permute, x, list(attributes["perm"]))


@torch_for("Unsqueeze")
def unsqueeze(emit: Any, _attributes: Attributes, x: Any, axes: Any) -> Any:
    for axis in sorted(axes.tolist()):
        x = emit(torch.unsqueeze, x, axis)
    return x


@torch_for("Squeeze")
def squeeze(emit: Any, _attributes: Attributes, x: Any, axes: Any) -> Any:
    return emit(torch.squeeze, x, axes.tolist())


@torch_for("Expand")
def expand(emit: Any, _attributes: Attributes, x: Any, shape: Any) -> Any:
    """Expand a tensor; a size of 1 keeps the input's, as in ONNX."""
    return emit(torch.Tensor.expand, x, [-1 if size == 1 else size for size in shape.tolist()])


@torch_for("Tile")
def tile(emit: Any, _attributes: Attributes, x: Any, counts: Any) -> Any:
    return emit(torch.tile, x, counts.tolist())


@torch_for("Slice")
def slice_(
    emit: Any, _attributes: Attributes, x: Any, starts: Any, ends: Any, axes: Any, steps: Any = None
) -> Any:
    """Slice a tensor; steps of -1 over whole axes are flips; others are positive."""
    steps = np.ones_like(starts) if steps is None else steps
    if (steps < 0).any():
        return emit(torch.flip, x, axes.tolist())
    for start, end, axis, step in zip(*(part.tolist() for part in (starts, ends, axes, steps)), strict=True):
        x = emit(torch.ops.aten.slice.Tensor, x, axis, start, end, step)
    return x


@torch_for("Gather")
def gather(emit: Any, attributes: Attributes, x: Any, indices: Any) -> Any:
    axis = attributes.get("axis", 0)
    if not isinstance(indices, np.ndarray):
        return emit(functional.embedding, indices, x)
    if indices.ndim == 0:
        return emit(torch.select, x, axis, int(indices))
    taken = emit(torch.index_select, x, axis, indices.reshape(-1))
    return taken if indices.ndim == 1 else emit(torch.unflatten, taken, axis, list(indices.shape))


@torch_for("Split")
def split(emit: Any, attributes: Attributes, x: Any, lengths: Any = None) -> Any:
    axis = attributes.get("axis", 0)
    if lengths is None:
        count = attributes["num_outputs"]
        parts = emit(torch.chunk, x, count, axis)
    else:
        count = len(lengths)
        parts = emit(torch.split, x, lengths.tolist(), axis)
    return [emit(_part, parts, place) for place in range(count)]


def _part(parts: Any, place: int) -> Any:
    return parts[place]


@torch_for("Concat")
def concat(emit: Any, attributes: Attributes, *parts: Any) -> Any:
    return emit(torch.cat, list(parts), attributes["axis"])


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@torch_for("Pad")
def pad(emit: Any, attributes: Attributes, x: Any, amounts: Any, fill: Any = None) -> Any:
    """Pad a tensor; other modes than a constant leave the first two axes as they are."""
    count = len(amounts) // 2
    before, after = amounts[:count].tolist(), amounts[count:].tolist()
    mode = _PAD_MODES[attributes.get("mode", b"constant").decode()]
    if mode == "constant":
        return emit(functional.pad, x, torch_pads(before, after), value=0.0 if fill is None else fill)
    return emit(functional.pad, x, torch_pads(before[2:], after[2:]), mode=mode)


@torch_for("Resize")
def resize(emit: Any, attributes: Attributes, x: Any, _region: Any, _scales: Any, sizes: Any) -> Any:
    mode = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[attributes["mode"].decode()]
    options: dict[str, object] = {"mode": mode}
    if mode != "nearest":
        options["align_corners"] = attributes["coordinate_transformation_mode"] == b"align_corners"
    return emit(functional.interpolate, x, sizes[2:].tolist(), **options)
