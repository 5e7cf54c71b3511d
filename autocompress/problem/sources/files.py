"""Files of a folder or of tars, found once: names → where their bytes lie.

What no person put there as data is left out and counted: hidden files and folders (`.ipynb_checkpoints`,
`.DS_Store`, `._1.png`), `__MACOSX`, `Thumbs.db`, `desktop.ini`.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from autocompress.errors import DataError

LEFT_OUT = frozenset({"__macosx", "thumbs.db", "desktop.ini", "__pycache__", "$recycle.bin"})
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
MOST_NAMED = 4


@dataclass(frozen=True)
class Location:
    """Say where the bytes of one file lie: a whole file, or a part of a tar."""

    path: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    @property
    def bytes_long(self) -> int:
        return self.size if self.size >= 0 else self.path.stat().st_size


@dataclass(frozen=True)
class Found:
    """Visible files by their name relative to `root`, in natural order, and the folders that hold them.

    `hidden` are the names of what was left out: a hidden folder counts as one.
    """

    root: Path
    files: dict[str, Location]
    folders: frozenset[str]
    hidden: tuple[str, ...] = ()

    def note(self) -> str:
        """Say what was left out, in one line; empty where nothing was."""
        if not self.hidden:
            return ""
        kinds = sorted({PurePosixPath(name).name for name in self.hidden})
        shown = ", ".join(kinds[:MOST_NAMED]) + (", …" if len(kinds) > MOST_NAMED else "")
        return f"left out: {len(self.hidden)} hidden files or folders ({shown})"


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Order names as people count: 2 before 10."""
    parts = re.split(r"(\d+)", name.lower())
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFT_OUT


def find_files(root: Path) -> Found:
    """Find every file below a folder, or in a tar; a tar in a folder counts as a folder of its name.

    Raises DataError for a tar that is damaged or compressed.
    """
    files: dict[str, Location] = {}
    folders: set[str] = set()
    hidden: list[str] = []
    entries = _of_tar(root, "") if root.is_file() else _of_folder(root, folders, hidden)
    for name, location in entries:
        parts = PurePosixPath(name).parts
        bad = next((depth for depth, part in enumerate(parts) if is_hidden(part)), None)
        if bad is not None:
            hidden.append("/".join(parts[: bad + 1]))
            continue
        files[name] = location
        folders.update(str(parent) for parent in PurePosixPath(name).parents if str(parent) != ".")
    ordered = dict(sorted(files.items(), key=lambda item: natural_key(item[0])))
    return Found(root, ordered, frozenset(folders), tuple(dict.fromkeys(hidden)))


def _of_folder(root: Path, folders: set[str], hidden: list[str]) -> Iterator[tuple[str, Location]]:
    """Yield the files of a folder; links are followed, though never in a circle."""
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        place = Path(folder).relative_to(root)
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        hidden.extend((place / name).as_posix() for name in below if is_hidden(name))
        below[:] = [name for name in below if not is_hidden(name)]
        folders.update((place / name).as_posix() for name in below)
        for name in names:
            path = Path(folder) / name
            if path.suffix.lower() == ".tar" and not is_hidden(name):
                yield from _of_tar(path, f"{(place / path.stem).as_posix()}/")
            else:
                yield (place / name).as_posix(), Location(path)


def _of_tar(path: Path, before: str) -> Iterator[tuple[str, Location]]:
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(COMPRESSED):
        raise DataError(
            f"the tar {path} is compressed", why="single images cannot be read out of it",
            fix="unpack it, or pack it again without compression (images are compressed already)",
        )  # fmt: skip
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    name = PurePosixPath(before + member.name.lstrip("/"))
                    yield str(name), Location(path, member.offset_data, member.size)
    except tarfile.TarError as problem:
        raise DataError(
            f"no images were found in {path}", why=f"{type(problem).__name__}: {problem}",
            fix="give a folder, or a tar file",
        ) from problem  # fmt: skip
