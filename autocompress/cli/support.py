"""What every command shares: how errors end it, how long times are typed, where output goes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from autocompress.errors import AutocompressError, InterruptedSearchError
from autocompress.progress import write_plainly

DEBUG_VARIABLE = "AUTOCOMPRESS_DEBUG"
WIDTH_WITHOUT_TERMINAL = 110

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smh])\s*\Z")
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Commands(click.Group):
    """A group whose commands end with a sentence and an exit code, never with a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """List the commands in the order in which they are used."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        write_plainly(sys.stdout, sys.stderr)
        try:
            with _ending_in_order():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except AutocompressError as error:
            _fail(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, "interrupted", InterruptedSearchError.exit_code)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            hint = f"(unexpected; {DEBUG_VARIABLE}=1 shows where)"
            _fail(ctx, f"{type(error).__name__}: {first} {hint}", AutocompressError.exit_code)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Take being told to end within, by another program or by a terminal that closes, for a second Ctrl-C:
    what had finished is kept, and the last words are said."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [one for one in known if signal.getsignal(one) == signal.SIG_DFL]  # `nohup` ignores one of them.
    try:
        before = {one: signal.signal(one, end) for one in heard}
    except ValueError:  # Not in the main thread, which is the one that signals reach.
        yield
        return
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _fail(ctx: click.Context, text: str, exit_code: int) -> None:
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        click.echo(traceback.format_exc(), err=True, nl=False)
    click.echo(f"error: {text}", err=True)
    ctx.exit(exit_code)


def duration_s(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of `90s`, `30m` or `1.5h`, as the callback of an option."""
    if value is None:
        return None
    match = _DURATION.match(value)
    seconds = float(match.group(1)) * _UNIT_S[match.group(2)] if match else 0.0
    if seconds <= 0:
        raise click.BadParameter(f"{value!r} is not a time; use 90s, 30m or 1.5h", ctx, param)
    return seconds


def input_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | tuple[int, ...] | None:
    """Return pixels of `64`, `32x96` or `1x32x96`, as the callback of an option."""
    if value is None:
        return None
    sides = value.lower().split("x")
    if not 1 <= len(sides) <= 4 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise click.BadParameter(f"{value!r} is not a size; use 64, 32x96 or 1x32x96", ctx, param)
    numbers = tuple(int(side) for side in sides)
    return numbers[0] if len(numbers) == 1 else numbers


@contextmanager
def resumable(run: Path) -> Iterator[None]:
    """Tell whoever stops a search, at any of its stages, how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        recorded = (run / "events.jsonl").is_file()
        raise InterruptedSearchError(
            "interrupted",
            where=str(run),
            why="what had finished is kept" if recorded else "nothing had been recorded yet",
            fix=f"autocompress resume {run}" if recorded else "give the same command again",
        ) from None


def to_stdout(data: Any, table: Any, output_format: str) -> None:
    """Print JSON, or a table drawn by a function that is only called when it is wanted."""
    if output_format == "json":
        click.echo(json.dumps(data, indent=2))
        return
    from rich.console import Console

    # A file or a pipe has no width of its own, and rich would cut numbers off at 80 columns.
    width = None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL
    Console(file=sys.stdout, width=width).print(table())


def budgets_of(options: dict[str, Any]) -> Any:
    """Take the limits as typed out of the options; return them as budgets. Raises BudgetError."""
    from autocompress.problem.budgets import Budgets

    return Budgets.parse(**{name: options.pop(name) for name in ("latency", "memory", "size", "packed_size")})


def print_front(found: Any, output_format: str) -> None:
    """Show the certified students of a run."""
    from autocompress.reporting.tables import front_table

    to_stdout(found.to_json(), lambda: front_table(found), output_format)


def what_comes_next(*commands: tuple[str, str]) -> None:
    """Say which commands come next: (the command, what it does) of each."""
    click.echo("what comes next:", err=True)
    for command, what in commands:
        click.echo(f"  {command}\n      {what}", err=True)


def one_of(options: dict[str, Any], first: str, second: str) -> None:
    if options[first] and options[second]:
        raise click.UsageError(f"--{first} and --{second} cannot both be given.")
