"""Times of operators out of the files that vendors' profilers write: one file a tool, one contract.

    operators = parse_dump(Path("profile.json"))        # the tool is found out
    operators = parse_dump(Path("layers.csv"), "openvino")

Nothing in a file is executed, no more than `MOST_BYTES` of one are read, and times become microseconds.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol

from autocompress.errors import ProfileError

MOST_BYTES = 256 * 1024**2
MOST_OPERATORS = 100_000
MOST_US = 1e9
"""A quarter of an hour for one operator is a mistaken unit."""

_HERE = "autocompress.device.imports"
KINDS = ("onnxruntime", "openvino", "trtexec", "tflite", "torch")


@dataclass(frozen=True)
class OperatorTime:
    """Hold one operator as the tool reports it, in execution order.

    `time_us` is the time of one run, a mean or median over `count` runs; `op` is empty where the tool
    says only a name.
    """

    name: str
    op: str
    time_us: float
    count: int


@dataclass(frozen=True)
class Dump:
    """Hold a file that was read, and its JSON where it is such."""

    path: Path
    text: str = field(repr=False)

    @cached_property
    def json(self) -> Any:
        """Return what the file says as JSON; None for what is not JSON."""
        if self.text.lstrip()[:1] not in ("[", "{"):
            return None
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None


class Parser(Protocol):
    """Read the dumps of one tool: a module of this package. `RUNTIME` is the name of the runtime in a profile
    made of its dumps."""

    RUNTIME: str

    def recognises(self, dump: Dump) -> bool:
        """Return whether the file looks like one of this tool's."""

    def parse(self, dump: Dump) -> list[OperatorTime]:
        """Return the operators that ran. May raise ValueError, KeyError or TypeError for what it cannot
        read."""


def parse_dump(path: Path, kind: str | None = None) -> tuple[str, list[OperatorTime]]:
    """Return the tool's name, and what it measured.

    Raises ProfileError for a file that cannot be read, is too large, is not of that tool, or has no
    operator with a time.
    """
    dump = Dump(path, read_text(path, MOST_BYTES))
    kind = _kind(dump) if kind is None else kind
    parser = get_parser(kind)
    if not parser.recognises(dump):
        looks = next((other for other in KINDS if get_parser(other).recognises(dump)), None)
        refuse(path, f"it is not a dump of {kind}", f"give --kind {looks}" if looks else _FIX)
    try:
        found = parser.parse(dump)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        refuse(path, f"it is damaged: {type(error).__name__}: {str(error)[:120]}")
    _check(path, found)
    return kind, found


def get_parser(kind: str) -> Parser:
    """Return the parser of a tool. Raises ProfileError that names the known tools."""
    if kind not in KINDS:
        raise ProfileError(f"dumps of {kind!r} are not known", fix=f"use one of: {', '.join(KINDS)}")
    parser: Any = importlib.import_module(f"{_HERE}.{kind}")
    return parser  # type: ignore[no-any-return]


def middle_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half: steadier than a mean, finer than a median of whole microseconds."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    middle = ordered[quarter : len(ordered) - quarter]
    return math.fsum(middle) / len(middle)


def read_text(path: Path, most_bytes: int) -> str:
    """Return the content of a file of bounded size. Raises ProfileError."""
    try:
        size = path.stat().st_size
        if size > most_bytes:
            refuse(
                path,
                f"it has {size / 1024**2:,.0f} MiB, more than {most_bytes // 1024**2} MiB are not read",
                "profile fewer runs",
            )
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        refuse(path, "there is no such file", "give the path of the file that the tool wrote")
    except OSError as error:
        refuse(path, error.strerror or str(error))
    except UnicodeDecodeError:
        refuse(path, "it is not UTF-8 text")
    if not text.strip():
        refuse(path, "the file is empty", "run the tool again, to its end")
    return text


_FIX = "run the tool again as docs/device-profiles.md says"


def refuse(path: Path, why: str, fix: str = _FIX) -> NoReturn:
    raise ProfileError("the measurements cannot be imported", where=str(path), why=why, fix=fix)


def _kind(dump: Dump) -> str:
    for kind in KINDS:
        if get_parser(kind).recognises(dump):
            return kind
    refuse(dump.path, "it is not a dump of a tool that is known", f"known are: {', '.join(KINDS)}")


def _check(path: Path, found: Sequence[OperatorTime]) -> None:
    if not found:
        refuse(path, "it has no operator with a time")
    if len(found) > MOST_OPERATORS:
        refuse(path, f"it has {len(found)} operators, more than {MOST_OPERATORS}")
    for item in found:
        if not math.isfinite(item.time_us) or not 0 <= item.time_us <= MOST_US or item.count < 1:
            refuse(path, f"the operator {item.name[:80]!r} has the time {item.time_us} µs")
    if not sum(item.time_us for item in found):
        refuse(path, "all of its times are 0")
