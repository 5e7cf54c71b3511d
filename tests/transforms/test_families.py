"""Networks as people use them, all the way from the module to the file that ONNX Runtime runs."""

import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from doc_examples import examples_in
from places import DATA
from safetensors.numpy import load_file
from torch import Tensor, nn
from written_networks import assert_computes, inputs, with_zeros

from autocompress.cost.kernels import kernels
from autocompress.cost.memory import weight_bytes
from autocompress.device.runtimes.base import get_runtime
from autocompress.export.onnx import to_onnx
from autocompress.export.parity import check_model, check_parity
from autocompress.export.student_folder import load_student, save_student
from autocompress.graph.coupling import couple
from autocompress.graph.module import build
from autocompress.graph.network import XNOR, Network, Weights
from autocompress.graph.trace import trace
from autocompress.problem.candidate import KINDS, PACKED_KINDS
from autocompress.problem.space import Space, load_space, parse_space
from autocompress.problem.space_rules import Rule
from autocompress.problem.teacher import load_teacher
from autocompress.students.calibration.activation_ranges import collect_ranges
from autocompress.transforms.apply import apply, deployed_network
from autocompress.transforms.arrays.masks import kept_weights
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.prune import keep_mask, prune
from autocompress.transforms.families.quantize import plan, with_ranges
from autocompress.transforms.probe import probed
from autocompress.transforms.sampling import random_candidate
from autocompress.transforms.sites import bind

CIFAR = DATA / "teachers/cifar_resnet.py"
needs_cifar = pytest.mark.skipif(not CIFAR.exists(), reason="needs the CIFAR teachers")

TIMM = {
    "timm:resnet34,channels=64/96/128/160,num_classes=10": 32,
    "timm:mobilenetv3_small_100,num_classes=10": 64,
    "timm:convnext_atto,num_classes=10": 64,
    "timm:vit_tiny_patch16_224,img_size=64,num_classes=10": 64,
}
FAMILIES = [
    *(pytest.param(spec, TIMM[spec], id=spec.split(",")[0].removeprefix("timm:")) for spec in TIMM),
    *(
        pytest.param(f"{CIFAR}:load,depth={depth}", 32, id=f"cifar_resnet{depth}", marks=needs_cifar)
        for depth in (20, 56)
    ),
]
WITHOUT_LAYER_NORM = [family for family in FAMILIES if "convnext" not in family.id and "vit" not in family.id]
"""Where what a channel is scaled by does not depend on the others."""


@cache
def traced(spec: str, size: int) -> tuple[Network, Weights]:
    """Random weights where none are given; what starts at zero would hide what lies before it."""
    torch.manual_seed(0)
    module = load_teacher(spec).module
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return trace(module, (3, size, size))


def calibrated(network: Network, weights: Weights | None, images: Tensor) -> tuple[Network, Weights]:
    network, weights = fold_batch_norms(network, weights)
    assert weights is not None
    batch = images, torch.zeros(len(images), dtype=torch.int64)
    values = plan(network)
    ranges = collect_ranges(build(network, weights), values, [batch]) if values else {}
    return with_ranges(network, ranges), weights


def quantized_values(network: Network) -> set[str]:
    return {node.name for node in network.nodes if node.quantizer is not None}


def test_all_that_the_documentation_shows_is_offered_somewhere() -> None:
    """Every option in the examples of docs/families.md, over the four networks from timm together."""
    kinds = set()
    for example in examples_in("families.md"):
        shown = {
            (kind, str(option)) for rule in parse_space(example).rules for kind, option in options_of(rule)
        }
        assert offered(without_misses(example)) == shown
        kinds |= {kind for kind, _ in shown}
    assert kinds == set(KINDS)


def options_of(rule: Rule) -> Iterator[tuple[str, object]]:
    for kind in KINDS:
        found = getattr(rule, kind) or ()
        for option in getattr(found, "keep", found):
            yield kind, option


