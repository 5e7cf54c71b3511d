"""What makes data unfit, which is refused, and what makes results doubtful, which is said."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.errors import DataError
from autocompress.problem.sources.source import Source
from autocompress.problem.splits import Split

FEWEST_TO_CUT = 20


def check_source(source: Source) -> None:
    """Raise DataError for an empty split, a label outside the classes, a single class, too few images."""
    for what, split in _splits(source).items():
        if not split.size:
            raise DataError(f"the {what} data is empty", where=source.name, fix="put images into it")
        if source.targets != "classes":
            check_targets(split.labels, f"{source.name}, {what} data")
            continue
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= source.num_classes:
            raise DataError(
                f"the {what} data has label {low if low < 0 else high}, not in 0 to {source.num_classes - 1}",
                where=source.name,
                fix="labels count from 0, and every class must occur in the training data",
            )
    if source.targets == "classes" and len(source.train.labels.unique()) < 2:
        raise DataError(
            "the training data has a single class",
            where=source.name,
            why="there is nothing to tell apart",
            fix="put the images of each class into a folder of its own: DIR/cat/1.png, DIR/dog/1.png",
        )
    if source.validation is None and source.train.size < FEWEST_TO_CUT:
        raise DataError(
            f"{source.train.size} images are too few to hold any out",
            where=source.name,
            fix="give at least 20 images, better hundreds of each class",
        )


def check_targets(labels: Tensor, where: str) -> None:
    """Raise DataError for values that are not finite."""
    if labels.is_floating_point() and not bool(torch.isfinite(labels).all()):
        row = int((~torch.isfinite(labels).reshape(len(labels), -1).all(1)).nonzero()[0])
        raise DataError(
            f"the label of item {row} holds NaN or infinite values",
            where=where,
            fix="leave such items out, or replace the values",
        )


def doubts(source: Source) -> tuple[str, ...]:
    """Return warnings: images in two splits, held-out images of a single class, classes without images."""
    if source.targets != "classes":
        return tuple(_copies(source))
    found = [
        f"warning: all {what} images are of one class" + _named(source, int(split.labels[0]))
        for what, split in _splits(source).items()
        if len(split.labels.unique()) == 1
    ]
    missing = sorted(set(range(source.num_classes)) - set(source.train.labels.tolist()))
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        found.append(f"{len(missing)} classes have no training images: {shown}")
    return (*found, *_copies(source))


def _splits(source: Source) -> dict[str, Split]:
    parts = {"training": source.train, "validation": source.validation, "test": source.test}
    return {what: split for what, split in parts.items() if split is not None}


def _named(source: Source, label: int) -> str:
    return f", {source.class_names[label]}" if label < len(source.class_names) else ""


def _copies(source: Source) -> list[str]:
    found = []
    splits = _splits(source)
    for what in ("validation", "test"):
        if what in splits:
            count = copies(splits[what], source.train)
            if count:
                found.append(
                    f"warning: {count} of {splits[what].size} {what} images are among the training images "
                    "too: accuracies will be too good"
                )
    return found


def copies(held_out: Split, train: Split) -> int:
    """Return how many images of one split are byte by byte in the other."""
    first = held_out.image_hashes()
    if first is None:
        return 0
    second = train.image_hashes(frozenset(first))
    if second is None:
        return 0
    known = {(length, value) for length, values in second.items() for value in values}
    return sum((length, value) in known for length, values in first.items() for value in values)
