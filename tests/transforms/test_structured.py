"""Structured matrices against numpy's Kronecker product, roll and explicit block matrices."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from written_networks import assert_computes, inputs, net

from autocompress.cost.kernels import kernels, macs
from autocompress.device.measure.attribution import attribute
from autocompress.device.measure.layout_probe import detect_layouts
from autocompress.device.runtimes.base import get_runtime
from autocompress.export.onnx import to_onnx
from autocompress.graph.module import build
from autocompress.graph.network import from_json, to_json
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import parse_space
from autocompress.transforms.apply import apply, deployed
from autocompress.transforms.arrays.toeplitz import product, skew_matrix, toeplitz_like
from autocompress.transforms.families import structured
from autocompress.transforms.sites import bind

RNG = np.random.default_rng(0)
OUT, INTO = 48, 16


def dense_monarch(right: np.ndarray, left: np.ndarray, out: int, into: int) -> np.ndarray:
    """Entry (j, l), (k, i) is left[j, l, k] · right[k, j, i], entry by entry."""
    blocks_in = left.shape[1]
    blocks_out = len(right) // blocks_in
    per_out, per_in = out // blocks_out, into // blocks_in
    found = np.zeros((out, into))
    for j in range(blocks_out):
        for k in range(blocks_in):
            for one in range(per_out):
                for i in range(per_in):
                    value = left[j * per_out + one, k] * right[k * blocks_out + j, i]
                    found[j * per_out + one, k * per_in + i] = value
    return found


def dense_circulant(vectors: np.ndarray) -> np.ndarray:
    block = vectors.shape[2]
    return np.block([[np.stack([np.roll(c, i) for i in range(block)]) for c in row] for row in vectors])


def dense(kind: str, parts: Any) -> np.ndarray:
    if kind == "monarch":
        return dense_monarch(*parts, OUT, INTO)
    if kind.startswith("toeplitz"):
        return np.block([[product(*one) for one in row] for row in parts])
    return np.kron(*parts) if kind == "kronecker" else dense_circulant(parts)


def project_toeplitz(weight: np.ndarray, block: int, rank: int) -> list[list[Any]]:
    """Each block by itself."""
    out, into = (size // block for size in weight.shape)
    blocks = weight.reshape(out, block, into, block).transpose(0, 2, 1, 3)
    return [[toeplitz_like(one, rank) for one in row] for row in blocks]


PROJECT = {
    "monarch": structured.monarch,
    "kronecker": structured.kronecker,
    "circulant": structured.circulant,
    "toeplitz_2": project_toeplitz,
    "toeplitz_4": project_toeplitz,
}
RANDOM = {
    "monarch": lambda of: (RNG.normal(size=(of[0] * of[1], INTO // of[0])), RNG.normal(size=(OUT, of[0]))),
    "kronecker": lambda of: (RNG.normal(size=of), RNG.normal(size=(OUT // of[0], INTO // of[1]))),
    "circulant": lambda of: RNG.normal(size=(OUT // of[0], INTO // of[0], of[0])),
}
SIZES = [
    ("monarch", (2, 4)),
    ("monarch", (4, 3)),
    ("kronecker", (2, 4)),
    ("kronecker", (3, 2)),
    ("circulant", (4,)),
    ("circulant", (2,)),
]


@pytest.mark.parametrize(("kind", "of"), SIZES)
def test_a_matrix_of_the_structure_is_its_own_projection(kind: str, of: tuple[int, ...]) -> None:
    parts = RANDOM[kind](of)
    weight = dense(kind, parts)
    np.testing.assert_allclose(dense(kind, PROJECT[kind](weight, *of)), weight, atol=1e-10)
    numbers = sum(part.size for part in (parts if isinstance(parts, tuple) else (parts,)))
    assert structured.parameters(kind, OUT, INTO, of) == numbers


@pytest.mark.parametrize(("kind", "of"), SIZES)
def test_no_matrix_of_the_structure_nearby_is_closer(kind: str, of: tuple[int, ...]) -> None:
    weight = RNG.normal(size=(OUT, INTO))
    parts = PROJECT[kind](weight, *of)
    least = np.linalg.norm(weight - dense(kind, parts))
    assert least < np.linalg.norm(weight)
    for _ in range(20):
        pieces = parts if isinstance(parts, tuple) else (parts,)
        moved = tuple(piece + 0.01 * RNG.normal(size=piece.shape) for piece in pieces)
        other = dense(kind, moved if isinstance(parts, tuple) else moved[0])
        assert np.linalg.norm(weight - other) > least


def test_the_nearest_kronecker_product_by_the_singular_values_of_the_rearranged_weight() -> None:
    weight = RNG.normal(size=(4, 6))
    rows = [weight[2 * i : 2 * i + 2, 3 * j : 3 * j + 3].ravel() for i in range(2) for j in range(2)]
    singular = np.linalg.svd(np.array(rows), compute_uv=False)
    error = weight - np.kron(*structured.kronecker(weight, 2, 2))
    assert np.linalg.norm(error) == pytest.approx(np.linalg.norm(singular[1:]))


@pytest.mark.parametrize(
    ("kind", "out", "into", "of"),
    [
        ("monarch", 64, 64, (8, 8)),
        ("monarch", 96, 24, (2, 12)),
        ("monarch", 7, 64, ()),
        ("kronecker", 64, 64, (2, 2)),
        ("kronecker", 15, 8, (3, 2)),
        ("kronecker", 7, 64, ()),
        ("circulant", 12, 8, (4,)),
        ("circulant", 10, 8, ()),
        ("toeplitz_2", 96, 32, (32, 2)),
        ("toeplitz_4", 1024, 512, (256, 4)),
        ("toeplitz_4", 24, 8, ()),
        ("toeplitz_2", 14, 7, ()),
    ],
)
def test_sizes_by_hand(kind: str, out: int, into: int, of: tuple[int, ...]) -> None:
    assert structured.sizes(kind, out, into) == of


LAYERS = {
    "linear": (lambda: nn.Linear(16, 48), (16,)),
    "tokens": (lambda: nn.Linear(16, 48, bias=False), (5, 16)),
    "tokens with a bias": (lambda: nn.Linear(16, 48), (5, 16)),
    "image of rows": (lambda: nn.Linear(16, 48), (5, 3, 16)),
    "1×1": (lambda: nn.Conv2d(16, 48, 1), (16, 5, 3)),
    "1×1 without a bias": (lambda: nn.Conv2d(16, 48, 1, bias=False), (16, 5, 3)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", structured.STRUCTURES)
def test_a_structured_layer_computes_what_its_dense_matrix_does(kind: str, layer: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    module = net(lambda m, x: F.relu(m.layer(x)), layer=make())
    network, weights = trace(module, shape)
    changed, values = structured.structure(network, weights, "layer", kind)
    assert values is not None and values.keys() == changed.params.keys()
    assert {name: value.shape for name, value in values.items()} == {
        name: spec.shape for name, spec in changed.params.items()
    }
    assert from_json(to_json(changed)) == changed
    of = structured.sizes(kind, OUT, INTO)
    saved = OUT * INTO - structured.parameters(kind, OUT, INTO, of)
    assert network.parameter_count - changed.parameter_count == saved > 0
    matrix = weights["layer.weight"].reshape(OUT, INTO)
    projected = dense(kind, PROJECT[kind](matrix, *of)).astype(np.float32)
    module.layer.weight.data = torch.from_numpy(projected).reshape(module.layer.weight.shape)
    x = inputs(shape)
    assert_computes(changed, values, module, x)
    assert network.by_name["layer"].op in ("linear", "conv2d") and changed.by_name["layer"].shape == (
        network.by_name["layer"].shape
    )
    session = get_runtime("onnxruntime").load(to_onnx(changed, values, batch=4).SerializeToString(), 1)
    np.testing.assert_allclose(session.run(x.numpy()), build(changed, values)(x).detach(), atol=1e-4)


def test_a_strided_layer_can_be_monarch_only() -> None:
    module = net(lambda m, x: m.layer(x), layer=nn.Conv2d(16, 48, 1, stride=2))
    network, weights = trace(module, (16, 5, 7))
    with pytest.raises(ValueError, match="neither stride nor padding"):
        structured.structure(network, weights, "layer", "kronecker")
    changed, values = structured.structure(network, weights, "layer", "monarch")
    of = structured.sizes("monarch", OUT, INTO)
    projected = dense("monarch", structured.monarch(weights["layer.weight"].reshape(OUT, INTO), *of))
    module.layer.weight.data = torch.from_numpy(projected.astype(np.float32))[:, :, None, None]
    assert_computes(changed, values, module, inputs((16, 5, 7)))


def test_a_k_by_k_or_grouped_layer_is_refused() -> None:
    for layer in (nn.Conv2d(8, 12, 3), nn.Conv2d(8, 12, 1, groups=2)):
        network, weights = trace(net(lambda m, x: m.layer(x), layer=layer), (8, 5, 5))
        with pytest.raises(ValueError, match="layer has no monarch form"):
            structured.structure(network, weights, "layer", "monarch")


SPACE = """
name: small
rules:
  - match: {layer: any}
    structure: [dense, monarch, kronecker, circulant, toeplitz_2, toeplitz_4]
    rank: {keep: [0.25, full]}
    bits: [8, 32]
