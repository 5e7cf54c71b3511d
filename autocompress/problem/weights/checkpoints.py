"""Weights as training scripts leave them: a file or folder → the state dict of a network.

Only tensors are read. Where a file holds other objects as well (arguments, schedulers, metrics), an inert
class stands in for each of theirs: none of their code is imported or run.

A file may hold several sets of weights, at any depth and under prefixes (`module.`, `_orig_mod.`,
`model.`, …). The set that fits the network is taken, plain weights before averaged ones, and it is said
which.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TeacherError

AVERAGED = re.compile(r"ema|averag|swa|teacher|momentum|shadow", re.IGNORECASE)
NOT_WEIGHTS = re.compile(r"optim|schedul|scaler|callback|loop|hyper_?param|args|config", re.IGNORECASE)
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile and data parallelism put into names; a network may use `module` itself."""
MAXIMUM_DEPTH = 5
COUNTERS = ("num_batches_tracked",)
"""Buffers that old files lack and no result depends on."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class WeightSet:
    """One set of weights in a file: `key` is where it lies, `prefix` what was taken off its names."""

    key: str
    state: State
    prefix: str = ""

    @property
    def keys(self) -> tuple[str, str]:
        """Return what the user can choose it by: where it lies, or its prefix."""
        return self.key, self.prefix.rstrip(".")

    @property
    def title(self) -> str:
        parts = [self.key or "the whole file", f"names under {self.prefix!r}" if self.prefix else ""]
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Fit:
    """Say how a set of weights lies over a network."""

    weights: WeightSet
    lacking: tuple[str, ...]
    unknown: tuple[str, ...]
    other_shape: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not (self.lacking or self.unknown or self.other_shape)

    @property
    def misfits(self) -> int:
        return len(self.lacking) + len(self.unknown) + len(self.other_shape)


def load_weights(module: nn.Module, path: Path, name: str, key: str | None = None) -> str:
    """Load the weights of a file into a network; return what was taken where there was a choice or a prefix.

    `name` is that of the network, for messages; `key` chooses a set where a file holds several.
    Raises TeacherError for a file that cannot be read, or that holds no weights of this network.
    """
    found = weight_sets(read_checkpoint(path), path)
    candidates = [candidate for item in found for candidate in _without_prefixes(item, module)]
    if key is not None:
        candidates = [item for item in candidates if key in item.keys] or _no_such_key(found, key, path)
    fits = sorted(
        (_fit(candidate, module) for candidate in candidates),
        key=lambda fit: (fit.misfits, bool(AVERAGED.search(fit.weights.key + fit.weights.prefix))),
    )
    best = fits[0]
    if not best.whole:
        raise _misfit(best, module, path, name)
    module.load_state_dict(best.weights.state, strict=False)
    others = [_told_apart(fit.weights, best.weights) for fit in fits[1:] if fit.whole]
    return _taken(best.weights, sorted(set(filter(None, others))), path)


def _told_apart(other: WeightSet, taken: WeightSet) -> str:
    """Return the key that chooses the other set; empty where both are the same."""
    if other.key != taken.key:
        return other.key
    return other.keys[1] if other.prefix != taken.prefix else ""


def _taken(weights: WeightSet, others: list[str], path: Path) -> str:
    if not others:
        return f"weights: {path.name}, {weights.title}" if weights.key or weights.prefix else ""
    there = ", ".join(others)
    return (
        f"weights: {path.name} holds several sets; {weights.title} was taken, not {there} "
        f"(weights_key={others[0]} takes that)"
    )


def read_checkpoint(path: Path) -> Any:
    """Return what a file of weights holds, with nothing of it executed; raise TeacherError."""
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> State:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as problem:
        raise TeacherError(
            f"the file {path} is no whole safetensors file",
            why=_first_line(problem),
            fix="copy or save it again",
        ) from problem


def _read_shards(index: Path) -> State:
    state: State = {}
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise TeacherError(
            f"the file {index} lists no weights",
            why=_first_line(problem),
            fix="copy the whole checkpoint again",
        ) from problem
    for name in names:
        state |= read_checkpoint(index.parent / Path(str(name)).name)
    return state


class _Inert:
    """Stand in for an object that is not read: take whatever it is made and filled with, keep nothing."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass


class _InertMapping:
    """Stand in for dictionaries of other packages, whose entries are read."""

    def __new__(cls, *_args: Any, **_options: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def _read_torch(path: Path) -> Any:
    """Read the file first without other objects, then with objects that keep nothing, then with dictionaries
    among them."""
    problem: Exception = ValueError("no attempt was made")
    names: list[str] = []
    for stand_in in (None, _Inert, _InertMapping):
        try:
            names = [] if stand_in is None else _classes_in(path)
            with torch.serialization.safe_globals([(stand_in, name) for name in names]):  # type: ignore[misc]
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as caught:
            problem = caught
            continue
        if isinstance(content, _Inert) and stand_in is _Inert:
            raise _whole_object(path, names)
        return content
    raise _unreadable(path, names, problem) from problem


def _classes_in(path: Path) -> list[str]:
    """Return the names of classes and functions that a file asks for beyond those of tensors; nothing is
    imported."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:
        return []


def _unreadable(path: Path, names: list[str], problem: Exception) -> TeacherError:
    if "torchscript" in str(problem).lower():
        return TeacherError(
            f"the file {path} is a TorchScript program, not weights",
            why="it holds code, which is not executed here",
            fix=_conversion(path, f"torch.jit.load({str(path)!r}).state_dict()"),
        )
    if names:
        return _whole_object(path, names)
    return TeacherError(
        f"the file {path} cannot be read as weights",
        why=_first_line(problem),
        fix=_conversion(path, "model.state_dict()"),
    )


def _whole_object(path: Path, names: list[str]) -> TeacherError:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return TeacherError(
        f"the file {path} holds whole objects ({shown}) and no state dict",
        why="opening them would execute code of the file, and only weights are read",
        fix=_conversion(path, f"torch.load({str(path)!r}, weights_only=False).state_dict()")
        + ", if you trust the file",
    )


def _conversion(path: Path, state: str) -> str:
    return f"save the weights alone, in Python: torch.save({state}, {path.stem + '-weights.pt'!r})"


def weight_sets(content: Any, path: Path) -> list[WeightSet]:
    """Return every set of weights in what a file holds; raise TeacherError where there is none."""
    found = list(_sets(content, ()))
    if found:
        return found
    kinds = ", ".join(str(key) for key in list(content)[:6]) if isinstance(content, Mapping) else ""
    raise TeacherError(
        f"the file {path} holds no state dict",
        why=f"it holds {kinds}" if kinds else f"it holds a {type(content).__name__}",
        fix=_conversion(path, "model.state_dict()"),
    )


def _sets(content: Any, path: tuple[str, ...]) -> Iterator[WeightSet]:
    if not isinstance(content, Mapping) or len(path) > MAXIMUM_DEPTH:
        return
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors and all(isinstance(key, str) for key in tensors):
        yield WeightSet(".".join(path), {name: value.detach() for name, value in tensors.items()})
    for key, value in content.items():
        if isinstance(key, str) and not NOT_WEIGHTS.search(key):
            yield from _sets(value, (*path, key))


def _without_prefixes(weights: WeightSet, module: nn.Module) -> Iterator[WeightSet]:
    """Yield the set as it is, without wrappers, and under each prefix before the network's names."""
    wanted = module.state_dict()
    bare = {WRAPPERS.sub("", name): value for name, value in weights.state.items()}
    for state in (weights.state, *([bare] if bare.keys() != weights.state.keys() else [])):
        yield WeightSet(weights.key, state)
        for prefix in _prefixes(state, wanted):
            inner = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
            yield WeightSet(weights.key, inner, prefix)


def _prefixes(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Return what stands before the network's names; the longest are looked for, as least ambiguous."""
    ends = sorted(wanted, key=len, reverse=True)[:3]
    return sorted({name[: -len(end)] for end in ends for name in names if name.endswith(f".{end}")})


def _fit(weights: WeightSet, module: nn.Module) -> Fit:
    wanted = module.state_dict()
    lacking = [name for name in wanted if name not in weights.state and not name.endswith(COUNTERS)]
    both = [name for name in wanted if name in weights.state]
    return Fit(
        weights,
        tuple(lacking),
        tuple(name for name in weights.state if name not in wanted),
        tuple(name for name in both if wanted[name].shape != weights.state[name].shape),
    )


def _misfit(fit: Fit, module: nn.Module, path: Path, name: str) -> TeacherError:
    wanted, state = module.state_dict(), fit.weights.state
    why = [
        f"{item} is {_shape(state[item])} in the file and {_shape(wanted[item])} in {name}"
        for item in fit.other_shape[:2]
    ]
    why += [f"the file lacks {_few(fit.lacking)}"] if fit.lacking else []
    why += [f"{name} has no {_few(fit.unknown)}"] if fit.unknown else []
    return TeacherError(
        f"the weights in {path} do not fit {name}",
        where=fit.weights.title,
        why="; ".join(why),
        fix="give the options the weights were trained with, for example num_classes=10",
    )


def _no_such_key(found: list[WeightSet], key: str, path: Path) -> list[WeightSet]:
    keys = ", ".join(item.key for item in found if item.key)
    raise TeacherError(
        f"there are no weights under {key!r} in {path}",
        fix=f"use one of {keys}" if keys else "leave weights_key out",
    )


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "a number"


def _few(names: tuple[str, ...]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0][:300]}"
