"""Two layers in a row as one: exact without an activation between them, the best of its kind with one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from written_networks import assert_computes, inputs, net

from autocompress.graph.module import build
from autocompress.graph.network import from_json, to_json
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import parse_space
from autocompress.transforms.apply import apply
from autocompress.transforms.families.merge import Stretch, merge, stretch
from autocompress.transforms.sites import bind

SHAPE = (4, 9, 9)
SPACE = """
name: merge
rules:
  - match: {layer: any}
    merge: [keep, merge]
    bits: [32, 8]
    codebook: [none, 4]
  - match: {layer: conv}
    width: {keep: [0.5, 1.0]}
    rank: {keep: [0.25, full]}
    sparsity: {keep: [0.5, 1.0]}
"""


FIRST = {
    "k×k": lambda: nn.Conv2d(4, 8, kernel_size=3, padding=1),
    "strided": lambda: nn.Conv2d(4, 8, kernel_size=3, stride=2, padding=1, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 8, kernel_size=3, groups=4),
    "grouped": lambda: nn.Conv2d(4, 8, (3, 5), groups=2, dilation=2, bias=False),
    "same": lambda: nn.Conv2d(4, 8, 3, padding="same"),
    "1×1": lambda: nn.Conv2d(4, 8, kernel_size=1),
}


@pytest.mark.parametrize("form", FIRST)
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_without_an_activation_between_them_are_one(form: str, bias: bool) -> None:
    torch.manual_seed(0)
    module = net(
        lambda m, x: F.relu(m.bn2(m.second(m.bn1(m.first(x))))),
        first=FIRST[form](), bn1=nn.BatchNorm2d(8),
        second=nn.Conv2d(8, 6, 1, bias=bias), bn2=nn.BatchNorm2d(6),
    )  # fmt: skip
    network, weights = trace(module, SHAPE)
    assert stretch(network, "first") == Stretch("first", "second", "")
    merged, values = merge(network, weights, "first")
    assert values is not None and merged == merge(network, None, "first")[0]
    assert "first" not in merged.by_name and "bn1" not in merged.by_name
    assert from_json(to_json(merged)) == merged
    assert_computes(merged, values, module, inputs(SHAPE))


def test_linear_layers_by_hand() -> None:
    torch.manual_seed(0)
    module = net(
        lambda m, x: m.second(F.gelu(m.first(x.flatten(1)))),
        first=nn.Linear(4, 5), second=nn.Linear(5, 3, bias=False),
    )  # fmt: skip
    network, weights = trace(module, (1, 2, 2))
    assert stretch(network, "first") == Stretch("first", "second", "gelu")
    merged, values = merge(network, weights, "first")
    assert values is not None
    product = weights["second.weight"] @ weights["first.weight"]
    np.testing.assert_allclose(values["second.weight"], product, atol=1e-6)
    x = inputs((1, 2, 2))
    expected = module.second(module.first(x.flatten(1)))
    torch.testing.assert_close(build(merged, values)(x), expected, atol=1e-5, rtol=1e-5)


def test_what_would_not_be_exact_is_refused_with_the_reason() -> None:
    module = net(
        lambda m, x: m.last((m.b(F.relu(m.a(x))) + m.c(x)).mean((2, 3))),
        a=nn.Conv2d(4, 8, 3, padding=1), b=nn.Conv2d(8, 8, 3, padding=1),
        c=nn.Conv2d(4, 8, 3, padding=1), last=nn.Linear(8, 2),
    )  # fmt: skip
    bound = bind(parse_space(SPACE), trace(module, SHAPE)[0])
    reasons = {name: bound.by_name[f"merge:{name}"].locked for name in ("a", "b", "c", "last")}
    assert reasons["a"] == "b behind it is not a plain 1×1 convolution"
    assert reasons["b"] == reasons["c"] == reasons["last"] == "no layer alone reads what it computes"
    with pytest.raises(ValueError, match="cannot be merged: b behind it"):
        merge(bound.network, None, "a")


def three_in_a_row() -> nn.Module:
    torch.manual_seed(0)
    return net(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.bn(m.a(x)))))).mean((2, 3)),
        a=nn.Conv2d(4, 16, kernel_size=3, padding=1), bn=nn.BatchNorm2d(16),
        b=nn.Conv2d(16, 24, kernel_size=1),
        c=nn.Conv2d(24, 3, kernel_size=1),
    )  # fmt: skip


def test_merges_follow_each_other_and_make_other_choices_moot() -> None:
    network, weights = trace(three_in_a_row(), SHAPE)
    bound = bind(parse_space(SPACE), network)
    both = Candidate.of({"merge:a": "merge", "merge:b": "merge"})
    assert bound.canonical(both) == both
    changed, values = apply(bound, weights, both)
    assert values is not None and [node.name for node in changed.nodes if node.op == "conv2d"] == ["c"]
    assert values["c.weight"].shape == (3, 4, 3, 3)
    moot = {"bits:a": 8, "codebook:a": 4, "rank:b": 0.25, "sparsity:b": 0.5, "width:a": 0.5}
    kept = {"merge:a": "merge", "bits:b": 8, "codebook:b": 4}
    assert bound.canonical(Candidate.of({**kept, **moot})) == Candidate.of(kept)
    changed, _ = apply(bound, None, Candidate.of(kept))
    assert (changed.by_name["b"].bits, changed.by_name["b"].codebook) == (8, 4)
