"""A few ATen operations → a small ONNX model of them alone, by `torch.onnx`.

It knows far more operations than this package has exporters for. Weights are inputs of the model, so that
equal operations are exported once in a process, whatever their weights are.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import onnx
import onnx.inliner
import onnx.version_converter
import torch
from torch import nn

from autocompress.graph.operators import dtype_named, implementation

_KEPT_PARTS = 1024


@dataclass(frozen=True)
class PartInput:
    """A tensor that a part reads; a complex one is given as pairs of real numbers."""

    index: int
    is_complex: bool = False


@dataclass(frozen=True)
class Local:
    """Name what an earlier step of the same part computed."""

    step: int


@dataclass(frozen=True)
class Step:
    """One operation of a part; arguments are `PartInput`, `Local`, plain values and tuples of these."""

    op: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class OnnxPart:
    """Hold operations in order, the last of which computes the part's outputs; shapes and dtypes of its
    inputs."""

    steps: tuple[Step, ...]
    shapes: tuple[tuple[int, ...], ...]
    types: tuple[str, ...]


class NoOnnxFormError(Exception):
    """Say why `torch.onnx` cannot express a part."""


def part_model(part: OnnxPart, opset: int) -> onnx.ModelProto:
    """Return the part as an ONNX model without functions. Raises NoOnnxFormError."""
    content = _exported(part, opset)
    if isinstance(content, str):
        raise NoOnnxFormError(content)
    return onnx.load_from_string(content)


@lru_cache(maxsize=_KEPT_PARTS)
def _exported(part: OnnxPart, opset: int) -> bytes | str:
    """Return the serialised model, or why there is none."""
    examples = tuple(
        torch.zeros(shape, dtype=dtype_named(f"dtype:{kind}"))
        for shape, kind in zip(part.shapes, part.types, strict=True)
    )
    try:
        with _quietly(), torch.no_grad():
            program = torch.onnx.export(
                _PartModule(part).eval(), examples, dynamo=True, opset_version=opset, verbose=False
            )
        assert program is not None
        model = onnx.inliner.inline_local_functions(program.model_proto)
        version = next(one.version for one in model.opset_import if one.domain == "")
        if version != opset:
            model = onnx.version_converter.convert_version(model, opset)
        return model.SerializeToString()  # type: ignore[no-any-return]
    except Exception as error:
        return _reason(error)


class _PartModule(nn.Module):
    def __init__(self, part: OnnxPart) -> None:
        super().__init__()
        self.steps = part.steps

    def forward(self, *inputs: torch.Tensor) -> Any:
        values: list[Any] = []
        for step in self.steps:
            function = operator.getitem if step.op == "getitem" else implementation(step.op)
            args = [_filled(arg, inputs, values) for arg in step.args]
            kwargs = {key: _filled(value, inputs, values) for key, value in step.kwargs}
            values.append(function(*args, **kwargs))
        return values[-1]


def _filled(arg: Any, inputs: Sequence[torch.Tensor], values: Sequence[Any]) -> Any:
    if isinstance(arg, PartInput):
        tensor = inputs[arg.index]
        return torch.view_as_complex(tensor) if arg.is_complex else tensor
    if isinstance(arg, Local):
        return values[arg.step]
    if isinstance(arg, tuple):
        return [_filled(item, inputs, values) for item in arg]
    return dtype_named(arg) if isinstance(arg, str) else arg


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return reason.partition(" Failure message")[0][:200]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep silent: `torch.onnx` reports on every step, by warnings and by logs of several libraries."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
