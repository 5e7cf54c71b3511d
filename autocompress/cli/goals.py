"""The commands that need no profile and no knowledge of spaces: `compress` and `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from autocompress.cli.options import FORMAT, INPUT_SIZE, SPACE, compress_options
from autocompress.cli.support import budgets_of, one_of, print_front, resumable, to_stdout, what_comes_next
from autocompress.errors import InputError
from autocompress.pipeline.options import DATA_HELP, RUNTIME_HELP, TEACHER_HELP
from autocompress.problem.specs import InputSize


@click.command(short_help="Make a network keep a budget, in one command.")
@compress_options
def compress(output: Path, run: Path | None, resume: bool, overwrite: bool, **options: Any) -> None:
    """Compress a network in one command: check it, measure this machine, search, write the student.

    At least one of --latency, --memory, --size and --packed-size is needed. A profile of this machine is made
    the first time, and kept for the next. `search` has every option of the search itself.

    \b
    Example:
      autocompress compress --teacher model.py:build --data imagefolder:images --latency 40% -o student
      autocompress compress --teacher timm:resnet18,weights=teacher.safetensors \\
          --data imagefolder:images --latency 2ms --size 30% --time 30m -o student
    """
    one_of({"resume": resume, "overwrite": overwrite}, "resume", "overwrite")
    from autocompress import api

    run = run or output.with_name(f"{output.name}.run")
    budgets = budgets_of(options)
    with resumable(run):
        found = api.compress(
            budgets=budgets, run=run, output=output, resume=resume, overwrite=overwrite, **options
        )
    print_front(found, "table")
    what_comes_next(
        (f"autocompress bench {output}", "measures the student again, here"),
        (f"autocompress report {run}", "writes one HTML file about the search"),
        (f"autocompress pick {run} --latency 30% -o another", "copies another student of the search"),
    )


@click.command(short_help="Try whether a network goes through a search.")
@click.option("--teacher", required=True, help=TEACHER_HELP)
@click.option("--data", help=DATA_HELP + " Without any, random inputs are compared.")
@SPACE
@INPUT_SIZE
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Random candidates to try beside the teacher itself.",
)
@click.option("--runtime", default="onnxruntime", show_default=True, help=RUNTIME_HELP)
@click.option("--seed", default=0, show_default=True, help="Decides which candidates.")
@FORMAT
def check(
    teacher: str,
    data: str | None,
    space: str,
    input_size: InputSize | None,
    candidates: int,
    runtime: str,
    seed: int,
    output_format: str,
) -> None:
    """Try in about a minute whether a network goes through all that a search does to it.

    A few joint candidates are cut from it, exported, run, and compared with what they should compute.
    Shows how much can be changed, and what is locked and why. Nothing is trained, measured or written.
    Ends with exit code 2 where something does not go through.

    \b
    Example:
      autocompress check --teacher timm:resnet18
      autocompress check --teacher model.py:build --data imagefolder:images
    """
    from autocompress import api

    found = api.check(teacher, data, space, input_size, candidates, runtime, seed)
    to_stdout(found.to_json(), found.table, output_format)
    if not found.passed:
        raise click.exceptions.Exit(InputError.exit_code)
