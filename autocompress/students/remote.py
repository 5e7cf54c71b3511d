"""An evaluator for other processes: what it is made from as JSON and arrays, and how it is made there.

The teacher, what is known of its channels and images that are held in memory travel as arrays, which an
executor places once on each machine. Images that stay on disk are read there, by the data's spec. Students
are written to the run's folder where a process sees it, and else sent to the owner with the result.
"""

from __future__ import annotations

import base64
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from autocompress.errors import InputError
from autocompress.export.student_folder import write_folder
from autocompress.files import JsonObject
from autocompress.graph.module import build
from autocompress.graph.network import Network, from_json, to_json
from autocompress.problem.candidate import Candidate
from autocompress.problem.label_match import with_teacher_outputs
from autocompress.problem.space import Space, space_of
from autocompress.problem.tasks.choice import task_from_json, task_to_json
from autocompress.problem.tasks.classification import Classification
from autocompress.problem.tasks.task import Task
from autocompress.problem.teacher import Preprocessing
from autocompress.runs.tasks import (
    Arrays,
    Ask,
    Evaluate,
    Executor,
    Factory,
    Job,
    Result,
    Stage,
    Stop,
    Tell,
)
from autocompress.students.builder import StudentBuilder
from autocompress.students.checkpoints import discard
from autocompress.students.evaluator import Evaluator
from autocompress.students.packed_data import DataSpec, Groups, PackedData, is_in_memory, packed
from autocompress.students.training.settings import DistillSettings
from autocompress.transforms.sites import bind

_TARGET = "autocompress.students.remote:make"
_SALIENCY = "saliency "
"""Begins the names of the groups of arrays that hold importances, by method."""


@dataclass(frozen=True, eq=False)
class RemoteConfig:
    """Say how an evaluator is made, but for its arrays. `batch` is that of the exported files, and
    `torch_operators` whether they may call torch's own operators."""

    network: Network
    space: Space
    folder: Path
    settings: DistillSettings
    batch: int
    data: PackedData | DataSpec
    task: Task = field(default_factory=Classification)
    torch_operators: bool = False

    @classmethod
    def from_json(cls, data: JsonObject) -> RemoteConfig:
        """Return the configuration that `to_json` made `data` of."""
        return cls(
            network=from_json(data["network"]),
            space=space_of(data["space"]),
            folder=Path(data["folder"]),
            settings=DistillSettings.from_json(data["settings"]),
            batch=int(data["batch"]),
            data=PackedData.from_json(data["data"]) if "data" in data else DataSpec.from_json(data),
            task=task_from_json(data["task"]) if "task" in data else Classification(),
            torch_operators=bool(data.get("torch_operators", False)),
        )

    def to_json(self) -> JsonObject:
        """Return the configuration for another process."""
        values = self.data.to_json()
        return {
            "network": to_json(self.network),
            "space": self.space.to_json(),
            "folder": str(self.folder),
            "settings": self.settings.to_json(),
            "batch": self.batch,
            "task": task_to_json(self.task),
            "torch_operators": self.torch_operators,
            **({"data": values} if isinstance(self.data, PackedData) else values),
        }


def remote_evaluator(
    builder: StudentBuilder,
    space: Space,
    folder: Path,
    *,
    batch: int = 1,
    torch_operators: bool = False,
    data_spec: str | None = None,
    preprocessing: Preprocessing | None = None,
) -> Factory:
    """Return what makes evaluators like `Evaluator(builder, folder, batch)` in other processes.

    `data_spec` and `preprocessing` say how to read the data again where its images stay on disk.
    Raises InputError for such data without a spec.
    """
    data, images = _travelling(builder, data_spec, preprocessing or Preprocessing())
    importances = {f"{_SALIENCY}{method}": values for method, values in builder.saliency.items()}
    config = RemoteConfig(
        builder.bound.network,
        space,
        folder.resolve(),
        builder.settings,
        batch,
        data,
        builder.data.task,
        torch_operators,
    )
    return Factory(_TARGET, config.to_json(), {"weights": builder.weights, **importances, **images})


def _travelling(
    builder: StudentBuilder, spec: str | None, preprocessing: Preprocessing
) -> tuple[PackedData | DataSpec, Groups]:
    """Return how the data is described to others, and its arrays."""
    if is_in_memory(builder.data):
        return packed(builder.data)
    if spec is None:
        raise InputError(
            "workers cannot be given datasets of this process that are not held in memory",
            fix="give the data as a spec string, such as file.py:callable, or use workers=0",
        )
    data = builder.data
    return DataSpec(spec, preprocessing, data.num_classes, tuple(data.class_names), data.targets), {}


def make(config: JsonObject, arrays: Arrays) -> Evaluate:
    """Return the evaluator of a worker process, from what `remote_evaluator` packed."""
    known = RemoteConfig.from_json(config)
    saliency = {
        name.removeprefix(_SALIENCY): values for name, values in arrays.items() if name.startswith(_SALIENCY)
    }
    weights = dict(arrays["weights"])
    data = replace(known.data.open(arrays), task=known.task)
    if isinstance(known.data, DataSpec) and known.task.targets == "none":
        data = with_teacher_outputs(build(known.network, weights), data)
    builder = StudentBuilder(
        bind(known.space, known.network),
        weights,
        data,
        saliency,
        known.settings,
    )
    if known.folder.parent.is_dir():
        return Evaluator(builder, known.folder, known.batch, known.torch_operators)
    folder = Path(tempfile.mkdtemp(prefix="ac-"))
    return _Sending(Evaluator(builder, folder, known.batch, known.torch_operators))


@dataclass
class _Sending:
    """An evaluator that does not see the run's folder: a student's files become a part of the result."""

    evaluator: Evaluator

    def __call__(self, task: Job) -> JsonObject:
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
