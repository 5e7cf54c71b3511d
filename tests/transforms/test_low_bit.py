"""Weights of few values: arithmetic by hand, the torch twin, folding, files and runtimes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from written_networks import inputs

from autocompress.device.profile_files.store import load_profile
from autocompress.device.runtimes.base import get_runtime, known_runtime
from autocompress.export.acz import load_acz, save_acz, tensor_bytes
from autocompress.export.onnx import to_onnx
from autocompress.export.parity import check_parity
from autocompress.export.student_folder import load_student, save_student
from autocompress.graph.module import build
from autocompress.graph.network import BINARIZE, GRID_BITS, XNOR, Network, Weights, from_json, to_json
from autocompress.graph.straight_through import best_binary_step, binarized, learned_affine, on_grid
from autocompress.graph.trace import trace
from autocompress.pipeline.preparation import measured_choices
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import parse_space
from autocompress.problem.teacher import load_teacher
from autocompress.students.calibration.activation_ranges import collect_ranges
from autocompress.transforms.apply import apply
from autocompress.transforms.families import low_bit as grid
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.quantize import plan, with_bits, with_ranges
from autocompress.transforms.sites import BoundSpace, bind

FORMS = list(GRID_BITS)


def weight(seed: int = 0, shape: tuple[int, ...] = (8, 6, 3, 3)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_levels_by_hand() -> None:
    values = np.array([[-9.0, -2.1, -0.1, 0.0, 1.9, 2.1, 3.9, 40.0]], np.float32)
    steps = np.ones(1, np.float32)
    np.testing.assert_array_equal(grid.levels_of(values, steps, "2"), [[-2, -2, -1, 1, 1, 2, 2, 2]])
    np.testing.assert_array_equal(grid.rounded(values, steps, "2"), [[-3, -3, -1, 1, 1, 3, 3, 3]])
    np.testing.assert_array_equal(grid.rounded(values, steps, "3"), [[-7, -3, -1, 1, 1, 3, 3, 7]])
    np.testing.assert_array_equal(grid.rounded(values, steps, "binary"), [[-1, -1, -1, 1, 1, 1, 1, 1]])


def test_binary_starts_at_the_mean_magnitude() -> None:
    values = weight()
    expected = np.abs(values).reshape(8, -1).mean(1)
    np.testing.assert_allclose(grid.fit_steps(values, "binary"), expected, rtol=1e-6)


def test_ternary_by_hand() -> None:
    values = np.array([[-2.0, -2.0, -0.1, 0.1, 4.0, 4.0]], np.float32)
    steps = grid.fit_steps(values, "ternary")
    np.testing.assert_allclose(steps, [2.0, 4.0])
    integers, scale = grid.integers_of(grid.levels_of(values, steps, "ternary"), steps, "ternary")
    np.testing.assert_array_equal(integers, [[-64, -64, 0, 0, 127, 127]])
    np.testing.assert_allclose(scale, [4 / 127])


@pytest.mark.parametrize("form", ["2", "3", "4"])
def test_no_step_on_a_fine_raster_has_less_error_than_the_fitted_one(form: str) -> None:
    values = weight(1, (3, 50))
    fitted = grid.fit_steps(values, form)
    error = ((grid.rounded(values, fitted, form) - values) ** 2).sum(1)
    for share in np.linspace(0.05, 1.2, 400):
        steps = (share * np.abs(values).max(1) / grid.largest_odd(form)).astype(np.float32)
        other = ((grid.rounded(values, steps, form) - values) ** 2).sum(1)
        assert (error <= 1.01 * other).all()


@pytest.mark.parametrize("form", FORMS)
def test_few_bits_are_few_values_and_rounding_again_changes_nothing(form: str) -> None:
    values = weight(2)
    steps = grid.fit_steps(values, form)
    once = grid.rounded(values, steps, form)
    assert max(len(np.unique(channel)) for channel in once) <= 2 ** GRID_BITS[form]
    np.testing.assert_array_equal(grid.levels_of(once, steps, form), grid.levels_of(values, steps, form))


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    seed=st.integers(0, 10**6),
    exponent=st.integers(-20, 20),
    zeros=st.floats(0, 1),
)
def test_any_weight_survives_rounding_and_its_levels(
    form: str, shape: list[int], seed: int, exponent: int, zeros: float
) -> None:
    rng = np.random.default_rng(seed)
    values = np.ldexp(rng.normal(size=shape), exponent).astype(np.float32)
    values[rng.random(shape) < zeros] = 0
    steps = grid.fit_steps(values, form)
    assert steps.shape == (grid.step_count(form, shape[0]),) and (steps > 0).all()
    levels = grid.levels_of(values, steps, form)
    rounded = grid.values_of(levels, steps, form)
    np.testing.assert_array_equal(grid.levels_of(rounded, steps, form), levels)
    integers, scale = grid.integers_of(levels, steps, form)
    assert integers.dtype == np.int8 and len(scale) == shape[0]
    # Rounding to nothing but zeros would lose this much; fitted steps lose no more.
    error, power = ((rounded - values) ** 2).sum(), (values**2).sum()
    assert error <= 1.001 * power + 1e-20


@pytest.mark.parametrize("form", FORMS)
def test_torch_rounds_to_the_same_values(form: str) -> None:
    values = weight(3)
    steps = grid.fit_steps(values, form)
    found = on_grid(torch.from_numpy(values), torch.from_numpy(steps), form).numpy()
    np.testing.assert_allclose(found, grid.rounded(values, steps, form), rtol=1e-5, atol=1e-6)


def test_gradients_by_hand() -> None:
    """Step 1, two bits: -0.5 rounds to -1, 1.5 to 1, 9 lies beyond 3."""
    values = torch.tensor([[-0.5, 1.5, 9.0]], requires_grad=True)
    steps = torch.ones(1, requires_grad=True)
    on_grid(values, steps, "2").sum().backward()
    np.testing.assert_allclose(values.grad, [[1, 1, 0]])
    np.testing.assert_allclose(steps.grad, [((-1 + 0.5) + (1 - 1.5) + 3) / (3 * 3) ** 0.5])


def test_gradients_of_a_sign_and_of_three_values_by_hand() -> None:
    values = torch.tensor([[-0.5, 1.5, 9.0, 0.1]], requires_grad=True)
    steps = torch.ones(1, requires_grad=True)
    on_grid(values, steps, "binary").sum().backward()
    np.testing.assert_allclose(values.grad, torch.ones(1, 4))
    np.testing.assert_allclose(steps.grad, [(-1 + 1 + 1 + 1) / 4**0.5])
    scales = torch.tensor([0.9, 1.0], requires_grad=True)
    on_grid(values, scales, "ternary").sum().backward()
    np.testing.assert_allclose(scales.grad, [-1 / 4**0.5, 2 / 4**0.5])


@pytest.mark.parametrize("form", FORMS)
def test_channels_times_a_factor_of_either_sign(form: str) -> None:
    values, factor = weight(4), np.array([1, -2, 0.5, -0.1, 3, -1, 0.25, 7], np.float32)
    steps = grid.fit_steps(values, form)
    changed, changed_steps = grid.scaled(values, steps, form, factor)
    expected = grid.rounded(values, steps, form) * factor[:, None, None, None]
    np.testing.assert_allclose(grid.rounded(changed, changed_steps, form), expected, rtol=1e-5, atol=1e-5)


def test_levels_that_a_form_does_not_have_are_refused() -> None:
    _, network, weights = student("2")
    name = next(node.args[1].name for node in network.nodes if node.grid is not None)
    levels = {**weights, **grid.to_levels(network, weights)}
    grid.from_levels(network, levels)
    for wrong in (3.0, 0.0, 0.5, np.nan):
        changed = levels[name].astype(np.float32)
        changed.flat[0] = wrong
        with pytest.raises(ValueError, match=r"levels that a weight of the form '2' does not have"):
            grid.from_levels(network, {**levels, name: changed})


SPACE = """
name: few-bits
rules:
  - match: {layer: any}
    bits: [32, 8, 4, 3, 2, ternary, binary, xnor]
