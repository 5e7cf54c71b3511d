"""Tars of the WebDataset kind: an image and its label lie side by side under one name, 17.jpg and 17.cls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path, PurePosixPath

from autocompress.errors import DataError
from autocompress.problem.sources.files import Found, Location
from autocompress.problem.sources.labels import Label, read_label

LABEL_ENDINGS = (".cls", ".json", ".txt")
LABEL_KEYS = ("label", "cls", "class", "target")


def is_webdataset(found: Found) -> bool:
    """Return whether images have files of labels beside them instead of lying in folders of classes."""
    return any(name.endswith(".cls") for name in found.files)


def label_files(found: Found, images: Iterable[str]) -> dict[str, Location]:
    """Return the file of the label of each image; raise DataError that names an image without one."""
    beside = {
        _key(name): location
        for ending in reversed(LABEL_ENDINGS)
        for name, location in found.files.items()
        if name.endswith(ending)
    }
    labels = {name: beside.get(_key(name)) for name in images}
    lacking = next((name for name, location in labels.items() if location is None), None)
    if lacking is not None:
        raise DataError(
            f"the image {lacking} has no label", where=str(found.root), fix="put a .cls file beside it"
        )
    return {name: location for name, location in labels.items() if location is not None}


def read_label_file(name: str, location: Location, where: str) -> Label:
    text = location.read().decode("utf-8", "replace").strip()
    value: object = text
    if text.startswith("{"):
        found = json.loads(text)
        value = next((found[key] for key in LABEL_KEYS if key in found), text)
    elif re.fullmatch(r"-?\d+", text):
        value = int(text)
    return read_label(value, 0, f"{where}, label of {name}")


def _key(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def shards(pattern: str) -> list[Path]:
    """Return the files of `train-{000..003}.tar`: numbers and lists in braces are written out."""
    pieces = re.split(r"(\{[^{}]*\})", pattern)
    choices = [_written_out(piece) if piece.startswith("{") else [piece] for piece in pieces]
    return [Path("".join(chosen)).expanduser() for chosen in product(*choices)]


def _written_out(braces: str) -> list[str]:
    inner = braces[1:-1]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if not span:
        return inner.split(",")
    first, last = span.groups()
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
