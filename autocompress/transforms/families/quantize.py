"""Static 8-bit quantization: which values are rounded, with which scale, and the weights' integers.

Activations are uint8, affine, one scale a tensor; weights int8, symmetric, one scale an output
channel; biases int32 with scale input x weight (Jacob et al. 2018, arXiv:1712.05877). The plan says
where a runtime needs a rounded value to run integer kernels, and is used alike for pricing,
calibration, training and export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.graph.levels import ACTIVATION_LEVELS, BIAS_LIMIT, LEAST_SCALE, WEIGHT_LEVELS
from autocompress.graph.network import (
    BINARIZE,
    INPUT,
    XNOR,
    Grid,
    Network,
    Node,
    Param,
    ParamSpec,
    Quantizer,
    Ref,
    Weights,
    grid_form,
    unique_name,
)
from autocompress.graph.operations import CONVOLUTIONS, LAYERS, EightBits, known
from autocompress.problem.candidate import Option
from autocompress.transforms.families.low_bit import fit_steps, integers_of, levels_of, step_count

_ARITHMETIC = frozenset({"add.Tensor", "mul.Tensor"})
_TRANSPARENT = (EightBits.MOVES, EightBits.JOINS)


def runs_in_int8(network: Network, node: Node) -> bool:
    """Return whether this layer computes in 8 bits: it is meant to, and its input carries a quantizer."""
    return _wants_int8(node) and network.quantizer_of(node.inputs[0]) is not None


def weights_in_int8(network: Network) -> frozenset[str]:
    """Return the names of the weights that nothing but 8-bit layers reads."""
    names = set()
    for node in network.nodes:
        if not runs_in_int8(network, node):
            continue
        weight = node.args[1]
        assert isinstance(weight, Param)
        users = (network.by_name[user] for user in network.param_users[weight.name])
        if all(runs_in_int8(network, user) and user.args[1] == weight for user in users):
            names.add(weight.name)
    return frozenset(names)


def plan(
    network: Network, known: frozenset[str] = frozenset(), follows: bool | None = None
) -> frozenset[str]:
    """Return the values (`INPUT` among them) that must carry a quantizer, given the nodes' `bits`.

    The inputs of 8-bit layers and the outputs of 8-bit convolutions are rounded, the latter after an
    activation that clips, which then costs nothing. Additions, products, poolings and operations
    that only move data are rounded where that keeps the values between 8-bit layers in integers.
    Floating-point layers in between read and write floats. Empty when nothing has 8 bits.

    Of a section of a larger network, `known` are the values at its ends that carry one anyway, and `follows`
    says whether what reads its output works on integers.
    """
    planned = set(known)
    for node in network.nodes:
        if _wants_int8(node):
            planned.add(node.inputs[0])
            if node.op in CONVOLUTIONS:
                planned.add(carrier(network, node))
    if not planned:
        return frozenset()
    joining = [node for node in network.nodes if _joins(network, node)]
    rounded_first = [node for node in reversed(joining) if _is_rounded_first(network, node)]
    size = -1
    while len(planned) != size:
        size = len(planned)
        planned.update(node.inputs[0] for node in rounded_first if node.name in planned)
        for node in joining:
            planned |= _joined(network, node, planned, follows)
    return frozenset(planned)


def with_ranges(
    network: Network, ranges: Mapping[str, tuple[float, float]], planned: frozenset[str] | None = None
) -> Network:
    """Return the network with a quantizer on every value of its plan, and on no other.

    `ranges` gives (lowest, highest) for each value of `plan(network)`, which `planned` is where it is
    known; others are ignored. A range is widened to include 0, which is then exact. Raises ValueError
    for a missing or non-finite range.
    """
    if planned is None:
        planned = plan(network)
    chosen: dict[str, Quantizer] = {}
    for name in (INPUT, *(node.name for node in network.nodes)):
        if name in planned:
            inherited = _inherited(network, name, chosen)
            chosen[name] = _quantizer(network, name, ranges) if inherited is None else inherited
    nodes = [
        node if node.quantizer is chosen.get(node.name) else node.but(quantizer=chosen.get(node.name))
        for node in network.nodes
    ]
    return replace(network.with_nodes(nodes), input_quantizer=chosen.get(INPUT))


def with_bits(
    network: Network, weights: Weights | None, chosen: Mapping[str, Option]
) -> tuple[Network, Weights | None]:
    """Return the network with the named layers in these bits; names of nothing that has a weight are passed
    over.

    Below 8 bits a layer computes in 8 and its weight is on a grid, whose steps become a parameter,
    fitted to the weight. `xnor` is a binary weight behind a `binarize`, whose step calibration is to find,
    where what the layer reads is never negative; elsewhere a binary weight alone.
    """
    params, fitted = dict(network.params), None if weights is None else dict(weights)
    nodes: list[Node] = []
    steps: dict[str, str] = {}
    for node in network.nodes:
        option = chosen.get(node.name, 32)
        if option == 32 or node.op not in LAYERS or not isinstance(node.args[1], Param):
            nodes.append(node)
            continue
        form = grid_form(option)
        if form is None:
            nodes.append(node.but(bits=int(option)))
            continue
        weight = node.args[1].name
        if option == XNOR and never_negative(network, node.inputs[0]):
            binarize = _binarize(network, node, params)
            if fitted is not None:
                fitted[binarize.params[0]] = np.ones(1, np.float32)
            nodes.append(binarize)
            node = node.but(args=(Ref(binarize.name), *node.args[1:]))
        if weight not in steps:
            step = steps[weight] = unique_name(f"{weight}_step", params)
            params[step] = ParamSpec((step_count(form, params[weight].shape[0]),))
            if fitted is not None:
                fitted[step] = fit_steps(fitted[weight], form)
        nodes.append(node.but(bits=8, grid=Grid(form, steps[weight])))
    return replace(network, nodes=tuple(nodes), params=params), fitted


def _binarize(network: Network, node: Node, params: dict[str, ParamSpec]) -> Node:
    """Return what makes the input of a layer binary; add its step to `params`."""
    step = unique_name(f"{node.name}.input_step", params)
    params[step] = ParamSpec((1,))
    source = node.inputs[0]
    name = unique_name(f"{node.name}.{BINARIZE}", network.by_name)
    return Node(name, BINARIZE, (Ref(source), Param(step)), network.shape_of(source), module=node.module)


def never_negative(network: Network, value: str) -> bool:
    """Return whether a value cannot be below zero, by the operations that make it."""
    node = network.by_name.get(value)
    if node is None:
        return False
    if known(node.op).keeps_sign:
        return all(never_negative(network, name) for name in node.inputs)
    return makes_not_negative(node)


def makes_not_negative(node: Node) -> bool:
    """Return whether the output of an operation is never below zero, whatever it reads."""
    return known(node.op).never_negative or _clips_at_zero(node)


def layer_integers(
    node: Node, weights: Weights, least_scale: NDArray[Any] | float = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return what an 8-bit layer computes with: its weight's integers and the scale of each output
    channel."""
    weight = weights[node.args[1].name]
    if node.grid is None:
        return quantize_weight(weight, least_scale=least_scale)
    steps, form = weights[node.grid.step], node.grid.form
    return integers_of(levels_of(weight, steps, form), steps, form, least_scale)


