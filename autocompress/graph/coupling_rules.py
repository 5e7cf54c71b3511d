"""How the atoms on the axes of an operation's output follow from those of its inputs.

One function a kind of operation. An axis is an array with one atom per index, or None where
nothing can be removed (batch, height, width, tokens). See `graph.coupling` for what atoms are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.network import Network, Node, Param, Ref, Shape, flatten
from autocompress.graph.operations import (
    BINARY,
    CONVOLUTIONS,
    EMBEDDING,
    POINTWISE,
    POOLING,
    REDUCTION,
    TRANSPOSED,
    short_name,
)

Labels = NDArray[np.int64] | None
Axes = tuple[Labels, ...]
ValueAxes = Mapping[str, Any]
"""The labels of the axes of each value that was visited; a tuple of them where it has several parts."""

Rule = Callable[[Node, Network, ValueAxes, "Atoms"], Any]

_SPLIT = "is split by a reshape"
_ATTENTIONS = frozenset({"scaled_dot_product_attention", "matmul", "bmm", "einsum"})
_REARRANGE = frozenset("permute transpose.int t unsqueeze squeeze squeeze.dim squeeze.dims".split())
_TAKE_APART = frozenset({"select.int", "unbind.int"})
_ON_THE_WAY_TO_HEADS = (
    _REARRANGE
    | _TAKE_APART
    | frozenset(
        """split.Tensor split_with_sizes chunk getitem mul.Scalar mul.Tensor div.Scalar div.Tensor layer_norm
        reshape expand""".split()
    )
)


class Atoms:
    """A union-find forest over atoms, the atoms of every parameter, and the reasons for locks."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._locks: dict[int, str] = {}
        self.params: dict[str, Axes] = {}

    @property
    def count(self) -> int:
        return len(self._parent)

    def new(self, size: int) -> NDArray[np.int64]:
        start = len(self._parent)
        self._parent.extend(range(start, start + size))
        return np.arange(start, start + size)

    def find(self, atom: int) -> int:
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def unite(self, left: Labels, right: Labels, where: str) -> Labels:
        """Make one set of atoms of two axes that must stay equal; a fixed axis locks the other."""
        if left is None or right is None:
            self.lock(left, f"meets a fixed axis at {where}")
            self.lock(right, f"meets a fixed axis at {where}")
            return None if left is None and right is None else (right if left is None else left)
        if len(left) != len(right):
            self.lock(left, f"meets an axis of another size at {where}")
            self.lock(right, f"meets an axis of another size at {where}")
            return left if len(left) > len(right) else right
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            root_a, root_b = self.find(a), self.find(b)
            if root_a != root_b:
                self._parent[max(root_a, root_b)] = min(root_a, root_b)
        return left

    def lock(self, labels: Labels, reason: str) -> None:
        if labels is not None:
            for atom in labels.tolist():
                self._locks.setdefault(atom, reason)

    def of_param(self, name: str, shape: Shape) -> Axes:
        """Return the atoms of a parameter's axes; fresh ones at the first call, none on axes of length 1."""
        if name not in self.params:
            self.params[name] = tuple(self.new(size) if size > 1 else None for size in shape)
        return self.params[name]

    def bind_param(self, name: str, axes: Axes, where: str) -> Axes:
        """Declare a parameter's axes, or unite them with those another user declared."""
        known = self.params.get(name)
        if known is not None:
            for old, new in zip(known, axes, strict=True):
                if old is not None or new is not None:
                    self.unite(old, new, where)
            return known
        self.params[name] = axes
        return axes

    def resolve(self, axes: Any) -> Any:
        """Return the same axes with every atom replaced by its root."""
        if axes is None:
            return None
        if isinstance(axes, tuple):
            return tuple(self.resolve(axis) for axis in axes)
        return np.fromiter((self.find(atom) for atom in axes.tolist()), np.int64, len(axes))

    def resolved_locks(self) -> dict[int, str]:
        locks: dict[int, str] = {}
        for atom, reason in self._locks.items():
            locks.setdefault(self.find(atom), reason)
        return locks


