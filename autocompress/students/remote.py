"""An evaluator for other processes: what it is made from as JSON and arrays, and how it is made there.

The teacher, what is known of its channels and images that are held in memory travel as arrays, which an
executor places once on each machine. Images that stay on disk are read there, by the data's spec. Students
are written to the run's folder where a process sees it, and else sent to the owner with the result.
"""

from __future__ import annotations

import base64
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.export.student_folder import write_folder
from autocompress.graph.network import from_json, to_json
from autocompress.problem.candidate import Candidate
from autocompress.problem.data import Data, load_data
from autocompress.problem.label_match import matched
from autocompress.problem.space import Space, space_of
from autocompress.problem.splits import Normalisation, Split, TensorSplit
from autocompress.problem.teacher import Preprocessing
from autocompress.runs.tasks import Arrays, Ask, Evaluate, Executor, Factory, Result, Stage, Stop, Task, Tell
from autocompress.students.builder import Workshop
from autocompress.students.evaluator import Evaluator, discard
from autocompress.transforms.sites import bind

_SPLITS = ("train", "validation", "calibration")


def remote_evaluator(
    workshop: Workshop,
    space: Space,
    folder: Path,
    *,
    batch: int = 1,
    data_spec: str | None = None,
    preprocessing: Preprocessing | None = None,
) -> Factory:
    """Makes evaluators like `Evaluator(workshop, folder, batch)` in other processes.

    `data_spec` and `preprocessing` say how to read the data again where its images stay on disk.
    Raises InputError for such data without a spec.
    """
    arrays: dict[str, Mapping[str, Any]] = {"weights": workshop.weights}
    arrays |= {f"saliency {method}": values for method, values in workshop.saliency.items()}
    config = {
        "network": to_json(workshop.bound.network),
        "space": space.to_json(),
        "folder": str(folder.resolve()),
        "seed": workshop.seed,
        "batch_size": workshop.batch_size,
        "learning_rate": workshop.learning_rate,
        "train_on": workshop.train_on,
        "batch": batch,
    }
    if all(isinstance(getattr(workshop.data, name), TensorSplit) for name in _SPLITS):
        config["data"], found = _packed(workshop.data)
        return Factory("autocompress.students.remote:make", config, arrays | found)
    if data_spec is None:
        raise InputError(
            "workers cannot be given datasets of this process that are not held in memory",
            fix="give the data as a spec string, such as file.py:callable, or use workers=0",
        )
    config["spec"] = data_spec
    config["preprocessing"] = vars(preprocessing or Preprocessing())
    config["num_classes"] = workshop.data.num_classes
    config["class_names"] = list(workshop.data.class_names)
    return Factory("autocompress.students.remote:make", config, arrays)


def make(config: Mapping[str, Any], arrays: Arrays) -> Evaluate:
    """The evaluator of a worker process, from what `remote_evaluator` packed."""
    prefix = "saliency "
    workshop = Workshop(
        bind(space_of(config["space"]), from_json(config["network"])),
        dict(arrays["weights"]),
        _unpacked(config["data"], arrays) if "data" in config else _read(config),
        {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)},
        seed=int(config["seed"]),
        batch_size=int(config["batch_size"]),
        learning_rate=config["learning_rate"],
        train_on=config["train_on"],
    )
    folder = Path(config["folder"])
    if folder.parent.is_dir():
        return Evaluator(workshop, folder, int(config["batch"]))
    return _Sending(Evaluator(workshop, Path(tempfile.mkdtemp(prefix="ac-")), int(config["batch"])))


@dataclass
class _Sending:
    """An evaluator that does not see the run's folder: a student's files become a part of the result."""

    evaluator: Evaluator

    def __call__(self, task: Task) -> Mapping[str, Any]:
        values = dict(self.evaluator(task))
        student = self.evaluator.folder / Candidate.of(task.candidate).key
        if task.stage == Stage.FINAL and student.is_dir():
            values["student"] = student.name
            values["files"] = {
                path.name: base64.b64encode(path.read_bytes()).decode() for path in sorted(student.iterdir())
            }
            discard(student)
        return values


@dataclass
class Receiving:
    """An executor that writes the files that come with results to `folder`."""

    on: Executor
    folder: Path

    @property
    def workers(self) -> int:
        return self.on.workers

    def run(self, ask: Ask, tell: Tell, stop: Stop) -> None:
        self.on.run(ask, lambda result: tell(self._received(result)), stop)

    def close(self) -> None:
        self.on.close()

    def _received(self, result: Result) -> Result:
        if "files" not in result.values:
            return result
        values = dict(result.values)
        key, files = values.pop("student"), values.pop("files")
        write_folder(self.folder / key, {name: base64.b64decode(files[name]) for name in files})
        return replace(result, values=values)


def _read(config: Mapping[str, Any]) -> Data:
    hints: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config["preprocessing"].items()
    }
    data = load_data(config["spec"], 0, preprocessing=Preprocessing(**hints))
    return matched(data, int(config["num_classes"]), config["class_names"])


def _packed(data: Data) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    """Data in memory without its test split; images that several splits share are packed once."""
    description: dict[str, Any] = {
        "name": data.name,
        "num_classes": data.num_classes,
        "input_shape": data.input_shape,
        "mean": data.mean,
        "std": data.std,
        "splits": {},
    }
    images: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    positions: dict[str, Any] = {}
    for name in _SPLITS:
        split: TensorSplit = getattr(data, name)
        store = str(split.images.data_ptr())
        images[store], labels[store] = split.images.numpy(), split.image_labels.numpy()
        if split.positions is not None:
            positions[name] = split.positions.numpy()
        description["splits"][name] = {
            "store": store,
            "mean": split.normalise.mean,
            "std": split.normalise.std,
            "augmentation": split.augmentation,
        }
    return description, {"images": images, "labels": labels, "positions": positions}


def _unpacked(description: Mapping[str, Any], arrays: Arrays) -> Data:
    known: dict[str, tuple[Tensor, Tensor]] = {
        store: (_tensor(arrays["images"][store]), _tensor(arrays["labels"][store]))
        for store in arrays["images"]
    }

    def split(name: str) -> Split:
        found, positions = description["splits"][name], arrays["positions"].get(name)
        return TensorSplit(
            *known[found["store"]],
            Normalisation(tuple(found["mean"]), tuple(found["std"])),
            found["augmentation"],
            None if positions is None else _tensor(positions),
        )

    return Data(
        name=description["name"],
        num_classes=description["num_classes"],
        input_shape=tuple(description["input_shape"]),
        mean=tuple(description["mean"]),
        std=tuple(description["std"]),
        train=split("train"),
        validation=split("validation"),
        calibration=split("calibration"),
    )


def _tensor(array: Any) -> Tensor:
    """A view of memory that other processes share, and nobody writes to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
