"""The registry of exporters: which function writes which operation as ONNX."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from autocompress.errors import TeacherError
from autocompress.graph.network import Node, Quantizer


@dataclass(frozen=True)
class Tensor:
    """A computed value: its ONNX name and its shape at batch 1.

    `quantizer` is set when the value was rounded to 8 bits, and `is_quantized` when `name` holds the
    integers themselves.
    """

    name: str
    shape: Any
    quantizer: Quantizer | None = None
    is_quantized: bool = False


Exporter = Callable[..., "str | list[str] | Tensor"]
AnyExporter = TypeVar("AnyExporter", bound=Exporter)


Attributes = dict[str, Any]
"""Of an ONNX node, or the keywords of an operation."""

RULES: dict[str, Exporter] = {}


def exports(*ops: str) -> Callable[[AnyExporter], AnyExporter]:
    """Register a function `(emitter, node, *args, **kwargs) -> output name(s)` for these operations.

    The function's parameters after `node` are those of the ATen operation, with its defaults. A
    computed value arrives as `Tensor`, a parameter or constant as an array, a number as itself.

    Raises ValueError when an operation has an exporter already.
    """

    def register(function: AnyExporter) -> AnyExporter:
        for op in ops:
            if op in RULES:
                raise ValueError(f"operation {op!r} has an exporter already: {RULES[op].__name__}")
            RULES[op] = function
        return function

    return register


def rule_for(node: Node) -> Exporter:
    """Return the rule for a node. Raises TeacherError, naming the operations that can be exported, when
    `node.op` cannot."""
    if node.op not in RULES:
        raise TeacherError(
            f"operation {node.op} cannot be exported to ONNX",
            where=node.name,
            why="exporters exist for " + ", ".join(sorted(RULES)),
            fix="replace the operation in the teacher by one of these",
        )
    return RULES[node.op]


def call(node: Node, rule: Exporter, emitter: Any, args: tuple[Any, ...], kwargs: Attributes) -> Any:
    """Return what the rule's exporter returns; raise TeacherError for arguments that it has no place for."""
    try:
        inspect.signature(rule).bind(emitter, node, *args, **kwargs)
    except TypeError as error:
        raise not_expressible(node, f"its exporter: {error}") from error
    return rule(emitter, node, *args, **kwargs)


class NotExpressibleError(TeacherError):
    """An operation has an exporter, but not with these arguments."""


def not_expressible(node: Node, why: str) -> NotExpressibleError:
    """Return the error for an operation that has an exporter, but not with these arguments."""
    return NotExpressibleError(
        f"operation {node.op} cannot be exported to ONNX with these arguments",
        where=node.name,
        why=f"{why}; its arguments are {node.args} {dict(node.kwargs) or ''}".rstrip(),
        fix="change the teacher's layer to a form that ONNX has",
    )
