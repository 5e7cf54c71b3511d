"""Kernels of networks written by hand, and of random candidates against what the runtime really runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import onnx
import pytest
from kernel_networks import candidates, network

from autocompress.cost.kernels import Kernel, kernels, macs
from autocompress.cost.layouts import Layouts
from autocompress.device.measure.layout_probe import detect_layouts
from autocompress.device.runtimes.base import get_runtime
from autocompress.export.onnx import to_onnx
from autocompress.graph.network import INPUT, Arg, Network, Node, Param, Quantizer, Ref
from autocompress.transforms.sampling import random_weights

POSITIVE, SIGNED = Quantizer(0.1, 0), Quantizer(0.1, 128)
PLAIN = Layouts(float_block=0, int8_channels_last=False)


def conv(name: str, source: str, channels: int = 16, bits: int = 32, *, groups: int = 1) -> Node:
    args = (Ref(source), Param(f"{name}.weight"), None, (1, 1), (1, 1), (1, 1), groups)
    return Node(name, "conv2d", args, (1, channels, 8, 8), bits=bits)


def relu(name: str, source: str, channels: int = 16) -> Node:
    return Node(name, "relu", (Ref(source),), (1, channels, 8, 8))


def add(name: str, *sources: str, channels: int = 16) -> Node:
    return Node(name, "add.Tensor", tuple(Ref(source) for source in sources), (1, channels, 8, 8))


def quantized(found: Network, quantizers: dict[str, Quantizer]) -> Network:
    nodes = [replace(node, quantizer=quantizers.get(node.name)) for node in found.nodes]
    return replace(found.with_nodes(nodes), input_quantizer=quantizers.get(INPUT))


def described(found: Network, layouts: Layouts = PLAIN) -> list[str]:
    return [f"{kernel.op} {kernel.precision} {'+'.join(kernel.nodes)}" for kernel in kernels(found, layouts)]


def test_a_convolution_in_numbers():
    (kernel,) = kernels(network(conv("c", INPUT, 24)), PLAIN)
    assert kernel == Kernel(
        "conv", "fp32", 16, 24, 8, 8, 3, 3, 1, 1, in_elements=16 * 64, out_elements=24 * 64, nodes=("c",)
    )
    assert (kernel.macs, kernel.weights) == (8 * 8 * 24 * 16 * 9, 24 * 16 * 9)


def test_a_depthwise_convolution_has_one_input_channel_for_each_output():
    assert macs(network(conv("c", INPUT, 16, groups=16))) == 8 * 8 * 16 * 9


def test_the_nodes_do_not_count_for_equality():
    first, second = kernels(network(conv("c", INPUT), conv("d", "c")), PLAIN)
    assert first == second
    assert hash(first) == hash(second)


def test_a_convolution_takes_the_activation_behind_it_along():
    found = network(conv("c", INPUT), relu("r", "c"))
    assert described(found) == ["conv fp32 c+r"]
    assert kernels(found, PLAIN)[0].activation == "relu"


def test_not_when_something_else_reads_the_convolution():
    found = network(conv("c", INPUT), relu("r", "c"), add("a", "c", "r"))
    assert described(found) == ["conv fp32 c", "relu fp32 r", "add fp32 a"]


def test_in_blocks_a_convolution_adds_and_activates():
    found = network(conv("c", INPUT), conv("d", "c"), add("a", "d", "c"), relu("r", "a"))
    assert described(found, Layouts(16)) == [
        "to_blocked fp32 input",
        "conv fp32 c",
        "conv fp32 d+a+r",
        "from_blocked fp32 r",
    ]
    assert [kernel.adds for kernel in kernels(found, Layouts(16))] == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("channels", "layout"), [(16, "blocked"), (20, "blocked"), (18, ""), (12, "to_blocked")]
)
def test_the_input_channels_decide_the_layout(channels: int, layout: str):
    found = network(conv("c", INPUT), channels=channels)
    (kernel,) = (kernel for kernel in kernels(found, Layouts(16)) if kernel.op == "conv")
    assert kernel.layout == layout


def test_an_average_over_whole_maps_works_on_blocks():
    found = network(conv("a", INPUT), Node("m", "mean.dim", (Ref("a"), (2, 3)), (1, 16)))
    cut = kernels(found, Layouts(16, False))
    assert [kernel.op for kernel in cut] == ["to_blocked", "conv", "mean", "from_blocked"]
    assert cut[-1].out_elements == 16


def test_integers_meet_floats_by_conversions():
    found = network(conv("c", INPUT, bits=8), relu("r", "c"), conv("d", "r"))
    assert described(quantized(found, {INPUT: SIGNED, "r": POSITIVE})) == [
        "quantize int8 input",
        "conv int8 c+r",
        "dequantize int8 r",
        "conv fp32 d",
    ]


def test_an_8_bit_convolution_without_quantizer_behind_it_gives_floats():
    found = quantized(network(conv("c", INPUT, bits=8), relu("r", "c")), {INPUT: SIGNED})
    assert described(found) == ["quantize int8 input", "conv int8 c", "relu fp32 r"]


def test_a_value_is_dequantized_once_for_all_its_readers():
    found = network(conv("c", INPUT, bits=8), conv("d", "c"), conv("e", "c"), add("a", "d", "e"))
    names = described(quantized(found, {INPUT: SIGNED, "c": SIGNED}))
    assert names.count("dequantize int8 c") == 1


def test_integer_convolutions_want_channels_last():
    found = quantized(
        network(conv("c", INPUT, bits=8), conv("d", "c", bits=8)), {INPUT: SIGNED, "c": SIGNED, "d": SIGNED}
    )
    assert described(found, Layouts(0, True)) == [
        "quantize int8 input",
        "to_channels_last int8 input",
        "conv int8 c",
        "conv int8 d",
        "dequantize int8 d",
    ]


def test_rounding_to_positive_integers_does_what_a_relu_does():
    found = network(add("a", INPUT, INPUT), relu("r", "a"), conv("c", "r", bits=8))
    names = described(quantized(found, {"r": POSITIVE}))
    assert names == ["add fp32 a+r", "quantize int8 r", "conv int8 c"]


def test_constants_behind_a_convolution_go_into_its_weights():
    scale = Node("s", "mul.Tensor", (Ref("c"), Param("c.weight")), (1, 16, 8, 8))
    assert described(network(conv("c", INPUT), scale, relu("r", "s"))) == ["conv fp32 c+s", "relu fp32 r"]


def test_a_turn_to_channels_last_is_one_with_leaving_the_blocks():
    turn = Node("t", "permute", (Ref("c"), (0, 2, 3, 1)), (1, 8, 8, 16))
    found = network(conv("c", INPUT), turn)
    assert described(found, Layouts(16)) == ["to_blocked fp32 input", "conv fp32 c", "from_blocked fp32 t+c"]


def test_what_is_computed_from_constants_only_does_not_run():
    token = Node("token", "expand", (Param("cls"), (1, 16, 8, 8)), (1, 16, 8, 8))
    assert described(network(token, add("a", INPUT, "token"))) == ["add fp32 a"]


def test_attention_counts_both_its_products():
    shape = (1, 3, 50, 64)
    values = [Node(name, "relu", (Ref(INPUT),), shape) for name in "qkv"]
    args: tuple[Arg, ...] = tuple(Ref(name) for name in "qkv")
    found = Network(shape, (*values, Node("a", "scaled_dot_product_attention", args, shape)), "a", {})
    assert macs(found) == 2 * 3 * 50 * 50 * 64


COMPARED = {
    "Conv": ("conv", "fp32"),
    "QLinearConv": ("conv", "int8"),
    "Add": ("add", "fp32"),
    "QLinearAdd": ("add", "int8"),
    "ReorderInput": ("to_blocked", "fp32"),
    "ReorderOutput": ("from_blocked", "fp32"),
    "Gemm": ("linear", "fp32"),
    "QGemm": ("linear", "int8"),
}


def test_random_candidates_have_the_kernels_that_the_runtime_runs():
    runtime = get_runtime("onnxruntime")
    layouts = detect_layouts(runtime, 1)
    for found in candidates(24):
        model = to_onnx(found, random_weights(found)).SerializeToString()
        graph = onnx.load_from_string(runtime.optimized(model, 1)).graph
        run = Counter(node.op_type for node in graph.node)
        mine = kernels(found, layouts)
        named = Counter((kernel.op, kernel.precision) for kernel in mine)
        assert {op: named[key] for op, key in COMPARED.items()} == {op: run[op] for op in COMPARED}
        summing = sum(
            node.op_type == "Conv" and len([name for name in node.input if name]) == 4 for node in graph.node
        )
        assert sum(kernel.adds for kernel in mine) == summing
        turned = sum(kernel.op.startswith("to_channels") for kernel in mine)
        assert abs(turned - run["Transpose"]) <= 1


def test_layouts_of_this_machine_are_plausible():
    layouts = detect_layouts(get_runtime("onnxruntime"), 1)
    assert layouts.float_block in (0, 4, 8, 16)
