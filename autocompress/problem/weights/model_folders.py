"""Folders of a vision model as model hubs lay them out: config.json beside the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from autocompress.errors import TeacherError
from autocompress.files import JsonObject
from autocompress.problem.weights.checkpoints import load_weights

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


@dataclass(frozen=True)
class OpenedFolder:
    """A network with its weights; `config` says what its input is, `note` which weights were taken."""

    module: nn.Module
    class_names: tuple[str, ...]
    config: JsonObject
    note: str = ""


class Logits(nn.Module):
    """A model of transformers that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.model(pixel_values=images).logits)


def is_model_folder(text: str) -> bool:
    return bool(text) and (Path(text).expanduser() / "config.json").is_file()


def open_folder(text: str) -> OpenedFolder:
    """Open a folder of timm or transformers, from its files alone; raise TeacherError."""
    folder = Path(text).expanduser()
    config = _json(folder / "config.json")
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise TeacherError(
            f"the folder {text} has a config.json and no weights",
            fix=f"put one of {', '.join(WEIGHT_FILES)} into it",
        )
    return _timm(folder, config, weights) if "architecture" in config else _transformers(folder, weights)


def _timm(folder: Path, config: JsonObject, weights: Path) -> OpenedFolder:
    import timm

    try:
        module = timm.create_model(f"local-dir:{folder}", pretrained=False)
    except Exception as problem:
        raise _not_built(folder, problem) from problem
    note = load_weights(module, weights, str(config["architecture"]))
    return OpenedFolder(module, tuple(map(str, config.get("label_names") or ())), {}, note)


def _transformers(folder: Path, weights: Path) -> OpenedFolder:
    try:
        from transformers import AutoConfig, AutoModelForImageClassification  # type: ignore[import-not-found]
    except ImportError as problem:
        raise TeacherError(
            f"the folder {folder} holds a model of transformers, which is not installed",
            where=str(folder),
            fix="pip install transformers, or give the network as file.py:callable",
        ) from problem
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    except Exception as problem:
        raise _not_built(folder, problem) from problem
    note = load_weights(model, weights, type(model).__name__)
    names = tuple(str(config.id2label[index]) for index in sorted(config.id2label or {}))
    return OpenedFolder(Logits(model), names, _input_of(folder), note)


def _input_of(folder: Path) -> JsonObject:
    """Return the processor's settings under timm's names."""
    path = folder / "preprocessor_config.json"
    found = _json(path) if path.is_file() else {}
    size = found.get("crop_size") if found.get("do_center_crop") else found.get("size")
    size = size if isinstance(size, Mapping) else {"height": size, "width": size}
    height, width = (size.get(key) or size.get("shortest_edge") for key in ("height", "width"))
    values: dict[str, Any] = {"mean": found.get("image_mean"), "std": found.get("image_std")}
    if height and width:
        values["input_size"] = (3, int(height), int(width))
    return values


def _json(path: Path) -> JsonObject:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise TeacherError(
            f"the file {path} cannot be read", why=str(problem), fix="copy the whole model folder again"
        ) from problem
    if not isinstance(found, Mapping):
        raise TeacherError(f"the file {path} holds no configuration", fix="copy the whole model folder again")
    return found


def _not_built(folder: Path, problem: Exception) -> TeacherError:
    return TeacherError(
        f"no image classifier can be built from {folder}",
        why=f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:300]}",
        fix="give the network as file.py:callable",
    )
