"""The search space: a YAML file of rules that says what may change in a network, and where.

A rule names layers or blocks (`match`) and the choices there (`width`, `rank`, `structure`, `bits`, `merge`,
`sparsity`, `codebook`, `block`); a `lock` forbids every change. Rules apply in order: a later rule replaces
only the keys that it writes itself, and a lock wins over everything. docs/search-spaces.md describes every
key.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from autocompress import files
from autocompress.errors import SpaceError
from autocompress.files import JsonObject
from autocompress.problem.space_rules import (
    Bits,
    Match,
    Quantize,
    Rank,
    Rule,
    RulePart,
    SpaceFile,
    Sparsity,
    Width,
    merge,
)
from autocompress.strict_yaml import (
    Document,
    StrictYamlError,
    document_of,
    parse_document,
    read_document,
)


@dataclass(frozen=True)
class LayerRule:
    """All rules that fit one layer, merged; what no rule gives is None or empty.

    `locked` is a reason, or empty; a locked layer has no choices. `matched` are the indices of
    the rules that fitted.
    """

    width: Width | None = None
    rank: Rank | None = None
    structure: tuple[str, ...] = ()
    bits: tuple[Bits, ...] = ()
    merge: tuple[str, ...] = ()
    sparsity: Sparsity | None = None
    codebook: tuple[int | str, ...] = ()
    locked: str = ""
    matched: frozenset[int] = frozenset()


@dataclass(frozen=True)
class BlockRule:
    """All rules that fit one block, merged; see LayerRule."""

    block: tuple[str, ...] = ()
    locked: str = ""
    matched: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Space:
    """A loaded search space. Equal content has an equal `fingerprint`, wherever the file lies."""

    name: str
    rules: tuple[Rule, ...]
    description: str = ""
    source: str = field(default="", compare=False)
    rule_lines: tuple[int, ...] = field(default=(), compare=False, repr=False)
    quantize: Quantize = field(default_factory=Quantize)

    @cached_property
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits over what rules and `quantize` say, not over name and comments."""
        said = self.to_json()
        rules = said["rules"] if "quantize" not in said else [*said["rules"], said["quantize"]]
        text = json.dumps(rules, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> JsonObject:
        """Return what the file says, ready for YAML or JSON; `space_of` reads it back."""
        rules = [rule.written() for rule in self.rules]
        about = {"description": self.description} if self.description else {}
        quantize = self.quantize.written()
        return {"name": self.name, **about, **({"quantize": quantize} if quantize else {}), "rules": rules}

    def rule_for_layer(self, name: str, kind: str, kernel: int | tuple[int, ...] | None = None) -> LayerRule:
        """Return what may change in the layer `name` (a module path) of kind conv, linear or depthwise."""
        fitting = [i for i, rule in enumerate(self.rules) if rule.target.fits_layer(name, kind, kernel)]
        locked = self._lock_reason(fitting)
        if locked:
            return LayerRule(locked=locked, matched=frozenset(fitting))
        chosen = [self.rules[i] for i in fitting]
        return LayerRule(
            width=merge(Width, (rule.width for rule in chosen)),
            rank=merge(Rank, (rule.rank for rule in chosen)),
            structure=next((rule.structure for rule in reversed(chosen) if rule.structure), ()),
            bits=next((rule.bits for rule in reversed(chosen) if rule.bits), ()),
            merge=next((rule.merge for rule in reversed(chosen) if rule.merge), ()),
            sparsity=merge(Sparsity, (rule.sparsity for rule in chosen)),
            codebook=next((rule.codebook for rule in reversed(chosen) if rule.codebook), ()),
            matched=frozenset(fitting),
        )

    def rule_for_block(self, name: str, locked_layers: Iterable[str] = ()) -> BlockRule:
        """Return what may become of the residual block `name`; a block with a locked layer is locked too."""
        fitting = [i for i, rule in enumerate(self.rules) if rule.fits_block(name)]
        inside = min(locked_layers, default="")
        locked = self._lock_reason(fitting) or (f"its layer {inside} is locked" if inside else "")
        if locked:
            return BlockRule(locked=locked, matched=frozenset(fitting))
        chosen = (self.rules[i].block for i in reversed(fitting))
        return BlockRule(next((block for block in chosen if block), ()), matched=frozenset(fitting))

    def check_matched(self, matched: Iterable[int], names: Iterable[str] = ()) -> None:
        """Raise SpaceError for the first rule, optional ones aside, that is not in `matched`.

        `names` are the names that a rule could have matched; the closest is suggested.
        """
        seen = set(matched)
        for index, rule in enumerate(self.rules):
            if index not in seen and not rule.optional:
                raise self._nothing_matched(index, rule, names)

    def _nothing_matched(self, index: int, rule: Rule, names: Iterable[str]) -> SpaceError:
        wanted = json.dumps(rule.target.written()).replace('"', "")
        close = difflib.get_close_matches((rule.target.name or "").rstrip(".*"), list(names), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? Otherwise correct" if close else "correct"
        return SpaceError(
            f"a rule matches nothing in this network: {wanted}",
            where=self._where(index),
            why="no layer or block fits every key of it",
            fix=f"{hint} the rule (autocompress inspect lists the layers), or write optional: true",
        )

    def _where(self, index: int) -> str:
        line = f", line {self.rule_lines[index]}" if index < len(self.rule_lines) else ""
        return f"{self.source or self.name}{line}, rules[{index}]"

    def _lock_reason(self, fitting: Iterable[int]) -> str:
        locks = [i for i in fitting if self.rules[i].lock]
        return f"locked by rules[{locks[0]}] of the space {self.name!r}" if locks else ""


def load_space(name_or_path: str | Path) -> Space:
    """Load the space of a shipped name (`joint`) or of a file.

    Raises SpaceError, which names the file, the line and the key.
    """
    try:
        path = files.find("search_spaces", name_or_path)
    except (OSError, RuntimeError):
        path = None
    if path is None:
        raise _no_such_space(str(name_or_path))
    try:
        document = read_document(path)
    except StrictYamlError as error:
        raise _unreadable(error, str(path)) from error
    return _build(document, str(path))


def parse_space(text: str, source: str = "") -> Space:
    """Read the space written in `text`, as YAML. Raises SpaceError."""
    try:
        document = parse_document(text)
    except StrictYamlError as error:
        raise _unreadable(error, source) from error
    return _build(document, source)


def space_of(data: Any, source: str = "") -> Space:
    """Return the space that `Space.to_json` wrote. Raises SpaceError."""
    return _build(document_of(data), source)


def _build(document: Document, source: str) -> Space:
    if not isinstance(document.data, dict):
        raise _problem("the space is not a mapping", source, 1, "", "write name: and rules: at the top")
    try:
        file = SpaceFile.model_validate(document.data)
    except ValidationError as error:
        raise _invalid(error, document, source) from error
    lines = tuple(document.lines[("rules", index)] for index in range(len(file.rules)))
    return Space(file.name, file.rules, file.description, source, lines, file.quantize)


_PARTS: dict[str, type[RulePart]] = {
    "": SpaceFile,
    "rules": Rule,
    "match": Match,
    "lock": Match,
    "width": Width,
    "rank": Rank,
    "sparsity": Sparsity,
    "quantize": Quantize,
}


_EXPECTED = {
    "tuple_type": "a list",
    "model_type": "a mapping of keys",
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}


def _invalid(error: ValidationError, document: Document, source: str) -> SpaceError:
    """Return an error that says the first problem in the order of the file, and how many more there are."""
    problems = sorted(error.errors(include_url=False), key=lambda p: document.line_of(p["loc"]))
    first = problems[0]
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in document.known_prefix(first["loc"]))
    what, fix = _explain(first)
    more = f"{len(problems) - 1} more after this one" if len(problems) > 1 else ""
    return _problem(what, source, document.line_of(first["loc"]), key.lstrip("."), fix, more)


def _explain(problem: ErrorDetails) -> tuple[str, str]:
    """Say what is wrong and one way out."""
    kind, loc, value = problem["type"], problem["loc"], problem["input"]
    last = str(loc[-1]) if loc else ""
    if kind == "extra_forbidden":
        parent = next((part for part in reversed(loc[:-1]) if isinstance(part, str)), "")
        return f"unknown key {last!r}", _did_you_mean(last, list(_PARTS[parent].model_fields))
    if kind == "missing":
        return f"the key {last!r} is missing", f"add {last}:"
    if kind == "literal_error":
        known = [part.strip("' ") for part in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        return f"{_short(value)} is not a choice for {_subject(loc)}", _did_you_mean(str(value), known)
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{_subject(loc)} {message}", "see docs/search-spaces.md"
    if kind in _EXPECTED:
        message = f"{_EXPECTED[kind]} is expected"
    return (
        f"{_short(value)} does not fit {_subject(loc)}: {message}",
        "see docs/search-spaces.md",
    )


def _subject(loc: tuple[int | str, ...]) -> str:
    key = next((part for part in reversed(loc) if isinstance(part, str)), "")
    if not key:
        return "the space"
    return "the rule" if key == "rules" and len(loc) > 1 else repr(key)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def _problem(what: str, source: str, line: int, key: str, fix: str, why: str = "") -> SpaceError:
    where = ", ".join(part for part in (source, f"line {line}" if line else "", key) if part)
    return SpaceError(what, where=where, why=why, fix=fix)


def _unreadable(error: StrictYamlError, source: str) -> SpaceError:
    return _problem(
        f"the search space cannot be read: {error.message}",
        source,
        error.line,
        "",
        "see docs/search-spaces.md",
    )


def _no_such_space(name: str) -> SpaceError:
    known = files.names("search_spaces")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return SpaceError(
        f"there is no search space {name!r}",
        why="it is neither a file nor the name of a space that ships with autocompress",
        fix=f"{hint}shipped: {', '.join(known)}",
    )
