"""One convolution or linear layer becomes a chain of them: shared by all transforms that do this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.network import Network, Node, Param, ParamSpec, Ref, Shape, Weights


@dataclass(frozen=True)
class ConvArgs:
    """The arguments of a `conv2d` node with the defaults filled in."""

    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int


def groups_of(node: Node) -> int:
    """Return the groups of a convolution; a linear layer has one."""
    return 1 if node.op == "linear" else int(conv_args(node).groups)


def bias_of(node: Node) -> Any:
    """Return the bias argument of a convolution or linear layer; None without one."""
    return node.args[2] if len(node.args) > 2 else None


def channel_axis(node: Node) -> int:
    """Return which axis of its output has the channels of a convolution or linear layer."""
    return -1 if node.op == "linear" else 1


def conv_args(node: Node) -> ConvArgs:
    """Arguments of a convolution; integers stand for both axes. `padding` may be 'same' or 'valid'."""
    defaults: tuple[Any, ...] = (1, 0, 1, 1)
    given = (*node.args[3:7], *defaults[len(node.args[3:7]) :])
    keywords = dict(node.kwargs)
    names = ("stride", "padding", "dilation", "groups")
    stride, padding, dilation, groups = (
        keywords.get(name, value) for name, value in zip(names, given, strict=True)
    )
    return ConvArgs(
        _pair(stride), padding if isinstance(padding, str) else _pair(padding), _pair(dilation), groups
    )


def _pair(value: Any) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value, value)
    return tuple(value) * 2 if len(value) == 1 else tuple(value)


@dataclass(frozen=True)
class Link:
    """One layer of the chain. `suffix` names it below the replaced layer; the last has none.

    For a convolution `weight_shape` is `(out, in / groups, kh, kw)`, for a linear layer `(out, in)`.
    `value` is the weight itself, or None when only shapes are wanted.
    """

    suffix: str
    weight_shape: Shape
    value: NDArray[Any] | None
    conv: ConvArgs | None = None


def replace_by_chain(
    network: Network, weights: Weights | None, layer: str, chain: Sequence[Link]
) -> tuple[Network, Weights | None]:
    """`layer` becomes the chain; its bias and its name go to the last link, its bits to all."""
    old = network.by_name[layer]
    params = {name: spec for name, spec in network.params.items() if name != old.args[1].name}
    values = None if weights is None else {k: v for k, v in weights.items() if k != old.args[1].name}
    new_nodes: list[Node] = []
    source: Any = old.args[0]
    shape = network.shape_of(source.node)
    for link in chain:
        last = link is chain[-1]
        name = layer if last else f"{layer}.{link.suffix}"
        weight_name = f"{name}.weight" if not last else old.args[1].name
        params[weight_name] = ParamSpec(link.weight_shape)
        if values is not None:
            assert link.value is not None
            values[weight_name] = np.ascontiguousarray(link.value, dtype=np.float32)
        shape = old.shape if last else _output_shape(shape, link)
        bias = bias_of(old) if last else None
        new_nodes.append(_node(old, name, source, weight_name, bias, link, shape))
        source = Ref(name)
    nodes = tuple(new for node in network.nodes for new in (new_nodes if node.name == layer else [node]))
    return replace(network, nodes=nodes, params=params), values


def _node(old: Node, name: str, source: Any, weight: str, bias: Any, link: Link, shape: Shape) -> Node:
    if link.conv is None:
        return old.but(name=name, op="linear", args=(source, Param(weight), bias), shape=shape, kwargs=())
    conv = link.conv
    op = "conv2d.padding" if isinstance(conv.padding, str) else "conv2d"
    args = (source, Param(weight), bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return old.but(name=name, op=op, args=args, shape=shape, kwargs=())


def _output_shape(shape: Shape, link: Link) -> Shape:
    if link.conv is None:
        return (*shape[:-1], link.weight_shape[0])
    return output_shape(shape, link.weight_shape, link.conv)


def output_shape(shape: Shape, weight_shape: Shape, conv: ConvArgs) -> Shape:
    """Of a convolution with this weight that reads `shape`."""
    if conv.padding == "same":
        sizes = shape[2:]
    else:
        pads = (0, 0) if isinstance(conv.padding, str) else conv.padding
        sizes = tuple(
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                shape[2:], pads, conv.dilation, weight_shape[2:], conv.stride, strict=True
            )
        )
    return (shape[0], weight_shape[0], *sizes)


POINTWISE = ConvArgs((1, 1), (0, 0), (1, 1), 1)