def axes_in(axes: Any) -> Iterator[Labels]:
    """Yield every axis of a value, also of one with several outputs."""
    for axis in axes:
        if isinstance(axis, tuple):
            yield from axes_in(axis)
        else:
            yield axis


def not_followed(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Any:
    """Lock every axis that an operation without a rule touches: of what it reads, and of what it computes."""
    op = short_name(node.op)
    for arg in flatten(node.args, dict(node.kwargs)):
        if isinstance(arg, Ref):
            for labels in axes_in(values[arg.node]):
                atoms.lock(labels, f"reaches {op} at {node.name}, through which channels are not followed")
        elif isinstance(arg, Param):
            for labels in atoms.of_param(arg.name, network.params[arg.name].shape):
                atoms.lock(labels, f"is an operand of {op} at {node.name}")
    return _locked(
        node.shape, atoms, f"is computed by {op} at {node.name}, through which channels are not followed"
    )


def _locked(shape: Any, atoms: Atoms, reason: str) -> Any:
    """Return locked atoms on all axes but the batch's, of an output of this shape or these shapes."""
    if any(isinstance(size, tuple) for size in shape):
        return tuple(_locked(part, atoms, reason) for part in shape)
    axes = tuple(atoms.new(size) if size > 1 else None for size in shape)
    for labels in axes:
        atoms.lock(labels, reason)
    return axes


_RULES: dict[str, Rule] = {}


def rule_for(op: str) -> Rule | None:
    return _RULES.get(op)


def _rule(ops: Iterable[str]) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for op in ops:
            if op in _RULES:
                raise ValueError(f"two coupling rules for {op}")
            _RULES[op] = function
        return function

    return register


def _argument(node: Node, index: int, default: Any = None, name: str = "") -> Any:
    if len(node.args) > index:
        return node.args[index]
    return dict(node.kwargs).get(name, default)


def _axes_of(arg: Any, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    if isinstance(arg, Param):
        return atoms.of_param(arg.name, network.params[arg.name].shape)
    axes: Axes = values[arg.node]
    return axes


def _shape_of(arg: Any, network: Network) -> Shape:
    shape: Shape = network.params[arg.name].shape if isinstance(arg, Param) else network.shape_of(arg.node)
    return shape


@_rule(CONVOLUTIONS)
def _convolution(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    weight, bias = node.args[1], _argument(node, 2, name="bias")
    if not isinstance(weight, Param):
        return _weight_is_computed(node, network, values, atoms)
    shape = network.params[weight.name].shape
    groups = _argument(node, 6, 1, "groups")
    channels = _shape_of(node.args[0], network)[1]
    if groups == 1:
        out, into = atoms.new(shape[0]), axes[1]
    else:
        out, into = _grouped(node, axes[1], groups, (shape[0], channels), atoms)
    bound = atoms.bind_param(weight.name, (out, into, *(None for _ in shape[2:])), node.name)
    if isinstance(bias, Param):
        atoms.bind_param(bias.name, (bound[0],), node.name)
    return (axes[0], bound[0], *(None for _ in shape[2:]))


def _grouped(
    node: Node, axis: Labels, groups: int, sizes: tuple[int, int], atoms: Atoms
) -> tuple[NDArray[np.int64], Labels]:
    """Return the atoms of a grouped convolution's outputs, and those of the inputs of one group.

    `sizes` are the channels that it computes and those that it reads. Many narrow groups leave as wholes,
    with what they read and what they compute, as in a depthwise convolution. Wide groups stay, all of them
    equally narrow: what stands at one place in every group leaves together.
    """
    outputs, inputs = sizes
    if axis is None:
        out = atoms.new(outputs)
        atoms.lock(out, f"leaves the grouped convolution {node.name}")
        return out, None
    by_group = axis.reshape(groups, -1)
    if _whole_groups(groups, inputs, outputs):
        _unite_columns(by_group, atoms, node.name)
        return np.repeat(by_group[:, 0], outputs // groups), None
    _unite_columns(by_group.T, atoms, node.name)
    return np.tile(atoms.new(outputs // groups), groups), by_group[0]


def _whole_groups(groups: int, inputs: int, outputs: int) -> bool:
    """Return whether a grouped convolution loses whole groups: it has more of them than channels in one."""
    return groups >= min(inputs, outputs) // groups


def _unite_columns(labels: NDArray[np.int64], atoms: Atoms, where: str) -> None:
    """Make one atom of every row of a matrix."""
    for column in range(1, labels.shape[1]):
        atoms.unite(labels[:, 0], labels[:, column], where)


@_rule(TRANSPOSED)
def _transposed_convolution(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    weight, bias = node.args[1], _argument(node, 2, name="bias")
    if not isinstance(weight, Param):
        return _weight_is_computed(node, network, values, atoms)
    shape = network.params[weight.name].shape
    groups = _argument(node, 6, 1, "groups")
    if groups == 1:
        atoms.bind_param(weight.name, (axes[1], atoms.new(shape[1]), *(None for _ in shape[2:])), node.name)
        out = atoms.params[weight.name][1]
    else:
        out, _ = _grouped(node, axes[1], groups, (node.shape[1], shape[0]), atoms)
        by_group = out.reshape(groups, -1)
        inside = None if _whole_groups(groups, shape[0], node.shape[1]) else by_group[0]
        atoms.bind_param(weight.name, (axes[1], inside, *(None for _ in shape[2:])), node.name)
    if isinstance(bias, Param):
        atoms.bind_param(bias.name, (out,), node.name)
    return (axes[0], out, *(None for _ in shape[2:]))


def _weight_is_computed(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    for arg in node.args:
        if isinstance(arg, (Ref, Param)):
            for axis in _axes_of(arg, network, values, atoms):
                atoms.lock(axis, f"belongs to {node.name}, whose weight is computed in forward()")
    return tuple(None for _ in node.shape)


@_rule(["linear"])
def _linear(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    weight, bias = node.args[1], _argument(node, 2, name="bias")
    if not isinstance(weight, Param):
        return _weight_is_computed(node, network, values, atoms)
    bound = atoms.bind_param(
        weight.name, (atoms.new(network.params[weight.name].shape[0]), axes[-1]), node.name
    )
    if isinstance(bias, Param):
        atoms.bind_param(bias.name, (bound[0],), node.name)
    return (*axes[:-1], bound[0])


@_rule([EMBEDDING])
def _embedding(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    weight = node.args[0]
    if not isinstance(weight, Param):
        return not_followed(node, network, values, atoms)
    channels = atoms.new(network.params[weight.name].shape[1])
    bound = atoms.bind_param(weight.name, (None, channels), node.name)
    return (*(None for _ in node.shape[1:]), bound[1])


@_rule(["batch_norm", "instance_norm"])
def _channel_norm(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    for arg in node.args[1:5]:
        if isinstance(arg, Param):
            atoms.bind_param(arg.name, (axes[1],), node.name)
    return axes


@_rule(["layer_norm", "rms_norm"])
def _layer_norm(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    normalised = len(node.args[1])
    if normalised > 1:
        for axis in axes[-normalised:]:
            atoms.lock(axis, f"is normalised over several axes at {node.name}")
    for arg in node.args[2:4]:
        if isinstance(arg, Param):
            atoms.bind_param(arg.name, axes[-normalised:], node.name)
    return axes


@_rule(["group_norm"])
def _group_norm(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    if node.args[1] != 1 and axes[1] is not None:
        _unite_columns(axes[1].reshape(node.args[1], -1), atoms, node.name)
    for arg in node.args[2:4]:
        if isinstance(arg, Param):
            atoms.bind_param(arg.name, (axes[1],), node.name)
    return axes


@_rule(POINTWISE - {"prelu"})
def _pointwise(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    return _axes_of(node.args[0], network, values, atoms)


@_rule(BINARY)
def _binary(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    operands = [arg for arg in node.args if isinstance(arg, (Ref, Param))]
    out: list[Labels] = [None] * len(node.shape)
    seen = [False] * len(node.shape)
    for operand in operands:
        shape = _shape_of(operand, network)
        axes = _axes_of(operand, network, values, atoms)
        offset = len(node.shape) - len(shape)
        for index, (size, axis) in enumerate(zip(shape, axes, strict=True), start=offset):
            if size == 1 and (axis is None or node.shape[index] > 1):
                atoms.lock(axis, f"is repeated at {node.name}")
                continue
            out[index] = atoms.unite(out[index], axis, node.name) if seen[index] else axis
            seen[index] = True
    return tuple(out)


@_rule(POOLING)
def _pooling(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Any:
    axes = _axes_of(node.args[0], network, values, atoms)
    shapes = node.shape if node.shape and isinstance(node.shape[0], tuple) else (node.shape,)
    out = tuple((*axes[:2], *(None for _ in shape[2:])) for shape in shapes)
    return out if len(shapes) > 1 else out[0]


@_rule(REDUCTION | {"linalg_vector_norm"})
def _reduction(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    rank = len(axes)
    dims = _argument(node, 1, None, "dim")
    if node.op in ("norm.ScalarOpt_dim", "linalg_vector_norm"):
        dims = _argument(node, 2, None, "dim")
    if dims is None or dims == ():
        dims = tuple(range(rank))
    reduced = {dim % rank for dim in (dims if isinstance(dims, tuple) else (dims,))}
    if len(node.shape) == rank:
        return tuple(None if index in reduced else axis for index, axis in enumerate(axes))
    return tuple(axis for index, axis in enumerate(axes) if index not in reduced)


@_rule(["softmax.int", "_softmax", "log_softmax.int", "cumsum"])
def _normalised(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    atoms.lock(axes[node.args[1]], f"is normalised by {node.op} at {node.name}")
    return axes


@_rule(["roll", "flip"])
def _moved(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    dims = node.args[1] if node.op == "flip" else _argument(node, 2, name="dims") or range(len(axes))
    for dim in dims:
        atoms.lock(axes[dim], f"is reordered by {node.op} at {node.name}")
    return axes


@_rule(["matmul", "bmm"])
def _matmul(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    left = _axes_of(node.args[0], network, values, atoms)
    right = _axes_of(node.args[1], network, values, atoms)
    if len(left) < 2 or len(left) != len(right):
        for axis in (*left, *right):
            atoms.lock(axis, f"enters {node.op} at {node.name}")
        return tuple(None for _ in node.shape)
    if left[-1] is not None or right[-2] is not None:
        atoms.unite(left[-1], right[-2], node.name)
    batch = [
        atoms.unite(a, b, node.name) if a is not None or b is not None else None
        for a, b in zip(left[:-2], right[:-2], strict=True)
    ]
    return (*batch, left[-2], right[-1])


@_rule(["einsum"])
def _einsum(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    """Unite the axes of one letter."""
    left, _, right = str(node.args[0]).replace(" ", "").partition("->")
    operands = [_axes_of(arg, network, values, atoms) for arg in node.args[1]]  # type: ignore[union-attr]
    terms = left.split(",")
    if "." in left or not right or any(len(set(term)) != len(term) for term in (*terms, right)):
        return not_followed(node, network, values, atoms)
    by_letter: dict[str, Labels] = {}
    for term, axes in zip(terms, operands, strict=True):
        for letter, axis in zip(term, axes, strict=True):
            if letter in by_letter and (axis is not None or by_letter[letter] is not None):
                axis = atoms.unite(by_letter[letter], axis, node.name)
            by_letter[letter] = axis
    return tuple(by_letter[letter] for letter in right)


@_rule(["scaled_dot_product_attention"])
def _attention(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    query, key, value = (_axes_of(arg, network, values, atoms) for arg in node.args[:3])
    if query[-1] is not None or key[-1] is not None:
        atoms.unite(query[-1], key[-1], node.name)
    batch = []
    for q, k, v in zip(query[:-2], key[:-2], value[:-2], strict=True):
        axis = atoms.unite(q, k, node.name) if q is not None or k is not None else None
        batch.append(atoms.unite(axis, v, node.name) if axis is not None or v is not None else None)
    mask = _argument(node, 3, name="attn_mask")
    if isinstance(mask, (Ref, Param)):
        sizes = _shape_of(mask, network)
        for index, axis in enumerate(_axes_of(mask, network, values, atoms)[:-2]):
            place = index + len(query) - len(sizes)
            if sizes[index] > 1 and (axis is not None or batch[place] is not None):
                atoms.unite(batch[place], axis, node.name)
    return (*batch, query[-2], value[-1])


@_rule(_REARRANGE)
def _rearranged(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    rank = len(axes)
    if node.op == "permute":
        return tuple(axes[dim] for dim in node.args[1])
    if node.op in ("transpose.int", "t"):
        first, second = node.args[1:3] if node.op == "transpose.int" else (0, 1)
        swapped = list(axes)
        swapped[first], swapped[second] = axes[second], axes[first]
        return tuple(swapped)
    if node.op == "unsqueeze":
        dim = node.args[1] % (rank + 1)
        return (*axes[:dim], None, *axes[dim:])
    shape = _shape_of(node.args[0], network)
    dims = node.args[1] if len(node.args) > 1 else tuple(range(rank))
    dropped = {dim % rank for dim in (dims if isinstance(dims, tuple) else (dims,))}
    return tuple(axis for index, axis in enumerate(axes) if index not in dropped or shape[index] != 1)


@_rule(["channel_shuffle"])
def _shuffled(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    if axes[1] is None:
        return axes
    return (axes[0], axes[1].reshape(node.args[1], -1).T.reshape(-1), *axes[2:])


@_rule(["expand"])
def _expand(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    shape = _shape_of(node.args[0], network)
    out: list[Labels] = [None] * (len(node.shape) - len(shape))
    for size, labels, expanded in zip(shape, axes, node.shape[len(out) :], strict=True):
        if size != expanded:
            atoms.lock(labels, f"is repeated at {node.name}")
        out.append(labels if size == expanded else None)
    return tuple(out)


@_rule(["slice.Tensor"])
def _slice(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = list(_axes_of(node.args[0], network, values, atoms))
    dim = _argument(node, 1, 0)
    step = _argument(node, 4, 1)
    if axes[dim] is not None and step != 1:
        atoms.lock(axes[dim], f"is subsampled at {node.name}")
    labels = axes[dim]
    if labels is not None:
        axes[dim] = labels[slice(_argument(node, 2), _argument(node, 3), step)]
    return tuple(axes)


@_rule(_TAKE_APART)
def _select(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Any:
    axes = _axes_of(node.args[0], network, values, atoms)
    dim = _argument(node, 1, 0) % len(axes)
    atoms.lock(axes[dim], f"is indexed by {node.op} at {node.name}")
    rest = (*axes[:dim], *axes[dim + 1 :])
    return rest if node.op == "select.int" else tuple(rest for _ in node.shape)


@_rule(["index.Tensor"])
def _index(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    """Let axes stay that are not indexed; the others make room for those of the indices, which stand
    together."""
    axes, indices = _axes_of(node.args[0], network, values, atoms), node.args[1]
    assert isinstance(indices, tuple)
    at = [place for place, index in enumerate(indices) if index is not None]
    if not at or at != list(range(at[0], at[-1] + 1)):
        return not_followed(node, network, values, atoms)
    for place in at:
        atoms.lock(axes[place], f"is indexed by {node.op} at {node.name}")
    new = len(node.shape) - len(axes) + len(at)
    return (*axes[: at[0]], *(None for _ in range(new)), *axes[at[-1] + 1 :])


@_rule(["split.Tensor", "split_with_sizes", "chunk"])
def _split(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Any:
    axes = _axes_of(node.args[0], network, values, atoms)
    dim = _argument(node, 2, 0, "dim") % len(axes)
    labels = axes[dim]
    pieces: list[Any] = [None] * len(node.shape)
    if labels is not None:
        pieces = np.split(labels, np.cumsum([shape[dim] for shape in node.shape])[:-1])
    return tuple((*axes[:dim], piece, *axes[dim + 1 :]) for piece in pieces)


@_rule(["getitem"])
def _getitem(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Any:
    return _axes_of(node.args[0], network, values, atoms)[node.args[1]]


@_rule(["cat"])
def _cat(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    operands = [_axes_of(arg, network, values, atoms) for arg in node.args[0]]
    sizes = [_shape_of(arg, network) for arg in node.args[0]]
    dim = _argument(node, 1, 0, "dim") % len(node.shape)
    out: list[Labels] = list(operands[0])
    for axes in operands[1:]:
        for index, axis in enumerate(axes):
            if index != dim and (axis is not None or out[index] is not None):
                out[index] = atoms.unite(out[index], axis, node.name)
    out[dim] = None
    if any(axes[dim] is not None for axes in operands):
        out[dim] = np.concatenate(
            [_tracked(axes[dim], size[dim], atoms, node) for axes, size in zip(operands, sizes, strict=True)]
        )
    return tuple(out)


def _tracked(labels: Labels, size: int, atoms: Atoms, node: Node) -> NDArray[np.int64]:
    if labels is not None:
        return labels
    fixed = atoms.new(size)
    atoms.lock(fixed, f"is a fixed part of the concatenation {node.name}")
    return fixed


@_rule(["stack"])
def _stack(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    operands = [list(_axes_of(arg, network, values, atoms)) for arg in node.args[0]]
    out = operands[0]
    for axes in operands[1:]:
        for index, axis in enumerate(axes):
            if axis is not None or out[index] is not None:
                out[index] = atoms.unite(out[index], axis, node.name)
    dim = _argument(node, 1, 0, "dim") % len(node.shape)
    return (*out[:dim], None, *out[dim:])


@_rule(["pad", "constant_pad_nd"])
def _pad(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = list(_axes_of(node.args[0], network, values, atoms))
    amounts = node.args[1]
    constant = node.op == "constant_pad_nd" or _argument(node, 2, "constant", "mode") == "constant"
    for index in range(len(amounts) // 2):
        before, after = amounts[2 * index : 2 * index + 2]
        axis = len(axes) - 1 - index
        labels = axes[axis]
        if labels is None or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0 or not constant:
            atoms.lock(labels, f"is cropped or mirrored at {node.name}")
            axes[axis] = None
            continue
        axes[axis] = np.concatenate([atoms.new(before), labels, atoms.new(after)])
    return tuple(axes)


@_rule(["reshape", "flatten.using_ints", "unflatten.int"])
def _reshape(node: Node, network: Network, values: ValueAxes, atoms: Atoms) -> Axes:
    axes = _axes_of(node.args[0], network, values, atoms)
    shape = _shape_of(node.args[0], network)
    out: list[Labels] = [None] * len(node.shape)
    for sources, targets in _matching_axes(shape, node.shape):
        tracked = [index for index in sources if axes[index] is not None]
        if not tracked:
            continue
        if len(targets) == 1 and len(tracked) == 1:
            (source,) = tracked
            out[targets[0]] = _merged(
                axes[source], [shape[index] for index in sources], sources.index(source)
            )
        elif len(sources) == 1 and (place := _followed(node, network, targets, atoms)) is not None:
            sizes = [node.shape[index] for index in targets]
            out[targets[place]] = _along(axes[sources[0]], sizes, place, node.name, atoms)
        else:
            for index in tracked:
                atoms.lock(axes[index], f"{_SPLIT} at {node.name}")
    return tuple(out)


def _attends(node: Node, network: Network) -> bool:
    """Return whether a reshape makes the heads of an attention: moves of data lead from it to a product."""
    reached, frontier = {node.name}, [node.name]
    while frontier:
        for user in network.users[frontier.pop()]:
            if user in reached:
                continue
            op = network.by_name[user].op
            if op in _ATTENTIONS:
                return True
            if op in _ON_THE_WAY_TO_HEADS:
                reached.add(user)
                frontier.append(user)
    return False


def _followed(node: Node, network: Network, targets: list[int], atoms: Atoms) -> int | None:
    """Return on which of the axes that one is split into channels are followed, as a place in `targets`.

    It is the heads' axis of an attention, the last but one, elsewhere the longest. Axes whose parts are taken
    one by one, such as queries, keys and values, are none.
    """
    taken = _taken_apart(node, network, atoms)
    places = [place for place, index in enumerate(targets) if index not in taken]
    if not places:
        return None
    if _attends(node, network):
        return places[max(0, len(places) - 2)]
    return max(places, key=lambda place: (node.shape[targets[place]], place))


def _taken_apart(node: Node, network: Network, atoms: Atoms) -> set[Any]:
    """Return the axes of a value of which single indices are selected later, by moves of data alone."""
    found: set[Any] = set()
    frontier: list[tuple[str, Any]] = [(node.name, tuple(range(len(node.shape))))]
    while frontier:
        name, axes = frontier.pop()
        for user in (network.by_name[one] for one in network.users[name]):
            if user.op in _TAKE_APART:
                found.add(axes[_argument(user, 1, 0) % len(axes)])
            elif user.op in _REARRANGE:
                frontier.append((user.name, _rearranged(user, network, {name: axes}, atoms)))
    return found


def _along(labels: Labels, sizes: list[int], place: int, where: str, atoms: Atoms) -> Labels:
    """Return the atoms of one of the axes that an axis is split into: what has one index there leaves
    together.

    Of an attention it is the axis of the heads, the last but one: the channels of a head leave together, and
    where queries, keys and values lie side by side, all three.
    """
    assert labels is not None
    rows = np.moveaxis(labels.reshape(sizes), place, 0).reshape(sizes[place], -1)
    _unite_columns(rows, atoms, where)
    return rows[:, 0]


def _merged(labels: Labels, sizes: list[int], position: int) -> Labels:
    """Return the atoms of an axis that several are flattened into, one of which has atoms."""
    assert labels is not None
    view = [1] * len(sizes)
    view[position] = sizes[position]
    return np.broadcast_to(labels.reshape(view), sizes).reshape(-1)


def _matching_axes(source: Shape, target: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the finest pairing of runs of axes with equal products; axes of length 1 are left out.

    (1, 6, 4) → (1, 2, 3, 4) gives ([1], [1, 2]) and ([2], [3]).
    """
    sources = [index for index, size in enumerate(source) if size != 1]
    targets = [index for index, size in enumerate(target) if size != 1]
    while sources and targets:
        left, right = [sources.pop(0)], [targets.pop(0)]
        left_size, right_size = source[left[0]], target[right[0]]
        while left_size != right_size:
            if left_size < right_size:
                left.append(sources.pop(0))
                left_size *= source[left[-1]]
            else:
                right.append(targets.pop(0))
                right_size *= target[right[-1]]
        yield left, right
