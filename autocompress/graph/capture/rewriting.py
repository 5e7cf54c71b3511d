"""Operations of functional form, written as ones that the engine knows and that every runtime has."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._ops import OpOverload

aten = torch.ops.aten
TO_THE_END = 2**63 - 1


def op_name(target: Any) -> str:
    """Return how a network writes an operation: the ATen name without `aten.` and without `.default`."""
    if isinstance(target, OpOverload):
        return target.name().removeprefix("aten::").removesuffix(".default")
    if target is operator.getitem:
        return "getitem"
    return f"operator.{getattr(target, '__name__', str(target))}"


def rewrite(graph: fx.Graph) -> None:
    """Write operations in simpler ones where that can be; the graph is changed."""
    for node in list(graph.nodes):
        change = _CHANGES.get(op_name(node.target)) if node.op == "call_function" else None
        if change is not None:
            with graph.inserting_before(node):
                change(_Place(graph, node))


def must_be_rewritten(node: fx.Node) -> bool:
    """Return whether an operation that has a row can be run but not exported as it stands."""
    name = op_name(node.target)
    if name.endswith("_like"):
        return name in _CHANGES and any(not isinstance(size, int) for size in node.meta["val"].shape)
    return name in ("max.dim", "min.dim")


class _Place:
    """Know where one operation stands: add others before it, and put their result in its place."""

    def __init__(self, graph: fx.Graph, node: fx.Node) -> None:
        self.graph, self.node = graph, node
        self.name = op_name(node.target)
        self.args: tuple[Any, ...] = node.args
        self.value: Any = node.meta["val"]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Return a new node of the same module, its value worked out on the way."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta = dict(self.node.meta)
        with detect_fake_mode(self.value) or nullcontext():
            node.meta["val"] = target(*fx.node.map_arg(args, lambda arg: arg.meta["val"]), **kwargs)
        return node

    def replace_by(self, *outputs: fx.Node) -> None:
        """Put these in place of the outputs; of one that is left out there must be no reader."""
        if not isinstance(self.value, (tuple, list)):
            self.node.replace_all_uses_with(outputs[0])
        for user in list(self.node.users):
            user.replace_all_uses_with(outputs[self._which(user)])
            self.graph.erase_node(user)
        self.graph.erase_node(self.node)

    def read_outputs(self) -> set[int]:
        """Return which of several outputs are read."""
        return {self._which(user) for user in self.node.users}

    @staticmethod
    def _which(user: fx.Node) -> int:
        which: Any = user.args[1]
        return int(which)


def _batch_norm(place: _Place) -> None:
    x, weight, bias, mean, variance, momentum, eps = place.args
    if place.read_outputs() <= {0}:
        args = (x, weight, bias, mean, variance, False, momentum, eps, False)
        place.replace_by(place.call(aten.batch_norm.default, *args))


def _slice_scatter(place: _Place) -> None:
    """Turn `x[:, a:b] = y` into a concatenation of what lies before, `y`, and what lies behind."""
    defaults: tuple[Any, ...] = (0, None, None, 1)
    x, y, dim, start, end, step = (*place.args, *defaults[len(place.args) - 2 :])
    size = x.meta["val"].shape[dim]
    if start in (0, None) and end in (None, TO_THE_END) and step == 1:
        place.replace_by(y)
    elif step == 1 and all(isinstance(one, int | None) for one in (size, start, end)):
        start, end, _ = slice(start, end).indices(size)
        _put_between(place, x, y, dim, start, end)


def _select_scatter(place: _Place) -> None:
    """Turn `x[:, i] = y` into a concatenation likewise."""
    x, y, dim, index = place.args
    dim %= x.meta["val"].ndim
    size = x.meta["val"].shape[dim]
    if isinstance(size, int) and isinstance(index, int):
        row = place.call(aten.unsqueeze.default, y, dim)
        _put_between(place, x, row, dim, index % size, index % size + 1)


def _put_between(place: _Place, x: fx.Node, y: fx.Node, dim: int, start: int, end: int) -> None:
    size = x.meta["val"].shape[dim]
    parts = [y]
    if start > 0:
        parts.insert(0, place.call(aten.slice.Tensor, x, dim, 0, start))
    if end < size:
        parts.append(place.call(aten.slice.Tensor, x, dim, end, size))
    place.replace_by(place.call(aten.cat.default, parts, dim) if len(parts) > 1 else y)


def _copy(place: _Place) -> None:
    """Replace `x[:] = y` by `y`, where nothing is left of `x`."""
    x, y = (arg.meta["val"] for arg in place.args[:2])
    if x.shape == y.shape and x.dtype == y.dtype:
        place.replace_by(place.args[1])


def _cast(place: _Place) -> None:
    place.replace_by(place.call(aten.to.dtype, place.args[0], place.value.dtype))


def _extreme(place: _Place) -> None:
    """Simplify `max` and `min` over an axis, of which only the values are read."""
    x, dim, keep = (*place.args, False)[:3]
    if place.read_outputs() <= {0}:
        target = aten.amax.default if place.name == "max.dim" else aten.amin.default
        place.replace_by(place.call(target, x, [dim], keep))


def _variance_and_mean(place: _Place) -> None:
    x, axes = (*place.args, None)[:2]
    axes = list(range(x.meta["val"].ndim)) if axes is None else axes
    options: dict[str, Any] = dict(place.node.kwargs)
    variance = place.call(aten.var.correction, x, axes, **options)
    place.replace_by(variance, place.call(aten.mean.dim, x, axes, options.get("keepdim", False)))


def _filled(place: _Place) -> None:
    """Stretch a tensor full of one value over the batch; what is stretched is a constant."""
    value = place.args[1] if place.name.startswith("full") else int(place.name.startswith("ones"))
    shape, first = place.value.shape, place.args[0]
    if all(isinstance(size, int) for size in shape) or isinstance(value, fx.Node):
        return
    sizes = first
    if isinstance(first, fx.Node):
        sizes = [
            size if isinstance(size, int) else place.call(aten.sym_size.int, first, axis)
            for axis, size in enumerate(shape)
        ]
    at_one = [size if isinstance(size, int) else 1 for size in shape]
    one = place.call(aten.full.default, at_one, value, dtype=place.value.dtype)
    place.replace_by(place.call(aten.expand.default, one, sizes))


_CHANGES: dict[str, Callable[[_Place], None]] = {
    "_native_batch_norm_legit_no_training": _batch_norm,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    "copy": _copy,
    "_to_copy": _cast,
    "max.dim": _extreme,
    "min.dim": _extreme,
    "var_mean.correction": _variance_and_mean,
    **dict.fromkeys("zeros ones full zeros_like ones_like full_like".split(), _filled),
}
