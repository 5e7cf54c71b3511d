"""Options that travel as one value: a frozen dataclass whose fields carry default and help.

The command line takes its options from the fields, Python its keywords, and a run records the value. Nothing
heavy is imported here: the command line's `--help` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from autocompress.device.imports.parsing import KINDS
from autocompress.errors import InputError
from autocompress.problem.specs import InputSize
from autocompress.students.training.settings import DeviceName, DistillSettings

if TYPE_CHECKING:
    from torch import nn

    from autocompress.problem.tasks.task import Task

Options = TypeVar("Options")

NOT_RECORDED = "(an object of the session)"
DEFAULT_TRIALS, MOST_TRIALS = 100, 10_000
"""Without a number of trials: where there is no time limit either, and where there is one."""


@dataclass(frozen=True)
class Typed:
    """Say how the command line takes an option: its help, and what a value may be.

    `least` is the smallest number, `above` one that it must be above. `flag` is the option's name where that
    is not the field's; `by_default` says in words what None does. An option that `is_duration` is typed as
    `90s`, `30m` or `1.5h`, one that `is_image_size` as `64` or `32x96`; one that `is_repeated` may be given
    several times and is a tuple.
    """

    help: str
    least: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    flag: str = ""
    by_default: str = ""
    is_duration: bool = False
    is_path: bool = False
    is_image_size: bool = False
    is_repeated: bool = False

    def flag_of(self, name: str) -> str:
        """Return the option as it is typed for the field `name`."""
        return self.flag or "--" + name.replace("_", "-")


def typed_fields(kind: type | object) -> list[tuple[Field[Any], Typed]]:
    """Return the fields of an options dataclass that the command line takes, and how it takes them."""
    found = fields(kind)  # type: ignore[arg-type]
    return [(one, one.metadata["typed"]) for one in found if "typed" in one.metadata]


def flags_given(options: object) -> list[str]:
    """Return the flags of the options whose values are not the defaults, in their order."""
    return [
        typed.flag_of(one.name)
        for one, typed in typed_fields(options)
        if (value := getattr(options, one.name)) != one.default and not (typed.is_repeated and not value)
    ]


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
    """Say how to search. Every field has a default; what is None is found out.

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
        "What proposes candidates: engine, the Bayesian optimiser of autocompress, or one of Optuna.",
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
    students: int = option(4, "Finalists to train longest, measure and certify.", least=1)
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
    train_on: DeviceName = option(
        DistillSettings.train_on,
        "Where students are trained: auto takes the GPU that torch sees, else the processor.",
        choices=get_args(DeviceName),
    )
    time_limit_s: float | None = option(
        None,
        "What the search should take: 90s, 30m, 1.5h. Decides how much is scored, tried and trained longer.",
        flag="--time",
        is_duration=True,
    )
    trial_timeout_s: float | None = option(
        None, "Give up a trial after this.", flag="--trial-timeout", is_duration=True
    )

    task: str | Task | None = option(
        None,
        "What outputs mean: classification, binary, multi-label, regression, dense, segmentation, "
        "embeddings, detection, agreement, each with options such as ,ignored=11; or file.py:callable.",
        metavar="TASK",
        by_default="by labels and outputs",
    )
    metric: Any = option(
        None,
        "What students are judged by: file.py:callable of (predictions, labels) that gives a number for each "
        "example.",
        metavar="METRIC",
        by_default="the task's",
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


TEACHER_HELP = "timm:NAME[,key=value…], package.module:callable, or file.py:callable."
RUNTIME_HELP = (
    "What runs the networks: onnxruntime, openvino, torch, torch-cuda, …; `doctor` says which are installed, "
    "and docs/runtimes.md what each can do."
)
DATA_HELP = (
    "digits, mnist:DIR, cifar10:DIR, imagefolder:DIR, images:DIR without labels, masks:DIR, table:FILE.csv, "
    "npz:FILE, package.module:callable, or file.py:callable."
)
INPUT_SIZE_HELP = (
    "Size of the input, where neither --data nor the teacher says it: 64 for squares, 32x96 for "
    "32 high and 96 wide, 1x32x96 with the channels; 16000 for a signal, 8x64x64 for a volume."
)


def _input_size() -> Any:
    return option(None, INPUT_SIZE_HELP, is_image_size=True, metavar="PIXELS")


@dataclass(frozen=True)
class ProfileRequest:
    """Say what to measure a device with: the runtime and its setting, and which random networks of a space.

    `data` only says the size of the images.
    """

    runtime: str = option("onnxruntime", RUNTIME_HELP)
    threads: int = option(1, "Threads of one inference.", least=1)
    batch: int = option(1, "Images of one inference.", least=1)
    networks: int = option(
        120,
        "Networks of the space to measure, 8 at least; each random one is also predicted from the others.",
        least=1,
    )
    seed: int = option(0, "Decides which networks.")
    data: Any = option(None, DATA_HELP + " Only its image size matters here.")
    input_size: InputSize | None = _input_size()


KIT_RUNTIMES = ("onnxruntime", "openvino")
"""What the script of a kit can run."""


@dataclass(frozen=True)
class KitRequest(ProfileRequest):
    """Say what a kit measures a device with, and where to run it: `ssh` names a host, None runs it
    nowhere."""

    runtime: str = option("onnxruntime", "What runs the networks there.", choices=KIT_RUNTIMES)
    networks: int = option(40, "Random networks of the space, 8 at least.", least=1)
    ssh: str | None = option(
        None, "Run it there, as HOST or USER@HOST, and import the results.", metavar="HOST"
    )
    ssh_options: Sequence[str] = option(
        (), "Option of ssh, such as Port=2222.", flag="--ssh-option", metavar="KEY=VALUE", is_repeated=True
    )
    python: str = option("python3", "Python of the host, with numpy and the runtime.")
    profile: str | Path | None = option(
        None, "With --ssh: folder of the profile.", by_default="OUTPUT/profile", is_path=True
    )


@dataclass(frozen=True)
class ImportRequest:
    """Say what a vendor's dumps were made of, with and on; `kit` is the only one that a measured kit needs.

    `models` are the profiled models, one for each dump, or `teacher` is the one that all are of; `latencies`
    are those of the whole networks as typed, such as `1.2ms`, one for each dump or none.
    """

    kind: str | None = option(
        None,
        "Tool that wrote the dumps.",
        choices=KINDS,
        by_default="found out",
    )
    models: Sequence[str | Path] = option(
        (),
        "Profiled model of a kit, once for each dump, in order.",
        flag="--model",
        is_path=True,
        is_repeated=True,
    )
    teacher: str | nn.Module | None = option(
        None, "Profiled network, where it is no model of a kit. " + TEACHER_HELP
    )
    latencies: Sequence[str] = option(
        (),
        "Latency of each whole network: 1.2ms, 800us.",
        flag="--latency",
        metavar="TIME",
        is_repeated=True,
    )
    kit: str | Path | None = option(
        None, "Kit that results.jsonl is of, where it lies elsewhere.", is_path=True
    )
    threads: int = option(1, "Threads that a dump was made with.", least=1)
    batch: int = option(1, "Images of one inference of a dump.", least=1)
    device_name: str | None = option(
        None, "What a dump was made on.", metavar="TEXT", by_default="name of OUTPUT"
    )
    input_size: InputSize | None = _input_size()


@dataclass(frozen=True)
class CheckRequest:
    """Say which new random networks to check a device profile on; None is what the profile was measured
    on."""

    teacher: str | nn.Module | None = option(
        None, TEACHER_HELP, by_default="the profile's own, where timm has it"
    )
    space: str | Path | None = option(
        None, "Search space: a shipped name or a YAML file.", by_default="the profile's own"
    )
    networks: int = option(20, "New random networks of the space to measure, 3 at least.", least=1)
    seed: int = option(1000, "Decides which networks.")
    data: Any = option(None, DATA_HELP + " Only its image size matters here.")
    input_size: InputSize | None = _input_size()
