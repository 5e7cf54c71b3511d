"""Images whose targets are no classes: none at all, masks beside them, or a table of values.

images:DIR                  images in any folders, without labels
masks:DIR                   images/1.jpg with masks/1.png (or labels/1.png), a pixel's value being its class
table:FILE.csv              a row for each image: its path, from the file's folder, then its values

Splits lie in folders with the usual names, or stand in a column `split` of a table.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autocompress.errors import DataError
from autocompress.problem import specs
from autocompress.problem.sources import source
from autocompress.problem.sources.files import Found, Location, find_files
from autocompress.problem.sources.image_folders import Files, choose_size, load_files
from autocompress.problem.sources.layout import is_image, split_of
from autocompress.problem.sources.source import Reading, Source

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "inputs")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "segmentation")
SPLIT_COLUMNS = ("split", "set", "subset")

Named = dict[str, list[str]]
"""Names of images by split."""


def read_unlabelled(spec: specs.Spec, reading: Reading) -> Source:
    """Read images without labels from a folder or a tar; raise DataError where there are none."""
    found = _found(spec)
    names = _by_split([name for name in found.files if is_image(name)], found, spec)
    files = {split: _files(found, part, torch.zeros(len(part))) for split, part in names.items()}
    return replace(_source(spec, reading, files, "none"), notes=(found.note(),) if found.note() else ())


def read_masks(spec: specs.Spec, reading: Reading) -> Source:
    """Read images with masks beside them, of 8-bit values or palette indices; raise DataError where an image
    has no mask."""
    found = _found(spec)
    images = [name for name in found.files if is_image(name) and not _part_of(name, MASK_FOLDERS)]
    masks = {_key(name): name for name in found.files if is_image(name) and _part_of(name, MASK_FOLDERS)}
    lacking = next((name for name in images if _key(name) not in masks), None)
    if lacking is not None or not images:
        raise DataError(
            f"the image {lacking} has no mask" if images else f"there are no images in {found.root}",
            where=spec.text, fix="put images into DIR/images and masks of the same names into DIR/masks",
        )  # fmt: skip
    names = _by_split(images, found, spec)
    files = {split: _files(found, part, torch.zeros(len(part))) for split, part in names.items()}
    size = choose_size(files["train"], source.read_settings(spec), reading.hints, spec)
    with_masks = {
        split: replace(
            item, labels=_masks([found.files[masks[_key(name)]] for name in item.names], size, found)
        )
        for split, item in files.items()
    }
    return _source(spec, reading, with_masks, "masks")


def read_table(spec: specs.Spec, reading: Reading) -> Source:
    """Read a CSV of image paths and values; raise DataError for a row that cannot be read."""
    path = source.existing_path(spec)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    split_column = next((name for name in columns if name.lower() in SPLIT_COLUMNS), None)
    wanted = [name for name in columns[1:] if name != split_column]
    if not wanted:
        raise DataError(
            "the table has no values", where=spec.text,
            fix="give a head and rows: image,value and then images/1.png,3.5",
        )  # fmt: skip
    by_split: dict[str, list[tuple[str, list[float]]]] = defaultdict(list)
    for number, row in enumerate(rows, 2):
        try:
            values = [float(row[name]) for name in wanted]
        except (TypeError, ValueError) as problem:
            raise DataError(
                f"line {number} has no numbers",
                where=spec.text,
                why=str(problem),
                fix="give a number in every column but the first: images/1.png,3.5",
            ) from problem
        split = "train" if split_column is None else split_of(row[split_column]) or ""
        if not split or not (path.parent / row[columns[0]]).is_file():
            why = (
                f"there is no image {row[columns[0]]}" if split else f"{row[split_column or '']} is no split"
            )
            raise DataError(
                f"line {number} cannot be used", where=spec.text, why=why, fix="mend or delete the line"
            )
        by_split[split].append((row[columns[0]], values))
    files = {}
    for split, items in _reported(dict(by_split), spec).items():
        names = tuple(name for name, _ in items)
        places = tuple(Location(path.parent / name) for name in names)
        files[split] = Files(path.parent, names, places, torch.tensor([values for _, values in items]))
    read = _source(spec, reading, files, "values")
    return replace(read, class_names=tuple(wanted))


def _found(spec: specs.Spec) -> Found:
    return find_files(source.existing_path(spec))


def _files(found: Found, names: list[str], labels: Tensor) -> Files:
    return Files(found.root, tuple(names), tuple(found.files[name] for name in names), labels)


def _part_of(name: str, folders: tuple[str, ...]) -> bool:
    return any(part.lower() in folders for part in PurePosixPath(name).parts[:-1])


def _key(name: str) -> str:
    """Return what an image and its mask have in common."""
    parts = PurePosixPath(name).with_suffix("").parts
    return "/".join(part for part in parts if part.lower() not in (*IMAGE_FOLDERS, *MASK_FOLDERS))


def _by_split(images: list[str], found: Found, spec: specs.Spec) -> Named:
    """Return names by the first folder on the way that is called like a split; all for training without
    any."""
    named: Named = defaultdict(list)
    for name in images:
        folders = (part for part in PurePosixPath(name).parts[:-1] if part.lower() not in IMAGE_FOLDERS)
        named[next(filter(None, map(split_of, folders)), "")].append(name)
    loose = named.pop("", [])
    if not named:
        named["train"] = loose
    if not images or "train" not in named:
        what = "no training images" if images else "no images"
        raise DataError(
            f"there are {what} in {found.root}",
            where=spec.text,
            fix="put them into train/images and train/masks, or into images and masks",
        )
    return dict(_reported(dict(named), spec))


def _reported(named: Mapping[str, list], spec: specs.Spec) -> dict[str, list]:  # type: ignore[type-arg]
    """Take images that are held out once for reporting."""
    if "train" not in named:
        raise DataError(
            "there are no training images", where=spec.text, fix="name the split of each row: train or test"
        )
    found = dict(named)
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    return found


def _masks(places: list[Location], size: tuple[int, int], found: Found) -> Tensor:
    """Return masks in the size of the images, `(N, H, W)` 8-bit, by nearest neighbour."""
    masks = np.empty((len(places), *size), np.uint8)
    for number, place in enumerate(places):
        mask: Image.Image = Image.open(io.BytesIO(place.read()))
        if mask.mode not in ("L", "P", "1"):
            raise DataError(
                f"a mask is in {mask.mode}, not in 8 bits", where=str(found.root),
                fix="save each pixel's class as its value, in one channel of 8 bits",
            )  # fmt: skip
        if mask.size != size[::-1]:
            mask = mask.resize(size[::-1], Image.Resampling.NEAREST)
        masks[number] = np.asarray(mask, np.uint8)
    return torch.from_numpy(masks)


def _source(spec: specs.Spec, reading: Reading, files: Mapping[str, Files], targets: str) -> Source:
    settings, hints = source.read_settings(spec), reading.hints
    size = choose_size(files["train"], settings, hints, spec)
    channels = settings.channels or hints.channels or (hints.input_shape[0] if hints.input_shape else 3)
    normalisation, whose = source.chosen_normalisation(settings, hints, channels, spec.text)
    splits = {
        split: load_files(item, channels, size, normalisation, settings, reading, whole=targets == "masks")
        for split, item in files.items()
    }
    return Source(
        name=spec.text,
        num_classes=_classes(splits["train"].labels) if targets == "masks" else 0,
        input_shape=(channels, *size),
        normalisation=normalisation,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        places={split: str(Path(item.root)) for split, item in files.items()},
        notes=(source.said_normalisation(normalisation, whose),),
        targets=targets,
    )


def _classes(masks: Tensor) -> int:
    return int(masks[masks < 255].max()) + 1
