"""Class folders of image files, in folders or tars, found by timm's readers.

DIR/cat/1.png …                                one set, cut into 80/10/10
DIR.tar                                        the same in a tar
DIR/train, DIR/val or DIR/test (or .tar each)  the user's own sets
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autocompress.errors import DataError
from autocompress.problem import specs
from autocompress.problem.sources import (
    IMAGENET,
    IN_MEMORY_BYTES,
    PROGRESS_EVERY,
    Progress,
    Settings,
    Source,
    existing_path,
    per_channel,
    read_settings,
)
from autocompress.problem.splits import LazySplit, Normalisation, Split, TensorSplit
from autocompress.problem.teacher import Preprocessing

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("val", "validation", "valid")
TEST_NAMES = ("test", "testing")
SAMPLED_SIZES = 256
SMALL_SIDE = 128
MINIMUM_CROP_SCALE = 0.35


@dataclass(frozen=True)
class Files:
    """One set of labelled image files; `open_file` gives the bytes of one, `name` its path in the set."""

    path: Path
    reader: Any
    labels: Tensor
    class_names: tuple[str, ...]

    def name(self, position: int) -> str:
        return str(self.reader.filename(position, absolute=False))

    def open_image(self, position: int, channels: int) -> Image.Image:
        """Raises DataError that names the file when it is no image or is damaged."""
        try:
            file, _ = self.reader[position]
            with file:
                return Image.open(file).convert("L" if channels == 1 else "RGB")
        except Exception as problem:
            raise DataError(
                f"the image {self.name(position)} cannot be read",
                where=str(self.path),
                why=f"{type(problem).__name__}: {problem}",
                fix="replace or remove the file",
            ) from problem

    def size_of(self, position: int) -> tuple[int, int]:
        """(width, height), from the file's head."""
        try:
            file, _ = self.reader[position]
            with file:
                return Image.open(file).size
        except Exception as problem:
            raise DataError(
                f"the image {self.name(position)} cannot be read",
                where=str(self.path),
                why=f"{type(problem).__name__}: {problem}",
                fix="replace or remove the file",
            ) from problem

    def reopen(self) -> None:
        """Drops open tar handles: processes that share one would move each other's position in it."""
        states = getattr(self.reader, "tar_state", None)
        for state in states.values() if isinstance(states, Mapping) else filter(None, [states]):
            state.tf = None
            for child in state.children.values():
                child.tf = None


def read_images(spec: specs.Spec, hints: Preprocessing, progress: Progress | None) -> Source:
    """Raises DataError for a missing or empty set, classes only a held-out set has, and damaged files.

    Without `size=`, images of one size up to 128 pixels keep it; otherwise the teacher's size is used.
    Where there is a `val` folder and no `test`, it is what the result is reported on, and the
    search's own validation split is cut from the training images.
    """
    settings = read_settings(spec)
    paths = _sets(existing_path(spec), spec)
    files = {name: _scan(path, spec) for name, path in paths.items()}
    train = files["train"]
    size = _choose_size(train, settings, hints, spec)
    channels = settings.channels or (hints.input_shape[0] if hints.input_shape else 3)
    normalisation = per_channel(_normalisation(settings, hints), channels, spec.text)
    load = partial(
        _load,
        channels=channels,
        size=size,
        crop_share=hints.crop_share if hints.input_shape and max(size) > SMALL_SIDE else 1.0,
        normalisation=normalisation,
        augmentation=settings.augmentation or "crop-flip",
        progress=progress,
    )
    splits = {name: load(_same_classes(item, train)) for name, item in files.items()}
    return Source(
        name=spec.text,
        num_classes=len(train.class_names),
        input_shape=(channels, *size),
        normalisation=normalisation,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        class_names=train.class_names,
    )


def _normalisation(settings: Settings, hints: Preprocessing) -> Normalisation:
    if settings.normalisation:
        return settings.normalisation
    return Normalisation(hints.mean, hints.std) if hints.mean and hints.std else IMAGENET


def _sets(root: Path, spec: specs.Spec) -> dict[str, Path]:
    """Paths of the sets that lie in `root`: `train` always, `validation` and `test` where there are some."""
    if root.is_file():
        if root.suffix != ".tar":
            raise DataError(f"{root} is neither a folder nor a .tar file", where=spec.text)
        return {"train": root}
    train = _named(root, TRAIN_NAMES)
    validation, test = _named(root, VALIDATION_NAMES), _named(root, TEST_NAMES)
    if train is None:
        if validation or test:
            raise DataError(f"{root} has held-out images and no train folder", where=spec.text)
        return {"train": root}
    if test is None:
        validation, test = None, validation
    found = {"train": train, "validation": validation, "test": test}
    return {name: path for name, path in found.items() if path is not None}