"""


def student(form: str) -> tuple[BoundSpace, Network, Weights]:
    """A small ResNet whose layers have 8 bits or this form, at random."""
    torch.manual_seed(0)
    teacher = load_teacher("timm:resnet10t,channels=8/8/16/16,num_classes=10").module
    network, weights = trace(teacher, (3, 32, 32))
    bound = bind(parse_space(SPACE), network)
    option = int(form) if form.isdigit() else form
    rng = random.Random(0)
    choices = {
        site.name: rng.choice((8, option if option in site.options else 8)) for site in bound.of_kind("bits")
    }
    changed, cut = apply(bound, weights, Candidate.of(choices))
    assert cut is not None and changed == apply(bound, None, Candidate.of(choices))[0]
    cut |= {node.params[0]: np.full(1, 0.3, np.float32) for node in changed.nodes if node.op == BINARIZE}
    return bound, changed, cut


@pytest.mark.parametrize("form", [*FORMS, XNOR])
def test_student_computes_the_same_as_a_file_and_from_every_file(form: str, tmp_path: Path) -> None:
    _, network, weights = student(form)
    images = inputs((3, 32, 32), 16)
    rounded = build(network, weights)(images)
    folded, values = fold_batch_norms(network, weights)
    assert values is not None
    torch.testing.assert_close(build(folded, values)(images), rounded, rtol=1e-3, atol=1e-3)
    assert from_json(to_json(folded)) == folded
    batch = images, torch.zeros(len(images), dtype=torch.int64)
    ranges = collect_ranges(build(folded, values), plan(folded), [batch])
    shipped = with_ranges(folded, ranges)
    module = build(shipped, values)
    model = to_onnx(shipped, values)
    session = get_runtime("onnxruntime").load(model.SerializeToString(), 1)
    check_parity(module, session.run, images, rounds=True)
    save_student(
        tmp_path / "s",
        network=shipped,
        weights=values,
        onnx_model=model,
        spec_extra={"choices": {}},
        bench={},
        readme="",
    )
    save_acz(tmp_path / "alone.acz", shipped, values)
    expected = module(images)
    for loaded in (load_student(tmp_path / "s"), load_acz(tmp_path / "alone.acz")):
        torch.testing.assert_close(loaded(images), expected, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "s" / "student.acz").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_takes_no_more_bits_on_disk_than_its_form_says(form: str) -> None:
    values = weight(5, (64, 64, 3, 3))
    levels = grid.levels_of(values, grid.fit_steps(values, form), form)
    bits = 8 * tensor_bytes(levels.astype(np.float32)) / levels.size
    assert bits <= 1.01 * GRID_BITS[form]
    if form == "ternary":
        assert bits <= 1.02 * np.log2(3)


@pytest.mark.parametrize("form", ["2", "binary"])
def test_integers_of_few_bits_are_what_the_file_holds(form: str) -> None:
    from onnx import numpy_helper

    _, network, weights = student(form)
    folded, values = fold_batch_norms(network, weights)
    assert values is not None
    images = inputs((3, 32, 32), 8)
    batch = images, torch.zeros(len(images), dtype=torch.int64)
    shipped = with_ranges(folded, collect_ranges(build(folded, values), plan(folded), [batch]))
    stored = [numpy_helper.to_array(one) for one in to_onnx(shipped, values).graph.initializer]
    few = [one for one in stored if one.dtype == np.int8 and one.ndim > 1 and len(np.unique(one)) <= 4]
    assert len(few) == len({node.name for node in shipped.nodes if node.grid is not None})
    # A channel that its batch norm multiplies by zero keeps no step.
    assert all(set(np.unique(one)) <= {-3, -1, 0, 1, 3} for one in few)


@pytest.mark.parametrize("form", ["3", "ternary", XNOR])
def test_onnx_runtime_runs_its_integer_kernels(form: str) -> None:
    convolutions, model = shipped_as_onnx(form)
    ran = get_runtime("onnxruntime").node_times(model, 1, 2)
    assert sum(one.op == "QLinearConv" for one in ran) == len(convolutions)
    assert not any(one.op in ("Conv", "FusedConv", "Gemm") for one in ran)


@pytest.mark.parametrize("form", ["3", "ternary", XNOR])
def test_openvino_runs_its_integer_kernels(form: str) -> None:
    missing = known_runtime("openvino").available()
    if missing:
        pytest.skip(missing)
    convolutions, model = shipped_as_onnx(form)
    ran = get_runtime("openvino").node_times(model, 1, 2)
    integer = [one for one in ran if one.op == "Convolution" and "I8" in one.implementation.upper()]
    in_integers = {name.split("/")[0] for one in integer for name in one.origins}
    assert convolutions <= in_integers


def shipped_as_onnx(form: str) -> tuple[set[str], bytes]:
    """Names of the convolutions, and the file."""
    _, network, weights = student(form)
    folded, values = fold_batch_norms(network, weights)
    assert values is not None
    images = inputs((3, 32, 32), 8)
    batch = images, torch.zeros(len(images), dtype=torch.int64)
    shipped = with_ranges(folded, collect_ranges(build(folded, values), plan(folded), [batch]))
    model = to_onnx(shipped, values).SerializeToString()
    return {node.name for node in shipped.nodes if node.op == "conv2d"}, model


def test_binary_values_by_hand() -> None:
    """Step 2: up to 1 becomes 0, more becomes 2. In units of the step they are 0.05, 0.45, 0.55, 2.5."""
    value = torch.tensor([[0.1, 0.9, 1.1, 5.0]], requires_grad=True)
    step = torch.tensor([2.0], requires_grad=True)
    found = binarized(value, step)
    np.testing.assert_allclose(found.detach(), [[0, 0, 2, 2]])
    found.sum().backward()
    np.testing.assert_allclose(value.grad, [[1, 1, 1, 0]])
    np.testing.assert_allclose(step.grad, [(-0.05 - 0.45 + (1 - 0.55) + 1) / 4**0.5], rtol=1e-5)


def test_the_step_of_binary_values_has_the_least_error() -> None:
    value = torch.from_numpy(np.random.default_rng(0).normal(size=5000)).clamp_min(0)

    def error(step: float) -> float:
        return float((binarized(value[None], torch.tensor([step])) - value).square().mean())

    found = best_binary_step(value)
    assert error(found) <= min(map(error, np.linspace(0.05, 4, 200).tolist())) * (1 + 1e-6)
    assert best_binary_step(torch.zeros(3)) > 0


def test_binary_values_are_zeros_and_ones_where_nothing_is_negative() -> None:
    """Layers behind a relu read them; the first and those behind an addition alone keep all their values."""
    from onnx import numpy_helper

    bound, network, weights = student(XNOR)
    offered = {site.target for site in bound.of_kind("bits") if XNOR in site.options}
    assert network.nodes[0].name not in offered
    binary = [node for node in network.nodes if node.op == BINARIZE]
    assert binary and {node.name.removesuffix(f".{BINARIZE}") for node in binary} <= offered
    folded, values = fold_batch_norms(network, weights)
    images = inputs((3, 32, 32), 8)
    shipped = with_ranges(folded, {**collect_ranges(build(folded, values), plan(folded), [(images, images)])})
    names = [node.name for node in binary]
    for name, value in build(shipped, values).forward_values(images, names).items():
        quantizer = shipped.by_name[name].quantizer
        assert quantizer is not None and quantizer.zero_point == 0
        assert set((value / quantizer.scale).unique().tolist()) <= {0.0, 1.0}
    model = to_onnx(shipped, values)
    clips = {node.name: node for node in model.graph.node if node.op_type == "Clip"}
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    rounding = {node.name: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for node in binary:
        step = float(constants[clips[node.name].input[2]])
        assert step == pytest.approx(float(values[node.params[0]][0]))
        assert float(constants[rounding[f"{node.name}/q"].input[1]]) == pytest.approx(step, rel=1e-6)


def xnor_pair(bits: int) -> tuple[Network, Weights]:
    """A convolution of so many bits whose relu an xnor layer alone reads, behind one of 8; shipped."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    network, weights = trace(nn.Sequential(*layers).eval(), (3, 12, 12))
    first, second, third = (node.name for node in network.nodes if node.op == "conv2d")
    marked, values = with_bits(network, weights, {first: 8, second: bits, third: XNOR})
    assert values is not None
    (binarize,) = (node for node in marked.nodes if node.op == BINARIZE)
    images = inputs((3, 12, 12), 8)
    read = build(marked, values).forward_values(images, [binarize.inputs[0]])[binarize.inputs[0]]
    values[binarize.params[0]] = np.full(1, best_binary_step(read), np.float32)
    return with_ranges(
        marked, collect_ranges(build(marked, values), plan(marked), [(images, images)])
    ), values


