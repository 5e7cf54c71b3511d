"""Least squares on layers, against numpy's, and on networks whose channels repeat each other."""

import numpy as np
import pytest
import torch
from tiny_networks import stripes
from torch import Tensor, nn
from torch.nn import functional as F
from written_networks import IMAGE, Net, basic_net, conv, inputs, net

from autocompress.device.runtimes.base import get_runtime
from autocompress.export.onnx import to_onnx
from autocompress.export.parity import check_parity
from autocompress.graph.coupling import couple
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import BINARIZE
from autocompress.graph.replace_layer import groups_of
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import parse_space
from autocompress.problem.splits import Normalisation, TensorSplit
from autocompress.students.accuracy import recalibrate_batch_norms
from autocompress.students.builder import StudentBuilder
from autocompress.students.calibration.compensation import changed_layers, compensate, least_squares
from autocompress.students.calibration.layer_inputs import (
    collect_moments,
    input_rows,
    places,
    solvable_layers,
    visited,
)
from autocompress.students.importances import importances
from autocompress.transforms.apply import MOMENTS, apply, kept_channels
from autocompress.transforms.families.low_rank import factorize
from autocompress.transforms.families.prune import keep_mask, kept_outputs, prune
from autocompress.transforms.sites import bind


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def split_of(images: Tensor) -> TensorSplit:
    return TensorSplit(images, torch.zeros(len(images), dtype=torch.int64), Normalisation((0.0,), (1.0,)))


LAYERS = {
    "linear": (nn.Linear(8, 5), (7, 8)),
    "3×3": (nn.Conv2d(8, 6, 3, padding=1), (8, 6, 7)),
    "strided, not square": (nn.Conv2d(8, 6, (3, 2), stride=(2, 3), padding=(1, 0), bias=False), (8, 6, 7)),
    "dilated": (nn.Conv2d(8, 6, 3, dilation=2, padding=1), (8, 6, 7)),
    "grouped": (nn.Conv2d(8, 6, 3, padding=1, groups=2), (8, 6, 7)),
    "depthwise": (nn.Conv2d(8, 16, 3, groups=8), (8, 6, 7)),
    "same": (nn.Conv2d(8, 6, (4, 3), padding="same"), (8, 6, 7)),
}


