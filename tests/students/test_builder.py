import math

import numpy as np
import pytest
import torch
from tiny_networks import stripes, tiny_net
from torch import nn
from torch.nn import functional

from autocompress.graph.module import build
from autocompress.graph.network import INPUT
from autocompress.graph.trace import trace
from autocompress.problem.splits import Normalisation, TensorSplit
from autocompress.problem.teacher import fingerprint
from autocompress.students.accuracy import evaluate, evaluate_session, logits_of, recalibrate_batch_norms
from autocompress.students.calibration.activation_ranges import collect_ranges
from autocompress.students.calibration.importance import saliency

RAW = Normalisation((0.0,), (1.0,))


def traced(module: nn.Module, shape: tuple[int, int, int] = (1, 8, 8)):
    return build(*trace(module, shape))


def logits_split(logits: list[list[float]], labels: list[int]) -> TensorSplit:
    """A split whose images are the logits themselves, to be read by `nn.Flatten`."""
    return TensorSplit(torch.tensor(logits)[:, None, None, :], torch.tensor(labels), RAW)


def test_accuracy_error_and_loss_by_hand():
    split = logits_split([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 1.0]], [0, 0, 1, 0])
    found = evaluate(nn.Flatten(), split, batch_size=3)
    assert (found.accuracy, found.count) == (0.75, 4)
    assert found.accuracy_std_err == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    losses = [math.log(2), math.log(1 + math.exp(-3)), math.log(1 + math.exp(-2)), math.log(1 + math.e)]
    assert found.loss == pytest.approx(sum(losses) / 4, rel=1e-6)


def test_outputs_that_are_not_finite_are_wrong():
    found = evaluate(
        nn.Flatten(), logits_split([[1.0, float("nan")], [float("inf"), 0.0], [1.0, 0.0]], [0, 0, 0])
    )
    assert found.accuracy == pytest.approx(1 / 3) and found.loss == math.inf


def test_an_exported_file_is_evaluated_like_its_module():
    data, model = stripes(), tiny_net()

    def run(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.float32 and images.shape == (1, 1, 8, 8)
        with torch.no_grad():
            return model(torch.from_numpy(images)).numpy()

    mine, theirs = evaluate(model, data.validation), evaluate_session(run, data.validation)
    assert mine.accuracy == theirs.accuracy and mine.loss == pytest.approx(theirs.loss, rel=1e-5)


def test_evaluation_leaves_the_mode_and_the_weights_alone():
    model = tiny_net().train()
    model.bn2.eval()
    before = fingerprint(model)
    evaluate(model, stripes().validation)
    assert model.training and model.bn1.training and not model.bn2.training
    assert fingerprint(model) == before


def test_a_network_that_views_its_activations_is_evaluated_too():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)

        def forward(self, x):
            return self.conv(x).view(len(x), 3, 36).mean(2)

    data, model = stripes(), Views()
    expected = torch.cat([model(images) for images, _ in data.validation.batches(64)])
    assert torch.allclose(logits_of(model, data.validation), expected, atol=1e-6)


@pytest.mark.parametrize("as_graph", [True, False])
def test_batch_norms_get_the_average_over_batches(as_graph: bool):
    data, original = stripes(), tiny_net()
    model = traced(original) if as_graph else tiny_net()
    batches = list(data.train.batches(32, drop_last=True))[:3]
    assert recalibrate_batch_norms(model, batches) == 3
    state = model.state_dict()
    inputs = [original.conv1(images).detach() for images, _ in batches]
    assert torch.allclose(state["bn1.running_mean"], sum(x.mean((0, 2, 3)) for x in inputs) / 3, atol=1e-6)
    assert torch.allclose(state["bn1.running_var"], sum(x.var((0, 2, 3)) for x in inputs) / 3, atol=1e-6)
    assert torch.equal(state["conv1.weight"], original.conv1.weight)
    assert not model.training


def test_recalibration_repairs_a_rescaled_layer_and_reads_nothing_without_batch_norms():
    data, model = stripes(), tiny_net()
    recalibrate_batch_norms(model, data.train.batches(64))
    before = logits_of(model, data.validation)
    with torch.no_grad():
        model.conv1.weight *= 10
    recalibrate_batch_norms(model, data.train.batches(64))
    assert torch.allclose(logits_of(model, data.validation), before, atol=1e-3)
    assert recalibrate_batch_norms(nn.Linear(2, 2), iter([])) == 0


