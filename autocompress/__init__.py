"""Searches pruning, rank, bit-width and block choices together, under hard budgets on a device.

    import autocompress as ac

    front = ac.compress(teacher, data, device="hardware_profiles/mine", space="resnet",
                        budgets=ac.Budgets(latency_ms=2, size_mib=1), run="runs/first")
    front.best(latency_ms=1.5).save("student")
    model = ac.load("student")

Names are imported when they are first used, so `import autocompress` needs none of the heavy packages.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.api import (
        bench,
        check,
        compress,
        doctor,
        front,
        inspect,
        pack,
        pick,
        report,
        resume,
        status,
    )
    from autocompress.api_profile import (
        diff_profiles,
        merge_profiles,
        profile,
        profile_import,
        profile_kit,
        validate_profile,
    )
    from autocompress.errors import (
        AutocompressError,
        BudgetError,
        DataError,
        InputError,
        InterruptedSearchError,
        NoisyDeviceError,
        NothingFeasibleError,
        ProfileError,
        RunError,
        SpaceError,
        StudentError,
        TeacherError,
        TooManyFailuresError,
    )
    from autocompress.export.student_folder import load_student as load
    from autocompress.problem.budgets import Budgets, Limits
    from autocompress.problem.candidate import Candidate, Cost, Site
    from autocompress.problem.tasks.metric import Metric
    from autocompress.problem.tasks.task import Task
    from autocompress.runs.front import Front
    from autocompress.runs.student import Student

    __version__: str

__all__ = [
    "AutocompressError",
    "BudgetError",
    "Budgets",
    "Candidate",
    "Cost",
    "DataError",
    "Front",
    "InputError",
    "InterruptedSearchError",
    "Limits",
    "Metric",
    "NoisyDeviceError",
    "NothingFeasibleError",
    "ProfileError",
    "RunError",
    "Site",
    "SpaceError",
    "Student",
    "StudentError",
    "Task",
    "TeacherError",
    "TooManyFailuresError",
    "__version__",
    "bench",
    "check",
    "compress",
    "diff_profiles",
    "doctor",
    "front",
    "inspect",
    "load",
    "merge_profiles",
    "pack",
    "pick",
    "profile",
    "profile_import",
    "profile_kit",
    "report",
    "resume",
    "status",
    "validate_profile",
]

_MODULES = {
    "api": (
        "bench",
        "check",
        "compress",
        "doctor",
        "front",
        "inspect",
        "pack",
        "pick",
        "report",
        "resume",
        "status",
    ),
    "api_profile": (
        "diff_profiles",
        "merge_profiles",
        "profile",
        "profile_import",
        "profile_kit",
        "validate_profile",
    ),
    "problem.budgets": ("Budgets", "Limits"),
    "problem.candidate": ("Candidate", "Cost", "Site"),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "problem.tasks.metric": ("Metric",),
    "problem.tasks.task": ("Task",),
    "runs.front": ("Front",),
    "runs.student": ("Student",),
}
_ORIGINS = {name: (module, name) for module, names in _MODULES.items() for name in names}
_ORIGINS["load"] = ("export.student_folder", "load_student")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _ORIGINS[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version(__name__)
    except metadata.PackageNotFoundError:
        return "0+source"
