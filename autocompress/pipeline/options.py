"""Options that travel as one value: a frozen dataclass whose fields carry default and help.

The command line takes its options from the fields, Python its keywords, and a run records the value. Nothing
heavy is imported here: the command line's `--help` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from autocompress.errors import InputError
from autocompress.students.training.settings import DeviceName, DistillSettings

Options = TypeVar("Options")

DEFAULT_TRIALS, MOST_TRIALS = 100, 10_000
"""Without a number of trials: where there is no time limit either, and where there is one."""


@dataclass(frozen=True)
class Typed:
    """How the command line takes an option: its help, and what a value may be.

    `least` is the smallest number, `above` one that it must be above. `flag` is the option's name where that
    is not the field's; `by_default` says in words what None does. An option that `is_duration` is typed as
    `90s`, `30m` or `1.5h`.
    """

    help: str
    least: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    flag: str = ""
    by_default: str = ""
    is_duration: bool = False


def option(default: Any, help: str, **details: Any) -> Any:
    """Return a field of an options dataclass that the command line takes, too; for `details` see `Typed`."""
    return field(default=default, metadata={"typed": Typed(help, **details)})


def from_keywords(kind: type[Options], keywords: Mapping[str, Any]) -> Options:
    """Return the options that keywords give; those of an `options=` that is among them are the defaults.

    Raises InputError for a name that is none, with the nearest one that is.
    """
    given = dict(keywords)
    base = given.pop("options", None)
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"there is no option {name!r}", fix=fix)
    if base is not None and not isinstance(base, kind):
        raise InputError(f"options is {base!r}", fix=f"give a {kind.__name__}, or single options")
    return kind(**given) if base is None else replace(base, **given)  # type: ignore[type-var]


@dataclass(frozen=True)
class SearchOptions:
    """How to search. Every field has a default; what is None is found out.

    The epochs that are not on the command line: of a candidate on the highest rung, and of a finalist's
    quantization-aware distillation.
    """

    trials: int | None = option(
        None,
        "Candidates to try at most.",
        least=1,
        by_default=f"{DEFAULT_TRIALS}, or with --time as many as are worth it",
    )
    workers: int = option(
        0,
        "Processes that try candidates, through Ray Tune; 0 tries them in this process or, with "
        "--ray-address, takes as many as the cluster holds.",
        least=0,
    )
    ray_address: str | None = option(None, "A running Ray cluster to use.", metavar="ADDRESS")
    cpus_per_trial: float | None = option(
        None,
        "Processors that a worker takes, such as 0.5 or 4.",
        above=0,
        metavar="CPUS",
        by_default="1; all for a single worker",
    )
    gpus_per_trial: float = option(
        0.0,
        "GPUs that Ray keeps for a worker, such as 0.25; without any, workers may not see one.",
        least=0,
        metavar="GPUS",
    )
    sampler: str = option(
        "engine",
        "What proposes candidates: the surrogate of autocompress, or a sampler of Optuna.",
        choices=("engine", "tpe", "nsga2", "nsga3", "gp", "random"),
    )
    seed: int = option(DistillSettings.seed, "Seed of everything random.")
    trial_epochs: float | None = option(
        None,
        "Passes over the data for a trial; 0 evaluates it untrained.",
        least=0,
        by_default="by its size",
    )
    promotion_epochs: float | None = None
    distill_epochs: float | None = option(
        None, "Passes over the data for a finalist.", above=0, by_default="by its size"
    )
    quantized_epochs: float | None = None
    students: int = option(4, "Finalists to certify.", least=1)
    batch_size: int = option(DistillSettings.batch_size, "Images of a training step.", least=1)
    cache_memory_mib: int = option(
        1536,
        "MiB of images to hold in memory; data that needs more is read from its place again and again.",
        least=0,
        metavar="MIB",
        flag="--cache-memory",
    )
    learning_rate: float | None = option(
        DistillSettings.learning_rate,
        "Peak learning rate of distillation.",
        above=0,
        by_default="chosen for the kind of network",
    )
    train_on: DeviceName = option(  # noqa: RUF009
        DistillSettings.train_on,
        "Where students are trained: auto takes the GPU that torch sees, else the processor.",
        choices=get_args(DeviceName),
    )
    time_limit_s: float | None = option(
        None,
        "What the search should take: 90s, 30m, 1.5h. Decides how much is scored, tried, promoted and "
        "distilled.",
        flag="--time",
        is_duration=True,
    )
    trial_timeout_s: float | None = option(
        None, "Give up a trial after this.", flag="--trial-timeout", is_duration=True
    )

    @property
    def most_trials(self) -> int:
        """Return how many candidates are evaluated at most."""
        if self.trials is not None:
            return self.trials
        return MOST_TRIALS if self.time_limit_s else DEFAULT_TRIALS

    @property
    def distill_settings(self) -> DistillSettings:
        """Return how students are trained, but for the epochs, which follow from the stage."""
        return DistillSettings(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=self.seed,
            train_on=self.train_on,
        )

    @property
    def is_distributed(self) -> bool:
        """Return whether Ray's processes evaluate, not this one."""
        return bool(self.workers) or self.ray_address is not None

    def check(self) -> None:
        """Raise InputError for numbers that cannot be used."""
        for name in ("trials", "students", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}", fix="give 1 or more")
