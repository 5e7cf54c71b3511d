"""Carries out the tasks of a search in whatever process it is made: trials, promotions and finals.

In the owner's process it is made from the objects at hand; in workers by `quality/remote.py`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from autocompress.export.onnx import to_onnx
from autocompress.export.student_folder import save_student
from autocompress.graph.coupling import Coupling
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Weights, to_json
from autocompress.problem.candidate import Candidate
from autocompress.problem.data import Data
from autocompress.runs.tasks import Stage, Task
from autocompress.students.accuracy import Evaluation
from autocompress.students.builder import CALIBRATION_BATCH, Progress, Workshop
from autocompress.students.calibration.channel_obs import obs_importance
from autocompress.students.calibration.importance import Method, saliency
from autocompress.students.calibration.layer_inputs import collect_moments, solvable_layers
from autocompress.students.one_shot import OneShot, Rival
from autocompress.students.sensitivity import Scorer
from autocompress.students.training.trained_importance import TRAINED, trained_importance
from autocompress.transforms.apply import MOMENTS, Saliency
from autocompress.transforms.sites import BoundSpace

_NETWORK, _WEIGHTS = "network.json", "weights.safetensors"
RUNGS = "rungs"
"""Folder of the checkpoints, beside those of the distilled students."""
_EPOCHS = "epochs of the checkpoint"
SCORE_ROWS = 1024
"""Places that layers are fitted at behind a choice that is scored: more rank candidates no better."""


class Evaluator:
    """Answers a task with JSON values; see `_trial` and `_final` for the names."""

    def __init__(self, workshop: Workshop, folder: Path, batch: int = 1) -> None:
        self.workshop, self.folder, self.batch = workshop, folder, batch
        self.one_shot = OneShot(workshop)
        self._scorers: dict[int, Scorer] = {}
        self.progress: Progress | None = None
        self.stop: Callable[[], bool] | None = None

    def __call__(self, task: Task) -> Mapping[str, Any]:
        candidate = Candidate.of(task.candidate)
        if task.stage == Stage.SCORE:
            return self._score(candidate, task.payload)
        self._scorers.clear()
        if task.stage == Stage.FINAL:
            return self._final(candidate, task.payload)
        if task.stage == Stage.PROMOTION:
            return self._rung(candidate, task.payload)
        return self._trial(candidate, task.payload)

    def _score(self, candidate: Candidate, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        images = int(payload["images"])
        if images not in self._scorers:
            self._scorers[images] = Scorer(OneShot(self.workshop, fit_images=images, fit_rows=SCORE_ROWS))
        return self._scorers[images](candidate)

    def _trial(self, candidate: Candidate, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        epochs = float(payload["epochs"])
        if epochs > 0:
            return _values(self.workshop.trial(candidate, epochs))
        shot = self.one_shot(candidate, Rival.from_json(payload.get("rival")))
        return {**_values(shot.evaluation), "images": shot.evaluation.count, "stopped": shot.stopped}

    def _rung(self, candidate: Candidate, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """Trains until the candidate has had `epochs` in all: from its checkpoint of the rung `before`, or of
        this one where only the evaluation is missing, else from the start."""
        epochs, path = float(payload["epochs"]), checkpoint(self.folder, candidate)
        found = load_checkpoint(path)
        known = found is not None and found[0] in (float(payload.get("before", 0)), epochs)
        done, weights = found if found is not None and known else (0.0, None)
        workshop = self.workshop
        module = workshop.rung(candidate, weights, epochs - done, part=int(payload.get("rung", 1)))
        if done < epochs:
            save_checkpoint(path, module.export_weights(), epochs)
        result = workshop.validated(workshop.quantized(module))
        return {**_values(result), "trained_epochs": epochs - done}

    def _final(self, candidate: Candidate, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """Distils from the checkpoint of the candidate's last rung, where there is one."""
        found = load_checkpoint(checkpoint(self.folder, candidate))
        start = None if found is None else self.workshop.gone_on(candidate, found[1])
        finished = self.workshop.finish(
            candidate,
            float(payload["epochs"]),
            float(payload["quantized_epochs"]),
            self.progress,
            self.stop,
            start,
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
        return _values(finished.validation)


def _values(found: Evaluation) -> dict[str, float]:
    return {"accuracy": found.accuracy, "accuracy_std_err": found.accuracy_std_err, "loss": found.loss}


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
    """Writes the traced teacher as data; its own code is not needed to read that."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _NETWORK).write_text(json.dumps(to_json(network)), encoding="utf-8")
    (folder / _WEIGHTS).write_bytes(save_arrays(weights))


def checkpoint(folder: Path, candidate: Candidate) -> Path:
    """Where the weights of a candidate's last rung are kept."""
    return folder / RUNGS / f"{candidate.key}.safetensors"


def save_checkpoint(path: Path, weights: Weights, epochs: float) -> None:
    """Writes the weights after so many epochs, all of them or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    unfinished.write_bytes(save_arrays({**weights, _EPOCHS: np.array([epochs])}))
    unfinished.replace(path)


def load_checkpoint(path: Path) -> tuple[float, Weights] | None:
    """(epochs, weights) as of `save_checkpoint`; None where there is none that can be read."""
    try:
        arrays = load_arrays(path.read_bytes())
        return float(arrays.pop(_EPOCHS)[0]), arrays
    except (OSError, KeyError, SafetensorError):
        return None


def discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
