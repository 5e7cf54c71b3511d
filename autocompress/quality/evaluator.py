"""Carries out the tasks of a search in whatever process it is made: trials, promotions and finals.

In the owner's process it is made from the objects at hand; in a worker from a folder that holds
the teacher as data, and the data's spec. The teacher's own code is not needed there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from autocompress.candidate import Candidate
from autocompress.data import Data, load_data
from autocompress.evaluation import Task
from autocompress.export.onnx import to_onnx
from autocompress.export.package import save_student
from autocompress.graph.coupling import Coupling
from autocompress.graph.module import GraphModule, build
from autocompress.network import Network, Weights, from_json, to_json
from autocompress.quality.layer_rows import collect_moments, solvable_layers
from autocompress.quality.saliency import Method, saliency
from autocompress.quality.student import CALIBRATION_BATCH, Progress, Workshop, limit_threads
from autocompress.quality.surgeon import obs_importance
from autocompress.quality.trained_importance import TRAINED, trained_importance
from autocompress.space import parse_space
from autocompress.teacher import Preprocessing
from autocompress.transforms.apply import MOMENTS, Saliency
from autocompress.transforms.sites import BoundSpace, bind

TRIAL, PROMOTION, FINAL = "trial", "promotion", "final"
_NETWORK, _WEIGHTS = "network.json", "weights.safetensors"


class Evaluator:
    """Answers a task with JSON values; see `_trial` and `_final` for the names."""

    def __init__(self, workshop: Workshop, folder: Path, batch: int = 1) -> None:
        self.workshop, self.folder, self.batch = workshop, folder, batch
        self.progress: Progress | None = None
        self.stop: Callable[[], bool] | None = None

    def __call__(self, task: Task) -> Mapping[str, Any]:
        candidate = Candidate.of(task.candidate)
        if task.stage == FINAL:
            return self._final(candidate, task.payload)
        return self._trial(candidate, task.payload)

    def _trial(self, candidate: Candidate, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        result = self.workshop.trial(candidate, float(payload["epochs"]))
        return {"accuracy": result.accuracy, "accuracy_std_err": result.accuracy_std_err, "loss": result.loss}

    def _final(self, candidate: Candidate, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        finished = self.workshop.finish(
            candidate, float(payload["epochs"]), float(payload["quantized_epochs"]), self.progress, self.stop
        )
        if finished is None:
            return {"interrupted": True}
        save_student(
            self.folder / candidate.key,
            network=finished.network,
            weights=finished.weights,
            onnx_model=to_onnx(finished.network, finished.weights, batch=self.batch),
            spec_extra={"choices": candidate.to_json()},
            bench={},
            readme="",
        )
        validation = finished.validation
        return {
            "accuracy": validation.accuracy,
            "accuracy_std_err": validation.accuracy_std_err,
            "loss": validation.loss,
        }


def importances(bound: BoundSpace, weights: Weights, data: Data) -> Saliency:
    """What the space's choices need to know of the teacher, on calibration data: importances of channels
    by every method it uses, and the second moments of the layers whose rank or sparsity minds the data."""
    teacher = build(bound.network, weights)
    sites: dict[str, set[str]] = {}
    for site in bound.of_kind("width"):
        sites.setdefault(site.settings["importance"], set()).add(site.target)
    found = {
        method: importance(bound.coupling, teacher, data, method, sites[method]) for method in sorted(sites)
    }
    sparse = bound.of_kind("sparsity")
    if "obd" not in found and any(site.settings["method"] == "obd" for site in sparse):
        found["obd"] = saliency(teacher, data.calibration.batches(CALIBRATION_BATCH), "obd")
    layers = {site.target for site in bound.of_kind("rank") if site.settings["data_aware"]}
    layers |= {site.target for site in sparse if site.settings["method"] == "obs"}
    if layers:
        nodes = [node for node in solvable_layers(bound.network) if node.name in layers]
        images = (images for images, _ in data.calibration.batches(CALIBRATION_BATCH))
        moments = collect_moments(teacher, nodes, images)
        found[MOMENTS] = {
            name: (one.second if len(one.second) > 1 else one.second[0]).astype("float32")
            for name, one in moments.items()
        }
    return found


def importance(
    coupling: Coupling, teacher: GraphModule, data: Data, method: str, groups: Collection[str]
) -> Weights:
    """By one method, for the named groups at least: parameter → importances, output channels first."""
    if method in TRAINED:
        return trained_importance(teacher, data, TRAINED[method])
    batches = data.calibration.batches(CALIBRATION_BATCH)
    if method == "obs":
        wanted = (group for group in coupling.groups if group.name in groups)
        return obs_importance(coupling, teacher, [images for images, _ in batches], wanted)
    return saliency(teacher, batches, cast(Method, method))


def save_teacher(folder: Path, network: Network, weights: Weights) -> None:
    """Writes the traced teacher as data, for workers and for resuming."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _NETWORK).write_text(json.dumps(to_json(network)), encoding="utf-8")
    (folder / _WEIGHTS).write_bytes(save_arrays(weights))


def load_saved_teacher(folder: Path) -> tuple[Network, Weights]:
    """What `save_teacher` wrote."""
    network = from_json(json.loads((folder / _NETWORK).read_text(encoding="utf-8")))
    return network, load_arrays((folder / _WEIGHTS).read_bytes())


def make(config: Mapping[str, Any]) -> Evaluator:
    """The evaluator of a worker process, from JSON; see `search.worker_config`."""
    limit_threads(int(config["threads"]))
    network, weights = load_saved_teacher(Path(config["teacher"]))
    hints: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config["preprocessing"].items()
    }
    data = load_data(config["data"], int(config["data_seed"]), preprocessing=Preprocessing(**hints))
    bound = bind(parse_space(config["space"]), network)
    workshop = Workshop(
        bound,
        weights,
        data,
        importances(bound, weights, data),
        seed=int(config["seed"]),
        batch_size=int(config["batch_size"]),
        learning_rate=config["learning_rate"],
    )
    return Evaluator(workshop, Path(config["folder"]), int(config["batch"]))


def discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
