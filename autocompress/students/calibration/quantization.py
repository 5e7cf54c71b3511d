"""A network in floating point → the same in 8 bits, from calibration data and without training."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import BINARIZE, Network, Weights
from autocompress.problem.space_rules import Quantize
from autocompress.problem.splits import Batch, Split
from autocompress.problem.teacher import eval_mode
from autocompress.students.calibration.activation_ranges import Method, observe, ranges_of
from autocompress.students.calibration.adaround import fit_rounding
from autocompress.students.calibration.layer_inputs import CALIBRATION_BATCH
from autocompress.transforms.families.equalise import equalised
from autocompress.transforms.families.quantize import plan, with_ranges


def quantized(
    network: Network,
    weights: Weights,
    examples: Split,
    settings: Quantize,
    reference: GraphModule | None = None,
) -> GraphModule:
    """Return a network whose batch norms are folded, as it will be shipped: with the quantizers of its plan.

    `settings.ranges` names a method of `activation_ranges`, or is `auto`: each is tried, and that is taken
    whose outputs diverge least from those in floating point on the examples. Without layers of 8 bits the
    network stays as it is. `reference` is the network that it should compute like, value by value; without
    one, itself before it was quantized. The arguments are not modified.
    """
    values = plan(network)
    if not values:
        return build(network, weights)
    if settings.equalise:
        if reference is not None:
            raise ValueError("equalised layers cannot be compared with those of a reference")
        weights = equalised(network, weights)
    rounded = build(network, weights)
    reference = reference or rounded
    batches = list(examples.batches(CALIBRATION_BATCH))
    methods = get_args(Method) if settings.ranges == "auto" else (settings.ranges,)
    seen = observe(rounded, values, batches)
    binary = {
        node.name: (0.0, float(weights[node.params[0]][0])) for node in network.nodes if node.op == BINARIZE
    }
    students = [
        build(with_ranges(network, {**ranges_of(seen, method), **binary}), weights) for method in methods
    ]
    student = students[0] if len(students) == 1 else _closest(students, reference, batches)
    fit_rounding(
        student,
        reference,
        examples,
        adaptive=settings.rounding == "adaptive",
        biases=settings.correct_biases,
    )
    return student


def _closest(students: list[GraphModule], reference: GraphModule, batches: list[Batch]) -> GraphModule:
    images = [images for images, _ in batches]
    targets = [_log_probabilities(reference, one) for one in images]
    return min(students, key=lambda student: _divergence(student, images, targets))


def _log_probabilities(module: GraphModule, images: Tensor) -> Tensor:
    with eval_mode(module), torch.inference_mode():
        return functional.log_softmax(module(images).float(), dim=-1)


def _divergence(student: GraphModule, batches: list[Tensor], targets: list[Tensor]) -> float:
    total = 0.0
    for images, target in zip(batches, targets, strict=True):
        found = _log_probabilities(student, images)
        total += float(functional.kl_div(found, target, log_target=True, reduction="sum"))
    return total
