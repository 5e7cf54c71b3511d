"""Which channels belong together in networks written by hand, and the residual blocks of known ones."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from written_networks import Net, net

from autocompress.graph.blocks import Block, residual_blocks
from autocompress.graph.coupling import Group, couple
from autocompress.graph.network import INPUT
from autocompress.graph.trace import trace

IMAGE = (3, 4, 4)


def groups(module: nn.Module, shape: tuple[int, ...] = IMAGE) -> dict[str, Group]:
    return {group.name: group for group in couple(trace(module, shape)[0]).groups}


def places(group: Group) -> set[tuple[str, int]]:
    return {(place.param, place.axis) for place in group.places}


def indices(group: Group, param: str, axis: int = 0) -> list[list[int]]:
    (found,) = (place.indices for place in group.places if (place.param, place.axis) == (param, axis))
    return found.tolist()


def conv(channels: int, out: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False, **options)


def residual() -> Net:
    return net(
        lambda m, x: m.head((y := m.stem(x)) + m.b(F.relu(m.a(y)))),
        stem=nn.Sequential(conv(3, 6), nn.BatchNorm2d(6)),
        a=conv(6, 4, 3),
        b=conv(4, 6),
        head=nn.Conv2d(6, 2, 1),
    )


def test_an_addition_couples_what_it_adds() -> None:
    found = groups(residual())
    assert places(found["stem.0"]) == {
        ("stem.0.weight", 0),
        *((f"stem.1.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")),
        ("a.weight", 1),
        ("b.weight", 0),
        ("head.weight", 1),
    }
    assert found["stem.0"].layers == ("stem.0", "b", "a", "head")
    assert places(found["a"]) == {("a.weight", 0), ("b.weight", 1)}
    assert places(found["head"]) == {("head.weight", 0), ("head.bias", 0)}
    assert {name: group.locked for name, group in found.items()} == {
        "stem.0": "",
        "a": "",
        "head": "is the output of the network",
    }


def test_a_concatenation_places_its_parts_one_after_the_other() -> None:
    found = groups(
        net(
            lambda m, x: m.head(torch.cat([m.a(x), x, m.b(x)], 1)),
            a=conv(3, 4),
            b=conv(3, 2),
            head=conv(9, 2),
        )
    )
    assert indices(found["a"], "head.weight", 1) == [[0], [1], [2], [3]]
    assert indices(found["b"], "head.weight", 1) == [[7], [8]]
    assert not found["a"].locked and not found["b"].locked


def test_a_depthwise_convolution_follows_its_input() -> None:
    found = groups(
        net(
            lambda m, x: m.head(m.depth(m.a(x))),
            a=conv(3, 3),
            depth=conv(3, 6, 3, groups=3),
            head=conv(6, 2),
        )
    )
    assert indices(found["a"], "depth.weight") == [[0, 1], [2, 3], [4, 5]]
    assert indices(found["a"], "head.weight", 1) == [[0, 1], [2, 3], [4, 5]]
    assert "depth" not in found


def flat(turned: bool) -> Net:
    order = (0, 2, 3, 1) if turned else (0, 1, 2, 3)
    return net(
        lambda m, x: m.fc(F.max_pool2d(m.a(x), 2).permute(order).flatten(1)),
        a=conv(3, 3),
        fc=nn.Linear(12, 2),
    )


def test_a_channel_of_a_flattened_map_is_one_index_a_pixel() -> None:
    assert indices(groups(flat(False))["a"], "fc.weight", 1) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert indices(groups(flat(True))["a"], "fc.weight", 1) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_a_padded_shortcut_couples_its_channels_and_leaves_the_new_ones_apart() -> None:
    module = net(
        lambda m, x: m.head(m.b(x) + F.pad(m.a(x), (0, 0, 0, 0, 1, 2))),
        a=conv(3, 2),
        b=conv(3, 5),
        head=conv(5, 2),
    )
    found = groups(module)
    assert indices(found["a"], "a.weight") == [[0], [1]]
    assert indices(found["a"], "b.weight") == [[1], [2]]
    assert indices(found["b"], "b.weight") == indices(found["b"], "head.weight", 1) == [[0], [3], [4]]
    assert not found["a"].locked and not found["b"].locked


def test_parts_of_one_layer_are_groups_of_their_own() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        left, right = m.a(x).split([4, 2], 1)
        return m.head(torch.cat([right, m.b(left)], 1))

    found = groups(net(forward, a=conv(3, 6), b=conv(4, 3), head=conv(5, 2)))
    assert indices(found["a"], "a.weight") == [[0], [1], [2], [3]]
    assert indices(found["a.part1"], "a.weight") == [[4], [5]]
    assert indices(found["a.part1"], "head.weight", 1) == [[0], [1]]
    assert indices(found["b"], "head.weight", 1) == [[2], [3], [4]]


def test_parts_that_are_added_leave_in_pairs() -> None:
    found = groups(net(lambda m, x: m.head(sum(m.a(x).chunk(2, 1))), a=conv(3, 6), head=conv(3, 2)))
    assert indices(found["a"], "a.weight") == [[0, 3], [1, 4], [2, 5]]


def test_the_sum_over_channels_ends_a_group() -> None:
    module = net(
        lambda m, x: m.head(x * m.gate((m.q(x) * m.k(x)).sum(1, keepdim=True))),
        q=conv(3, 4),
        k=conv(3, 4),
        gate=nn.Sigmoid(),
        head=conv(3, 2),
    )
    assert places(groups(module)["q"]) == {("q.weight", 0), ("k.weight", 0)}


def multi_head(m: Any, x: Tensor) -> Tensor:
    x = m.embed(x)
    q, k, v = m.qkv(x).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    x = x + m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    return m.head(m.norm(x).mean(1))


def test_the_channels_of_a_head_leave_together_and_the_stream_around_it_by_itself() -> None:
    module = net(
        multi_head,
        embed=nn.Linear(6, 8, bias=False),
        qkv=nn.Linear(8, 24),
        out=nn.Linear(8, 8),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 3),
    )
    found = groups(module, (5, 6))
    heads = [[start + head * 4 + i for start in (0, 8, 16) for i in range(4)] for head in range(2)]
    assert indices(found["qkv"], "qkv.weight") == indices(found["qkv"], "qkv.bias") == heads
    assert indices(found["qkv"], "out.weight", 1) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert not found["qkv"].locked
    assert places(found["embed"]) == {
        ("embed.weight", 0),
        ("qkv.weight", 1),
        *((f"{layer}.{name}", 0) for layer in ("out", "norm") for name in ("weight", "bias")),
        ("head.weight", 1),
    }
    assert not found["embed"].locked


def test_a_single_head_can_be_narrower() -> None:
    module = net(
        lambda m, x: m.out(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x))),
        q=nn.Linear(6, 4),
        k=nn.Linear(6, 4),
        v=nn.Linear(6, 5),
        out=nn.Linear(5, 3),
    )
    found = groups(module, (5, 6))
    assert not found["q"].locked and {("q.weight", 0), ("k.weight", 0)} < places(found["q"])
    assert not found["v"].locked and ("out.weight", 1) in places(found["v"])


def test_tokens_that_are_mixed_have_a_hidden_width() -> None:
    module = net(
        lambda m, x: m.head(x + m.b(F.gelu(m.a(x.transpose(1, 2)))).transpose(1, 2)),
        a=nn.Linear(5, 7),
        b=nn.Linear(7, 5),
        head=nn.Linear(6, 2),
    )
    found = groups(module, (5, 6))
    assert places(found["a"]) == {("a.weight", 0), ("a.bias", 0), ("b.weight", 1)} and not found["a"].locked
    assert "meets a fixed axis at add" in found["b"].locked


def read_by_head(function: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> dict[str, Group]:
    return groups(net(lambda m, x: m.head(function(m, x)), a=conv(3, 8), head=conv(8, 2), **parts))


def test_few_wide_groups_are_narrowed_all_alike() -> None:
    found = read_by_head(lambda m, x: m.grouped(m.a(x)), grouped=conv(8, 8, groups=2))
    assert indices(found["a"], "a.weight") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert indices(found["a"], "grouped.weight", 1) == [[0], [1], [2], [3]]
    assert indices(found["grouped"], "grouped.weight") == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_many_narrow_groups_leave_as_wholes() -> None:
    found = read_by_head(lambda m, x: m.grouped(m.a(x)), grouped=conv(8, 8, groups=4))
    assert indices(found["a"], "a.weight") == indices(found["a"], "head.weight", 1)
    assert indices(found["a"], "a.weight") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert ("grouped.weight", 1) not in places(found["a"])


def test_a_normalisation_in_groups_loses_whole_groups() -> None:
    found = read_by_head(lambda m, x: m.norm(m.a(x)), norm=nn.GroupNorm(2, 8))
    assert indices(found["a"], "a.weight") == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("written", ["torch", "view"])
def test_a_shuffle_moves_channels_and_couples_none(written: str) -> None:
    def view(m: Any, x: Tensor) -> Tensor:
        batch, channels, height, width = (y := m.a(x)).shape
        return y.view(batch, 2, 4, height, width).transpose(1, 2).reshape(batch, channels, height, width)

    found = read_by_head(view if written == "view" else lambda m, x: F.channel_shuffle(m.a(x), 2))
    assert indices(found["a"], "head.weight", 1) == [[0], [2], [4], [6], [1], [3], [5], [7]]


LOCKED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "input": (lambda m, x: m.a(x) + torch.cat([x, x, x[:, 1:]], 1), "meets a fixed axis at add"),
    "layer norm": (
        lambda m, x: F.layer_norm(m.a(x), (8, 4, 4)),
        "is normalised over several axes at layer_norm",
    ),
    "softmax": (lambda m, x: m.a(x).softmax(1), "is normalised by softmax.int at softmax"),
    "einsum": (lambda m, x: torch.einsum("...hw,...hw->...hw", m.a(x), m.a(x)), "reaches einsum at einsum"),
    "reshape": (
        lambda m, x: m.a(x).view(-1, 16, 2, 4).reshape(-1, 8, 4, 4),
        "is split by a reshape at reshape",
    ),
    "roll": (lambda m, x: m.a(x).roll(1, 1), "is reordered by roll at roll"),
    "roll of all axes": (lambda m, x: m.a(x).roll(1), "is reordered by roll at roll"),
    "flip": (lambda m, x: m.a(x).flip(1), "is reordered by flip at flip"),
    "stride": (lambda m, x: m.a(x)[:, ::2].repeat(1, 2, 1, 1), "is subsampled at slice"),
    "selection": (lambda m, x: (y := m.a(x)) * y[:, 3, None], "is indexed by select.int at select"),
    "mirror": (
        lambda m, x: F.pad(m.a(x)[:, None], (0, 0, 0, 0, 4, 4), "replicate")[:, 0, 4:12],
        "is cropped or mirrored at pad",
    ),
    "repetition": (lambda m, x: (y := m.a(x)) * y[:, :1].expand(-1, 8, -1, -1), "is repeated at expand"),
    "computed weight": (
        lambda m, x: F.conv2d(m.a(x), m.head.weight.repeat(4, 1, 1, 1)),
        "belongs to conv2d, whose weight is computed in forward()",
    ),
}
"""Eight channels to as many, in a way through which they cannot be pruned."""


@pytest.mark.parametrize("name", LOCKED)
def test_channels_that_cannot_leave_have_a_reason(name: str) -> None:
    function, reason = LOCKED[name]
    parts = {"scale": torch.rand(8), "one": conv(8, 1)}
    module = net(lambda m, x: m.head(function(m, x)), a=conv(3, 8), head=conv(8, 2), **parts)
    assert reason in groups(module)["a"].locked


def test_a_channel_that_is_repeated_is_all_that_repetition_locks() -> None:
    module = net(
        lambda m, x: m.head(torch.cat([m.one(x).expand(-1, 3, -1, -1), m.a(x)], 1)),
        one=conv(3, 1),
        a=conv(3, 4),
        head=conv(7, 2),
    )
    found = groups(module)
    assert not found["a"].locked and "is repeated at expand" in found["one"].locked
    assert indices(found["a"], "head.weight", 1) == [[3], [4], [5], [6]]


def test_a_layer_that_runs_twice_couples_what_it_reads() -> None:
    module = net(lambda m, x: m.head(m.a(m.a(m.stem(x)))), stem=conv(3, 4), a=conv(4, 4), head=conv(4, 2))
    found = groups(module)
    assert places(found["stem"]) == {("stem.weight", 0), ("a.weight", 0), ("a.weight", 1), ("head.weight", 1)}
    assert "meets a fixed axis" in groups(net(lambda m, x: m.a(m.a(x)), a=conv(3, 3)))["a"].locked


def blocks(module: nn.Module, shape: tuple[int, ...] = IMAGE) -> dict[str, Block]:
    return {block.name: block for block in residual_blocks(trace(module, shape)[0])}


def test_a_block_is_what_lies_between_a_value_and_its_sum() -> None:
    (block,) = blocks(residual()).values()
    assert block == Block("add", "add", "stem.1", frozenset({"a", "relu", "b"}), ("a", "b"), True)


def test_blocks_in_blocks_are_found_innermost_first() -> None:
    module = net(
        lambda m, x: m.head(x + m.b((y := m.a(x)) + m.inner(y))),
        a=conv(3, 4),
        inner=conv(4, 4),
        b=conv(4, 3),
        head=conv(3, 2),
    )
    inner, outer = blocks(module).values()
    assert (inner.name, inner.source, inner.layers) == ("inner", "a", ("inner",))
    assert (outer.source, outer.layers) == (INPUT, ("a", "inner", "b"))
    assert inner.add in outer.nodes and inner.droppable and outer.droppable


NOT_DROPPABLE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "layer on the shortcut": lambda m, x: m.a(x) + m.b(x),
    "shortcut that is broadcast": lambda m, x: (
        (y := x.mean((2, 3), keepdim=True)) + m.a(m.b(y).expand(-1, -1, 4, 4))
    ),
}


@pytest.mark.parametrize("name", NOT_DROPPABLE)
def test_a_block_without_a_plain_skip_cannot_be_dropped(name: str) -> None:
    module = net(
        lambda m, x: m.head(NOT_DROPPABLE[name](m, x)), a=conv(3, 3, 3), b=conv(3, 3), head=conv(3, 2)
    )
    (block,) = blocks(module).values()
    assert set(block.layers) == {"a", "b"} and not block.droppable


NO_BLOCK: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "read elsewhere": lambda m, x: (m.b(y := m.a(x)) + x) * y.sigmoid(),
    "no layer inside": lambda _, x: x + x.sigmoid(),
    "product": lambda m, x: x * m.a(x),
}


@pytest.mark.parametrize("name", NO_BLOCK)
def test_what_is_no_block(name: str) -> None:
    assert not blocks(net(NO_BLOCK[name], a=conv(3, 3), b=conv(3, 3)))


def test_blocks_of_resnet18_are_those_of_its_code() -> None:
    module = timm.create_model("resnet18")
    found = blocks(module, (3, 64, 64))
    written = {name: part for name, part in module.named_modules() if type(part).__name__ == "BasicBlock"}
    assert found.keys() == written.keys() and len(found) == 8
    for name, block in found.items():
        inside = [f"{name}.{n}" for n, part in written[name].named_modules() if isinstance(part, nn.Conv2d)]
        assert sorted(block.layers) == sorted(inside)
        assert block.droppable == (written[name].downsample is None)


def test_blocks_of_mobilenetv3_are_those_with_a_skip() -> None:
    module = timm.create_model("mobilenetv3_small_100")
    written = {name for name, part in module.named_modules() if getattr(part, "has_skip", False)}
    found = blocks(module, (3, 64, 64))
    assert found.keys() == written and len(found) == 6
    assert all(block.droppable for block in found.values())
    assert len(found["blocks.1.1"].layers) == 3 and len(found["blocks.2.1"].layers) == 5
