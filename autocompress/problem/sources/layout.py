"""Names of files → which split and which class each belongs to. Nothing is read here.

Splits lie in folders (or tars) with one of the usual names, whatever the case: `train`, `Training_set`;
`val`, `valid`, `validation`, `dev`; `test`, `testing`, `eval`, `holdout`. Such a folder must hold class
folders; one that holds images itself is a class of that name. Below a split, the topmost folder that
holds images itself is the class.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from autocompress.errors import DataError
from autocompress.problem.sources.files import Found

IMAGE_ENDINGS = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm"}
)
TRAIN, VALIDATION, TEST = "train", "validation", "test"
ROLES = {
    "train": TRAIN, "training": TRAIN,
    "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "validate": VALIDATION,
    "dev": VALIDATION,
    "test": TEST, "testing": TEST, "eval": TEST, "evaluation": TEST, "holdout": TEST, "heldout": TEST,
}  # fmt: skip
PREFERENCE = tuple(ROLES)
FILLERS = frozenset(
    "set sets data dataset split images image imgs img pictures photos files folder seg shard shards "
    "final v the my".split()
)
CLASS_FOLDERS = ("first", "last")


@dataclass(frozen=True)
class ImageSet:
    """Labelled names of one split; `folder` is where they lie, empty for the root."""

    folder: str
    names: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The sets by split (`train` always), and what is to be said about it."""

    sets: dict[str, ImageSet]
    notes: tuple[str, ...] = ()


def split_of(name: str) -> str | None:
    """Return the split that a folder's name stands for, or None."""
    return ROLES.get(_word(name))


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_ENDINGS


def arrange(found: Found, class_folder: str | None = None) -> Layout:
    """Return which images belong to which split and class; raise DataError where that is not clear.

    `class_folder` decides between the `first` and the `last` folder on the way to an image, where the
    same names occur in several places.
    """
    images = [name for name in found.files if is_image(name)]
    if not images:
        raise _no_images(found, "no images were found in")
    base = _base(images)
    held = _by_top(images, base)
    flat = {top for top in held if any(len(_below(name, base)) == 2 for name in held[top])}
    roles = {top: role for top in held if top not in flat and (role := split_of(_group(top)))}
    _check_flat(found, flat, roles)
    _check_empty(found, base, held)
    if TRAIN not in roles.values():
        if roles:
            raise DataError(
                f"{found.root} has held-out images and no train folder",
                where=", ".join(roles),
                fix="name the folder of training images train",
            )
        sets = {TRAIN: _classified(images, base, found, class_folder)}
        return Layout(sets, tuple(filter(None, (found.note(), _loose(images, base)))))
    chosen = _chosen(roles, found)
    sets = {
        role: _classified([name for top in tops for name in held[top]], base, found, class_folder, tops)
        for role, tops in chosen.items()
    }
    used = {top for tops in chosen.values() for top in tops}
    unused = [f"{top} ({len(held[top])} images)" for top in held if top not in used]
    said = f"not used: {', '.join(unused)}" if unused else ""
    return Layout(sets, tuple(filter(None, (found.note(), said, _loose(images, base)))))


def _base(images: Sequence[str]) -> tuple[str, ...]:
    """Return the folder in which sets or classes lie side by side, below single folders without images."""
    base: tuple[str, ...] = ()
    while True:
        below = {_below(name, base)[:1] for name in images}
        deep = all(len(_below(name, base)) > 2 for name in images)
        if len(below) != 1 or not deep:
            return base
        (top,) = below
        if split_of(top[0]):
            return base
        base += top


def _below(name: str, base: tuple[str, ...]) -> tuple[str, ...]:
    return PurePosixPath(name).parts[len(base) :]


def _by_top(images: Iterable[str], base: tuple[str, ...]) -> dict[str, list[str]]:
    """Return images by the folder at the top that they lie in; loose ones are not among them."""
    held: dict[str, list[str]] = defaultdict(list)
    for name in images:
        parts = _below(name, base)
        if len(parts) > 1:
            held[parts[0]].append(name)
    return dict(held)


def _group(top: str) -> str:
    """Return the name of a shard without its number."""
    return re.sub(r"[-_]\d{3,}$", "", top)


