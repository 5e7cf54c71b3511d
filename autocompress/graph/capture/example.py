"""What a module is called with: tensors of given shapes and types, at any batch size."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TeacherError
from autocompress.graph.capture.signature import Tree, names_in, put_together, taken_apart
from autocompress.graph.network import INPUT, Input, unique_name

RUN_BATCH = 2


@dataclass(frozen=True)
class Example:
    """The tensors of one call, and how they make up its arguments, by name.

    `tree` is None for a module that is called with one tensor alone.
    """

    tensors: tuple[Tensor, ...]
    tree: Tree = None

    @classmethod
    def of_shape(cls, shape: tuple[int, ...]) -> Example:
        """Return one float tensor; `shape` is without the batch."""
        return cls((torch.zeros(1, *shape),))

    @classmethod
    def of_call(cls, module: nn.Module, given: Any) -> Example:
        """Return a call with `given`: a tensor, a tuple of arguments, or a dict of them by name.

        Raises TeacherError where `forward` takes no such arguments or no tensor is among them.
        """
        if isinstance(given, Tensor):
            given = (given,)
        args, kwargs = ((), dict(given)) if isinstance(given, Mapping) else (tuple(given), {})
        try:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
        except TypeError as error:
            raise TeacherError(
                "the teacher's forward() does not take the example inputs",
                where=type(module).__name__,
                why=str(error),
                fix="give a tensor, a tuple of arguments or a dict of arguments by name",
            ) from error
        tensors, tree = taken_apart(dict(bound.arguments))
        if not tensors:
            raise TeacherError(
                "the example inputs hold no tensor",
                where=type(module).__name__,
                fix="give a tensor, a tuple of arguments or a dict of arguments by name",
            )
        alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and len(bound.arguments) == 1
        plain = alone and tensors[0].is_floating_point()
        return cls(tuple(one.detach().cpu() for one in tensors), None if plain else tree)

    @property
    def batch(self) -> int:
        return self.tensors[0].shape[0] if self.tensors[0].ndim else 1

    def follows_batch(self, tensor: Tensor) -> bool:
        """Return whether the first axis of one of the tensors is the batch."""
        return tensor.ndim > 0 and tensor.shape[0] == self.batch

    def inputs(self) -> tuple[Input, ...]:
        """Return the inputs of the network, the first of them by its usual name."""
        names = [INPUT]
        for wanted in list(names_in(self.tree))[1:]:
            plain = "".join(char if char.isalnum() else "_" for char in wanted)
            names.append(unique_name(plain if plain[:1].isalpha() else f"input_{plain}", names))
        return tuple(
            Input(
                name,
                (1, *one.shape[1:]) if self.follows_batch(one) else tuple(one.shape),
                _dtype(one),
                self.follows_batch(one),
            )
            for name, one in zip(names, self.tensors, strict=True)
        )

    def at(self, batch: int, seed: int = 0) -> list[Tensor]:
        """Return tensors like these at another batch size: floats at random, integers from the same range."""
        generator = torch.Generator().manual_seed(seed)
        return [self._like(one, batch, generator) for one in self.tensors]

    def _like(self, one: Tensor, batch: int, generator: torch.Generator) -> Tensor:
        if not self.follows_batch(one):
            return (one.float() if one.is_floating_point() else one).clone()
        shape = (batch, *one.shape[1:])
        if one.is_floating_point():
            return torch.randn(shape, generator=generator)
        low, high = (int(one.min()), int(one.max())) if one.numel() else (0, 0)
        return torch.randint(low, high + 1, shape, generator=generator).to(one.dtype)

    def arguments(self, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional arguments and those by name of one call at a small batch."""
        return _bound(module.forward, self.tree, self.at(RUN_BATCH))

    def called(self, module: nn.Module, tensors: list[Tensor]) -> Any:
        """Return what the module makes of these tensors."""
        return called(module, self.tree, tensors)


def called(function: Any, tree: Tree, tensors: list[Tensor]) -> Any:
    """Return what a function makes of the arguments that the tree puts together."""
    args, kwargs = _bound(getattr(function, "forward", function), tree, tensors)
    return function(*args, **kwargs)


def _bound(forward: Any, tree: Tree, tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if tree is None:
        return tuple(tensors), {}
    bound = inspect.BoundArguments(inspect.signature(forward), put_together(tree, tensors))
    return bound.args, bound.kwargs


def _dtype(tensor: Tensor) -> str:
    return "float32" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
