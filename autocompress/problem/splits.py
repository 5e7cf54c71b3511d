"""Splits of labelled images: one interface, held in memory as one tensor or read item by item.

Batches are `(images, labels)`: float32 `(N, C, H, W)`, normalised, and for classes int64 `(N,)`; labels of
other tasks have a row of their own form for each image.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, Tensor]

AUGMENTATIONS = ("none", "crop", "crop-flip")
CROP_PADDING_SHARE = 1 / 8


@dataclass(frozen=True)
class Normalisation:
    """Normalise 8-bit images: (x / 255 - mean) / std, per channel. Float images are taken as they are."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images.float()
        mean = torch.tensor(self.mean).view(1, -1, 1, 1)
        std = torch.tensor(self.std).view(1, -1, 1, 1)
        return (images.float() - 255 * mean) / (255 * std)


class Split(ABC):
    """Labelled images in a fixed order."""

    labels: Tensor

    @property
    def size(self) -> int:
        return len(self.labels)

    @abstractmethod
    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """Yield the batches of one pass. Equal arguments give equal batches; the global random state is left
        alone."""

    @abstractmethod
    def select(self, positions: Tensor) -> Split:
        """Return the split of the examples at these positions, in this order; images are shared."""

    @abstractmethod
    def relabelled(self, numbers: Tensor) -> Split:
        """Return the split in which label i is `numbers[i]`."""

    @abstractmethod
    def image_hashes(self, lengths: frozenset[int] | None = None) -> dict[int, list[str]] | None:
        """Return hashes of the images by their length in bytes, of these lengths alone; None where that would
        mean to read what may differ each time."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return the SHA-256 of labels and images, or of labels and file names where images stay on disk."""

    def subset(self, count: int, seed: int = 0) -> Split:
        """Return `count` examples, each class in its share; the whole split where it has no more."""
        return self if count >= self.size else self.select(spread(self.labels, seed)[:count])

    def order(self, batch_size: int, shuffle: bool, seed: int, drop_last: bool) -> list[Tensor]:
        """Return the positions of each batch. A split smaller than a batch gives one short batch even so."""
        generator = torch.Generator().manual_seed(seed)
        positions = torch.randperm(self.size, generator=generator) if shuffle else torch.arange(self.size)
        parts = list(positions.split(batch_size))
        return parts[:-1] if drop_last and len(parts) > 1 and len(parts[-1]) < batch_size else parts


def spread(labels: Tensor, seed: int) -> Tensor:
    """Return all positions, shuffled so that every prefix holds each class in its share (± 1).

    Labels that are no classes are only shuffled.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if labels.ndim > 1 or labels.is_floating_point():
        return shuffled
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return shuffled[torch.argsort(place[shuffled], stable=True)]


@dataclass(frozen=True, eq=False)
class TensorSplit(Split):
    """Hold images in memory: `images` is (M, C, H, W), 8-bit or normalised float32; `positions` says which of
    them belong here."""

    images: Tensor
    image_labels: Tensor
    normalise: Normalisation
    augmentation: str = "none"
    positions: Tensor | None = None

    @cached_property
    def labels(self) -> Tensor:  # type: ignore[override]
        return self.image_labels if self.positions is None else self.image_labels[self.positions]

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed + 1)
        for chosen in self.order(batch_size, shuffle, seed, drop_last):
            rows = chosen if self.positions is None else self.positions[chosen]
            images = self.images[rows]
            labels = self.image_labels[rows]
            if augment and is_mask_of(labels, images):
                images, labels = _augment_both(images, labels, self.augmentation, generator)
            elif augment and labels.ndim < 3:
                images = augment_batch(images, self.augmentation, generator)
            yield self.normalise(images).contiguous(), labels

    def select(self, positions: Tensor) -> TensorSplit:
        return replace(self, positions=positions if self.positions is None else self.positions[positions])

    def relabelled(self, numbers: Tensor) -> TensorSplit:
        return replace(self, image_labels=numbers[self.image_labels])

    def image_hashes(self, lengths: frozenset[int] | None = None) -> dict[int, list[str]] | None:  # noqa: ARG002
        rows = torch.arange(len(self.images)) if self.positions is None else self.positions
        hashes = [hash_of(self.images[row].contiguous().numpy().tobytes()) for row in rows.tolist()]
        return {int(self.images[0].nbytes): hashes} if hashes else {}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        rows = torch.arange(len(self.images)) if self.positions is None else self.positions
        for part in rows.split(4096):
            digest.update(self.images[part].numpy().tobytes())
        return digest.hexdigest()


def hash_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def augment_batch(images: Tensor, augmentation: str, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its side, zeros moving in; `crop-flip` mirrors at random."""
    if augmentation == "none":
        return images
    count, _, height, width = images.shape
    pad_y, pad_x = max(1, int(height * CROP_PADDING_SHARE)), max(1, int(width * CROP_PADDING_SHARE))
    padded = functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    rows = _starts(count, pad_y, generator) + torch.arange(height)
    columns = _starts(count, pad_x, generator) + torch.arange(width)
    if augmentation == "crop-flip":
        mirrored = torch.rand(count, generator=generator) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def is_mask_of(labels: Tensor, images: Tensor) -> bool:
    """Return whether labels are a class for each pixel."""
    return (
        labels.ndim == 3
        and labels.dtype == images.dtype == torch.uint8
        and labels.shape[1:] == images.shape[2:]
    )


