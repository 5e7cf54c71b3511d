"""Audio: spoken digits as wave forms, told apart by one-dimensional convolutions; speakers are split.

    python benchmarks/tasks/spoken_digits.py --data DATA -o digits.safetensors

A recording is 8 kHz, one second, scaled to a mean square of 1. It travels as an image of one row,
`(1, 1, 8000)`, which the network lays out as a signal.
"""

from __future__ import annotations

import tarfile
import wave
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from training import Recipe, arguments, save, train, with_weights

LENGTH, CLASSES = 8000, 10
SPLITS = {
    "train": ("george", "jackson", "nicolas", "theo"),
    "validation": ("lucas",),
    "test": ("yweweler",),
}
"""By speakers."""


class WaveNetwork(nn.Module):
    """A long first filter, then residual blocks of width 3 with strides; logits `(N, 10)`."""

    def __init__(self, widths: tuple[int, ...] = (64, 64, 128, 128, 192)) -> None:
        super().__init__()
        self.first = _layer(1, widths[0], 40, 4)
        pairs = zip((widths[0], *widths), widths, strict=False)
        self.blocks = nn.Sequential(*(Block(into, out) for into, out in pairs))
        self.classify = nn.Sequential(nn.Dropout(0.3), nn.Linear(widths[-1], CLASSES))

    def forward(self, waves: Tensor) -> Tensor:
        return self.classify(self.blocks(self.first(waves.squeeze(2))).mean(2))


class Block(nn.Module):
    """Two convolutions beside a skip, then every other of three samples is left out."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.one, self.two = _layer(channels, out, 3, 1), _layer(out, out, 3, 1)
        self.skip = nn.Identity() if channels == out else nn.Conv1d(channels, out, 1)

    def forward(self, values: Tensor) -> Tensor:
        return F.max_pool1d(self.two(self.one(values)) + self.skip(values), 3, 3)


def _layer(channels: int, out: int, size: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv1d(channels, out, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm1d(out), nn.ReLU())


def teacher(weights: str | None = None) -> nn.Module:
    """Return the network, with weights where a file is named."""
    return with_weights(WaveNetwork(), weights)


def datasets(root: str) -> dict[str, TensorDataset]:
    """Return the recordings `(N, 1, 1, 8000)` and digits of each split."""
    return {name: TensorDataset(*split(root, name)) for name in SPLITS}


@cache
def split(root: str, name: str) -> tuple[Tensor, Tensor]:
    """Return the recordings and digits of one split."""
    waves, digits = [], []
    with tarfile.open(Path(root) / "spoken-digits" / "recordings.tar") as tar:
        for member in sorted(tar.getmembers(), key=lambda one: one.name):
            digit, speaker, _ = Path(member.name).name.split("_")
            if speaker in SPLITS[name]:
                file = tar.extractfile(member)
                assert file is not None
                with wave.open(file) as recording:
                    samples = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
                waves.append(_second(torch.from_numpy(samples.astype(np.float32))))
                digits.append(int(digit))
    return torch.stack(waves)[:, None, None], torch.tensor(digits)


def _second(samples: Tensor) -> Tensor:
    """Return one second with the recording in its middle, of mean square 1."""
    cut = samples[max(0, len(samples) - LENGTH) // 2 :][:LENGTH]
    before = (LENGTH - len(cut)) // 2
    padded = F.pad(cut, (before, LENGTH - len(cut) - before))
    return padded / padded.square().mean().sqrt().clamp_min(1e-6)


def augment(waves: Tensor, digits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return recordings shifted, spoken faster or slower (and so higher or lower), and with noise."""
    factor = 0.75 + 0.6 * float(torch.rand((), generator=generator))
    length = int(LENGTH / factor)
    stretched = F.interpolate(waves.squeeze(2), length, mode="linear", align_corners=False)
    spare = abs(LENGTH - length)
    left = int(torch.randint(spare + 1, (), generator=generator))
    if length < LENGTH:
        stretched = F.pad(stretched, (left, spare - left))
    else:
        stretched = stretched[..., left : left + LENGTH]
    shift = int(torch.randint(-800, 801, (), generator=generator))
    loud = 0.5 + torch.rand(len(waves), 1, 1, generator=generator)
    tilt = 0.9 * torch.rand(len(waves), 1, 1, generator=generator) - 0.45
    tilted = stretched - tilt * stretched.roll(1, 2)
    noise = 0.05 * torch.randn(tilted.shape, generator=generator)
    return (tilted.roll(shift, 2) * loud + noise)[:, :, None], digits


def accuracy(network: nn.Module, waves: Tensor, digits: Tensor) -> float:
    """Return the share of digits that are told rightly."""
    with torch.inference_mode():
        found = torch.cat([network(part).argmax(1) for part in waves.split(100)])
    return float((found == digits).float().mean())


def main() -> None:
    asked = arguments(__doc__, epochs=60)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    trained = train(WaveNetwork(), split(asked.data, "train"), loss, augment, Recipe(asked.epochs, 32))
    save(trained, asked.output)
    print(f"validation: {accuracy(trained, *split(asked.data, 'validation')):.2%} accuracy")


if __name__ == "__main__":
    main()
