"""A new budget answered from a run: within the limits, from what was recorded, without torch."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from priced_networks import SPACE, small_resnet

import autocompress as ac
from autocompress.api import solve
from autocompress.cli.main import main
from autocompress.cost.kernels import kernels
from autocompress.cost.marginal import effects_of
from autocompress.cost.model import CostModel
from autocompress.cost.pricer import Pricer
from autocompress.device.profile_files.store import load_profile, profile_folder
from autocompress.graph.network import to_json
from autocompress.graph.trace import trace
from autocompress.pipeline.budget_queries import Answers
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Candidate
from autocompress.problem.space import parse_space
from autocompress.runs.events import ChoicesPriced, RunStarted, Scored, SiteRecord
from autocompress.runs.store import RunStore
from autocompress.runs.student import Student
from autocompress.transforms.apply import deployed_network
from autocompress.transforms.sites import bind

PROFILE = "epyc-zen4-onnxruntime-1-thread-resnet20"
DROPPED = ("block:blocks.1", "drop")


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    """The small network on the shipped profile, without one of the choices, as a run would search it."""
    network, _ = trace(small_resnet(in_channels=3, classes=10), (3, 32, 32))
    space, profile = parse_space(SPACE), load_profile(PROFILE)
    bound = bind(space, network).without({DROPPED: "does not pay"})
    found = kernels(deployed_network(bound, Candidate()), profile.layouts)
    view = profile.for_network(network.input_shape, space.fingerprint, "teacher", found)
    return Pricer(bound, CostModel(view))


@pytest.fixture(scope="module")
def run(pricer: Pricer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was scored and priced, and then went no further."""
    root = tmp_path_factory.mktemp("runs") / "scored"
    teacher, rng = pricer.teacher, random.Random(0)
    limits = Limits(latency_ms=0.9 * teacher.latency_ms, file_bytes=teacher.file_bytes)
    damage = [
        [site.name, option, rng.random() * (1.5 - float(option) if site.kind == "width" else 1.0)]
        for site in pricer.bound.free
        for option in site.options
        if site.kind != "bits" and option != site.default
    ]
    config = {"identity": {"teacher": "teacher"}, "space": parse_space(SPACE).to_json()}
    with RunStore.create(root, config, {}) as store:
        sites = tuple(
            SiteRecord(site.name, site.kind, site.options, locked=site.locked) for site in pricer.bound.sites
        )
        measured = Student(
            key="teacher", accuracy=0.9, accuracy_std_err=0.0, certified=True, path="", **vars(teacher)
        )
        store.append(RunStarted(teacher=measured, limits=limits, sites=sites))
        store.append(Scored(damage=tuple(map(tuple, damage))))
        store.append(ChoicesPriced(table=effects_of(pricer, pricer.low_bits).to_json()))
        store.paths.teacher.mkdir()
        network = json.dumps(to_json(pricer.bound.network))
        (store.paths.teacher / "network.json").write_text(network, encoding="utf-8")
        shutil.copytree(profile_folder(PROFILE), store.paths.device)
    return root


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_the_answer_keeps_the_new_and_the_old_limits(run: Path, pricer: Pricer, share: float):
    limit = share * pricer.teacher.latency_ms
    answer = ac.front(run).solve(latency_ms=limit)
    assert answer.predicted == pricer.price(answer.candidate)
    assert answer.predicted.latency_ms_ci95[1] <= limit == answer.limits.latency_ms
    assert answer.predicted.file_bytes <= pricer.teacher.file_bytes == answer.limits.file_bytes
    assert DROPPED not in answer.candidate.choices


def test_more_room_is_never_more_sensitivity(run: Path, pricer: Pricer):
    answers = Answers.of(run)
    sums = [
        answers.solve(latency_ms=share * pricer.teacher.latency_ms).summed_sensitivity
        for share in (0.5, 0.6, 0.75, 0.9)
    ]
    assert sums == sorted(sums, reverse=True)
    assert sums[0] > sums[-1]


def test_limits_as_typed_are_relative_to_the_teacher(run: Path, pricer: Pricer):
    typed = solve(run, latency="50%", size="60%")
    assert typed.limits.latency_ms == pytest.approx(0.5 * pricer.teacher.latency_ms)
    assert typed == ac.front(run).solve(
        latency_ms=typed.limits.latency_ms, size_mib=typed.limits.file_bytes / 1024**2
    )


def test_a_limit_that_nothing_keeps_names_the_nearest_miss(run: Path, pricer: Pricer):
    with pytest.raises(ac.NothingFeasibleError, match="predicted to keep") as caught:
        ac.front(run).solve(latency_ms=0.5 * pricer.smallest.latency_ms)
    assert "latency" in caught.value.why and "above the limit" in caught.value.why
    assert caught.value.exit_code == 3


def test_a_run_without_scores_says_so(tmp_path: Path):
    with RunStore.create(tmp_path / "early", {"identity": {}}, {}):
        pass
    with pytest.raises(ac.RunError, match="no scores"):
        ac.front(tmp_path / "early").solve(latency_ms=1.0)


def test_the_command_prints_and_writes_the_candidate(run: Path, tmp_path: Path):
    target = tmp_path / "candidate.json"
    options = [str(run), "--solve", "--latency", "60%", "-o", str(target), "--format", "json"]
    result = CliRunner().invoke(main, ["pick", *options])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads(target.read_text(encoding="utf-8"))
    assert Candidate.of(printed["choices"]).key == printed["key"]
    assert {"latency_ms", "latency_ms_ci95", "peak_memory_bytes", "file_bytes"} <= printed["predicted"].keys()
    assert CliRunner().invoke(main, ["pick", *options]).exit_code == 2
    table = CliRunner().invoke(main, ["pick", str(run), "--solve", "--latency", "60%"])
    assert printed["key"] in table.stdout and "sensitivity" in table.stdout
    missing = CliRunner().invoke(main, ["pick", str(run), "--latency", "60%"])
    assert missing.exit_code == 2 and "--output" in missing.output


def test_answering_needs_no_torch(run: Path):
    code = (
        f"import sys, autocompress as ac; ac.front({str(run)!r}).solve(latency_ms=1.0); "
        "sys.exit(len({'torch', 'optuna', 'ray', 'onnx', 'timm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
