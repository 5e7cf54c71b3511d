"""A candidate made real: cut from the teacher, trained, quantized. Used by trials and by finalists alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import Network, Weights
from autocompress.problem.candidate import Candidate, Option, Site
from autocompress.problem.data import Data
from autocompress.students.accuracy import Evaluation, evaluate, recalibrate_batch_norms
from autocompress.students.calibration.compensation import KeptChannels, compensate, refit_step
from autocompress.students.calibration.layer_inputs import CALIBRATION_BATCH
from autocompress.students.calibration.quantization import quantized
from autocompress.students.calibration.weight_statistics import evidence
from autocompress.students.training.blockwise import BlockPart, learned
from autocompress.students.training.constraints import held
from autocompress.students.training.distill import DistilledStudent, distil
from autocompress.students.training.precision import device_named, placed
from autocompress.students.training.settings import DistillSettings
from autocompress.students.training.sparsification import METHODS, Thinner
from autocompress.students.training.teacher_cache import TeacherOutputs
from autocompress.transforms.apply import Saliency, apply, dense, kept_channels, thinnings_of
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.quantize import plan
from autocompress.transforms.families.sparsity import (
    Thinning,
    marked,
    mask_of,
    rounded,
    shared,
    sharing_layers,
    thinned,
)
from autocompress.transforms.sites import BoundSpace

Progress = Callable[[str, int, int], None]


@dataclass
class StudentBuilder:
    """Hold everything that students are made from. One per process; the teacher's outputs are shared.

    `settings` is how they are trained, but for the epochs, which each training has of its own.
    """

    bound: BoundSpace
    weights: Weights
    data: Data
    saliency: Saliency
    settings: DistillSettings = field(default_factory=DistillSettings)
    teacher: GraphModule = field(init=False)
    outputs: TeacherOutputs = field(init=False)
    _learned: dict[tuple[str, Option], Weights] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.teacher = build(self.bound.network, self.weights)
        self.outputs = TeacherOutputs(self.teacher)

    def start(self, candidate: Candidate, trains: bool = False) -> GraphModule:
        """Return the student before training: cut from the teacher, blocks and layers of another form
        distilled from what they replace, the other layers fitted to what is left in closed form, weights set
        to zero, batch norms recalibrated. Where it `trains`, zeros that training is to find are not made
        yet."""
        network, weights = apply(self.bound, self.weights, dense(self.bound, candidate), self.saliency)
        assert weights is not None
        fixed = self.take_learned(network, weights, candidate)
        module = build(network, weights)
        kept = kept_channels(self.bound, candidate, self.saliency)
        compensate(module, self.teacher, self.data.calibration, kept, fixed=fixed)
        module = self._thinned(module, candidate, kept, trains, fixed)
        for node in module.source_network.nodes:
            refit_step(module, node)
        recalibrate_batch_norms(module, self.data.calibration.batches(CALIBRATION_BATCH))
        return module

    def _thinned(
        self,
        module: GraphModule,
        candidate: Candidate,
        kept: KeptChannels,
        trains: bool,
        fixed: Collection[str],
    ) -> GraphModule:
        """Return the student with the candidate's zeros, and its other layers fitted once more."""
        thinnings = thinnings_of(self.bound, module.source_network, candidate)
        if not thinnings:
            return module
        network = marked(module.source_network, thinnings, {})
        if trains:
            thinnings = {name: one for name, one in thinnings.items() if one.method not in METHODS}
        known = evidence(module, self.data.calibration, thinnings, self.data.task)
        sparse = build(network, thinned(network, module.export_weights(), thinnings, known))
        compensate(sparse, self.teacher, self.data.calibration, kept, fixed=fixed)
        return sparse

    def take_learned(self, network: Network, weights: Weights, candidate: Candidate) -> frozenset[str]:
        """Put what replacements learned from the teacher's parts into `weights`, where the candidate changes
        nothing else about them; return the layers that took it."""
        fixed: set[str] = set()
        canonical = self.bound.canonical(candidate)
        for site in (*self.bound.of_kind("block"), *self.bound.of_kind("structure")):
            option = canonical.get(site)
            if option == site.default or option == "drop":
                continue
            found = self._learned_part(site, option)
            if all(
                name in network.params and network.params[name].shape == found[name].shape for name in found
            ):
                weights.update(found)
                fixed.update(node.name for node in network.nodes if found.keys() & {*node.params})
        return frozenset(fixed)

    def _learned_part(self, site: Site, option: Option) -> Weights:
        """Return the weights that the part learned, empty where nothing was gained; learned once for each
        choice."""
        if (site.name, option) not in self._learned:
            network, weights = apply(
                self.bound, self.weights, Candidate.of({site.name: option}), self.saliency
            )
            assert weights is not None
            if site.kind == "block":
                block = self.bound.blocks[site.target]
                part = BlockPart(block.source, block.add)
            else:
                part = BlockPart(self.bound.network.by_name[site.target].inputs[0], site.target)
            found = learned(
                network, weights, part, self.teacher, self.data.calibration, seed=self.settings.seed
            )
            self._learned[site.name, option] = found or {}
        return self._learned[site.name, option]

    def train(
        self,
        module: GraphModule,
        epochs: float,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
        part: int = 0,
        thinnings: Mapping[str, Thinning] | None = None,
    ) -> DistilledStudent | None:
        """Distil `module` in place, its zeros and shared values held; return None when there is nothing to
        do.

        Layers of `thinnings` with a method that trains become sparse on the way. Each `part` of a training
        that is done in several sees the images in an order of its own.
        """
        if epochs <= 0:
            return None
        with placed(module, device_named(self.settings.train_on)), held(module):
            thinners = _thinners(module, thinnings or {})

            def report(done: int, total: int, loss: float) -> None:
                for thinner in thinners:
                    thinner(done, total, loss)
                if progress is not None:
                    progress("distil", done, total)

            settings = replace(self.settings, epochs=epochs, seed=self.settings.seed + part)
            run = distil(module, self.outputs, self.data, settings, progress=report, stop=stop)
            for thinner in thinners:
                thinner.settle()
            return run

    def quantized(self, module: GraphModule) -> GraphModule:
        """Return the student as it will be shipped: batch norms folded, codebooks found, 8-bit layers with
        calibrated ranges, as the space's `quantize` says; shared values are not rounded to others."""
        network, weights = fold_batch_norms(module.source_network, module.export_weights())
        assert weights is not None
        settings = self.bound.quantize
        if any(sharing_layers(network)):
            weights = shared(network, weights)
            settings = settings.model_copy(update={"equalise": False, "rounding": "nearest"})
        return _rounded(quantized(network, weights, self.data.calibration, settings))

    def _thinnings(self, module: GraphModule, candidate: Candidate) -> Mapping[str, Thinning]:
        return thinnings_of(self.bound, module.source_network, candidate)

    def trial(self, candidate: Candidate, epochs: float) -> Evaluation:
        """Return the accuracy on validation data after a short distillation, in the candidate's own
        precision."""
        module = self.start(candidate, trains=epochs > 0)
        self.train(module, epochs, thinnings=self._thinnings(module, candidate))
        return self.validated(self.quantized(module))

    def validated(self, module: GraphModule) -> Evaluation:
        """Return the accuracy on validation data, computed where students are trained."""
        return evaluate(module, self.data.validation, on=self.settings.train_on, task=self.data.task)

    def gone_on(self, candidate: Candidate, weights: Weights) -> GraphModule:
        """Return the student as an earlier training left it. Raises KeyError for the weights of another
        one."""
        network, _ = apply(self.bound, None, candidate)
        return build(network, weights)

    def rung(self, candidate: Candidate, weights: Weights | None, epochs: float, part: int) -> GraphModule:
        """Return the student distilled for `epochs` more: from `weights`, as an earlier rung left it, or from
        the teacher."""
        if weights is not None:
            module, thinnings = self.gone_on(candidate, weights), None
        else:
            module = self.start(candidate, trains=epochs > 0)
            thinnings = self._thinnings(module, candidate)
        self.train(module, epochs, part=part, thinnings=thinnings)
        return module

    def finish(
        self,
        candidate: Candidate,
        epochs: float,
        quantized_epochs: float,
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
        start: GraphModule | None = None,
    ) -> Finished | None:
        """Return the final student: long distillation, calibration, and distillation as it will be shipped:
        aware of 8 bits, centroids of shared weights moving.

        The latter is kept only where it helps on validation data. None when `stop` ended it early. Training
        begins with `start`, which it changes, or with the candidate cut from the teacher.
        """
        thinnings = None
        if start is None:
            start = self.start(candidate, trains=epochs > 0)
            thinnings = self._thinnings(start, candidate)
        module = start
        run = self.train(module, epochs, progress, stop, thinnings=thinnings)
        if run is not None and not run.finished:
            return None
        student = self.quantized(module)
        evaluation = self.validated(student)
        if quantized_epochs > 0 and _gains_by_tuning(student.source_network):
            tuned = build(student.source_network, student.export_weights())
            tuned.learn_quantizers()
            extra = self.train(tuned, quantized_epochs, progress, stop)
            tuned.settle_quantizers()
            if extra is not None and not extra.finished:
                return None
            tuned = _rounded(tuned)
            better = self.validated(tuned)
            if (better.accuracy, -better.loss) > (evaluation.accuracy, -evaluation.loss):
                student, evaluation = tuned, better
        return Finished(student.source_network, student.export_weights(), evaluation)


def _thinners(module: GraphModule, thinnings: Mapping[str, Thinning]) -> list[Thinner]:
    """Make one thinner for each method that trains."""
    params = {node.name: node.params[0] for node in module.source_network.nodes if node.name in thinnings}
    return [
        Thinner(
            module,
            method,
            {
                params[name]: (one.density, partial(mask_of, keep=one.keep))
                for name, one in thinnings.items()
                if one.method == method
            },
        )
        for method in METHODS
        if any(one.method == method for one in thinnings.values())
    ]


def _rounded(module: GraphModule) -> GraphModule:
    """Give shared values and the biases beside them the form in which they are stored; return the module
    itself where there are none."""
    network = module.source_network
    shares = any(sharing_layers(network))
    return build(network, rounded(network, module.export_weights())) if shares else module


def _gains_by_tuning(network: Network) -> bool:
    return bool(plan(network)) or any(sharing_layers(network))


@dataclass(frozen=True)
class Finished:
    """A trained student in its shipped form, with its accuracy on validation data."""

    network: Network
    weights: Weights
    validation: Evaluation