def _augment_both(
    images: Tensor, masks: Tensor, augmentation: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return images and masks moved alike; what moves in from outside has the class 255, to be ignored."""
    both = augment_batch(torch.cat([images, masks[:, None] + 1], 1), augmentation, generator)
    return both[:, :-1], both[:, -1] - 1


def _starts(count: int, padding: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)


ReadItem = Callable[[int, bool], Tensor]
"""(position, augment) → one image (C, H, W), 8-bit or normalised float."""

SHARED_MEMORY = Path("/dev/shm")
SHARED_BYTES_AN_IMAGE = 2**20


class StoredBytes(Protocol):
    """Images as they are stored, by position."""

    def length(self, position: int) -> int: ...

    def read(self, position: int) -> bytes: ...


def _can_share(batch_size: int) -> bool:
    """Return whether other processes can hand over batches: containers may have little shared memory, or
    none."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return sys.platform != "linux"
    return os.access(SHARED_MEMORY, os.W_OK) and free > 8 * batch_size * SHARED_BYTES_AN_IMAGE


@dataclass(frozen=True, eq=False)
class LazySplit(Split):
    """Read images when they are asked for. `identity` stands for the content in the fingerprint.

    `content` gives the length and the bytes of an image as stored, where there is such a thing.
    """

    read: ReadItem
    image_labels: Tensor
    normalise: Normalisation
    identity: str
    positions: Tensor | None = None
    content: StoredBytes | None = None
    workers: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))

    @cached_property
    def labels(self) -> Tensor:  # type: ignore[override]
        return self.image_labels if self.positions is None else self.image_labels[self.positions]

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        order = self.order(batch_size, shuffle, seed, drop_last)
        rows = order if self.positions is None else [self.positions[chosen] for chosen in order]
        loader = DataLoader(
            _Items(self.read, augment, seed),
            batch_sampler=[chosen.tolist() for chosen in rows],
            num_workers=self.workers if self.size > batch_size and _can_share(batch_size) else 0,
            generator=torch.Generator().manual_seed(seed),
        )
        for images, chosen in zip(loader, rows, strict=True):
            yield self.normalise(images), self.image_labels[chosen]

    def select(self, positions: Tensor) -> LazySplit:
        return replace(self, positions=positions if self.positions is None else self.positions[positions])

    def relabelled(self, numbers: Tensor) -> LazySplit:
        return replace(self, image_labels=numbers[self.image_labels])

    def image_hashes(self, lengths: frozenset[int] | None = None) -> dict[int, list[str]] | None:
        if self.content is None:
            return None
        rows = torch.arange(len(self.image_labels)) if self.positions is None else self.positions
        hashes: dict[int, list[str]] = {}
        for row in rows.tolist():
            length = self.content.length(row)
            if lengths is None or length in lengths:
                hashes.setdefault(length, []).append(hash_of(self.content.read(row)))
        return hashes

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        if self.positions is not None:
            digest.update(self.positions.numpy().tobytes())
        digest.update(self.identity.encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Items(Dataset[Tensor]):
    read: ReadItem
    augment: bool
    seed: int

    def __getitem__(self, position: int) -> Tensor:
        with seeded(hash((self.seed, position)) % 2**32):
            return self.read(position, self.augment)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's, numpy's and Python's generators and put them back, for augmentation of others."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
