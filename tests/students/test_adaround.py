"""Equalisation, adaptive rounding and bias correction on small networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Weights
from autocompress.graph.trace import trace
from autocompress.problem.space import parse_space
from autocompress.problem.space_rules import Quantize
from autocompress.problem.splits import Normalisation, TensorSplit
from autocompress.students.calibration.activation_ranges import collect_ranges
from autocompress.students.calibration.adaround import fit_rounding
from autocompress.students.calibration.quantization import quantized
from autocompress.transforms.families.equalise import equalised
from autocompress.transforms.families.quantize import plan, quantize_weight, with_bits, with_ranges


class Net(nn.Module):
    """conv → relu → depthwise → relu → conv, whose channels are of very different size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.first.weight *= torch.logspace(-2, 2, 8)[:, None, None, None]
            self.first.bias *= torch.logspace(-2, 2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.depthwise(self.first(x).relu()).relu()).mean((2, 3))


def traced() -> tuple[Network, Weights]:
    torch.manual_seed(0)
    return trace(Net().eval(), (3, 8, 8))


def images(count: int = 32) -> Tensor:
    """Smooth, as photographs are: neighbouring pixels and channels are alike."""
    generator = torch.Generator().manual_seed(1)
    plain = torch.randn(count, 1, 1, 1, generator=generator)
    return plain + 0.3 * torch.randn(count, 3, 8, 8, generator=generator)


def examples() -> TensorSplit:
    return TensorSplit(images(), torch.arange(32) % 4, Normalisation((0.0,) * 3, (1.0,) * 3))


def largest(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1).max(1)


def test_equalised_layers_compute_the_same_with_weights_of_one_size() -> None:
    network, weights = traced()
    changed = equalised(network, weights)
    torch.testing.assert_close(build(network, changed)(images()), build(network, weights)(images()))
    before, after = (
        [largest(w["first.weight"], 0), largest(w["depthwise.weight"], 0), largest(w["last.weight"], 1)]
        for w in (weights, changed)
    )
    assert np.ptp(np.log(before[0])) > 5
    np.testing.assert_allclose(after[0], after[1], rtol=1e-2)
    np.testing.assert_allclose(after[1], after[2], rtol=1e-2)


def test_layers_whose_output_is_read_twice_are_not_equalised() -> None:
    class Two(Net):
        def forward(self, x: Tensor) -> Tensor:
            inner = self.first(x).relu()
            return self.last(self.depthwise(inner).relu() + inner).mean((2, 3))

    torch.manual_seed(0)
    network, weights = trace(Two().eval(), (3, 8, 8))
    changed = equalised(network, weights)
    assert all(np.array_equal(changed[name], weights[name]) for name in weights)


def student(bits: object = 8) -> tuple[GraphModule, GraphModule]:
    """(quantized, in floating point)."""
    network, weights = traced()
    reference = build(network, weights)
    marked, values = with_bits(network, weights, dict.fromkeys(network.by_name, bits))  # type: ignore[arg-type]
    assert values is not None
    batch = images(), torch.zeros(32)
    return build(with_ranges(marked, collect_ranges(reference, plan(marked), [batch])), values), reference


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_adaptive_rounding_lessens_the_error_by_moving_weights_one_level(bits: int) -> None:
    module, reference = student(bits)
    plain, _ = student(bits)
    name = plain.source_network.nodes[0].name
    fit_rounding(module, reference, examples(), adaptive=True, biases=False)
    wanted = reference.forward_values(images(), [name])[name]
    adapted, nearest = (
        (one.forward_values(images(), [name])[name] - wanted).detach().square().mean((0, 2, 3))
        for one in (module, plain)
    )
    assert float((adapted / nearest).mean()) < 0.9
    assert float((adapted / nearest).max()) < 1.01
    before, after = (one.tensor_named("last.weight").detach().numpy() for one in (reference, module))
    if bits == 8:
        _, scale = quantize_weight(before)
        assert (np.abs(after - before) <= 1.001 * scale[:, None, None, None]).all()
        np.testing.assert_allclose(quantize_weight(after)[1], scale, rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 2])
def test_corrected_biases_leave_the_mean_of_a_channel_where_it_was(bits: int) -> None:
    module, reference = student(bits)
    name = module.source_network.by_name["mean"].inputs[0]
    plain, _ = student(bits)
    fit_rounding(module, reference, examples(), biases=True)
    wanted = reference.forward_values(images(), [name])[name].mean((0, 2, 3))
    shifts = [
        (one.forward_values(images(), [name])[name].mean((0, 2, 3)) - wanted).detach().abs().max()
        for one in (module, plain)
    ]
    assert float(shifts[0]) < 0.3 * float(shifts[1])


def test_settings_of_a_space_reach_the_student() -> None:
    text = "{name: s, quantize: {ranges: mse, equalise: true}, rules: [{match: {layer: any}, bits: [32, 8]}]}"
    space = parse_space(text)
    assert space.quantize == Quantize(ranges="mse", equalise=True)
    assert parse_space(str(space.to_json()).replace("True", "true")).quantize == space.quantize
    without = parse_space(text.replace("quantize: {ranges: mse, equalise: true}, ", ""))
    assert without.quantize == Quantize() and without.fingerprint != space.fingerprint


@pytest.mark.parametrize(
    "settings",
    [
        Quantize(),
        Quantize(ranges="minmax"),
        Quantize(equalise=True, correct_biases=True),
        Quantize(rounding="adaptive"),
    ],
)
def test_8_bits_stay_close_to_floating_point(settings: Quantize) -> None:
    network, weights = traced()
    marked, values = with_bits(network, weights, dict.fromkeys(network.by_name, 8))
    assert values is not None
    before = {name: value.copy() for name, value in values.items()}
    module = quantized(marked, values, examples(), settings)
    expected, found = (one(images()).detach() for one in (build(network, weights), module))
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())
    assert all(np.array_equal(before[name], values[name]) for name in values)
