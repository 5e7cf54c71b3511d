"""Sparsity and shared values as choices of a search, from the space to the coded file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from priced_networks import Arithmetic, small_resnet
from tiny_networks import stripes, tiny_net

from autocompress.cost.model import CostModel
from autocompress.cost.packed_size import entropy_bits, packed_bytes
from autocompress.cost.pricer import Pricer
from autocompress.errors import SpaceError
from autocompress.export.acz import acz_bytes, load_acz
from autocompress.export.onnx import to_onnx
from autocompress.export.student_folder import load_student, packed_size, save_student
from autocompress.graph.module import build
from autocompress.graph.network import from_json, to_json
from autocompress.graph.trace import trace
from autocompress.pipeline.preparation import priced
from autocompress.problem.budgets import Budgets, Limits
from autocompress.problem.candidate import PACKED_KINDS, Candidate
from autocompress.problem.space import parse_space
from autocompress.search.proposers.solver import Solver
from autocompress.students.builder import StudentBuilder
from autocompress.students.importances import importances
from autocompress.students.training.constraints import held
from autocompress.students.training.settings import DistillSettings
from autocompress.transforms.apply import apply, deployed_network, thinnings_of
from autocompress.transforms.families.sparsity import Thinning, mask_of, rounded, share, shared
from autocompress.transforms.sites import BoundSpace, bind

SPACE = """
name: thin
rules:
  - match: {layer: conv}
    width: {keep: [0.5, 1.0]}
    rank: {method: spatial_svd, keep: [0.25, full]}
    bits: [32, 8]
    sparsity: {keep: [0.1, "2:4", 0.25, 1.0], method: METHOD}
    codebook: [none, 16, 4]
  - match: {layer: linear}
    structure: [dense, monarch]
    sparsity: {keep: [0.25, 1.0]}
    codebook: [none, 8]
  - match: {block: residual}
    optional: true
    block: [keep, drop, depthwise_separable]
"""


def space(method: str = "magnitude"):
    return parse_space(SPACE.replace("METHOD", method))


def resnet(method: str = "magnitude"):
    network, weights = trace(small_resnet(), (1, 16, 16))
    return bind(space(method), network), weights


def builder(method: str = "magnitude") -> StudentBuilder:
    data = stripes()
    network, weights = trace(tiny_net(width=16), data.input_shape)
    bound = bind(space(method), network)
    return StudentBuilder(
        bound, weights, data, importances(bound, weights, data), DistillSettings(batch_size=32)
    )


def density(weight: np.ndarray) -> float:
    return np.count_nonzero(weight) / weight.size


def test_options_are_ordered_by_density_and_survive_the_file() -> None:
    bound, _ = resnet()
    assert bound.by_name["sparsity:blocks.0.conv1"].options == (0.1, 0.25, "2:4", 1.0)
    assert bound.by_name["codebook:blocks.0.conv1"].options == (4, 16, "none")
    assert bound.by_name["sparsity:stem"].options == (0.1, 0.25, 1.0), "one input is no group of four"
    again = parse_space(json.dumps(space().to_json()))
    assert again.fingerprint == space().fingerprint


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("sparsity: {keep: [2:4, 1.0]}", "in quotes"),
        ("sparsity: {keep: ['4:2', 1.0]}", "in quotes"),
        ("sparsity: {keep: [0.5]}", "must contain 1.0"),
        ("sparsity: {keep: [0.5, 1.0], method: random}", "not a choice for 'method'"),
        ("codebook: [16]", "must contain none"),
        ("codebook: [none, 1]", "from 2 to 256"),
    ],
)
def test_what_makes_no_sense_is_refused(written: str, words: str) -> None:
    with pytest.raises(SpaceError, match=words):
        parse_space(f"name: bad\nrules:\n  - match: {{layer: conv}}\n    {written}\n")


def test_zeros_are_as_many_as_chosen_and_the_network_says_so() -> None:
    bound, weights = resnet()
    candidate = Candidate.of(
        {"sparsity:blocks.0.conv1": 0.1, "sparsity:blocks.0.conv2": "2:4", "codebook:blocks.1.conv1": 4}
    )
    network, cut = apply(bound, weights, candidate)
    assert cut is not None and network == apply(bound, None, candidate)[0]
    assert np.count_nonzero(cut["blocks.0.conv1.weight"]) == round(0.1 * 16 * 16 * 9)
    kept = cut["blocks.0.conv2.weight"] != 0
    assert (kept.reshape(16, 4, 4, 3, 3).sum(2) == 2).all()
    assert network.by_name["blocks.0.conv2"].density == 0.5
    assert network.by_name["blocks.1.conv1"].codebook == 4
    assert from_json(to_json(network)) == network
    assert all(np.array_equal(cut[name], weights[name]) for name in cut if "blocks.0" not in name)


def test_a_sparse_layer_may_be_narrow_factorised_and_in_8_bits() -> None:
    bound, weights = resnet()
    width = next(site.name for site in bound.of_kind("width") if "blocks.0.conv1" in site.layers)
    layer = "blocks.0.conv1"
    candidate = Candidate.of(
        {width: 0.5, f"rank:{layer}": 0.25, f"bits:{layer}": 8, f"sparsity:{layer}": 0.25}
    )
    network, cut = apply(bound, weights, candidate)
    parts = [node for node in network.nodes if node.name.startswith(layer) and node.op == "conv2d"]
    assert len(parts) == 2 and cut is not None
    for node in parts:
        assert (node.density, node.bits) == (0.25, 8)
        assert density(cut[node.params[0]]) == pytest.approx(0.25, abs=0.01)


def test_where_another_form_takes_the_layer_sparsity_is_moot() -> None:
    bound, _ = resnet()
    separable = {"block:blocks.0": "depthwise_separable", "codebook:blocks.0.conv1": 4}
    candidate = Candidate.of({**separable, "sparsity:blocks.0.conv1": 0.1})
    assert bound.canonical(candidate) == Candidate.of(separable)
    assert all(node.density == 1 for node in apply(bound, None, candidate)[0].nodes)


def test_a_last_group_of_fewer_keeps_at_most_as_many() -> None:
    scores = np.arange(1.0, 7.0)[None]
    assert mask_of(scores, "2:4").tolist() == [[False, False, True, True, True, True]]
    assert mask_of(scores[:, :5], "1:4").tolist() == [[False, False, False, True, True]]


def test_a_large_weight_is_shared_as_a_small_one() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(400, 500)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.5] = 0
    for part in (weight[:50], weight):
        few = share(part, 8)
        assert len(np.unique(few)) <= 8 and (few[part == 0] == 0).all()
        assert np.square(few - part).mean() < 0.1 * np.square(part).mean()


def test_values_of_a_large_kernel_are_those_of_all_its_taps() -> None:
    """With 9 weights between two that are looked at, only corners would be."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(256, 256, 3, 3)).astype(np.float32)
    weight[:, :, 1, 1] *= 5
    mixed = rng.permutation(weight.ravel()).reshape(weight.shape)
    errors = [np.square(share(one, 16) - one).mean() for one in (weight, mixed)]
    assert errors[0] < 1.2 * errors[1]


