"""A module as it computes at inference: wrappers taken off, computed weights written down as weights.

Networks come compiled, wrapped for several devices, with weights that a hook or a parametrization
computes from others, with masks of torch's own pruning. All of that is about training. What is left
here is a copy with plain parameters, named as the layer names them; the module itself is not changed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from autocompress.errors import TeacherError

_WRAPPERS: tuple[type[nn.Module], ...] = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def deep_copy(module: nn.Module) -> nn.Module:
    """Return a copy; tensors that were computed, which refuse to be copied, are copied as values.

    Raises TeacherError for a module that cannot be copied.
    """
    module = _unwrapped(module)
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in _tensors(list(vars(part).values())):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as problem:
        raise TeacherError(
            "the teacher cannot be copied",
            where=type(module).__name__,
            why=f"copy.deepcopy: {type(problem).__name__}: {str(problem)[:200]}",
            fix="keep open files, locks, processes and the like outside of the module",
        ) from problem


def plain(module: nn.Module) -> nn.Module:
    """Return the module in eval mode, on the CPU, in float32, with plain parameters only; it is changed.

    Taken off, at any depth: `DataParallel` and its like, `torch.compile`, hooks of gradients. Written down
    as the weights that they compute: parametrizations, the older `weight_norm` and `spectral_norm`, masks of
    `torch.nn.utils.prune`. Parameters that several layers share stay one.

    Raises TeacherError for a scripted module, and where a weight cannot be computed.
    """
    module = _unwrapped(module)
    for name, part in list(module.named_modules()):
        for child_name, child in list(part.named_children()):
            inner = _unwrapped(child, f"{name}.{child_name}" if name else child_name)
            if inner is not child:
                setattr(part, child_name, inner)
    module = module.to("cpu", torch.float32).eval()
    for name, part in list(module.named_modules()):
        _forget_training(part)
        with _what_is_baked(name or type(module).__name__):
            _bake(part)
    return module


def _unwrapped(module: nn.Module, name: str = "") -> nn.Module:
    while True:
        if isinstance(module, torch.jit.ScriptModule):
            raise TeacherError(
                "the teacher is a scripted module (torch.jit), which cannot be changed",
                where=name or type(module).__name__,
                fix="give the nn.Module that it was scripted from, with the same weights",
            )
        if isinstance(module, _WRAPPERS):
            module = cast(nn.Module, module.module)
        elif isinstance(module, torch._dynamo.OptimizedModule):
            module = module._orig_mod
        else:
            return module


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def _forget_training(part: nn.Module) -> None:
    part._compiled_call_impl = None
    part._backward_hooks.clear()
    part._backward_pre_hooks.clear()


@contextmanager
def _what_is_baked(where: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except Exception as problem:
        raise TeacherError(
            "a weight of the teacher is computed from others, which fails",
            where=where,
            why=f"{type(problem).__name__}: {str(problem)[:200]}",
            fix="make it permanent first: remove_parametrizations, remove_weight_norm or prune.remove",
        ) from problem


def _bake(part: nn.Module) -> None:
    if parametrize.is_parametrized(part):
        _take_own_class(part)
        for name, computed in list(cast(nn.ModuleDict, part.parametrizations).items()):
            is_parameter = any(True for _ in computed.parameters(recurse=False))
            parametrize.remove_parametrizations(part, name, leave_parametrized=True)
            if is_parameter and name in part._buffers:  # Of several tensors torch makes no parameter.
                part._parameters[name] = nn.Parameter(part._buffers.pop(name))  # type: ignore[arg-type]
    for hook in list(part._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(part, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(part, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(part, hook._tensor_name)


def _take_own_class(part: nn.Module) -> None:
    """Give a parametrized module, whose class its copies share and which is changed in the end, its own."""
    shared = type(part)
    members = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    part.__class__ = type(shared.__name__, shared.__bases__, members)