@pytest.mark.parametrize("limit", [10**6, 40])
@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_weight_is_what_the_layer_computes(name: str, limit: int) -> None:
    layer, shape = LAYERS[name]
    network, weights = trace(net(lambda m, x: m.layer(x), layer=layer), shape)
    (node,) = solvable_layers(network)
    x = inputs(shape)
    at = places(node, x, limit)
    assert len(at) == min(limit, 4 * int(np.prod(node.shape)) // len(layer.weight))
    rows = input_rows(node, x, tuple(layer.weight.shape), at)
    matrix = layer.weight.reshape(groups_of(node), -1, rows.shape[-1])
    found = torch.einsum("rgi,goi->rgo", rows, matrix).flatten(1)
    with torch.no_grad():
        bias = 0 if layer.bias is None else layer.bias if name == "linear" else layer.bias.view(-1, 1, 1)
        output = layer(x) - bias
    expected = output.flatten(0, -2) if name == "linear" else output.permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(found, expected[at], rtol=1e-4, atol=1e-5)
    moments = collect_moments(build(network, weights), [node], [x], limit)["layer"]
    second = torch.einsum("rgi,rgj->gij", rows, rows).double() / len(at)
    np.testing.assert_allclose(moments.second, second, rtol=1e-3, atol=1e-5)


def test_least_squares_of_fewer_rows_than_unknowns() -> None:
    """Both ways to the solution, by the smaller and by the larger matrix."""
    rows, error = torch.randn(40, 2, 90), torch.randn(40, 2, 3)
    found = least_squares(rows, error, 0.1)
    twice = least_squares(rows.repeat(3, 1, 1), error.repeat(3, 1, 1), 0.1)
    torch.testing.assert_close(found, twice, rtol=1e-3, atol=1e-5)


def test_least_squares_against_numpy() -> None:
    rows, error = torch.randn(200, 2, 5), torch.randn(200, 2, 3)
    free = least_squares(rows, error, 0.0)
    for group in range(2):
        expected = np.linalg.lstsq(rows[:, group].numpy(), error[:, group].numpy(), rcond=None)[0]
        np.testing.assert_allclose(free[group], expected.T, atol=1e-5)
    held = least_squares(rows, error, 0.5)
    for group in range(2):
        x = rows[:, group].double().numpy()
        level = np.sqrt(0.5 * np.square(x).mean() * 200)
        padded = np.concatenate([x, level * np.eye(5)])
        target = np.concatenate([error[:, group].double().numpy(), np.zeros((5, 3))])
        np.testing.assert_allclose(held[group], np.linalg.lstsq(padded, target, rcond=None)[0].T, atol=1e-5)


def cut(module: nn.Module, shape: tuple[int, ...], **counts: int) -> tuple[GraphModule, GraphModule, dict]:
    """The student with the first channels of each group named, the teacher, and what was kept."""
    network, weights = trace(module, shape)
    coupling = couple(network)
    mask = keep_mask(coupling, counts, None)
    pruned, sliced = prune(coupling, weights, mask)
    assert sliced is not None
    return build(pruned, sliced), build(network, weights), kept_outputs(coupling, mask)


def test_the_layer_after_a_pruned_one_against_numpy() -> None:
    module = net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 8, 3), b=conv(8, 4, 3))
    student, teacher, kept = cut(module, IMAGE, a=5)
    assert kept["a"].tolist() == [True] * 5 + [False] * 3
    x = inputs(IMAGE, 20)
    assert compensate(student, teacher, split_of(x), kept, ridge=0.0) == ("b",)
    with torch.no_grad():
        hidden = F.unfold(F.relu(module.a(x))[:, :5], 3, padding=1).permute(0, 2, 1).flatten(0, 1)
        target = module.b(F.relu(module.a(x))).flatten(2).permute(0, 2, 1).flatten(0, 1)
    rows = np.concatenate([hidden.numpy(), np.ones((len(hidden), 1), np.float32)], axis=1)
    expected = np.linalg.lstsq(rows.astype(np.float64), target.double().numpy(), rcond=None)[0].T
    np.testing.assert_allclose(
        student.tensor_named("b.weight").detach().flatten(1), expected[:, :-1], atol=1e-3
    )
    np.testing.assert_allclose(student.tensor_named("b.bias").detach(), expected[:, -1], atol=1e-3)
    np.testing.assert_array_equal(student.tensor_named("a.weight").detach(), module.a.weight.detach()[:5])


def repeated(module: nn.Module) -> nn.Module:
    """The second half of the outputs says what the first half says, scaled."""
    layer = module[0] if isinstance(module, nn.Sequential) else module
    half = len(layer.weight) // 2
    with torch.no_grad():
        layer.weight[half:] = 2 * layer.weight[:half]
        if layer.bias is not None:
            layer.bias[half:] = 2 * layer.bias[:half]
    return module


def two(a: nn.Module, b: nn.Module) -> Net:
    return net(lambda m, x: m.b(F.relu(m.a(x))), a=repeated(a), b=b)


REPEATED = {
    "conv": (lambda: two(conv(3, 8, 3), conv(8, 4, 3)), IMAGE),
    "no bias": (lambda: two(conv(3, 8, 3, bias=False), conv(8, 4, bias=False)), IMAGE),
    "through a depthwise layer": (
        lambda: net(
            lambda m, x: m.b(m.depth(m.a(x))),
            a=repeated(conv(3, 8, 3)),
            depth=repeated(conv(8, 8, 3, groups=8, bias=False)),
            b=conv(8, 4),
        ),
        IMAGE,
    ),
    "tokens": (lambda: two(nn.Linear(6, 8), nn.Linear(8, 3)), (5, 6)),
    "flattened map": (
        lambda: two(nn.Sequential(conv(3, 4, 3, stride=3)), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))),
        IMAGE,
    ),
}


