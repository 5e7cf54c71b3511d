"""A candidate made real: cut from the teacher, trained, quantized. Used by trials and by finalists alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from autocompress.candidate import Candidate
from autocompress.data import Data
from autocompress.distill.teacher_outputs import TeacherOutputs
from autocompress.distill.train import Distilled, distil
from autocompress.graph.module import GraphModule, build
from autocompress.network import Network, Weights
from autocompress.quality.calibrate import collect_ranges
from autocompress.quality.compensate import compensate
from autocompress.quality.evaluate import Evaluation, evaluate, recalibrate_batch_norms
from autocompress.transforms.apply import Saliency, apply, kept_channels
from autocompress.transforms.fold import fold_batch_norms
from autocompress.transforms.quantize import plan, with_ranges
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
        recalibrate_batch_norms(module, self.data.calibration.batches(CALIBRATION_BATCH))
        return module

    def train(
        self,
        module: GraphModule,
        epochs: float,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
        learning_rate: float | None = None,
        part: int = 0,
    ) -> Distilled | None:
        """Distils `module` in place; None when there is nothing to do. Each `part` of a training that is
        done in several sees the images in an order of its own."""
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
            seed=self.seed + part,
            progress=report,
            stop=stop,
        )

    def quantized(self, module: GraphModule) -> GraphModule:
        """The student as it will be shipped: batch norms folded, 8-bit layers with calibrated ranges.

        Of the ranges by least squared error and by extremes, those with the lower loss on
        calibration data are taken.
        """
        network, weights = fold_batch_norms(module.source_network, module.export_weights())
        assert weights is not None
        values = plan(network)
        if not values:
            return build(network, weights)
        floating = build(network, weights)
        batches = list(self.data.calibration.batches(CALIBRATION_BATCH))
        found = [
            build(with_ranges(network, collect_ranges(floating, values, batches, method)), weights)
            for method in ("minmax", "mse")
        ]
        return min(found, key=lambda student: evaluate(student, self.data.calibration).loss)

    def trial(self, candidate: Candidate, epochs: float) -> Evaluation:
        """Accuracy on validation data after a short distillation, in the candidate's own precision."""
        module = self.start(candidate)
        self.train(module, epochs)
        return evaluate(self.quantized(module), self.data.validation)

    def gone_on(self, candidate: Candidate, weights: Weights) -> GraphModule:
        """The student as an earlier training left it. Raises KeyError for the weights of another one."""
        network, _ = apply(self.bound, None, candidate)
        return build(network, weights)

    def rung(self, module: GraphModule, epochs: float, part: int) -> Evaluation:
        """Distils `module` in place for `epochs` more, and evaluates it in its own precision."""
        self.train(module, epochs, part=part)
        return evaluate(self.quantized(module), self.data.validation)

    def finish(
        self,
        candidate: Candidate,
        epochs: float,
        quantized_epochs: float,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
        start: GraphModule | None = None,
    ) -> Finished | None:
        """The final student: long distillation, calibration, quantization-aware distillation.

        The latter is kept only where it helps on validation data. None when `stop` ended it early. Training
        begins with `start`, which it changes, or with the candidate cut from the teacher.
        """
        module = self.start(candidate) if start is None else start
        run = self.train(module, epochs, progress, stop)
        if run is not None and not run.finished:
            return None
        student = self.quantized(module)
        evaluation = evaluate(student, self.data.validation)
        if quantized_epochs > 0 and plan(student.source_network):
            tuned = build(student.source_network, student.export_weights())
            extra = self.train(tuned, quantized_epochs, progress, stop)
            if extra is not None and not extra.finished:
                return None
            better = evaluate(tuned, self.data.validation)
            if (better.accuracy, -better.loss) > (evaluation.accuracy, -evaluation.loss):
                student, evaluation = tuned, better
        return Finished(student.source_network, student.export_weights(), evaluation)


@dataclass(frozen=True)
class Finished:
    """A trained student in its shipped form, with its accuracy on validation data."""

    network: Network
    weights: Weights
    validation: Evaluation