@pytest.mark.parametrize("bits", [32, 8])
def test_the_layer_in_front_of_a_binary_value_computes_in_its_own_bits(bits: int) -> None:
    network, weights = xnor_pair(bits)
    model = to_onnx(network, weights)
    ran = get_runtime("onnxruntime").node_times(model.SerializeToString(), 1, 1)
    assert sum(one.op in ("Conv", "FusedConv") for one in ran) == (bits == 32)
    images = inputs((3, 12, 12), 8)
    session = get_runtime("onnxruntime").load(model.SerializeToString(), 1)
    check_parity(build(network, weights), session.run, images, rounds=True)


def test_the_bias_of_an_xnor_layer_is_not_rounded_to_whole_signs() -> None:
    from onnx import numpy_helper

    network, weights = xnor_pair(8)
    (layer,) = (node for node in network.nodes if node.grid is not None)
    model = to_onnx(network, weights)
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    (rounded,) = (node for node in model.graph.node if node.name == f"{layer.name}/b")
    stored = constants[rounded.input[0]] * constants[rounded.input[1]].astype(np.float64)
    quantizer = network.quantizer_of(layer.inputs[0])
    assert quantizer is not None
    signs = quantizer.scale * weights[layer.grid.step]
    assert (np.abs(stored - weights[layer.args[2].name]) <= 0.51 / 127 * signs).all()


