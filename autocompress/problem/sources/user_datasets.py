"""The user's own datasets, loaders, streams, arrays and mappings of those → a `Source`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autocompress.errors import DataError
from autocompress.problem import specs
from autocompress.problem.sources import arrays, source
from autocompress.problem.sources.iterables import map_style
from autocompress.problem.sources.labels import classes_in, read_label, targets_of
from autocompress.problem.sources.layout import PREFERENCE, split_of
from autocompress.problem.sources.pixels import UnusableImageError, as_tensor, in_channels
from autocompress.problem.sources.source import Reading, Source
from autocompress.problem.splits import LazySplit, Normalisation, Split, TensorSplit, seeded

TITLES = {"train": "training", "validation": "validation", "test": "test"}
IMAGE_KEYS = ("image", "img", "images", "pixel_values", "x", "input")
LABEL_KEYS = ("label", "labels", "target", "y", "fine_label", "class")
COMPARED_LABELS = 64


class MapStyle(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Unlabelled:
    """A dataset whose items are images, or pairs of an image and what is not read."""

    items: MapStyle

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        item = self.items[index]
        return (item[0] if isinstance(item, (tuple, list)) else item), 0


@dataclass(frozen=True, eq=False)
class DatasetPart:
    """One split under way: labels as the user wrote them, and images where they are held in memory."""

    dataset: MapStyle
    where: str
    labels: list[Any]
    images: Tensor | None
    note: str = ""


@dataclass(frozen=True)
class LabelForm:
    """Say what every image has to be: its shape (C, H, W), and the channels that pictures are read with."""

    shape: tuple[int, ...]
    channels: int | None


def from_callable(spec: specs.Spec, reading: Reading) -> Source:
    """Read data from the user's own function; options of the spec are its arguments."""
    made = specs.call(spec, specs.load_callable(spec, DataError), DataError)
    return from_datasets(made, spec.text, reading)


def read_arrays(spec: specs.Spec, reading: Reading) -> Source:
    """Read a .npz of images and labels; floats are normalised where the user says how."""
    settings = source.read_settings(spec)
    found = from_datasets(arrays.read_npz(source.existing_path(spec)), spec.text, reading)
    found = replace(found, class_map=settings.class_map)
    if settings.normalisation is None:
        return found
    channels = found.input_shape[0]
    normalisation = source.per_channel(settings.normalisation, channels, spec.text)
    splits = [
        item if item is None else _normalised(item, normalisation)
        for item in (found.train, found.validation, found.test)
    ]
    assert splits[0] is not None
    return replace(found, normalisation=normalisation, train=splits[0], validation=splits[1], test=splits[2])


def _normalised(split: Split, normalisation: Normalisation) -> Split:
    assert isinstance(split, (TensorSplit, LazySplit))
    if isinstance(split, TensorSplit) and split.images.dtype != torch.uint8:
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (normalisation.mean, normalisation.std)
        )
        return replace(split, images=(split.images - mean) / std)
    return replace(split, normalise=normalisation)


def read_hugging_face(spec: specs.Spec, reading: Reading) -> Source:
    """Read a folder that `datasets` saved to disk; raise DataError where that package is not installed."""
    spec.without_options(DataError)
    path = source.existing_path(spec)
    try:
        from datasets import load_from_disk  # type: ignore[import-not-found]
    except ImportError as problem:
        raise DataError(
            f"the folder {path} is read by the package datasets, which is not installed", where=spec.text,
            fix="pip install datasets",
        ) from problem  # fmt: skip
    try:
        made = load_from_disk(str(path))
    except Exception as problem:
        raise DataError(
            f"{path} holds no saved dataset", where=spec.text, why=f"{type(problem).__name__}: {problem}",
            fix="save it with dataset.save_to_disk(DIR)",
        ) from problem  # fmt: skip
    return from_datasets(made, spec.text, reading)


def from_datasets(made: Any, name: str, reading: Reading) -> Source:
    """Read what the user gave: one dataset, (train, validation[, test]), or a mapping of names to datasets.

    Each may be a map-style dataset, a DataLoader, a stream, or a pair of arrays (images, labels).
    """
    named, said = _named(made, name)
    parts: dict[str, DatasetPart] = {}
    form: LabelForm | None = None
    for split, item in named.items():
        where = f"{name}, {TITLES[split]}"
        dataset, note = map_style(item, where, reading)
        if reading.targets == "none":
            dataset = Unlabelled(dataset)
        if not len(dataset):
            raise DataError(
                f"the {TITLES[split]} data is empty",
                where=name,
                fix="give at least one image, or leave the split out",
            )
        if form is None:
            first = _image(dataset, 0, where, reading.hints.channels)
            form = LabelForm(tuple(first.shape), reading.hints.channels)
        parts[split] = _part(dataset, where, form, reading, note)
    assert form is not None
    return _source(name, parts, form, said, reading)


