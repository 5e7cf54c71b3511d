import math

import pytest
import torch
from tiny_networks import stripes, tiny_net
from torch import nn
from torch.nn import functional

from autocompress.graph.module import build
from autocompress.graph.network import BINARIZE, INPUT, XNOR
from autocompress.graph.trace import trace
from autocompress.problem.teacher import fingerprint
from autocompress.students.accuracy import evaluate, logits_of, recalibrate_batch_norms
from autocompress.students.calibration.activation_ranges import collect_ranges
from autocompress.students.training.distill import DivergedError, distil, make_optimizer, one_cycle
from autocompress.students.training.losses import ClassLoss, FeatureLoss, label_loss, soft_targets, value_loss
from autocompress.students.training.settings import DistillSettings
from autocompress.students.training.teacher_cache import TeacherOutputs
from autocompress.transforms.families.quantize import with_bits

DATA = stripes()


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    model = tiny_net(seed=1, width=16)
    distil(model, None, DATA, DistillSettings(epochs=10, batch_size=32, precision="float32"))
    assert evaluate(model, DATA.validation).accuracy > 0.95
    return model


def test_soft_targets_by_hand():
    teacher, student = torch.tensor([[math.log(3) * 2, 0.0]]), torch.tensor([[0.0, 0.0]])
    # At temperature 2 the teacher says (3/4, 1/4) and the student (1/2, 1/2).
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(soft_targets(student, teacher, 2.0)) == pytest.approx(4 * divergence, rel=1e-6)
    assert float(soft_targets(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-7)


def test_the_loss_mixes_teacher_and_labels():
    student, teacher, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    soft, hard = soft_targets(student, teacher, 3.0), functional.cross_entropy(student, labels)
    assert float(ClassLoss(3.0, 0.25)(student, teacher, labels)) == pytest.approx(
        float(0.25 * soft + 0.75 * hard)
    )
    assert float(ClassLoss(3.0, 1.0)(student, teacher, labels)) == pytest.approx(float(soft))
    assert float(label_loss(student, teacher, labels)) == pytest.approx(float(hard))
    assert float(value_loss(student, teacher, labels)) == pytest.approx(
        float(((student - teacher) ** 2).mean())
    )
    for bad in ({"temperature": 0.0}, {"alpha": 1.5}):
        with pytest.raises(ValueError, match="temperature"):
            ClassLoss(**bad)


def test_features_count_relative_to_the_teachers():
    loss = FeatureLoss((("a", "x"), ("b", "y")), weight=2.0)
    student = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([5.0])}
    teacher = {"x": torch.tensor([3.0, 1.0]), "y": torch.tensor([10.0])}
    assert float(loss(student, teacher)) == pytest.approx(2 * ((4 / 2) / 5 + 25 / 100) / 2)


def test_one_cycle_rises_for_a_quarter_and_falls_to_almost_nothing():
    assert one_cycle(0.25) == pytest.approx(1.0)
    assert one_cycle(0.0) == pytest.approx(0.04) and one_cycle(1.0) == pytest.approx(0.001)
    assert one_cycle(0.125) == pytest.approx(0.52)
    values = [one_cycle(step / 100) for step in range(101)]
    assert values[:26] == sorted(values[:26]) and values[25:] == sorted(values[25:], reverse=True)


def test_biases_and_norms_do_not_decay_and_norms_choose_the_optimiser():
    optimizer, rate = make_optimizer(tiny_net())
    assert isinstance(optimizer, torch.optim.SGD) and rate == 0.05
    decays = {
        tuple(p.shape): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decays[(8, 1, 3, 3)] > 0 and decays[(3, 8)] > 0 and decays[(8,)] == decays[(3,)] == 0
    folded, rate = make_optimizer(nn.Linear(3, 3))
    assert isinstance(folded, torch.optim.SGD) and rate == 0.003
    assert isinstance(make_optimizer(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3)))[0], torch.optim.AdamW)
    assert make_optimizer(build(*trace(tiny_net(), (1, 8, 8))))[1] == 0.05


def test_a_student_learns_its_teacher_which_stays_as_it_was(teacher: nn.Module):
    before, state = fingerprint(teacher), torch.get_rng_state()
    student = build(*trace(tiny_net(), (1, 8, 8)))
    start = evaluate(student, DATA.validation).accuracy
    calls: list[tuple[int, int, float]] = []
    result = distil(
        student,
        teacher,
        DATA,
        DistillSettings(epochs=8, batch_size=32),
        progress=lambda *call: calls.append(call),
    )
    assert evaluate(student, DATA.validation).accuracy > max(start, 0.9)
    assert fingerprint(teacher) == before and not teacher.training and not student.training
    assert torch.equal(torch.get_rng_state(), state)
    assert result.finished and result.steps == 32 == len(calls) and len(result.losses) == 8
    assert result.losses[-1] < result.losses[0]
    assert calls[-1][:2] == (32, 32)


def test_equal_seeds_give_equal_students_with_shared_answers_or_without(teacher: nn.Module):
    shared = TeacherOutputs(teacher)
    marks = []
    for seed, answers in ((3, teacher), (3, shared), (3, shared), (4, shared)):
        student = tiny_net()
        distil(student, answers, DATA, DistillSettings(epochs=1.5, batch_size=32, seed=seed))
        marks.append(fingerprint(student))
    assert marks[0] == marks[1] == marks[2] != marks[3]


