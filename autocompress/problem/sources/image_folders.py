"""Class folders of image files, in folders or tars, and tars with files of labels beside the images.

DIR/cat/1.png …                                one set, cut into 80/10/10
DIR.tar                                        the same in a tar
DIR/train, DIR/val or DIR/test (or .tar each)  the user's own sets
train-000.tar … with 17.jpg and 17.cls         shards of WebDataset
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from autocompress.errors import DataError
from autocompress.problem import specs
from autocompress.problem.sources import source
from autocompress.problem.sources.files import Found, Location, find_files, natural_key
from autocompress.problem.sources.labels import Label, numbered
from autocompress.problem.sources.layout import ImageSet, Layout, arrange, is_image, split_of
from autocompress.problem.sources.pixels import as_tensor, decode, size_in_file
from autocompress.problem.sources.source import Reading, Settings, Source
from autocompress.problem.sources.webdataset import is_webdataset, label_files, read_label_file, shards
from autocompress.problem.splits import LazySplit, Normalisation, Split, TensorSplit
from autocompress.problem.teacher import Preprocessing

SAMPLED_SIZES = 256
SMALL_SIDE = 128
MINIMUM_CROP_SCALE = 0.35
ARCHIVES = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


@dataclass(frozen=True)
class Files:
    """One set of labelled image files, in a fixed order."""

    root: Path
    names: tuple[str, ...]
    locations: tuple[Location, ...]
    labels: Tensor

    def length(self, position: int) -> int:
        return self.locations[position].bytes_long

    def read(self, position: int) -> bytes:
        return self.locations[position].read()

    def open_image(self, position: int, channels: int) -> Image.Image:
        """Return an 8-bit image; raise DataError that names the file where that cannot be done."""
        return self._of_file(position, lambda content: decode(content, channels))

    def size_of(self, position: int) -> tuple[int, int]:
        """Return (width, height), from the file's head."""
        return self._of_file(position, size_in_file)

    def _of_file(self, position: int, read: Callable[[bytes], Any]) -> Any:
        try:
            return read(self.locations[position].read())
        except Exception as problem:
            raise DataError(
                f"the image {self.names[position]} cannot be read",
                where=str(self.root),
                why=f"{type(problem).__name__}: {problem}",
                fix="replace or remove the file, or read the data by a file.py:callable of your own",
            ) from problem


def read_images(spec: specs.Spec, reading: Reading) -> Source:
    """Read class folders; raise DataError for a missing or empty set, for classes that only a held-out set
    has, and for damaged files.

    Without `size=`, images of one size up to 128 pixels keep it; otherwise the teacher's size is used.
    Where there is a `val` folder and no `test`, it is what the result is reported on, and the
    search's own validation split is cut from the training images.
    """
    settings, hints = source.read_settings(spec, source.FOLDER_OPTIONS), reading.hints
    found = _found(spec)
    layout = _labelled(found) if is_webdataset(found) else arrange(found, settings.class_folder)
    files, class_names, said = _files(layout, found, settings)
    size = choose_size(files["train"], settings, hints, spec)
    channels = settings.channels or hints.channels or (hints.input_shape[0] if hints.input_shape else 3)
    normalisation, whose = source.chosen_normalisation(settings, hints, channels, spec.text)
    splits = {
        name: load_files(item, channels, size, normalisation, settings, reading)
        for name, item in files.items()
    }
    return Source(
        name=spec.text,
        num_classes=len(class_names) or int(splits["train"].labels.max()) + 1,
        input_shape=(channels, *size),
        normalisation=normalisation,
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
        class_names=class_names,
        class_map=settings.class_map,
        places={name: item.folder or str(found.root) for name, item in layout.sets.items()},
        notes=(*layout.notes, said, source.said_normalisation(normalisation, whose)),
    )


def _found(spec: specs.Spec) -> Found:
    if spec.kind == "webdataset" and "{" in spec.target:
        return _together(shards(spec.target), spec)
    root = source.existing_path(spec)
    if root.is_file() and root.suffix.lower() != ".tar":
        packed = root.suffix.lower() in ARCHIVES
        raise DataError(
            f"{root} is neither a folder nor a .tar file", where=spec.text,
            fix="unpack it and give the folder" if packed else "give the folder of the images",
        )  # fmt: skip
    return find_files(root)


def _together(paths: list[Path], spec: specs.Spec) -> Found:
    """Join the files of several shards; each counts as a folder."""
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"{missing} does not exist", where=spec.text, fix=specs.path_fix(spec))
    parts = [(path.stem, find_files(path)) for path in paths]
    files = {f"{stem}/{name}": place for stem, part in parts for name, place in part.files.items()}
    hidden = tuple(name for _, part in parts for name in part.hidden)
    return Found(paths[0].parent, files, frozenset(stem for stem, _ in parts), hidden)


def _labelled(found: Found) -> Layout:
    """Return the sets of shards: by the names of the tars, each of which counts as a folder."""
    images = [name for name in found.files if is_image(name)]
    by_split: dict[str, list[str]] = {}
    for name in images:
        top = name.partition("/")[0] if "/" in name else ""
        by_split.setdefault(split_of(top.rstrip("-_.0123456789")) or "", []).append(name)
    if "train" not in by_split:
        by_split = {"train": images}
    unused = len(by_split.pop("", ()))
    if "test" not in by_split and "validation" in by_split:
        by_split["test"] = by_split.pop("validation")
    sets = {
        split: ImageSet(f"{split} shards" if len(by_split) > 1 else "", tuple(names), ())
        for split, names in by_split.items()
    }
    said = f"not used: {unused} images of other tars" if unused else ""
    return Layout(sets, tuple(filter(None, (found.note(), said))))


