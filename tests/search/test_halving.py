"""Which candidates go on, on which rungs, and how time is spent: numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from autocompress.problem.candidate import Candidate, Cost
from autocompress.search.halving import Plan, Rung, ranked, rungs, with_favourite
from autocompress.search.time_budget import TimeBudget
from autocompress.search.trials import Trial

PLAN = Plan(
    trials=100,
    trial_epochs=0,
    promotion_epochs=9,
    final_epochs=20,
    quantized_epochs=2,
    students=4,
    patience=15,
)


def plan(**changes: object) -> Plan:
    return Plan(**{**vars(PLAN), **changes})  # type: ignore[arg-type]


def trial(number: int, accuracy: float, latency_ms: float, **trained: float) -> Trial:
    cost = Cost(latency_ms, (latency_ms, latency_ms), 1, 1, 1, 1)
    by_epochs = {float(name[1:]): value for name, value in trained.items()}
    return Trial(number, Candidate.of({"bits:x": number}), cost, accuracy, by_epochs)


def test_each_rung_has_a_third_of_the_candidates_for_three_times_the_epochs():
    assert rungs(plan(least_epochs=1.0), 100) == (Rung(1, 72), Rung(3, 24), Rung(9, 8))
    assert rungs(plan(least_epochs=1.5), 100) == (Rung(3, 24), Rung(9, 8))
    assert rungs(plan(least_epochs=1.0), 20) == (Rung(3, 20), Rung(9, 8))


def test_a_rung_is_clearly_longer_than_a_trial():
    assert rungs(plan(trial_epochs=1.0, least_epochs=0.5), 100) == (Rung(3, 24), Rung(9, 8))
    assert rungs(plan(trial_epochs=3.0, least_epochs=0.5), 100) == (Rung(9, 8),)
    assert rungs(plan(trial_epochs=9.0), 100) == ()
    assert rungs(plan(least_epochs=1.0), 4) == ()


def test_after_trials_in_one_shot_a_few_steps_are_no_rung():
    assert rungs(plan(promotion_epochs=1.0, least_epochs=1.0), 100) == (Rung(1, 8),)
    assert rungs(plan(promotion_epochs=0.5, least_epochs=1.0), 100) == ()
    assert rungs(plan(promotion_epochs=0.5, trial_epochs=0.1, least_epochs=1.0), 100) == (Rung(0.5, 8),)


def test_who_goes_on_adds_most_to_the_front():
    """The most accurate; then a fast one that is not bad; a near copy of the first adds little."""
    trials = [trial(0, 0.90, 4.0), trial(1, 0.899, 3.9), trial(2, 0.80, 1.0), trial(3, 0.50, 0.9)]
    assert [found.number for found in ranked(trials, count=2)] == [0, 2]
    assert {found.number for found in ranked(trials)} == {0, 1, 2, 3}


def test_the_least_harmed_goes_on_whatever_its_trial_found():
    trials = [trial(0, 0.5, 4.0), trial(1, 0.9, 3.9), trial(2, 0.8, 1.0)]
    harm = {0: 0.1, 1: 0.2, 2: 0.3}
    chosen = ranked(trials, count=2)
    found = with_favourite(chosen, trials, lambda one: harm[one.number])
    assert [one.number for one in found] == [1, 0]
    assert with_favourite(found, trials, lambda one: harm[one.number]) == found
    assert with_favourite([], [], lambda one: harm[one.number]) == []


def test_what_is_beaten_follows_by_how_little_it_is_beaten():
    trials = [trial(0, 0.9, 1.0), trial(1, 0.7, 2.0), trial(2, 0.88, 2.0), trial(3, 0.8, 1.5)]
    assert [found.number for found in ranked(trials)] == [0, 2, 3, 1]


def test_a_rung_is_ranked_by_its_own_accuracies():
    """What was trained longer in an earlier part of the run has no advantage."""
    trials = [trial(0, 0.5, 1.0, e3=0.7), trial(1, 0.6, 1.0, e3=0.65, e9=0.9), trial(2, 0.4, 1.0, e3=0.8)]
    assert [found.number for found in ranked(trials)] == [1, 0, 2]
    assert [found.number for found in ranked(trials, 3.0)] == [2, 0, 1]
    assert trials[1].best_known == 0.9 and trials[0].best_known == 0.7
    assert trials[0].at(9.0) == -math.inf


def test_nothing_is_ranked_to_nothing():
    assert ranked([]) == []
    (alone,) = ranked([trial(0, 0.5, 1.0)])
    assert alone.number == 0


def test_the_front_is_unchanged_when_hypervolume_stands_still():
    agent = TimeBudget(plan())
    for volume in (0.1, 0.2, 0.5, 0.5, 0.5001, 0.5002):
        agent.saw_trial(1.0, volume)
    assert agent.unchanged == 3
    for _ in range(11):
        agent.saw_trial(1.0, 0.5002)
    assert agent.reason_to_move_on(0) is None
    agent.saw_trial(1.0, 0.5002)
    assert agent.reason_to_move_on(0) == "18 candidates evaluated; front unchanged for 15"


def test_patience_grows_with_the_number_of_trials():
    agent = TimeBudget(plan())
    for index in range(60):
        agent.saw_trial(1.0, 0.01 * (index + 1))
    for _ in range(29):
        agent.saw_trial(1.0, 0.6)
    assert agent.unchanged == 29 and agent.reason_to_move_on(0) is None
    agent.saw_trial(1.0, 0.6)
    assert "front unchanged for 30" in str(agent.reason_to_move_on(0))


def test_trials_get_two_fifths_of_the_time():
    agent = TimeBudget(plan(time_limit_s=100.0))
    agent.saw_trial(3.0, 0.1)
    assert agent.reason_to_move_on(39) is None
    reason = str(agent.reason_to_move_on(41))
    assert "1 candidates evaluated, 3 s each" in reason and "41 of 100 s" in reason


def test_an_epoch_is_taken_from_training_or_else_from_forward_passes():
    agent = TimeBudget(plan(epoch_images=1000))
    assert agent.epoch_s is None
    agent.saw_trial(2.0, 0.1, images=500)
    assert agent.epoch_s == pytest.approx(3 * 1000 * 2 / 500)
    agent.saw_training(10.0, 0.5)
    assert agent.epoch_s == 20
    assert TimeBudget(plan(trial_epochs=0.5)).epoch_s is None


def test_rungs_shrink_to_what_is_left():
    """8 candidates to 3 epochs, 4 of them 6 more: 48 epochs of 10 s. Rungs may take 240 of 800 s: half."""
    steps = (Rung(3, 8), Rung(9, 4))
    rich = TimeBudget(plan(students=1, time_limit_s=10_000.0))
    rich.saw_training(10.0, 1.0)
    assert rich.affordable(steps, 200)[0] == steps
    poor = TimeBudget(plan(students=1, time_limit_s=1000.0))
    poor.saw_training(10.0, 1.0)
    kept, why = poor.affordable(steps, 200)
    assert kept == (Rung(3, 4), Rung(9, 2))
    assert "800 s are left" in why and "10 s" in why
    two = TimeBudget(plan(students=1, time_limit_s=1000.0, workers=2))
    two.saw_training(10.0, 1.0)
    assert two.affordable(steps, 200)[0] == steps
    assert TimeBudget(plan()).affordable(steps, 200) == (steps, "")
    late = TimeBudget(plan(students=4, time_limit_s=1000.0))
    late.saw_training(10.0, 1.0)
    assert late.affordable(steps, 200)[0] == ()


def test_distillation_shrinks_to_what_is_left():
    """Four students of 22 epochs of 10 s want 880 s; nine tenths of 440 s pay for 45 % of them."""
    agent = TimeBudget(plan(time_limit_s=1000.0))
    assert agent.final_epochs(4, 0) == (20, 2, "")
    agent.saw_training(10.0, 1.0)
    assert agent.final_epochs(4, 0)[:2] == (20, 2)
    epochs, quantized, why = agent.final_epochs(4, 560)
    assert (epochs, quantized) == pytest.approx((9.0, 0.9))
    assert "440 s are left" in why
    none_left = agent.final_epochs(4, 5000)
    assert none_left[0] + none_left[1] == pytest.approx(PLAN.least_epochs)