def test_xnor_is_left_out_where_the_device_was_measured_without_it() -> None:
    bound, _, _ = student(XNOR)
    profile = load_profile("epyc-zen5-onnxruntime-1-thread")
    left = measured_choices(bound, profile)
    assert any(XNOR in site.options for site in bound.sites)
    assert not any(XNOR in site.options for site in left.sites)
    reasons = {name: reason for name, option, reason in left.dropped if option == XNOR}
    assert all("binarize" in reason or "negative" in reason for reason in reasons.values())
    assert "can be negative" in reasons["bits:conv1.0"]


def test_learned_steps_of_binary_values_are_settled() -> None:
    _, network, weights = student(XNOR)
    folded, values = fold_batch_norms(network, weights)
    images = inputs((3, 32, 32), 8)
    shipped = with_ranges(folded, collect_ranges(build(folded, values), plan(folded), [(images, images)]))
    module = build(shipped, values)
    module.learn_quantizers()
    with torch.no_grad():
        for node in shipped.nodes:
            if node.op == BINARIZE:
                module.tensor_named(node.params[0]).mul_(1.25)
    expected = module(images).detach()
    module.settle_quantizers()
    settled = build(module.source_network, module.export_weights())
    torch.testing.assert_close(settled(images), expected, rtol=1e-4, atol=1e-4)
    session = get_runtime("onnxruntime").load(
        to_onnx(module.source_network, module.export_weights()).SerializeToString(), 1
    )
    check_parity(settled, session.run, images, rounds=True)