def _files(layout: Layout, found: Found, settings: Settings) -> tuple[dict[str, Files], tuple[str, ...], str]:
    """Return the files of each split, the names of the classes, and what is said about their order."""
    if not layout.sets["train"].classes:
        return _with_label_files(layout, found)
    key = None if settings.class_order == "text" else natural_key
    names = tuple(sorted(set(layout.sets["train"].classes), key=key))
    _check_classes(layout, names, found)
    index = {name: number for number, name in enumerate(names)}
    files = {
        split: _of(found, item.names, torch.tensor([index[name] for name in item.classes]))
        for split, item in layout.sets.items()
    }
    return files, names, _said_order(names, settings)


def _of(found: Found, names: tuple[str, ...], labels: Tensor) -> Files:
    return Files(found.root, names, tuple(found.files[name] for name in names), labels)


def _with_label_files(layout: Layout, found: Found) -> tuple[dict[str, Files], tuple[str, ...], str]:
    parts: list[list[Label]] = []
    for item in layout.sets.values():
        beside = label_files(found, item.names)
        parts.append([read_label_file(name, beside[name], str(found.root)) for name in item.names])
    labels, names = numbered(parts, str(found.root))
    items = zip(layout.sets.items(), labels, strict=True)
    files = {split: _of(found, item.names, numbers) for (split, item), numbers in items}
    return files, names, "labels are those of the files beside the images"


def _said_order(names: tuple[str, ...], settings: Settings) -> str:
    order = settings.class_order or "natural"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    if tuple(sorted(names)) == tuple(sorted(names, key=natural_key)):
        return f"{len(names)} classes: {shown}"
    other = "class_order=text" if order == "natural" else "class_order=natural"
    return f"{len(names)} classes in {order} order: {shown} ({other} for the other order)"


def _check_classes(layout: Layout, names: tuple[str, ...], found: Found) -> None:
    known = set(names)
    for item in layout.sets.values():
        unknown = next((name for name in item.classes if name not in known), None)
        if unknown is not None:
            raise DataError(
                f"{item.folder} has the class {unknown!r}, which {layout.sets['train'].folder} has not",
                where=str(found.root),
                fix="use the same class folders in both",
            )


def choose_size(files: Files, settings: Settings, hints: Preprocessing, spec: specs.Spec) -> tuple[int, int]:
    """Choose (height, width)."""
    if settings.size:
        return settings.size
    teacher = hints.input_shape[1:] if hints.input_shape else None
    if teacher and hints.fixed:
        return teacher
    step = max(1, len(files.names) // SAMPLED_SIZES)
    sizes = Counter(files.size_of(position) for position in range(0, len(files.names), step))
    (width, height), _ = sizes.most_common(1)[0]
    if (len(sizes) == 1 and max(width, height) <= SMALL_SIDE) or (len(sizes) == 1 and not teacher):
        return height, width
    if teacher:
        return teacher
    raise DataError(
        f"the images have {len(sizes)} or more different sizes, most often {width} wide and {height} high",
        where=spec.text,
        fix=f"say to which size they are brought: ,size=224 for squares, or ,size={height}x{width} for "
        f"{height} high and {width} wide",
    )


def load_files(
    files: Files,
    channels: int,
    size: tuple[int, int],
    normalisation: Normalisation,
    settings: Settings,
    reading: Reading,
    whole: bool = False,
) -> Split:
    """Return the split of these files, in memory where it fits there.

    A `whole` image is scaled to the size, without cropping; it stays in memory, so that what belongs to its
    places can move with it.
    """
    hints, augmentation = reading.hints, settings.augmentation or "crop-flip"
    crop_share = hints.crop_share if hints.input_shape and max(size) > SMALL_SIDE and not whole else 1.0
    prepare = _Prepare(files, channels, size, crop_share, augmentation, whole)
    count = len(files.names)
    if not whole and count * channels * size[0] * size[1] > reading.cache_memory_bytes:
        return LazySplit(prepare, files.labels, normalisation, identity="\n".join(files.names), content=files)
    images = torch.empty((count, channels, *size), dtype=torch.uint8)
    for position in range(count):
        images[position] = prepare(position, False)
        reading.tell(f"decoding {files.root.name}", position + 1, count)
    return TensorSplit(images, files.labels, normalisation, augmentation)


class _Prepare:
    """Turn (position, augment) into an 8-bit image (C, H, W), by timm's transforms where the size is not
    right."""

    def __init__(
        self,
        files: Files,
        channels: int,
        size: tuple[int, int],
        crop_share: float,
        augmentation: str,
        whole: bool = False,
    ) -> None:
        self.whole = whole
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
        if self.whole:
            return as_tensor(image.resize(self.size[::-1], Image.Resampling.BILINEAR))
        if augment:
            return torch.as_tensor(self.augmented(image))
        if self.crop_share == 1.0 and image.size == self.size[::-1]:
            return as_tensor(image)
        return torch.as_tensor(self.plain(image))
