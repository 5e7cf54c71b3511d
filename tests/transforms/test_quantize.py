"""The plan on networks written by hand, and the arithmetic of weights and ranges."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from autocompress.graph.module import build
from autocompress.graph.module import fake_quantize_weight as fake_quantize_in_torch
from autocompress.graph.network import INPUT, Network, Node, Param, ParamSpec, Quantizer, Ref
from autocompress.transforms.families.quantize import (
    dequantize_weight,
    fake_quantize_weight,
    least_weight_scale,
    plan,
    quantize_weight,
    runs_in_int8,
    with_ranges,
)

MAP = (1, 4, 8, 8)


def conv(name: str, source: str, bits: int = 8) -> Node:
    return Node(name, "conv2d", (Ref(source), Param(f"{name}.weight"), None), MAP, bits=bits)


def linear(name: str, source: str, bits: int = 8) -> Node:
    return Node(name, "linear", (Ref(source), Param(f"{name}.weight")), (1, 4), bits=bits)


def op(name: str, op_name: str, *sources: str, extra: tuple[object, ...] = (), shape: object = MAP) -> Node:
    return Node(name, op_name, (*map(Ref, sources), *extra), shape)  # type: ignore[arg-type]


def network(*nodes: Node) -> Network:
    params = {name: ParamSpec((4, 4, 1, 1)) for node in nodes for name in node.params}
    return Network(MAP, nodes, nodes[-1].name, params)


def test_nothing_is_planned_without_8_bit_layers() -> None:
    assert plan(network(conv("a", INPUT, 32), op("r", "relu", "a"), conv("b", "r", 32))) == frozenset()


def test_activation_that_clips_carries_the_quantizer_of_the_layer_before_it() -> None:
    chain = network(conv("a", INPUT), op("r", "relu", "a"), conv("b", "r"))
    assert plan(chain) == {INPUT, "r", "b"}


@pytest.mark.parametrize("activation", ["hardswish", "silu", "gelu"])
def test_activation_that_does_not_clip_reads_a_rounded_convolution(activation: str) -> None:
    assert plan(network(conv("a", INPUT), op("h", activation, "a"), conv("b", "h"))) == {INPUT, "a", "h", "b"}


def test_hardtanh_carries_only_when_it_clips_at_zero() -> None:
    def chain(low: float) -> Network:
        return network(conv("a", INPUT), op("h", "hardtanh", "a", extra=(low, 6.0)), conv("b", "h"))

    assert plan(chain(0.0)) == {INPUT, "h", "b"}
    assert plan(chain(-1.0)) == {INPUT, "a", "h", "b"}


def test_relu_that_is_not_the_only_reader_does_not_carry() -> None:
    block = network(
        conv("a", INPUT),
        op("r", "relu", "a"),
        conv("b", "r"),
        op("s", "add.Tensor", "a", "b"),
        conv("c", "s"),
    )
    assert plan(block) == {INPUT, "a", "r", "b", "s", "c"}


def residual(bits_of_second: int) -> Network:
    return network(
        conv("stem", INPUT),
        op("r0", "relu", "stem"),
        conv("a", "r0"),
        op("r1", "relu", "a"),
        conv("b", "r1", bits_of_second),
        op("sum", "add.Tensor", "b", "r0"),
        op("r2", "relu", "sum"),
        op("pool", "mean.dim", "r2", extra=((2, 3),), shape=(1, 4)),
        linear("fc", "pool"),
    )


def test_residual_block_stays_in_integers_and_logits_are_floats() -> None:
    assert plan(residual(8)) == {INPUT, "r0", "r1", "b", "r2", "pool"}


def test_float_layer_before_a_sum_of_integers_is_rounded_for_the_sum() -> None:
    """conv `b` has 32 bits and reads r1, which then needs no integers beyond those conv `a` writes."""
    planned = plan(residual(32))
    assert {"r0", "r1", "pool"} <= planned
    assert "fc" not in planned and "sum" not in planned


def test_float_stretch_is_left_alone() -> None:
    stretch = network(
        conv("a", INPUT, 32),
        op("r", "relu", "a"),
        conv("b", "r", 32),
        op("s", "add.Tensor", "r", "b"),
        conv("c", "s"),
        op("g", "mean.dim", "c", extra=((2, 3),), shape=(1, 4)),
        linear("fc", "g", 32),
    )
    assert plan(stretch) == {"s", "c", "g"}


def test_sum_with_a_constant_is_not_an_integer_kernel() -> None:
    shifted = Node("s", "add.Tensor", (Ref("a"), Param("shift")), MAP)
    assert plan(network(conv("a", INPUT), shifted, conv("b", "s"))) == {INPUT, "a", "s", "b"}
    assert plan(network(conv("a", INPUT), shifted, op("r", "relu", "s"), linear("b", "r", 32))) == {
        INPUT,
        "a",
    }


def test_moved_data_keeps_the_quantizer_of_its_source() -> None:
    moved = network(
        conv("a", INPUT),
        op("pool", "max_pool2d", "a", extra=((2, 2),)),
        op("parts", "split.Tensor", "pool", extra=(2, 1), shape=(MAP, MAP)),
        op("left", "getitem", "parts", extra=(0,)),
        op("right", "getitem", "parts", extra=(1,)),
        Node("joined", "cat", ((Ref("left"), Ref("right")), 1), MAP),
        conv("b", "joined"),
    )
    planned = plan(moved)
    assert planned == {INPUT, "a", "pool", "left", "right", "joined", "b"}
    ranges = {name: (-float(place), 10.0) for place, name in enumerate(sorted(planned))}
    quantized = with_ranges(moved, ranges)
    chosen = {name: quantized.quantizer_of(name) for name in planned}
    assert chosen["a"] == chosen["pool"] == chosen["left"] == chosen["right"]
    assert chosen["joined"] == chosen["a"]


def test_squeeze_and_excitation_stays_in_integers() -> None:
    block = network(
        conv("a", INPUT),
        op("act", "hardswish", "a"),
        op("mean", "mean.dim", "act", extra=((2, 3), True), shape=(1, 4, 1, 1)),
        conv("fc", "mean"),
        op("gate", "hardsigmoid", "fc"),
        op("scaled", "mul.Tensor", "act", "gate"),
        conv("b", "scaled"),
    )
    assert plan(block) == {INPUT, "a", "act", "mean", "fc", "gate", "scaled", "b"}


def test_ranges_become_quantizers_and_replace_earlier_ones() -> None:
    chain = network(conv("a", INPUT), op("r", "relu", "a"), conv("b", "r"))
    stale = [replace(node, quantizer=Quantizer(1.0, 1)) for node in chain.nodes]
    quantized = with_ranges(chain.with_nodes(stale), {INPUT: (-1.0, 1.55), "r": (0.5, 5.1), "b": (-3, -1)})
    assert quantized.input_quantizer == Quantizer(float(np.float32(0.01)), 100)
    assert quantized.by_name["r"].quantizer == Quantizer(float(np.float32(0.02)), 0)
    assert quantized.by_name["b"].quantizer == Quantizer(float(np.float32(3 / 255)), 255)
    assert quantized.by_name["a"].quantizer is None
    assert [runs_in_int8(quantized, quantized.by_name[name]) for name in ("a", "b")] == [True, True]


@pytest.mark.parametrize("given", [{}, {INPUT: (0.0, math.nan)}, {INPUT: (0.0, math.inf)}])
def test_missing_or_infinite_range_is_an_error(given: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="'input'"):
        with_ranges(network(linear("a", INPUT)), given)


def test_constant_zero_gets_a_positive_scale() -> None:
    quantized = with_ranges(network(linear("a", INPUT)), {INPUT: (0.0, 0.0)})
    assert quantized.input_quantizer is not None and quantized.input_quantizer.scale > 0


def test_weight_by_hand() -> None:
    integers, scale = quantize_weight(np.array([[1.27, -0.634, 0.006], [0, 0, 0]], np.float32))
    np.testing.assert_allclose(scale, [0.01, 1e-12], rtol=1e-6)
    np.testing.assert_array_equal(integers, [[127, -63, 1], [0, 0, 0]])


@pytest.mark.parametrize("axis", [0, 1])
def test_quantizing_again_gives_the_same_integers(axis: int) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 24, 3)).astype(np.float32)
    integers, scale = quantize_weight(weight, axis)
    assert scale.shape == (weight.shape[axis],)
    again, scale_again = quantize_weight(dequantize_weight(integers, scale, axis), axis)
    np.testing.assert_array_equal(again, integers)
    np.testing.assert_allclose(scale_again, scale, rtol=3e-7)


def test_error_is_at_most_half_a_step() -> None:
    weight = np.random.default_rng(1).normal(size=(8, 50)).astype(np.float32)
    integers, scale = quantize_weight(weight)
    error = np.abs(dequantize_weight(integers, scale) - weight)
    assert (error <= scale[:, None] * 0.5001).all()
    assert (np.abs(integers.astype(int)).max(axis=1) == 127).all()


def test_agrees_with_the_module() -> None:
    weight = np.random.default_rng(2).normal(size=(16, 3, 3, 3)).astype(np.float32)
    expected = fake_quantize_in_torch(torch.from_numpy(weight)).numpy()
    np.testing.assert_allclose(fake_quantize_weight(weight), expected, rtol=1e-6, atol=1e-7)


def test_bias_fits_into_int32() -> None:
    bias = np.array([1000.0, 0.0], np.float32)
    least = least_weight_scale(bias, input_scale=1e-3)
    _, scale = quantize_weight(np.full((2, 4), 1e-9, np.float32), least_scale=least)
    assert (np.abs(bias / (1e-3 * scale)) <= 2**30 * 1.001).all()
    assert least_weight_scale(None, 1.0) == 0.0


def test_values_are_rounded_alike_with_and_without_gradients():
    """Half-way values, values out of range and signed zeros included."""
    rounding = replace(network(op("relu", "relu", INPUT)), input_quantizer=Quantizer(0.1, 77))
    module = build(rounding, {})
    halves = (torch.arange(-120, 300) + 0.5) * 0.1
    drawn = 20 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    value = torch.cat([halves, drawn, torch.tensor([0.0, -0.0])])
    with torch.no_grad():
        fast = module.rounded_input(value)
    assert torch.equal(fast, module.rounded_input(value))
