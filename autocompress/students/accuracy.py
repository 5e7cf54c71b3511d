"""Accuracy of a module or of an exported file, and batch-norm statistics of a changed network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.graph.module import GraphModule
from autocompress.problem.splits import Batch, Split
from autocompress.problem.tasks.classification import Classification
from autocompress.problem.tasks.measuring import Tally, tallied
from autocompress.problem.tasks.task import Task
from autocompress.problem.teacher import eval_mode
from autocompress.students.training.precision import (
    CPU,
    autocast,
    device_named,
    layout_for,
    placed,
    uses_bfloat16,
    without_tf32,
)
from autocompress.students.training.settings import DeviceName, Precision

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Evaluation:
    """Hold what was evaluated: `accuracy` is the score by the task's metric, for classes the share in [0, 1]
    that is right, and `accuracy_std_err` its standard error; `loss` is the mean loss over `count`
    examples."""

    accuracy: float
    accuracy_std_err: float
    loss: float
    count: int


def evaluate(
    model: nn.Module,
    split: Split,
    batch_size: int = EVALUATION_BATCH,
    precision: Precision = "float32",
    on: DeviceName = "cpu",
    task: Task | None = None,
) -> Evaluation:
    """Return the score in eval mode, by default top-1 accuracy; the module is left in the mode it came in.

    Outputs that are not finite count as wrong and make the loss infinite. `precision` "auto" is
    faster where the processor has bfloat16, and good enough to compare candidates. It may be computed
    `on` a GPU, without TF32.
    """
    device = device_named(on)
    half = autocast(uses_bfloat16(precision, device), device)
    with placed(model, device), eval_mode(model), torch.inference_mode(), half, without_tf32(device):
        outputs = (
            (model(images).cpu(), labels) for images, labels in _laid_out(model, split, batch_size, device)
        )
        return summary(tallied(task or Classification(), outputs))


def _laid_out(model: nn.Module, split: Split, batch_size: int, device: torch.device = CPU) -> Iterator[Batch]:
    layout = None
    for images, labels in split.batches(batch_size):
        images = images.to(device)
        layout = layout or layout_for(model, images)
        yield images.contiguous(memory_format=layout), labels


def evaluate_session(
    run: Callable[[NDArray[Any]], NDArray[Any]],
    split: Split,
    batch_size: int = 1,
    task: Task | None = None,
) -> Evaluation:
    """Return the same for an exported file: `run` takes float32 `(N, C, H, W)` and gives the outputs.

    `batch_size` is the one the file was exported with.
    """

    def outputs() -> Iterator[Batch]:
        for images, labels in split.batches(batch_size):
            yield torch.from_numpy(np.asarray(run(images.numpy()), dtype=np.float32)), labels

    return summary(tallied(task or Classification(), outputs()))


def summary(tally: Tally) -> Evaluation:
    """Return what was seen of a network's outputs as an evaluation."""
    if not tally.count:
        raise ValueError("there is nothing to evaluate on: the split is empty")
    score, std_err = tally.score()
    return Evaluation(score, std_err, tally.loss, tally.count)


def recalibrate_batch_norms(module: nn.Module, batches: Iterable[Batch]) -> int:
    """Set running means and variances to their averages over the batches; return how many were used.

    Weights are not touched and the module is left in eval mode. Without batch norms nothing is read.
    A network whose layers were changed keeps statistics of the old one, which alone can cost most
    of its accuracy (Yu and Huang 2019, arXiv:1903.05134).
    """
    if isinstance(module, GraphModule):
        return _recalibrate_graph(module, batches)
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    count = _run_through(module, batches) if norms else 0
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
    return count


def _recalibrate_graph(module: GraphModule, batches: Iterable[Batch]) -> int:
    if not any(node.op == "batch_norm" for node in module.source_network.nodes):
        return 0
    before = module.batch_norm_momentum
    module.train()

    def average(step: int) -> None:
        module.batch_norm_momentum = 1 / (step + 1)

    try:
        return _run_through(module, batches, average)
    finally:
        module.batch_norm_momentum = before
        module.eval()


def _run_through(
    module: nn.Module, batches: Iterable[Batch], before_step: Callable[[int], None] = lambda _: None
) -> int:
    count = 0
    with torch.no_grad():
        for images, _ in batches:
            if len(images) == 1 and count:
                continue  # A last one of one image may have no variance.
            before_step(count)
            module(images)
            count += 1
    return count


def logits_of(model: nn.Module, split: Split, batch_size: int = EVALUATION_BATCH) -> Tensor:
    """Return the outputs for the whole split, in order, in eval mode: `(size, classes)` float32."""
    with eval_mode(model), torch.no_grad():
        return torch.cat([model(images).float() for images, _ in _laid_out(model, split, batch_size)])
