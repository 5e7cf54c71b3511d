"""Where shipped files lie, how a user names them, and how folders are replaced as a whole.

`joint` means the shipped `search_spaces/joint.yaml`; anything that exists as a path means that path.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

JsonObject = Mapping[str, Any]
"""What a JSON or YAML file holds, on its way into a record or out of one: nowhere else are fields read by
name."""

CACHE_VARIABLE = "AUTOCOMPRESS_CACHE"
"""Names a folder for what is kept between commands, in place of the user's cache folder."""

_PACKAGE = Path(__file__).resolve().parent


def shipped(kind: str) -> Path:
    """Return the folder of shipped `search_spaces` or `hardware_profiles`: in a wheel, or in a checkout."""
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def names(kind: str) -> list[str]:
    """Return the names that can be given instead of a path, sorted."""
    folder = shipped(kind)
    if kind == "search_spaces":
        return sorted(path.stem for path in folder.glob("*.yaml"))
    return sorted(path.parent.name for path in folder.glob("*/profile.yaml"))


def find(kind: str, name_or_path: str | Path) -> Path | None:
    """Return the path meant by a shipped name or a path; None when there is neither."""
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    if str(name_or_path) in names(kind):
        file = f"{name_or_path}.yaml" if kind == "search_spaces" else str(name_or_path)
        return shipped(kind) / file
    return None


def user_cache() -> Path | None:
    """Return the folder for what is kept between commands, which need not exist; None where there is no home.

    `AUTOCOMPRESS_CACHE` names it, else it is `autocompress` in `XDG_CACHE_HOME` or in `~/.cache`.
    """
    named, shared = os.environ.get(CACHE_VARIABLE), os.environ.get("XDG_CACHE_HOME")
    try:
        if named:
            return Path(named).expanduser()
        return Path(shared or "~/.cache").expanduser() / "autocompress"
    except RuntimeError:
        return None


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Make the folder anew by `fill`, which is given an empty one beside it. An older one is there until the
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


def copy_folder(source: Path, target: Path, *, replace: bool) -> None:
    """Copy a folder; with `replace` in the place of one that is there. Raises OSError."""
    if not replace:
        shutil.copytree(source, target, dirs_exist_ok=True)
        return
    replace_folder(target, lambda fresh: shutil.copytree(source, fresh, dirs_exist_ok=True))
