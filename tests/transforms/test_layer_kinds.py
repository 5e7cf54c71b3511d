"""Every kind of layer goes the whole way: its choices are offered, carried out, priced, exported and run."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from layer_networks import KINDS, Kind, recurrent
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from written_networks import assert_computes, inputs, with_channels_left_out

from autocompress.cost.kernels import kernels, macs
from autocompress.device.runtimes.base import get_runtime
from autocompress.export.onnx import to_onnx
from autocompress.export.parity import FLOAT_ERROR, check_model, check_parity
from autocompress.graph.module import build
from autocompress.graph.network import Network, Param, Weights, from_json, to_json
from autocompress.graph.operations import WEIGHTED
from autocompress.graph.trace import trace
from autocompress.problem.space import load_space
from autocompress.students.calibration.activation_ranges import collect_ranges
from autocompress.students.calibration.layer_inputs import layer_outputs, solvable_layers
from autocompress.transforms.apply import apply, deployed
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.prune import keep_mask, prune
from autocompress.transforms.families.quantize import plan, with_ranges
from autocompress.transforms.sampling import random_candidate
from autocompress.transforms.sites import BoundSpace, bind

CANDIDATES = 8


def opened(kind: Kind, space: str = "all") -> tuple[nn.Module, BoundSpace, Weights]:
    torch.manual_seed(0)
    module = kind.build()
    network, weights = trace(module, kind.shape)
    return module, bind(load_space(space), network), weights


def shipped(network: Network, weights: Weights, images: torch.Tensor) -> tuple[Network, Weights]:
    """The network in the form that ships, with the ranges of these images."""
    folded, values = fold_batch_norms(network, weights)
    assert values is not None
    planned = plan(folded)
    if not planned:
        return folded, values
    return with_ranges(folded, collect_ranges(build(folded, values), planned, [(images, images)])), values


@pytest.mark.parametrize("name", KINDS)
def test_every_layer_with_weights_is_a_choice_or_says_why_not(name: str) -> None:
    kind = KINDS[name]
    _, bound, _ = opened(kind, "joint")
    free = {which: {site.target for site in bound.of_kind(which)} for which in ("width", "rank", "bits")}
    assert free["width"] >= kind.widths
    assert free["rank"] >= kind.ranks
    assert free["bits"] >= kind.bits
    told = {layer for site in bound.sites for layer in site.layers}
    weighted = {
        node.name
        for node in bound.network.nodes
        if node.op in WEIGHTED and any(isinstance(arg, Param) for arg in node.args[:2])
    }
    assert told >= weighted
    assert all(site.locked for site in bound.sites if len(site.options) == 1)


def test_what_runs_as_it_is_is_named_with_its_operation() -> None:
    network, _ = trace(recurrent(), (6, 5))
    locked = {site.target: site.locked for site in bind(load_space("joint"), network).sites if site.locked}
    assert "gru runs as it is" in locked.values()


@pytest.mark.parametrize("name", KINDS)
def test_half_of_every_width_computes_what_the_whole_network_does_with_zeros(name: str) -> None:
    kind = KINDS[name]
    _, bound, weights = opened(kind)
    rng = np.random.default_rng(0)
    saliency = {param: rng.random(array.shape) for param, array in weights.items()}
    halves = {site.target: site.settings.size // 2 for site in bound.of_kind("width")}  # type: ignore[union-attr]
    keep = keep_mask(bound.coupling, halves, dict.fromkeys(halves, saliency))
    pruned, cut = prune(bound.coupling, weights, keep)
    whole = with_channels_left_out(bound.coupling, weights, keep)
    assert_computes(pruned, cut, whole, inputs(kind.shape))
    before, after = (sum(kernel.macs for kernel in kernels(one)) for one in (bound.network, pruned))
    assert after < 0.75 * before


@pytest.mark.parametrize("name", KINDS)
def test_random_candidates_run_as_files_as_they_do_as_modules(name: str) -> None:
    kind = KINDS[name]
    module, bound, weights = opened(kind)
    images = inputs(kind.shape, 8)
    assert_computes(bound.network, weights, module, images)
    rng = random.Random(0)
    for index in range(CANDIDATES):
        precision = ("fp32", "int8", "mixed")[index % 3]
        candidate = random_candidate(bound, rng, precision)
        network, values = apply(bound, weights, candidate)
        assert values is not None
        network, values = shipped(network, values, images)
        priced, _ = deployed(apply(bound, None, candidate)[0])
        assert kernels(priced) == kernels(network)
        assert from_json(to_json(network)) == network
        model = to_onnx(network, values)
        check_model(model)
        session = get_runtime("onnxruntime").load(model.SerializeToString(), 1)
        parity = check_parity(build(network, values), session.run, images, rounds=bool(plan(network)))
        assert plan(network) or parity.max_error < FLOAT_ERROR / 10


@pytest.mark.parametrize("name", KINDS)
def test_what_a_layer_multiplies_gives_what_it_computes(name: str) -> None:
    """Rows of its input, by which least squares fits layers, times its weight."""
    kind = KINDS[name]
    _, bound, weights = opened(kind)
    images = inputs(kind.shape)
    layers = solvable_layers(bound.network)
    built = build(bound.network, weights)
    found = layer_outputs(built, layers, images, limit=10**6)
    values = built.forward_values(images, [node.name for node in layers])
    for node in layers:
        computed = values[node.name].movedim(1, -1) if node.op != "linear" else values[node.name]
        torch.testing.assert_close(found[node.name], computed.flatten(0, -2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_kernels_count_every_multiplication(name: str) -> None:
    kind = KINDS[name]
    module, bound, _ = opened(kind)
    with FlopCounterMode(display=False) as counter:
        module(inputs(kind.shape, 1))
    exactly = name != "attention"  # Torch does not count all of its own attention.
    assert macs(bound.network) == pytest.approx(counter.get_total_flops() / 2, rel=0 if exactly else 0.03)