@pytest.mark.parametrize("method", ["magnitude", "obd", "obs"])
def test_zeros_and_shared_values_outlive_training_and_the_file(method: str, tmp_path: Path) -> None:
    shop = builder(method)
    candidate = Candidate.of({"sparsity:conv2": 0.25, "codebook:conv2": 16, "codebook:fc": 8})
    module = shop.start(candidate)
    zeros = module.export_weights()["conv2.weight"] == 0
    assert zeros.sum() == round(0.75 * zeros.size)
    shop.train(module, 2)
    assert (module.export_weights()["conv2.weight"][zeros] == 0).all()
    before = shop.quantized(module)
    tuned = build(before.source_network, before.export_weights())
    shop.train(tuned, 2)
    found = tuned.export_weights()
    for name, count in (("conv2.weight", 16), ("fc.weight", 8)):
        assert len(np.unique(found[name])) <= count
        assert not np.array_equal(found[name], before.export_weights()[name]), "centroids move"
    assert (found["conv2.weight"][zeros] == 0).all()
    network = tuned.source_network
    save_student(
        tmp_path / "s", network=network, weights=found, onnx_model=to_onnx(network, found),
        spec_extra={"choices": candidate.to_json()}, bench={}, readme="",
    )  # fmt: skip
    assert load_student(tmp_path / "s").source_network == network
    coded = load_acz(tmp_path / "s" / "student.acz")
    assert all(np.array_equal(coded.export_weights()[name], found[name]) for name in found)
    assert packed_size(tmp_path / "s") < (tmp_path / "s" / "model.safetensors").stat().st_size


def test_a_finished_student_stores_half_precision_and_few_levels() -> None:
    """Also after its centroids and biases were tuned, and its biases corrected for rounded weights."""
    shop = builder("magnitude")
    finished = shop.finish(Candidate.of({"codebook:fc": 8, "bits:conv2": 8, "codebook:conv2": 16}), 1, 1)
    assert finished is not None
    for layer in ("fc", "conv2"):
        weight, bias = (finished.weights[name] for name in finished.network.by_name[layer].params)
        assert np.array_equal(weight.astype(np.float16).astype(np.float32), weight)
        step = 2.0 ** np.ceil(np.log2(np.abs(bias).max() / 127))
        assert len(np.unique(bias)) > 2 and np.array_equal(bias, np.rint(bias / step) * step)
    free = finished.weights[finished.network.by_name["conv1"].params[1]]
    assert not np.array_equal(free.astype(np.float16).astype(np.float32), free)