def offered(space: Space) -> set[tuple[str, str]]:
    bounds = [bind(space, traced(spec, size)[0]) for spec, size in TIMM.items()]
    return {(site.kind, str(option)) for bound in bounds for site in bound.free for option in site.options}


def without_misses(example: str) -> Space:
    """The space of an example, whose rules may match nothing in one of the networks."""
    return parse_space(re.sub(r"(?m)^  - match: (.*)$", r"  - match: \1\n    optional: true", example))


@pytest.mark.parametrize("name", ["joint", "all"])
@pytest.mark.parametrize(("spec", "size"), FAMILIES)
def test_random_candidates_run_as_they_were_priced_and_trained(
    spec: str, size: int, name: str, tmp_path: Path
) -> None:
    network, weights = traced(spec, size)
    before = {param: value.copy() for param, value in weights.items()}
    bound = bind(load_space(name), network)
    space = probed(bound, weights)
    assert all(bool(site.locked) == (site.options == (site.default,)) for site in space.sites)
    offered = {site.kind for site in space.free}
    assert offered >= set(KINDS) - {"structure", "merge", *PACKED_KINDS}
    assert space.dropped == bound.dropped
    assert {option for _, option, _ in bound.dropped} <= {XNOR}
    assert (offered >= PACKED_KINDS) == (name == "all")
    images = inputs((3, size, size), 24)
    rng = random.Random(0)
    for precision in ("fp32", "int8", "mixed"):
        candidate = random_candidate(space, rng, precision)
        assert space.canonical(candidate) == candidate
        changed, cut = apply(space, weights, candidate)
        assert cut is not None and changed == apply(space, None, candidate)[0]
        assert {param: value.shape for param, value in cut.items()} == {
            param: one.shape for param, one in changed.params.items()
        }
        for node in changed.nodes:
            if node.density < 1 and node.density != 0.5:  # which may be two of every four
                weight = cut[node.params[0]]
                assert np.count_nonzero(weight) == kept_weights(weight.size, node.density)
        student = calibrated(changed, cut, images)
        priced = deployed_network(space, candidate)
        assert [(node.name, node.op, node.shape) for node in priced.nodes] == [
            (node.name, node.op, node.shape) for node in student[0].nodes
        ]
        folded = deployed_network(space.folded, candidate)
        assert kernels(folded) == kernels(priced)
        assert quantized_values(priced) == quantized_values(student[0])
        assert bool(plan(priced)) == (precision != "fp32")
        model = to_onnx(*student)
        check_model(model)
        session = get_runtime("onnxruntime").load(model.SerializeToString(), 1)
        check_parity(build(*student), session.run, images, rounds=precision != "fp32")
        save_student(
            tmp_path / precision,
            network=student[0],
            weights=student[1],
            onnx_model=model,
            spec_extra={"choices": candidate.to_json()},
            bench={},
            readme="",
            coded=False,
        )
        stored = load_file(tmp_path / precision / "model.safetensors")
        counted = priced.params.keys() - priced.steps
        assert sum(stored[param].nbytes for param in counted) == weight_bytes(priced)
        loaded = load_student(tmp_path / precision)
        assert loaded.source_network == student[0]
        check_parity(loaded, session.run, images, rounds=precision != "fp32")
    assert all(np.array_equal(before[param], value) for param, value in weights.items())


@pytest.mark.parametrize(("spec", "size"), WITHOUT_LAYER_NORM)
def test_half_of_every_width_computes_what_the_whole_network_does_with_zeros(spec: str, size: int) -> None:
    network, weights = traced(spec, size)
    coupling = couple(network)
    rng = np.random.default_rng(0)
    saliency = {name: rng.random(array.shape) for name, array in weights.items()}
    halves = {group.name: group.size // 2 for group in coupling.groups if not group.locked}
    keep = keep_mask(coupling, halves, dict.fromkeys(halves, saliency))
    pruned, cut = prune(coupling, weights, keep)
    assert pruned.parameter_count < 0.35 * network.parameter_count
    whole = build(network, with_zeros(coupling, weights, keep))
    assert_computes(pruned, cut, whole, inputs((3, size, size)))
