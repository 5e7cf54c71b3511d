"""Training under penalties that bring weights or channels to zero, on handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Weights
from autocompress.graph.trace import trace
from autocompress.problem.data import Data, load_data
from autocompress.students.accuracy import evaluate
from autocompress.students.training.constraints import hold_zeros
from autocompress.students.training.distill import distil
from autocompress.students.training.settings import DistillSettings
from autocompress.students.training.sparsification import METHODS, Thinner
from autocompress.students.training.trained_importance import trained_importance
from autocompress.transforms.families.sparsity import mask_of

NAMES = ("1.weight", "3.weight")
DENSITY = 0.05


@cache
def digits() -> Data:
    return load_data("digits,size=8,channels=1")


@cache
def teacher() -> tuple[Network, Weights]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    module = build(*trace(layers.eval(), (1, 8, 8)))
    distil(module, None, digits(), DistillSettings(epochs=20, learning_rate=0.1))
    return module.source_network, module.export_weights()


def thinned(method: str, epochs: float = 12) -> GraphModule:
    student = build(*teacher())
    choose: dict[str, tuple[float, Callable[..., np.ndarray]]] = {
        name: (DENSITY, partial(mask_of, keep=DENSITY)) for name in NAMES
    }
    thinner = Thinner(student, method, choose)
    distil(
        student,
        build(*teacher()),
        digits(),
        DistillSettings(epochs=epochs, learning_rate=0.1),
        progress=thinner,
    )
    thinner.settle()
    return student


@cache
def at_once() -> float:
    """Accuracy of the same density and training with the largest weights of the teacher."""
    student = build(*teacher())
    masks = {name: mask_of(teacher()[1][name], DENSITY) for name in NAMES}
    with hold_zeros(student, masks):
        distil(student, build(*teacher()), digits(), DistillSettings(epochs=12, learning_rate=0.1))
    return evaluate(student, digits().validation).accuracy


@pytest.mark.parametrize("method", METHODS)
def test_the_wanted_share_is_left_and_works_better_than_cutting_at_once(method: str) -> None:
    student = thinned(method)
    for name in NAMES:
        weight = student.export_weights()[name]
        assert np.count_nonzero(weight) == round(DENSITY * weight.size)
    assert evaluate(student, digits().validation).accuracy > at_once()


@pytest.mark.parametrize("method", METHODS)
def test_equal_arguments_give_equal_weights(method: str) -> None:
    first, second = (thinned(method, 1).export_weights() for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_gradual_zeros_grow_before_the_cut_also_in_a_short_training() -> None:
    student = build(*teacher())
    thinner = Thinner(student, "gradual", {"1.weight": (0.1, lambda scores: scores > 0)})
    shares = []
    for done in range(1, 18):
        thinner(done, 30)
        shares.append(float((student.export_weights()["1.weight"] != 0).mean()))
    assert shares == sorted(shares, reverse=True) and len(set(shares)) > 10
    assert shares[0] > 0.7 and 0.1 <= shares[-1] < 0.15


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="l1, l0, decay"):
        Thinner(build(*teacher()), "l3", {})


@pytest.mark.parametrize("method", ["l1", "l0", "decay"])
def test_channels_that_only_carry_noise_are_found(method: str) -> None:
    """A third of the hidden units are replaced by noise; by chance nine of them would be among the last."""
    network, weights = teacher()
    noisy = {name: value.copy() for name, value in weights.items()}
    rng = np.random.default_rng(0)
    noise = rng.permutation(64)[:24]
    noisy["1.weight"][noise] = rng.normal(0, 0.02, (24, 64))
    noisy["3.weight"][:, noise] = rng.normal(0, 0.02, (10, 24))
    found = trained_importance(build(network, noisy), digits(), method)
    assert set(found) == set(NAMES) and found["1.weight"].shape == (64,)
    last = np.argsort(found["1.weight"])[:24]
    assert len(set(last) & set(noise)) >= 16
