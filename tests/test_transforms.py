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
from autocompress.transforms.apply import apply, deployed
from autocompress.transforms.compact import depthwise_separable
from autocompress.transforms.depth import drop
from autocompress.transforms.probe import probed
from autocompress.transforms.prune import atom_scores, keep_mask, kept_count, prune
from autocompress.transforms.sampling import random_candidate, samples
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


def bound(module: nn.Module, space: str | Space = EVERYTHING, shape: tuple[int, ...] = IMAGE) -> tuple[BoundSpace, Weights]:
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
    keep = keep_mask(
        coupling, {name: 2 for name in free}, {group.name: saliency for group in coupling.groups}
    )
    zeroed = {param: array.copy() for param, array in weights.items()}
    for group in coupling.groups:
        for place in group.places:
            axis = np.moveaxis(zeroed[place.param], place.axis, 0)
            axis[place.indices[~keep[group.atoms]].ravel()] = 0
    pruned, cut = prune(coupling, weights, keep)
    assert {group.name: len(group.atoms) for group in couple(pruned).groups if not group.locked} == {
        name: 2 for name in free
    }
    assert_computes(pruned, cut, build(network, zeroed), inputs(shape))


def low_rank_weight(*factors: tuple[int, ...]) -> NDArrayFloat:
    raise NotImplementedError