def test_gradient_of_a_learned_scale_by_hand() -> None:
    """Scale 1, zero point 2, 4 levels: -5 becomes -2, 0.4 becomes 0, 9 becomes 2."""
    value = torch.tensor([[-5.0, 0.4, 9.0]], requires_grad=True)
    scale = torch.ones(1, requires_grad=True)
    rounded = learned_affine(value, scale, 2, 4)
    np.testing.assert_allclose(rounded.detach(), [[-2, 0, 2]])
    rounded.sum().backward()
    np.testing.assert_allclose(value.grad, [[0, 1, 0]])
    np.testing.assert_allclose(scale.grad, [(-2 + (0 - 0.4) + 2) / (3 * 4) ** 0.5], rtol=1e-5)


def test_learned_quantizers_start_as_they_were_and_are_settled() -> None:
    network, weights = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), (3, 8, 8))
    marked, _ = with_bits(network, None, dict.fromkeys(network.by_name, 8))
    images = inputs((3, 8, 8), 8)
    batch = images, torch.zeros(8, dtype=torch.int64)
    shipped = with_ranges(marked, collect_ranges(build(marked, weights), plan(marked), [batch]))
    module = build(shipped, weights)
    before = module(images).detach()
    module.learn_quantizers()
    assert len(list(module.quantizer_scales)) == 3
    torch.testing.assert_close(module(images), before, rtol=1e-4, atol=1e-4)
    optimizer = torch.optim.SGD(module.quantizer_scales, lr=0.1)
    for _ in range(20):
        loss = module(images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = module(images).detach()
    module.settle_quantizers()
    assert module.source_network != shipped and not list(module.quantizer_scales)
    torch.testing.assert_close(module(images), learned, rtol=1e-4, atol=1e-4)
    settled = build(module.source_network, module.export_weights())
    torch.testing.assert_close(settled(images), learned, rtol=1e-4, atol=1e-4)
