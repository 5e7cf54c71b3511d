"""Options that several commands take, and the many of `search`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from autocompress.cli.support import duration_s

Command = Callable[..., Any]

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
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Side of the input images, where neither --data nor the teacher says it.",
)
RUN = click.argument("run", type=FOLDER)
TEACHER_HELP = "timm:NAME[,key=value…], package.module:callable, or file.py:callable."
RUNTIME_HELP = (
    "What runs the networks: onnxruntime, openvino, torch, torch-cuda, …; `doctor` says which are installed, "
    "and docs/runtimes.md what each can do."
)
DATA_HELP = "digits, mnist:DIR, cifar10:DIR, imagefolder:DIR, package.module:callable, or file.py:callable."


def search_options(command: Command) -> Command:
    """Every option of `search`."""
    positive = click.IntRange(min=1)
    epochs = click.FloatRange(min=0, min_open=True)
    options = [
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
            "--trials",
            type=positive,
            help="Candidates to try at most.  [default: 100, or with --time as many as are worth it]",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Processes that try candidates, through Ray Tune; 0 tries them in this process or, with "
            "--ray-address, takes as many as the cluster holds.",
        ),
        click.option("--ray-address", metavar="ADDRESS", help="A running Ray cluster to use."),
        click.option(
            "--cpus-per-trial",
            type=click.FloatRange(min=0, min_open=True),
            metavar="CPUS",
            help="Processors that a worker takes, such as 0.5 or 4.  [default: 1; all for a single worker]",
        ),
        click.option(
            "--gpus-per-trial",
            type=click.FloatRange(min=0),
            default=0.0,
            show_default=True,
            metavar="GPUS",
            help="GPUs that Ray keeps for a worker, such as 0.25; without any, workers may not see one.",
        ),
        click.option(
            "--sampler",
            type=click.Choice(["engine", "tpe", "nsga2", "nsga3", "gp", "random"]),
            default="engine",
            show_default=True,
            help="What proposes candidates: the surrogate of autocompress, or a sampler of Optuna.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random."),
        click.option(
            "--run",
            type=FOLDER,
            default=Path("runs/latest"),
            show_default=True,
            help="Folder that records the search.",
        ),
        click.option("--resume", is_flag=True, help="Go on with the run of that folder."),
        click.option("--overwrite", is_flag=True, help="Replace the run of that folder."),
        click.option(
            "--trial-epochs",
            type=click.FloatRange(min=0),
            help="Passes over the data for a trial; 0 evaluates it untrained.  [default: by its size]",
        ),
        click.option(
            "--distill-epochs",
            type=epochs,
            help="Passes over the data for a finalist.  [default: by its size]",
        ),
        click.option("--students", type=positive, default=4, show_default=True, help="Finalists to certify."),
        click.option(
            "--batch-size", type=positive, default=128, show_default=True, help="Images of a training step."
        ),
        click.option(
            "--learning-rate",
            type=click.FloatRange(min=0, min_open=True),
            help="Peak learning rate of distillation.  [default: chosen for the kind of network]",
        ),
        click.option(
            "--train-on",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="Where students are trained: auto takes the GPU that torch sees, else the processor.",
        ),
        click.option(
            "--time",
            "time_limit_s",
            callback=duration_s,
            metavar="TIME",
            help="What the search should take: 90s, 30m, 1.5h. Decides how much is scored, tried, "
            "promoted and distilled.",
        ),
        click.option(
            "--trial-timeout",
            "trial_timeout_s",
            callback=duration_s,
            metavar="TIME",
            help="Give up a trial after this.",
        ),
    ]
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
