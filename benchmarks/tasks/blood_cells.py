"""Blood cells under the microscope: how many of each kind (regression), or which kinds (several labels).

    python benchmarks/tasks/blood_cells.py counts --data DATA --encoder LITE0.safetensors -o OUT.safetensors
    python benchmarks/tasks/blood_cells.py presence --data DATA --encoder LITE0.safetensors -o OUT.safetensors

BCCD's images of 640×480 pixels are read at 224×168 (width × height); the kinds are red cells, white cells and
platelets.
"""

from __future__ import annotations

import io
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training import Recipe, arguments, encoder_weights, save, train, with_weights

KINDS = ("RBC", "WBC", "Platelets")
HEIGHT, WIDTH = 168, 224
MEAN, STD = 0.498, 0.502
SPLITS = {"train": "train", "validation": "val", "test": "test"}


class Counter(nn.Module):
    """EfficientNet-Lite0's first stages, the mean over the image of what they see, one number a kind."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(3,))
        channels = self.encoder.feature_info.channels()[-1]
        self.head = nn.Sequential(nn.Conv2d(channels, 64, 1), nn.ReLU(), nn.Conv2d(64, len(KINDS), 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images)[0]).mean((2, 3))


def counts_teacher(weights: str | None = None) -> nn.Module:
    """Return the network that counts `(N, 3)`, in tens of cells."""
    return with_weights(Counter(), weights)


def presence_teacher(weights: str | None = None) -> nn.Module:
    """Return the network whose logits `(N, 3)` say which kinds are there."""
    return with_weights(Counter(), weights)


def counts(root: str) -> dict[str, TensorDataset]:
    """Return images `(N, 3, 168, 224)` and numbers of cells `(N, 3)` in tens, for each split."""
    return {name: TensorDataset(images, cells / 10) for name, (images, cells) in _splits(root).items()}


def presence(root: str) -> dict[str, TensorDataset]:
    """Return images `(N, 3, 168, 224)` and 0 or 1 for each kind `(N, 3)`, for each split."""
    found = _splits(root).items()
    return {name: TensorDataset(images, (cells > 0).float()) for name, (images, cells) in found}


def _splits(root: str) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: split(root, key) for name, key in SPLITS.items()}


@cache
def split(root: str, name: str) -> tuple[Tensor, Tensor]:
    """Return the images and the numbers of cells of each kind of one split."""
    images, cells = [], []
    with tarfile.open(Path(root) / "blood-cells" / "bccd.tar") as tar:
        for key in _read(tar, f"ImageSets/Main/{name}.txt").decode().split():
            image = Image.open(io.BytesIO(_read(tar, f"JPEGImages/{key}.jpg"))).convert("RGB")
            images.append(np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)))
            marks = ElementTree.fromstring(_read(tar, f"Annotations/{key}.xml")).iterfind("object/name")
            names = [mark.text for mark in marks]
            cells.append([names.count(kind) for kind in KINDS])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (pixels - MEAN) / STD, torch.tensor(cells, dtype=torch.float32)


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def augment(images: Tensor, wanted: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images mirrored either way and lit differently."""
    for axis in (2, 3):
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(axis)
    light = 0.8 + 0.4 * torch.rand(len(images), 3, 1, 1, generator=generator)
    return (images + 1) * light - 1, wanted


def main() -> None:
    task = sys.argv.pop(1) if sys.argv[1:2] in (["counts"], ["presence"]) else "counts"
    asked = arguments(__doc__, epochs=60)
    network = Counter()
    network.encoder.load_state_dict(encoder_weights(asked.encoder), strict=False)
    images, cells = split(asked.data, "train")
    wanted = cells / 10 if task == "counts" else (cells > 0).float()
    loss = nn.SmoothL1Loss(beta=0.1) if task == "counts" else nn.BCEWithLogitsLoss()
    trained = train(network, (images, wanted), loss, augment, Recipe(asked.epochs, 16))
    save(trained, asked.output)
    images, cells = split(asked.data, "val")
    with torch.inference_mode():
        found = torch.cat([trained(part) for part in images.split(32)])
    if task == "counts":
        print(f"validation: mean absolute error {10 * float((found - cells / 10).abs().mean()):.3f} cells")
    else:
        right = ((found > 0) == (cells > 0)).float().mean(0)
        shares = [f"{kind} {share:.1%}" for kind, share in zip(KINDS, right, strict=True)]
        print(f"validation: right for {', '.join(shares)}")


if __name__ == "__main__":
    main()
