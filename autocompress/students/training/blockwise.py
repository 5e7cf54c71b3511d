"""Block-wise distillation: what replaces a part of the teacher learns to compute what that part computes.

A few hundred steps of regression from the values that the teacher's part reads to those that it gives, on
calibration images (Li et al. 2020, arXiv:1911.13053; Molchanov et al. 2022, arXiv:2107.10624). It needs no
labels, costs one part's passes and not the network's, and its result serves every candidate with that choice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from autocompress.cost.kernels import macs
from autocompress.graph.module import GraphModule, build
from autocompress.graph.network import INPUT, Network, Weights, batch_is_second, redirect
from autocompress.problem.splits import Split
from autocompress.students.training.distill import one_cycle
from autocompress.students.training.precision import autocast, layout_for, uses_bfloat16

STEPS, BATCH = 200, 64
LEARNING_RATE = 3e-3
MOST_MACS = 1e12
"""Multiply-adds that learning a part may take; large parts take fewer steps."""

MOST_VALUE_BYTES = 2**26
_PASSES = 3
HELD_OUT = 4
"""One in so many images is kept to judge by."""


@dataclass(frozen=True)
class BlockPart:
    """Name the part from the value `source` to the value `output`, both of teacher and student."""

    source: str
    output: str


def region(network: Network, part: BlockPart) -> Network | None:
    """Return the part as a network of its own; None where it reads more than its source."""
    needed, stack = set[str](), [part.output]
    while stack:
        name = stack.pop()
        if name in needed or name == part.source:
            continue
        if name == INPUT:
            return None
        needed.add(name)
        stack.extend(network.by_name[name].inputs)
    nodes = [node for node in network.nodes if node.name in needed]
    read = {name for node in nodes for name in node.params}
    return replace(
        network,
        input_shape=network.shape_of(part.source),
        nodes=redirect(nodes, {part.source: INPUT}),
        output=part.output,
        params={name: spec for name, spec in network.params.items() if name in read},
        input_quantizer=None,
    )


def learned(
    network: Network,
    weights: Weights,
    part: BlockPart,
    teacher: GraphModule,
    examples: Split,
    steps: int = STEPS,
    seed: int = 0,
) -> Weights | None:
    """Return the weights of the part of `network` after regression on the teacher's values; None where they
    are not better than those given, by the squared error on images that were not learned from, or where the
    part is no region of its own, or has the batch on its second axis.

    Adam with one cycle of the learning rate, in at most `steps` steps. The arguments are not modified. Equal
    arguments give equal weights.
    """
    own = region(network, part)
    if own is None or part.source not in (INPUT, *teacher.source_network.by_name):
        return None
    shapes = (teacher.source_network.shape_of(value) for value in (part.source, part.output))
    if any(map(batch_is_second, shapes)):
        return None
    steps = min(steps, int(MOST_MACS / (_PASSES * BATCH * max(1, macs(own)))))
    inputs, targets = _recorded(teacher, part, examples)
    held = torch.arange(len(inputs)) % HELD_OUT == 0
    if held.all():
        return None
    module = build(own, {name: weights[name] for name in own.params})
    before = _error(module, inputs, targets, held)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _regress(module, inputs[~held], targets[~held], steps)
    if not _error(module, inputs, targets, held) < before:
        return None
    return module.export_weights()


def _recorded(teacher: GraphModule, part: BlockPart, examples: Split) -> tuple[Tensor, Tensor]:
    """Return what the teacher reads and gives, for as many examples as fit."""
    inputs, targets, taken = [], [], 0
    with torch.no_grad():
        for images, _ in examples.batches(BATCH):
            values = {INPUT: teacher.rounded_input(images)}
            for _, node in teacher.steps(values, keep={part.source, part.output}):
                if node.name == part.output:
                    break
            inputs.append(values[part.source])
            targets.append(values[part.output])
            taken += sum(4 * values[name].numel() for name in (part.source, part.output))
            if taken > MOST_VALUE_BYTES:
                break
    return torch.cat(inputs), torch.cat(targets)


def _regress(module: GraphModule, inputs: Tensor, targets: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    scale = targets.var().clamp_min(1e-12)
    half, layout = uses_bfloat16("auto"), layout_for(module, inputs[:2])
    inputs = inputs.contiguous(memory_format=layout)
    module.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * one_cycle(step / steps)
        at = torch.randint(len(inputs), (min(BATCH, len(inputs)),))
        optimizer.zero_grad(set_to_none=True)
        with autocast(half):
            outputs = module(inputs[at])
        (functional.mse_loss(outputs.float(), targets[at]) / scale).backward()
        optimizer.step()
    module.eval()


def _error(module: GraphModule, inputs: Tensor, targets: Tensor, held: Tensor) -> float:
    """Return the mean squared error on the examples held out, with the batch norms' statistics of the
    others."""
    momentum = module.batch_norm_momentum
    module.train()
    module.batch_norm_momentum = 1.0
    with torch.no_grad():
        module(inputs[~held])
        module.eval()
        error = float(functional.mse_loss(module(inputs[held]), targets[held]))
    module.batch_norm_momentum = momentum
    return error