def test_ranges_of_every_method():
    data, model = stripes(), traced(tiny_net())
    names = [INPUT, model.source_network.output]
    batches = list(data.calibration.batches(16))
    ranges = collect_ranges(model, names, batches)
    images = torch.cat([images for images, _ in batches])
    logits = logits_of(tiny_net(), data.calibration)
    assert ranges[INPUT] == pytest.approx((float(images.min()), float(images.max())))
    low, high = ranges[model.source_network.output]
    assert (low, high) == pytest.approx(
        (min(0.0, float(logits.min())), max(0.0, float(logits.max()))), rel=1e-4
    )
    for method in ("percentile", "mse"):
        for name, (low, high) in collect_ranges(model, names, batches, method).items():
            assert ranges[name][0] - 1e-6 <= low <= 0 <= high <= ranges[name][1] + 1e-6
    with pytest.raises(ValueError, match="'median'"):
        collect_ranges(model, names, batches, "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no calibration batches"):
        collect_ranges(model, names, [])


def test_the_least_error_clips_a_lone_outlier_and_keeps_uniform_values():
    model = traced(nn.Sequential(nn.ReLU(), nn.Flatten()))
    uniform = torch.linspace(0, 1, 6400).view(100, 1, 8, 8)
    spiked = uniform.clone()
    spiked[0, 0, 0, 1] = 1.6
    labels = torch.zeros(100, dtype=torch.int64)
    # Clipping the outlier costs 0.6² / n, keeping it (1.6² - 1) / (12 · 255²): n > 180,000 decides.
    for batches, expected in (([uniform] * 60, 1.0), ([*[uniform] * 60, spiked], 1.0), ([spiked], 1.6)):
        _, high = collect_ranges(model, [INPUT], [(images, labels) for images in batches], "mse")[INPUT]
        assert high == pytest.approx(expected, abs=0.1)
    assert collect_ranges(model, [INPUT], [(spiked, labels)], "minmax")[INPUT][1] == pytest.approx(1.6)
    assert collect_ranges(model, [INPUT], [(0 * uniform, labels)])[INPUT][1] > 0
    with pytest.raises(ValueError, match="not finite"):
        collect_ranges(model, [INPUT], [(uniform / 0, labels)])


def test_samples_see_every_channel():
    model = traced(nn.Sequential(nn.ReLU(), nn.Flatten()), (64, 16, 16))
    images = torch.ones(8, 64, 16, 16)
    images[:, 5] = 3.0
    for method in ("percentile", "mse"):
        ranges = collect_ranges(model, [INPUT], [(images, torch.zeros(8))], method)  # type: ignore[arg-type]
        assert ranges[INPUT][1] == pytest.approx(3.0)


def test_magnitudes_and_scales():
    model = tiny_net()
    with torch.no_grad():
        model.bn2.weight.copy_(torch.arange(8) - 3.0)
    for module in (model, traced(model)):
        assert np.array_equal(
            saliency(module, method="l1")["conv1.weight"], model.conv1.weight.detach().abs()
        )
        assert np.allclose(saliency(module, method="l2")["fc.weight"], model.fc.weight.detach() ** 2)
        scales = saliency(module, method="bn_scale")
        assert scales["bn2.weight"].tolist() == [3, 2, 1, 0, 1, 2, 3, 4]
        assert not scales["conv2.weight"].any() and not scales["bn2.bias"].any()


def test_gradient_scores_against_backward():
    data, model = stripes(), tiny_net()
    batches = list(data.train.batches(32))[:2]
    expected = {"taylor": torch.zeros(8, 1, 3, 3), "fisher": torch.zeros(8, 1, 3, 3)}
    reference = tiny_net()
    for images, labels in batches:
        reference.zero_grad()
        functional.cross_entropy(reference(images), labels).backward()
        gradient = reference.conv1.weight.grad
        expected["taylor"] += (gradient * reference.conv1.weight.detach()) ** 2 / 2
        expected["fisher"] += gradient**2 / 2
    for method, value in expected.items():
        scores = saliency(traced(model), batches, method)  # type: ignore[arg-type]
        assert np.allclose(scores["conv1.weight"], value, rtol=1e-3, atol=1e-9)
        assert set(scores) == {name for name, _ in model.named_parameters()}
    assert model.conv1.weight.grad is None
    with pytest.raises(ValueError, match="no batches"):
        saliency(model, [], "taylor")
    with pytest.raises(ValueError, match="'random'"):
        saliency(model, batches, "random")  # type: ignore[arg-type]
