"""Reading a device profile's text files from anyone: bounded, never hanging, never leaving the folder."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from autocompress.errors import ProfileError

MOST_BYTES = 64 * 1024 * 1024
_MOST_DIGITS = 15


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a regular file inside its folder. Raises ProfileError.

    The size is asked first and bounds what is read; pipes and devices are not waited for.
    """
    _stay_inside(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                refuse(path, "it is not a plain file", "put a plain file of that name there")
            if found.st_size > most_bytes:
                refuse(path, f"it is larger than {most_bytes // 1024**2} MiB")
            content = file.read(min(most_bytes, found.st_size) + 1)
    except FileNotFoundError:
        refuse(path, "the file is missing")
    except IsADirectoryError:
        refuse(path, "it is not a plain file but a folder", "put a plain file of that name there")
    except OSError as error:
        refuse(path, error.strerror or str(error))
    return _decoded(path, content)


def _stay_inside(path: Path) -> None:
    try:
        real = path.resolve()
        folder = path.parent.resolve()
    except (OSError, RuntimeError) as error:
        refuse(path, f"it is a link that leads nowhere: {error}")
    if not real.is_relative_to(folder):
        refuse(path, f"it is a link out of the folder, to {real}", "put the file itself there")


def _decoded(path: Path, content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        refuse(path, "it is not UTF-8 text but UTF-16", "save it as UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        refuse(path, f"line {line}: it is not UTF-8 text", "save it as UTF-8")
    if not text.strip():
        refuse(path, "the file is empty")
    if text.startswith("\ufeff"):
        refuse(path, "it starts with a byte order mark", "save it as UTF-8 without one")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        refuse(path, f"line {line}: it holds a zero byte, so it is no text (not UTF-8, or damaged)")
    return text


def whole(path: Path, where: str, cell: str) -> int:
    if not cell.isascii() or not cell.isdigit() or len(cell) > _MOST_DIGITS:
        refuse(path, f"{where} is {cell[:40]!r}, a whole number is expected")
    return int(cell)


def finite(path: Path, where: str, value: Any, *, positive: bool = False) -> float:
    try:
        if isinstance(value, bool) or "_" in str(value):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        refuse(path, f"{where} is {str(value)[:40]!r}, a number is expected")
    if not math.isfinite(number) or (positive and number <= 0):
        refuse(path, f"{where} is {value}, a {'positive ' if positive else 'finite '}number is expected")
    return number


def refuse(path: Path, why: str, fix: str = "correct the file, or profile the device again") -> NoReturn:
    raise ProfileError("the device profile cannot be used", where=str(path), why=why, fix=fix)
