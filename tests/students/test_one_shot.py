"""Accuracy without training: what is kept changes nothing, and racing stops only what cannot win."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from priced_networks import SPACE, small_resnet
from torch import nn

from autocompress.device.measure.statistics import rank_correlation
from autocompress.graph.module import build
from autocompress.graph.network import INPUT
from autocompress.graph.trace import trace
from autocompress.problem.candidate import Candidate
from autocompress.problem.data import Data, load_data
from autocompress.problem.space import parse_space
from autocompress.students.accuracy import evaluate
from autocompress.students.builder import StudentBuilder
from autocompress.students.importances import importances
from autocompress.students.one_shot import OneShot, Rival
from autocompress.students.prefix_cache import Kept, PrefixCache, cuts
from autocompress.students.racing import paired, unpaired
from autocompress.students.sensitivity import (
    MEASURES,
    choices_to_score,
    divergence,
    gradient_weighted_error,
    ranked,
    score,
)
from autocompress.students.training.distill import distil
from autocompress.students.training.settings import DistillSettings
from autocompress.transforms.apply import apply
from autocompress.transforms.sampling import random_candidate
from autocompress.transforms.sites import bind


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits")


@pytest.fixture(scope="module")
def builder(data: Data) -> StudentBuilder:
    model = small_resnet(in_channels=3, classes=10)
    distil(model, None, data, DistillSettings(epochs=4, batch_size=32, precision="float32"))
    network, weights = trace(model, data.input_shape)
    bound = bind(parse_space(SPACE), network)
    return StudentBuilder(bound, weights, data, importances(bound, weights, data))


@pytest.fixture(scope="module")
def candidates(builder: StudentBuilder) -> list[Candidate]:
    """A walk in which each candidate shares blocks with the one before it, in float and in 8 bits."""
    rng = random.Random(0)
    choices = dict[str, object]()
    found = []
    for _ in range(12):
        site = rng.choice(builder.bound.free)
        choices[site.name] = rng.choice(site.options)
        found.append(builder.bound.canonical(Candidate.of(choices)))  # type: ignore[arg-type]
    return found


def test_what_is_kept_of_shared_blocks_changes_no_bit(builder: StudentBuilder, candidates: list[Candidate]):
    keeps, plain = OneShot(builder), OneShot(builder, maximum_bytes=0)
    for candidate in (*candidates, *candidates):
        assert keeps(candidate) == plain(candidate)
        ours, theirs = keeps.student(candidate), plain.student(candidate)
        assert ours.source_network == theirs.source_network
        for name, value in theirs.export_weights().items():
            np.testing.assert_array_equal(ours.export_weights()[name], value)
    assert keeps.cache.hits > 3 * keeps.cache.misses
    assert plain.cache.hits == plain.cache.misses == 0


def test_the_accuracy_is_that_of_the_plain_evaluation(builder: StudentBuilder, candidates: list[Candidate]):
    one_shot = OneShot(builder)
    for candidate in candidates[::4]:
        found = one_shot(candidate).evaluation
        plain = evaluate(one_shot.student(candidate), builder.data.validation)
        assert (found.accuracy, found.count) == (plain.accuracy, plain.count)
        assert found.accuracy_std_err == pytest.approx(plain.accuracy_std_err)
        assert found.loss == pytest.approx(plain.loss, rel=1e-5)


def test_the_teacher_itself_is_left_as_it_is(builder: StudentBuilder):
    student = OneShot(builder).student(Candidate())
    images, _ = next(iter(builder.data.validation.batches(64)))
    with torch.no_grad():
        torch.testing.assert_close(student(images), builder.teacher(images), rtol=1e-4, atol=1e-4)


def test_fitting_recovers_accuracy_and_the_teacher_stays(builder: StudentBuilder):
    before = builder.teacher.export_weights()
    width = next(site for site in builder.bound.free if site.kind == "width")
    cut = Candidate.of({width.name: 0.25})
    one_shot = OneShot(builder)
    network, weights = apply(builder.bound, builder.weights, cut, builder.saliency)
    assert weights is not None
    alone = evaluate(build(network, weights), builder.data.validation)
    assert one_shot(cut).evaluation.loss < alone.loss
    for name, value in builder.teacher.export_weights().items():
        np.testing.assert_array_equal(before[name], value)


def test_cuts_are_where_one_value_is_alive():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
            self.third = nn.Conv2d(1, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            x = x + self.second(x)
            return self.third(x)

    network, _ = trace(Residual().eval(), (1, 4, 4))
    first, second, add, _ = network.nodes
    assert cuts(network) == {1: first.name, 3: add.name}
    assert second.inputs == (first.name,) and first.inputs == (INPUT,)


def test_the_cache_holds_what_was_used_last_within_its_bytes():
    cache = PrefixCache(maximum_bytes=16 * 4)
    for name in "abc":
        cache.put(name, Kept(torch.zeros(4)))
    assert cache.longest({1: "v"}, {1: "a"}) is not None
    cache.put("d", Kept(torch.zeros(4)))
    cache.put("e", Kept(torch.zeros(4)))
    cache.put("too large", Kept(torch.zeros(5)))
    assert cache.bytes == 64
    assert [cache.longest({1: "v"}, {1: name}) is not None for name in "abcde"] == [
        True,
        False,
        True,
        True,
        True,
    ]
    assert cache.longest({1: "v"}, {1: "too large"}) is None


def test_a_difference_by_hand():
    """Of 4 images seen of 8 ours wins one and loses two: mean -1/4; (3 + 2) / 6 - 1/16, halved for the half
    that is known, over 4."""
    ours = np.array([True, False, False, True])
    theirs = np.array([False, True, True, True])
    found = paired(ours, theirs, 8)
    assert found.mean == -0.25
    assert found.std_err == pytest.approx(((5 / 6 - 1 / 16) / 4 * 0.5) ** 0.5)
    assert paired(ours, theirs, 4).std_err == 0 and paired(ours, theirs, 4).is_hopeless
    alone = unpaired(ours, 0.75, 8)
    assert alone.mean == -0.25 and alone.std_err == pytest.approx((0.25 / 4 * 0.5) ** 0.5)


def test_racing_stops_no_candidate_that_would_be_on_the_front():
    """Candidates that are right on known images: all that beat their rival in the end are seen through."""
    generator = np.random.default_rng(0)
    total, stopped, images_seen = 2000, 0, 0
    rival = generator.random(total) < 0.8
    for share in np.linspace(0.5, 0.9, 200):
        agrees = generator.random(total) < 0.7
        ours = np.where(agrees, rival, generator.random(total) < share)
        count = 250
        while count < total and not paired(ours[:count], rival[:count], total).is_hopeless:
            count *= 2
        images_seen += min(count, total)
        if count < total:
            stopped += 1
            assert ours.mean() < rival.mean()
    assert stopped > 50
    assert images_seen < 0.7 * 200 * total


def test_a_hopeless_candidate_is_stopped_and_stays_below_its_rival(data: Data, builder: StudentBuilder):
    one_shot = OneShot(builder, batch=32)
    best = one_shot(Candidate()).evaluation
    blocks = [site.name for site in builder.bound.of_kind("block")]
    widths = {site.name: 0.25 for site in builder.bound.of_kind("width")}
    worst = Candidate.of({**widths, **dict.fromkeys(blocks, "drop")})
    rival = Rival(Candidate().key, best.accuracy)
    shot = one_shot(worst, rival)
    whole = one_shot(worst).evaluation
    assert shot.stopped and shot.evaluation.count < data.validation.size
    assert shot.evaluation.accuracy < best.accuracy
    assert abs(shot.evaluation.accuracy - whole.accuracy) < 4 * shot.evaluation.accuracy_std_err
    assert not one_shot(Candidate(), rival).stopped
    unknown = OneShot(builder, batch=32)
    assert unknown(worst, rival).stopped


def test_measures_of_damage_by_hand():
    teacher = torch.tensor([[0.0, 0.0]])
    changed = torch.tensor([[1.0, -1.0]])
    p = torch.tensor([1.0, -1.0]).softmax(0)
    assert divergence(changed, teacher) == pytest.approx(float(0.5 * (0.5 / p).log().sum()))
    assert gradient_weighted_error(changed, teacher) == pytest.approx(0.5)
    assert MEASURES["feature error"](2 * changed, changed) == pytest.approx(1.0)
    small = torch.tensor([[0.01, -0.02]])
    assert gradient_weighted_error(small, teacher) == pytest.approx(divergence(small, teacher), rel=1e-3)


def test_every_choice_gets_a_score_by_every_measure(builder: StudentBuilder):
    found = score(OneShot(builder, fit_images=64))
    for damage in found.values():
        assert set(damage) == set(choices_to_score(builder.bound))
        assert all(0 <= value < 100 for value in damage.values())
        width = next(site for site in builder.bound.free if site.kind == "width")
        assert damage[width.name, 0.25] > damage[width.name, 0.75]


def test_rank_correlation_and_the_measure_that_ranks_best():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(0.75**0.5)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0
    probes = [Candidate.of({"bits:x": number}) for number in range(4)]
    rank = {probe.key: number for number, probe in enumerate(probes)}
    harms = {"backwards": lambda probe: -rank[probe.key], "right": lambda probe: rank[probe.key]}
    best, worst = ranked(harms, probes, [0.1, 0.2, 0.3, 0.4])
    assert (best.measure, best.correlation, best.count) == ("right", pytest.approx(1), 4)
    assert worst.correlation == pytest.approx(-1)


def test_random_candidates_are_ranked_by_their_scores(builder: StudentBuilder):
    one_shot = OneShot(builder)
    damage = score(one_shot)["divergence"]
    rng = random.Random(1)
    probes = [random_candidate(builder.bound, rng) for _ in range(24)]
    harms = [sum(damage.get(choice, 0.0) for choice in probe.choices) for probe in probes]
    losses = [one_shot(probe).evaluation.loss for probe in probes]
    assert rank_correlation(harms, losses) > 0.6
