"""Segmentation of street scenes: CamVid, 11 classes, and a small encoder with a decoder as the teacher.

    python benchmarks/tasks/camvid.py --data DATA --encoder LITE0.safetensors -o camvid.safetensors

Images are 240×176 pixels (width × height); a label of 11 is void and is ignored.
"""

from __future__ import annotations

import io
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training import Recipe, arguments, encoder_weights, save, train, with_weights

CLASSES, VOID = 11, 11
HEIGHT, WIDTH = 176, 240
MEAN, STD = (0.498,) * 3, (0.502,) * 3


class Segmenter(nn.Module):
    """EfficientNet-Lite0 down to 1/16, and a decoder that goes back to 1/4; logits `(N, 11, H, W)`."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.encoder = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3))
        quarter, eighth, sixteenth = self.encoder.feature_info.channels()
        self.top = _layer(sixteenth, width, 1)
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(sixteenth, width, 1), nn.Sigmoid())
        self.middle, self.low = _layer(eighth, width, 1), _layer(quarter, width, 1)
        self.join_middle, self.join_low = _layer(width, width, 3), _layer(width, width, 3)
        self.classify = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        quarter, eighth, sixteenth = self.encoder(images)
        found = self.top(sixteenth) * self.context(sixteenth)
        found = self.join_middle(_twice(found) + self.middle(eighth))
        found = self.join_low(_twice(found) + self.low(quarter))
        return F.interpolate(self.classify(found), scale_factor=4.0, mode="bilinear", align_corners=False)


def _twice(values: Tensor) -> Tensor:
    return F.interpolate(values, scale_factor=2.0, mode="bilinear", align_corners=False)


def _layer(channels: int, out: int, size: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, size, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU())


def teacher(weights: str | None = None) -> nn.Module:
    """Return the network, with weights where a file is named."""
    return with_weights(Segmenter(), weights)


def datasets(root: str) -> dict[str, TensorDataset]:
    """Return images `(N, 3, 176, 240)` in [0, 1], normalised, and labels `(N, 176, 240)` for each split."""
    return {name: TensorDataset(*split(root, key)) for name, key in SPLITS.items()}


SPLITS = {"train": "train", "validation": "val", "test": "test"}


@cache
def split(root: str, name: str) -> tuple[Tensor, Tensor]:
    """Return the images and labels of one split."""
    images, labels = [], []
    with tarfile.open(Path(root) / "camvid" / "camvid.tar") as tar:
        members = {member.name: member for member in tar.getmembers()}
        for key in sorted(key for key in members if key.startswith(f"{name}/images/") and key[-4:] == ".jpg"):
            image = _opened(tar, members[key]).convert("RGB")
            image = image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
            mask = members[key.replace("/images/", "/labels/").replace(".jpg", ".png")]
            images.append(np.asarray(image))
            labels.append(np.asarray(_opened(tar, mask).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (pixels - MEAN[0]) / STD[0], torch.from_numpy(np.stack(labels)).long()


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Image.Image:
    file = tar.extractfile(member)
    assert file is not None
    return Image.open(io.BytesIO(file.read()))


def augment(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images and labels mirrored, cut out at another scale, and lit differently."""
    if torch.rand((), generator=generator) < 0.5:
        images, labels = images.flip(3), labels.flip(2)
    share = 0.6 + 0.4 * float(torch.rand((), generator=generator))
    high, wide = int(HEIGHT * share), int(WIDTH * share)
    top = int(torch.randint(HEIGHT - high + 1, (), generator=generator))
    left = int(torch.randint(WIDTH - wide + 1, (), generator=generator))
    images = images[:, :, top : top + high, left : left + wide]
    images = F.interpolate(images, (HEIGHT, WIDTH), mode="bilinear", align_corners=False)
    labels = labels[:, None, top : top + high, left : left + wide].float()
    labels = F.interpolate(labels, (HEIGHT, WIDTH), mode="nearest")[:, 0].long()
    light = 0.7 + 0.6 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (images + 1) * light - 1, labels


def weighted_loss(examples: Tensor) -> nn.Module:
    """Return the cross-entropy with rarer classes counting more, by the square root of their share."""
    counts = torch.bincount(examples[examples != VOID], minlength=CLASSES).float()
    weights = (counts.sum() / counts).sqrt()
    return nn.CrossEntropyLoss(weights / weights.mean(), ignore_index=VOID)


def mean_iou(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the mean over classes of intersection over union, void pixels left out."""
    confusion = torch.zeros(CLASSES, CLASSES)
    with torch.inference_mode():
        for pixels, wanted in zip(images.split(16), labels.split(16), strict=True):
            seen = wanted != VOID
            pairs = wanted[seen] * CLASSES + network(pixels).argmax(1)[seen]
            confusion += torch.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    both = confusion.diag()
    return float((both / (confusion.sum(0) + confusion.sum(1) - both)).mean())


def main() -> None:
    asked = arguments(__doc__, epochs=60)
    network = Segmenter()
    network.encoder.load_state_dict(encoder_weights(asked.encoder), strict=False)
    images, labels = split(asked.data, "train")
    trained = train(network, (images, labels), weighted_loss(labels), augment, Recipe(asked.epochs, 8))
    save(trained, asked.output)
    print(f"validation: {mean_iou(trained, *split(asked.data, 'val')):.2%} mean IoU")


if __name__ == "__main__":
    main()
