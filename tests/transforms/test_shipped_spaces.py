"""Each shipped space finds choices in the networks that it is for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from layer_networks import decoder, tokens, wave
from torch import nn

from autocompress.graph.trace import trace
from autocompress.problem.space import load_space
from autocompress.transforms.sites import bind


def of_timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10).eval()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


IMAGE = (3, 64, 64)
ANY = [(of_timm("test_resnet"), IMAGE), (of_timm("test_vit"), (3, 160, 160)), (wave, (2, 64))]
FOR: dict[str, tuple[list[tuple[Callable[[], nn.Module], tuple[int, ...]]], set[str]]] = {
    "joint": (ANY, {"width", "rank", "bits"}),
    "width": (ANY, {"width"}),
    "quantize": (ANY, {"bits"}),
    "lowrank": (ANY, {"rank"}),
    "tiny": (ANY, {"width", "rank", "bits"}),
    "resnet": ([(of_timm("test_resnet"), IMAGE)], {"width", "bits", "block"}),
    "mobilenet": ([(of_timm("test_efficientnet"), IMAGE)], {"width", "rank", "bits"}),
    "convnext": ([(of_timm("test_convnext"), IMAGE)], {"width", "rank", "bits", "block"}),
    "vit": ([(of_timm("test_vit"), (3, 160, 160))], {"width", "rank", "bits", "block"}),
    "mlp": ([(mlp, (16,)), (tokens, (6,))], {"width", "rank", "bits"}),
    "conv1d": ([(wave, (2, 64))], {"width", "rank", "bits"}),
    "unet": ([(decoder, (3, 16, 16))], {"width", "rank", "bits"}),
}


@pytest.mark.parametrize("name", FOR)
def test_a_space_finds_its_choices_where_it_is_for(name: str) -> None:
    networks, kinds = FOR[name]
    for build, shape in networks:
        torch.manual_seed(0)
        bound = bind(load_space(name), trace(build(), shape)[0])
        assert {site.kind for site in bound.free} >= kinds
