"""Training on a GPU, where there is one: the same students as on the processor, up to rounding."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from autocompress.errors import InputError
from autocompress.graph.module import GraphModule, build
from autocompress.graph.trace import trace
from autocompress.pipeline.options import SearchOptions
from autocompress.pipeline.search_run import check_training
from autocompress.problem.data import Data, load_data
from autocompress.problem.space import parse_space
from autocompress.students.accuracy import evaluate
from autocompress.students.builder import StudentBuilder
from autocompress.students.importances import importances
from autocompress.students.training.distill import distil
from autocompress.students.training.losses import FeatureLoss
from autocompress.students.training.precision import CPU, device_named, placed
from autocompress.students.training.settings import DistillSettings
from autocompress.transforms.sampling import random_candidate
from autocompress.transforms.sites import bind

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

SPACE = """
name: gpu
description: what training has to hold or to find
rules:
  - match: {layer: conv}
    width: {keep: [0.5, 1.0], importance: l1, round_to: 4}
    bits: [32, 8, 4, ternary]
    sparsity: {keep: [0.3, 1.0], method: METHOD}
    codebook: [none, 16]
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.inner_norm = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.fc(torch.relu(self.inner_norm(self.inner(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits,channels=1,size=16")


@pytest.fixture(scope="module")
def teacher(data: Data) -> GraphModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, weights = trace(Net().eval(), data.input_shape)
    assert weights is not None
    module = build(network, weights)
    distil(module, None, data, DistillSettings(epochs=25, batch_size=32, learning_rate=0.1, train_on="cpu"))
    return module


def copy_of(module: GraphModule) -> GraphModule:
    return build(module.source_network, module.export_weights())


def where(module: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


def test_without_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_named("auto") == CPU
    with pytest.raises(Exception, match="GPU is not possible") as caught:
        device_named("cuda")
    assert "--train-on cpu" in str(caught.value)


def test_workers_that_are_given_no_gpu_cannot_train_on_one():
    asked = SearchOptions(workers=2, gpus_per_trial=0.0, train_on="cuda")
    with pytest.raises(InputError, match="workers are given none") as caught:
        check_training(asked)
    assert "--gpus-per-trial" in str(caught.value)
    check_training(replace(asked, gpus_per_trial=0.5))
    check_training(replace(asked, train_on="auto"))


@gpu
def test_what_is_placed_comes_back(teacher: GraphModule):
    module = copy_of(teacher)
    before = {name: id(parameter) for name, parameter in module.named_parameters()}
    with placed(module, torch.device("cuda")):
        assert where(module) == {"cuda"}
    assert where(module) == {"cpu"}
    assert before == {name: id(parameter) for name, parameter in module.named_parameters()}


@gpu
def test_accuracy_is_the_same(teacher: GraphModule, data: Data):
    here, there = (evaluate(teacher, data.validation, on=on) for on in ("cpu", "cuda"))
    assert here.accuracy == pytest.approx(there.accuracy, abs=0.006)
    assert here.loss == pytest.approx(there.loss, rel=1e-3)
    assert where(teacher) == {"cpu"}


@gpu
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_student_learns_and_comes_back(teacher: GraphModule, data: Data, precision: str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network, weights = trace(Net().eval(), data.input_shape)
    assert weights is not None
    student = build(network, weights)
    inner = [node.name for node in network.nodes if node.op == "relu"][-1]
    features = FeatureLoss(((inner, inner),), 0.1)
    distil(
        student,
        teacher,
        data,
        DistillSettings(epochs=25, batch_size=32, learning_rate=0.1, precision=precision, train_on="cuda"),
        features=features,
    )
    assert where(student) == where(teacher) == {"cpu"}
    assert evaluate(student, data.validation).accuracy > 0.9


@gpu
@pytest.mark.parametrize("method", ["magnitude", "l1", "l0", "decay"])
def test_every_kind_of_student_is_finished(teacher: GraphModule, data: Data, method: str):
    """With zeros that training finds, shared values, coarse grids and 8 bits together."""
    bound = bind(parse_space(SPACE.replace("METHOD", method), "test"), teacher.source_network)
    weights = teacher.export_weights()
    shop = StudentBuilder(
        bound,
        weights,
        data,
        importances(bound, weights, data),
        DistillSettings(batch_size=32, train_on="cuda"),
    )
    rng = random.Random(0)
    for _ in range(4):
        finished = shop.finish(random_candidate(bound, rng), 12.0, 1.0)
        assert finished is not None
        again = evaluate(build(finished.network, finished.weights), data.validation)
        assert again.accuracy == pytest.approx(finished.validation.accuracy, abs=0.012)
        assert finished.validation.accuracy > 0.5
