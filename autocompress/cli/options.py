"""Options that several commands take, and the many of `search`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click

from autocompress.cli.support import duration_s, input_size
from autocompress.pipeline.options import SearchOptions, Typed

Command = Callable[..., Any]
Decorator = Callable[[Command], Any]

FOLDER = click.Path(path_type=Path)
FORMAT = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="What to print on stdout.",
)
SPACE = click.option(
    "--space", default="joint", show_default=True, help="Search space: a shipped name or a YAML file."
)
INPUT_SIZE = click.option(
    "--input-size",
    callback=input_size,
    metavar="PIXELS",
    help="Size of the input images, where neither --data nor the teacher says it: 64 for squares, 32x96 for "
    "32 high and 96 wide, 1x32x96 with the channels.",
)
RUN = click.argument("run", type=FOLDER)
TEACHER_HELP = "timm:NAME[,key=value…], package.module:callable, or file.py:callable."
RUNTIME_HELP = (
    "What runs the networks: onnxruntime, openvino, torch, torch-cuda, …; `doctor` says which are installed, "
    "and docs/runtimes.md what each can do."
)
DATA_HELP = "digits, mnist:DIR, cifar10:DIR, imagefolder:DIR, package.module:callable, or file.py:callable."


def options_of(kind: type) -> list[Decorator]:
    """Return one option of a command for each field of a dataclass of `pipeline.options` that has help."""
    return [_option(one, one.metadata["typed"]) for one in fields(kind) if "typed" in one.metadata]


def _option(one: Field[Any], typed: Typed) -> Decorator:
    flag = typed.flag or "--" + one.name.replace("_", "-")
    note = f"  [default: {typed.by_default}]" if typed.by_default else ""
    details: dict[str, Any] = {"callback": duration_s, "metavar": "TIME"} if typed.is_duration else {}
    return click.option(
        flag,
        one.name,
        type=None if typed.is_duration else _type(one, typed),
        default=one.default,
        show_default=one.default is not None,
        help=typed.help + note,
        **{"metavar": typed.metavar, **details},
    )


def _type(one: Field[Any], typed: Typed) -> Any:
    if typed.choices:
        return click.Choice(list(typed.choices))
    if "float" in str(one.type):
        is_open = typed.above is not None
        return click.FloatRange(min=typed.above if is_open else typed.least, min_open=is_open)
    if "int" in str(one.type):
        return click.INT if typed.least is None else click.IntRange(min=int(typed.least))
    return str


def search_options(command: Command) -> Command:
    """Add every option of `search` to a command."""
    options: list[Decorator] = [
        click.option("--teacher", required=True, help=TEACHER_HELP),
        click.option("--data", required=True, help=DATA_HELP),
        SPACE,
        click.option("--device", required=True, help="Device profile of this machine: a name or a folder."),
        click.option(
            "--latency", metavar="TIME", help="Limit of one inference: 2ms, 500us, or 40% of the teacher."
        ),
        click.option("--memory", metavar="BYTES", help="Limit of peak memory: 8MiB, 500KB, or 40%."),
        click.option("--size", metavar="BYTES", help="Limit of the exported file: 1MiB, 300KB, or 40%."),
        click.option(
            "--packed-size",
            metavar="BYTES",
            help="Limit of the coded student.acz: 30KB, or 5%. The search may choose sparsity and codebooks.",
        ),
        click.option(
            "--run",
            type=FOLDER,
            default=Path("runs/latest"),
            show_default=True,
            help="Folder that records the search.",
        ),
        click.option("--resume", is_flag=True, help="Go on with the run of that folder."),
        click.option("--overwrite", is_flag=True, help="Replace the run of that folder."),
        *options_of(SearchOptions),
    ]
    return with_options(command, options)


def with_options(command: Command, options: Sequence[Decorator]) -> Command:
    """Add options to a command, shown in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def kit_options(command: Command) -> Command:
    """Every option of `profile kit`."""
    positive = click.IntRange(min=1)
    options = [
        click.option("--teacher", required=True, help=TEACHER_HELP),
        SPACE,
        click.option(
            "--runtime",
            type=click.Choice(["onnxruntime", "openvino"]),
            default="onnxruntime",
            show_default=True,
            help="What runs the networks there.",
        ),
        click.option(
            "--threads", type=positive, default=1, show_default=True, help="Threads of one inference."
        ),
        click.option("--batch", type=positive, default=1, show_default=True, help="Images of one inference."),
        click.option(
            "--networks",
            type=positive,
            default=40,
            show_default=True,
            help="Random networks of the space, 8 at least.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Decides which networks."),
        click.option("--data", help=DATA_HELP + " Only its image size matters here."),
        INPUT_SIZE,
        click.option("-o", "--output", type=FOLDER, required=True, help="Folder to write the kit to."),
        click.option("--resume", is_flag=True, help="Go on with the kit of that folder."),
        click.option("--overwrite", is_flag=True, help="Replace the kit of that folder."),
        click.option(
            "--ssh", metavar="HOST", help="Run it there, as HOST or USER@HOST, and import the results."
        ),
        click.option(
            "--ssh-option",
            "ssh_options",
            metavar="KEY=VALUE",
            multiple=True,
            help="Option of ssh, such as Port=2222.",
        ),
        click.option(
            "--python",
            default="python3",
            show_default=True,
            help="Python of the host, with numpy and the runtime.",
        ),
        click.option(
            "--profile", type=FOLDER, help="With --ssh: folder of the profile.  [default: OUTPUT/profile]"
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def import_options(command: Command) -> Command:
    """Every option of `profile import`."""
    positive = click.IntRange(min=1)
    options = [
        click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path)),
        click.option(
            "--kind",
            type=click.Choice(["onnxruntime", "openvino", "trtexec", "tflite", "torch"]),
            help="Tool that wrote the dumps.  [default: found out]",
        ),
        click.option(
            "--model",
            "models",
            multiple=True,
            type=click.Path(path_type=Path),
            help="Profiled model of a kit, once for each dump, in order.",
        ),
        click.option("--teacher", help="Profiled network, where it is no model of a kit. " + TEACHER_HELP),
        click.option(
            "--latency",
            "latencies",
            multiple=True,
            metavar="TIME",
            help="Latency of each whole network: 1.2ms, 800us.",
        ),
        click.option("--kit", type=FOLDER, help="Kit that results.jsonl is of, where it lies elsewhere."),
        click.option(
            "--threads",
            type=positive,
            default=1,
            show_default=True,
            help="Threads that a dump was made with.",
        ),
        click.option(
            "--batch", type=positive, default=1, show_default=True, help="Images of one inference of a dump."
        ),
        click.option(
            "--device-name", metavar="TEXT", help="What a dump was made on.  [default: name of OUTPUT]"
        ),
        INPUT_SIZE,
        click.option("-o", "--output", type=FOLDER, required=True, help="Folder to write the profile to."),
        click.option("--overwrite", is_flag=True, help="Replace the profile of that folder."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
