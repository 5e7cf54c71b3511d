"""Accuracy of a candidate without training: cut, fitted in closed form, batch norms recalibrated, quantized.

Replaced blocks and layers take what they learned from the teacher's (`blockwise`), once for each choice.
The candidate runs once over calibration images. On the way every layer whose input is no longer the
teacher's is fitted to what the teacher computes (`compensation`), batch norms after the first change take
the statistics that they meet, and ranges for 8-bit values are collected. What lies before the first
change keeps the teacher's weights and statistics. Then it is evaluated on held-out training images, batch
by batch, and stopped where it cannot reach its rival any more (`racing`). Both passes go on from the end
of the last block that the candidate shares with an earlier one (`prefixes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autocompress.files import JsonObject
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import INPUT, Network, Node
from autocompress.problem.candidate import Candidate
from autocompress.problem.splits import Batch, Split
from autocompress.problem.tasks.measuring import Tally
from autocompress.problem.tasks.metric import SHARE
from autocompress.students.accuracy import Evaluation, summary
from autocompress.students.calibration.activation_ranges import Range, range_of
from autocompress.students.calibration.compensation import (
    KeptChannels,
    changed_layers,
    changed_values,
    fit_layer,
    is_normalised,
)
from autocompress.students.calibration.layer_inputs import (
    Values,
    batch_that_fits,
    layer_outputs,
    solvable_layers,
)
from autocompress.students.prefix_cache import PREFIX_BYTES, Kept, PrefixCache, cuts, keys
from autocompress.students.racing import compared
from autocompress.students.training.precision import layout_for
from autocompress.transforms.apply import apply, kept_channels
from autocompress.transforms.families.fold import fold_batch_norms
from autocompress.transforms.families.quantize import plan, with_ranges
from autocompress.transforms.families.sparsity import sharing_layers, sparse_layers

if TYPE_CHECKING:
    from autocompress.students.builder import StudentBuilder

FIT_IMAGES = 256
FIT_ROWS, FEWEST_ROWS = 4096, 1024
TARGET_BYTES = 256 * 2**20
CANDIDATES_KEPT = 2
"""Of later batches nothing is kept, so that there is room for so many candidates."""
BATCH = 250
IMAGE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Rival:
    """Say what a candidate has to reach: the most accurate candidate known that is at least as fast."""

    key: str
    accuracy: float

    @classmethod
    def from_json(cls, data: JsonObject | None) -> Rival | None:
        return None if data is None else cls(str(data["key"]), float(data["accuracy"]))


@dataclass(frozen=True)
class Shot:
    """Hold one evaluation: `evaluation` counts the images that were seen; where `stopped`, not all of them,
    and the accuracy is then the rival's less the difference on these, and its standard error that of the
    difference."""

    evaluation: Evaluation
    stopped: bool


@dataclass
class OneShot:
    """Evaluate candidates of a builder. One per process.

    `images` limits the held-out images, `fit_images` the calibration images that layers are fitted to (fewer
    where values are large, see `batch_that_fits`, and so with `batch`), `fit_rows` the places of them that a
    layer is fitted at; `maximum_bytes` what is kept of shared blocks, 0 for nothing. A race is looked at
    after `batch` images, and then whenever their number has doubled.
    """

    builder: StudentBuilder
    images: int | None = None
    maximum_bytes: int = PREFIX_BYTES
    fit_images: int = FIT_IMAGES
    batch: int = BATCH
    fit_rows: int = FIT_ROWS
    _targets: dict[str, Tensor] = field(default_factory=dict, init=False)
    _seen: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.cache = PrefixCache(self.maximum_bytes)
        most = batch_that_fits(self.builder.teacher.source_network)
        self.fit_images, self.batch = min(self.fit_images, most), min(self.batch, most)

    def __call__(self, candidate: Candidate, rival: Rival | None = None) -> Shot:
        """Return the accuracy of a candidate in its own precision; with a rival only as far as it is
        needed."""
        student = self.student(candidate)
        known = None if rival is None else self._seen.get(rival.key)
        task = self.builder.data.task
        total, seen = self._held_out.size, Tally(task)
        look = self.batch
        labels = iter(self._held_out.labels.split(self.batch))
        images = (images for images, _ in self._batches())
        for logits in self.outputs(student, images, "held-out"):
            seen.add(logits, next(labels))
            if rival is None or seen.count < look or seen.count == total:
                continue
            look = 2 * seen.count
            theirs = None if known is None else known[: seen.count]
            found = compared(task, seen.statistics, theirs, rival.accuracy, total)
            if found.is_hopeless:
                accuracy = rival.accuracy + found.mean
                if task.metric.unit == SHARE:
                    accuracy = min(max(accuracy, 0.0), 1.0)
                return Shot(Evaluation(accuracy, found.std_err, seen.loss, seen.count), stopped=True)
        self._seen[candidate.key] = seen.statistics
        return Shot(summary(seen), stopped=False)

    def student(self, candidate: Candidate) -> GraphModule:
        """Return the candidate as it is evaluated: batch norms folded, 8-bit values with their quantizers.

        Layers that are sparse, share values or have fewer than 8 bits are made as for training, and such a
        student shares no block with others.
        """
        builder = self.builder
        network, weights = apply(builder.bound, builder.weights, candidate, builder.saliency)
        assert weights is not None
        if network.steps or any(sparse_layers(network)) or any(sharing_layers(network)):
            return builder.quantized(builder.start(candidate))
        fixed = builder.take_learned(network, weights, candidate)
        module = build(network, weights)
        kept = kept_channels(builder.bound, candidate, builder.saliency)
        ranges = self._fitted(module, kept, fixed)
        folded, weights = fold_batch_norms(network, module.export_weights())
        assert weights is not None
        return build(with_ranges(folded, ranges) if plan(folded) else folded, weights)

    @cached_property
    def _held_out(self) -> Split:
        """Return the images that are held out, in an order in which every prefix holds each class in its
        share."""
        split = self.builder.data.validation
        return split.subset(split.size if self.images is None else min(self.images, split.size))

    def _batches(self) -> Iterable[Batch]:
        """Return the held-out images in order, read again for every candidate where they are too many to
        keep."""
        image_bytes = 4 * math.prod(self.builder.data.input_shape)
        return self._kept_batches if self._held_out.size * image_bytes <= IMAGE_BYTES else self._read()

    @cached_property
    def _kept_batches(self) -> list[Batch]:
        return list(self._read())

    def _read(self) -> Iterator[Batch]:
        return self._held_out.batches(self.batch)

    @cached_property
    def _examples(self) -> Tensor:
        return next(iter(self.builder.data.calibration.batches(self.fit_images)))[0]

    @cached_property
    def _rows(self) -> int:
        """Return how many places a layer is fitted at; what the teacher computes there is kept for all
        layers."""
        network = self.builder.teacher.source_network
        channels = sum(network.params[node.params[0]].shape[0] for node in solvable_layers(network))
        return max(FEWEST_ROWS, min(self.fit_rows, TARGET_BYTES // (4 * max(1, channels))))

    def outputs(self, student: GraphModule, batches: Iterable[Tensor], of: str) -> Iterator[Tensor]:
        """Yield what a student computes for one batch of images after the other, float32.

        `of` names the images: equal names, equal batches.
        """
        network = student.source_network
        layout = torch.contiguous_format
        places = cuts(network) if self.maximum_bytes else {}
        digests = dict[int, str]()
        example_bytes = 4 * sum(math.prod(network.shape_of(value)[1:]) for value in places.values())
        seen = 0
        for number, images in enumerate(batches):
            if number == 0:
                layout = layout_for(student, images)
                digests = keys(student, f"{of} {layout}") if places else {}
            seen += len(images)
            if seen * example_bytes * CANDIDATES_KEPT > self.maximum_bytes:
                places = {}  # The first batches are what a race reads most often.
            known = {cut: f"{digests[cut]} {number}" for cut in places}
            found = self.cache.longest(places, known) if places else None
            with torch.inference_mode():
                start, values = (0, Values()) if found is None else found[:2]
                if found is None:
                    values[INPUT] = student.rounded_input(images.contiguous(memory_format=layout))
                for index, _ in student.steps(values, start, keep={network.output}):
                    if index + 1 in places:
                        self.cache.put(known[index + 1], Kept(values[places[index + 1]]))
            yield values[network.output].float()

    def _fitted(self, module: GraphModule, kept: KeptChannels, fixed: frozenset[str]) -> dict[str, Range]:
        """Fit the module in place, but for the layers that are `fixed`; return the ranges of the values that
        can be 8-bit."""
        network, teacher = module.source_network, self.builder.teacher
        changed = changed_values(network, teacher.source_network)
        layers = {node.name for node in changed_layers(network, teacher.source_network, kept)} - fixed
        sources = _sources_of_ranges(network)
        if not changed and not sources:
            return {}
        self._require_targets(layers)

        def describe(node: Node) -> str:
            return _described(network, node, node.name in layers, changed, kept)

        def serves(cut: int, earlier: Kept) -> bool:
            return _all_known(network, cut, sources, earlier.ranges)

        layout = layout_for(module, self._examples)
        places = cuts(network) if self.maximum_bytes else {}
        known = keys(module, f"fit {layout}", describe) if places else {}
        found = self.cache.longest(places, known, serves) if places else None
        if found is None:
            start, values = 0, {INPUT: self._examples.contiguous(memory_format=layout)}
            ranges = {INPUT: range_of(INPUT, values[INPUT])} if INPUT in sources else {}
        else:
            start, values, earlier = found
            ranges = dict(earlier.ranges)
            _take_over(module, earlier.weights)
        used = {name for node in network.nodes[:start] for name in node.params}

        def prepare(node: Node, at_hand: Values) -> None:
            module.training = node.name in changed  # Asked by batch norms, which are no submodules.
            if node.name in layers:
                fit_layer(module, node, at_hand, self._targets[node.name], kept, limit=self._rows)

        module.batch_norm_momentum = 1.0
        with torch.no_grad():
            for index, node in module.steps(values, start, visit=prepare):
                used.update(node.params)
                if node.name in sources:
                    ranges[sources[node.name]] = range_of(node.name, values[node.name])
                if index + 1 in places:
                    weights = {name: module.tensor_named(name).detach().clone() for name in used}
                    self.cache.put(known[index + 1], Kept(values[places[index + 1]], weights, dict(ranges)))
        module.batch_norm_momentum = None
        module.eval()
        return ranges

    def _require_targets(self, layers: set[str]) -> None:
        teacher = self.builder.teacher
        missing = [
            node for node in teacher.source_network.nodes if node.name in layers - self._targets.keys()
        ]
        if missing:
            self._targets.update(layer_outputs(teacher, missing, self._examples, self._rows))


def _sources_of_ranges(network: Network) -> dict[str, str]:
    """Return {value of the network: name of the same value when batch norms are folded}, for all that are
    rounded when every layer that can has 8 bits; empty where none has."""
    if all(node.bits == 32 for node in network.nodes):
        return {}
    folded, _ = fold_batch_norms(network, None)
    low = folded.with_nodes(node.but(bits=8) for node in folded.nodes)
    found = {}
    for name in plan(folded) | plan(low):
        users = network.users[name]
        merged = (
            len(users) == 1
            and users[0] not in folded.by_name
            and network.by_name[users[0]].op == "batch_norm"
        )
        found[users[0] if merged else name] = name
    return found


def _described(
    network: Network, node: Node, is_fitted: bool, changed: frozenset[str], kept: KeptChannels
) -> str:
    """Return all that decides what fitting makes of a node; its bits do not."""
    mask = kept[node.name].tobytes().hex() if is_fitted and node.name in kept else ""
    flags = (is_fitted, node.name in changed, is_fitted and is_normalised(network, node), mask)
    return f"{node.but(bits=32)!r} {flags}"


def _all_known(network: Network, cut: int, sources: Mapping[str, str], ranges: Mapping[str, Range]) -> bool:
    """Return whether all ranges are known that are asked for before a cut."""
    before = (INPUT, *(node.name for node in network.nodes[:cut]))
    return all(sources[name] in ranges for name in before if name in sources)


def _take_over(module: GraphModule, weights: Mapping[str, Tensor]) -> None:
    """Take over the fitted parameters and statistics of the nodes before a cut."""
    with torch.no_grad():
        for name, value in weights.items():
            module.tensor_named(name).copy_(value)