def _named(made: Any, name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the given sets by split, and what is said of those that are not used."""
    if isinstance(made, Mapping):
        return _of_mapping(made, name)
    if not isinstance(made, (tuple, list)) or arrays.is_pair(made) or not _are_sets(made):
        return {"train": made}, ()
    if len(made) not in (2, 3):
        raise DataError(f"{len(made)} datasets", where=name, fix="give (train, validation[, test])")
    return dict(zip(TITLES, made, strict=False)), ()


def _are_sets(made: Any) -> bool:
    """Return whether this is a tuple of datasets, not a list of (image, label) pairs, which is one
    dataset."""
    return isinstance(made, tuple) or not (made and isinstance(made[0], tuple))


def _of_mapping(made: Mapping[Any, Any], name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    if all(isinstance(value, (np.ndarray, Tensor)) for value in made.values()):
        return dict(arrays.sets_of(made, name)), ()
    by_word = sorted(made, key=lambda key: _preference(str(key)))
    named: dict[str, Any] = {}
    unused: list[str] = []
    for key in by_word:
        split = split_of(str(key))
        if split is None or split in named:
            unused.append(str(key))
        else:
            named[split] = made[key]
    if "train" not in named:
        raise DataError(
            f"there are sets {', '.join(map(str, made))}, and none is called train", where=name,
            fix="give a mapping with train, validation and test, or a tuple (train, validation[, test])",
        )  # fmt: skip
    ordered = {split: named[split] for split in TITLES if split in named}
    return ordered, (f"not used: {', '.join(unused)}",) if unused else ()


def _preference(key: str) -> int:
    return PREFERENCE.index(key.lower()) if key.lower() in PREFERENCE else len(PREFERENCE)


def _source(
    name: str, parts: dict[str, DatasetPart], form: LabelForm, said: tuple[str, ...], reading: Reading
) -> Source:
    labels, label_names, targets = targets_of(
        [(part.labels, part.where) for part in parts.values()], name, reading.targets
    )
    first = parts["train"]
    image = _image(first.dataset, 0, first.where, form.channels) if first.images is None else first.images[0]
    normalisation = normalisation_of(image)
    splits = {
        split: _split(part, numbers, normalisation, form)
        for (split, part), numbers in zip(parts.items(), labels, strict=True)
    }
    class_names = label_names or _class_names(first.dataset)
    channels, height, width = form.shape
    return Source(
        name=name,
        num_classes=classes_in(labels[0], label_names, targets),
        input_shape=(channels, height, width),
        normalisation=normalisation,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        class_names=class_names,
        targets=targets,
        notes=(*said, *(part.note for part in parts.values() if part.note)),
    )


def _split(part: DatasetPart, labels: Tensor, normalisation: Normalisation, form: LabelForm) -> Split:
    if part.images is not None:
        return TensorSplit(part.images, labels, normalisation, "none")
    return LazySplit(
        lambda position, _augment: _checked(part.dataset, position, part.where, form),
        labels,
        normalisation,
        identity=f"{part.where} {len(part.dataset)} {form.shape}",
        workers=0,
    )


def _class_names(dataset: Any) -> tuple[str, ...]:
    """Return the names of classes of torchvision's datasets (`classes`) and of Hugging Face's
    (`features`)."""
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        found = [getattr(features[key], "names", None) for key in LABEL_KEYS if key in features]
        return tuple(map(str, found[0] or ())) if found else ()
    return tuple(str(item) for item in getattr(dataset, "classes", ()) or ())


def normalisation_of(image: Tensor) -> Normalisation:
    """Return that of one image: floats come normalised; of 8-bit ones only the channels are known."""
    channels = image.shape[0]
    if image.dtype != torch.uint8:
        return Normalisation((0.0,) * channels, (1.0,) * channels)
    return source.per_channel(source.IMAGENET if channels in (1, 3) else source.CENTRED, channels, "")


def _part(dataset: MapStyle, where: str, form: LabelForm, reading: Reading, note: str) -> DatasetPart:
    if isinstance(dataset, arrays.ArraySet):
        if tuple(dataset.images.shape[1:]) != form.shape:
            _check_image(dataset.images[0], 0, where, form)
        _check_finite(dataset.images, where)
        labels = list(dataset.labels)
        return DatasetPart(dataset, where, labels, dataset.images, note)
    first = _checked(dataset, 0, where, form)
    if _is_random(dataset, where, form) or first.nbytes * len(dataset) > reading.cache_memory_bytes:
        labels, said = _labels(dataset, where)
        return DatasetPart(dataset, where, labels, None, "; ".join(filter(None, (note, said))))
    images = torch.empty((len(dataset), *form.shape), dtype=first.dtype)
    labels = []
    for position in range(len(dataset)):
        image, label = _item(dataset, position, where)
        images[position] = _check_image(_as_tensor(image, where, form.channels), position, where, form)
        labels.append(label)
        reading.tell(f"reading {where}", position + 1, len(dataset))
    return DatasetPart(dataset, where, labels, images, note)


def _is_random(dataset: MapStyle, where: str, form: LabelForm) -> bool:
    """Return whether the dataset augments by itself, so that reading it once would freeze that."""
    views = []
    for seed in (1, 2):
        with seeded(seed):
            views.append(
                [_image(dataset, position, where, form.channels) for position in range(min(4, len(dataset)))]
            )
    return any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(*views, strict=True))


def _labels(dataset: MapStyle, where: str) -> tuple[list[Any], str]:
    """Return the labels of all items: from `.targets` where these say what the items say, else from the
    items."""
    known = getattr(dataset, "targets", None)
    count = len(dataset)
    if known is not None and len(known) == count:
        step = max(1, count // COMPARED_LABELS)
        if all(_same(known[n], _item(dataset, n, where)[1], n, where) for n in range(0, count, step)):
            return [known[n] for n in range(count)], ""
    labels = [_item(dataset, n, where)[1] for n in range(count)]
    differ = known is not None and len(known) == count
    return labels, f"{where}: .targets differ from the labels of the items, which are used" if differ else ""


def _same(target: Any, label: Any, position: int, where: str) -> bool:
    try:
        return read_label(target, position, where) == read_label(label, position, where)
    except DataError:
        return False


def _item(dataset: MapStyle, position: int, where: str) -> tuple[Any, Any]:
    try:
        item = dataset[position]
    except Exception as problem:
        raise DataError(
            f"item {position} cannot be read",
            where=where,
            why=f"{type(problem).__name__}: {problem}",
            fix="correct the dataset, or leave the item out",
        ) from problem
    if isinstance(item, Mapping):
        found = [next((key for key in keys if key in item), None) for keys in (IMAGE_KEYS, LABEL_KEYS)]
        if None not in found:
            return item[found[0]], item[found[1]]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DataError(
            f"item {position} is not an (image, label) pair",
            where=where,
            fix="return (image, label), or a mapping with both",
        )
    return item[0], item[1]


def _image(dataset: MapStyle, position: int, where: str, channels: int | None) -> Tensor:
    return _as_tensor(_item(dataset, position, where)[0], where, channels)


def _checked(dataset: MapStyle, position: int, where: str, form: LabelForm) -> Tensor:
    return _check_image(_image(dataset, position, where, form.channels), position, where, form)


def _as_tensor(image: Any, where: str, channels: int | None) -> Tensor:
    if isinstance(image, Image.Image):
        grey = image.mode in ("1", "L") or image.mode.startswith(("I", "F"))
        try:
            return as_tensor(in_channels(image, channels or (1 if grey else 3)))
        except UnusableImageError as problem:
            raise DataError(
                "an image cannot be used",
                where=where,
                why=str(problem),
                fix="convert it to 8 bits, grey or RGB",
            ) from problem
    tensor = _of_array(image) if isinstance(image, np.ndarray) else image
    if not isinstance(tensor, Tensor) or tensor.ndim != 3:
        shape = tuple(getattr(tensor, "shape", ()))
        raise DataError(
            f"an image is a {type(image).__name__} of shape {shape}",
            where=where,
            fix=_fix_of_shape(shape),
        )
    if tensor.dtype == torch.uint8 or tensor.is_floating_point():
        return tensor if tensor.dtype == torch.uint8 else tensor.float()
    return torch.from_numpy(arrays.eight_bits(tensor.numpy(), where))


def _fix_of_shape(shape: tuple[int, ...]) -> str:
    """Return what to give where an image has `shape`, which is not that of an image."""
    fix = "give a PIL image or a tensor (channels, height, width)"
    if len(shape) == 2:
        return f"{fix}: {(1, *shape)} for a grey image, {(shape[0], 1, shape[1])} for channels of a signal"
    return f"{fix}: {(1, 1, *shape)} for a signal" if len(shape) == 1 else fix


def _of_array(image: np.ndarray) -> Tensor:
    """Take the tensor of a picture's array, which is (H, W) or (H, W, C), where C is 4 at most."""
    if image.ndim == 2:
        image = image[None]
    elif image.ndim == 3 and image.shape[2] <= 4 < image.shape[0]:
        image = image.transpose(2, 0, 1)
    wide = image.dtype.kind in "uib" and image.dtype != np.uint8
    return torch.from_numpy(np.ascontiguousarray(arrays.eight_bits(image, "images") if wide else image))


def _check_image(image: Tensor, position: int, where: str, form: LabelForm) -> Tensor:
    if tuple(image.shape) != form.shape:
        raise DataError(
            f"image {position} has shape {tuple(image.shape)}, the first training image {form.shape}",
            where=where,
            fix="bring all images to one size",
        )
    if image.dtype != torch.uint8 and not bool(torch.isfinite(image).all()):
        raise DataError(
            f"image {position} holds NaN or infinite values",
            where=where,
            fix="leave the image out, or correct its values",
        )
    return image


def _check_finite(images: Tensor, where: str) -> None:
    if images.dtype == torch.uint8:
        return
    bad = (~torch.isfinite(images).flatten(1).all(1)).nonzero()
    if len(bad):
        raise DataError(
            f"image {int(bad[0])} holds NaN or infinite values",
            where=where,
            fix="leave the image out, or correct its values",
        )
