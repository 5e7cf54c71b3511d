"""What each transform computes, against the whole network with weights changed by hand."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from written_networks import Net, assert_computes, inputs, net

from autocompress.candidate import Candidate, Option
from autocompress.graph.blocks import residual_blocks
from autocompress.graph.coupling import couple
from autocompress.graph.module import build
from autocompress.graph.trace import trace
from autocompress.network import Network, Weights, to_json
from autocompress.space import Space, load_space, parse_space
from autocompress.transforms import low_rank
from autocompress.transforms.apply import apply
from autocompress.transforms.compact import depthwise_separable
from autocompress.transforms.depth import drop
from autocompress.transforms.probe import probed
from autocompress.transforms.prune import atom_scores, keep_mask, kept_count, prune
from autocompress.transforms.sampling import samples
from autocompress.transforms.sites import BoundSpace, bind

IMAGE = (3, 6, 6)
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


def conv(channels: int, out: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, **options)


def bound(
    module: nn.Module, space: str | Space = EVERYTHING, shape: tuple[int, ...] = IMAGE
) -> tuple[BoundSpace, Weights]:
    network, weights = trace(module, shape)
    return bind(parse_space(space) if isinstance(space, str) else space, network), weights


@pytest.mark.parametrize(
    ("size", "keep", "round_to", "count"),
    [
        (16, 0.5, 1, 8),
        (16, 0.3, 4, 4),
        (100, 0.99, 8, 96),
        (16, 0.01, 1, 1),
        (16, 0.01, 4, 4),
        (6, 0.5, 8, 3),
        (10, 1.0, 4, 10),
    ],
)
def test_kept_channels_by_hand(size: int, keep: float, round_to: int, count: int) -> None:
    assert kept_count(size, keep, round_to) == count


def test_a_pruned_convolution_by_hand() -> None:
    """Channels 1 and 3 of the first convolution leave: they are the least salient."""
    module = net(
        lambda m, x: m.b(F.relu(m.bn(m.a(x)))), a=conv(3, 4, 3), bn=nn.BatchNorm2d(4), b=conv(4, 2, 3)
    )
    network, weights = trace(module, IMAGE)
    coupling = couple(network)
    saliency = {"a.weight": np.ones((4, 3, 3, 3)), "a.bias": np.array([5.0, 1.0, 4.0, -9.0])}
    assert atom_scores(coupling.groups[0], saliency).tolist() == [32, 28, 31, 18]
    pruned, cut = prune(coupling, weights, keep_mask(coupling, {"a": 2}, {"a": saliency}))
    assert cut is not None and pruned.by_name["a"].shape == (1, 2, 6, 6)
    for name in ("a.weight", "a.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
        np.testing.assert_array_equal(cut[name], weights[name][[0, 2]])
    np.testing.assert_array_equal(cut["b.weight"], weights["b.weight"][:, [0, 2]])
    np.testing.assert_array_equal(cut["b.bias"], weights["b.bias"])
    module.b.weight.data[:, [1, 3]] = 0
    assert_computes(pruned, cut, module, inputs(IMAGE))


def option_a(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    y = m.b(F.relu(m.a(y))) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3))
    return m.head(F.relu(y).flatten(1))


def parts(m: Any, x: Tensor) -> Tensor:
    left, right = m.a(x).chunk(2, 1)
    first, second = m.b(left).split([2, 4], 1)
    return m.head(torch.cat([first, right, second[:, :2] + second[:, 2:]], 1))


def attention(m: Any, x: Tensor) -> Tensor:
    x = x + m.out(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x)))
    return m.head(x + m.mix(x.transpose(1, 2)).transpose(1, 2))


def gate(m: Any, x: Tensor) -> Tensor:
    y = m.bn(m.deep(m.a(x)))
    y = y * m.wide(F.relu(m.narrow(y.mean((2, 3), keepdim=True)))).sigmoid()
    return m.head((y + m.shift.view(1, -1, 1, 1)).flatten(2).unflatten(-1, (3, 12)))


PRUNED: dict[str, tuple[Callable[[], Net], tuple[int, ...], set[str]]] = {
    "padding shortcut": (
        lambda: net(
            option_a, stem=conv(3, 4, 3), a=conv(4, 6, 3, stride=2), b=conv(6, 9, 3), head=nn.Linear(81, 2)
        ),
        IMAGE,
        {"stem", "a", "b"},
    ),
    "parts": (
        lambda: net(parts, a=conv(3, 8), b=conv(4, 6, 3), head=conv(8, 2)),
        IMAGE,
        {"a", "a.part1", "b", "b.part1"},
    ),
    "attention": (
        lambda: net(
            attention,
            q=nn.Linear(8, 4),
            k=nn.Linear(8, 4),
            v=nn.Linear(8, 6),
            out=nn.Linear(6, 8),
            mix=nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5)),
            head=nn.Linear(8, 3),
        ),
        (5, 8),
        {"v", "mix.0"},
    ),
    "squeeze and excitation": (
        lambda: net(
            gate,
            a=conv(3, 4),
            deep=conv(4, 8, 3, groups=4),
            bn=nn.BatchNorm2d(8),
            narrow=conv(8, 4),
            wide=conv(4, 8),
            shift=nn.Parameter(torch.rand(8)),
            head=conv(8, 2),
        ),
        IMAGE,
        {"a", "narrow"},
    ),
    "every second token": (
        lambda: net(
            lambda m, x: m.head(m.mix(m.a(x).transpose(1, 2))[..., ::2].transpose(1, 2)),
            a=nn.Linear(8, 6),
            mix=nn.Linear(5, 9),
            head=nn.Linear(6, 3),
        ),
        (5, 8),
        {"a"},
    ),
}


@pytest.mark.parametrize("name", PRUNED)
def test_a_pruned_network_computes_what_the_whole_one_does_with_zeros(name: str) -> None:
    make, shape, free = PRUNED[name]
    network, weights = trace(make(), shape)
    coupling = couple(network)
    assert {group.name for group in coupling.groups if not group.locked} == free
    rng = np.random.default_rng(0)
    saliency = {param: rng.random(array.shape) for param, array in weights.items()}
    keep = keep_mask(coupling, dict.fromkeys(free, 2), {group.name: saliency for group in coupling.groups})
    zeroed = {param: array.copy() for param, array in weights.items()}
    for group in coupling.groups:
        for place in group.places:
            axis = np.moveaxis(zeroed[place.param], place.axis, 0)
            axis[place.indices[~keep[group.atoms]].ravel()] = 0
    pruned, cut = prune(coupling, weights, keep)
    assert {(group.name, group.size) for group in couple(pruned).groups if not group.locked} == {
        (name, 2) for name in free
    }
    assert_computes(pruned, cut, build(network, zeroed), inputs(shape))


def of_rank(*rank: int, shape: tuple[int, ...]) -> Tensor:
    """A random weight with factors of this rank: `(r,)` as a matrix, `(r_out, r_in)` as Tucker-2."""
    out, into, *kernel = shape
    if len(rank) == 1:
        return (torch.rand(out, rank[0]) @ torch.randn(rank[0], into)).reshape(shape)
    core = torch.randn(*rank, *kernel)
    return torch.einsum("rskl,or,is->oikl", core, torch.rand(out, rank[0]), torch.randn(into, rank[1]))


FACTORIZED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "linear": (lambda: nn.Linear(8, 12), (5, 8), {"reduce": (2, 8), "": (12, 2)}),
    "1×1, strided": (
        lambda: nn.Conv2d(8, 12, 1, 2, bias=False),
        (8, 7, 7),
        {"reduce": (2, 8, 1, 1), "": (12, 2, 1, 1)},
    ),
    "3×3, strided": (
        lambda: nn.Conv2d(8, 12, 3, 2, 1),
        (8, 7, 7),
        {"reduce": (2, 8, 1, 1), "core": (3, 2, 3, 3), "": (12, 3, 1, 1)},
    ),
    "3×1, dilated": (
        lambda: nn.Conv2d(8, 12, (3, 1), 1, (2, 0), 2, bias=False),
        (8, 7, 7),
        {"reduce": (2, 8, 1, 1), "core": (3, 2, 3, 1), "": (12, 3, 1, 1)},
    ),
    "same padding": (
        lambda: nn.Conv2d(8, 12, 4, padding="same"),
        (8, 7, 7),
        {"reduce": (2, 8, 1, 1), "core": (3, 2, 4, 4), "": (12, 3, 1, 1)},
    ),
}


@pytest.mark.parametrize("name", FACTORIZED)
def test_factors_reproduce_a_layer_of_their_rank(name: str) -> None:
    make, shape, factors = FACTORIZED[name]
    module = net(lambda m, x: F.relu(m.layer(x)), layer=make())
    dense = tuple(module.layer.weight.shape)
    rank = low_rank.ranks(dense, 0.25)
    module.layer.weight.data = of_rank(*rank, shape=dense)
    network, weights = low_rank.factorize(*trace(module, shape), "layer", 0.25)
    names = {suffix: f"layer.{suffix}".rstrip(".") for suffix in factors}
    shapes = {f"{names[suffix]}.weight": factor for suffix, factor in factors.items()}
    assert {param: spec.shape for param, spec in network.params.items() if "weight" in param} == shapes
    assert sum(map(np.prod, shapes.values())) == low_rank.parameters(dense, rank)
    assert [node.name for node in network.nodes] == [*names.values(), "relu"]
    assert_computes(network, weights, module, inputs(shape))


def test_truncation_leaves_only_the_smallest_singular_values_out() -> None:
    network, weights = trace(net(lambda m, x: m.layer(x), layer=nn.Linear(12, 10)), (12,))
    _, cut = low_rank.factorize(network, weights, "layer", 0.3)
    assert cut is not None
    error = weights["layer.weight"] - cut["layer.weight"] @ cut["layer.reduce.weight"]
    singular = np.linalg.svd(weights["layer.weight"], compute_uv=False)
    assert np.linalg.norm(error) == pytest.approx(np.linalg.norm(singular[3:]), rel=1e-4)


def test_factors_that_would_not_be_smaller_change_nothing() -> None:
    network, weights = trace(net(lambda m, x: m.layer(x), layer=nn.Linear(12, 10)), (12,))
    assert low_rank.ranks((10, 12), 0.6) == (6,)
    assert low_rank.parameters((10, 12), (6,)) == 132
    assert low_rank.factorize(network, weights, "layer", 0.6)[0] is network


@pytest.mark.parametrize(
    ("shape", "keep", "round_to", "rank"),
    [
        ((16, 8), 0.5, 1, (4,)),
        ((64, 32, 1, 1), 0.3, 8, (8,)),
        ((64, 32, 3, 3), 0.5, 8, (32, 16)),
        ((64, 8, 3, 3), 0.25, 8, (16, 2)),
        ((4, 4), 0.01, 1, (1,)),
    ],
)
def test_ranks_by_hand(shape: tuple[int, ...], keep: float, round_to: int, rank: tuple[int, ...]) -> None:
    assert low_rank.ranks(shape, keep, round_to) == rank


def test_a_grouped_convolution_is_not_factorized() -> None:
    network, weights = trace(net(lambda m, x: m.layer(x), layer=conv(4, 4, 3, groups=2)), (4, 5, 5))
    with pytest.raises(ValueError, match="layer is a grouped convolution"):
        low_rank.factorize(network, weights, "layer", 0.5)


def basic_net(out: int = 8) -> Net:
    return net(
        lambda m, x: m.head((y := m.stem(x)) + m.b(F.relu(m.a(y)))),
        stem=conv(3, 8, 3),
        a=nn.Sequential(conv(8, 12, 3, bias=False), nn.BatchNorm2d(12)),
        b=conv(12, 8, 3),
        head=conv(8, out),
    )


def test_a_dropped_block_is_the_identity() -> None:
    module = basic_net()
    network, weights = trace(module, IMAGE)
    (block,) = residual_blocks(network)
    dropped, kept = drop(network, weights, block)
    assert [node.name for node in dropped.nodes] == ["stem", "head"] and kept is not None
    assert kept.keys() == dropped.params.keys() == {"stem.weight", "stem.bias", "head.weight", "head.bias"}
    without = net(lambda m, x: m.head(m.stem(x)), stem=module.stem, head=module.head)
    assert_computes(dropped, kept, without, inputs(IMAGE))


def test_a_dropped_block_may_be_all_there_is() -> None:
    network, weights = trace(net(lambda m, x: x + m.a(x), a=conv(3, 3)), IMAGE)
    dropped, kept = drop(network, weights, residual_blocks(network)[0])
    assert not dropped.nodes and not kept
    torch.testing.assert_close(build(dropped, {})(inputs(IMAGE)), inputs(IMAGE))


def test_a_block_that_changes_the_shape_is_not_dropped() -> None:
    module = net(lambda m, x: m.a(x) + m.short(x), a=conv(3, 4, 3), short=conv(3, 4))
    network, weights = trace(module, IMAGE)
    with pytest.raises(ValueError, match="no skip of equal shape"):
        drop(network, weights, residual_blocks(network)[0])


def test_a_separable_block_by_hand() -> None:
    """Weights that are one filter a channel times one matrix are reproduced."""
    module = basic_net()
    for layer in (module.a[0], module.b):
        out, into = layer.weight.shape[:2]
        layer.weight.data = torch.randn(out, into, 1, 1) * torch.randn(1, into, 3, 3)
    network, weights = trace(module, IMAGE)
    separable, cut = depthwise_separable(network, weights, residual_blocks(network)[0])
    dense, pairs = 2 * 8 * 12 * 9, 8 * 9 + 8 * 12 + 12 * 9 + 12 * 8
    assert network.parameter_count - separable.parameter_count == dense - pairs
    assert separable.params["a.0.depthwise.weight"].shape == (8, 1, 3, 3)
    assert separable.params["b.weight"].shape == (8, 12, 1, 1)
    assert_computes(separable, cut, module, inputs(IMAGE))


def test_only_dense_filters_with_a_weight_of_their_own_are_separated() -> None:
    module = net(
        lambda m, x: m.head(x + m.point(m.grouped(m.twice(m.dense(x))))) * m.twice(x).mean(),
        dense=conv(4, 4, 3),
        twice=conv(4, 4, 3),
        grouped=conv(4, 4, 3, groups=2),
        point=conv(4, 4),
        head=conv(4, 2),
    )
    network, weights = trace(module, (4, 6, 6))
    (block,) = residual_blocks(network)
    assert block.layers == ("dense", "twice", "grouped", "point")
    separable, _ = depthwise_separable(network, weights, block)
    assert separable.params.keys() - network.params.keys() == {"dense.depthwise.weight"}


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


NETS: dict[str, Callable[[], Net]] = {
    "basic": basic_net,
    "nested": nested_net,
    "odd": odd_net,
    "squeeze and excitation": PRUNED["squeeze and excitation"][0],
    "padding shortcut": PRUNED["padding shortcut"][0],
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
    space, weights = bound(NETS[name](), load_space("joint"))
    assert_same(apply(space, weights, Candidate()), (space.network, weights))
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
    locked, shared = "locked by rules[3] of the space 'locks'", "its weight is shared with another layer"
    assert {site.name: site.locked for site in space.sites if site.locked} == {
        "width:stem": locked,
        "width:grouped": "leaves the grouped convolution grouped",
        "width:plain": shared,
        "width:fc": "no rule gives it a width",
        "rank:stem": locked,
        "rank:grouped": "it is a grouped convolution",
        "rank:point": "tucker2 does not apply to it",
        "rank:short": "tucker2 does not apply to it",
        "rank:shared": shared,
        "rank:shared_1": shared,
        "rank:fc": "no rule gives it a rank",
        "bits:stem": locked,
        "bits:plain": "the rule offers 32 bits only",
        "bits:shared": shared,
        "bits:shared_1": shared,
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
    "rank:computed": (
        lambda: net(lambda m, x: F.conv2d(x, m.a.weight.tanh()), a=conv(3, 2)),
        "its weight is computed in forward()",
    ),
    "block:add": (
        lambda: net(lambda m, x: m.a(x) + m.b(x), a=conv(3, 4), b=conv(3, 4)),
        "its shortcut changes the shape, so it cannot be dropped; "
        "it has no dense k×k convolution to separate",
    ),
}


@pytest.mark.parametrize("site", REASONS)
def test_reasons_that_follow_from_the_network(site: str) -> None:
    make, reason = REASONS[site]
    assert bound(make())[0].by_name[site.replace("computed", "conv2d")].locked == reason


def test_a_locked_layer_locks_the_blocks_around_it() -> None:
    space, _ = bound(basic_net(), EVERYTHING + "  - lock: {name: b}\n")
    assert space.by_name["block:add"].locked


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
