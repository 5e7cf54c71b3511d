"""Whether a network goes through what a search does to it, told before anything is measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from places import NETWORKS
from priced_networks import small_resnet
from tiny_networks import stripes, tiny_net
from torch import Tensor, nn

import autocompress as ac
from autocompress.cli.main import main
from autocompress.errors import InputError
from autocompress.pipeline.before_search.candidate_check import NetworkCheck
from autocompress.progress import Console

QUIET = Console(quiet=True)

TEACHER = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 4))
"""


class OuterProduct(nn.Module):
    """A convolution that can be changed, and a product of what it computes, which cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(3, 8, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.dense(images).relu().mean((2, 3))
        return (features.unsqueeze(2) @ features.unsqueeze(1)).flatten(1)


@pytest.fixture(scope="module")
def found() -> NetworkCheck:
    return ac.check(small_resnet(in_channels=3), input_size=16, candidates=4, console=QUIET)


def test_every_candidate_comes_to_a_comparison(found: NetworkCheck):
    assert found.passed and not found.failed
    assert [(one.name, one.precision) for one in found.candidates[:2]] == [
        ("teacher", "fp32"),
        ("teacher", "int8"),
    ]
    assert len(found.candidates) == 2 + 4
    assert len({one.key for one in found.candidates}) == len(found.candidates)
    for one in found.candidates:
        assert one.parity is not None
        assert one.parity.max_error < 1e-4 or one.precision != "fp32"
    assert min(one.macs for one in found.candidates) < found.macs == found.candidates[0].macs


def test_the_same_seed_draws_the_same_candidates(found: NetworkCheck):
    again = ac.check(small_resnet(in_channels=3), input_size=16, candidates=4, console=QUIET)
    assert [one.key for one in again.candidates] == [one.key for one in found.candidates]


def test_the_share_counts_multiply_adds_of_layers_that_can_lose_some():
    check = ac.check(OuterProduct(), input_size=8, candidates=2, console=QUIET)
    dense, product = 8 * 8 * 8 * 3 * 9, 8 * 8
    assert check.macs == dense + product
    assert check.changeable_share == pytest.approx(dense / (dense + product))


def test_what_does_not_go_through_is_told_with_the_step(found: NetworkCheck):
    bad = replace(found.candidates[2], reason="exporting: no such operation", parity=None)
    check = replace(found, candidates=(*found.candidates[:2], bad, *found.candidates[3:]))
    assert not check.passed
    assert check.conclusion == "1 of 6 networks did not go through: exporting: no such operation"
    assert check.to_json()["passed"] is False


def test_a_network_without_a_decision_does_not_pass(tmp_path: Path):
    space = tmp_path / "space.yaml"
    space.write_text("name: none\nrules:\n  - lock: {layer: conv}\n  - lock: {layer: linear}\n")
    check = ac.check(tiny_net(), space=space, input_size=8, console=QUIET)
    assert not check.passed and not check.failed and "every site is locked" in check.conclusion


def test_candidates_are_compared_on_the_data_where_there_is_some():
    check = ac.check(tiny_net(), stripes(), candidates=1, console=QUIET)
    assert check.examples == "images of the data"
    assert all(one.parity and one.parity.examples == 16 for one in check.candidates)


def test_the_command_prints_the_answer_and_ends_with_it(tmp_path: Path):
    model = tmp_path / "model.py"
    model.write_text(TEACHER)
    teacher = ["check", "--teacher", f"{model}:build", "--candidates", "1"]
    result = CliRunner().invoke(main, [*teacher, "--input-size", "8"])
    assert result.exit_code == 0
    assert "went through" in result.stdout and "is the output of the network" in result.stdout
    result = CliRunner().invoke(main, [*teacher, "--input-size", "8", "--format", "json"])
    answer = json.loads(result.stdout)
    assert answer["passed"] is True and answer["candidates"][0]["parity"]["max_error"] < 1e-4
    refused = CliRunner().invoke(main, teacher)
    assert refused.exit_code == 2 and "--input-size" in refused.stderr


def test_less_than_one_candidate_is_refused():
    with pytest.raises(InputError, match="candidates is 0"):
        ac.check(tiny_net(), input_size=8, candidates=0, console=QUIET)


STRANGER = """
import sys
sys.path.insert(0, "{networks}")
from strangers import STRANGERS

def build():
    make, example = STRANGERS["{name}"]
    return make(), example(1)
"""


@pytest.mark.parametrize("name", ["denoiser", "siamese", "detector", "pyramid", "words"])
def test_networks_of_several_tensors_are_compared_call_by_call(name: str, tmp_path: Path):
    (tmp_path / "teacher.py").write_text(STRANGER.format(networks=NETWORKS, name=name))
    check = ac.check(f"{tmp_path}/teacher.py:build", candidates=2, console=QUIET)
    assert not check.failed, check.conclusion
    assert {one.precision for one in check.candidates} == {"fp32"}
    assert all(one.parity is not None and one.parity.max_error < 1e-4 for one in check.candidates)