def _chosen(roles: dict[str, str], found: Found) -> dict[str, list[str]]:
    """Return the folders of each split: shards of one name together, else the most usual name alone.

    Where images are held out once, they are for reporting; a second such folder is for choosing.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for top in roles:
        groups[_group(top)].append(top)
    by_role: dict[str, list[str]] = defaultdict(list)
    for group in sorted(groups, key=lambda name: PREFERENCE.index(_word(name))):
        by_role[roles[groups[group][0]]].append(group)
    for role, names in by_role.items():
        same = [name for name in names if _word(name) == _word(names[0])]
        if len(same) > 1:
            raise DataError(
                f"{' and '.join(same)} may both be the {role} images", where=str(found.root),
                fix="keep one of them there, or give them other names",
            )  # fmt: skip
    if VALIDATION not in by_role and len(by_role[TEST]) > 1:
        by_role[VALIDATION] = [by_role[TEST].pop(1)]
    if not by_role[TEST]:
        by_role[TEST] = by_role.pop(VALIDATION, [])
    return {role: groups[names[0]] for role, names in by_role.items() if names}


def _word(name: str) -> str:
    """Return the usual name that a folder's name holds."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word and word not in FILLERS]
    return re.sub(r"(?<=[a-z])(?:set|data|split|images|imgs)$", "", "".join(words))


def _classified(
    names: list[str],
    base: tuple[str, ...],
    found: Found,
    class_folder: str | None,
    tops: Sequence[str] = (),
) -> ImageSet:
    """Return the set of the images below `base`, or below each of `tops` in it."""
    inner = len(base) + bool(tops)
    names = [name for name in names if len(PurePosixPath(name).parts) > inner + 1]
    if not names:
        raise _no_images(found, f"the images of {', '.join(tops)} lie in no class folder:")
    folders = {PurePosixPath(name).parts[inner:-1] for name in names}
    classes = _classes(folders, class_folder, found, " and ".join(tops))
    return ImageSet(
        "/".join((*base, *tops[:1])),
        tuple(names),
        tuple(classes[PurePosixPath(name).parts[inner:-1]] for name in names),
    )


def _classes(
    folders: set[tuple[str, ...]], class_folder: str | None, found: Found, where: str
) -> dict[tuple[str, ...], str]:
    """Return the class of each folder that holds images."""
    if class_folder == "first":
        return {folder: folder[0] for folder in folders}
    top = {
        folder: next(folder[:n] for n in range(1, len(folder) + 1) if folder[:n] in folders)
        for folder in folders
    }
    places: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for folder in top.values():
        places[folder[-1]].add(folder)
    several = {name: sorted(found_in) for name, found_in in places.items() if len(found_in) > 1}
    if several and class_folder != "last":
        name, found_in = min(several.items())
        first, second = ("/".join(folder) for folder in found_in[:2])
        raise DataError(
            f"the folder {name!r} lies in several places, such as {first} and {second}",
            where=" ".join(filter(None, (str(found.root), where))),
            why="they may be splits of unusual names, parts of one class, or folders of the same class",
            fix="name splits train, val and test; or give class_folder=first where the upper folder is the "
            "class, or class_folder=last where all folders of a name are one class",
        )
    return {folder: found_class[-1] for folder, found_class in top.items()}


def _check_flat(found: Found, flat: set[str], roles: dict[str, str]) -> None:
    """Refuse folders named like splits that hold images themselves: they are splits without labels, not
    classes."""
    named = {split_of(top) for top in flat}
    if not roles and flat and TRAIN in named and None not in named and len(named) > 1:
        raise DataError(
            f"the images of {', '.join(sorted(flat))} lie in no class folder", where=str(found.root),
            why="folders of these names are splits, and a folder below them says the class",
            fix="put the images of each class into a folder of its own: train/cat/1.png, train/dog/1.png",
        )  # fmt: skip


def _check_empty(found: Found, base: tuple[str, ...], held: dict[str, list[str]]) -> None:
    if not any(split_of(top) == TRAIN for top in held):
        return
    for folder in sorted(found.folders):
        parts = PurePosixPath(folder).parts
        beside = len(parts) == len(base) + 1 and parts[: len(base)] == base
        if beside and split_of(parts[-1]) and parts[-1] not in held:
            raise DataError(
                f"the {split_of(parts[-1])} data is empty: no images were found in {folder}",
                where=str(found.root), fix="put images into it, or remove the folder",
            )  # fmt: skip


def _loose(images: Sequence[str], base: tuple[str, ...]) -> str:
    count = sum(len(_below(name, base)) == 1 for name in images)
    return f"left out: {count} images that lie in no class folder" if count else ""


def _no_images(found: Found, what: str) -> DataError:
    hidden = f", and {found.note()}" if found.hidden else ""
    return DataError(
        f"{what} {found.root}",
        why=f"there are {len(found.files)} other files{hidden}",
        fix="put the images of each class into a folder of its own: DIR/cat/1.png, DIR/dog/1.png",
    )
