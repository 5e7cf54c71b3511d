"""The data of a search: what the user names → train, validation, calibration and test splits.

Selection never sees test images. Where a source brings a training and a test set, the validation
split that the search reads is cut from the training set, and `test` is read at the very end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from autocompress.errors import DataError
from autocompress.problem import specs
from autocompress.problem.image_folders import read_images
from autocompress.problem.sources import Progress, Source, cifar10, digits, mnist
from autocompress.problem.splits import (
    AUGMENTATIONS,
    Batch,
    LazySplit,
    Normalisation,
    Split,
    TensorSplit,
    spread,
)
from autocompress.problem.teacher import Preprocessing
from autocompress.problem.user_datasets import from_callable, from_datasets

__all__ = [
    "AUGMENTATIONS",
    "Batch",
    "Data",
    "LazySplit",
    "Normalisation",
    "Progress",
    "Split",
    "TensorSplit",
    "load_data",
]

Reader = Callable[[specs.Spec, Preprocessing, Progress | None], Source]

SOURCES: dict[str, Reader] = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "imagefolder": read_images,
}
CALIBRATION_SIZE = 512
MAXIMUM_VALIDATION_SIZE = 5_000
VALIDATION_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Data:
    """`train` is for learning, `validation` for choosing, `test` (may be None) for reporting.

    `calibration` is a small fixed part of `train`, read without augmentation. `input_shape` is
    (C, H, W). `mean` and `std` are those the images were normalised with.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    validation: Split
    calibration: Split
    test: Split | None = None
    class_names: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shapes, normalisation and the content of every split."""
        digest = hashlib.sha256(repr((self.num_classes, self.input_shape, self.mean, self.std)).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(b"-" if split is None else split.fingerprint().encode())
        return digest.hexdigest()


def load_data(
    spec: object,
    seed: int = 0,
    *,
    preprocessing: Preprocessing | None = None,
    progress: Progress | None = None,
) -> Data:
    """The data that a spec names or a tuple of map-style datasets holds; `Data` is returned as it is.

    `digits`, `mnist:DIR`, `cifar10:DIR`, `imagefolder:DIR` (a folder or a tar), each with
    `,size=…,channels=…,mean=…,std=…,augment=none|crop|crop-flip`; `package.module:callable` or
    `file.py:callable` returning (train, validation) or (train, validation, test) datasets of
    (image, label): a PIL image, an 8-bit tensor (C, H, W), or a float tensor that is normalised already;
    augmentation is then the dataset's own, and options are the callable's arguments.

    `seed` decides which images are held out where the source does not say. `preprocessing` is what
    the teacher says about its input; options go before it. `progress(what, done, total)` is called
    now and then.

    Raises DataError when the data cannot be found or read, when a split is empty, an image is
    corrupt, shapes differ, a value is not finite, or there are fewer than two classes.
    """
    if isinstance(spec, Data):
        return spec
    hints = preprocessing or Preprocessing()
    if isinstance(spec, (tuple, list)):
        return _assemble(from_datasets(tuple(spec), "datasets", progress), seed)
    if not isinstance(spec, str):
        raise DataError(
            f"data cannot be made from a {type(spec).__name__}",
            fix="give a spec string or a tuple of datasets (train, validation[, test])",
        )
    parsed = specs.parse(spec, DataError)
    read = _reader(parsed)
    return _assemble(read(parsed, hints, progress), seed)


def _reader(spec: specs.Spec) -> Reader:
    kind = spec.kind or spec.target
    if kind in SOURCES:
        return SOURCES[kind]
    if spec.kind and spec.target:
        return from_callable
    raise DataError(
        f"the data {spec.text!r} is not understood",
        fix="use digits, mnist:DIR, cifar10:DIR, imagefolder:DIR, file.py:callable or package:callable",
    )


def _assemble(source: Source, seed: int) -> Data:
    train, validation, test = source.train, source.validation, source.test
    _check_labels(source)
    if validation is None and test is None:
        share = max(1, round(train.size * VALIDATION_SHARE))
        train, held_out = _cut(train, 2 * share, seed)
        validation, test = _cut(held_out, share, seed)
    elif validation is None:
        count = min(MAXIMUM_VALIDATION_SIZE, max(1, round(train.size * VALIDATION_SHARE)))
        train, validation = _cut(train, count, seed)
    return Data(
        name=source.name,
        num_classes=source.num_classes,
        input_shape=source.input_shape,
        mean=source.normalisation.mean,
        std=source.normalisation.std,
        train=train,
        validation=validation,
        calibration=train.subset(CALIBRATION_SIZE, seed=0),
        test=test,
        class_names=source.class_names,
    )


def _cut(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """(the rest, `count` examples with each class in its share)."""
    order = spread(split.labels, seed)
    return split.select(order[count:].sort().values), split.select(order[:count].sort().values)


def _check_labels(source: Source) -> None:
    parts = {"training": source.train, "validation": source.validation, "test": source.test}
    for what, split in parts.items():
        if split is None:
            continue
        if not split.size:
            raise DataError(f"the {what} data is empty", where=source.name, fix="put images into it")
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= source.num_classes:
            raise DataError(
                f"the {what} data has label {low if low < 0 else high}, not in 0 to {source.num_classes - 1}",
                where=source.name,
                fix="labels count from 0, and every class must occur in the training data",
            )
    if len(source.train.labels.unique()) < 2:
        raise DataError(
            "the training data has a single class",
            where=source.name,
            why="there is nothing to tell apart",
            fix="put the images of each class into a folder of its own: DIR/cat/1.png, DIR/dog/1.png",
        )
    if source.validation is None and source.train.size < 20:
        raise DataError(
            f"{source.train.size} images are too few to hold any out",
            where=source.name,
            fix="give at least 20 images, better hundreds of each class",
        )
