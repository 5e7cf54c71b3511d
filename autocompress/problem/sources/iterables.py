"""Loaders and streams of the user → map-style datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset, SubsetRandomSampler
from torch.utils.data import IterableDataset as Stream
from torch.utils.data._utils.collate import default_collate

from autocompress.errors import DataError
from autocompress.problem.sources.arrays import array_set, is_pair
from autocompress.problem.sources.source import Reading

MOST_STREAMED_ITEMS = 100_000
"""A stream may have no end."""


def map_style(item: Any, where: str, reading: Reading) -> tuple[Any, str]:
    """Return a dataset with a length and items, and what is to be said of how it came to be.

    Raises DataError for what is neither a dataset, a loader, a pair of arrays nor a stream of pairs.
    """
    if is_pair(item):
        return array_set(item[0], item[1], where), ""
    if isinstance(item, DataLoader):
        return _of_loader(item, where, reading)
    if hasattr(item, "__getitem__") and _has_length(item):
        return item, ""
    if isinstance(item, Iterable):
        return _collected(item, where, reading)
    raise DataError(
        f"the {where.rpartition(', ')[2]} data has the type {type(item).__name__}, not a map-style dataset",
        where=where,
        fix="give objects with __len__ and __getitem__, such as torch.utils.data.Dataset, a DataLoader, or "
        "an iterable of (image, label)",
    )


def _has_length(item: Any) -> bool:
    try:
        return len(item) >= 0
    except TypeError:
        return False


def _of_loader(loader: DataLoader[Any], where: str, reading: Reading) -> tuple[Any, str]:
    """Return the loader's own dataset, where its batches hold nothing else than that dataset's items."""
    sampler, dataset = loader.sampler, loader.dataset
    plain = loader.collate_fn is default_collate and not isinstance(dataset, Stream)
    if plain and isinstance(sampler, SubsetRandomSampler):
        return Subset(dataset, [int(index) for index in sampler.indices]), ""
    if plain and isinstance(sampler, (SequentialSampler, RandomSampler)):
        return dataset, ""
    return _collected(_unbatched(loader, where), where, reading)


def _collected(items: Iterable[Any], where: str, reading: Reading) -> tuple[Sequence[Any], str]:
    """Collect the items that fit into memory, of a stream that may have no end."""
    kept: list[Any] = []
    size = 0
    stream = iter(_unbatched(items, where))
    for item in islice(stream, MOST_STREAMED_ITEMS):
        kept.append(item)
        size += _bytes_of(item)
        reading.tell(f"reading {where}", len(kept), MOST_STREAMED_ITEMS)
        if size > reading.cache_memory_bytes:
            break
    if size <= reading.cache_memory_bytes and len(kept) < MOST_STREAMED_ITEMS:
        return kept, f"{where}: {len(kept)} items of a stream, read once"
    return kept, (
        f"warning: {where}: the first {len(kept)} items of a stream were taken and the rest was left; give a "
        "dataset with __len__ and __getitem__ to use all, or more --cache-memory"
    )


def _unbatched(items: Iterable[Any], where: str) -> Iterator[Any]:
    """Yield single (image, label) pairs, also of batches (N, C, H, W) with labels (N,)."""
    for item in items:
        parts = tuple(item.values()) if isinstance(item, dict) else item
        batch = isinstance(parts, (tuple, list)) and len(parts) == 2 and getattr(parts[0], "ndim", 0) == 4
        if not batch:
            yield item
            continue
        images, labels = parts
        if len(images) != len(labels):
            raise DataError(
                f"a batch has {len(images)} images and {len(labels)} labels",
                where=where,
                fix="give one label for each image",
            )
        yield from zip(images, labels, strict=True)


def _bytes_of(item: Any) -> int:
    image = next(iter(item.values())) if isinstance(item, dict) else item[0] if item else item
    if isinstance(image, (Tensor, np.ndarray)):
        return int(image.nbytes)
    width, height = getattr(image, "size", (0, 0)) or (0, 0)
    return int(torch.tensor([width, height, 3]).prod())
