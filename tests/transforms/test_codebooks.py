"""Masks, codebooks, and training that keeps both."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autocompress.graph.module import GraphModule, build
from autocompress.graph.trace import trace
from autocompress.problem.data import load_data
from autocompress.students.training.constraints import hold_shared, hold_zeros
from autocompress.students.training.distill import distil
from autocompress.students.training.settings import DistillSettings
from autocompress.students.training.sparsification import GradualPruning
from autocompress.transforms.arrays.codebooks import STARTS, entropy_constrained, k_means
from autocompress.transforms.arrays.masks import (
    global_masks,
    gradual_density,
    kept_weights,
    magnitude_mask,
    n_of_m_mask,
)

shapes = st.sampled_from([(7,), (4, 6), (3, 4, 2, 2)])


def weight(shape: tuple[int, ...] = (60, 50), seed: int = 0, density: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.laplace(0, 0.1, shape).astype(np.float32)
    return np.where(rng.random(shape) < density, values, np.float32(0))


def student(seed: int = 0) -> GraphModule:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    return build(*trace(module, (1, 8, 8)))


LAYERS = ["1.weight", "3.weight"]


def test_largest_magnitudes_stay() -> None:
    mask = magnitude_mask(np.array([[0.1, -3.0, 2.0], [0.0, 1.0, -0.2]]), 0.5)
    assert mask.tolist() == [[False, True, True], [False, True, False]]


@given(shape=shapes, density=st.floats(0.01, 1), seed=st.integers(0, 9))
def test_density_is_exact_even_among_equal_weights(shape: tuple[int, ...], density: float, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 3, shape)
    mask = magnitude_mask(scores, density)
    assert mask.sum() == kept_weights(mask.size, density)
    assert np.abs(scores)[mask].min() >= np.abs(scores)[~mask].max(initial=0)


def test_global_masks_compare_tensors() -> None:
    masks = global_masks({"large": np.array([5.0, 4.0, 3.0]), "small": np.array([0.1, 0.2, 0.3])}, 0.5)
    assert masks["large"].all()
    assert masks["small"].tolist() == [False, False, True], "a tensor keeps its largest weight"


def test_two_of_four_stay_along_the_inputs() -> None:
    scores = np.array([[1.0, -4, 3, 2, 0, 0, 0, 9]])
    assert n_of_m_mask(scores, 2, 4).tolist() == [[False, True, True, False, True, False, False, True]]
    kernels = np.random.default_rng(0).normal(size=(6, 8, 3, 3))
    mask = n_of_m_mask(kernels, 1, 4)
    assert (mask.reshape(6, 2, 4, 3, 3).sum(2) == 1).all()
    with pytest.raises(ValueError, match="does not fit"):
        n_of_m_mask(scores, 2, 3)


def test_schedule_starts_dense_and_ends_at_the_density() -> None:
    """Halfway: 0.1 + 0.9 · (1/2)³ = 0.2125."""
    assert [gradual_density(0.1, share) for share in (0, 0.5, 1, 2)] == [1, pytest.approx(0.2125), 0.1, 0.1]


@pytest.mark.parametrize("density", [0, -1, 1.1, float("nan")])
def test_impossible_densities_are_refused(density: float) -> None:
    with pytest.raises(ValueError, match="density"):
        magnitude_mask(np.ones(3), density)


def test_k_means_by_hand() -> None:
    book = k_means(np.array([0.0, 1.0, 1.2, 5.0, 5.2]), 3)
    np.testing.assert_allclose(book.values, [0, 1.1, 5.1], rtol=1e-6)
    assert book.indices.tolist() == [0, 1, 1, 2, 2]
    assert book.entropy_bits == pytest.approx(0.2 * np.log2(5) + 0.8 * np.log2(2.5))


@pytest.mark.parametrize("start", STARTS)
@settings(max_examples=40, deadline=None)
@given(shape=shapes, count=st.integers(2, 6), density=st.sampled_from([0.3, 1.0]), seed=st.integers(0, 99))
def test_shared_values_are_the_means_of_what_is_nearest(
    start: str, shape: tuple[int, ...], count: int, density: float, seed: int
) -> None:
    values = weight(shape, seed, density)
    book = k_means(values, count, start=start, seed=seed)  # type: ignore[arg-type]
    assert book.weight.shape == shape and len(book.values) <= count
    assert (np.diff(book.values) > 0).all()
    np.testing.assert_array_equal((book.weight == 0)[values == 0], True)
    for index, value in enumerate(book.values):
        members = values[(book.indices == index) & (values != 0)]
        if len(members):
            assert value == pytest.approx(members.mean(dtype=np.float64), abs=1e-6)


def test_linear_start_errs_less_on_large_weights_than_density_start() -> None:
    """Han et al. 2016, section 3.2: few weights are large, and they matter most."""
    values = weight((200, 200))
    large = np.abs(values) > 0.4
    errors = {
        start: np.abs(k_means(values, 16, start=start).weight - values)[large].mean()  # type: ignore[arg-type]
        for start in ("linear", "density")
    }
    assert errors["linear"] < errors["density"]


def test_importance_pulls_values_to_what_matters() -> None:
    values = np.array([1.0, 2.0])
    book = k_means(values, 1, importance=np.array([3.0, 1.0]))
    assert book.values.tolist() == [1.25]


@pytest.mark.parametrize("density", [1.0, 0.1])
def test_rate_and_distortion_beat_the_nearest_value(density: float) -> None:
    """At no more error than k-means, the indices take fewer bits."""
    values = weight((120, 100), density=density)
    plain = k_means(values, 12)
    error = np.square(plain.weight - values).mean()
    prices = np.geomspace(1e-4, 2e-3, 12)
    books = [entropy_constrained(values, 30, price) for price in prices]
    no_worse = [book for book in books if np.square(book.weight - values).mean() <= error]
    assert min(book.entropy_bits for book in no_worse) < 0.97 * plain.entropy_bits


def test_dearer_bits_give_fewer_bits_and_more_error() -> None:
    values = weight((100, 100), density=0.3)
    books = [entropy_constrained(values, 16, price) for price in (0.0, 1e-4, 1e-3, 1e-2)]
    rates = [book.entropy_bits for book in books]
    errors = [float(np.square(book.weight - values).mean()) for book in books]
    assert rates == sorted(rates, reverse=True) and errors == sorted(errors)


def test_impossible_codebooks_are_refused() -> None:
    with pytest.raises(ValueError, match="leave none"):
        k_means(np.array([0.0, 1.0]), 1)
    with pytest.raises(ValueError, match="middle"):
        k_means(np.array([0.0, 1.0]), 2, start="middle")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def digits():
    return load_data("digits,size=8,channels=1")


def test_pruned_weights_stay_zero_and_others_learn(digits) -> None:
    module = student()
    before = module.export_weights()
    masks = {name: magnitude_mask(before[name], 0.3) for name in LAYERS}
    with hold_zeros(module, masks):
        distil(module, None, digits, DistillSettings(epochs=1, learning_rate=0.05))
    after = module.export_weights()
    for name in LAYERS:
        assert not after[name][~masks[name]].any()
        assert (after[name] != before[name])[masks[name]].mean() > 0.8
    distil(module, None, digits, DistillSettings(epochs=0.2, learning_rate=0.05))
    assert module.export_weights()["1.weight"][~masks["1.weight"]].any(), "released weights are free again"


def test_shared_weights_stay_shared_and_their_values_learn(digits) -> None:
    module = student()
    books = {name: entropy_constrained(module.export_weights()[name], 5, 1e-5) for name in LAYERS}
    with torch.no_grad():
        for name, book in books.items():
            module.tensor_named(name).copy_(torch.from_numpy(book.weight))
    with hold_shared(module, {name: book.indices for name, book in books.items()}):
        distil(module, None, digits, DistillSettings(epochs=1, learning_rate=0.05))
    for name, book in books.items():
        after = module.export_weights()[name]
        for index, value in enumerate(book.values):
            (found,) = np.unique(after[book.indices == index])
            assert (found == 0) == (value == 0)
            assert value == 0 or found != value


def test_gradient_of_a_shared_value_by_hand() -> None:
    """Four weights of one value with gradients 1, 2, 3, 4: (1 + 2 + 3 + 4) / √4 = 5."""
    module = build(*trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False)).eval(), (4, 1, 1)))
    parameter = module.tensor_named("1.weight")
    with torch.no_grad():
        parameter.fill_(0.5)
    with hold_shared(module, {"1.weight": np.zeros((1, 4), dtype=np.int64)}):
        module(torch.tensor([1.0, 2, 3, 4]).reshape(1, 4, 1, 1)).sum().backward()
    assert parameter.grad is not None and parameter.grad.tolist() == [[5.0, 5.0, 5.0, 5.0]]


def test_gradual_pruning_ends_at_the_density_and_still_learns(digits) -> None:
    module = student()
    pruning = GradualPruning(module, LAYERS, 0.2)
    done = distil(
        module, None, digits, DistillSettings(epochs=12, learning_rate=0.1, batch_size=64), progress=pruning
    )
    total = sum(module.export_weights()[name].size for name in LAYERS)
    kept = sum(np.count_nonzero(module.export_weights()[name]) for name in LAYERS)
    assert kept == pytest.approx(0.2 * total, abs=2)
    assert {name: mask.sum() for name, mask in pruning.masks.items()} == {
        name: np.count_nonzero(module.export_weights()[name]) for name in LAYERS
    }
    assert done.losses[-1] < 0.6 * done.losses[0]