@pytest.mark.parametrize("name", REPEATED)
def test_channels_that_others_repeat_leave_without_a_trace(name: str) -> None:
    make, shape = REPEATED[name]
    student, teacher, kept = cut(make(), shape, **({"a.0": 2} if name == "flattened map" else {"a": 4}))
    x = inputs(shape, 200)
    with torch.no_grad():
        expected, before = teacher(x), student(x)
        assert compensate(student, teacher, split_of(x), kept, ridge=1e-7)[-1][0] == "b"
        torch.testing.assert_close(student(x), expected, rtol=1e-3, atol=1e-3)
        assert (before - expected).abs().max() > 0.05
    assert not student.training and student.batch_norm_momentum is None


def test_batch_norms_take_the_statistics_they_meet() -> None:
    student, teacher, kept = cut(basic_net(), IMAGE, **{"a.0": 6})
    x = inputs(IMAGE, 30)
    assert compensate(student, teacher, split_of(x), kept) == ("b", "head")
    again = build(student.source_network, student.export_weights())
    recalibrate_batch_norms(again, [(x, torch.zeros(30))])
    for name in ("a.1.running_mean", "a.1.running_var"):
        torch.testing.assert_close(student.tensor_named(name), again.tensor_named(name))


def test_what_is_unchanged_is_left_alone() -> None:
    student, teacher, kept = cut(basic_net(), IMAGE)
    assert not kept and changed_layers(student.source_network, teacher.source_network, kept) == ()
    before = student.export_weights()
    assert compensate(student, teacher, split_of(inputs(IMAGE)), kept) == ()
    assert all(np.array_equal(before[name], value) for name, value in student.export_weights().items())


def test_a_layer_of_another_output_shape_is_not_fitted() -> None:
    student, teacher, kept = cut(basic_net(), IMAGE, **{"a.0": 6, "stem": 4})
    assert set(kept) == {"a.0", "stem", "b"}
    names = [node.name for node in changed_layers(student.source_network, teacher.source_network, kept)]
    assert names == ["a.0", "b", "head"]
    assert [n.name for n in changed_layers(student.source_network, teacher.source_network, {})] == ["head"]


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        visited(build(*trace(basic_net(), IMAGE)), [], lambda *_: None)


SPACE = """
name: small
rules:
  - match: {layer: conv}
    width: {keep: [0.5, 1.0], importance: obs}
    rank: {keep: [0.5, full]}
  - match: {block: residual}
    block: [keep, drop, depthwise_separable]
"""


