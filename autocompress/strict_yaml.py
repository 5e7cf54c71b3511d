"""YAML without surprises: plain mappings, lists and scalars, each with the line it stands on.

Refused, with the line: duplicate keys, anchors and aliases, tags, several documents, keys that
are not text, nesting deeper than 20, files above 256 KiB and bytes that are not UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autocompress.files import JsonObject

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20

Key = str | int
KeyPath = tuple[Key, ...]


class StrictYamlError(ValueError):
    """Say what is wrong, and the line (from 1; 0 where no line is to blame)."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.message, self.line = message, line


@dataclass(frozen=True)
class Document:
    """Hold a document: `data` is made of dicts, tuples and scalars; `lines` gives the line of each key path
    in it."""

    data: Any
    lines: Mapping[KeyPath, int]

    def known_prefix(self, path: Iterable[Any]) -> KeyPath:
        """Return the longest beginning of `path` that is in the file, parts that are not skipped."""
        known: KeyPath = ()
        for part in path:
            if (*known, part) in self.lines:
                known = (*known, part)
        return known

    def line_of(self, path: Iterable[Any]) -> int:
        return self.lines[self.known_prefix(path)]


def read_document(path: Path, max_bytes: int = MAX_BYTES) -> Document:
    """Read a document; raise StrictYamlError for every way in which the file cannot be read."""
    try:
        if not path.is_file():
            raise StrictYamlError("it is not a file")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise StrictYamlError(f"{error.strerror}") from error
    if len(content) > max_bytes:
        raise StrictYamlError(f"it is larger than {max_bytes // 1024} KiB")
    try:
        return parse_document(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StrictYamlError(f"byte {error.start} is not UTF-8", line) from error


def document_of(data: Any) -> Document:
    """Return data that was read before, by JSON or YAML, as a document of one line."""
    lines: dict[KeyPath, int] = {}

    def seen(value: Any, path: KeyPath) -> Any:
        lines[path] = 1
        if isinstance(value, Mapping):
            return {str(key): seen(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return tuple(seen(item, (*path, index)) for index, item in enumerate(value))
        return value

    return Document(seen(data, ()), lines)


def parse_document(text: str) -> Document:
    """Parse a document; raise StrictYamlError unless `text` is one plain YAML document."""
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _from_yaml(error) from error
    except yaml.YAMLError as error:
        raise StrictYamlError(" ".join(str(error).split())) from error
    if node is None:
        raise StrictYamlError("it is empty", 1)
    lines: dict[KeyPath, int] = {}
    return Document(_value(loader, node, (), lines), lines)


def _from_yaml(error: yaml.MarkedYAMLError) -> StrictYamlError:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "unknown"
    return StrictYamlError(f"not valid YAML: {problem}", mark.line + 1 if mark else 0)


class _StrictLoader(yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise StrictYamlError("anchors (&) and aliases (*) are not used here; quote text with a *", line)
        if getattr(event, "tag", None):
            raise StrictYamlError(f"the tag {event.tag!r} is not allowed", line)
        if self._depth >= MAX_DEPTH:
            raise StrictYamlError(f"it is nested deeper than {MAX_DEPTH} levels", line)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _value(loader: yaml.SafeLoader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, lines)
    if isinstance(node, yaml.SequenceNode):
        return tuple(_value(loader, item, (*path, i), lines) for i, item in enumerate(node.value))
    try:
        return loader.construct_object(node)
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        raise StrictYamlError(f"{str(node.value)[:40]!r} is not a value", node.start_mark.line + 1) from error


def _mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int]
) -> JsonObject:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
            raise StrictYamlError("a key must be a word", line)
        key = key_node.value
        if key in result:
            raise StrictYamlError(f"the key {key!r} stands twice, first in line {lines[(*path, key)]}", line)
        lines[(*path, key)] = line
        result[key] = _value(loader, value_node, (*path, key), lines)
    return result
