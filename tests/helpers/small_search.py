"""A search in miniature: a small residual network learns handwritten digits and is compressed."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from places import ROOT

import autocompress as ac
from autocompress.device.measure import latency as measure
from autocompress.progress import Console

TEACHER = """
import sys
sys.path.insert(0, "{networks}")
import torch
from priced_networks import small_resnet
from safetensors.torch import load_file

def trained():
    model = small_resnet(in_channels=3, classes=10)
    model.load_state_dict(load_file("{folder}/teacher.safetensors"))
    return model
"""
CALM = replace(measure.CERTIFY, blocks=3, block_s=0.1, most_spread=1.0, most_drift=1.0)
"""Whether the machine is calm enough to certify is not what is tested here."""


@dataclass(frozen=True)
class Setting:
    """A trained teacher and a profile of this machine for it, as a user would name them."""

    folder: Path

    @property
    def options(self) -> dict[str, Any]:
        return {
            "teacher": f"{self.folder}/teacher.py:trained",
            "data": "digits",
            "space": str(self.folder / "space.yaml"),
            "device": str(self.folder / "device"),
        }

    def command(self, run: Path, *more: str) -> list[str]:
        options = [part for name, value in self.options.items() for part in (f"--{name}", value)]
        plan = "--latency 97% --size 70% --trials 6 --students 1 --trial-epochs 0.3 --distill-epochs 1"
        return [
            sys.executable,
            "-m",
            "autocompress",
            "search",
            *options,
            *plan.split(),
            "--run",
            str(run),
            *more,
        ]


def compress(setting: Setting, run: Path, **changes: Any) -> ac.Front:
    budgets = ac.Budgets(latency_ratio=0.97, size_ratio=0.7)
    plan = {"trials": 4, "students": 2, "trial_epochs": 0.5, "distill_epochs": 4}
    options = {**setting.options, "budgets": budgets, **plan, "console": Console(quiet=True), **changes}
    return ac.compress(run=run, **options)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
