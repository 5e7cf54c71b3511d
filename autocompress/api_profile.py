"""The commands on device profiles as Python functions; see `api`.

Nothing heavy is imported until a function needs it, and what a user names is checked before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import InputError, ProfileError
from autocompress.files import JsonObject
from autocompress.progress import Console

if TYPE_CHECKING:
    from torch import nn

    from autocompress.device.profile.profile import DeviceProfile


def profile(
    teacher: str | nn.Module,
    space: str | Path,
    output: str | Path,
    console: Console | None = None,
    **options: Any,
) -> DeviceProfile:
    """Measure this machine on random candidates of the space and write the profile folder `output`.

    `options` are `overwrite=True`, `resume=True`, and the fields of `ProfileRequest`: `runtime`, `threads`,
    `batch`, `networks`, `seed`, `data`, `input_size`; one made before is given as `options=`.
    """
    from autocompress.pipeline.options import ProfileRequest, from_keywords
    from autocompress.problem.space import load_space

    again = _flags(options, "overwrite", "resume")
    request = from_keywords(ProfileRequest, options)
    loaded_space = load_space(space)
    from autocompress.pipeline.profile_device import measure_profile

    return measure_profile(
        teacher, loaded_space, Path(output), request, console=console or Console(), **again
    )


def _flags(options: dict[str, object], *names: str) -> dict[str, bool]:
    """Take these switches out of `options`; those that are not there are off."""
    return {name: bool(options.pop(name, False)) for name in names}


def validate_profile(
    device: str | Path,
    teacher: str | nn.Module | None = None,
    space: str | Path | None = None,
    update: bool = False,
    console: Console | None = None,
    **options: Any,
) -> JsonObject:
    """Measure new random candidates on this machine and compare them with the predictions.

    Teacher, space and input size are those of the profile's first source that timm can build, where
    they are not given. Writes nothing unless `update`, which replaces the profile's `validation.json`.
    `options` are the other fields of `CheckRequest`: `networks`, `seed`, `data`, `input_size`.
    """
    from autocompress.device.profile_files.store import load_profile, profile_folder
    from autocompress.pipeline.options import CheckRequest, from_keywords

    given = {name: value for name, value in (("teacher", teacher), ("space", space)) if value is not None}
    request = from_keywords(CheckRequest, {**options, **given})
    folder = profile_folder(device)
    found = load_profile(folder)
    from autocompress.pipeline.profile_check import check_profile, updated

    result = check_profile(found, request, console or Console())
    if update:
        updated(folder, found, result)
    return result.to_json()


def merge_profiles(
    devices: Sequence[str | Path], output: str | Path, overwrite: bool = False
) -> DeviceProfile:
    """Write one profile of several of the same device, runtime, threads and batch, and return it."""
    from autocompress.device.profile.merging import merge_profiles as merge
    from autocompress.device.profile_files.store import load_profile, write_profile

    folder = Path(output)
    if folder.exists() and not overwrite:
        raise ProfileError(f"the profile folder {folder} exists", fix="give --overwrite, or another --output")
    merged = merge([load_profile(device) for device in devices], folder.name)
    write_profile(folder, merged)
    return merged


def diff_profiles(first: str | Path, second: str | Path) -> JsonObject:
    """Return how two device profiles differ; see `profile_difference` of `device.profile.diff`."""
    from autocompress.device.profile.diff import profile_difference
    from autocompress.device.profile_files.store import load_profile

    return profile_difference(load_profile(first), load_profile(second)).to_json()


def profile_kit(
    teacher: str | nn.Module,
    space: str | Path,
    output: str | Path,
    console: Console | None = None,
    **options: Any,
) -> DeviceProfile | None:
    """Write a folder of networks and a script that measures them on a device without autocompress.

    With `ssh`, a host, it is run there, and the profile is written to the folder `profile`, by default
    `profile` within `output`. Without it the result is None: run the script, then `profile_import`.
    `options` are `overwrite=True`, `resume=True`, and the fields of `KitRequest`, which are those of
    `ProfileRequest`, `ssh`, `ssh_options`, `python` and `profile`. Raises InputError for what only `ssh`
    uses without it.
    """
    from autocompress.device.kit.remote import Host
    from autocompress.pipeline.options import KitRequest, flags_given, from_keywords
    from autocompress.problem.space import load_space

    again = _flags(options, "overwrite", "resume")
    request = from_keywords(KitRequest, options)
    if request.ssh is None:
        of_ssh = ("--ssh-option", "--python", "--profile")
        _refuse_unused("without --ssh", [flag for flag in flags_given(request) if flag in of_ssh])
    host = None if request.ssh is None else Host(request.ssh, tuple(request.ssh_options), request.python)
    loaded_space = load_space(space)
    from autocompress.pipeline import device_kits as kits

    console = console or Console()
    overwrite, resume = again["overwrite"], again["resume"]
    kit = kits.make_kit(
        teacher, loaded_space, Path(output), request, overwrite=overwrite, resume=resume, console=console
    )
    if host is None:
        return None
    target = Path(output) / "profile" if request.profile is None else Path(request.profile)
    own = resume and request.profile is None
    return kits.measure_kit_over_ssh(kit, host, target, console, overwrite=overwrite or own)


def _refuse_unused(why: str, flags: Sequence[str]) -> None:
    """Raise InputError for options that were given and would be ignored."""
    if flags:
        raise InputError(f"{', '.join(flags)} cannot be used {why}", fix=f"leave out {' and '.join(flags)}")


def profile_import(
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    overwrite: bool = False,
    **options: Any,
) -> DeviceProfile:
    """Make a device profile of a measured kit, or of dumps that vendors' tools wrote.

    A folder or a `.jsonl` file is a kit's; anything else is a dump, of the tool `kind` or of the one that
    it looks like. Dumps need the `models` that were profiled, one each, or the `teacher`; `latencies` are
    those of the whole networks, such as "1.2ms". `options` are the fields of `ImportRequest`. Raises
    ProfileError for whatever cannot be used.
    """
    from autocompress.pipeline.options import ImportRequest, flags_given, from_keywords

    request = from_keywords(ImportRequest, options)
    from autocompress.pipeline import device_kits as kits

    paths = [Path(source) for source in ([sources] if isinstance(sources, (str, Path)) else sources)]
    if request.kind is None and len(paths) == 1 and (paths[0].is_dir() or paths[0].suffix == ".jsonl"):
        unused = [flag for flag in flags_given(request) if flag != "--kit"]
        _refuse_unused("with a kit, which says that itself", unused)
        kit = None if request.kit is None else Path(request.kit)
        return kits.import_kit(paths[0], Path(output), kit=kit, overwrite=overwrite)
    return kits.import_dumps(paths, Path(output), request, overwrite=overwrite)