def _named(root: Path, names: tuple[str, ...]) -> Path | None:
    for name in names:
        for path in (root / name, root / f"{name}.tar"):
            if path.exists():
                return path
    return None


def _scan(path: Path, spec: specs.Spec) -> Files:
    from timm.data import create_dataset

    try:
        reader = create_dataset("", root=str(path), search_split=False).reader
        labels, classes = _labels(reader)
    except Exception as problem:
        raise DataError(
            f"no images were found in {path}",
            where=spec.text,
            why=f"{type(problem).__name__}: {problem}".splitlines()[0],
            fix="put the images of each class into a folder of its own: DIR/cat/1.png, DIR/dog/1.png",
        ) from problem
    return Files(path, reader, torch.tensor(labels, dtype=torch.int64), tuple(classes))


def _labels(reader: Any) -> tuple[list[int], list[str]]:
    """timm's two readers keep labels and class names in different places."""
    if hasattr(reader, "targets"):
        labels, names = [int(label) for label in reader.targets], reader.class_name_to_idx
    else:
        labels, names = [int(label) for _, label in reader.samples], reader.class_to_idx
    return labels, [str(name) for name in sorted(names, key=names.__getitem__)]


def _same_classes(files: Files, train: Files) -> Files:
    """The files with labels counted as in the training set; raises DataError for a class not in it."""
    if files.class_names == train.class_names:
        return files
    unknown = [name for name in files.class_names if name not in train.class_names]
    if unknown:
        raise DataError(
            f"{files.path.name} has the class {unknown[0]!r}, which {train.path.name} has not",
            where=str(files.path.parent),
            fix="use the same class folders in both",
        )
    numbers = torch.tensor([train.class_names.index(name) for name in files.class_names])
    return Files(files.path, files.reader, numbers[files.labels], train.class_names)


def _choose_size(files: Files, settings: Settings, hints: Preprocessing, spec: specs.Spec) -> tuple[int, int]:
    """(height, width)."""
    if settings.size:
        return settings.size, settings.size
    teacher = hints.input_shape[1:] if hints.input_shape else None
    if teacher and hints.fixed:
        return teacher
    step = max(1, len(files.labels) // SAMPLED_SIZES)
    sizes = Counter(files.size_of(position) for position in range(0, len(files.labels), step))
    (width, height), _ = sizes.most_common(1)[0]
    if (len(sizes) == 1 and max(width, height) <= SMALL_SIDE) or (len(sizes) == 1 and not teacher):
        return height, width
    if teacher:
        return teacher
    raise DataError(
        f"the images have {len(sizes)} or more different sizes, such as {width}×{height}",
        where=spec.text,
        fix="say to which size they are brought, for example ,size=224",
    )


def _load(
    files: Files,
    *,
    channels: int,
    size: tuple[int, int],
    crop_share: float,
    normalisation: Normalisation,
    augmentation: str,
    progress: Progress | None,
) -> Split:
    prepare = _Prepare(files, channels, size, crop_share, augmentation)
    count = len(files.labels)
    if count * channels * size[0] * size[1] > IN_MEMORY_BYTES:
        names = "\n".join(files.name(position) for position in range(count))
        files.reopen()
        return LazySplit(prepare, files.labels, normalisation, identity=names, start_worker=files.reopen)
    images = torch.empty((count, channels, *size), dtype=torch.uint8)
    for position in range(count):
        images[position] = prepare(position, False)
        if progress and (position + 1) % PROGRESS_EVERY == 0:
            progress(f"decoding {files.path.name}", position + 1, count)
    return TensorSplit(images, files.labels, normalisation, augmentation)


class _Prepare:
    """(position, augment) → 8-bit image (C, H, W), by timm's transforms where the size is not right."""

    def __init__(
        self, files: Files, channels: int, size: tuple[int, int], crop_share: float, augmentation: str
    ) -> None:
        self.files, self.channels, self.size, self.crop_share = files, channels, size, crop_share
        self.plain = self._transform(is_training=False, crop_pct=crop_share)
        self.augmented = self.plain
        if augmentation != "none":
            flip = 0.5 if augmentation == "crop-flip" else 0.0
            self.augmented = self._transform(
                is_training=True, hflip=flip, color_jitter=None, scale=(MINIMUM_CROP_SCALE, 1.0)
            )

    def _transform(self, **settings: Any) -> Callable[[Image.Image], Any]:
        from timm.data import create_transform

        return create_transform(
            (self.channels, *self.size), use_prefetcher=True, interpolation="bicubic", **settings
        )

    def __call__(self, position: int, augment: bool) -> Tensor:
        image = self.files.open_image(position, self.channels)
        if augment:
            return torch.as_tensor(self.augmented(image))
        if self.crop_share == 1.0 and image.size == self.size[::-1]:
            array = np.array(image)
            return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)
        return torch.as_tensor(self.plain(image))
