"""The study: proposals, results, failures and resumption, against a problem small enough to enumerate."""

from __future__ import annotations

import itertools
import math

import pytest

from autocompress.errors import InputError
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate, Site
from autocompress.search.proposers.optuna_study import SAMPLERS, Study, Told

SITES = (
    Site("width:a", "width", "a", (0.25, 0.5, 0.75, 1.0), 1.0),
    Site("rank:a", "rank", "a", (0.5, "full"), "full"),
    Site("bits:a", "bits", "a", (8, 32), 32),
    Site("block:b", "block", "b", ("keep", "drop", "depthwise_separable"), "keep"),
    Site("width:locked", "width", "c", (1.0,), 1.0, locked="the output"),
)
SPACE_SIZE = 4 * 2 * 2 * 3


def values_of(candidate: Candidate) -> dict[str, float]:
    """Wider is more accurate and slower; 8 bits halve the latency for nothing."""
    width = float(candidate.get(SITES[0]))
    dropped = candidate.get(SITES[3]) == "drop"
    bits = float(candidate.get(SITES[2]))
    return {
        "accuracy": 0.5 + 0.4 * width - 0.2 * dropped,
        "latency_ms": (1 + 3 * width - 0.5 * dropped) * bits / 32,
    }


def run(study: Study, count: int) -> list[Candidate]:
    asked = []
    for _ in range(count):
        proposal = study.ask()
        assert proposal is not None
        number, candidate = proposal
        asked.append(candidate)
        study.tell(number, values_of(candidate))
    return asked


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposes_each_candidate_once_and_ends(sampler: str) -> None:
    if sampler == "gp":
        pytest.importorskip("torch")
    count = 14 if sampler == "gp" else SPACE_SIZE
    study = Study(SITES, sampler=sampler, seed=1)
    asked = run(study, count)
    assert len({candidate.key for candidate in asked}) == count
    if count == SPACE_SIZE:
        assert study.ask() is None
        names = [site.name for site in SITES[:4]]
        for options in itertools.product(*(site.options for site in SITES[:4])):
            wanted = dict(zip(names, options, strict=True))
            assert any(all(c.get(s) == wanted[s.name] for s in SITES[:4]) for c in asked)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_same_seed_same_sequence(sampler: str) -> None:
    first, second = (run(Study(SITES, sampler=sampler, seed=7), 30) for _ in range(2))
    assert first == second
    assert first != run(Study(SITES, sampler=sampler, seed=8), 30)


def test_locked_sites_and_defaults_are_not_named() -> None:
    study = Study(SITES)
    study.enqueue(Candidate.of({"width:a": 1.0, "bits:a": 8}))
    assert study.ask() == (0, Candidate.of({"bits:a": 8}))
    study = Study(SITES[4:])
    assert study.ask() == (0, Candidate())
    assert study.ask() is None


def test_enqueued_come_first_in_order_and_known_ones_are_refused() -> None:
    study = Study(SITES)
    seeds = [Candidate.of({"width:a": 0.25}), Candidate.of({"block:b": "drop", "rank:a": 0.5})]
    assert all(study.enqueue(seed) for seed in seeds)
    assert run(study, 2) == seeds
    assert not study.enqueue(seeds[0])


def test_tpe_learns_what_the_front_has_in_common() -> None:
    wide = tuple(Site(f"bits:{i}", "bits", str(i), (8, 32), 32) for i in range(12))
    study = Study(wide, sampler="tpe", seed=0)
    late = []
    for index in range(60):
        proposal = study.ask()
        assert proposal is not None
        number, candidate = proposal
        quantized = sum(option == 8 for _, option in candidate.choices)
        study.tell(number, {"accuracy": 0.9, "latency_ms": 12 - quantized / 2})
        late += [quantized] if index >= 40 else []
    assert sum(late) / len(late) > 8


def test_constraints_follow_from_limits_and_accuracy_may_be_missing_when_broken() -> None:
    study = Study(SITES, limits=Limits(latency_ms=2.0))
    number, _ = study.ask() or pytest.fail("nothing proposed")
    study.tell(number, {"latency_ms": 3.0})
    trial = study._study.trials[-1]
    assert trial.constraints == {"latency_ms": pytest.approx(0.5)}
    assert trial.values == [0.0, 3.0]
    number, _ = study.ask() or pytest.fail("nothing proposed")
    with pytest.raises(ValueError, match="accuracy"):
        study.tell(number, {"latency_ms": 1.0})


def test_failures_and_values_that_are_not_finite_are_not_proposed_again() -> None:
    study = Study(SITES, seed=3)
    seen = []
    for index in range(SPACE_SIZE):
        number, candidate = study.ask() or pytest.fail("nothing proposed")
        seen.append(candidate)
        if index % 3 == 0:
            study.fail(number)
        elif index % 3 == 1:
            study.tell(number, {"accuracy": math.nan, "latency_ms": 1.0})
        else:
            study.tell(number, values_of(candidate))
    assert len(set(seen)) == SPACE_SIZE
    with pytest.raises(ValueError, match="not waiting"):
        study.fail(0)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_replay_continues_without_repeating(sampler: str) -> None:
    before = Study(SITES, sampler=sampler, seed=5)
    asked = run(before, 20)
    after = Study(SITES, sampler=sampler, seed=5)
    told = [Told(i, c, values_of(c) if i % 5 else None) for i, c in enumerate(asked)]
    after.replay(told)
    number, candidate = after.ask() or pytest.fail("nothing proposed")
    assert number == 20
    after.tell(number, values_of(candidate))
    rest = [candidate, *run(after, SPACE_SIZE - 21)]
    assert not set(rest) & set(asked)
    assert after.ask() is None


def test_canonical_decides_what_is_evaluated_and_learned() -> None:
    def undo_rank(candidate: Candidate) -> Candidate:
        return Candidate.of({name: option for name, option in candidate.choices if name != "rank:a"})

    study = Study(SITES, canonical=undo_rank)
    asked = run(study, SPACE_SIZE // 2)
    assert study.ask() is None
    assert all("rank:a" not in candidate.as_dict for candidate in asked)
    finished = [trial for trial in study._study.trials if trial.values]
    assert len(finished) == SPACE_SIZE // 2
    assert {trial.params["rank:a"] for trial in finished} == {1}


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(InputError, match="sampler 'tpee'") as error:
        Study(SITES, sampler="tpee")
    assert "nsga2" in error.value.fix
    with pytest.raises(InputError, match="objective"):
        Study(SITES, objectives=("speed",))
