"""Candidates carried out, their canonical form, what is locked and why, and what the probe takes out."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from written_networks import IMAGE, Net, assert_computes, basic_net, conv, gated_net, inputs, net, padded_net

from autocompress.graph.module import build
from autocompress.graph.network import Network, Weights, to_json
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate, Option, WidthSettings, settings_of
from autocompress.problem.space import load_space, parse_space
from autocompress.transforms.apply import apply
from autocompress.transforms.probe import probed
from autocompress.transforms.sampling import samples
from autocompress.transforms.sites import BoundSpace, bind

EVERYTHING = """
name: everything
rules:
  - match: {layer: conv}
    optional: true
    width: {keep: [0.25, 0.5, 1.0]}
    rank: {keep: [0.25, 0.5, full]}
    bits: [32, 8]
  - match: {layer: linear}
    optional: true
    width: {keep: [0.5, 1.0]}
    rank: {keep: [0.5, full]}
    bits: [32, 8]
  - match: {block: residual}
    optional: true
    block: [keep, drop, depthwise_separable]
"""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def bound(module: nn.Module, space: str = EVERYTHING) -> tuple[BoundSpace, Weights]:
    network, weights = trace(module, IMAGE)
    return bind(parse_space(space), network), weights


def test_a_site_says_its_settings_by_name() -> None:
    space, _ = bound(basic_net())
    width, bits = space.by_name["width:a.0"], space.by_name["bits:b"]
    assert settings_of(width, WidthSettings) == WidthSettings("l2", 1, 12)
    assert width.to_json() == {
        "name": "width:a.0",
        "kind": "width",
        "options": [0.25, 0.5, 1.0],
        "default": 1.0,
        "layers": list(width.layers),
        "locked": "",
        "settings": {"importance": "l2", "round_to": 1, "size": 12},
    }
    assert bits.to_json()["settings"] == {}
    with pytest.raises(TypeError, match="bits:b has no WidthSettings"):
        settings_of(bits, WidthSettings)


def test_a_candidate_by_hand() -> None:
    """Half of the inner width, and the second layer of the block in three factors of 8 bits."""
    space, weights = bound(basic_net())
    network, cut = apply(space, weights, Candidate.of({"width:a.0": 0.5, "rank:b": 0.5, "bits:b": 8}))
    assert cut is not None
    assert {name: array.shape for name, array in cut.items() if name.endswith("weight")} == {
        "stem.weight": (8, 3, 3, 3),
        "a.0.weight": (6, 8, 3, 3),
        "a.1.weight": (6,),
        "b.reduce.weight": (3, 6, 1, 1),
        "b.core.weight": (4, 3, 3, 3),
        "b.weight": (8, 4, 1, 1),
        "head.weight": (8, 8, 1, 1),
    }
    assert [node.name for node in network.nodes if node.bits == 8] == ["b.reduce", "b.core", "b"]
    np.testing.assert_array_equal(cut["a.0.weight"], weights["a.0.weight"][:6])


def test_saliency_decides_which_channels_stay() -> None:
    space, weights = bound(basic_net())
    marked = {name: np.zeros_like(array) for name, array in weights.items()}
    marked["a.0.weight"][[1, 3, 4, 7, 8, 11]] = 1
    _, cut = apply(space, weights, Candidate.of({"width:a.0": 0.5}), {"l2": marked})
    assert cut is not None
    np.testing.assert_array_equal(cut["a.0.weight"], weights["a.0.weight"][[1, 3, 4, 7, 8, 11]])


def nested(m: Any, x: Tensor) -> Tensor:
    """A block around two blocks and nothing else, then one around a block and two layers."""
    x = m.stem(x)
    y = x + m.a(x)
    x = x + (y + m.b(y))
    z = m.c(x)
    return m.head((x + m.d(F.relu(z + m.e(z)))).mean((2, 3)))


def nested_net() -> Net:
    layers = {name: conv(8, 8, 3) for name in "abcde"}
    return net(nested, stem=conv(3, 8, 3), head=nn.Linear(8, 3), **layers)


def odd_net() -> Net:
    """Widths that no rounding keeps."""
    return net(
        lambda m, x: m.head(m.b(m.a(x)).mean((2, 3))), a=conv(3, 10, 3), b=conv(10, 13), head=nn.Linear(13, 2)
    )


def placed_net() -> Net:
    """A convolution of a constant in a residual block, as position encodings are computed."""
    return net(
        lambda m, x: m.head((y := m.stem(x)) + m.b(m.a(y) + m.place(m.grid))),
        stem=conv(3, 8, 3),
        a=conv(8, 6, 3),
        place=conv(4, 6, 3),
        b=conv(6, 8, 3),
        grid=nn.Buffer(torch.rand(1, 4, 6, 6)),
        head=conv(8, 2),
    )


NETS: dict[str, Callable[[], Net]] = {
    "basic": basic_net,
    "nested": nested_net,
    "odd": odd_net,
    "gated": gated_net,
    "padded": padded_net,
    "placed": placed_net,
}


def any_candidates(space: BoundSpace, count: int) -> list[Candidate]:
    """Drawn without regard to what is moot; the last two drop or separate every block."""
    rng = random.Random(0)
    drawn = [
        {site.name: rng.choice(site.options) for site in space.free if rng.random() < 0.6}
        for _ in range(count)
    ]
    everywhere = [
        {site.name: option for site in space.of_kind("block") if option in site.options}
        for option in ("drop", "depthwise_separable")
    ]
    return [Candidate.of(choices) for choices in (*drawn, *everywhere)]


def assert_same(left: tuple[Network, Weights | None], right: tuple[Network, Weights | None]) -> None:
    assert left[0] == right[0]
    assert left[1] is not None and right[1] is not None and left[1].keys() == right[1].keys()
    for name, array in left[1].items():
        np.testing.assert_array_equal(array, right[1][name])


@pytest.mark.parametrize("name", NETS)
def test_a_candidate_is_a_function_of_its_choices_and_changes_nothing_else(name: str) -> None:
    space, weights = bound(NETS[name]())
    before = to_json(space.network), {name: array.copy() for name, array in weights.items()}
    for array in weights.values():
        array.setflags(write=False)
    for candidate in any_candidates(space, 10):
        network, cut = apply(space, weights, candidate)
        assert_same((network, cut), apply(space, weights, Candidate.of(reversed(candidate.choices))))
        assert apply(space, None, candidate) == (network, None)
        shapes = {name: spec.shape for name, spec in network.params.items()}
        assert cut is not None and {name: array.shape for name, array in cut.items()} == shapes
        with torch.no_grad():
            values = build(network, cut).forward_values(inputs(IMAGE, 1), network.by_name)
        assert {name: tuple(value.shape) for name, value in values.items() if torch.is_tensor(value)} == {
            node.name: node.shape for node in network.nodes if torch.is_tensor(values[node.name])
        }
    assert to_json(space.network) == before[0]
    for name, array in weights.items():
        np.testing.assert_array_equal(array, before[1][name])


@pytest.mark.parametrize("name", NETS)
def test_the_canonical_form_means_the_same_network(name: str) -> None:
    space, weights = bound(NETS[name]())
    for candidate in any_candidates(space, 30):
        canonical = space.canonical(candidate)
        assert_same(apply(space, weights, candidate), apply(space, weights, canonical))
        assert space.canonical(canonical) == canonical


@pytest.mark.parametrize("name", NETS)
def test_the_empty_candidate_is_the_teacher(name: str) -> None:
    network, weights = trace(NETS[name](), IMAGE)
    space = bind(load_space("joint"), network)
    assert_same(apply(space, weights, Candidate()), (network, weights))
    assert all(len(set(site.options)) == len(site.options) for site in space.sites)


MOOT: list[tuple[dict[str, Option], set[str]]] = [
    ({"width:stem": 1.0, "rank:a.0": "full", "bits:b": 32, "block:add": "keep"}, set()),
    ({"block:add": "drop", "width:a.0": 0.5, "rank:b": 0.5, "bits:a.0": 8}, {"block:add"}),
    ({"block:add": "drop", "width:stem": 0.5, "bits:head": 8}, {"block:add", "width:stem", "bits:head"}),
    (
        {"block:add": "depthwise_separable", "rank:a.0": 0.5, "bits:a.0": 8, "width:a.0": 0.5},
        {"block:add", "bits:a.0", "width:a.0"},
    ),
]


@pytest.mark.parametrize(("chosen", "left"), MOOT)
def test_moot_choices_by_hand(chosen: dict[str, Option], left: set[str]) -> None:
    space, _ = bound(basic_net())
    assert space.canonical(Candidate.of(chosen)).as_dict.keys() == left


def test_dropping_two_blocks_is_not_dropping_the_block_around_them() -> None:
    """Around them it leaves the sum of their input with itself."""
    module = nested_net()
    space, weights = bound(module)
    around = next(f"block:{name}" for name, block in space.blocks.items() if block.layers == ("a", "b"))
    inner = {"block:a": "drop", "block:b": "drop"}
    assert space.canonical(Candidate.of(inner)) == Candidate.of(inner)
    assert space.canonical(Candidate.of({**inner, around: "drop"})) == Candidate.of({around: "drop"})
    for layer in (module.a, module.b):
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    assert_computes(*apply(space, weights, Candidate.of(inner)), module, inputs(IMAGE))


def test_separating_what_the_block_around_it_separates_is_moot() -> None:
    space, _ = bound(nested_net())
    inner = {"block:a": "depthwise_separable", "block:e": "depthwise_separable"}
    around = {
        f"block:{name}": "depthwise_separable" for name, block in space.blocks.items() if "a" in block.nodes
    }
    assert len(around) == 2
    outer = {name: option for name, option in around.items() if name not in inner}
    assert space.canonical(Candidate.of({**inner, **around})) == Candidate.of(
        {**outer, "block:e": "depthwise_separable"}
    )


def test_what_the_space_does_not_have_is_a_key_error() -> None:
    space, weights = bound(basic_net())
    with pytest.raises(KeyError, match="no site width:nowhere"):
        apply(space, weights, Candidate.of({"width:nowhere": 0.5}))
    with pytest.raises(KeyError, match=r"bits:b offers \(8, 32\), not 4"):
        apply(space, weights, Candidate.of({"bits:b": 4}))


LOCKS = """
name: locks
rules:
  - match: {layer: conv}
    width: {keep: [0.5, 1.0]}
    rank: {method: tucker2, keep: [0.5, full]}
    bits: [32, 8]
  - match: {layer: conv, name: plain}
    bits: [32]
  - match: {block: residual}
    block: [keep, drop, depthwise_separable]
  - lock: {name: stem}
