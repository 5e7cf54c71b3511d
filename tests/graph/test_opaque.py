"""Operations without a row in the table run as they are, lock what they touch, and nothing else."""

from __future__ import annotations

import json

import pytest
import torch
from opaque_networks import IMAGE, NETWORKS, CustomOperator, made
from torch import Tensor, nn
from written_networks import assert_computes, inputs, net

from autocompress.errors import TeacherError
from autocompress.graph.coupling import couple
from autocompress.graph.network import Network, from_json, to_json
from autocompress.graph.operations import is_opaque, short_name
from autocompress.graph.operators import UnknownOperatorError, operator_named
from autocompress.graph.trace import trace


def kept(network: Network) -> set[str]:
    """Return the short names of the operations that run as they are."""
    return {short_name(node.op) for node in network.nodes if is_opaque(node.op)}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_computes_what_the_module_does_and_reads_back(name: str) -> None:
    module = made(name)
    network, weights = trace(module, IMAGE)
    assert kept(network) >= set(NETWORKS[name].names)
    assert from_json(json.loads(json.dumps(to_json(network)))) == network
    assert_computes(network, weights, module, inputs(IMAGE, 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_away_from_the_operation_stay_changeable(name: str) -> None:
    network, _ = trace(made(name), IMAGE)
    locks = {group.name: group.locked for group in couple(network).groups}
    assert locks["stem.a"] == ""
    assert locks["head.hidden"] == ""


def test_the_reason_names_the_operation() -> None:
    network, _ = trace(made("gru over columns"), IMAGE)
    locks = {group.name: group.locked for group in couple(network).groups}
    assert "gru" in locks["stem.b"] or "reshape" in locks["stem.b"]
    network, _ = trace(made("running sums"), IMAGE)
    (locked,) = (group.locked for group in couple(network).groups if group.name == "stem.b")
    assert "cumsum" in locked or "logcumsumexp" in locked


def test_what_meets_the_result_is_locked_by_its_name() -> None:
    module = net(
        lambda m, x: m.c(torch.logcumsumexp(m.a(x), 1) + m.b(x)),
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv2d(3, 8, 1),
        c=nn.Conv2d(8, 8, 1),
    )
    network, _ = trace(module, (3, 6, 6))
    locks = {group.name: group.locked for group in couple(network).groups}
    assert "logcumsumexp" in locks["a"]
    assert "logcumsumexp" in locks["b"]


def test_integers_are_computed_exactly() -> None:
    def counted(m: nn.Module, x: Tensor) -> Tensor:
        place = x.flatten(1).argmax(1) * 3 + 1
        return m.fc(x.flatten(1)) + (place // 2).unsqueeze(1)

    module = net(counted, fc=nn.Linear(12, 4))
    network, weights = trace(module, (3, 2, 2))
    assert "mul" in kept(network)
    assert_computes(network, weights, module, inputs((3, 2, 2), 5))


def test_a_constant_may_come_from_an_operation_named_like_a_method() -> None:
    module = net(lambda m, x: m.c(x * torch.arange(3).to(torch.float32)[:, None, None]), c=nn.Conv2d(3, 4, 1))
    network, weights = trace(module, (3, 4, 4))
    assert_computes(network, weights, module, inputs((3, 4, 4)))


def test_an_operator_that_its_author_registered_is_kept() -> None:
    network, weights = trace(CustomOperator().eval(), IMAGE)
    assert "soft_sign" in kept(network)
    assert weights


@pytest.mark.parametrize(
    ("op", "why"),
    [
        ("aten::from_file", "reads no tensor"),
        ("aten::relu_", "changes its arguments"),
        ("aten::bernoulli", "random numbers"),
        ("aten::item", "something else than tensors"),
        ("prim::device", "no functions of tensors"),
        ("nobody::knows", "registered no operator"),
        ("aten::__class__", "registered no operator"),
        ("os::system('x')", "no operator's full name"),
    ],
)
def test_what_is_no_pure_function_of_tensors_is_refused(op: str, why: str) -> None:
    with pytest.raises(UnknownOperatorError, match=why):
        operator_named(op)


def test_random_numbers_are_refused_with_what_to_do() -> None:
    with pytest.raises(TeacherError, match=r"random numbers[\s\S]*fix:"):
        trace(net(lambda m, x: m.c(x + torch.rand_like(x)), c=nn.Conv2d(3, 4, 1)), (3, 4, 4))
