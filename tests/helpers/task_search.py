"""A whole search in miniature for any task: a tiny network learns generated images and is compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from any_noise import take_any_noise
from small_search import CALM
from torch import Tensor, nn

import autocompress as ac
from autocompress.pipeline import certification
from autocompress.progress import Console
from autocompress.students.training.distill import distil
from autocompress.students.training.settings import DistillSettings

SPACE = """
name: tiny
rules:
  - match: {layer: conv}
    width: {keep: [0.25, 0.5, 1.0]}
    bits: [32, 8]
"""
SIDE = 16


def body(width: int = 16) -> list[nn.Module]:
    """Return a stack of convolutions at half the size of the images."""
    return [
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]


def vector_network(outputs: int, *ending: nn.Module) -> nn.Module:
    """Return a network that gives so many numbers for an image."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, outputs)]
    return nn.Sequential(*body(), *head, *ending)


def map_network(outputs: int) -> nn.Module:
    """Return a network that gives so many numbers for each place of an image."""
    return nn.Sequential(*body(), nn.Upsample(scale_factor=2), nn.Conv2d(16, outputs, 3, padding=1))


def spots(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images `(N, 3, 16, 16)` in 8 bits, each with one bright square on noise, and where it is: rows
    of (colour 0 to 2, left, top, right, bottom) in pixels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    sizes = torch.randint(4, 9, (count,), generator=generator)
    places = torch.zeros(count, 5, dtype=torch.int64)
    for number, size in enumerate(sizes.tolist()):
        left, top = torch.randint(0, SIDE - size + 1, (2,), generator=generator).tolist()
        colour = int(torch.randint(0, 3, (1,), generator=generator))
        images[number, colour, top : top + size, left : left + size] = 230
        places[number] = torch.tensor([colour, left, top, left + size, top + size])
    return images, places


def taught(module: nn.Module, data: Any, task: str | ac.Task, epochs: float = 12) -> nn.Module:
    """Return the network after it learned from labels alone."""
    from autocompress.problem.data import load_data
    from autocompress.problem.tasks.choice import task_named

    chosen = task_named(task)
    read = load_data(data, targets=chosen.targets)
    scaled = chosen.scaled(read.train.labels)
    settings = DistillSettings(epochs=epochs, batch_size=32, precision="float32", train_on="cpu")
    distil(module, None, read, settings, loss=lambda outputs, _, labels: scaled.loss(outputs, labels))
    return module


def compressed(
    module: nn.Module, data: Any, folder: Path, patch: pytest.MonkeyPatch, **options: Any
) -> tuple[ac.Front, str]:
    """Return the front of a search, and what it said."""
    (folder / "space.yaml").write_text(SPACE)
    space = str(folder / "space.yaml")
    size = (3, SIDE, SIDE)
    patch.setattr(certification, "CERTIFY", CALM)
    with pytest.MonkeyPatch.context() as noisy:
        take_any_noise(noisy)
        ac.profile(
            module, space=space, output=folder / "device", input_size=size, networks=8,
            console=Console(quiet=True),
        )  # fmt: skip
    said = Listening()
    plan: dict[str, Any] = {
        "trials": 3, "students": 1, "trial_epochs": 0, "distill_epochs": 8, "batch_size": 32,
        "train_on": "cpu", **options,
    }  # fmt: skip
    front = ac.compress(
        module, data, device=str(folder / "device"), space=space, budgets=ac.Budgets(size_ratio=0.6),
        run=folder / "run", console=said, **plan,
    )  # fmt: skip
    return front, "\n".join(said.lines)


class Listening(Console):
    """A console that keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(str(text))
