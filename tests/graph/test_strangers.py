"""Whatever torch can export opens: the traced network and its file compute what the module computes."""

import json
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from strangers import STRANGERS
from written_networks import net

from autocompress.errors import TeacherError
from autocompress.export.onnx import to_onnx
from autocompress.graph.capture.example import Example
from autocompress.graph.capture.signature import taken_apart
from autocompress.graph.module import build
from autocompress.graph.network import from_json, to_json
from autocompress.graph.trace import trace
from autocompress.problem.teacher import load_teacher

NEAR = 1e-4
"""Of the range of the outputs."""


def near(actual: np.ndarray, expected: np.ndarray) -> bool:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    scale = float(np.abs(expected.astype(np.float64)).max())
    return bool(np.abs(actual.astype(np.float64) - expected).max() <= NEAR * scale)


def arrays(value: Any) -> tuple[list[np.ndarray], Any]:
    """All tensors in a value as arrays, and its structure."""
    tensors, tree = taken_apart(value)
    return [one.numpy() for one in tensors], tree


def example(name: str, module: torch.nn.Module, batch: int) -> Example:
    return Example.of_call(module, STRANGERS[name][1](batch))


def call(module: torch.nn.Module, name: str) -> Any:
    given = STRANGERS[name][1](3)
    return module(**given) if isinstance(given, dict) else module(*given)


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_s_network_opens_and_its_file_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    teacher = load_teacher(STRANGERS[name][0]())
    network, weights = trace(teacher.module, example(name, teacher.module, 2))
    assert from_json(json.loads(json.dumps(to_json(network)))) == network
    called = example(name, teacher.module, 3)
    with torch.no_grad():
        result, built = (call(module, name) for module in (teacher.module, build(network, weights)))
    expected, structure = arrays(result)
    actual, same_structure = arrays(built)
    assert type(built) is type(result) and same_structure == structure
    assert all(map(near, actual, expected))
    session = onnxruntime.InferenceSession(to_onnx(network, weights, batch=3).SerializeToString())
    names = [one.name for one in session.get_inputs()]
    found = session.run(None, dict(zip(names, (one.numpy() for one in called.tensors), strict=True)))
    assert all(map(near, found, expected))


def chosen(x: torch.Tensor) -> torch.Tensor:
    return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


def repeated(x: torch.Tensor) -> torch.Tensor:
    while_loop = torch._higher_order_ops.while_loop
    return while_loop(lambda y: y.sum() < 9, lambda y: (y.abs() + 1,), (x,))[0]


REFUSED = {
    "cond": (chosen, r"uses torch's cond[\s\S]*fix: [\s\S]*torch.where"),
    "while_loop": (repeated, r"uses torch's while_loop[\s\S]*fix: [\s\S]*fixed number"),
    "value of a tensor": (lambda x: x * x.mean().item(), r"uses aten::item[\s\S]*fix: replace it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_cannot_export_as_one_graph_is_refused_with_a_way_out(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(TeacherError, match=message):
        trace(net(lambda _, x: function(x)), (4,))


def test_a_scripted_module_is_refused_with_a_way_out() -> None:
    with pytest.raises(TeacherError, match=r"scripted module[\s\S]*give the nn.Module"):
        load_teacher(torch.jit.script(torch.nn.Linear(2, 2)))


def test_weights_that_are_computed_are_written_down_and_the_module_is_left_as_it_is() -> None:
    module = STRANGERS["critic"][0]().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    teacher = load_teacher(module)
    assert set(dict(teacher.module.named_parameters())) == {
        f"{layer}.{kind}" for layer in ("body.0", "body.2", "score") for kind in ("weight", "bias")
    }
    assert module.training and module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with torch.no_grad():
        module.eval()(torch.zeros(1, 3, 8, 8))
    torch.testing.assert_close(teacher.module.score.weight, module.score.weight)
    torch.testing.assert_close(teacher.module.body[2].weight, module.body[2].weight)


def test_a_weight_that_two_layers_share_stays_one() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).relu())

    network, weights = trace(load_teacher(torch.nn.DataParallel(Tied())).module, (4,))
    assert set(weights) == {"a.bias", "b.weight"} and network.parameter_count == 20
