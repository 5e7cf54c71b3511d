"""What a user types to name a teacher or data: `kind:target,key=value,…`, and how callables are found.

    timm:resnet18,num_classes=10,weights=teacher.safetensors
    imagefolder:photos,size=64,mean=0.5/0.5/0.5
    package.module:callable          file.py:callable,depth=20

A value is read as an int, float, true/false, numbers joined by `/` (a tuple), or else as text.
What holds a comma stands in quotes, single or double, doubled where they are meant themselves:

    imagefolder:"photos, new",size=64        "my, models/net.py":build        weights='a, b.pth'
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

InputSize = int | tuple[int, ...]
"""Of a side, of all sides as (height, width), or of these behind the channels."""

Value = int | float | bool | str | tuple[int | float, ...]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBERS = re.compile(rf"{_NUMBER}(?:/{_NUMBER})+\Z")
_QUOTED = re.compile(r"""(?:^|(?<=[:=]))("(?:[^"]|"")*"|'(?:[^']|'')*')(?=$|[,:])""")
_KEPT = re.compile("\0(\\d+)\0")
"""What stands for a quoted text until the rest has been split."""

PATH_KINDS = (
    "imagefolder",
    "images",
    "mnist",
    "cifar10",
    "webdataset",
    "npz",
    "huggingface",
    "masks",
    "table",
)
"""Kinds of spec whose target is a path."""
PATH_OPTIONS = ("weights", "class_map")


@dataclass(frozen=True)
class Spec:
    """Hold what was asked for: `text` is what was typed; `kind` is what stands before the first `:` (empty
    where there is none)."""

    text: str
    kind: str
    target: str
    options: Mapping[str, Value] = field(default_factory=dict)

    def without_options(self, error: type[InputError], known: tuple[str, ...] = ()) -> None:
        """Raise `error` for the first option outside `known`, and name those that are known."""
        for key in self.options:
            if key not in known:
                fix = f"known here: {', '.join(known)}" if known else "there are none here"
                raise error(
                    f"option {key!r} is not known", where=self.text, fix=f"{fix}{_on_commas(self.text)}"
                )


def parse(text: str, error: type[InputError]) -> Spec:
    """Return the parts of a spec; raise `error` for an empty text and for an option without a key."""
    quoted: list[str] = []
    head, *items = _QUOTED.sub(lambda found: _keep(found[1], quoted), text.strip()).split(",")
    kind, colon, target = (_restored(part, quoted) for part in _split_head(head))
    if not head:
        raise error("an empty name was given", fix="see --help for the forms that are understood")
    options: dict[str, Value] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key.isidentifier():
            raise error(
                f"{_restored(item, quoted)!r} is not of the form key=value", where=text,
                fix=f"write options as key=value{_on_commas(text)}",
            )  # fmt: skip
        plain = not _KEPT.fullmatch(value)
        options[key] = (_value(value) if plain else _restored(value, quoted)) if equals else True
    return Spec(text, kind if colon else "", target if colon else _restored(head, quoted), options)


def _keep(found: str, quoted: list[str]) -> str:
    quoted.append(found[1:-1].replace(found[0] * 2, found[0]))
    return f"\0{len(quoted) - 1}\0"


def _restored(text: str, quoted: list[str]) -> str:
    return _KEPT.sub(lambda found: quoted[int(found[1])], text)


def _split_head(head: str) -> tuple[str, str, str]:
    """Split at the colon, a callable at its last one: a file's name may hold a colon."""
    return head.rpartition(":") if ".py:" in head else head.partition(":")


def quote(text: str) -> str:
    """Return the text as it is written in a spec: in quotes where it would be split otherwise."""
    return '"' + text.replace('"', '""') + '"' if "," in text or text[:1] in ("'", '"') else text


def _on_commas(text: str) -> str:
    """Say how a path with a comma is written, where the text may hold one."""
    if '"' in text or "'" in text or "," not in text:
        return ""
    kind, colon, target = _split_head(text.strip())
    if ".py:" in text:
        return f"; a path with a comma stands in quotes: '{quote(kind)}:{target}'"
    head, equals, path = text.partition("weights=")
    whole = f"{head}{equals}{quote(path)}" if equals else f"{kind}{colon}{quote(target)}"
    return f"; a path with a comma stands in quotes: '{whole}'"


def path_fix(spec: Spec) -> str:
    """Return the way out for a path that does not exist."""
    return f"check the path{_on_commas(spec.text)}"


def absolute(text: str) -> str:
    """Return the spec with its paths made absolute, so that it means the same from every folder."""
    spec = parse(text, InputError)
    kind = _absolute(spec.kind) if spec.kind.endswith(".py") else spec.kind
    folder = spec.kind in PATH_KINDS or (not spec.kind and Path(spec.target).expanduser().is_dir())
    target = _absolute(spec.target) if folder and spec.target else spec.target
    options = [
        key if value is True else f"{key}={quote(_written_value(key, value))}"
        for key, value in spec.options.items()
    ]
    return ",".join([f"{quote(kind)}:{quote(target)}" if spec.kind else quote(target), *options])


def _written_value(key: str, value: Value) -> str:
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    if key in PATH_OPTIONS and isinstance(value, str) and Path(value).expanduser().exists():
        return _absolute(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


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
    """Return the object that `file.py:name` or `package.module:name` names.

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
    """Return what `function` returns for the options of the spec; its failure becomes `error` with the
    line."""
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


def takes(function: Callable[..., Any], argument: str) -> bool:
    """Return whether a callable has an argument of this name, or takes any."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return True
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _written(options: Mapping[str, Value]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "no arguments"


def _load_file(spec: Spec, error: type[InputError]) -> ModuleType:
    path = Path(spec.kind).expanduser()
    if not path.is_file():
        raise error(f"the file {spec.kind} does not exist", where=spec.text, fix=path_fix(spec))
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
    """Return the public callables that the module itself defines."""
    public = {
        name: value for name, value in vars(module).items() if not name.startswith("_") and callable(value)
    }
    return sorted(
        name for name, value in public.items() if getattr(value, "__module__", "") == module.__name__
    )


@contextmanager
def _folder_on_path(spec: Spec) -> Iterator[None]:
    """Let user code find its neighbours: those of its file, or those of the working folder."""
    folder = str(Path(spec.kind).expanduser().resolve().parent if spec.kind.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


@contextmanager
def _user_code(spec: Spec, error: type[InputError], what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into `error`, with the innermost line of that code."""
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
