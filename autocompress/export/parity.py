"""Whether an exported file computes what the module computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import StudentError
from autocompress.graph.module import GraphModule

FLOAT_ERROR = 1e-3
ROUNDED_ERROR = 0.05
ROUNDED_AGREEMENT = 0.9
_TIE = 0.01

Tensors = Sequence[Tensor]
Runner = Callable[[NDArray[np.float32]], NDArray[Any]]


@dataclass(frozen=True)
class Parity:
    """Hold errors, which are shares of the range (largest minus smallest) of the module's outputs.

    `agreement` is the share of examples whose best class is the same; a class that the module scores
    within 1 % of the range below its best one counts as the same.
    """

    max_error: float
    mean_error: float
    agreement: float
    examples: int

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def check_parity(
    module: nn.Module,
    run: Runner,
    batch: Tensor,
    *,
    rounds: bool,
    runtime_batch: int = 1,
    classes: bool = True,
) -> Parity:
    """Compare the module's outputs with the runtime's on the same examples.

    Args:
        module: in eval mode; computes with simulated quantization where the file has 8 bits.
        run: runs the exported file on a float32 array of `runtime_batch` examples.
        batch: examples `(N, …)`; a rest smaller than `runtime_batch` is left out.
        rounds: whether the file has 8-bit operations, or the runtime computes in half precision. A few
            values may be rounded to the neighbouring level then, so means and best classes are compared;
            floats are compared closely.
        classes: whether best classes are, too. On inputs that are noise all may be as good.

    Raises:
        StudentError: the outputs differ in shape, are not finite, or differ by more than 0.1 % of
            their range (with `rounds`: by 5 % on average, or in the best class of over 10 %).
    """
    count = len(batch) // runtime_batch * runtime_batch
    if count == 0:
        raise ValueError(f"{len(batch)} examples do not fill one runtime batch of {runtime_batch}")
    inputs = batch[:count].detach().cpu().float()
    with torch.no_grad():
        expected = module(inputs).double().numpy()
    pieces = [run(piece.contiguous().numpy()) for piece in inputs.split(runtime_batch)]
    actual = np.concatenate(pieces).astype(np.float64)
    parity = compare(expected, actual)
    _refuse(_failure(parity, rounds, classes), f"{count} examples")
    return parity


def check_calls(
    module: GraphModule, run_all: Callable[[list[NDArray[Any]]], list[NDArray[Any]]], calls: Sequence[Tensors]
) -> Parity:
    """Compare all outputs of a module and of its exported file, in floats; the worst output counts.

    Args:
        module: in eval mode, of any number of inputs and outputs.
        run_all: runs the exported file on the arrays of all inputs and returns those of all outputs.
        calls: the tensors of each call, as the file's inputs are shaped.

    Raises:
        StudentError: outputs differ in shape, are not finite, or differ by more than 0.1 % of their range.
    """
    expected, actual = [], []
    for tensors in calls:
        with torch.no_grad():
            expected.append([one.double().numpy() for one in module.outputs_of(list(tensors))])
        actual.append([np.asarray(one, np.float64) for one in run_all([one.numpy() for one in tensors])])
    pairs = zip(zip(*expected, strict=True), zip(*actual, strict=True), strict=True)
    found = [compare(np.stack(one), np.stack(other)) for one, other in pairs]
    parity = Parity(
        max_error=max(one.max_error for one in found),
        mean_error=max(one.mean_error for one in found),
        agreement=min(one.agreement for one in found),
        examples=len(calls),
    )
    _refuse(_failure(parity, rounds=False, classes=False), f"{len(calls)} calls")
    return parity


def _refuse(reason: str, where: str) -> None:
    if reason:
        raise StudentError(
            "the exported file computes something else than the model",
            where=where,
            why=reason,
            fix="export the student in 32 bits, or report the layer that differs",
        )


def compare(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> Parity:
    """Compare outputs; raise StudentError for outputs of other shapes or that are not finite."""
    if expected.shape != actual.shape:
        raise StudentError(
            "the exported file's output has another shape than the model's",
            why=f"{actual.shape} instead of {expected.shape}",
            fix="report it with the teacher: the export is wrong",
        )
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        raise StudentError(
            "the outputs are not finite", fix="check that the student's training did not diverge"
        )
    span = max(float(np.ptp(expected)), 1e-12)
    errors = np.abs(expected - actual) / span
    return Parity(
        max_error=float(errors.max()),
        mean_error=float(errors.mean()),
        agreement=_agreement(expected, actual, _TIE * span),
        examples=len(expected),
    )


def check_model(model: onnx.ModelProto) -> None:
    """Raise StudentError unless the ONNX checker accepts the model, shapes included."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise StudentError(
            "the exported model is not valid ONNX",
            why=reason,
            fix="report it with the teacher: the export is wrong",
        ) from error


def _agreement(expected: NDArray[np.float64], actual: NDArray[np.float64], tie: float) -> float:
    """Return the share of positions whose class, over axis 1, is the same."""
    if expected.ndim < 2:
        return 1.0
    chosen = np.take_along_axis(expected, actual.argmax(axis=1)[:, None], axis=1)[:, 0]
    return float((chosen >= expected.max(axis=1) - tie).mean())


def _failure(parity: Parity, rounds: bool, classes: bool) -> str:
    if not rounds:
        too_far = parity.max_error > FLOAT_ERROR
        return f"they differ by {parity.max_error:.2%} of the output range" if too_far else ""
    if parity.mean_error > ROUNDED_ERROR:
        return f"they differ by {parity.mean_error:.1%} of the output range on average"
    if classes and parity.agreement < ROUNDED_AGREEMENT:
        return f"the best class is the same for only {parity.agreement:.0%} of the examples"
    return ""
