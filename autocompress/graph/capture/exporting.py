"""nn.Module → the program that `torch.export` makes of it, with errors that say what to change."""

from __future__ import annotations

import inspect
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.errors import TeacherError
from autocompress.graph.capture.example import Example, called
from autocompress.graph.capture.fixed_batch import BATCHES
from autocompress.graph.capture.signature import Signature, Tree, names_in, taken_apart

logger = logging.getLogger(__name__)

EXPORT_BATCH = 2


@dataclass(frozen=True)
class ExportedModule:
    """A program of all tensors of the example in their order; `signature` is None for one in and one out.

    Where torch exports for one batch size alone, `twin` is the program of another.
    """

    program: torch.export.ExportedProgram
    signature: Signature | None
    twin: torch.export.ExportedProgram | None = None


def exported(module: nn.Module, example: Example) -> ExportedModule:
    """Return the module's program at any batch size.

    A module that takes or returns more than one tensor is changed: its `forward` takes and returns them one
    after the other. Raises TeacherError with torch's reason when it cannot be captured.
    """
    problem: TeacherError | None = None
    if example.tree is None:
        try:
            program, twin = _programs(module, example)
            if _returns_one_tensor(program):
                return ExportedModule(program, None, twin)
        except TeacherError as error:  # Of a result that torch knows no structure of, or for good.
            problem = error
    trees: list[Tree] = []
    arguments = example.tree or {"dict": [[_only_argument(module), {"tensor": 0}]]}
    _take_and_return_tensors(module, example, trees)
    try:
        program, twin = _programs(module, example)
    except TeacherError as error:
        raise problem or error from error
    names = ("input",) if example.tree is None else _unique(names_in(example.tree))
    outputs = _unique(_output_names(trees[-1]), names)
    return ExportedModule(program, Signature(names, outputs, arguments, trees[-1]), twin)


def _only_argument(module: nn.Module) -> str:
    """Return the name of the first argument of `forward`."""
    return next(iter(inspect.signature(module.forward).parameters), "input")


def _returns_one_tensor(program: torch.export.ExportedProgram) -> bool:
    spec = program.call_spec.out_spec
    last: Any = list(program.graph.nodes)[-1].args[0]
    if spec is None or not spec.is_leaf() or not isinstance(last[-1], fx.Node):
        return False
    value = last[-1].meta["val"]
    return isinstance(value, Tensor) and value.is_floating_point()


def _take_and_return_tensors(module: nn.Module, example: Example, trees: list[Tree]) -> None:
    original = module.forward

    def forward(*tensors: Tensor) -> tuple[Any, ...]:
        results, tree = taken_apart(called(original, example.tree, list(tensors)))
        trees.append(tree)
        return tuple(results)

    module.forward = forward


def _output_names(tree: Tree) -> list[str]:
    names = names_in(tree)
    return [name if name and not name[0].isdigit() else f"output_{name}".rstrip("_") for name in names]


def _unique(wanted: Any, taken: tuple[str, ...] = ()) -> tuple[str, ...]:
    names: list[str] = []
    for name in wanted:
        count, unique = 0, name
        while unique in (*names, *taken):
            count += 1
            unique = f"{name}_{count}"
        names.append(unique)
    return tuple(names)


def _programs(
    module: nn.Module, example: Example
) -> tuple[torch.export.ExportedProgram, torch.export.ExportedProgram | None]:
    """Return the program of any batch size, or those of two fixed ones."""
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    try:
        return _program(module, example, EXPORT_BATCH, torch.export.Dim("batch")), None
    except TeacherError:
        raise
    except Exception as error:
        if "specialized" in str(error):
            try:
                first, second = (_program(module, example, batch, None) for batch in BATCHES)
                return first, second
            except Exception:
                logger.debug("fixed batches fail, too", exc_info=True)
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TeacherError(
            "the teacher cannot be traced",
            where=type(module).__name__,
            why=f"torch.export: {first_line[:300]}",
            fix=_fix(error),
        ) from error


def _program(module: nn.Module, example: Example, batch: int, dimension: Any) -> torch.export.ExportedProgram:
    sizes: Any = tuple(
        {0: dimension} if dimension is not None and example.follows_batch(one) else None
        for one in example.tensors
    )
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(
            module,
            tuple(example.at(batch)),
            dynamic_shapes=sizes if "forward" not in vars(module) else (sizes,),
            strict=False,
        )


def _fix(error: Exception) -> str:
    text = f"{type(error).__name__} {error}"
    if "data-dependent" in text or "GuardOnDataDependent" in text:
        return "replace branches on the values of tensors by torch.where, and .item() by tensor arithmetic"
    if "Constraints violated" in text or "specialized" in text:
        return "make forward() work for any batch size: no branch on it, x.shape[0] instead of a number"
    if "same dtype" in text or ("dtype" in text and "Half" in text):
        return "let forward() compute in the type of its input: without .half(), .bfloat16() or .double()"
    return "make forward() run on any batch size, without branches on the values of tensors"