def quantize_weight(
    weight: NDArray[Any], axis: int = 0, least_scale: NDArray[Any] | float = 0.0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the symmetric int8 integers of a weight, and the scale of each slice along `axis`.

    The scale is the largest magnitude / 127, but at least `least_scale`. Quantizing what
    `dequantize_weight` gives back yields the same integers, and scales equal to the last bit or two.
    """
    flat = np.moveaxis(weight, axis, 0).astype(np.float32).reshape(weight.shape[axis], -1)
    scale = np.abs(flat).max(axis=1, initial=0) / np.float32(WEIGHT_LEVELS)
    scale = np.maximum(np.maximum(scale, least_scale), LEAST_SCALE).astype(np.float32)
    column = np.expand_dims(scale, tuple(range(1, weight.ndim)))
    column = np.moveaxis(column, 0, axis)
    integers = np.rint(weight.astype(np.float32) / column)
    return np.clip(integers, -WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8), scale


def dequantize_weight(
    integers: NDArray[np.int8], scale: NDArray[np.float32], axis: int = 0
) -> NDArray[np.float32]:
    """Return the float32 values that the integers stand for."""
    column = np.expand_dims(scale, tuple(range(1, integers.ndim)))
    return integers.astype(np.float32) * np.moveaxis(column, 0, axis)


def fake_quantize_weight(weight: NDArray[Any], axis: int = 0) -> NDArray[np.float32]:
    """Return the weight as an 8-bit layer uses it."""
    return dequantize_weight(*quantize_weight(weight, axis), axis)


def least_weight_scale(bias: NDArray[Any] | None, input_scale: float) -> NDArray[np.float64] | float:
    """Return the smallest weight scales with which the bias fits into 31 bits of `input_scale` x weight
    scale.

    Matters for channels whose weights are all but zero and whose bias is not.
    """
    return 0.0 if bias is None else np.abs(bias.astype(np.float64)) / (input_scale * BIAS_LIMIT)


def _wants_int8(node: Node) -> bool:
    if node.bits != 8 or node.op not in LAYERS:
        return False
    return isinstance(node.args[0], Ref) and isinstance(node.args[1], Param)


def carrier(network: Network, node: Node) -> str:
    """Return the value at which the result of `node` is rounded, if it is: that of a clipping activation that
    alone reads it, or its own."""
    users = network.users[node.name]
    if len(users) == 1 and node.name not in network.outputs and _clips_at_zero(network.by_name[users[0]]):
        return users[0]
    return node.name


def _clips_at_zero(node: Node) -> bool:
    if node.op == "hardtanh":
        return len(node.args) > 1 and node.args[1] == 0
    return node.op in ("relu", "relu6")


def _joined(network: Network, node: Node, planned: set[str], follows: bool | None) -> set[str]:
    """Return the values to round because of `node`, which joins, given those that are planned already."""
    sources = _operands(network, node)
    target = carrier(network, node) if node.op in _ARITHMETIC else node.name
    if node.op in _ARITHMETIC and target in planned and planned.intersection(sources):
        return set(sources)
    at_end = target in network.outputs
    if (at_end and follows is None) or not planned.issuperset(sources):
        return set()
    leads_on = (at_end and follows) or reads_integers(network, target)
    return {target} if leads_on or _is_global_pool(node) else set()


def _is_rounded_first(network: Network, node: Node) -> bool:
    """Return whether data that are moved and then rounded are better rounded and then moved."""
    source = node.inputs[0]
    alone = network.users[source] == (node.name,) and source not in network.outputs
    return known(node.op).rounds_first and alone


def reads_integers(network: Network, value: str) -> bool:
    """Return whether something that reads a value works on integers where it can."""
    return any(_works_on_integers(network, network.by_name[user]) for user in network.users[value])


def _works_on_integers(network: Network, node: Node) -> bool:
    return _wants_int8(node) or known(node.op).splits or _joins(network, node)


def _joins(network: Network, node: Node) -> bool:
    row = known(node.op)
    if (
        row.in_8_bits not in _TRANSPARENT
        or row.splits
        or not node.inputs
        or _reads_float_params(network, node)
    ):
        return False
    if node.op in _ARITHMETIC:
        return len(node.inputs) == 2 and not node.kwargs
    if node.op == "mean.dim":
        return _is_global_pool(node)
    return node.op != "getitem" or known(network.by_name[node.inputs[0]].op).splits


def _reads_float_params(network: Network, node: Node) -> bool:
    """Return whether an operand is a constant that would have to be rounded; positions to pick are not."""
    return any(network.params[name].dtype.startswith(("float", "bfloat")) for name in node.params)


def _is_global_pool(node: Node) -> bool:
    if node.op == "mean.dim":
        return len(node.args) > 1 and node.args[1] in ((2, 3), (-2, -1))
    return node.op == "adaptive_avg_pool2d" and node.args[1] in (1, (1,), (1, 1))


def _operands(network: Network, node: Node) -> tuple[str, ...]:
    """Return the values that `node` computes from, seen through a split."""
    return network.by_name[node.inputs[0]].inputs[:1] if node.op == "getitem" else node.inputs


def _inherited(network: Network, name: str, chosen: Mapping[str, Quantizer]) -> Quantizer | None:
    """Return the quantizer that a value takes over: its data were only moved, or joined to others with the
    same."""
    node = network.by_name.get(name)
    if node is None or not (known(node.op).moves_data or known(node.op).concatenates):
        return None
    if not _joins(network, node):
        return None
    first, *others = (chosen.get(operand) for operand in _operands(network, node))
    return first if all(other is first for other in others) else None


def _quantizer(network: Network, name: str, ranges: Mapping[str, tuple[float, float]]) -> Quantizer:
    if name not in ranges or not all(map(isfinite, ranges[name])):
        raise ValueError(f"value {name!r} is to be quantized, but its range is {ranges.get(name)}")
    low, high = (float(bound) for bound in ranges[name])
    low, high = min(low, 0.0), max(high, 0.0)
    if name in network.by_name and network.by_name[name].op == BINARIZE:
        return Quantizer.binary(high)
    scale = float(np.float32(max((high - low) / ACTIVATION_LEVELS, LEAST_SCALE)))
    return Quantizer(scale, min(max(round(-low / scale), 0), ACTIVATION_LEVELS))
