"""A traced and rebuilt module gives the outputs of the module; what cannot be traced is named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from written_networks import assert_computes, inputs, net

from autocompress.errors import TeacherError
from autocompress.graph.network import Param, Ref
from autocompress.graph.trace import layers, trace
from autocompress.problem.teacher import fingerprint


def conv(channels: int = 3, out: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, **options)


def attention(m: Any, x: Tensor) -> Tensor:
    batch, tokens, width = x.shape
    q, k, v = m.qkv(x).reshape(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


def attention_by_matmul(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    return m.out((q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v)


def in_place(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x.sub_(0.5).div_(2))
    y += 1
    return F.relu(y, inplace=True) * y


def size_of_the_batch(m: Any, x: Tensor) -> Tensor:
    token = m.token.expand(x.shape[0], -1, -1)
    return torch.cat([token, m.conv(x).view(x.size(0), 4, -1).transpose(1, 2)], 1)


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "functional code": (
        lambda: net(
            lambda m, x: F.hardswish(F.batch_norm(m.conv(x), m.bn.running_mean, m.bn.running_var)),
            conv=conv(),
            bn=nn.BatchNorm2d(4, affine=False),
        ),
        (3, 6, 6),
    ),
    "residual": (
        lambda: net(
            lambda m, x: (y := m.stem(x)) + m.b(F.relu(m.bn(m.a(y)))),
            stem=conv(),
            a=conv(4, 6),
            bn=nn.BatchNorm2d(6),
            b=conv(6, 4),
        ),
        (3, 6, 6),
    ),
    "attention": (lambda: net(attention, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8)), (5, 8)),
    "attention by matmul": (
        lambda: net(attention_by_matmul, qkv=nn.Linear(8, 24, bias=False), out=nn.Linear(8, 3)),
        (5, 8),
    ),
    "torch's own transformer": (
        lambda: net(
            lambda m, x: m.layer(x), layer=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.3)
        ),
        (5, 8),
    ),
    "concatenation": (
        lambda: net(lambda m, x: torch.cat([m.a(x), x, m.b(x)], 1), a=conv(), b=conv(out=2)),
        (3, 6, 6),
    ),
    "reshape": (
        lambda: net(lambda m, x: m.fc(m.conv(x).reshape(x.shape[0], -1)), conv=conv(), fc=nn.Linear(144, 5)),
        (3, 6, 6),
    ),
    "padding shortcut": (
        lambda: net(
            lambda m, x: m.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)),
            conv=nn.Conv2d(3, 6, 3, 2, 1),
        ),
        (3, 7, 7),
    ),
    "dropout": (
        lambda: net(
            lambda m, x: F.dropout(m.drop(m.conv(x)), 0.5, m.training), conv=conv(), drop=nn.Dropout2d(0.5)
        ),
        (3, 6, 6),
    ),
    "buffers": (
        lambda: net(
            lambda m, x: m.conv((x - m.mean) / m.scale).mul(m.table[m.index].view(1, 4, 1, 1)),
            conv=conv(),
            mean=nn.Buffer(torch.rand(3, 1, 1)),
            scale=nn.Buffer(torch.tensor(0.25)),
            table=nn.Parameter(torch.rand(9)),
            index=nn.Buffer(torch.tensor([3, 1, 4, 1])),
        ),
        (3, 6, 6),
    ),
    "in place": (lambda: net(in_place, conv=conv()), (3, 6, 6)),
    "change through a view": (
        lambda: net(lambda m, x: (y := m.conv(x), y[:, :2].add_(1))[0], conv=conv()),
        (3, 6, 6),
    ),
    "size of the batch": (
        lambda: net(size_of_the_batch, conv=conv(), token=nn.Parameter(torch.rand(1, 1, 4))),
        (3, 6, 6),
    ),
    "shared layer": (lambda: net(lambda m, x: m.conv(m.conv(x)), conv=conv(out=3)), (3, 6, 6)),
    "keywords": (
        lambda: net(
            lambda m, x: F.conv2d(weight=m.conv.weight, groups=3, input=x, stride=2),
            conv=nn.Conv2d(3, 6, 3, groups=3),
        ),
        (3, 7, 7),
    ),
    "idle cast": (lambda: net(lambda m, x: m.fc(x.to(m.fc.weight.dtype)), fc=nn.Linear(3, 2)), (3,)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("batch", [1, 4])
def test_traced_network_gives_the_outputs_of_the_module(name: str, batch: int) -> None:
    torch.manual_seed(0)
    make, shape = MODULES[name]
    module = make()
    assert_computes(*trace(module, shape), module, inputs(shape, batch))


def test_nodes_are_plain_data_with_the_names_of_the_modules() -> None:
    module = net(
        lambda m, x: m.head(F.relu(m.body[1](m.body[0](x))).mean((2, 3))),
        body=nn.Sequential(conv(bias=False), nn.BatchNorm2d(4)),
        head=nn.Linear(4, 2),
    )
    network, weights = trace(module, (3, 6, 6))
    assert [(node.name, node.op, node.shape) for node in network.nodes] == [
        ("body.0", "conv2d", (1, 4, 6, 6)),
        ("body.1", "batch_norm", (1, 4, 6, 6)),
        ("relu", "relu", (1, 4, 6, 6)),
        ("mean", "mean.dim", (1, 4)),
        ("head", "linear", (1, 2)),
    ]
    assert network.nodes[-1].args == (Ref("mean"), Param("head.weight"), Param("head.bias"))
    assert [node.name for node in layers(network)] == ["body.0", "head"]
    assert (
        network.params.keys() == weights.keys() == set(module.state_dict()) - {"body.1.num_batches_tracked"}
    )
    assert not network.params["body.1.running_var"].trainable and network.params["body.1.weight"].trainable


def test_what_depends_on_no_input_is_computed_once() -> None:
    module = net(
        lambda m, x: x * (m.scale.exp() + torch.arange(3)) + m.bias.exp(), scale=nn.Buffer(torch.ones(3))
    )
    module.bias = nn.Parameter(torch.zeros(3))
    network, weights = trace(module, (3,))
    assert [node.op for node in network.nodes] == ["mul.Tensor", "exp", "add.Tensor"]
    (folded,) = (name for name in weights if name != "bias")
    torch.testing.assert_close(torch.from_numpy(weights[folded]), torch.e + torch.arange(3))


def test_the_teacher_is_not_changed() -> None:
    module = net(
        lambda m, x: m.drop(m.bn(m.conv(x))), conv=conv(), bn=nn.BatchNorm2d(4), drop=nn.Dropout(0.5)
    ).double()
    module.train()
    module.conv.weight.requires_grad_(False)
    before = fingerprint(module)
    _, weights = trace(module, (3, 6, 6))
    assert fingerprint(module) == before
    assert module.training and module.bn.training and module.conv.weight.dtype == torch.float64
    assert not module.conv.weight.requires_grad and module.conv.weight.grad is None
    assert module.bn.num_batches_tracked == 0
    weights["conv.weight"][:] = 0
    assert module.conv.weight.abs().sum() > 0


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "nothing": (lambda *_: None, "returns no tensor"),
    "branch on a value": (
        lambda m, x: m.conv(x) if x.sum() > 0 else m.conv(-x),
        r"traced[\s\S]*data-dependent",
    ),
    "branch on the batch": (lambda m, x: m.conv(x) if len(x) == 2 else x, "computes something else"),
    "another input shape": (lambda m, x: m.conv(x[:, :2]), r"traced[\s\S]*3 channels, but got 2"),
    "random numbers": (lambda m, x: m.conv(x) + torch.rand_like(x[:, :1]), "draws random numbers"),
    "dropout that stays on": (
        lambda m, x: F.dropout(m.conv(x), 0.5, True),
        r"draws random numbers[\s\S]*training=self.training",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_named(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(TeacherError, match=message):
        trace(net(function, conv=conv(), lstm=nn.LSTM(36, 2, batch_first=True)), (3, 6, 6))
