"""Carries out the tasks of a search in whatever process it is made: trials, promotions and finals.

In the owner's process it is made from the objects at hand; in workers by `students/remote.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autocompress.export.onnx import to_onnx
from autocompress.export.student_folder import save_student
from autocompress.files import JsonObject
from autocompress.problem.candidate import Candidate
from autocompress.runs.tasks import Job, Stage
from autocompress.students.accuracy import Evaluation
from autocompress.students.builder import Progress, StudentBuilder
from autocompress.students.checkpoints import Checkpoint, checkpoint_path, load_checkpoint, save_checkpoint
from autocompress.students.one_shot import OneShot, Rival
from autocompress.students.sensitivity import Scorer

SCORE_ROWS = 1024
"""Places that layers are fitted at behind a choice that is scored: more rank candidates no better."""


class Evaluator:
    """Answer a task with JSON values; see `_trial` and `_final` for the names."""

    def __init__(
        self, builder: StudentBuilder, folder: Path, batch: int = 1, torch_operators: bool = False
    ) -> None:
        self.builder, self.folder = builder, folder
        self.batch, self.torch_operators = batch, torch_operators
        self.one_shot = OneShot(builder)
        self._scorers: dict[int, Scorer] = {}
        self.progress: Progress | None = None
        self.stop: Callable[[], bool] | None = None

    def __call__(self, task: Job) -> JsonObject:
        candidate = Candidate.of(task.candidate)
        if task.stage == Stage.SCORE:
            return self._score(candidate, task.payload)
        self._scorers.clear()
        if task.stage == Stage.FINAL:
            return self._final(candidate, task.payload)
        if task.stage == Stage.PROMOTION:
            return self._rung(candidate, task.payload)
        return self._trial(candidate, task.payload)

    def _score(self, candidate: Candidate, payload: JsonObject) -> JsonObject:
        images = int(payload["images"])
        if images not in self._scorers:
            self._scorers[images] = Scorer(OneShot(self.builder, fit_images=images, fit_rows=SCORE_ROWS))
        return self._scorers[images](candidate)

    def _trial(self, candidate: Candidate, payload: JsonObject) -> JsonObject:
        epochs = float(payload["epochs"])
        if epochs > 0:
            return _values(self.builder.trial(candidate, epochs))
        shot = self.one_shot(candidate, Rival.from_json(payload.get("rival")))
        return {**_values(shot.evaluation), "images": shot.evaluation.count, "stopped": shot.stopped}

    def _rung(self, candidate: Candidate, payload: JsonObject) -> JsonObject:
        """Train until the candidate has had `epochs` in all: from its checkpoint of the rung `before`, or of
        this one where only the evaluation is missing, else from the start."""
        epochs, path = float(payload["epochs"]), checkpoint_path(self.folder, candidate)
        found = load_checkpoint(path)
        if found is not None and found.epochs not in (float(payload.get("before", 0)), epochs):
            found = None
        done = 0.0 if found is None else found.epochs
        builder = self.builder
        weights = None if found is None else found.weights
        module = builder.rung(candidate, weights, epochs - done, part=int(payload.get("rung", 1)))
        if done < epochs:
            save_checkpoint(path, Checkpoint(epochs, module.export_weights()))
        result = builder.validated(builder.quantized(module))
        return {**_values(result), "trained_epochs": epochs - done}

    def _final(self, candidate: Candidate, payload: JsonObject) -> JsonObject:
        """Distil from the checkpoint of the candidate's last rung, where there is one."""
        found = load_checkpoint(checkpoint_path(self.folder, candidate))
        start = None if found is None else self.builder.gone_on(candidate, found.weights)
        finished = self.builder.finish(
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
            onnx_model=to_onnx(
                finished.network, finished.weights, batch=self.batch, torch_operators=self.torch_operators
            ),
            spec_extra={"choices": candidate.to_json()},
            bench={},
            readme="",
        )
        return _values(finished.validation)


def _values(found: Evaluation) -> dict[str, float]:
    return {"accuracy": found.accuracy, "accuracy_std_err": found.accuracy_std_err, "loss": found.loss}
