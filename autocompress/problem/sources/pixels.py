"""Image files of any kind → 8-bit images of the channels that a network reads, or a refusal.

16 bits become 8 by their upper half (0…65535 → 0…255), floats from 0…1, palettes and CMYK become colours,
a rotation in the file's EXIF is carried out. Nothing is cut off or guessed.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

FORMS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's name for images of so many channels."""
TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
ORIENTATION = 0x0112


class UnusableImageError(ValueError):
    """An image whose values cannot be brought to 8 bits without a guess."""


def decode(content: bytes, channels: int) -> Image.Image:
    """Return the first image of a file; raise what Pillow raises, and UnusableImageError."""
    file = Image.open(io.BytesIO(content))
    pages = getattr(file, "n_frames", 1)
    if file.format == "TIFF" and pages > 1:
        raise UnusableImageError(f"it holds {pages} images, or bands, one behind the other")
    return in_channels(ImageOps.exif_transpose(file), channels)


def size_in_file(content: bytes) -> tuple[int, int]:
    """Return (width, height) as the image is shown, from the file's head."""
    image = Image.open(io.BytesIO(content))
    turned = image.getexif().get(ORIENTATION) in TURNED
    return image.size[::-1] if turned else image.size


def in_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return an image of any mode as an 8-bit one of 1, 2, 3 or 4 channels."""
    if channels not in FORMS:
        raise UnusableImageError(f"image files have 1 to 4 channels, and the network reads {channels}")
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    return image if image.mode == FORMS[channels] else image.convert(FORMS[channels])


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if mode == "F":
        if not (low >= 0 and high <= 1):
            raise UnusableImageError(f"its values are floats from {low:g} to {high:g}, not from 0 to 1")
        return np.round(values * 255).astype(np.uint8)
    if low < 0 or high > 65535:
        raise UnusableImageError(f"its values go from {low:g} to {high:g}, beyond 16 bits")
    return np.round(values / 257).astype(np.uint8)


def as_tensor(image: Image.Image) -> Tensor:
    """Return an 8-bit image as (C, H, W)."""
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)
