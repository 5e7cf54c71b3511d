"""How the teachers of the tasks are trained: AdamW, one cycle of learning rates, an average of weights."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """Say how long, in which steps and with which seed a teacher learns."""

    epochs: int
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    average: float = 0.99
    seed: int = 0


def train(
    network: nn.Module,
    examples: Batch,
    loss: Callable[[Tensor, Tensor], Tensor],
    augment: Callable[[Tensor, Tensor, torch.Generator], Batch],
    recipe: Recipe,
) -> nn.Module:
    """Return a copy of the network with the running average of the weights that it had while it learnt."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    inputs, targets = examples
    steps = recipe.epochs * (len(inputs) // recipe.batch_size)
    rate = recipe.learning_rate
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    average = copy.deepcopy(network)
    for epoch in range(recipe.epochs):
        started, total = time.monotonic(), 0.0
        network.train()
        order = torch.randperm(len(inputs), generator=generator)
        for batch in order.split(recipe.batch_size)[: len(inputs) // recipe.batch_size]:
            images, wanted = augment(inputs[batch], targets[batch], generator)
            error = loss(network(images), wanted)
            optimizer.zero_grad()
            error.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += error.item()
            _move(average, network, recipe.average)
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1}/{recipe.epochs}: loss {total:.3f}, {seconds:.0f} s", flush=True)
    return average.eval()


def _move(average: nn.Module, network: nn.Module, share: float) -> None:
    for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - share)
        else:
            mean.copy_(now)


def with_weights(network: nn.Module, weights: str | Path | None) -> nn.Module:
    """Return the network with the weights of a safetensors file, in eval mode."""
    if weights is not None:
        network.load_state_dict(load_file(weights))
    return network.eval()


def save(network: nn.Module, path: str | Path) -> None:
    """Write the weights as safetensors."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)


def encoder_weights(path: str | Path | None) -> dict[str, Tensor]:
    """Return the weights of an ImageNet classifier of timm to start an encoder with; none without a path."""
    return {} if path is None else load_file(path)


def arguments(description: str, epochs: int) -> argparse.Namespace:
    """Return what every training script is told: where the data lies, where the weights go, how long."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, help="the folder of the data sets")
    parser.add_argument("-o", "--output", required=True, help="a .safetensors file")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--encoder", help="weights of timm's tf_efficientnet_lite0 to start from")
    return parser.parse_args()
