"""The command line: one command for each function of `api`.

Tables and JSON go to stdout, all else to stderr.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from autocompress.cli.goals import check, compress
from autocompress.cli.options import (
    FOLDER,
    FORMAT,
    INPUT_SIZE,
    RUN,
    SPACE,
    profile_options,
    search_options,
)
from autocompress.cli.profile import COMMANDS
from autocompress.cli.support import (
    Commands,
    budgets_of,
    one_of,
    print_front,
    resumable,
    to_stdout,
    what_comes_next,
)
from autocompress.errors import NothingFeasibleError
from autocompress.pipeline.options import DATA_HELP, DEFAULT_TRIALS, TEACHER_HELP
from autocompress.problem.specs import InputSize
from autocompress.progress import Console


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        import autocompress

        click.echo(autocompress.__version__)
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def main() -> None:
    """Compress a neural network until it keeps hard latency, memory and size budgets on a device.

    Results go to stdout, progress to stderr. AUTOCOMPRESS_DEBUG=1 shows where an error comes from.

    \b
    Exit codes:
      0    done; for a search: a certified student exists
      1    unexpected error
      2    something that was given cannot be used
      3    finished, and no student keeps the budgets
      4    too many trials failed
      5    the device is too noisy to certify anything
      130  interrupted

    \b
    Example:
      autocompress search --teacher timm:resnet18,weights=teacher.safetensors \\
          --data imagefolder:images --space resnet --device hardware_profiles/mine \\
          --latency 2ms --size 40% --run runs/first
      autocompress pick runs/first --latency 1.5ms -o student
    """


main.add_command(compress)
main.add_command(check)


@main.command(short_help="Show what can be changed in a teacher, and what is locked.")
@click.option("--teacher", required=True, help=TEACHER_HELP)
@SPACE
@click.option("--device", help="Device profile, a name or folder: adds predicted costs.")
@click.option("--data", help=DATA_HELP + " Only its image size and classes matter here.")
@INPUT_SIZE
@FORMAT
def inspect(
    teacher: str,
    space: str,
    device: str | None,
    data: str | None,
    input_size: InputSize | None,
    output_format: str,
) -> None:
    """Show every decision a search could take about a teacher, and what is locked and why.

    With --device also the predicted cost of the teacher and the least reachable one.

    \b
    Example:
      autocompress inspect --teacher timm:resnet18 --space resnet
      autocompress inspect --teacher model.py:build --input-size 64 --device hardware_profiles/mine
    """
    from autocompress import api

    found = api.inspect(teacher, space, device, data, input_size, Console())
    to_stdout(found.to_json(), found.table, output_format)


@main.group(invoke_without_command=True, short_help="Measure the device.")
@profile_options
@click.pass_context
def profile(ctx: click.Context, /, **options: Any) -> None:
    """Measure this machine: kernel times on random networks of a space, and how well they predict.

    A search prices its candidates with the profile, so it is made once for each device, runtime,
    number of threads, space and input size. Keep the machine otherwise idle meanwhile.

    \b
    Example:
      autocompress profile --teacher timm:resnet18 --space resnet -o hardware_profiles/mine
      autocompress profile show hardware_profiles/mine
    """
    if ctx.invoked_subcommand is not None:
        return
    for name in ("teacher", "output"):
        if options[name] is None:
            raise click.UsageError(f"Missing option '--{name}'.", ctx)
    one_of(options, "resume", "overwrite")
    from autocompress import api_profile
    from autocompress.reporting.profile_tables import profile_table

    measured = api_profile.profile(**options)
    to_stdout(None, lambda: profile_table(measured), "table")
    click.echo(f"the profile is in {options['output']}", err=True)


for command in COMMANDS:
    profile.add_command(command)


@main.command(short_help="Find, train and certify students under budgets.")
@search_options
def search(run: Path, resume: bool, overwrite: bool, **options: Any) -> None:
    """Search under hard budgets, distil the best candidates, and certify them on this machine.

    At least one of --latency, --memory, --size and --packed-size is needed. What cannot be reached is refused
    before anything is trained. Ctrl-C lets the trial under way finish, ends a last
    distillation, and keeps what had finished; `resume` goes on.

    \b
    Example:
      autocompress search --teacher timm:resnet18,weights=teacher.safetensors \\
          --data imagefolder:images --space resnet --device hardware_profiles/mine \\
          --latency 2ms --memory 8MiB --size 40% --trials 200 --run runs/first
    """
    one_of({"resume": resume, "overwrite": overwrite}, "resume", "overwrite")
    from autocompress import api

    if options["trials"] is None and options["time_limit_s"] is None:
        options["trials"] = DEFAULT_TRIALS
    budgets = budgets_of(options)
    with resumable(run):
        found = api.compress(budgets=budgets, run=run, resume=resume, overwrite=overwrite, **options)
    print_front(found, "table")
    what_comes_next(
        (f"autocompress pick {run} -o student", "copies the best student"),
        (f"autocompress report {run}", "writes one HTML file about the search"),
        (f"autocompress front {run} --format json", "prints the same for programs"),
    )


@main.command(short_help="Go on with a search that stopped.")
@RUN
@click.option(
    "--add-trials",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Trials beyond those asked for.",
)
def resume(run: Path, add_trials: int) -> None:
    """Go on with the search in RUN where it stopped; nothing that finished is repeated.

    \b
    Example:
      autocompress resume runs/first
      autocompress resume runs/first --add-trials 50
    """
    from autocompress import api

    with resumable(run):
        found = api.resume(run, add_trials)
    print_front(found, "table")


@main.command(short_help="Show the certified students of a run.")
@RUN
@click.option("--latency", metavar="CONDITION", help="Such as '<=1.5ms' or '<40%' (of the teacher).")
@click.option("--memory", metavar="CONDITION", help="Such as '<=8MiB'.")
@click.option("--size", metavar="CONDITION", help="Such as '<=300KB'.")
@click.option("--packed-size", metavar="CONDITION", help="Such as '<=30KB', of student.acz.")
@click.option(
    "--sort",
    type=click.Choice(["accuracy", "latency", "memory", "size", "packed_size"]),
    default="accuracy",
    show_default=True,
    help="What comes first: the most accurate, the fastest, the smallest.",
)
@FORMAT
def front(
    run: Path,
    latency: str | None,
    memory: str | None,
    size: str | None,
    packed_size: str | None,
    sort: str,
    output_format: str,
) -> None:
    """Show the certified students of RUN that no other one beats in everything at once.

    \b
    Example:
      autocompress front runs/first --latency '<=1.5ms' --sort size
      autocompress front runs/first --format json
    """
    from autocompress import api

    found = api.front(run).filtered(latency, memory, size, packed_size).sorted_by(sort)
    print_front(found, output_format)


@main.command(short_help="Copy the best student within limits.")
@RUN
@click.option("--latency", metavar="TIME", help="At most this: 1.5ms, or 40% of the teacher.")
@click.option("--memory", metavar="BYTES", help="At most this: 8MiB, or 40%.")
@click.option("--size", metavar="BYTES", help="At most this: 300KB, or 40%.")
@click.option("--packed-size", metavar="BYTES", help="At most this of student.acz: 30KB, or 5%.")
@click.option(
    "-o", "--output", type=FOLDER, help="Folder to copy the student to.  [required without --solve]"
)
@click.option("--overwrite", is_flag=True, help="Replace a student, or with --solve a file, that is there.")
@click.option(
    "--solve",
    is_flag=True,
    help="Find a candidate for other budgets by the run's scores instead, untrained. -o is a file then.",
)
@FORMAT
@click.pass_context
def pick(
    ctx: click.Context,
    run: Path,
    latency: str | None,
    memory: str | None,
    size: str | None,
    packed_size: str | None,
    output: Path | None,
    overwrite: bool,
    solve: bool,
    output_format: str,
) -> None:
    """Copy the most accurate certified student of RUN within these limits to a folder.

    Prints the folder. Ends with exit code 3 and names the nearest miss where there is none.

    With --solve the candidate is printed that is expected to lose least within these limits, by the
    run's scores and predicted costs. Nothing is trained or measured for it.

    \b
    Example:
      autocompress pick runs/first --latency 1.5ms --size 300KB -o student
      autocompress pick runs/first --solve --latency 0.8ms
    """
    from autocompress import api

    limits = {"latency": latency, "memory": memory, "size": size, "packed_size": packed_size}
    if not solve:
        if output is None:
            raise click.UsageError("Missing option '-o' / '--output'.", ctx)
        folder = api.pick(run, output, overwrite=overwrite, **limits)
        click.echo(json.dumps({"folder": str(folder)}) if output_format == "json" else folder)
        return
    from autocompress.reporting.tables import answer_table

    found = api.solve(run, **limits)
    to_stdout(found.to_json(), lambda: answer_table(found), output_format)
    if output is not None:
        click.echo(f"the candidate is in {found.save(output, overwrite=overwrite)}", err=True)


@main.command(short_help="Measure a student again, here.")
@click.argument("student", type=FOLDER)
@FORMAT
def bench(student: Path, output_format: str) -> None:
    """Measure the folder STUDENT again, on this machine, against the budgets it was certified for.

    Ends with exit code 3 where it breaks one of them here.

    \b
    Example:
      autocompress bench student
    """
    from autocompress import api
    from autocompress.reporting.tables import bench_table

    found = api.bench(student)
    to_stdout(found, lambda: bench_table(found), output_format)
    if not found["within_budget"]:
        raise click.exceptions.Exit(NothingFeasibleError.exit_code)


@main.command(short_help="Write a student as one small coded file.")
@click.argument("student", type=FOLDER)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: STUDENT/student.acz]"
)
@click.option(
    "--coder",
    type=click.Choice(["context", "huffman"]),
    default="context",
    show_default=True,
    help="The smallest file, or the simplest code.",
)
def pack(student: Path, output: Path | None, coder: str) -> None:
    """Write the network and the weights of the folder STUDENT as one file, coded without loss.

    Small where weights are sparse, share few values or have 8 bits; docs/acz-format.md says how. Prints the
    file and its bytes.

    \b
    Example:
      autocompress pack student -o student.acz
    """
    from autocompress import api

    path, size_bytes = api.pack(student, output, coder)
    click.echo(f"{path}: {size_bytes:,} bytes")


@main.command(short_help="Write one offline HTML file about a run.")
@RUN
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: RUN/report.html]"
)
def report(run: Path, output: Path | None) -> None:
    """Write one HTML file about RUN that needs no network, and print where it is.

    \b
    Example:
      autocompress report runs/first -o first.html
    """
    from autocompress import api

    click.echo(api.report(run, output))


@main.command(short_help="Show what this machine can do.")
@FORMAT
def doctor(output_format: str) -> None:
    """Show what this machine can do: processor, precisions, threads, runtimes, versions, problems.

    \b
    Example:
      autocompress doctor --format json
    """
    from autocompress import api
    from autocompress.reporting.tables import doctor_table

    found = api.doctor()
    to_stdout(found, lambda: doctor_table(found), output_format)


@main.command(short_help="Show how far a run is, and what was decided.")
@RUN
@FORMAT
def status(run: Path, output_format: str) -> None:
    """Show what the search in RUN has done and decided so far, also while it is under way.

    \b
    Example:
      autocompress status runs/first
    """
    from autocompress import api
    from autocompress.reporting.tables import status_table

    found = api.status(run)
    to_stdout(found, lambda: status_table(found), output_format)
