"""One convolution or linear layer becomes a chain of them: shared by all transforms that do this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.network import Network, Node, Param, ParamSpec, Ref, Shape, Weights
from autocompress.graph.operations import EMBEDDING, PRODUCERS, TRANSPOSED

_PLAIN = frozenset({"linear", EMBEDDING})
_ORDER = ("stride", "padding", "dilation", "groups")
_TRANSPOSED_ORDER = ("stride", "padding", "output_padding", "groups", "dilation")


@dataclass(frozen=True)
class ConvArgs:
    """The arguments of a convolution with the defaults filled in, one number for each spatial axis.

    A transposed one has an `output_padding`, others have none.
    """

    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...] = ()


def weight_param(node: Node) -> Param | None:
    """Return the weight of a layer; None where it is computed in `forward()`."""
    weight = node.args[0 if node.op == EMBEDDING else 1]
    return weight if isinstance(weight, Param) else None


def uses_of(network: Network, layer: str) -> tuple[Node, ...]:
    """Return the nodes that have a layer's weight as theirs, itself among them, in execution order."""
    weight = weight_param(network.by_name[layer])
    if weight is None:
        return (network.by_name[layer],)
    readers = (network.by_name[name] for name in network.param_users[weight.name])
    return tuple(node for node in readers if node.op in PRODUCERS and weight_param(node) == weight)


def output_axis(node: Node) -> int:
    """Return which axis of its weight has the outputs of a layer."""
    return 1 if node.op in TRANSPOSED or node.op == EMBEDDING else 0


def input_axis(node: Node) -> int:
    """Return which axis of its weight has the channels that a layer reads; -1 where it reads none."""
    return -1 if node.op == EMBEDDING else 1 - output_axis(node)


def groups_of(node: Node) -> int:
    """Return the groups of a convolution; a linear layer has one."""
    return 1 if node.op in _PLAIN else int(conv_args(node).groups)


def bias_of(node: Node) -> Any:
    """Return the bias argument of a convolution or linear layer; None without one."""
    if node.op == EMBEDDING:
        return None
    return node.args[2] if len(node.args) > 2 else None


def channel_axis(node: Node) -> int:
    """Return which axis of its output has the channels of a convolution or linear layer."""
    return -1 if node.op in _PLAIN else 1


def conv_args(node: Node) -> ConvArgs:
    """Return the arguments of a convolution; integers stand for all axes. `padding` may be 'same' or
    'valid'."""
    rank = len(node.shape) - 2
    names = _TRANSPOSED_ORDER if node.op in TRANSPOSED else _ORDER
    said = dict(zip(names, node.args[3:], strict=False)) | dict(node.kwargs)
    padding: Any = said.get("padding", 0)
    return ConvArgs(
        _for_each_axis(said.get("stride", 1), rank),
        padding if isinstance(padding, str) else _for_each_axis(padding, rank),
        _for_each_axis(said.get("dilation", 1), rank),
        int(said.get("groups", 1)),  # type: ignore[call-overload]
        _for_each_axis(said.get("output_padding", 0), rank) if node.op in TRANSPOSED else (),
    )


