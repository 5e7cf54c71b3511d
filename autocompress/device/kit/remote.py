"""Runs a kit on another machine through the system's own ssh and scp, and fetches what it found."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autocompress.device.kit.folder import DEVICE, MANIFEST, OPTIMIZED, RESULTS, SCRIPT, Kit
from autocompress.errors import AutocompressError, InputError, NoisyDeviceError

_HOST = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?(?:[A-Za-z0-9][A-Za-z0-9_.-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:]+)\Z"
)
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9]*=[^\x00-\x1f]+\Z")
_PYTHON = re.compile(r"[A-Za-z0-9_.~/+ -]+\Z")
_DONE = re.compile(r"(\d{1,9}) of (\d{1,9}) networks\s*\Z")
_ALWAYS = ("BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=30")
_NO_CONNECTION, _NOT_FOUND = 255, 127

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Host:
    """Say where to run: `name` as ssh takes it, further `-o` options, and the Python there.

    Raises InputError for a host, option or Python that ssh could take for something else.
    """

    name: str
    options: tuple[str, ...] = ()
    python: str = "python3"

    def __post_init__(self) -> None:
        if not _HOST.match(self.name):
            raise InputError(
                f"{self.name!r} is not a host to connect to",
                fix="give HOST or USER@HOST, and a port by --ssh-option Port=2222",
            )
        for option in self.options:
            if not _OPTION.match(option):
                raise InputError(
                    f"{option!r} is not an option of ssh", fix="give it as KEY=VALUE, such as Port=2222"
                )
        if not _PYTHON.match(self.python) or self.python.startswith("-"):
            raise InputError(
                f"{self.python!r} is not a path of Python", fix="give --python such as ~/venv/bin/python"
            )

    @property
    def settings(self) -> list[str]:
        """Return the options of ssh, the user's first: ssh takes the first value that it finds."""
        return [part for option in (*self.options, *_ALWAYS) for part in ("-o", option)]

    @property
    def copy_name(self) -> str:
        user, at, host = self.name.rpartition("@")
        return f"{user}{at}[{host}]" if ":" in host else self.name


def run_remotely(kit: Kit, host: Host, runtime: str, threads: int, progress: Progress | None = None) -> Path:
    """Copy the kit, run it there, fetch the results into the kit's folder and return their path.

    The folder on the host is named after the kit, and is kept when the run does not finish: the same
    command goes on with it. Raises InputError when the host or its Python cannot be used,
    NoisyDeviceError when the device is too noisy.
    """
    for tool in ("ssh", "scp"):
        if shutil.which(tool) is None:
            raise InputError(
                f"{tool} is not installed", fix="install an OpenSSH client, or run the kit by hand"
            )
    there = f"autocompress-kit-{kit.identity[:16]}"
    _ssh(host, f"mkdir -p {there}")
    local = [kit.folder.resolve() / name for name in (MANIFEST, SCRIPT, "models")]
    _checked(["scp", "-q", "-r", *host.settings, "--", *map(str, local), f"{host.copy_name}:{there}/"], host)
    python = _python(host.python)
    command = f"cd {there} && exec {python} {SCRIPT} --runtime {shlex.quote(runtime)} --threads {threads}"
    _run(host, command, progress)
    _fetch(kit, host, there)
    _ssh(host, f"rm -rf {there}")
    return kit.folder / RESULTS


def _python(path: str) -> str:
    """Return the path quoted for the shell there, which has to see a leading `~/` itself; other paths start
    at home."""
    home, rest = path.startswith("~/"), path.removeprefix("~/")
    if home or ("/" in path and not path.startswith("/")):
        return f'"$HOME"/{shlex.quote(rest)}'
    return shlex.quote(path)


def _run(host: Host, command: str, progress: Progress | None) -> None:
    """Run the script there and tell its progress; standard error is kept for the message."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        arguments = ["ssh", *host.settings, "--", host.name, command]
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                match = _DONE.match(line)
                if match and progress is not None:
                    progress(int(match.group(1)), int(match.group(2)))
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        errors.seek(0)
        _raise_for(code, errors.read(), host)


def _fetch(kit: Kit, host: Host, there: str) -> None:
    """Fetch the results, into a folder of its own first so that only files of these names get into the
    kit."""
    with tempfile.TemporaryDirectory(dir=kit.folder) as folder:
        remote = [f"{host.copy_name}:{there}/{name}" for name in (RESULTS, DEVICE, OPTIMIZED)]
        _checked(["scp", "-q", "-r", *host.settings, "--", *remote, str(Path(folder).resolve())], host)
        if (kit.folder / OPTIMIZED).is_dir():
            shutil.rmtree(kit.folder / OPTIMIZED)
        for name in (OPTIMIZED, DEVICE, RESULTS):
            (Path(folder) / name).rename(kit.folder / name)


def _ssh(host: Host, command: str) -> None:
    _checked(["ssh", *host.settings, "--", host.name, command], host)


def _checked(arguments: Sequence[str], host: Host) -> None:
    done = subprocess.run(
        arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    _raise_for(done.returncode, done.stderr, host)


def _raise_for(code: int, errors: str, host: Host) -> None:
    if code == 0:
        return
    last = (errors.strip().splitlines() or [f"exit code {code}"])[-1].removeprefix("error: ")[:300]
    where = f"on {host.name}"
    if code == NoisyDeviceError.exit_code:
        raise NoisyDeviceError(
            "the device is too noisy to measure",
            where=where,
            why=last,
            fix="end other programs there, and give --resume",
        )
    if code == _NO_CONNECTION:
        fix = f"check that `ssh {host.name}` works without asking for anything"
        raise InputError(f"{host.name} cannot be reached or does not let us in", why=last, fix=fix)
    if code == _NOT_FOUND:
        raise InputError(
            f"there is no {host.python} {where}",
            why=last,
            fix="give the Python that has the runtime with --python",
        )
    if code == InputError.exit_code:
        raise InputError(
            "the kit cannot be measured", where=where, why=last, fix="correct that, and give --resume"
        )
    raise AutocompressError(
        "measuring the kit failed", where=where, why=last, fix="the same command with --resume goes on"
    )