"""


def small() -> nn.Module:
    return net(
        lambda m, x: m.head(F.relu(m.bn(m.point(F.relu(m.wide(x))))).mean((2, 3))),
        wide=nn.Conv2d(3, 16, 3, padding=1),
        point=nn.Conv2d(16, 32, 1, bias=False),
        bn=nn.BatchNorm2d(32),
        head=nn.Linear(32, 7),
    )


def test_sites_offer_what_is_smaller_and_say_why_not() -> None:
    network, _ = trace(small(), (3, 8, 8))
    bound = bind(parse_space(SPACE), network)
    sites = {site.target: site for site in bound.sites if site.kind == "structure"}
    fewest_first = ("circulant", "toeplitz_2", "kronecker", "monarch", "toeplitz_4", "dense")
    assert sites["point"].options == fewest_first
    assert "dense matrix" in sites["wide"].locked and "no monarch form of 7×32" in sites["head"].locked
    both = Candidate.of({"structure:point": "monarch", "rank:point": 0.25, "rank:wide": 0.25})
    assert bound.canonical(both) == Candidate.of({"structure:point": "monarch", "rank:wide": 0.25})
    assert apply(bound, None, both) == apply(bound, None, bound.canonical(both))


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("kind", structured.STRUCTURES)
def test_a_device_sees_every_kernel_of_a_structure(kind: str, bits: int) -> None:
    """What is priced is what the runtime runs, and all its time goes to kernels that are priced."""
    network, weights = trace(small(), (3, 8, 8))
    bound = bind(parse_space(SPACE), network)
    chosen = {f"bits:{name}": bits for name in ("wide", "point", "head")}
    found, _ = apply(bound, weights, Candidate.of({"structure:point": kind, **chosen}))
    shipped, shipped_weights = deployed(found, _)
    assert shipped_weights is not None
    runtime = get_runtime("onnxruntime")
    layouts = detect_layouts(runtime, 1)
    model = to_onnx(shipped, shipped_weights).SerializeToString()
    optimized = runtime.optimized(model, 1)
    priced = kernels(shipped, layouts)
    run = Counter(node.op_type for node in onnx.load_from_string(optimized).graph.node)
    layers = "Conv", "FusedConv", "QLinearConv", "Gemm", "QGemm"
    assert sum(run[op] for op in layers) == sum(one.op in ("conv", "linear") for one in priced)
    times = runtime.node_times(model, 1, 3)
    timed = attribute(times, model, optimized, priced)
    assert tuple(one.kernel for one in timed) == priced
    assert sum(one.time_us for one in timed) == pytest.approx(sum(time.time_us for time in times))
    assert all(one.operations >= 1 for one in timed if one.kernel.op in ("conv", "linear"))


def test_multiply_adds_by_hand() -> None:
    network, _ = trace(net(lambda m, x: m.layer(x), layer=nn.Conv2d(64, 64, 1)), (64, 5, 5))
    counted = {
        kind: macs(structured.structure(network, None, "layer", kind)[0]) for kind in structured.STRUCTURES
    }
    assert counted == {
        "monarch": 25 * (64 * 8 + 64 * 8),
        "kronecker": 25 * (2 * 2 * 32 + 2 * 32 * 32),
        "circulant": 25 * 64 * 64,
        "toeplitz_2": 25 * 2 * 2 * 64 * 64,
        "toeplitz_4": 25 * 2 * 4 * 64 * 64,
    }


@pytest.mark.parametrize("size", [8, 13])
def test_toeplitz_matrices_and_their_inverses_have_displacement_rank_two(size: int) -> None:
    rng = np.random.default_rng(size)
    band = rng.normal(size=2 * size - 1)
    matrix = np.array([[band[size - 1 + j - i] for j in range(size)] for i in range(size)]) + 3 * np.eye(size)
    for one in (matrix, np.linalg.inv(matrix)):
        np.testing.assert_allclose(product(*toeplitz_like(one, 2)), one, atol=1e-5)
        assert np.abs(product(*toeplitz_like(one, 1)) - one).max() > 1e-3


def test_skew_circulants_by_hand() -> None:
    assert skew_matrix(np.array([1.0, 2, 3])).tolist() == [[1, 2, 3], [-3, 1, 2], [-2, -3, 1]]


def test_alternating_least_squares_improve_the_displacements_best_approximation() -> None:
    matrix = RNG.normal(size=(16, 16))
    errors = [
        np.linalg.norm(matrix - product(*toeplitz_like(matrix, rank, sweeps)))
        for rank, sweeps in ((2, 0), (2, 10), (4, 10), (16, 0))
    ]
    assert errors[0] > errors[1] > errors[2] and errors[3] == pytest.approx(0, abs=1e-8)
