"""Data for another process: a description as JSON and arrays, or the spec that reads it again there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.files import JsonObject
from autocompress.problem.data import Data, load_data
from autocompress.problem.label_match import matched
from autocompress.problem.splits import Normalisation, TensorSplit
from autocompress.problem.teacher import Preprocessing
from autocompress.runs.tasks import Arrays

SPLITS = ("train", "validation", "calibration")

Groups = dict[str, dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class DataSpec:
    """Name data that every process reads for itself, and the teacher's outputs that its labels are matched
    with."""

    spec: str
    preprocessing: Preprocessing
    num_classes: int
    class_names: tuple[str, ...]
    targets: str = "classes"

    @classmethod
    def from_json(cls, data: JsonObject) -> DataSpec:
        """Return what `to_json` made `data` of."""
        hints = {name: _tuple(value) for name, value in data["preprocessing"].items()}
        names = tuple(str(name) for name in data["class_names"])
        return cls(
            str(data["spec"]),
            Preprocessing(**hints),
            int(data["num_classes"]),
            names,
            str(data.get("targets", "classes")),
        )

    def to_json(self) -> JsonObject:
        """Return every field by its name."""
        return {**vars(self), "preprocessing": vars(self.preprocessing)}

    def open(self, _arrays: Arrays) -> Data:
        """Read the data."""
        data = load_data(self.spec, 0, preprocessing=self.preprocessing, targets=self.targets)
        if data.targets != "classes" or self.targets == "none":
            return data
        return matched(data, self.num_classes, self.class_names)


@dataclass(frozen=True)
class PackedSplit:
    """Describe a split; `store` names its images and labels among the arrays."""

    store: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str

    @classmethod
    def from_json(cls, data: JsonObject) -> PackedSplit:
        """Return what `asdict` made `data` of."""
        return cls(str(data["store"]), tuple(data["mean"]), tuple(data["std"]), str(data["augmentation"]))


@dataclass(frozen=True)
class PackedData:
    """Describe data whose images are arrays in memory; its test split stays behind."""

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: Mapping[str, PackedSplit]

    @classmethod
    def from_json(cls, data: JsonObject) -> PackedData:
        """Return what `to_json` made `data` of."""
        channels, height, width = data["input_shape"]
        splits = {name: PackedSplit.from_json(data["splits"][name]) for name in SPLITS}
        return cls(
            name=str(data["name"]),
            num_classes=int(data["num_classes"]),
            input_shape=(channels, height, width),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            splits=splits,
        )

    def to_json(self) -> JsonObject:
        """Return every field by its name."""
        return asdict(self)

    def open(self, arrays: Arrays) -> Data:
        """Return the data; its images are views of the arrays, which nobody writes to."""
        known = {
            store: (_tensor(arrays["images"][store]), _tensor(arrays["labels"][store]))
            for store in arrays["images"]
        }
        positions = {name: _tensor(found) for name, found in arrays["positions"].items()}
        opened = {
            name: TensorSplit(
                *known[split.store],
                Normalisation(split.mean, split.std),
                split.augmentation,
                positions.get(name),
            )
            for name, split in self.splits.items()
        }
        return Data(
            name=self.name,
            num_classes=self.num_classes,
            input_shape=self.input_shape,
            mean=self.mean,
            std=self.std,
            train=opened["train"],
            validation=opened["validation"],
            calibration=opened["calibration"],
        )


def is_in_memory(data: Data) -> bool:
    """Return whether all images that training and selection read are tensors."""
    return all(isinstance(getattr(data, name), TensorSplit) for name in SPLITS)


def packed(data: Data) -> tuple[PackedData, Groups]:
    """Return data in memory as a description and arrays; images that splits share are there once."""
    splits: dict[str, PackedSplit] = {}
    arrays: Groups = {"images": {}, "labels": {}, "positions": {}}
    for name in SPLITS:
        split: TensorSplit = getattr(data, name)
        store = str(split.images.data_ptr())
        arrays["images"][store] = split.images.numpy()
        arrays["labels"][store] = split.image_labels.numpy()
        if split.positions is not None:
            arrays["positions"][name] = split.positions.numpy()
        splits[name] = PackedSplit(store, split.normalise.mean, split.normalise.std, split.augmentation)
    return PackedData(data.name, data.num_classes, data.input_shape, data.mean, data.std, splits), arrays


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return a view of memory that other processes share."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
