"""What a search is asked for, and everything about it that can be refused without loading a model.

No torch here, so that a mistyped budget or a full run folder is told within a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autocompress.device.measure.machine import device_description
from autocompress.device.profile.profile import DeviceProfile, load_profile
from autocompress.errors import InputError, RunError
from autocompress.problem.budgets import Budgets
from autocompress.problem.space import Space, space_of
from autocompress.runs.store import check_available, read_run
from autocompress.runs.tasks import one_line
from autocompress.search.halving import PATIENCE, Plan

DEFAULT_TRIALS, MOST_TRIALS = 100, 10_000
"""Without a number of trials: where there is no time limit either, and where there is one."""


@dataclass(frozen=True, eq=False)
class Request:
    """What the user asked for; see `api.compress`."""

    teacher: Any
    data: Any
    profile: DeviceProfile
    space: Space
    budgets: Budgets
    trials: int
    run: Path
    workers: int = 0
    ray_address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float = 0.0
    sampler: str = "engine"
    seed: int = 0
    trial_epochs: float | None = None
    promotion_epochs: float | None = None
    distill_epochs: float | None = None
    quantized_epochs: float | None = None
    students: int = 4
    batch_size: int = 128
    learning_rate: float | None = None
    train_on: Literal["auto", "cpu", "cuda"] = "auto"
    time_limit_s: float | None = None
    trial_timeout_s: float | None = None

    @property
    def plan(self) -> Plan:
        def given(value: float | None) -> float:
            return -1.0 if value is None else value

        return Plan(
            trials=self.trials,
            trial_epochs=given(self.trial_epochs),
            promotion_epochs=given(self.promotion_epochs),
            final_epochs=given(self.distill_epochs),
            quantized_epochs=given(self.quantized_epochs),
            students=self.students,
            sampler=self.sampler,
            seed=self.seed,
            time_limit_s=self.time_limit_s,
            patience=PATIENCE,
        )

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Raises InputError for numbers, a run folder or a device profile that cannot be used."""
        for name in ("trials", "students", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}", fix="give 1 or more")
        check_available(self.run, resume=resume, overwrite=overwrite)
        self.profile.check_here(device_description(self.profile.runtime, self.profile.threads))


RECORDED = tuple(
    name
    for name in Request.__dataclass_fields__
    if name not in ("teacher", "data", "profile", "space", "budgets", "run")
)
"""Options that a run's configuration keeps as they are."""


def recorded_request(run: Path, add_trials: int = 0) -> Request:
    """The request that a run folder was made with, with more trials.

    Raises RunError for a run that was started from objects of a Python session, or whose configuration was
    changed into what is none.
    """
    record = read_run(run)
    config = record.config
    for name in ("teacher", "data"):
        if not config.get(name):
            raise RunError(
                f"the run was started with a {name} object, which is not recorded",
                where=str(run),
                fix="call compress(…, resume=True) with the same objects",
            )
    profile = load_profile(record.paths.device)
    space = space_of(config.get("space"), str(record.paths.config))
    try:
        options = dict(config["options"])
        options["trials"] += add_trials
        budgets = Budgets(**config["budgets"])
        return Request(
            teacher=config["teacher"], data=config["data"], profile=profile, space=space, budgets=budgets,
            run=run, **options,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            "the run's configuration cannot be used", where=str(record.paths.config), why=one_line(error),
            fix="restore the file from a copy, or start a new run",
        ) from error  # fmt: skip
