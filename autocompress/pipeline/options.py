"""Options that travel as one value: a frozen dataclass whose fields carry default and help.

The command line takes its options from the fields, Python its keywords, and a run records the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields, replace
from difflib import get_close_matches
from typing import Any, TypeVar

from autocompress.errors import InputError

Options = TypeVar("Options")


def option(default: Any, help: str, **details: Any) -> Any:
    """Return a field of an options dataclass; `details` is what the command line needs beside the help."""
    return field(default=default, metadata={"help": help, **details})


def from_keywords(kind: type[Options], keywords: Mapping[str, Any]) -> Options:
    """Return the options that keywords give; those of an `options=` that is among them are the defaults.

    Raises InputError for a name that is none, with the nearest one that is.
    """
    given = dict(keywords)
    base = given.pop("options", None)
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"there is no option {name!r}", fix=fix)
    if base is not None and not isinstance(base, kind):
        raise InputError(f"options is {base!r}", fix=f"give a {kind.__name__}, or single options")
    return kind(**given) if base is None else replace(base, **given)  # type: ignore[type-var]
