"""What each transform computes, against the whole network with weights changed by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from written_networks import (
    IMAGE,
    Net,
    assert_computes,
    basic_net,
    conv,
    gated_net,
    inputs,
    net,
    padded_net,
    with_zeros,
)

from autocompress.graph.blocks import residual_blocks
from autocompress.graph.coupling import couple
from autocompress.graph.module import build
from autocompress.graph.trace import trace
from autocompress.transforms.families import low_rank
from autocompress.transforms.families.compact import compact
from autocompress.transforms.families.depth import drop
from autocompress.transforms.families.prune import atom_scores, keep_mask, kept_count, prune


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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


def parts(m: Any, x: Tensor) -> Tensor:
    left, right = m.a(x).chunk(2, 1)
    first, second = m.b(left).split([2, 4], 1)
    return m.head(torch.cat([first, right, second[:, :2] + second[:, 2:]], 1))


def attention(m: Any, x: Tensor) -> Tensor:
    x = x + m.out(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x)))
    return m.head(x + m.mix(x.transpose(1, 2)).transpose(1, 2))


def heads(m: Any, x: Tensor) -> Tensor:
    """Four heads of two channels, queries, keys and values side by side."""
    q, k, v = m.qkv(x).reshape(-1, 5, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 5, 8)
    return m.head(x + m.out(y))


def written_out(m: Any, x: Tensor) -> Tensor:
    """Three heads of two channels, each of q, k, v by a layer of its own, the attention in single steps."""
    q, k, v = (part(x).unflatten(-1, (3, 2)).transpose(1, 2) for part in (m.q, m.k, m.v))
    y = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
    return m.head(m.out(y.transpose(1, 2).flatten(2)))


PRUNED: dict[str, tuple[Callable[[], Net], tuple[int, ...], set[str]]] = {
    "padding shortcut": (
        padded_net,
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
        {"q", "v", "mix.0"},
    ),
    "heads": (
        lambda: net(heads, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8), head=nn.Linear(8, 3)),
        (5, 8),
        {"qkv"},
    ),
    "heads, written out": (
        lambda: net(
            written_out,
            q=nn.Linear(8, 6),
            k=nn.Linear(8, 6),
            v=nn.Linear(8, 6),
            out=nn.Linear(6, 6),
            head=nn.Linear(6, 3),
        ),
        (5, 8),
        {"q", "out"},
    ),
    "squeeze and excitation": (
        gated_net,
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
    pruned, cut = prune(coupling, weights, keep)
    assert {(group.name, group.size) for group in couple(pruned).groups if not group.locked} == {
        (name, 2) for name in free
    }
    assert_computes(pruned, cut, build(network, with_zeros(coupling, weights, keep)), inputs(shape))


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
    separable, cut = compact(network, weights, residual_blocks(network)[0], "depthwise_separable")
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
    separable, _ = compact(network, weights, block, "depthwise_separable")
    assert separable.params.keys() - network.params.keys() == {"dense.depthwise.weight"}
