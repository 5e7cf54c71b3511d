"""Weights on disk during a run: the traced teacher, and checkpoints of candidates between two rungs."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from autocompress.graph.network import Network, Weights, to_json
from autocompress.problem.candidate import Candidate

RUNGS = "rungs"
"""Folder of the checkpoints, beside those of the distilled students."""

_NETWORK, _WEIGHTS = "network.json", "weights.safetensors"
_EPOCHS = "epochs of the checkpoint"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Hold the weights of a candidate after so many epochs of training."""

    epochs: float
    weights: Weights


def save_teacher(folder: Path, network: Network, weights: Weights) -> None:
    """Write the traced teacher as data; its own code is not needed to read that."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _NETWORK).write_text(json.dumps(to_json(network)), encoding="utf-8")
    (folder / _WEIGHTS).write_bytes(save_arrays(weights))


def checkpoint_path(folder: Path, candidate: Candidate) -> Path:
    """Return where the weights of a candidate's last rung are kept."""
    return folder / RUNGS / f"{candidate.key}.safetensors"


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
    unfinished.write_bytes(save_arrays({**checkpoint.weights, _EPOCHS: np.array([checkpoint.epochs])}))
    unfinished.replace(path)


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Return what `save_checkpoint` wrote; None where there is none that can be read."""
    try:
        arrays = load_arrays(path.read_bytes())
        return Checkpoint(float(arrays.pop(_EPOCHS)[0]), arrays)
    except (OSError, KeyError, SafetensorError):
        return None


def discard(folder: Path) -> None:
    """Delete a folder with all that it holds, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
