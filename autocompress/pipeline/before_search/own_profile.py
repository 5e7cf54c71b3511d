"""A profile of this machine for a search that names none: one that is known, or one made now.

Profiles are kept in the user's cache folder, by machine, runtime and its setting, space, and the kernels of
the teacher; weights do not matter. Where nothing can be kept, the profile lives as long as the command: the
run has its own copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from autocompress.cost.kernels import kernels
from autocompress.device.measure.machine import device_description
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile.sources import kernels_fingerprint
from autocompress.device.profile_files.store import load_profile
from autocompress.errors import ProfileError, SpaceError
from autocompress.files import CACHE_VARIABLE, user_cache
from autocompress.pipeline.options import ProfileRequest
from autocompress.pipeline.preparation import OpenedTeacher, bound_space, priced, seen_by
from autocompress.pipeline.profile_device import measure_profile
from autocompress.problem.space import Space
from autocompress.progress import Console
from autocompress.transforms.sites import BoundSpace

FAST_NETWORKS = 24
"""Enough to rank candidates by; what a student is certified with is measured anyway."""

MOST_NETWORKS = 96


def own_profile(
    opened: OpenedTeacher, space: Space, request: ProfileRequest, console: Console
) -> DeviceProfile:
    """Return the profile of this machine that fits, measured now where none is known.

    More networks than asked for are measured where those leave a choice of the space without a price.
    Raises ProfileError where that does not help, NoisyDeviceError where the machine is too busy to measure.
    """
    name, root = _name(opened, space, request), user_cache()
    bound = bound_space(opened, space)
    if root is not None:
        known = _known(root / "profiles" / name, request, console)
        if known is not None and not _lacking(known, opened, space, bound):
            return known
    with _scratch(root, console) as (scratch, is_kept):
        console.say(
            f"no profile of this machine is known for this network: measuring {request.networks} others"
        )
        made = _measured(opened, space, scratch / name, request, console)
        lacking = _lacking(made, opened, space, bound)
        while lacking and request.networks < MOST_NETWORKS:
            request = replace(request, networks=2 * request.networks)
            console.say(f"{lacking.what}: measuring up to {request.networks} networks")
            made = _measured(opened, space, scratch / name, request, console)
            lacking = _lacking(made, opened, space, bound)
        if lacking:
            raise lacking
        if root is not None and is_kept:
            _keep(scratch / name, root / "profiles" / name, console)
    return made


def _measured(
    opened: OpenedTeacher, space: Space, folder: Path, request: ProfileRequest, console: Console
) -> DeviceProfile:
    """Measure into the folder, and go on with what is there."""
    request = replace(request, data=opened.data)
    return measure_profile(
        opened.teacher, space, folder, request, overwrite=False, resume=folder.exists(), console=console
    )


def _lacking(
    profile: DeviceProfile, opened: OpenedTeacher, space: Space, bound: BoundSpace
) -> ProfileError | None:
    """Return why a search could not price with the profile; None where it could."""
    try:
        priced(bound, seen_by(profile, opened, bound, space))
    except ProfileError as error:
        return error
    except SpaceError:
        return None
    return None


def _name(opened: OpenedTeacher, space: Space, request: ProfileRequest) -> str:
    """Return the folder of the profile: words to be recognised by, and a hash of all that must be alike."""
    here = device_description(request.runtime, request.threads)
    found = kernels_fingerprint(kernels(opened.shipped[0]))
    alike = {
        "machine": [here.cpu, here.cpu_id, here.gpu],
        "runtime": [request.runtime, here.version],
        "setting": [request.threads, request.batch, request.networks, request.seed],
        "space": space.fingerprint,
        "network": [found, list(opened.network.input_shape)],
    }
    digest = hashlib.sha256(json.dumps(alike, sort_keys=True).encode()).hexdigest()
    words = re.sub(r"[^\w.-]+", "-", f"{opened.teacher.name}-{space.name}-{request.runtime}")
    return f"{words[:60]}-{digest[:12]}"


def _known(folder: Path, request: ProfileRequest, console: Console) -> DeviceProfile | None:
    """Return the profile of that folder; None where there is none that can be used here."""
    if not folder.is_dir():
        return None
    try:
        profile = load_profile(folder)
        profile.check_here(device_description(request.runtime, request.threads))
    except ProfileError as error:
        console.say(f"the profile {folder} cannot be used: {error.what}; it is made again")
        return None
    measured = profile.sources[0].measured_at[:10]
    console.say(f"using the profile of this machine of {measured}: {folder}")
    return profile


@contextlib.contextmanager
def _scratch(root: Path | None, console: Console) -> Iterator[tuple[Path, bool]]:
    """Yield a folder to measure in, and whether what is there can be kept."""
    folder = None
    if root is not None:
        with contextlib.suppress(OSError):
            (root / "profiles").mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix=".", dir=root / "profiles")
    if folder is None:
        console.say(
            f"the profile is not kept: no cache folder can be written to ({CACHE_VARIABLE} names one)"
        )
    with folder or tempfile.TemporaryDirectory(prefix="autocompress-") as path:
        yield Path(path), folder is not None


def _keep(made: Path, folder: Path, console: Console) -> None:
    """Move a profile to its place, whole; another process may have been faster, which is as good."""
    try:
        if folder.exists():
            unusable = made.with_name("unusable")
            folder.rename(unusable)
        made.rename(folder)
        console.say(f"the profile is kept in {folder}")
    except OSError as error:
        console.say(f"the profile is not kept: {error.strerror or error}")
