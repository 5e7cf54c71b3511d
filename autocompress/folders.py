"""Folders that are replaced as a whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Makes the folder anew by `fill`, which is given an empty one beside it. An older one is there until the
    new one is whole, and again where that cannot take its place. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        fresh, old = Path(scratch) / "new", Path(scratch) / "old"
        fresh.mkdir()
        fill(fresh)
        if not folder.exists():
            fresh.rename(folder)
            return
        folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            old.rename(folder)
            raise
