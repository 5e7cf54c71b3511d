"""Labels of the data ↔ outputs of the teacher: which output each class is, and whether that can be right."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.errors import DataError
from autocompress.files import JsonObject
from autocompress.problem.data import Data
from autocompress.problem.sources.files import natural_key
from autocompress.problem.splits import LazySplit, Split, TensorSplit
from autocompress.problem.teacher import eval_mode

FIRST_LOOK = 64
LOOKED_AT = 512
TARGET_BATCH = 32
SUSPICIOUS_SHARE = 0.5
MOST_SHOWN = 12
IMAGENET_CLASSES = 1000


def matched(data: Data, outputs: int, output_names: Sequence[str] = ()) -> Data:
    """Return the data with each label the number of the teacher's output for its class.

    By the user's `class_map`; by the names of the outputs; by ImageNet's names or plain numbers as names
    of folders; from 1 where labels count from 1. Data that fits as it is comes back as it is, and so does
    data of which nothing fits. Raises DataError for a `class_map` that is of other classes or outputs.
    """
    if data.class_map is not None:
        return _mapped(data, _class_map(data, outputs, output_names), outputs, output_names, "class_map")
    found = _by_name(data, outputs, output_names)
    if found:
        return _mapped(data, *found)
    labels = torch.cat([split.labels for split in (data.train, data.validation)])
    if data.num_classes == outputs + 1 and int(labels.min()) == 1 and _test_starts_at(data) >= 1:
        shifted = torch.arange(data.num_classes).sub(1).clamp(min=0)
        note = f"labels count from 1 to {outputs}: label 1 is the teacher's output 0"
        return data.relabelled(shifted, outputs, data.class_names[1:], note)
    if data.num_classes < outputs and not data.class_names:
        note = (
            f"labels go up to {data.num_classes - 1} and the teacher has {outputs} outputs: labels are taken "
            "as numbers of outputs"
        )
        return data.relabelled(torch.arange(data.num_classes), outputs, (), note)
    return data


def _test_starts_at(data: Data) -> int:
    return 1 if data.test is None else int(data.test.labels.min())


def _mapped(data: Data, numbers: list[int], outputs: int, names: Sequence[str], by: str) -> Data:
    if numbers == list(range(outputs)):
        return data.relabelled(torch.arange(outputs), outputs, data.class_names, "")
    whole = list(names) or [""] * outputs
    for number, name in zip(numbers, data.class_names, strict=False):
        whole[number] = name
    shown = ", ".join(map(str, numbers[:MOST_SHOWN])) + (", …" if len(numbers) > MOST_SHOWN else "")
    note = f"the {len(numbers)} classes are the teacher's outputs {shown} of {outputs}, by {by}"
    return data.relabelled(torch.tensor(numbers), outputs, tuple(whole) if any(whole) else (), note)


def _by_name(
    data: Data, outputs: int, names: Sequence[str]
) -> tuple[list[int], int, Sequence[str], str] | None:
    own = data.class_names
    if not own or data.num_classes > outputs:
        return None
    known = {name: number for number, name in enumerate(names)}
    if len(names) == outputs and all(name in known for name in own):
        return [known[name] for name in own], outputs, names, "name"
    if data.num_classes == outputs:
        return None
    if all(name.isdecimal() and int(name) < outputs for name in own):
        return [int(name) for name in own], outputs, names, "the numbers that the classes are called"
    known = _imagenet() if outputs == IMAGENET_CLASSES else {}
    if all(name in known for name in own):
        return [known[name] for name in own], outputs, names, "their WordNet numbers"
    return None


def _imagenet() -> dict[str, int]:
    from timm.data import ImageNetInfo

    return {name: number for number, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def _class_map(data: Data, outputs: int, output_names: Sequence[str]) -> list[int]:
    """Return the numbers of outputs by label, of `3/17/5` or of a file that gives a number or name for each
    class."""
    given = data.class_map
    if isinstance(given, str):
        table = _read_map(given, data.name)
        lacking = next((name for name in data.class_names if name not in table), None)
        if lacking is not None or not data.class_names:
            raise DataError(
                f"{given} does not name the class {lacking!r}",
                where=data.name,
                fix="add the class, or give class_map for all classes of the data",
            )
        values: list[Any] = [table[name] for name in data.class_names]
    else:
        values = list(given) if isinstance(given, tuple) else [given]
    known = {name: number for number, name in enumerate(output_names)}
    numbers = [known.get(str(value), value) for value in values]
    bad = next((v for v in numbers if not str(v).isdecimal() or not 0 <= int(v) < outputs), None)
    if bad is not None or len(numbers) != data.num_classes or len(set(map(str, numbers))) != len(numbers):
        raise DataError(
            f"class_map gives {len(numbers)} outputs for {data.num_classes} classes"
            if bad is None
            else f"class_map names {bad}, and the teacher has outputs 0 to {outputs - 1}",
            where=data.name,
            fix="give a different output for each class: class_map=3/17/5, or a JSON file {class: output}",
        )
    return [int(value) for value in numbers]


def _read_map(name: str, where: str) -> JsonObject:
    """Read `{"cat": 281}` as JSON, or lines `cat,281`."""
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return {str(key): value for key, value in json.loads(text).items()}
        return {row[0].strip(): row[1].strip() for row in csv.reader(text.splitlines()) if row}
    except (OSError, ValueError, AttributeError, IndexError) as problem:
        raise DataError(
            f"the class map {name} cannot be read", where=where, why=f"{type(problem).__name__}: {problem}",
            fix='give JSON such as {"cat": 281}, or lines such as cat,281',
        ) from problem  # fmt: skip


def with_teacher_outputs(module: nn.Module, data: Data) -> Data:
    """Return the data whose labels are the module's outputs, for all images but those that are only learned
    from: training computes the outputs for its own, which are augmented."""
    held = [split for split in (data.validation, data.calibration, data.test) if split is not None]
    known: dict[int, Tensor] = {}
    for split in held:
        assert isinstance(split, (TensorSplit, LazySplit))
        key, count = id(split.image_labels), len(split.image_labels)
        outputs = _outputs_of(module, split)
        if key not in known:
            known[key] = torch.zeros(count, *outputs.shape[1:])
        known[key][torch.arange(count) if split.positions is None else split.positions] = outputs

    def filled(split: Split) -> Split:
        assert isinstance(split, (TensorSplit, LazySplit))
        return replace(split, image_labels=known[id(split.image_labels)])

    return replace(
        data,
        train=filled(data.train),
        validation=filled(data.validation),
        calibration=filled(data.calibration),
        test=None if data.test is None else filled(data.test),
        targets="none",
    )


def _outputs_of(module: nn.Module, split: Split) -> Tensor:
    with eval_mode(module), torch.inference_mode():
        found = [
            module(images.contiguous(memory_format=torch.channels_last)).float()
            for images, _ in split.batches(TARGET_BATCH)
        ]
    return torch.cat(found).clone()


def doubt_about_labels(module: nn.Module, data: Data) -> str:
    """Return a warning where the teacher is right for less than half of what its answers would allow.

    Allowed is what it would be right for at best, if it gave each answer as often as it does and the labels
    were permuted. An order of the classes that fits is named.
    """
    table = _confusion(module, data)
    right, allowed = int(np.trace(table)), _allowed(table)
    if right >= SUSPICIOUS_SHARE * allowed:
        return ""
    count = int(table.sum())
    mean, std = ("/".join(f"{value:g}" for value in values) for values in (data.mean, data.std))
    return (
        f"warning: the teacher is right for {right / count:.0%} of {count} training images, and could be for "
        f"{allowed / count:.0%} by how often it gives each answer: the order of the classes, or the "
        f"normalisation (mean {mean}, std {std}), may be wrong{_order_that_fits(table, data)}"
    )


def _allowed(table: np.ndarray) -> float:
    return float(np.minimum(table.sum(0), table.sum(1)).sum())


def _confusion(module: nn.Module, data: Data) -> np.ndarray:
    """Count by (label, answer), of a few images where these raise no doubt."""
    table = np.zeros((data.num_classes, data.num_classes))
    with eval_mode(module), torch.inference_mode():
        for images, labels in data.calibration.subset(LOOKED_AT).batches(FIRST_LOOK):
            np.add.at(table, (labels.numpy(), module(images).argmax(1).numpy()), 1)
            if np.trace(table) >= SUSPICIOUS_SHARE * _allowed(table):
                return table
    return table


def _order_that_fits(table: np.ndarray, data: Data) -> str:
    other = _other_order(data.class_names)
    if other and _fits(table, other[1]):
        share = table[np.arange(len(table)), other[1]].sum() / table.sum()
        return f"; with class_order={other[0]} it would be right for {share:.0%}"
    found = _best_order(table)
    if not _fits(table, found) or len(found) > LOOKED_AT // 8:
        return ""
    share = table[np.arange(len(table)), found].sum() / table.sum()
    return f"; with class_map={'/'.join(map(str, found))} it would be right for {share:.0%}"


def _other_order(names: Sequence[str]) -> tuple[str, list[int]] | None:
    """Return the other of natural and text order: its name, and the place of each class in it."""
    orders = {"natural": sorted(names, key=natural_key), "text": sorted(names)}
    if orders["natural"] == orders["text"] or len(set(names)) != len(names):
        return None
    other = "natural" if list(names) == orders["text"] else "text"
    return other, [orders[other].index(name) for name in names]


def _best_order(table: np.ndarray) -> list[int]:
    """Return the output for each label with which most answers are right (the assignment problem)."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(-table)
    return [int(column) for column in columns]


def _fits(table: np.ndarray, order: Sequence[int]) -> bool:
    """Return whether an order explains the answers, beyond what choosing the best of many orders explains."""
    right = float(table[np.arange(len(table)), order].sum())
    chance = 4 * float(np.sqrt(table.sum())) + len(table)
    return right >= max(SUSPICIOUS_SHARE * _allowed(table), 2 * float(np.trace(table)), chance)
