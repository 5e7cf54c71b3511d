"""A candidate made real: cut from the teacher, trained, quantized. Used by trials and by finalists alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from autocompress.candidate import Candidate
from autocompress.data import Data
from autocompress.distill.teacher_outputs import TeacherOutputs
from autocompress.distill.train import Distilled, distil
from autocompress.graph.module import GraphModule, build
from autocompress.network import Network, Weights
from autocompress.quality.compensate import compensate
from autocompress.quality.evaluate import Evaluation, evaluate, recalibrate_batch_norms
from autocompress.quality.quantization import quantized
from autocompress.transforms.apply import Saliency, apply, kept_channels
from autocompress.transforms.fold import fold_batch_norms
from autocompress.transforms.grid import fit_steps
from autocompress.transforms.quantize import plan
from autocompress.transforms.sites import BoundSpace

CALIBRATION_BATCH = 128
Progress = Callable[[str, int, int], None]


@dataclass
class Workshop:
    """Everything that students are made from. One per process; the teacher's outputs are shared."""

    bound: BoundSpace
    weights: Weights
    data: Data
    saliency: Saliency
    seed: int = 0
    batch_size: int = 128
    learning_rate: float | None = None
    teacher: GraphModule = field(init=False)
    outputs: TeacherOutputs = field(init=False)

    def __post_init__(self) -> None:
        self.teacher = build(self.bound.network, self.weights)
        self.outputs = TeacherOutputs(self.teacher)

    def start(self, candidate: Candidate) -> GraphModule:
        """The student before training: cut from the teacher, its layers fitted to what is left in
        closed form, batch norms recalibrated."""
        network, weights = apply(self.bound, self.weights, candidate, self.saliency)
        assert weights is not None
        module = build(network, weights)
        kept = kept_channels(self.bound, candidate, self.saliency)
        compensate(module, self.teacher, self.data.calibration, kept)
        refit_steps(module)
        recalibrate_batch_norms(module, self.data.calibration.batches(CALIBRATION_BATCH))
        return module

    def train(
        self,
        module: GraphModule,
        epochs: float,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
        learning_rate: float | None = None,
    ) -> Distilled | None:
        """Distils `module` in place; None when there is nothing to do."""
        if epochs <= 0:
            return None
        report = None if progress is None else (lambda done, total, _loss: progress("distil", done, total))
        return distil(
            module,
            self.outputs,
            self.data,
            epochs=epochs,
            batch_size=self.batch_size,
            learning_rate=learning_rate or self.learning_rate,
            seed=self.seed,
            progress=report,
            stop=stop,
        )

    def quantized(self, module: GraphModule) -> GraphModule:
        """The student as it will be shipped: batch norms folded, 8-bit layers with calibrated ranges, as
        the space's `quantize` says."""
        network, weights = fold_batch_norms(module.source_network, module.export_weights())
        assert weights is not None
        return quantized(network, weights, self.data.calibration, self.bound.quantize)

    def trial(self, candidate: Candidate, epochs: float) -> Evaluation:
        """Accuracy on validation data after a short distillation, in the candidate's own precision."""
        module = self.start(candidate)
        self.train(module, epochs)
        return evaluate(self.quantized(module), self.data.validation)

    def finish(
        self,
        candidate: Candidate,
        epochs: float,
        quantized_epochs: float,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Finished | None:
        """The final student: long distillation, calibration, quantization-aware distillation.

        The latter is kept only where it helps on validation data. None when `stop` ended it early.
        """
        module = self.start(candidate)
        run = self.train(module, epochs, progress, stop)
        if run is not None and not run.finished:
            return None
        student = self.quantized(module)
        evaluation = evaluate(student, self.data.validation)
        if quantized_epochs > 0 and plan(student.source_network):
            tuned = build(student.source_network, student.export_weights())
            tuned.learn_quantizers()
            extra = self.train(tuned, quantized_epochs, progress, stop)
            tuned.settle_quantizers()
            if extra is not None and not extra.finished:
                return None
            better = evaluate(tuned, self.data.validation)
            if (better.accuracy, -better.loss) > (evaluation.accuracy, -evaluation.loss):
                student, evaluation = tuned, better
        return Finished(student.source_network, student.export_weights(), evaluation)


def refit_steps(module: GraphModule) -> None:
    """Fits the steps of weights on a grid to the weights as they are now."""
    with torch.no_grad():
        for node in module.source_network.nodes:
            if node.grid is not None:
                weight = module.tensor_named(node.args[1].name).numpy()
                steps = torch.from_numpy(fit_steps(weight, node.grid.form))
                module.tensor_named(node.grid.step).copy_(steps)


@dataclass(frozen=True)
class Finished:
    """A trained student in its shipped form, with its accuracy on validation data."""

    network: Network
    weights: Weights
    validation: Evaluation


def limit_threads(threads: int) -> None:
    torch.set_num_threads(max(1, threads))
