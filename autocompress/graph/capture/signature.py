"""How a network is called and what it returns, where that is more than one tensor each.

A tree is what JSON can hold: `{"tensor": 2}` is the third tensor; `{"tuple": […]}`, `{"list": […]}`,
`{"dict": [[key, tree], …]}` and `{"named": type, "fields": [[name, tree], …]}`, a NamedTuple or dataclass,
hold others; None, truth values, numbers and text stand for themselves.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from autocompress.errors import TeacherError
from autocompress.files import JsonObject

Tree = Any


@dataclass(frozen=True)
class Signature:
    """Name what comes in and goes out: `inputs` and `outputs` are the names of all tensors in their order, as
    an exported file has them.

    `arguments` is a `dict` tree: the arguments of `forward` by name; `returns` is the tree of its result.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arguments: Tree
    returns: Tree

    def tensors_of(self, args: Sequence[Any], kwargs: JsonObject) -> list[Any]:
        """Return the tensors of a call, in their order. Raises TypeError for another call than is known."""
        names = [name for name, _ in self.arguments["dict"]]
        if len(args) > len(names) or not set(kwargs) <= set(names[len(args) :]):
            raise TypeError(f"the network takes the arguments {', '.join(names)}")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        found: dict[int, Any] = {}
        _match(self.arguments, given, found, "the call")
        return [found[index] for index in range(len(self.inputs))]

    def result_of(self, tensors: Sequence[Any]) -> Any:
        """Return what `forward` returns, made of these tensors."""
        return put_together(self.returns, tensors)


def taken_apart(value: Any) -> tuple[list[Any], Tree]:
    """Return the tensors within a value, and its tree. Raises TeacherError for what no tree can hold."""
    tensors: list[Any] = []
    return tensors, _tree(value, tensors)


def _tree(value: Any, tensors: list[Any]) -> Tree:
    import torch

    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {"named": _name_of(type(value), "dataclass"), "fields": _trees(fields, tensors)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = list(zip(value._fields, value, strict=True))
        return {"named": _name_of(type(value), "tuple"), "fields": _trees(fields, tensors)}
    if isinstance(value, Mapping) and all(isinstance(key, (str, int)) for key in value):
        return {"dict": _trees(value.items(), tensors)}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [_tree(item, tensors) for item in value]}
    raise TeacherError(
        f"the teacher takes or returns a {type(value).__name__}, which is no tensor and holds none",
        fix="let forward() take and return tensors, in tuples, lists, dicts, NamedTuples or dataclasses",
    )


def _trees(items: Any, tensors: list[Any]) -> Tree:
    return [[key, _tree(value, tensors)] for key, value in items]


def _name_of(kind: type, base: str) -> str:
    return f"{base} {kind.__module__}:{kind.__qualname__}"


def put_together(tree: Tree, tensors: Sequence[Any]) -> Any:
    """Return the value of this tree with these tensors; the opposite of `taken_apart`."""
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "tuple" in tree:
        return tuple(put_together(item, tensors) for item in tree["tuple"])
    if "list" in tree:
        return [put_together(item, tensors) for item in tree["list"]]
    if "dict" in tree:
        return {key: put_together(value, tensors) for key, value in tree["dict"]}
    fields = {key: put_together(value, tensors) for key, value in tree["fields"]}
    return named_type(tree["named"], tuple(fields))(**fields)


@cache
def named_type(name: str, fields: tuple[str, ...]) -> Any:
    """Return the NamedTuple or dataclass of this name, or one like it where this process has none.

    Nothing is imported for it: a folder from a stranger cannot say what is run.
    """
    base, _, path = name.partition(" ")
    module, _, qualified = path.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type):
        own = getattr(found, "_fields", None) if base == "tuple" else _fields_of(found)
        if own == fields:
            return found
    short = qualified.rpartition(".")[2]
    return namedtuple(short, fields) if base == "tuple" else dataclasses.make_dataclass(short, fields)


def _fields_of(kind: type) -> tuple[str, ...] | None:
    if not dataclasses.is_dataclass(kind):
        return None
    return tuple(field.name for field in dataclasses.fields(kind))


def names_in(tree: Tree, path: str = "") -> Iterator[str]:
    """Yield a name for each tensor of a tree in order: where it is found, as `boxes` or `levels_0`."""
    if not isinstance(tree, dict):
        return
    if "tensor" in tree:
        yield path
        return
    for key, item in _items(tree):
        yield from names_in(item, f"{path}_{key}" if path else str(key))


def _items(tree: Tree) -> list[tuple[Any, Tree]]:
    """Return the parts of a tree with their keys, names or numbers."""
    for kind in ("dict", "fields"):
        if kind in tree:
            return [(key, item) for key, item in tree[kind]]
    return list(enumerate(tree["tuple"] if "tuple" in tree else tree["list"]))


def _match(tree: Tree, value: Any, found: dict[int, Any], where: str) -> None:
    """Find the tensors of a value at the places of the tree."""
    if not isinstance(tree, dict):
        return
    if "tensor" in tree:
        found[tree["tensor"]] = value
    elif "dict" in tree or "fields" in tree:
        for key, item in _items(tree):
            held = _item(value, key, "dict" in tree)
            if held is None and _has_tensor(item):
                raise TypeError(f"{where} lacks {key!r}")
            _match(item, held, found, repr(key))
    else:
        items = [item for _, item in _items(tree)]
        if not isinstance(value, (tuple, list)) or len(value) != len(items):
            raise TypeError(f"{where} should hold {len(items)} values")
        for item, held in zip(items, value, strict=True):
            _match(item, held, found, where)


def _item(value: Any, key: Any, is_mapping: bool) -> Any:
    if is_mapping:
        return value.get(key) if isinstance(value, Mapping) else None
    return getattr(value, key, None)


def _has_tensor(tree: Tree) -> bool:
    return next(names_in(tree, "x"), None) is not None


def checked(data: JsonObject) -> Signature:
    """Return the signature that JSON holds. Raises ValueError or KeyError for anything else."""
    signature = Signature(
        tuple(map(str, data["inputs"])), tuple(map(str, data["outputs"])), data["arguments"], data["returns"]
    )
    for names, tree in ((signature.inputs, signature.arguments), (signature.outputs, signature.returns)):
        numbers = sorted(_numbers(tree))
        if numbers != list(range(len(names))):
            raise ValueError(f"a tree names the tensors {numbers}, there are {len(names)}")
    if not isinstance(signature.arguments, dict) or "dict" not in signature.arguments:
        raise ValueError("the arguments of a network are no dict")
    return signature


def _numbers(tree: Tree) -> Iterator[int]:
    if not isinstance(tree, dict):
        if tree is not None and not isinstance(tree, (bool, int, float, str)):
            raise ValueError(f"a tree holds a {type(tree).__name__}")
        return
    if "tensor" in tree:
        yield int(tree["tensor"])
    else:
        for _, item in _items(tree):
            yield from _numbers(item)


def to_json(signature: Signature) -> JsonObject:
    """Return what JSON holds of a signature."""
    return {
        "inputs": list(signature.inputs),
        "outputs": list(signature.outputs),
        "arguments": signature.arguments,
        "returns": signature.returns,
    }
