"""Networks written as few are: what is traced, offered and fitted there is right, or locked with a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from written_networks import assert_computes, inputs, net

from autocompress.graph.module import build
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import parse_space
from autocompress.problem.splits import Normalisation, TensorSplit
from autocompress.students.accuracy import recalibrate_batch_norms
from autocompress.students.calibration.compensation import changed_layers
from autocompress.students.calibration.layer_inputs import collect_moments, solvable_layers
from autocompress.students.training.blockwise import BlockPart, learned
from autocompress.transforms.apply import MOMENTS, apply
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.probe import probed
from autocompress.transforms.sites import bind

IMAGE = (3, 6, 6)
WIDTHS = "name: w\nrules: [{match: {layer: any}, width: {keep: [0.5, 1.0], round_to: 1}}]"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def conv(into: int, out: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, padding=kernel // 2, **options)


def split_of(images: Tensor) -> TensorSplit:
    plain = Normalisation((0.0,), (1.0,))
    return TensorSplit(images, torch.zeros(len(images), dtype=torch.int64), plain)


def squeezed(m: Any, x: Tensor) -> Tensor:
    return m.fc(F.adaptive_avg_pool2d(m.b(F.relu(m.a(x))), 1).squeeze())


def spatially_gated(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.fc(m.b(torch.sigmoid(m.gate(y)) * y).mean((2, 3)))


def gated_the_other_way(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.fc(m.b(y * torch.sigmoid(m.gate(y))).mean((2, 3)))


@pytest.mark.parametrize("function", [squeezed, spatially_gated, gated_the_other_way])
def test_widths_before_a_squeeze_or_a_spatial_gate_are_offered(function: Any) -> None:
    module = net(function, a=conv(3, 8), gate=conv(8, 1), b=conv(8, 6), fc=nn.Linear(6, 4))
    network, weights = trace(module, IMAGE)
    assert weights is not None
    assert_computes(network, weights, module, inputs(IMAGE, 4))
    with torch.no_grad():
        assert build(network, weights)(inputs(IMAGE, 1)).shape == (1, 4)
    bound = probed(bind(parse_space(WIDTHS), network), weights)
    assert {site.name for site in bound.free} == {"width:a", "width:b"}


def test_constants_in_several_parts_are_folded() -> None:
    def split(m: Any, x: Tensor) -> Tensor:
        a, b = torch.arange(12.0).chunk(2)
        c, d = torch.stack([torch.arange(6.0), torch.ones(6)]).unbind(0)
        return m.fc(x * a + b) * c + d

    module = net(split, fc=nn.Linear(6, 6))
    assert_computes(*trace(module, (6,)), module, inputs((6,)))


@pytest.mark.parametrize("kind", ["monarch", "circulant"])
def test_a_bias_that_is_computed_outlives_a_structure(kind: str) -> None:
    def joined(m: Any, x: Tensor) -> Tensor:
        return F.linear(x, m.qkv.weight, torch.cat((m.q, m.zeros, m.v)))

    parts = {"q": nn.Parameter(torch.rand(8)), "v": nn.Parameter(torch.rand(8))}
    module = net(joined, qkv=nn.Linear(16, 24, bias=False), zeros=nn.Buffer(torch.zeros(8)), **parts)
    network, weights = trace(module, (5, 16))
    space = parse_space(f"name: s\nrules: [{{match: {{layer: linear}}, structure: [dense, {kind}]}}]")
    bound = bind(space, network)
    (site,) = bound.of_kind("structure")
    changed, values = apply(bound, weights, Candidate.of({site.name: kind}))
    assert values is not None
    nothing = torch.zeros(1, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(build(changed, values)(nothing), module(nothing))


def test_a_batch_norm_with_a_cumulative_average_follows_training() -> None:
    module = net(lambda m, x: m.norm(m.a(x)), a=conv(3, 4), norm=nn.BatchNorm2d(4, momentum=None))
    student = build(*trace(module, IMAGE))  # type: ignore[arg-type]
    before = student.tensor_named("norm.running_mean").clone()
    student.train()
    student(inputs(IMAGE))
    assert not torch.equal(student.tensor_named("norm.running_mean"), before)


def test_a_batch_norm_without_statistics_is_not_folded() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    module = net(lambda m, x: m.norm(m.a(x)), a=conv(3, 4), norm=norm)
    network, weights = fold_batch_norms(*trace(module, IMAGE))
    assert [node.op for node in network.nodes] == ["conv2d", "batch_norm"]
    assert_computes(network, weights, module, inputs(IMAGE))


def test_a_last_batch_of_one_image_spoils_no_statistics() -> None:
    module = net(lambda m, x: m.norm(m.a(x)), a=nn.Linear(4, 4), norm=nn.BatchNorm1d(4))
    student = build(*trace(module, (4,)))  # type: ignore[arg-type]
    used = recalibrate_batch_norms(student, split_of(inputs((4,), 9)).batches(4))
    assert used == 2
    assert torch.isfinite(student.tensor_named("norm.running_var")).all()


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, dropout=0.0)
    return net(lambda m, x: m.layer(x), layer=layer)


def test_rows_of_a_layer_whose_batch_is_the_second_axis_are_all_read() -> None:
    network, weights = trace(attention(), (16, 32))
    assert weights is not None
    found = collect_moments(build(network, weights), solvable_layers(network), [inputs((16, 32), 5)])
    assert {one.rows for one in found.values()} == {16 * 5}
    assert all(np.linalg.matrix_rank(one.second[0]) >= 32 for one in found.values())


def test_no_structure_is_offered_where_the_batch_is_the_second_axis() -> None:
    network, weights = trace(attention(), (16, 32))
    assert weights is not None
    space = parse_space("name: s\nrules: [{match: {layer: linear}, structure: [dense, monarch]}]")
    sites = {site.target: site for site in bind(space, network).sites if site.kind == "structure"}
    (other,) = (
        name for name in sites if network.by_name[name].shape[0] != 1 < len(network.by_name[name].shape) - 1
    )
    assert "second axis" in sites[other].locked
    for name, site in sites.items():
        assert ("batch" in site.locked) == (network.by_name[name].shape[0] != 1)
    part = BlockPart(network.by_name[other].inputs[0], other)
    assert learned(network, weights, part, build(network, weights), split_of(inputs((16, 32), 100))) is None


def test_the_first_layer_behind_a_dropped_block_is_fitted() -> None:
    def two_blocks(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        y = y + m.b(F.relu(m.a(y)))
        y = y + m.d(F.relu(m.c(y)))
        return m.fc(y.mean((2, 3)))

    layers = {"stem": conv(3, 4), "a": conv(4, 8), "b": conv(8, 4), "c": conv(4, 8), "d": conv(8, 4)}
    network, weights = trace(net(two_blocks, **layers, fc=nn.Linear(4, 2)), IMAGE)
    space = parse_space("name: d\nrules: [{match: {block: residual}, block: [keep, drop]}]")
    bound = bind(space, network)
    first = bound.of_kind("block")[0].name
    dropped, _ = apply(bound, weights, Candidate.of({first: "drop"}))
    assert {node.name for node in changed_layers(dropped, network, {})} == {"c", "d", "fc"}


def test_sparsity_by_obs_goes_with_fewer_channels_of_a_depthwise_layer() -> None:
    module = net(
        lambda m, x: m.fc(m.d(F.relu(m.a(x))).mean((2, 3))),
        a=conv(3, 8), d=conv(8, 8, groups=8), fc=nn.Linear(8, 4),
    )  # fmt: skip
    network, weights = trace(module, IMAGE)
    assert weights is not None
    space = parse_space(
        "name: s\nrules: [{match: {layer: any}, width: {keep: [0.5, 1.0], round_to: 1}, "
        "sparsity: {keep: [0.5, 1.0], method: obs}}]"
    )
    bound = bind(space, network)
    images = inputs(IMAGE, 40)
    moments = collect_moments(build(network, weights), solvable_layers(network), [images])
    ones = {group.name: {p.param: np.abs(weights[p.param]) for p in group.places}
            for group in bound.coupling.groups}  # fmt: skip
    saliency: Any = {"l2": ones, MOMENTS: {name: one.second for name, one in moments.items()}}
    candidate = Candidate.of({"width:a": 0.5, "sparsity:d": 0.5})
    changed, values = apply(bound, weights, candidate, saliency)
    assert values is not None
    assert values["d.weight"].shape == (4, 1, 3, 3)
    assert np.count_nonzero(values["d.weight"]) == values["d.weight"].size // 2
    assert changed.by_name["d"].density == 0.5
