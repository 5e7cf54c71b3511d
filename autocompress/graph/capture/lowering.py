"""An exported program → one of operations that are known or that nothing decomposes.

torch's own decompositions are applied to whatever the engine has no row for, so that `glu`, `addcmul` or an
operation of next year goes through as the arithmetic that it is. What the engine treats as one unit stays
whole: all known operations, and layers for which a row may come. On the way the program becomes
functional (no operation changes a value in place) and flat (what ran under `no_grad` or autocast is in line).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from autocompress.errors import TeacherError
from autocompress.graph.capture.rewriting import must_be_rewritten, op_name, rewrite
from autocompress.graph.operations import KNOWN, SILENT

Program = torch.export.ExportedProgram

UNITS = frozenset(
    """conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding conv_transpose1d
    conv_transpose2d.input conv_transpose3d.input linear bilinear batch_norm layer_norm group_norm
    instance_norm rms_norm scaled_dot_product_attention lstm.input gru.input rnn_tanh.input
    rnn_relu.input embedding embedding_bag avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d
    max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d prelu rrelu hardshrink softshrink tanhshrink threshold
    inverse linalg_inv linalg_solve linalg_cholesky linalg_det det linalg_eigh linalg_lstsq linalg_pinv
    linalg_svd linalg_qr""".split()
)
"""Layers that are kept whole even where they have no row yet."""

_ROUNDS = 3

_CONTROL_FLOW = {
    "cond": "compute both branches and choose with torch.where, or choose before the model is called",
    "while_loop": "write a Python loop of a fixed number of turns",
    "map_impl": "write the loop in Python, or as one operation over the whole tensor",
    "scan": "write a Python loop of a fixed number of turns",
    "associative_scan": "use torch.cumsum, or write a Python loop of a fixed number of turns",
}


def without_underscore(op: str) -> str | None:
    """Return the operation that an in-place one is a form of; None if it is not in place."""
    head, dot, overload = op.partition(".")
    return head.removesuffix("_") + dot + overload if head.endswith("_") and not op.startswith("_") else None


def is_known(program: Program) -> bool:
    """Return whether every operation of the program has a row as it stands."""
    kept = KNOWN | SILENT | _CASTS
    return all(
        node.op in ("placeholder", "output")
        or (node.op == "call_function" and _row_of(node.target) in kept and not must_be_rewritten(node))
        for node in program.graph.nodes
    )


_CASTS = frozenset({"to.dtype_layout", "to.device", "_to_copy", "type_as"})


def _row_of(target: Any) -> str:
    op = op_name(target)
    return without_underscore(op) or op


def lowered(program: Program) -> Program:
    """Return the program in functional form, of known operations wherever torch can decompose to them.

    Raises TeacherError for control flow that depends on values, and when torch fails to decompose.
    """
    _without_autocast(program)
    whole = KNOWN | SILENT | UNITS
    for _ in range(_ROUNDS):
        result = _decomposed(program, whole)
        in_vain = {op for node in result.graph.nodes for op in _decomposed_in_vain(node)} - whole
        if not in_vain:
            break
        whole |= in_vain
    for node in result.graph.nodes:
        _refuse_random(node)
    return result


def _decomposed(program: Program, whole: frozenset[str]) -> Program:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = program.run_decompositions(_table(whole))
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TeacherError(
            "the teacher's operations cannot be decomposed",
            why=f"torch.export: {first_line[:300]}",
            fix="write the part that is named with ordinary tensor operations",
        ) from error
    for node in program.graph.nodes:
        _refuse_control_flow(node)
    rewrite(program.graph)
    return program


def _decomposed_in_vain(node: fx.Node) -> list[str]:
    """Return the operation that an unknown one is a part of: it is simpler to run and to export whole."""
    origins = [str(source.target) for source in node.meta.get("from_node") or ()]
    if node.op != "call_function" or _row_of(node.target) in KNOWN or not origins:
        return []
    return [origins[-1].removeprefix("aten.").removesuffix(".default")] if "aten." in origins[-1] else []


def has_autocast(program: Program) -> bool:
    """Return whether a part of the program runs in lower precision."""
    return any(
        op_name(node.target) == "operator.wrap_with_autocast" and node.args[2] for node in program.graph.nodes
    )


def _without_autocast(program: Program) -> None:
    """Switch autocast off: networks compute in float32."""
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                if op_name(node.target) == "operator.wrap_with_autocast":
                    node.args = (*node.args[:2], False, *node.args[3:])


def _table(whole: frozenset[str]) -> Any:
    table = torch.export.default_decompositions()
    for operation in list(table):
        if isinstance(operation, OpOverload) and op_name(operation) in whole:
            del table[operation]
    return table


def _refuse_control_flow(node: fx.Node) -> None:
    if not isinstance(node.target, HigherOrderOperator):
        return
    name = node.target.name()
    raise TeacherError(
        f"the teacher uses torch's {name}, whose branches cannot be compressed",
        where="forward()",
        fix=_CONTROL_FLOW.get(name, "write that part with ordinary tensor operations"),
    )


def _refuse_random(node: fx.Node) -> None:
    if isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
        op = op_name(node.target)
        if op not in SILENT | UNITS:
            raise TeacherError(
                f"the teacher draws random numbers at inference ({op})",
                where="forward()",
                fix="give F.dropout training=self.training, and draw noise in training mode only",
            )
