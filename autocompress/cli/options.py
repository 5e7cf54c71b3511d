"""Options that several commands take, and the many of `search`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any

import click

from autocompress.cli.support import duration_s, input_size
from autocompress.pipeline.options import (
    DATA_HELP,
    INPUT_SIZE_HELP,
    TEACHER_HELP,
    CheckRequest,
    ImportRequest,
    KitRequest,
    ProfileRequest,
    SearchOptions,
    Typed,
    typed_fields,
)

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
INPUT_SIZE = click.option("--input-size", callback=input_size, metavar="PIXELS", help=INPUT_SIZE_HELP)
RUN = click.argument("run", type=FOLDER)


def options_of(kind: type) -> list[Decorator]:
    """Return one option of a command for each field of a dataclass of `pipeline.options` that has help."""
    return [_option(one, typed) for one, typed in typed_fields(kind)]


def _option(one: Field[Any], typed: Typed) -> Decorator:
    note = f"  [default: {typed.by_default}]" if typed.by_default else ""
    details: dict[str, Any] = {"type": _type(one, typed), "metavar": typed.metavar}
    if typed.is_duration:
        details = {"callback": duration_s, "metavar": "TIME"}
    if typed.is_image_size:
        details = {"callback": input_size, "metavar": typed.metavar}
    return click.option(
        typed.flag_of(one.name),
        one.name,
        default=one.default,
        show_default=one.default not in (None, ()),
        multiple=typed.is_repeated,
        help=typed.help + note,
        **details,
    )


def _type(one: Field[Any], typed: Typed) -> Any:
    if typed.is_path:
        return FOLDER
    if typed.choices:
        return click.Choice(list(typed.choices))
    if "float" in str(one.type):
        is_open = typed.above is not None
        return click.FloatRange(min=typed.above if is_open else typed.least, min_open=is_open)
    if "int" in str(one.type):
        return click.INT if typed.least is None else click.IntRange(min=int(typed.least))
    return str


def budget_options() -> list[Decorator]:
    """Return the options of hard limits."""
    return [
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
    ]


DEVICE = click.option(
    "--device",
    help="Device profile of this machine: a name or a folder.  [default: the one that is known for this "
    "network, else a quick one is made]",
)


def search_options(command: Command) -> Command:
    """Add every option of `search` to a command."""
    options: list[Decorator] = [
        click.option("--teacher", required=True, help=TEACHER_HELP),
        click.option("--data", required=True, help=DATA_HELP),
        SPACE,
        DEVICE,
        *budget_options(),
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


def compress_options(command: Command) -> Command:
    """Add every option of `compress` to a command."""
    of_search = {one.name: _option(one, typed) for one, typed in typed_fields(SearchOptions)}
    of_profile = {one.name: _option(one, typed) for one, typed in typed_fields(ProfileRequest)}
    options: list[Decorator] = [
        click.option("--teacher", required=True, help=TEACHER_HELP),
        click.option("--data", required=True, help=DATA_HELP),
        *budget_options(),
        click.option("-o", "--output", type=FOLDER, required=True, help="Folder to write the student to."),
        click.option(
            "--time",
            "time_limit_s",
            callback=duration_s,
            metavar="TIME",
            help="What all of it should take: 90s, 30m, 1.5h.  [default: by network and data]",
        ),
        SPACE,
        of_profile["runtime"],
        of_profile["threads"],
        of_search["seed"],
        click.option("--run", type=FOLDER, help="Folder that records the search.  [default: OUTPUT.run]"),
        click.option("--resume", is_flag=True, help="Go on with the run of that folder."),
        click.option("--overwrite", is_flag=True, help="Replace the student and the run that are there."),
    ]
    return with_options(command, options)


def with_options(command: Command, options: Sequence[Decorator]) -> Command:
    """Add options to a command, shown in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def profile_options(command: Command) -> Command:
    """Add every option of `profile`, none of which a sub-command of it requires."""
    options: list[Decorator] = [
        click.option("--teacher", help=TEACHER_HELP + "  [required]"),
        SPACE,
        *options_of(ProfileRequest),
        click.option("-o", "--output", type=FOLDER, help="Folder to write the profile to.  [required]"),
        click.option("--resume", is_flag=True, help="Go on with a profile that was interrupted."),
        click.option("--overwrite", is_flag=True, help="Measure everything again."),
    ]
    return with_options(command, options)


def kit_options(command: Command) -> Command:
    """Add every option of `profile kit`."""
    options: list[Decorator] = [
        click.option("--teacher", required=True, help=TEACHER_HELP),
        SPACE,
        *options_of(KitRequest),
        click.option("-o", "--output", type=FOLDER, required=True, help="Folder to write the kit to."),
        click.option("--resume", is_flag=True, help="Go on with the kit of that folder."),
        click.option("--overwrite", is_flag=True, help="Replace the kit of that folder."),
    ]
    return with_options(command, options)


def import_options(command: Command) -> Command:
    """Add every option of `profile import`."""
    options: list[Decorator] = [
        click.argument("sources", nargs=-1, required=True, type=FOLDER),
        *options_of(ImportRequest),
        click.option("-o", "--output", type=FOLDER, required=True, help="Folder to write the profile to."),
        click.option("--overwrite", is_flag=True, help="Replace the profile of that folder."),
    ]
    return with_options(command, options)


def check_options(command: Command) -> Command:
    """Add every option of `profile validate`."""
    options: list[Decorator] = [
        *options_of(CheckRequest),
        click.option(
            "--update", is_flag=True, help="Write what was found into the profile's validation.json."
        ),
    ]
    return with_options(command, options)