def test_the_teacher_is_asked_once_for_a_batch():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x.flatten(1)

    counting = Counting()
    answers = TeacherOutputs(counting, maximum_bytes=2 * 4 * 3)
    images = torch.ones(2, 3)
    assert torch.equal(answers.outputs(("a",), images), images)
    answers.outputs(("a",), images)
    assert counting.calls == 1
    answers.outputs(("b",), images)
    answers.outputs(("b",), images)
    assert counting.calls == 3


def test_fractions_of_an_epoch_limits_and_stops():
    assert distil(tiny_net(), None, DATA, DistillSettings(epochs=0.5, batch_size=32)).steps == 2
    assert distil(tiny_net(), None, DATA, DistillSettings(epochs=0, batch_size=32)).steps == 1
    limited = distil(tiny_net(), None, DATA, DistillSettings(epochs=1e6, batch_size=32, time_limit_s=0.2))
    assert limited.finished and 5 <= limited.steps < 10_000
    asked = iter([False, False, True])
    stopped = distil(
        tiny_net(), None, DATA, DistillSettings(epochs=3, batch_size=32), stop=lambda: next(asked)
    )
    assert not stopped.finished and stopped.steps == 2


def test_features_are_learned_between_graphs(teacher: nn.Module):
    wise = build(*trace(teacher, (1, 8, 8)))
    student = build(*trace(tiny_net(2, width=16), (1, 8, 8)))
    name = next(node.name for node in student.source_network.nodes if node.op == "conv2d")
    features = FeatureLoss(((name, name),))
    images = next(DATA.validation.batches(64))[0]

    def error() -> float:
        with torch.no_grad():
            return float(
                features(student.forward_values(images, [name]), wise.forward_values(images, [name]))
            )

    before = error()
    distil(
        student, wise, DATA, DistillSettings(epochs=6, batch_size=32, precision="float32"), features=features
    )
    assert error() < 0.7 * before
    with pytest.raises(TypeError, match="GraphModules"):
        distil(tiny_net(), wise, DATA, DistillSettings(epochs=1), features=features)


def test_a_folded_quantized_student_learns(teacher: nn.Module):
    from dataclasses import replace

    from autocompress.transforms.families.fold import fold_batch_norms
    from autocompress.transforms.families.quantize import plan, with_ranges

    network, weights = fold_batch_norms(*trace(teacher, (1, 8, 8)))
    assert weights is not None
    rounded = network.with_nodes(
        replace(node, bits=8) if node.op in ("conv2d", "linear") else node for node in network.nodes
    )
    values = plan(rounded)
    assert INPUT in values
    ranges = collect_ranges(build(network, weights), values, DATA.calibration.batches(32))
    student = build(with_ranges(rounded, ranges), weights)
    images = next(DATA.validation.batches(64))[0]
    with torch.no_grad():
        before = float((student(images) - teacher(images)).square().mean())
    result = distil(student, teacher, DATA, DistillSettings(epochs=4, batch_size=32))
    with torch.no_grad():
        after = float((student(images) - teacher(images)).square().mean())
    assert result.learning_rate == 0.003 and after < 2 * before
    assert evaluate(student, DATA.validation).accuracy > 0.9


@pytest.mark.parametrize("form", ["2", "binary", "ternary", "xnor"])
def test_weights_of_few_values_and_their_steps_are_learned(teacher: nn.Module, form: str):
    network, weights = trace(teacher, (1, 8, 8))
    layers = [node.name for node in network.nodes if node.op in ("conv2d", "linear")]
    option = int(form) if form.isdigit() else form
    few, values = with_bits(network, weights, dict.fromkeys(layers, option))
    assert values is not None
    student = build(few, values)
    recalibrate_batch_norms(student, DATA.calibration.batches(32))
    before = evaluate(student, DATA.validation)
    distil(student, teacher, DATA, DistillSettings(epochs=8, batch_size=32, precision="float32"))
    after = evaluate(student, DATA.validation)
    assert after.loss < 0.8 * before.loss and after.accuracy > 0.9
    learned = student.export_weights()
    binary = {node.params[0] for node in few.nodes if node.op == BINARIZE}
    assert bool(binary) == (form == XNOR)
    assert all((learned[step] != values[step]).any() for step in few.steps | binary)


def test_a_loss_that_is_not_finite_is_said():
    with pytest.raises(DivergedError, match="step 1"):
        distil(
            tiny_net(),
            None,
            DATA,
            DistillSettings(epochs=1),
            loss=lambda student, _teacher, _labels: student.sum() * math.nan,
        )


def test_logits_are_those_of_the_module_in_order(teacher: nn.Module):
    ((images, _),) = DATA.validation.batches(99)
    with torch.no_grad():
        assert torch.allclose(logits_of(teacher, DATA.validation, 10), teacher(images), atol=1e-5)
        outputs = TeacherOutputs(teacher).of_all(DATA.train, 50)
        assert torch.allclose(outputs, logits_of(teacher, DATA.train), atol=1e-5)


def test_positions_are_those_of_the_batches():
    for order, (images, labels) in zip(
        DATA.train.order(32, True, 5, True),
        DATA.train.batches(32, shuffle=True, seed=5, drop_last=True),
        strict=True,
    ):
        ((expected, expected_labels),) = DATA.train.select(order).batches(32)
        assert torch.equal(images, expected) and torch.equal(labels, expected_labels)
