"""Importances of channels against arithmetic by hand and against least squares."""

import numpy as np
import pytest
import torch
from tiny_networks import stripes, tiny_net
from torch import nn
from torch.nn import functional as F
from written_networks import IMAGE, basic_net, conv, inputs, net

from autocompress.graph.coupling import couple
from autocompress.graph.module import build
from autocompress.graph.trace import trace
from autocompress.problem.space import parse_space
from autocompress.students.calibration.channel_obs import Reader, obs_importance, removal_losses
from autocompress.students.calibration.importance import output_curvature, saliency
from autocompress.students.importances import importances
from autocompress.transforms.families.prune import atom_scores
from autocompress.transforms.sites import bind


def test_distances_to_the_other_filters_by_hand() -> None:
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))
    found = saliency(layer, method="geometric_median")
    far = 18**0.5
    np.testing.assert_allclose(found["weight"].sum(1), [5 + 1, 5 + far, 1 + far], rtol=1e-6)
    assert found["weight"].shape == (3, 2) and not found["bias"].any()


def test_diagonal_curvature_of_a_linear_classifier() -> None:
    """Of z = Wx + b the diagonal of the Gauss-Newton matrix is mean(p (1 - p) x²), by the bias p (1 - p)."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    x = torch.randn(64, 4)
    found = saliency(layer, [(x, torch.zeros(64, dtype=torch.int64))] * 400, "obd")
    with torch.no_grad():
        p = layer(x).softmax(1).double()
        curvature = (p * (1 - p)).T @ x.double().square() / 64
        expected = 0.5 * curvature * layer.weight.double() ** 2
        at_bias = 0.5 * (p * (1 - p)).mean(0) * layer.bias.double() ** 2
    np.testing.assert_allclose(found["weight"], expected, rtol=0.15)
    np.testing.assert_allclose(found["bias"], at_bias, rtol=0.15)
    with pytest.raises(ValueError, match="no batches"):
        saliency(layer, [], "obd")


def test_curvature_by_the_outputs_of_the_layers_of_a_classifier() -> None:
    """Of z = W₂ relu(W₁x) it is mean(diag(p) − ppᵀ) by z; W₂ takes it back through the relu."""
    torch.manual_seed(0)
    module = net(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(5, 4), b=nn.Linear(4, 3))
    network, weights = trace(module, (5,))
    x = torch.randn(64, 5)
    layers = [node for node in network.nodes if node.op == "linear"]
    found = output_curvature(build(network, weights), layers, [x] * 200, 100)
    with torch.no_grad():
        hidden = module.a(x).double()
        p = module.b(F.relu(module.a(x))).softmax(1).double()
        by_scores = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        back = module.b.weight.double() * (hidden > 0)[:, None]
        by_hidden = back.mT @ by_scores @ back
    np.testing.assert_allclose(found["b"], by_scores.mean(0), atol=0.01)
    np.testing.assert_allclose(found["a"], by_hidden.mean(0), atol=0.01)


def test_curvature_by_a_convolution_sums_over_its_places() -> None:
    """Scores are means of a 1×1 convolution over 4 × 4 places: each has a sixteenth of the scores' error."""
    torch.manual_seed(0)
    module = net(lambda m, x: m.a(x).mean((2, 3)), a=nn.Conv2d(3, 2, 1))
    network, weights = trace(module, (3, 4, 4))
    images = torch.randn(32, 3, 4, 4)
    found = output_curvature(build(network, weights), [network.by_name["a"]], [images] * 200, 2)
    with torch.no_grad():
        p = module(images).softmax(1).double()
    by_scores = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0)
    np.testing.assert_allclose(found["a"], by_scores / 16, rtol=0.05)
    alike = output_curvature(build(network, weights), [network.by_name["a"]], [images] * 200, 1)["a"]
    np.testing.assert_allclose(alike, [[np.trace(found["a"]) / 2]], rtol=1e-5)


def lost(data: np.ndarray, weight: np.ndarray, gone: np.ndarray, curvature: np.ndarray) -> float:
    """Half the error, in that metric, that the best weights on the other columns leave."""
    target = data @ weight.T
    rest = np.delete(data, gone, axis=1)
    left = target - rest @ np.linalg.lstsq(rest, target, rcond=None)[0]
    return float(np.einsum("no,op,np->", left, curvature, left) / len(data) / 2)


