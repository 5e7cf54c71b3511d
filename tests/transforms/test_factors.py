"""Decompositions of weights, against numpy's SVD, on weights of the rank asked for, and on data."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from written_networks import assert_computes, inputs, net

from autocompress.graph.module import build
from autocompress.graph.trace import trace
from autocompress.problem.space import parse_space
from autocompress.students.calibration.layer_inputs import collect_moments, solvable_layers
from autocompress.transforms.arrays import factors
from autocompress.transforms.families import low_rank
from autocompress.transforms.rank_start import needed_share, rank_start
from autocompress.transforms.sites import bind

RNG = np.random.default_rng(0)


def rebuilt(method: str, parts: tuple[Any, ...]) -> np.ndarray:
    if method == "spatial_svd":
        return np.einsum("riyz,orzx->oiyx", *parts)
    first, middle, last = parts
    ends = first.reshape(first.shape[:2]), last.reshape(last.shape[:2])
    if method == "cp":
        return np.einsum("rzyx,ri,or->oiyx", middle, *ends)
    return np.einsum("rsyx,si,or->oiyx", middle, *ends)


def of_rank(method: str, rank: int) -> np.ndarray:
    """A random `(10, 8, 3, 2)` weight with factors of this rank."""
    if method == "spatial_svd":
        return rebuilt(method, (RNG.normal(size=(rank, 8, 3, 1)), RNG.normal(size=(10, rank, 1, 2))))
    if method == "cp":
        shapes = (rank, 8), (rank, 1, 3, 2), (10, rank)
    else:
        shapes = (rank, 8), (rank, rank, 3, 2), (10, rank)
    return rebuilt(method, tuple(RNG.normal(size=shape) for shape in shapes))


DECOMPOSE = {
    "spatial_svd": factors.spatial_svd,
    "cp": factors.cp,
    "tucker2": lambda weight, rank: factors.tucker2(weight, rank, rank),
}


@pytest.mark.parametrize("method", DECOMPOSE)
@pytest.mark.parametrize("rank", [1, 3])
def test_weights_of_a_rank_are_reproduced(method: str, rank: int) -> None:
    weight = of_rank(method, rank)
    found = rebuilt(method, DECOMPOSE[method](weight, rank))
    assert np.linalg.norm(found - weight) < 0.02 * np.linalg.norm(weight)


def test_spatial_svd_leaves_only_the_smallest_singular_values_out() -> None:
    for shape in ((10, 8, 3, 2), (4, 12, 3, 5)):
        weight = RNG.normal(size=shape)
        out, into, height, width = shape
        matrix = weight.transpose(1, 2, 0, 3).reshape(into * height, out * width)
        singular = np.linalg.svd(matrix, compute_uv=False)
        error = weight - rebuilt("spatial_svd", factors.spatial_svd(weight, 6))
        assert np.linalg.norm(error) == pytest.approx(np.linalg.norm(singular[6:]), rel=1e-6)


def test_cp_gets_closer_with_more_terms_and_keeps_its_terms_small() -> None:
    weight = RNG.normal(size=(10, 8, 3, 3))
    errors = []
    for rank in (2, 8, 24):
        parts = factors.cp(weight, rank)
        errors.append(np.linalg.norm(weight - rebuilt("cp", parts)) / np.linalg.norm(weight))
        assert max(np.abs(part).max() for part in parts) < 10
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.6


def test_data_aware_svd_against_the_singular_values_of_the_outputs() -> None:
    data = RNG.normal(size=(400, 8)) @ RNG.normal(size=(8, 8))
    weight = RNG.normal(size=(6, 8))
    outputs = data @ weight.T
    singular = np.linalg.svd(outputs, compute_uv=False)
    second = data.T @ data / 400

    def error(parts: tuple[np.ndarray, np.ndarray]) -> float:
        return float(np.linalg.norm(outputs - data @ (parts[1] @ parts[0]).T))

    aware = error(factors.svd(weight, 3, second))
    assert aware == pytest.approx(np.linalg.norm(singular[3:]), rel=1e-6)
    assert aware < 0.9 * error(factors.svd(weight, 3))


@pytest.mark.parametrize("method", ["tucker2", "spatial_svd"])
def test_minding_the_data_brings_outputs_of_correlated_inputs_closer(method: str) -> None:
    torch.manual_seed(0)
    module = net(lambda m, x: m.layer(x), layer=nn.Conv2d(12, 16, 3, padding=1))
    x = torch.einsum("nchw,cd->ndhw", inputs((12, 8, 8), 16), torch.randn(12, 12) * torch.logspace(0, -2, 12))
    network, weights = trace(module, (12, 8, 8))
    (node,) = solvable_layers(network)
    second = collect_moments(build(network, weights), [node], [x])["layer"].second[0]
    errors = []
    for moments in (None, second):
        student = build(*low_rank.factorize(network, weights, "layer", 0.25, 1, method, moments))  # type: ignore[arg-type]
        with torch.no_grad():
            errors.append(float((student(x) - module(x)).square().mean()))
    assert errors[1] < 0.7 * errors[0]


FORMS: dict[str, nn.Conv2d] = {
    "strided": nn.Conv2d(8, 12, 3, 2, 1),
    "dilated, not square": nn.Conv2d(8, 12, (3, 5), (1, 2), (2, 2), (2, 1), bias=False),
    "same padding": nn.Conv2d(8, 12, 3, padding="same"),
}
SHAPES = {
    "spatial_svd": lambda r, k: {"reduce": (r, 8, k[0], 1), "": (12, r, 1, k[1])},
    "cp": lambda r, k: {"reduce": (r, 8, 1, 1), "core": (r, 1, *k), "": (12, r, 1, 1)},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", SHAPES)
def test_factors_of_a_layer_compute_what_their_product_does(form: str, method: str) -> None:
    torch.manual_seed(0)
    module = net(lambda m, x: F.relu(m.layer(x)), layer=FORMS[form])
    dense = tuple(module.layer.weight.shape)
    network, weights = trace(module, (8, 9, 9))
    rank = low_rank.ranks(dense, 0.25, 1, method)
    assert rank == (min(8 * dense[2], 12 * dense[3]) // 4,)
    reduced, cut = low_rank.factorize(network, weights, "layer", 0.25, 1, method)
    assert cut is not None
    shapes = {
        f"layer.{suffix}".rstrip(".") + ".weight": shape
        for suffix, shape in SHAPES[method](rank[0], dense[2:]).items()
    }
    assert {name: spec.shape for name, spec in reduced.params.items() if "weight" in name} == shapes
    assert sum(map(np.prod, shapes.values())) == low_rank.parameters(dense, rank, method)
    product = rebuilt(method, tuple(cut[name] for name in shapes))
    module.layer.weight.data = torch.from_numpy(product.astype(np.float32))
    assert_computes(reduced, cut, module, inputs((8, 9, 9)))


def test_a_method_that_does_not_apply_is_refused() -> None:
    network, weights = trace(net(lambda m, x: m.layer(x), layer=nn.Conv2d(8, 8, 1)), (8, 5, 5))
    with pytest.raises(ValueError, match="layer has no cp"):
        low_rank.factorize(network, weights, "layer", 0.5, 1, "cp")
    node = network.by_name["layer"]
    assert low_rank.method_for(node, (8, 8, 1, 1), "spatial_svd") == ""
    assert low_rank.method_for(node, (8, 8, 1, 1)) == "svd"


def test_energy_by_hand() -> None:
    matrix = np.diag([3.0, 2.0, 1.0, 0.0])  # squares 9, 4, 1 of 14
    assert [factors.energy_rank(matrix, share) for share in (0.5, 0.9, 0.95, 1.0)] == [1, 2, 3, 3]


@pytest.mark.parametrize(("shape", "rank"), [((60, 90), 5), ((90, 60), 12), ((64, 64), 1)])
def test_vbmf_finds_the_rank_below_noise(shape: tuple[int, int], rank: int) -> None:
    rows, columns = shape
    signal = RNG.normal(size=(rows, rank)) @ RNG.normal(size=(rank, columns))
    for noise in (0.1, 0.5):
        assert factors.vbmf_rank(signal + noise * RNG.normal(size=shape)) == rank
    assert factors.vbmf_rank(RNG.normal(size=shape)) == 0
    assert factors.vbmf_rank(np.zeros(shape)) == 0


def test_the_share_that_a_layer_needs() -> None:
    weight = of_rank("tucker2", 2) + 0.01 * RNG.normal(size=(10, 8, 3, 2))
    assert needed_share(weight, "tucker2") == pytest.approx(2 / 8)
    assert needed_share(RNG.normal(size=(40, 50)), "svd") == 1.0
    low = RNG.normal(size=(40, 3)) @ RNG.normal(size=(3, 50)) + 0.1 * RNG.normal(size=(40, 50))
    assert needed_share(low[:, :, None, None], "svd") == pytest.approx(3 / 40)


def test_ranks_to_start_from() -> None:
    """A layer of rank 3, one that is noise, and one that is not offered any rank."""
    rules = (
        "name: s\nrules:\n  - match: {layer: linear, name: '[ab]'}\n    rank: {keep: [0.05, 0.1, 0.5, full]}"
    )
    module = net(lambda m, x: m.c(m.b(m.a(x))), a=nn.Linear(40, 40), b=nn.Linear(40, 40), c=nn.Linear(40, 5))
    low = RNG.normal(size=(40, 3)) @ RNG.normal(size=(3, 40)) + 0.1 * RNG.normal(size=(40, 40))
    module.a.weight.data = torch.from_numpy(low.astype(np.float32))
    module.b.weight.data = torch.from_numpy(RNG.normal(size=(40, 40)).astype(np.float32))
    network, weights = trace(module, (40,))
    found = rank_start(bind(parse_space(rules), network), weights)
    assert found.to_json() == {"rank:a": 0.1}
