"""The data of a search: what the user names → train, validation, calibration and test splits.

Selection never sees test images. Where a source brings a training and a test set, the validation
split that the search reads is cut from the training set, and `test` is read at the very end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from autocompress.errors import DataError
from autocompress.problem import specs
from autocompress.problem.data_checks import check_source, doubts
from autocompress.problem.sources.image_folders import read_images
from autocompress.problem.sources.known_sets import cifar10, digits, mnist
from autocompress.problem.sources.other_targets import read_masks, read_table, read_unlabelled
from autocompress.problem.sources.source import CACHE_MEMORY_BYTES, Progress, Reading, Source
from autocompress.problem.sources.user_datasets import (
    from_callable,
    from_datasets,
    read_arrays,
    read_hugging_face,
)
from autocompress.problem.splits import (
    AUGMENTATIONS,
    Batch,
    LazySplit,
    Normalisation,
    Split,
    TensorSplit,
    spread,
)
from autocompress.problem.tasks.classification import Classification
from autocompress.problem.tasks.task import Task
from autocompress.problem.teacher import Preprocessing

__all__ = [
    "AUGMENTATIONS",
    "CACHE_MEMORY_BYTES",
    "Batch",
    "Data",
    "LazySplit",
    "Normalisation",
    "Progress",
    "Split",
    "TensorSplit",
    "load_data",
]

Reader = Callable[[specs.Spec, Reading], Source]

SOURCES: dict[str, Reader] = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "imagefolder": read_images,
    "webdataset": read_images,
    "npz": read_arrays,
    "huggingface": read_hugging_face,
    "images": read_unlabelled,
    "masks": read_masks,
    "table": read_table,
}
CALIBRATION_SIZE = 512
MAXIMUM_VALIDATION_SIZE = 5_000
VALIDATION_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class Data:
    """Hold splits: `train` is for learning, `validation` for choosing, `test` (may be None) for reporting.

    `calibration` is a small fixed part of `train`, read without augmentation. `input_shape` is
    (C, H, W). `mean` and `std` are those the images were normalised with. `notes` say what was taken
    for which split, what was left out, and what is doubtful. `class_map` is the number of the teacher's
    output for each class, where the user gave it. `targets` is what labels are, `task` what they are for.
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
    notes: tuple[str, ...] = ()
    class_map: specs.Value | None = None
    targets: str = "classes"
    task: Task = field(default_factory=Classification)

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 over shapes, normalisation and the content of every split, without targets that
        are the teacher's outputs."""
        digest = hashlib.sha256(repr((self.num_classes, self.input_shape, self.mean, self.std)).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(b"-" if split is None else _own(split, self.targets).fingerprint().encode())
        return digest.hexdigest()

    def relabelled(self, numbers: Tensor, num_classes: int, class_names: tuple[str, ...], note: str) -> Data:
        """Return the data in which label i is `numbers[i]`, of so many classes."""
        return replace(
            self,
            num_classes=num_classes,
            class_names=class_names,
            notes=(*self.notes, *filter(None, (note,))),
            class_map=None,
            train=self.train.relabelled(numbers),
            validation=self.validation.relabelled(numbers),
            calibration=self.calibration.relabelled(numbers),
            test=None if self.test is None else self.test.relabelled(numbers),
        )


def _own(split: Split, targets: str) -> Split:
    """Return the split without labels that are not of the data."""
    if targets != "none" or not isinstance(split, (TensorSplit, LazySplit)):
        return split
    return replace(split, image_labels=torch.zeros(len(split.image_labels)))


def load_data(
    spec: object,
    seed: int = 0,
    *,
    preprocessing: Preprocessing | None = None,
    progress: Progress | None = None,
    cache_memory_bytes: int = CACHE_MEMORY_BYTES,
    targets: str | None = "classes",
) -> Data:
    """Return the data that a spec names or that datasets hold; `Data` is returned as it is.

    `digits`, `mnist:DIR`, `cifar10:DIR`, `imagefolder:DIR` (a folder or a tar), `webdataset:TARS`,
    `npz:FILE`, each with `,size=…,channels=…,mean=…,std=…,augment=none|crop|crop-flip,class_map=…`;
    `huggingface:DIR`; `images:DIR` without labels, `masks:DIR`, `table:FILE.csv` of values;
    `package.module:callable` or `file.py:callable` returning datasets. Or the datasets themselves: one,
    (train, validation[, test]), or a mapping of names to them. A dataset gives (image, label): a PIL image,
    an 8-bit tensor (C, H, W), or a float tensor that is normalised already; augmentation is then the
    dataset's own, and options are the callable's arguments. See docs/data.md.

    `seed` decides which images are held out where the source does not say. `preprocessing` is what
    the teacher says about its input; options go before it. `progress(what, done, total)` is called
    now and then. Images that need more than `cache_memory_bytes` are read again whenever they are used.
    `targets` is what labels are read as, see `Task`; None takes them for classes where they can be, else
    for what they look like.

    Raises DataError when the data cannot be found or read, when a split is empty, an image is
    corrupt, shapes differ, a value is not finite, or there are fewer than two classes.
    """
    if isinstance(spec, Data):
        return spec
    reading = Reading(preprocessing or Preprocessing(), cache_memory_bytes, progress, targets)
    if isinstance(spec, str):
        parsed = specs.parse(spec, DataError)
        return _assemble(_reader(parsed)(parsed, reading), seed)
    if isinstance(spec, Iterable) or hasattr(spec, "__getitem__"):
        return _assemble(from_datasets(spec, "datasets", reading), seed)
    raise DataError(
        f"data cannot be made from a {type(spec).__name__}",
        fix="give a spec string or a tuple of datasets (train, validation[, test])",
    )


def _reader(spec: specs.Spec) -> Reader:
    kind = spec.kind or spec.target
    if kind in SOURCES:
        return SOURCES[kind]
    if spec.kind and spec.target:
        return from_callable
    raise DataError(
        f"the data {spec.text!r} is not understood",
        fix="use digits, mnist:DIR, cifar10:DIR, imagefolder:DIR, images:DIR, masks:DIR, table:FILE, "
        "webdataset:TARS, npz:FILE, huggingface:DIR, file.py:callable or package:callable",
    )


def _assemble(source: Source, seed: int) -> Data:
    check_source(source)
    whole = _cut_where_needed(source, seed)
    assert whole.validation is not None
    return Data(
        name=whole.name,
        num_classes=whole.num_classes,
        input_shape=whole.input_shape,
        mean=whole.normalisation.mean,
        std=whole.normalisation.std,
        train=whole.train,
        validation=whole.validation,
        calibration=whole.train.subset(CALIBRATION_SIZE, seed=0),
        test=whole.test,
        class_names=whole.class_names,
        notes=(_said_splits(source, whole), *source.notes, *doubts(whole)),
        class_map=whole.class_map,
        targets=whole.targets,
    )


def _cut_where_needed(source: Source, seed: int) -> Source:
    """Return the source with a validation split, and with a test split where it brings neither."""
    train = source.train
    if source.validation is not None:
        return source
    if source.test is None:
        share = max(1, round(train.size * VALIDATION_SHARE))
        train, held_out = _cut(train, 2 * share, seed)
        validation, test = _cut(held_out, share, seed)
        return replace(source, train=train, validation=validation, test=test)
    count = min(MAXIMUM_VALIDATION_SIZE, max(1, round(train.size * VALIDATION_SHARE)))
    train, validation = _cut(train, count, seed)
    return replace(source, train=train, validation=validation)


def _said_splits(source: Source, whole: Source) -> str:
    """Say what was taken for which split."""

    def said(name: str, split: Split | None, given: Split | None) -> str:
        if split is None:
            return f"{name} none"
        place = source.places.get(name if given is not None else "train", "")
        cut = given is None or split.size < given.size
        origin = (
            f" cut from {place or 'these'}" if cut and name != "train" else f" of {place}" if place else ""
        )
        return f"{name} {split.size} images{origin}"

    parts = (
        said("train", whole.train, source.train),
        said("validation", whole.validation, source.validation),
        said("test", whole.test, source.test),
    )
    return f"data: {'; '.join(parts)}"


def _cut(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Return (the rest, `count` examples with each class in its share)."""
    order = spread(split.labels, seed)
    return split.select(order[count:].sort().values), split.select(order[:count].sort().values)
