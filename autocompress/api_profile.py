"""The commands on device profiles as Python functions; see `api`.

Nothing heavy is imported until a function needs it, and what a user names is checked before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import InputError, ProfileError
from autocompress.progress import Console

if TYPE_CHECKING:
    from torch import nn

    from autocompress.device.profile.profile import DeviceProfile
    from autocompress.problem.specs import InputSize


def profile(
    teacher: str | nn.Module,
    space: str | Path,
    output: str | Path,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch: int = 1,
    networks: int = 120,
    seed: int = 0,
    data: Any = None,
    input_size: InputSize | None = None,
    overwrite: bool = False,
    resume: bool = False,
    console: Console | None = None,
) -> DeviceProfile:
    """Measures this machine on `networks` random candidates of the space and writes the profile folder."""
    from autocompress.problem.space import load_space

    loaded_space = load_space(space)
    from autocompress.pipeline.profile_device import measure_profile

    return measure_profile(
        teacher, loaded_space, Path(output), runtime, threads, batch, networks, seed, data, input_size,
        overwrite=overwrite, resume=resume, console=console or Console(),
    )  # fmt: skip


def validate_profile(
    device: str | Path,
    teacher: str | nn.Module | None = None,
    space: str | Path | None = None,
    networks: int = 20,
    seed: int = 1000,
    data: Any = None,
    input_size: InputSize | None = None,
    update: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measures `networks` new random candidates on this machine and compares them with the predictions.

    Teacher, space and input size are those of the profile's first source that timm can build, where
    they are not given. Writes nothing unless `update`, which replaces the profile's `validation.json`.
    """
    from autocompress.device.profile_files.store import load_profile, profile_folder

    folder = profile_folder(device)
    found = load_profile(folder)
    from autocompress.pipeline.profile_check import updated
    from autocompress.pipeline.profile_check import validate_profile as validate

    result = validate(found, teacher, space, networks, seed, data, input_size, console or Console())
    if update:
        updated(folder, found, result)
    return result


def merge_profiles(
    devices: Sequence[str | Path], output: str | Path, overwrite: bool = False
) -> DeviceProfile:
    """Writes one profile of several of the same device, runtime, threads and batch, and returns it."""
    from autocompress.device.profile.merging import merge_profiles as merge
    from autocompress.device.profile_files.store import load_profile, write_profile

    folder = Path(output)
    if folder.exists() and not overwrite:
        raise ProfileError(f"the profile folder {folder} exists", fix="give --overwrite, or another --output")
    merged = merge([load_profile(device) for device in devices], folder.name)
    write_profile(folder, merged)
    return merged


def diff_profiles(first: str | Path, second: str | Path) -> dict[str, Any]:
    """How two device profiles differ; see `device.profile_diff.profile_difference`."""
    from autocompress.device.profile.diff import profile_difference
    from autocompress.device.profile_files.store import load_profile

    return profile_difference(load_profile(first), load_profile(second))


def profile_kit(
    teacher: str | nn.Module,
    space: str | Path,
    output: str | Path,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch: int = 1,
    networks: int = 40,
    seed: int = 0,
    data: Any = None,
    input_size: InputSize | None = None,
    overwrite: bool = False,
    resume: bool = False,
    ssh: str | None = None,
    ssh_options: Sequence[str] = (),
    python: str = "python3",
    profile: str | Path | None = None,
    console: Console | None = None,
) -> DeviceProfile | None:
    """Writes a folder of networks and a script that measures them on a device without autocompress.

    With `ssh`, a host, it is run there, and the profile is written to the folder `profile`, by default
    `profile` within `output`. Without it the result is None: run the script, then `profile_import`.
    Raises InputError for what only `ssh` uses without it.
    """
    from autocompress.device.kit.remote import Host
    from autocompress.problem.space import load_space

    if ssh is None:
        _refuse_unused(
            "without --ssh",
            ssh_option=bool(ssh_options),
            python=python != "python3",
            profile=profile is not None,
        )
    host = None if ssh is None else Host(ssh, tuple(ssh_options), python)
    loaded_space = load_space(space)
    from autocompress.pipeline import device_kits as kits

    console = console or Console()
    kit = kits.make_kit(
        teacher, loaded_space, Path(output), runtime, threads, batch, networks, seed, data, input_size,
        overwrite=overwrite, resume=resume, console=console,
    )  # fmt: skip
    if host is None:
        return None
    target = Path(output) / "profile" if profile is None else Path(profile)
    own = resume and profile is None
    return kits.measure_kit_over_ssh(kit, host, target, console, overwrite=overwrite or own)


def _refuse_unused(why: str, **given: bool) -> None:
    """Raises InputError for options that were given and would be ignored."""
    unused = [f"--{name.replace('_', '-')}" for name, is_given in given.items() if is_given]
    if unused:
        raise InputError(f"{', '.join(unused)} cannot be used {why}", fix=f"leave out {' and '.join(unused)}")


def profile_import(
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    kind: str | None = None,
    models: Sequence[str | Path] = (),
    teacher: str | nn.Module | None = None,
    latencies: Sequence[str] = (),
    kit: str | Path | None = None,
    threads: int = 1,
    batch: int = 1,
    device_name: str | None = None,
    input_size: InputSize | None = None,
    overwrite: bool = False,
) -> DeviceProfile:
    """Makes a device profile of a measured kit, or of dumps that vendors' tools wrote.

    A folder or a `.jsonl` file is a kit's; anything else is a dump, of the tool `kind` or of the one that
    it looks like. Dumps need the `models` that were profiled, one each, or the `teacher`; `latencies` are
    those of the whole networks, such as "1.2ms". Raises ProfileError for whatever cannot be used.
    """
    from autocompress.pipeline import device_kits as kits

    paths = [Path(source) for source in ([sources] if isinstance(sources, (str, Path)) else sources)]
    if kind is None and len(paths) == 1 and (paths[0].is_dir() or paths[0].suffix == ".jsonl"):
        _refuse_unused(
            "with a kit, which says that itself",
            model=bool(models),
            teacher=teacher is not None,
            latency=bool(latencies),
            threads=threads != 1,
            batch=batch != 1,
            device_name=device_name is not None,
            input_size=input_size is not None,
        )
        return kits.import_kit(
            paths[0], Path(output), kit=None if kit is None else Path(kit), overwrite=overwrite
        )
    return kits.import_dumps(
        paths, Path(output), kind=kind, models=[Path(model) for model in models], teacher=teacher,
        latencies=latencies, threads=threads, batch=batch, device_name=device_name,
        input_size=input_size, overwrite=overwrite,
    )  # fmt: skip