def test_values_that_half_precision_does_not_have_stay_as_they_are() -> None:
    network, weights = trace(tiny_net(), stripes().input_shape)
    network = network.with_nodes(
        node.but(codebook=2) if node.op == "linear" else node for node in network.nodes
    )
    for value in (1e-7, 1e6):
        weights["fc.weight"] = np.where(weights["fc.weight"] > 0, value, 0).astype(np.float32)
        weights["fc.bias"] = np.zeros_like(weights["fc.bias"])
        found = rounded(network, weights)
        assert all(np.array_equal(found[name], weights[name]) for name in weights)


def test_nothing_is_held_where_nothing_was_chosen() -> None:
    shop = builder()
    module = shop.start(Candidate())
    with held(module) as grip:
        assert not grip._handles
    assert not any(node.density < 1 or node.codebook for node in module.source_network.nodes)


def test_entropy_by_hand() -> None:
    assert entropy_bits(0.5) == 1 and entropy_bits(1.0) == 0
    assert entropy_bits(0.25) == pytest.approx(0.25 * 2 + 0.75 * np.log2(4 / 3))


def test_coded_bytes_are_about_as_estimated() -> None:
    bound, weights = resnet()
    for choices in (
        {"sparsity:blocks.0.conv1": 0.1, "sparsity:blocks.1.conv2": 0.25},
        {f"codebook:blocks.{block}.conv{layer}": 16 for block in (0, 1) for layer in (1, 2)},
    ):
        rng = np.random.default_rng(0)
        as_trained = {
            name: rng.laplace(0, 0.1, array.shape).astype(np.float32) if array.ndim > 1 else array
            for name, array in weights.items()
        }
        network, cut = apply(bound, as_trained, Candidate.of(choices))
        assert cut is not None
        actual = len(acz_bytes(network, rounded(network, shared(network, cut))))
        assert actual <= packed_bytes(network, 0) < 1.35 * actual


def small_pricer(bound: BoundSpace) -> Pricer:
    return Pricer(bound, CostModel(Arithmetic(measured=((3, 1), (1, 1), (3, 16)))))


def test_only_a_budget_of_the_packed_size_brings_them_into_a_search() -> None:
    bound, _ = resnet()
    device = Arithmetic()
    without = priced(bound, device, Budgets(latency_ms=1, size_mib=1).limited).bound
    assert not without.of_kind("sparsity") and not without.of_kind("codebook")
    reasons = {reason for name, _, reason in without.dropped if name.startswith("sparsity")}
    assert reasons == {"makes only student.acz smaller, and nothing faster"}
    offered = priced(bound, device, Budgets(packed_size_ratio=0.1).limited).bound
    assert offered.of_kind("sparsity") and offered.of_kind("codebook")


def test_the_solver_keeps_a_budget_of_the_packed_size() -> None:
    bound, _ = resnet()
    pricer = small_pricer(bound)
    damage = {
        (site.name, option): (0.01 if site.kind in PACKED_KINDS else 1.0) * (len(site.options) - index)
        for site in bound.free
        for index, option in enumerate(site.options)
        if option != site.default and site.kind != "bits"
    }
    limits = Limits(packed_bytes=round(0.15 * pricer.teacher.packed_bytes))
    answer = Solver(pricer, damage).solve(limits)
    assert answer is not None and not limits.violated(pricer.price(answer))
    assert any(name.startswith(("sparsity", "codebook")) for name, _ in answer.choices)
    assert pricer.price(answer).packed_bytes == packed_bytes(deployed_network(bound, answer), 0)


def test_a_thinning_knows_its_density() -> None:
    assert Thinning("1:4", "magnitude").density == 0.25


@pytest.mark.parametrize("method", ["l1", "l0", "decay", "gradual"])
def test_training_that_finds_its_zeros_ends_at_the_density(method: str) -> None:
    shop = builder(method)
    candidate = Candidate.of({"sparsity:conv2": "2:4"})
    module = shop.start(candidate, trains=True)
    assert (module.export_weights()["conv2.weight"] != 0).all()
    shop.train(module, 4, thinnings=thinnings_of(shop.bound, module.source_network, candidate))
    kept = module.export_weights()["conv2.weight"] != 0
    assert (kept.reshape(16, 4, 4, 3, 3).sum(2) == 2).all()
    untrained = shop.start(candidate).export_weights()["conv2.weight"]
    assert density(untrained) == 0.5, "without training they are made at once"


def test_rounding_to_8_bits_leaves_zeros_alone() -> None:
    data = stripes()
    network, weights = trace(tiny_net(width=16), data.input_shape)
    rules = "quantize: {rounding: adaptive}\n" + SPACE.replace("METHOD", "magnitude")
    bound = bind(parse_space(rules), network)
    shop = StudentBuilder(bound, weights, data, importances(bound, weights, data))
    module = shop.start(Candidate.of({"sparsity:conv2": 0.25, "bits:conv2": 8}))
    zeros = module.export_weights()["conv2.weight"] == 0
    assert (shop.quantized(module).export_weights()["conv2.weight"][zeros] == 0).all() and zeros.any()
