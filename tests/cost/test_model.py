"""Memory and file size of networks small enough to add up by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autocompress.cost.kernels import macs
from autocompress.cost.memory import low_bit_weights, peak_memory_bytes, weight_bytes
from autocompress.cost.model import file_features, file_features_count
from autocompress.graph.network import INPUT, Arg, Network, Node, Param, ParamSpec, Quantizer, Ref

QUANTIZER = Quantizer(0.1, 0)
CONV_WEIGHT_BYTES = (8 * 4 * 3 * 3 + 8) * 4


def network(
    *nodes: Node, params: dict[str, tuple[int, ...]] | None = None, shape: Any = (1, 4, 10, 10)
) -> Network:
    specs = {name: ParamSpec(size) for name, size in (params or {}).items()}
    return Network(shape, nodes, nodes[-1].name, specs)


def relu(name: str, source: str, shape: tuple[int, ...] = (1, 4, 10, 10)) -> Node:
    return Node(name, "relu", (Ref(source),), shape)


def view(name: str, source: str, shape: tuple[int, ...], op: str = "view", *args: Arg) -> Node:
    return Node(name, op, (Ref(source), *args), shape)


def convolution(bits: int = 32, quantizer: Quantizer | None = None) -> Network:
    node = Node(
        "conv",
        "conv2d",
        (Ref(INPUT), Param("conv.weight"), Param("conv.bias"), (1, 1), (1, 1)),
        (1, 8, 10, 10),
        bits=bits,
    )
    found = network(node, params={"conv.weight": (8, 4, 3, 3), "conv.bias": (8,)})
    return replace(found, input_quantizer=quantizer)


def test_macs_of_a_convolution():
    assert macs(convolution()) == 8 * 10 * 10 * 4 * 3 * 3


def test_weights_take_four_bytes_or_one():
    assert weight_bytes(convolution()) == CONV_WEIGHT_BYTES
    in_8_bits = convolution(8, QUANTIZER)
    assert low_bit_weights(in_8_bits) == {"conv.weight"}
    assert weight_bytes(in_8_bits) == 8 * 4 * 3 * 3 + 8 * 4


def test_a_layer_whose_input_is_not_quantized_stays_in_floats():
    assert low_bit_weights(convolution(8)) == frozenset()


def test_input_and_output_of_a_layer_are_alive_together():
    assert peak_memory_bytes(convolution()) == CONV_WEIGHT_BYTES + (400 + 800) * 4


def test_a_quantized_value_takes_a_byte_a_number():
    assert peak_memory_bytes(convolution(8, QUANTIZER)) == 8 * 4 * 3 * 3 + 8 * 4 + 400 + 800 * 4


def test_in_a_chain_two_values_are_alive_however_long_it_is():
    nodes = [relu("r0", INPUT), *(relu(f"r{i}", f"r{i - 1}") for i in range(1, 20))]
    assert peak_memory_bytes(network(*nodes)) == 2 * 400 * 4


def test_a_shortcut_keeps_its_value_alive():
    shortcut = network(
        relu("a", INPUT),
        relu("b", "a"),
        relu("c", "b"),
        Node("sum", "add.Tensor", (Ref("a"), Ref("c")), (1, 4, 10, 10)),
    )
    assert peak_memory_bytes(shortcut) == 3 * 400 * 4


def test_the_input_is_freed_after_its_last_reader():
    wide = Node("wide", "cat", ((Ref("b"), Ref("b")), 1), (1, 8, 10, 10))
    assert peak_memory_bytes(network(relu("a", INPUT), relu("b", "a"), wide)) == (400 + 800) * 4


@pytest.mark.parametrize("op", ["view", "reshape", "_unsafe_view", "unsqueeze", "expand"])
def test_a_view_costs_nothing_and_its_source_is_freed_after_it(op: str):
    nodes = [relu("r0", INPUT)]
    for i in range(1, 10):
        nodes += [view(f"v{i}", f"r{i - 1}", (1, 400), op), relu(f"r{i}", f"v{i}", (1, 400))]
    assert peak_memory_bytes(network(*nodes)) == 2 * 400 * 4


def test_a_view_keeps_the_memory_it_lies_in():
    late = network(
        relu("a", INPUT),
        view("v", "a", (1, 400)),
        relu("b", "a"),
        relu("c", "b"),
        Node("sum", "add.Tensor", (Ref("v"), Ref("c")), (1, 400)),
    )
    assert peak_memory_bytes(late) == 3 * 400 * 4


def test_several_outputs_take_the_sum_of_their_sizes_until_the_last_is_read():
    parts = Node("parts", "split.Tensor", (Ref("a"), 1, 1), ((1, 1, 10, 10), (1, 3, 10, 10)))
    first = Node("first", "getitem", (Ref("parts"), 0), (1, 1, 10, 10))
    second = Node("second", "getitem", (Ref("parts"), 1), (1, 3, 10, 10))
    read = [relu("b", "first", (1, 1, 10, 10)), relu("c", "second", (1, 3, 10, 10))]
    joined = Node("joined", "cat", ((Ref("b"), Ref("c")), 1), (1, 4, 10, 10))
    found = network(relu("a", INPUT), parts, first, second, *read, joined)
    assert peak_memory_bytes(found) == (400 + 400) * 4


def test_a_size_does_not_keep_what_it_was_read_from():
    size = Node("size", "sym_size.int", (Ref("a"), 0), ())
    end = Node("end", "view", (Ref("c"), (Ref("size"), 400)), (1, 400))
    found = network(relu("a", INPUT), size, relu("b", "a"), relu("c", "b"), end)
    assert peak_memory_bytes(found) == 2 * 400 * 4 + 4


def test_file_features_count_what_adds_bytes():
    found = file_features(convolution(8, QUANTIZER))
    assert len(found) == file_features_count()
    letters = len("conv")
    np.testing.assert_array_equal(found, [1, 1, 1, letters, 1, letters, 8, 8, 1, 2])
