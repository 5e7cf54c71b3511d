"""From a network, its data and a budget to a search, where no device profile is named.

The network is checked, a profile of this machine is found or made, and the time is shared between that and
the search.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile_files.store import load_profile
from autocompress.errors import TeacherError
from autocompress.pipeline.before_search.candidate_check import check_opened
from autocompress.pipeline.before_search.own_profile import FAST_NETWORKS, own_profile
from autocompress.pipeline.options import SearchOptions
from autocompress.pipeline.preparation import OpenedTeacher, open_teacher
from autocompress.pipeline.request import Goal, Request
from autocompress.pipeline.scoring import image_s
from autocompress.pipeline.search_run import check_training
from autocompress.progress import Console
from autocompress.runs.store import RunPaths

CHECKED_CANDIDATES = 3
SHORTEST_S, LONGEST_S = 240.0, 3600.0
EPOCHS = 40
"""What a search of the default time could train, all students together."""
PASSES_A_STEP = 3
"""A training step costs about three forward passes."""
PREPARATION_S = 120.0
LEAST_SEARCH_SHARE = 0.3
"""Of the time: what is left for the search, however long the profile took."""


def request_for(goal: Goal, *, resume: bool, console: Console) -> tuple[Request, OpenedTeacher]:
    """Return the request of a search, and its teacher, opened.

    Without a time limit and a number of trials the time follows from the size of the network and the data.

    Raises TeacherError for a network that does not go through, InputError for whatever else cannot be used.
    """
    started = time.monotonic()
    check_training(goal.options)
    opened = open_teacher(
        goal.teacher,
        goal.data,
        console=console,
        cache_memory_bytes=goal.options.cache_memory_mib * 2**20,
        runtime=goal.machine.runtime,
    )
    options = _with_time(goal.options, opened, console)
    if options.time_limit_s is not None:
        console.within(options.time_limit_s)
    recorded = RunPaths(goal.run).device
    if resume and recorded.is_dir():
        profile = load_profile(recorded)
    else:
        profile = _checked_profile(goal, opened, console)
    if options.time_limit_s is not None:
        spent_s = time.monotonic() - started
        left_s = max(options.time_limit_s - spent_s, LEAST_SEARCH_SHARE * options.time_limit_s)
        options = replace(options, time_limit_s=left_s)
    return replace(goal, options=options).with_profile(profile), opened


def _checked_profile(goal: Goal, opened: OpenedTeacher, console: Console) -> DeviceProfile:
    machine = replace(goal.machine, networks=FAST_NETWORKS)
    found = check_opened(
        opened, goal.space, candidates=CHECKED_CANDIDATES, runtime=machine.runtime, seed=0, console=console
    )
    if not found.passed:
        raise TeacherError(
            "the network cannot be compressed as it is",
            where=opened.teacher.name,
            why=found.conclusion,
            fix="run: autocompress check, which shows each candidate and what is locked",
        )
    console.say(found.conclusion)
    return own_profile(opened, goal.space, machine, console)


def _with_time(options: SearchOptions, opened: OpenedTeacher, console: Console) -> SearchOptions:
    """Return the options with a time limit, where neither that nor a number of trials was asked for."""
    if options.time_limit_s is not None or options.trials is not None:
        return options
    assert opened.data is not None
    images, each_s = opened.data.train.size, image_s(opened.teacher.module, opened.data)
    wanted_s = PREPARATION_S + EPOCHS * PASSES_A_STEP * images * each_s
    minutes = math.ceil(min(max(wanted_s, SHORTEST_S), LONGEST_S) / 60)
    console.say(
        f"taking {minutes} minutes, by {images} images for training at {1e3 * each_s:.2g} ms each; "
        "--time asks for another time"
    )
    return replace(options, time_limit_s=60.0 * minutes)
