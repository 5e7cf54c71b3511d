"""Folding is compared with torch's own batch norm."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.graph.module import build
from autocompress.graph.network import Quantizer
from autocompress.graph.trace import trace
from autocompress.transforms.families.fold import fold_batch_norms


def with_statistics(module: nn.Module) -> nn.Module:
    """Batch norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, (nn.BatchNorm1d, nn.BatchNorm2d)) and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.eval()


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class SharedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.bn(self.conv(x)))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()), (3, 6, 6)),
        (nn.Sequential(nn.Conv2d(4, 8, 3, 2, groups=2), nn.BatchNorm2d(8)), (4, 7, 7)),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4)), (3, 5, 5)),
        (nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.Linear(7, 2)), (5,)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), (3, 5, 5)),
    ],
)
def test_folded_network_computes_the_same(module: nn.Module, shape: tuple[int, ...]) -> None:
    module = with_statistics(module)
    network, weights = fold_batch_norms(*trace(module, shape))
    assert "batch_norm" not in [node.op for node in network.nodes]
    assert weights is not None and weights.keys() == network.params.keys()
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(build(network, weights)(x), module(x), rtol=1e-4, atol=1e-5)


def test_one_channel_by_hand() -> None:
    """y = ((2 x) - 3) / sqrt(4) * 5 + 7 = 5 x - 0.5, with eps = 0."""
    module = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)).eval()
    module[0].weight.data.fill_(2)
    for tensor, value in zip(
        (module[1].running_mean, module[1].running_var, module[1].weight.data, module[1].bias.data),
        (3, 4, 5, 7),
        strict=True,
    ):
        tensor.fill_(value)
    network, weights = fold_batch_norms(*trace(module, (1, 2, 2)))
    assert [node.op for node in network.nodes] == ["conv2d"]
    assert weights is not None
    np.testing.assert_allclose(weights["0.weight"], [[[[5.0]]]])
    np.testing.assert_allclose(weights["0.bias"], [-0.5])


def test_shapes_alone_give_the_same_network() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    network, weights = trace(module, (3, 6, 6))
    with_weights, _ = fold_batch_norms(network, weights)
    shapes_only, nothing = fold_batch_norms(network, None)
    assert nothing is None
    assert shapes_only == with_weights
    assert shapes_only.params["0.bias"].shape == (8,)


def test_arguments_are_not_modified() -> None:
    network, weights = trace(with_statistics(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))), (3, 4, 4))
    before = {name: array.copy() for name, array in weights.items()}
    fold_batch_norms(network, weights)
    assert weights.keys() == before.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("module", [ReadTwice(), SharedWeight()])
def test_batch_norm_stays_where_folding_would_change_something_else(module: nn.Module) -> None:
    network, weights = trace(with_statistics(module), (3, 5, 5))
    folded, _ = fold_batch_norms(network, weights)
    assert "batch_norm" in [node.op for node in folded.nodes]


def test_batch_norm_without_a_layer_before_it_stays() -> None:
    network, weights = trace(with_statistics(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))), (3, 4, 4))
    assert fold_batch_norms(network, weights)[0] is network


def test_layer_takes_over_the_quantizer() -> None:
    network, _ = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), (3, 4, 4))
    quantizer = Quantizer(0.5, 3)
    nodes = [replace(n, quantizer=quantizer) if n.op == "batch_norm" else n for n in network.nodes]
    folded, _ = fold_batch_norms(network.with_nodes(nodes), None)
    assert [node.quantizer for node in folded.nodes] == [quantizer]
    assert folded.output == folded.nodes[0].name
