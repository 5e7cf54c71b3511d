"""Small image files on disk for tests: coloured squares, one colour a class, reproducible."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")


def image(label: int, index: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """An image of noise in which the channel of the class is bright; `size` is (width, height)."""
    noise = np.random.default_rng(1000 * label + index).integers(0, 100, (size[1], size[0], 3))
    noise[:, :, 2 - label] += 120
    return Image.fromarray(noise.astype(np.uint8))


def png(label: int, index: int, size: tuple[int, int] = (16, 16)) -> bytes:
    stream = io.BytesIO()
    image(label, index, size).save(stream, "PNG")
    return stream.getvalue()


def write_folder(root: Path, per_class: int, size: tuple[int, int] = (16, 16), first: int = 0) -> Path:
    """ROOT/blue/0.png, ROOT/green/0.png, … ; returns ROOT."""
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + per_class):
            (root / name / f"{index}.png").write_bytes(png(label, index, size))
    return root


def write_tar(path: Path, per_class: int, damage: str = "") -> Path:
    """The same in a tar; the member named `damage` holds bytes that are no image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for label, name in enumerate(CLASSES):
            for index in range(per_class):
                member = tarfile.TarInfo(f"{name}/{index}.png")
                content = b"not an image" if member.name == damage else png(label, index)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path
