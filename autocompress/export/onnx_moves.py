"""Exporters of operations that only move data, and so work on floats and on 8-bit integers alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autocompress.export.onnx_registry import Tensor, exports, not_expressible
from autocompress.graph.network import Node

if TYPE_CHECKING:
    from autocompress.export.onnx import Emitter

_END = 2**31


@exports("view", "reshape", "_unsafe_view")
def reshape(e: Emitter, node: Node, x: Tensor, shape: Sequence[int]) -> str:
    return e.op("Reshape", x.name, e.ints(*shape), name=node.name)


@exports("flatten.using_ints")
def flatten(e: Emitter, node: Node, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> str:
    rank = len(x.shape)
    start, end = start_dim % rank, end_dim % rank
    if start == 1 and end == rank - 1:
        return e.op("Flatten", x.name, name=node.name, axis=1)
    sizes = e.sizes(x.shape)
    return e.op("Reshape", x.name, e.ints(*sizes[:start], -1, *sizes[end + 1 :]), name=node.name)


@exports("unflatten.int")
def unflatten(e: Emitter, node: Node, x: Tensor, dim: int, sizes: Sequence[int]) -> str:
    whole = e.sizes(x.shape)
    axis = dim % len(whole)
    return e.op("Reshape", x.name, e.ints(*whole[:axis], *sizes, *whole[axis + 1 :]), name=node.name)


@exports("permute")
def permute(e: Emitter, node: Node, x: Tensor, dims: Sequence[int]) -> str:
    return e.op("Transpose", x.name, name=node.name, perm=[axis % len(dims) for axis in dims])


@exports("transpose.int")
def transpose(e: Emitter, node: Node, x: Tensor, dim0: int, dim1: int) -> str:
    order = list(range(len(x.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return e.op("Transpose", x.name, name=node.name, perm=order)


@exports("t")
def matrix_transpose(e: Emitter, node: Node, x: Tensor) -> str:
    return e.op("Transpose", x.name, name=node.name, perm=[1, 0])


@exports("movedim.int", "movedim.intlist")
def movedim(e: Emitter, node: Node, x: Tensor, source: Any, destination: Any) -> str:
    rank = len(x.shape)
    axes, places = ([int(axis) % rank for axis in np.atleast_1d(given)] for given in (source, destination))
    rest = iter(axis for axis in range(rank) if axis not in axes)
    order = [axes[places.index(axis)] if axis in places else next(rest) for axis in range(rank)]
    return e.op("Transpose", x.name, name=node.name, perm=order)


@exports("unsqueeze")
def unsqueeze(e: Emitter, node: Node, x: Tensor, dim: int) -> str:
    return e.op("Unsqueeze", x.name, e.ints(dim), name=node.name)


@exports("squeeze", "squeeze.dim", "squeeze.dims")
def squeeze(e: Emitter, node: Node, x: Tensor, dim: Any = None) -> str:
    rank = len(x.shape)
    wanted = range(1, rank) if dim is None else [int(axis) % rank for axis in np.atleast_1d(dim)]
    axes = [axis for axis in wanted if x.shape[axis] == 1]
    return e.op("Squeeze", x.name, e.ints(*axes), name=node.name) if axes else x.name


@exports("expand", "expand_as")
def expand(e: Emitter, node: Node, x: Tensor, size: Any) -> str:
    sizes = e.sizes(size.shape) if isinstance(size, Tensor) else size
    whole = [1 if one == -1 else one for one in sizes]
    return e.op("Expand", x.name, e.ints(*whole), name=node.name)


@exports("repeat", "tile")
def repeat(e: Emitter, node: Node, x: Tensor, repeats: Sequence[int]) -> str:
    source = x.name
    if len(repeats) > len(x.shape):
        axes = e.ints(*range(len(repeats) - len(x.shape)))
        source = e.op("Unsqueeze", source, axes, name=f"{node.name}/unsqueeze")
    counts = (1,) * (len(x.shape) - len(repeats)) + tuple(repeats)
    return e.op("Tile", source, e.ints(*counts), name=node.name)


@exports("slice.Tensor")
def slice_(
    e: Emitter,
    node: Node,
    x: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> str:
    """Write slices of slices as one node, and a slice that keeps everything as none."""
    axis = dim % len(x.shape)
    first, last = start or 0, _END if end is None else min(end, _END)
    if first == 0 and step == 1 and last >= x.shape[axis] * (e.batch if axis == 0 else 1):
        return x.name
    source, earlier = e.slices.get(x.name, (x.name, ()))
    if any(axis == other[2] for other in earlier):
        source, earlier = x.name, ()
    spec = (*earlier, (first, last, axis, step))
    columns = [e.ints(*column) for column in zip(*spec, strict=True)]
    if all(one[3] == 1 for one in spec):
        columns = columns[:3]
    result: str = e.op("Slice", source, *columns, name=node.name)
    e.slices[result] = (source, spec)
    return result


@exports("select.int")
def select(e: Emitter, node: Node, x: Tensor, dim: int, index: int) -> str:
    return e.op("Gather", x.name, e.constant(index, np.int64), name=node.name, axis=dim)


@exports("embedding")
def embedding(e: Emitter, node: Node, table: Any, positions: Any, *_: Any) -> str:
    return e.op("Gather", e.name(table), e.name(positions), name=node.name, axis=0)


@exports("index_select")
def index_select(e: Emitter, node: Node, x: Tensor, dim: int, index: Any) -> str:
    return e.op("Gather", x.name, e.constant(index, np.int64), name=node.name, axis=dim)


@exports("index.Tensor")
def index(e: Emitter, node: Node, x: Tensor, indices: Sequence[Any]) -> str:
    given = [(axis, value) for axis, value in enumerate(indices) if value is not None]
    if len(given) != 1 or not isinstance(given[0][1], np.ndarray) or given[0][1].dtype == np.bool_:
        raise not_expressible(node, "only indexing of one axis by constant integers has an exporter")
    ((axis, positions),) = given
    return e.op("Gather", x.name, e.constant(positions, np.int64), name=node.name, axis=axis)


@exports("split.Tensor", "split_with_sizes", "chunk")
def split(e: Emitter, node: Node, x: Tensor, _sizes: Any, dim: int = 0) -> list[str]:
    lengths = [part[dim] for part in node.shape]
    if len(lengths) == 1:
        return [x.name]
    return e.op("Split", x.name, e.ints(*lengths), name=node.name, outputs=len(lengths), axis=dim)


@exports("unbind.int")
def unbind(e: Emitter, node: Node, x: Tensor, dim: int = 0) -> list[str]:
    count = x.shape[dim]
    names = e.op("Split", x.name, name=node.name, outputs=count, axis=dim, num_outputs=count)
    parts = [names] if count == 1 else names
    axes = e.ints(dim)
    return [e.op("Squeeze", part, axes, name=f"{node.name}/{place}") for place, part in enumerate(parts)]


@exports("cat")
def cat(e: Emitter, node: Node, tensors: Sequence[Any], dim: int = 0) -> str:
    return e.op("Concat", *(e.name(tensor) for tensor in tensors), name=node.name, axis=dim)


@exports("stack")
def stack(e: Emitter, node: Node, tensors: Sequence[Any], dim: int = 0) -> str:
    axes = e.ints(dim)
    parts = [
        e.op("Unsqueeze", e.name(tensor), axes, name=f"{node.name}/{place}")
        for place, tensor in enumerate(tensors)
    ]
    return e.op("Concat", *parts, name=node.name, axis=dim)


@exports("pad", "constant_pad_nd")
def pad(
    e: Emitter, node: Node, x: Tensor, pads: Sequence[int], mode: Any = "constant", value: float | None = 0.0
) -> str:
    if not isinstance(mode, str):
        mode, value = "constant", mode
    pairs = [tuple(pads[place : place + 2]) for place in range(0, len(pads), 2)][::-1]
    pairs = [(0, 0)] * (len(x.shape) - len(pairs)) + pairs
    amounts = e.ints(*(before for before, _ in pairs), *(after for _, after in pairs))
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if all(amount == 0 for amount in pads):
        return x.name
    fill = [e.fill(x, value or 0.0)] if mode == "constant" else []
    return e.op("Pad", x.name, amounts, *fill, name=node.name, mode=modes[mode])


@exports("roll")
def roll(e: Emitter, node: Node, x: Tensor, shifts: Any, dims: Any = ()) -> str:
    pairs = list(zip(np.atleast_1d(shifts).tolist(), np.atleast_1d(dims).tolist(), strict=False))
    if not pairs:
        raise not_expressible(node, "rolling the flattened tensor has no exporter")
    result = x.name
    for place, (shift, dim) in enumerate(pairs):
        cut = -shift % x.shape[dim]
        if cut:
            head, tail = (
                e.op("Slice", result, e.ints(start), e.ints(end), e.ints(dim), name=f"{node.name}/cut")
                for start, end in ((0, cut), (cut, _END))
            )
            name = node.name if place == len(pairs) - 1 else f"{node.name}/{place}"
            result = e.op("Concat", tail, head, name=name, axis=dim)
    return result


@exports("flip")
def flip(e: Emitter, node: Node, x: Tensor, dims: Sequence[int]) -> str:
    count = len(dims)
    inputs = (e.ints(*(-1,) * count), e.ints(*(-_END,) * count), e.ints(*dims), e.ints(*(-1,) * count))
    return e.op("Slice", x.name, *inputs, name=node.name)


@exports("pixel_shuffle")
def pixel_shuffle(e: Emitter, node: Node, x: Tensor, factor: int) -> str:
    return e.op("DepthToSpace", x.name, name=node.name, blocksize=factor, mode="CRD")


@exports("pixel_unshuffle")
def pixel_unshuffle(e: Emitter, node: Node, x: Tensor, factor: int) -> str:
    batch, channels, height, width = e.sizes(x.shape)
    cut = e.ints(batch, channels, height // factor, factor, width // factor, factor)
    cells = e.op("Reshape", x.name, cut, name=f"{node.name}/cells")
    order = e.op("Transpose", cells, name=f"{node.name}/order", perm=(0, 1, 3, 5, 2, 4))
    shape = (batch, channels * factor**2, height // factor, width // factor)
    return e.op("Reshape", order, e.ints(*shape), name=node.name)


@exports("channel_shuffle")
def channel_shuffle(e: Emitter, node: Node, x: Tensor, groups: int) -> str:
    batch, channels, *rest = e.sizes(x.shape)
    cells = e.op("Reshape", x.name, e.ints(batch, groups, channels // groups, math.prod(rest)),
                 name=f"{node.name}/cells")  # fmt: skip
    order = e.op("Transpose", cells, name=f"{node.name}/order", perm=(0, 2, 1, 3))
    return e.op("Reshape", order, e.ints(batch, channels, *rest), name=node.name)