def test_losses_of_removed_channels_against_least_squares() -> None:
    rng = np.random.default_rng(0)
    columns = np.array([[0, 1], [4, 5], [2, 3], [6, 7]])
    readers, cases = [], []
    for out in (5, 3):
        data = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8))
        weight = rng.normal(size=(out, 8))
        curvature = np.cov(rng.normal(size=(out, 20)))
        readers.append(Reader(weight, data.T @ data / 300, columns, curvature))
        cases.append((data, weight, curvature))
    losses = removal_losses(readers, 4, damping=1e-12)
    order = np.argsort(losses)
    gone: list[int] = []
    for channel in order[:3]:
        choices = {
            other: sum(
                lost(data, weight, np.array([*gone, *columns[other]]), curvature)
                for data, weight, curvature in cases
            )
            for other in range(4)
            if not set(columns[other]) <= set(gone)
        }
        assert min(choices, key=choices.__getitem__) == channel
        assert losses[channel] == pytest.approx(choices[channel], rel=1e-4)
        gone += columns[channel].tolist()
    everything = sum(lost(data, weight, np.arange(8), curvature) for data, weight, curvature in cases)
    assert losses[order[3]] == pytest.approx(everything, rel=1e-4)


def test_one_of_two_channels_that_say_the_same_is_cheap_and_the_other_is_not() -> None:
    torch.manual_seed(0)
    module = net(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 4, 3), b=conv(4, 2, 3))
    with torch.no_grad():
        module.a.weight[3], module.a.bias[3] = 5 * module.a.weight[0], 5 * module.a.bias[0]
    network, weights = trace(module, IMAGE)
    coupling = couple(network)
    (group,) = [group for group in coupling.groups if not group.locked]
    found = obs_importance(coupling, build(network, weights), [inputs(IMAGE, 16)] * 2, [group])
    assert found.keys() == {"a.weight"} and found["a.weight"].shape == (4,)
    scores = atom_scores(group, found)
    first, *_, last = np.argsort(scores)
    assert first in (0, 3) and scores[first] < 0.02 * scores[3 - first] and last != first
    by_norm = atom_scores(group, saliency(module, method="l2"))
    assert np.argmax(by_norm) == 3


def test_every_group_gets_a_number_for_every_channel() -> None:
    torch.manual_seed(0)
    network, weights = trace(basic_net(), IMAGE)
    coupling = couple(network)
    free = [group for group in coupling.groups if not group.locked]
    found = obs_importance(coupling, build(network, weights), [inputs(IMAGE, 8)], free)
    for group in free:
        scores = atom_scores(group, found)
        assert len(set(scores.tolist())) == group.size and (scores > 0).all()
    with pytest.raises(ValueError, match="no images"):
        obs_importance(coupling, build(network, weights), [], free)


def test_channels_that_no_dense_layer_reads_are_judged_by_their_weights() -> None:
    """The first layer's channels are read by a layer whose weight has two readers."""
    module = net(lambda m, x: m.b(m.a(x)) + m.b(F.relu(m.a(x))), a=conv(3, 4), b=conv(4, 2))
    network, weights = trace(module, IMAGE)
    coupling = couple(network)
    group = next(group for group in coupling.groups if group.name.startswith("a"))
    found = obs_importance(coupling, build(network, weights), [inputs(IMAGE)], [group])
    squares = {name: np.square(value) for name, value in weights.items()}
    np.testing.assert_allclose(atom_scores(group, found), atom_scores(group, squares))


def test_a_space_chooses_its_importance() -> None:
    rules = "name: small\nrules:\n  - match: {layer: conv}\n    width: {importance: %s}"
    network, weights = trace(tiny_net(), (1, 8, 8))
    for method in ("geometric_median", "obd", "obs", "decay"):
        bound = bind(parse_space(rules % method), network)
        found = importances(bound, weights, stripes())
        assert found.keys() == {method}
        for group in bound.coupling.groups:
            assert group.locked or (atom_scores(group, found[method]) > 0).all()
