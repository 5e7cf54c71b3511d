"""Compact forms of convolutions: weights that have the form are reproduced, others approached."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from written_networks import Net, assert_computes, conv, inputs, net

from autocompress.device.runtimes.base import get_runtime
from autocompress.export.onnx import to_onnx
from autocompress.graph.blocks import residual_blocks
from autocompress.graph.module import build
from autocompress.graph.network import from_json, to_json
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import parse_space
from autocompress.transforms.apply import apply, deployed
from autocompress.transforms.families import compact
from autocompress.transforms.sites import bind

SHAPE = (8, 7, 7)


def residual(layer: nn.Conv2d) -> Net:
    return net(lambda m, x: m.out(F.relu(m.layer(x))) + x, layer=layer, out=conv(16, 8))


def with_form(kind: str, layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with a random weight that has this form."""
    generator = np.random.default_rng(0)
    out, into, *kernel = layer.weight.shape
    weight = generator.normal(size=tuple(layer.weight.shape))
    order = generator.permutation(out)
    if kind == "depthwise_separable":
        weight = generator.normal(size=(out, into, 1, 1)) * generator.normal(size=(1, into, *kernel))
    elif kind == "grouped_shuffle":
        groups = 4
        for a in range(groups):
            for b in range(groups):
                rows = slice(a * out // groups, (a + 1) * out // groups)
                columns = slice(b * into // groups, (b + 1) * into // groups)
                filters = generator.normal(size=(1, into // groups, *kernel))
                weight[rows, columns] = generator.normal(size=(out // groups, 1, 1, 1)) * filters
    elif kind == "ghost":
        weight[order[out // 2 :]] = -0.7 * weight[order[: out // 2]]
    elif kind == "sign_sharing":
        weight[order[out // 2 :]] = -weight[order[: out // 2]]
    elif kind == "inverted_bottleneck":
        parts = (generator.normal(size=(size, 2)) for size in (out, into, kernel[0] * kernel[1]))
        weight = np.einsum("or,ir,kr->oik", *parts).reshape(weight.shape)
    elif kind == "fire":
        basis = np.linalg.qr(generator.normal(size=(into, into // 2)))[0]
        core = generator.normal(size=(out, into // 2, *kernel))
        points = core[order[: out // 2]]
        centre = points[:, :, kernel[0] // 2, kernel[1] // 2].copy()
        points[:] = 0
        points[:, :, kernel[0] // 2, kernel[1] // 2] = centre
        core[order[: out // 2]] = points
        weight = np.einsum("oskl,is->oikl", core, basis)
    layer.weight.data = torch.from_numpy(weight.astype(np.float32))
    return layer


FORMS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "no bias": {"kernel_size": 3, "padding": 1, "bias": False},
    "same": {"kernel_size": (3, 5), "padding": "same"},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", compact.COMPACT)
def test_weights_of_the_form_are_reproduced_and_run_everywhere(kind: str, form: str) -> None:
    torch.manual_seed(0)
    module = residual(with_form(kind, nn.Conv2d(8, 16, **FORMS[form])))
    network, weights = trace(module, SHAPE)
    (block,) = residual_blocks(network)
    assert compact.compact_layers(network, block, kind) == ("layer",)
    changed, values = compact.compact(network, weights, block, kind)
    assert values is not None and changed == compact.compact(network, None, block, kind)[0]
    assert changed.by_name["layer"].shape == network.by_name["layer"].shape
    assert changed.parameter_count < network.parameter_count
    assert from_json(to_json(changed)) == changed
    x = inputs(SHAPE)
    assert_computes(changed, values, module, x)
    session = get_runtime("onnxruntime").load(to_onnx(changed, values, batch=4).SerializeToString(), 1)
    np.testing.assert_allclose(session.run(x.numpy()), build(changed, values)(x).detach(), atol=1e-4)


@pytest.mark.parametrize("kind", compact.COMPACT)
def test_a_strided_layer_keeps_its_stride(kind: str) -> None:
    torch.manual_seed(0)
    module = net(
        lambda m, x: m.layer(x) + m.short(x),
        layer=with_form(kind, nn.Conv2d(8, 16, 3, 2, 1)),
        short=conv(8, 16, stride=2),
    )
    network, weights = trace(module, SHAPE)
    (block,) = residual_blocks(network)
    assert_computes(*compact.compact(network, weights, block, kind), module, inputs(SHAPE))


def test_parameters_by_hand() -> None:
    network, _ = trace(residual(nn.Conv2d(8, 16, 3, padding=1, bias=False)), SHAPE)
    (block,) = residual_blocks(network)
    rest = network.parameter_count - 16 * 8 * 9
    counts = {
        kind: compact.compact(network, None, block, kind)[0].parameter_count - rest
        for kind in compact.COMPACT
    }
    assert counts == {
        "depthwise_separable": 8 * 9 + 16 * 8,
        "grouped_shuffle": 16 * 2 * 9 + 16 * 4,
        "ghost": 8 * 8 * 9 + 8 * 9,
        "sign_sharing": 8 * 8 * 9,
        "fire": 4 * 8 + 8 * 4 + 8 * 4 * 9,
        "inverted_bottleneck": 16 * 8 + 16 * 9 + 16 * 16,
    }


def test_pairs_by_hand() -> None:
    likeness = np.array([[0, 1, 5, 2], [1, 0, 4, 3], [5, 4, 0, 9], [2, 3, 9, 0]])
    assert compact.pairs(likeness) == [(2, 3), (0, 1)]


def test_the_larger_of_two_filters_stays() -> None:
    weight = np.array([[1.0, 0, 0], [0, 0, 3], [0, 0, -1], [2, 1, 0]])[..., None, None]
    kept, ghosts, factors = compact.ghost_pairs(weight)
    assert (kept, ghosts) == ([1, 3], [2, 0])
    assert factors == pytest.approx([-1 / 3, 2 / 5])


def test_what_cannot_take_a_form_is_left_out() -> None:
    def kinds(layer: nn.Conv2d) -> set[str]:
        out = layer.weight.shape[0]
        module = net(lambda m, x: m.out(m.layer(x)) + x, layer=layer, out=conv(out, 8, 1))
        network, _ = trace(module, SHAPE)
        blocks = residual_blocks(network)
        return {kind for kind in compact.COMPACT if compact.compact_layers(network, blocks[0], kind)}

    every = set(compact.COMPACT)
    assert kinds(nn.Conv2d(8, 16, 3, padding=1)) == every
    assert kinds(nn.Conv2d(8, 15, 3, padding=1)) == {"depthwise_separable", "inverted_bottleneck"}
    assert kinds(nn.Conv2d(8, 6, 3, padding=1)) == every - {"grouped_shuffle"}
    assert kinds(nn.Conv2d(8, 16, 3, padding=1, groups=2)) == set()
    assert kinds(nn.Conv2d(8, 16, 4, padding="same")) == every - {"fire"}


SPACE = """
name: small
rules:
  - match: {layer: conv}
    width: {keep: [0.5, 0.75, 1.0]}
    rank: {keep: [0.5, full]}
    bits: [8, 32]
  - match: {block: residual}
    block: [keep, drop, depthwise_separable, grouped_shuffle, ghost, sign_sharing, fire, inverted_bottleneck]
"""


def nested() -> Net:
    """A block within a block."""
    return net(
        lambda m, x: m.head((y := m.stem(x)) + m.c((z := m.a(y)) + m.b(F.relu(z)))),
        stem=conv(8, 16),
        a=conv(16, 16, 3),
        b=conv(16, 16, 3),
        c=conv(16, 16, 3),
        head=conv(16, 4),
    )


def test_candidates_mean_what_their_canonical_forms_do() -> None:
    network, weights = trace(nested(), SHAPE)
    space = bind(parse_space(SPACE), network)
    assert len(space.of_kind("block")) == 2
    rng = random.Random(0)
    for _ in range(150):
        choices = {site.name: rng.choice(site.options) for site in space.free}
        candidate = Candidate.of(choices)
        canonical = space.canonical(candidate)
        assert space.canonical(canonical) == canonical
        network_of, cut = apply(space, weights, candidate)
        assert network_of == apply(space, None, canonical)[0]
        assert cut is not None and cut.keys() == network_of.params.keys()
        deployed(network_of, cut)