"""


def locks(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    x = x + m.point(m.grouped(x))
    x = m.plain(x) + m.short(x)
    return m.fc(m.shared(m.shared(x)).mean((2, 3)))


def test_every_locked_site_has_its_reason() -> None:
    module = net(
        locks,
        stem=conv(3, 8, 3),
        grouped=conv(8, 8, 3, groups=2),
        point=conv(8, 8),
        plain=conv(8, 6, 3),
        short=conv(8, 6),
        shared=conv(6, 6, 3),
        fc=nn.Linear(6, 2),
    )
    space, _ = bound(module, LOCKS)
    locked = "locked by rules[3] of the space 'locks'"
    assert {site.name: site.locked for site in space.sites if site.locked} == {
        "width:stem": locked,
        "width:fc": "no rule gives it a width",
        "rank:stem": locked,
        "rank:grouped": "it is a grouped convolution",
        "rank:point": "tucker2 does not apply to it",
        "rank:short": "tucker2 does not apply to it",
        "rank:fc": "no rule gives it a rank",
        "bits:stem": locked,
        "bits:plain": "the rule offers 32 bits only",
        "bits:fc": "no rule gives it bit-widths",
    }
    assert {site.name: site.options for site in space.of_kind("block")} == {
        "block:add": ("keep", "drop"),
        "block:add_1": ("keep", "depthwise_separable"),
    }
    assert all(site.locked or len(site.options) > 1 for site in space.sites)


REASONS: dict[str, tuple[Callable[[], Net], str]] = {
    "width:head": (basic_net, "is the output of the network"),
    "width:a.0": (
        lambda: net(lambda m, x: m.b(m.a(x)), a=nn.Sequential(conv(3, 1)), b=conv(1, 2)),
        "has a single channel",
    ),
    "rank:b": (
        lambda: net(lambda m, x: m.b(m.a(x)), a=conv(3, 2), b=conv(2, 2)),
        "no rank offered has fewer weights",
    ),
    "rank:conv2d": (
        lambda: net(lambda m, x: F.conv2d(x, m.a.weight.tanh()), a=conv(3, 2)),
        "its weight is computed in forward()",
    ),
    "rank:place": (placed_net, "it reads a constant, so it is computed once"),
    "block:add": (
        lambda: net(lambda m, x: m.a(x) + m.b(x), a=conv(3, 4), b=conv(3, 4)),
        "its shortcut changes the shape, so it cannot be dropped; "
        "it has no dense k×k convolution that can become depthwise_separable",
    ),
}


@pytest.mark.parametrize("site", REASONS)
def test_reasons_that_follow_from_the_network(site: str) -> None:
    make, reason = REASONS[site]
    assert bound(make())[0].by_name[site].locked == reason


def test_a_locked_layer_locks_the_blocks_around_it() -> None:
    space, _ = bound(basic_net(), EVERYTHING + "  - lock: {name: b}\n")
    assert space.by_name["block:add"].locked == "its layer b is locked"


def halves(m: Any, x: Tensor) -> Tensor:
    y = m.a(m.stem(x))
    return m.head(torch.cat([F.max_pool2d(y[:, :4], 2), F.max_pool2d(y[:, 4:], 2)], 1))


def test_the_probe_locks_what_breaks_and_nothing_else() -> None:
    """Two channels of eight leave the second half empty, which max pooling refuses."""
    space, weights = bound(net(halves, stem=conv(3, 8), a=conv(8, 8), head=conv(8, 2)))
    with pytest.raises(RuntimeError):
        build(*apply(space, weights, Candidate.of({"width:a": 0.25})))(inputs(IMAGE))
    found = probed(space, weights)
    assert found.by_name["width:a"].options == (1.0,)
    assert found.by_name["width:a"].locked == "the network does not run with it"
    assert {(name, option) for name, option, _ in found.dropped} == {("width:a", 0.25), ("width:a", 0.5)}
    assert [site for site in found.sites if site.name != "width:a"] == [
        site for site in space.sites if site.name != "width:a"
    ]
    assert space.by_name["width:a"].options == (0.25, 0.5, 1.0)


def test_the_probe_leaves_a_space_that_works_as_it_is() -> None:
    space, weights = bound(nested_net())
    assert probed(space, weights) is space


def test_options_and_sites_are_taken_out_with_a_reason() -> None:
    space, _ = bound(basic_net())
    fewer = space.without({("width:stem", 0.25): "too slow", ("bits:b", 8): "no gain"})
    assert fewer.by_name["width:stem"].options == (0.5, 1.0) and not fewer.by_name["width:stem"].locked
    assert (fewer.by_name["bits:b"].options, fewer.by_name["bits:b"].locked) == ((32,), "no gain")
    assert fewer.dropped == (("width:stem", 0.25, "too slow"), ("bits:b", 8, "no gain"))
    assert space.log10_size - fewer.log10_size == pytest.approx(np.log10(3 / 2 * 2))
    locked = space.lock({"block:add": "by hand"}).by_name["block:add"]
    assert (locked.options, locked.locked) == (("keep",), "by hand")


def test_samples_are_of_the_precisions_that_the_device_computes_in() -> None:
    space, _ = bound(nested_net())
    found = list(samples(space, 12, seed=3, precisions=("fp32",)))
    assert [precision for precision, _ in found] == ["fp32"] * 12
    for _, candidate in found:
        nodes = apply(space, None, candidate)[0].nodes
        assert {node.bits for node in nodes if node.op in ("conv2d", "linear")} == {32}


def test_samples_do_not_repeat_and_keep_their_precision() -> None:
    space, _ = bound(nested_net())
    found = list(samples(space, 20, seed=3))
    assert len({candidate.key for _, candidate in found}) == len(found) == 20
    assert found[0] == ("fp32", Candidate()) and list(samples(space, 20, seed=3)) == found
    for precision, candidate in found:
        network, _ = apply(space, None, candidate)
        bits = {node.bits for node in network.nodes if node.op in ("conv2d", "linear")}
        assert bits <= {"fp32": {32}, "int8": {8}}.get(precision, {8, 32})
        assert space.canonical(candidate) == candidate


def test_heads_are_chosen_one_by_one_and_channels_in_the_multiples_asked_for() -> None:
    def attention(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(m.embed(x)).reshape(-1, 5, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return m.head(m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))

    module = net(
        attention,
        embed=nn.Linear(6, 12),
        qkv=nn.Linear(12, 36),
        out=nn.Linear(12, 9),
        head=nn.Linear(9, 2),
    )
    rule = "name: s\nrules:\n  - match: {layer: linear}\n    width: {keep: [0.3, 0.6, 1.0], round_to: 4}"
    network, weights = trace(module, (5, 6))
    space = bind(parse_space(rule), network)
    kept = {
        site.target: [apply(space, None, Candidate.of({site.name: option}))[0] for option in site.options]
        for site in space.of_kind("width")
    }
    outputs = {name: [one.by_name[name].shape[-1] for one in found] for name, found in kept.items()}
    assert outputs == {"embed": [4, 8, 12], "qkv": [12, 24, 36], "out": [4, 9]}
    student = build(*apply(space, weights, Candidate.of({"width:qkv": 0.3}), {"l2": weights}))  # type: ignore[arg-type]
    assert student(inputs((5, 6))).shape == (4, 5, 2)