class Residual(nn.Module):
    """For images of `stripes`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(1, 8, 3, bias=False), nn.BatchNorm2d(8))
        self.a = nn.Sequential(conv(8, 12, 3, bias=False), nn.BatchNorm2d(12))
        self.b = nn.Sequential(conv(12, 8, 3, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    "choices",
    [
        {"width:a.0": 0.5},
        {"width:stem.0": 0.5, "width:a.0": 0.5},
        {"rank:a.0": 0.5, "rank:b.0": 0.5},
        {"width:a.0": 0.5, "rank:b.0": 0.5},
    ],
)
def test_students_start_nearer_to_the_teacher_than_by_recalibration_alone(choices: dict[str, float]) -> None:
    data = stripes()
    module = Residual().eval()
    recalibrate_batch_norms(module, data.train.batches(64))
    network, weights = trace(module, (1, 8, 8))
    bound = bind(parse_space(SPACE), network)
    saliency = importances(bound, weights, data)
    builder = StudentBuilder(bound, weights, data, saliency)
    candidate = Candidate.of(choices)
    started = builder.start(candidate)
    plain = build(*apply(bound, weights, candidate, saliency))  # type: ignore[arg-type]
    recalibrate_batch_norms(plain, data.calibration.batches(64))
    images, _ = next(iter(data.validation.batches(256)))
    with torch.no_grad():
        wanted = module(images)
        errors = [float((student(images) - wanted).square().mean()) for student in (started, plain)]
    assert errors[0] < 0.6 * errors[1]


def test_ranks_that_mind_the_data_do_so_on_the_inputs_that_are_left() -> None:
    data = stripes()
    network, weights = trace(Residual().eval(), (1, 8, 8))
    bound = bind(parse_space(SPACE.replace("rank: {", "rank: {data_aware: true, ")), network)
    saliency = importances(bound, weights, data)
    assert saliency[MOMENTS].keys() == {site.target for site in bound.of_kind("rank")}
    candidate = Candidate.of({"width:a.0": 0.5, "rank:b.0": 0.5})
    found, cut = apply(bound, weights, candidate, saliency)
    assert found == apply(bound, None, candidate)[0] and cut is not None
    kept = kept_channels(bound, candidate, saliency)["a.0"]
    images, _ = next(iter(data.calibration.batches(64)))
    hidden = build(network, weights).forward_values(images, ["relu_1"])["relu_1"][:, torch.from_numpy(kept)]
    rows = F.unfold(hidden, 3, padding=1).permute(0, 2, 1).flatten(0, 1).double().detach()
    second = (rows.T @ rows / len(rows)).numpy()
    pruned, sliced = apply(bound, weights, Candidate.of({"width:a.0": 0.5}), saliency)
    _, expected = factorize(pruned, sliced, "b.0", 0.5, 1, "tucker2", second)
    assert expected is not None
    names = ("b.0.reduce.weight", "b.0.core.weight", "b.0.weight")
    one, other = (_product_of(*(values[name] for name in names)) for values in (cut, expected))
    np.testing.assert_allclose(one, other, atol=1e-3)
    plain = apply(bound, weights, candidate, {"obs": saliency["obs"]})[1]
    assert plain is not None
    assert np.abs(_product_of(*(plain[name] for name in names)) - one).max() > 0.01


def _product_of(reduce: np.ndarray, core: np.ndarray, expand: np.ndarray) -> np.ndarray:
    return np.einsum("si,rsyx,or->oiyx", reduce[:, :, 0, 0], core, expand[:, :, 0, 0])


XNOR_SPACE = """
name: xnor
rules:
  - match: {layer: any}
    bits: [32, 8, xnor]
"""


def test_binary_values_get_their_step_from_the_images_and_layers_are_fitted_behind_them() -> None:
    data = stripes()
    module = Residual().eval()
    recalibrate_batch_norms(module, data.train.batches(64))
    network, weights = trace(module, (1, 8, 8))
    bound = bind(parse_space(XNOR_SPACE), network)
    builder = StudentBuilder(bound, weights, data, importances(bound, weights, data))
    candidate = Candidate.of({"bits:a.0": "xnor", "bits:b.0": "xnor"})
    started = builder.start(candidate)
    nodes = {node.name: node for node in started.source_network.nodes if node.op == BINARIZE}
    assert set(nodes) == {"a.0.binarize", "b.0.binarize"}
    images, _ = next(iter(data.calibration.batches(512)))
    values = started.forward_values(images, [*nodes, *(node.inputs[0] for node in nodes.values())])
    for name, node in nodes.items():
        step = float(started.tensor_named(node.params[0]))
        assert set(values[name].unique().tolist()) <= {0.0, step}
        before = values[node.inputs[0]]
        assert step == pytest.approx(float(before[before > step / 2].mean()), rel=0.05)
    plain = build(*apply(bound, weights, candidate, builder.saliency))  # type: ignore[arg-type]
    recalibrate_batch_norms(plain, data.calibration.batches(64))
    with torch.no_grad():
        wanted = module(images)
        errors = [float((student(images) - wanted).square().mean()) for student in (started, plain)]
    assert errors[0] < 0.8 * errors[1]
    finished = builder.finish(candidate, epochs=2, quantized_epochs=1)
    assert finished is not None
    student = build(finished.network, finished.weights)
    model = to_onnx(finished.network, finished.weights).SerializeToString()
    check_parity(student, get_runtime("onnxruntime").load(model, 1).run, images[:16], rounds=True)
