"""What a user types to name a teacher or data: `kind:target,key=value,…`, and how callables are found.

    timm:resnet18,num_classes=10,weights=teacher.safetensors
    imagefolder:photos,size=64,mean=0.5/0.5/0.5
    package.module:callable          file.py:callable,depth=20

A value is read as an int, float, true/false, numbers joined by `/` (a tuple), or else as text.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from autocompress.errors import InputError

Value = int | float | bool | str | tuple[int | float, ...]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBERS = re.compile(rf"{_NUMBER}(?:/{_NUMBER})+\Z")


@dataclass(frozen=True)
class Spec:
    """`text` is what was typed; `kind` is what stands before the first `:` (empty where there is none)."""

    text: str
    kind: str
    target: str
    options: Mapping[str, Value] = field(default_factory=dict)

    def without_options(self, error: type[InputError], known: tuple[str, ...] = ()) -> None:
        """Raises `error` for the first option outside `known`, and names those that are known."""
        for key in self.options:
            if key not in known:
                raise error(
                    f"option {key!r} is not known",
                    where=self.text,
                    fix=f"known here: {', '.join(known)}" if known else "there are none here",
                )


def parse(text: str, error: type[InputError]) -> Spec:
    """Raises `error` for an empty text and for an option without a key."""
    head, *items = text.strip().split(",")
    kind, colon, target = _split_head(head)
    if not head:
        raise error("an empty name was given", fix="see --help for the forms that are understood")
    options: dict[str, Value] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key.isidentifier():
            raise error(f"{item!r} is not of the form key=value", where=text)
        options[key] = _value(value) if equals else True
    return Spec(text, kind if colon else "", target if colon else head, options)


def _split_head(head: str) -> tuple[str, str, str]:
    """A file's name may hold a colon, so a callable is split at its last one."""
    return head.rpartition(":") if ".py:" in head else head.partition(":")


def _value(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    if _NUMBERS.match(text):
        return tuple(float(part) if re.search(r"[.eE]", part) else int(part) for part in text.split("/"))
    return text


def load_callable(spec: Spec, error: type[InputError]) -> Callable[..., Any]:
    """The object that `file.py:name` or `package.module:name` names.

    Raises `error` where the file, the module or the name does not exist, and where the user's code
    fails while it is imported; the message then holds the line.
    """
    module = _load_file(spec, error) if spec.kind.endswith(".py") else _load_module(spec, error)
    found = getattr(module, spec.target, None)
    if callable(found):
        return found
    names = _callables(module)
    close = get_close_matches(spec.target, names, n=1)
    raise error(
        f"there is no callable {spec.target!r} in {spec.kind}",
        where=spec.text,
        why="what has this name cannot be called" if found is not None else "",
        fix=f"{f'did you mean {close[0]!r}? ' if close else ''}callables there: {', '.join(names) or 'none'}",
    )


def call(spec: Spec, function: Callable[..., Any], error: type[InputError]) -> Any:
    """What `function` returns for the options of the spec; its failure becomes `error` with the line."""
    try:
        inspect.signature(function).bind(**spec.options)
    except TypeError as problem:
        raise error(
            f"{spec.target} cannot be called with {_written(spec.options)}",
            where=spec.text,
            why=f"{problem} (its signature is {spec.target}{inspect.signature(function)})",
            fix=f"give arguments as {spec.kind}:{spec.target},key=value or name a callable without any",
        ) from None
    except ValueError:
        pass
    with _folder_on_path(spec), _user_code(spec, error, f"{spec.target} failed"):
        return function(**spec.options)


def _written(options: Mapping[str, Value]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "no arguments"


def _load_file(spec: Spec, error: type[InputError]) -> ModuleType:
    path = Path(spec.kind).expanduser()
    if not path.is_file():
        raise error(f"the file {spec.kind} does not exist", where=spec.text, fix="check the path")
    name = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path.resolve())
    if found is None or found.loader is None:
        raise error(f"the file {spec.kind} cannot be imported", where=spec.text)
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        with _folder_on_path(spec), _user_code(spec, error, f"{spec.kind} cannot be imported"):
            found.loader.exec_module(module)
    except error:
        del sys.modules[name]
        raise
    return module


def _load_module(spec: Spec, error: type[InputError]) -> ModuleType:
    with _folder_on_path(spec), _user_code(spec, error, f"{spec.kind} cannot be imported"):
        try:
            return importlib.import_module(spec.kind)
        except ModuleNotFoundError as problem:
            if problem.name and f"{spec.kind}.".startswith(f"{problem.name}."):
                raise error(
                    f"there is no module {spec.kind!r}",
                    where=spec.text,
                    fix="install it, run from the folder that holds it, or give path/to/file.py:callable",
                ) from None
            raise


def _callables(module: ModuleType) -> list[str]:
    """Public callables that the module itself defines."""
    public = {
        name: value for name, value in vars(module).items() if not name.startswith("_") and callable(value)
    }
    return sorted(
        name for name, value in public.items() if getattr(value, "__module__", "") == module.__name__
    )


@contextmanager
def _folder_on_path(spec: Spec) -> Iterator[None]:
    """User code finds its neighbours: those of its file, or those of the working folder."""
    folder = str(Path(spec.kind).expanduser().resolve().parent if spec.kind.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


@contextmanager
def _user_code(spec: Spec, error: type[InputError], what: str) -> Iterator[None]:
    """Turns whatever the user's code raises into `error`, with the innermost line of that code."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as problem:
        raise error(
            what,
            where=_line_of(problem, spec),
            why=f"{type(problem).__name__}: {problem}",
            fix="run that line by itself in Python to see the whole traceback",
        ) from problem


def _line_of(problem: BaseException, spec: Spec) -> str:
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{problem.filename}, line {problem.lineno}"
    root = _root_of(spec)
    frames = traceback.extract_tb(problem.__traceback__)
    own = [frame for frame in frames if root and frame.filename.startswith(root)]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else spec.text


def _root_of(spec: Spec) -> str:
    if spec.kind.endswith(".py"):
        return str(Path(spec.kind).expanduser().resolve().parent)
    module = sys.modules.get(spec.kind.partition(".")[0])
    file = getattr(module, "__file__", None)
    return str(Path(file).parent) if file else str(Path.cwd())