def _for_each_axis(value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


def convolution_op(conv: ConvArgs) -> str:
    """Return the operation of a convolution with these arguments."""
    rank = len(conv.stride)
    if conv.output_padding:
        return f"conv_transpose{rank}d" + (".input" if rank > 1 else "")
    name = f"conv{rank}d"
    return f"{name}.padding" if isinstance(conv.padding, str) else name


@dataclass(frozen=True)
class Link:
    """One layer of the chain. `suffix` names it below the replaced layer; the last has none.

    For a convolution `weight_shape` is `(out, in / groups, *kernel)`, for a transposed one
    `(in, out / groups, *kernel)`, for a linear layer `(out, in)`.
    `value` is the weight itself, or None when only shapes are wanted.
    """

    suffix: str
    weight_shape: Shape
    value: NDArray[Any] | None
    conv: ConvArgs | None = None


def replace_by_chain(
    network: Network, weights: Weights | None, layer: str, chain: Sequence[Link]
) -> tuple[Network, Weights | None]:
    """Replace `layer` by the chain, and likewise the other layers with its weight, with the same factors.

    The bias and the name of each go to its last link, its bits to all.
    """
    weight = network.by_name[layer].params[0]
    params = {name: spec for name, spec in network.params.items() if name != weight}
    values = None if weights is None else {k: v for k, v in weights.items() if k != weight}
    names = [weight if link is chain[-1] else f"{layer}.{link.suffix}.weight" for link in chain]
    for name, link in zip(names, chain, strict=True):
        params[name] = ParamSpec(link.weight_shape)
        if values is not None:
            assert link.value is not None
            values[name] = np.ascontiguousarray(link.value, dtype=np.float32)
    become = {use.name: _chain_of(network, use, chain, names) for use in uses_of(network, layer)}
    nodes = tuple(new for node in network.nodes for new in become.get(node.name, [node]))
    return replace(network, nodes=nodes, params=params), values


def _chain_of(network: Network, old: Node, chain: Sequence[Link], weights: Sequence[str]) -> list[Node]:
    """Return the nodes that one layer becomes."""
    nodes: list[Node] = []
    source: Any = old.args[1 if old.op == EMBEDDING else 0]
    shape = network.shape_of(source.node)
    for link, weight in zip(chain, weights, strict=True):
        last = link is chain[-1]
        name = old.name if last else f"{old.name}.{link.suffix}"
        if old.op == EMBEDDING and not last:
            shape = (*shape, link.weight_shape[1])
            nodes.append(old.but(name=name, args=(Param(weight), *old.args[1:]), shape=shape))
        else:
            shape = old.shape if last else _output_shape(shape, link)
            nodes.append(_node(old, name, source, weight, bias_of(old) if last else None, link, shape))
        source = Ref(name)
    return nodes


def _node(old: Node, name: str, source: Any, weight: str, bias: Any, link: Link, shape: Shape) -> Node:
    if link.conv is None:
        return old.but(name=name, op="linear", args=(source, Param(weight), bias), shape=shape, kwargs=())
    conv = link.conv
    args: tuple[Any, ...] = (source, Param(weight), bias, conv.stride, conv.padding)
    if conv.output_padding:
        args = (*args, conv.output_padding, conv.groups, conv.dilation)
    else:
        args = (*args, conv.dilation, conv.groups)
    return old.but(name=name, op=convolution_op(conv), args=args, shape=shape, kwargs=())


def _output_shape(shape: Shape, link: Link) -> Shape:
    if link.conv is None:
        return (*shape[:-1], link.weight_shape[0])
    return output_shape(shape, link.weight_shape, link.conv)


def output_shape(shape: Shape, weight_shape: Shape, conv: ConvArgs) -> Shape:
    """Return the shape of the output of a convolution with this weight that reads `shape`."""
    if conv.output_padding:
        sizes = tuple(
            (size - 1) * stride - 2 * pad + dilation * (kernel - 1) + more + 1
            for size, pad, dilation, kernel, stride, more in zip(
                shape[2:],
                conv.padding,
                conv.dilation,
                weight_shape[2:],
                conv.stride,
                conv.output_padding,
                strict=True,
            )
        )
        return (shape[0], weight_shape[1] * conv.groups, *sizes)
    if conv.padding == "same":
        sizes = shape[2:]
    else:
        pads = (0,) * len(conv.stride) if isinstance(conv.padding, str) else conv.padding
        sizes = tuple(
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                shape[2:], pads, conv.dilation, weight_shape[2:], conv.stride, strict=True
            )
        )
    return (shape[0], weight_shape[0], *sizes)


def pointwise(rank: int) -> ConvArgs:
    """Return the arguments of a 1×1 convolution over so many spatial axes."""
    return ConvArgs((1,) * rank, (0,) * rank, (1,) * rank, 1)


POINTWISE = pointwise(2)
