"""What a search is asked for, and everything about it that can be refused without loading a model.

No torch here, so that a mistyped budget or a full run folder is told within a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autocompress.device.measure.machine import device_description
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile_files.store import load_profile
from autocompress.errors import RunError
from autocompress.pipeline.options import NOT_RECORDED, ProfileRequest, SearchOptions
from autocompress.problem.budgets import Budgets
from autocompress.problem.space import Space, space_of
from autocompress.runs.store import check_available, read_run
from autocompress.runs.tasks import one_line
from autocompress.search.halving import PATIENCE, Epochs, Plan, planned


@dataclass(frozen=True, eq=False)
class Goal:
    """What the user asked for, but for a device profile; see `api.compress`.

    `machine` says what runs students here and how, where a profile has to be found or made.
    """

    teacher: Any
    data: Any
    space: Space
    budgets: Budgets
    run: Path
    options: SearchOptions = field(default_factory=SearchOptions)
    machine: ProfileRequest = field(default_factory=ProfileRequest)

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Raise InputError for numbers or a run folder that cannot be used."""
        self.options.check()
        check_available(self.run, resume=resume, overwrite=overwrite)

    def with_profile(self, profile: DeviceProfile) -> Request:
        """Return the request of a search that prices with this profile."""
        return Request(self.teacher, self.data, profile, self.space, self.budgets, self.run, self.options)


@dataclass(frozen=True, eq=False)
class Request:
    """Hold what the user asked for; see `api.compress`."""

    teacher: Any
    data: Any
    profile: DeviceProfile
    space: Space
    budgets: Budgets
    run: Path
    options: SearchOptions = field(default_factory=SearchOptions)

    def plan(self, steps_per_epoch: int, workers: int) -> Plan:
        """Return how much of each stage, for so many steps of training in a pass over the data."""
        options = self.options
        asked = Epochs(
            options.trial_epochs, options.promotion_epochs, options.distill_epochs, options.quantized_epochs
        )
        epochs = planned(asked, steps_per_epoch)
        return Plan(
            trials=options.most_trials,
            trial_epochs=epochs.trial,
            promotion_epochs=epochs.promotion,
            final_epochs=epochs.final,
            quantized_epochs=epochs.quantized,
            least_epochs=epochs.least,
            students=options.students,
            sampler=options.sampler,
            seed=options.seed,
            time_limit_s=options.time_limit_s,
            patience=PATIENCE,
            epoch_images=steps_per_epoch * options.batch_size,
            workers=workers,
        )

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Raise InputError for numbers, a run folder or a device profile that cannot be used."""
        self.options.check()
        check_available(self.run, resume=resume, overwrite=overwrite)
        self.profile.check_here(device_description(self.profile.runtime, self.profile.threads))


def recorded_request(run: Path, add_trials: int = 0) -> Request:
    """Return the request that a run folder was made with, with more trials.

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
    for name in ("task", "metric"):
        if (config.get("options") or {}).get(name) == NOT_RECORDED:
            raise RunError(
                f"the run was started with a {name} object, which is not recorded",
                where=str(run),
                fix="call compress(…, resume=True) with the same objects",
            )
    profile = load_profile(record.paths.device)
    space = space_of(config.get("space"), str(record.paths.config))
    try:
        options = SearchOptions(**config["options"])
        options = replace(options, trials=options.most_trials + add_trials)
        budgets = Budgets(**config["budgets"])
        return Request(config["teacher"], config["data"], profile, space, budgets, run, options)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            "the run's configuration cannot be used", where=str(record.paths.config), why=one_line(error),
            fix="restore the file from a copy, or start a new run",
        ) from error  # fmt: skip
