"""The commands as Python functions: one for each, of the same name; those on profiles are in `api_profile`.

    front = compress(teacher, data, device="NAME", space="joint", budgets=Budgets(latency_ms=2))
    front.best(latency_ms=1.5).save("student/")

Nothing heavy is imported until a function needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from autocompress.errors import BudgetError, InputError
from autocompress.files import JsonObject
from autocompress.problem.candidate import Cost, Option, Site
from autocompress.progress import Console

if TYPE_CHECKING:
    from torch import nn

    from autocompress.pipeline.before_search.candidate_check import NetworkCheck
    from autocompress.pipeline.bench_again import MeasuredAgain
    from autocompress.pipeline.budget_queries import Answer, Answers
    from autocompress.problem.budgets import Budgets
    from autocompress.problem.specs import InputSize
    from autocompress.runs.front import Front

Teacher = "str | nn.Module"


@dataclass(frozen=True)
class Inspection:
    """Hold every site of a space on a teacher, what was dropped and why, and costs where a device is given.

    `only_smaller` are options that make nothing faster on the device, only smaller: a search without a budget
    of size or memory leaves them out too. `only_packed` are those that make only `student.acz` smaller, for
    which a search needs a budget of the packed size. `basis` says what the predictions come from, and
    `relative_error` how wrong they may be. `without_onnx` are (name, what, why) of operations that have
    no form in ONNX: only a runtime that runs torch's operators can be searched for.
    """

    sites: tuple[Site, ...]
    dropped: tuple[tuple[str, Option, str], ...]
    log10_size: float
    teacher_cost: Cost | None
    smallest: Cost | None
    only_smaller: tuple[tuple[str, Option, str], ...] = ()
    only_packed: tuple[tuple[str, Option, str], ...] = ()
    basis: str = ""
    relative_error: float | None = None
    without_onnx: tuple[tuple[str, str, str], ...] = ()

    @property
    def conclusion(self) -> str:
        """Say in one sentence that nothing is left to decide, where that is so, else nothing."""
        from autocompress.pipeline.preparation import NOTHING_PAYS

        everything_dropped = self.dropped and all(len(site.options) == 1 for site in self.sites)
        return f"{NOTHING_PAYS[0].upper()}{NOTHING_PAYS[1:]}." if everything_dropped else ""

    def to_json(self) -> JsonObject:
        return {
            "sites": [site.to_json() for site in self.sites],
            "dropped": [
                {"site": name, "option": option, "reason": why} for name, option, why in self.dropped
            ],
            "dropped_without_size_budget": [
                {"site": name, "option": option, "reason": why} for name, option, why in self.only_smaller
            ],
            "dropped_without_packed_size_budget": [
                {"site": name, "option": option, "reason": why} for name, option, why in self.only_packed
            ],
            "without_onnx": [
                {"operation": name, "what": what, "reason": why} for name, what, why in self.without_onnx
            ],
            "conclusion": self.conclusion,
            "predictions": {"basis": self.basis, "relative_error": self.relative_error},
            "log10_size": self.log10_size,
            "teacher": self.teacher_cost and self.teacher_cost.to_json(),
            "smallest": self.smallest and self.smallest.to_json(),
        }

    def table(self) -> Any:
        """Draw the same for a terminal."""
        from autocompress.reporting.inspection_tables import inspection_table

        return inspection_table(self)


def inspect(
    teacher: str | nn.Module,
    space: str | Path = "joint",
    device: str | Path | None = None,
    data: Any = None,
    input_size: InputSize | None = None,
    console: Console | None = None,
) -> Inspection:
    """List every decision a search could take, and every one it could not, with the reason.

    The input size is the data's, else `input_size` (pixels of a side, (height, width), or
    (channels, height, width)), else what the teacher says about itself.
    """
    from autocompress.device.profile_files.store import load_profile
    from autocompress.problem.space import load_space

    loaded_space = load_space(space)
    profile = None if device is None else load_profile(device)
    from autocompress.cost.model import CostModel
    from autocompress.cost.pricer import Pricer
    from autocompress.cost.worthless_choices import only_packed, payoff
    from autocompress.pipeline.preparation import bound_space, measured_choices, open_teacher, seen_by

    opened = open_teacher(teacher, data, input_size, console=console)
    bound = bound_space(opened, loaded_space)
    packed = tuple((name, option, why) for (name, option), why in only_packed(bound).items())
    without_onnx = tuple((error.where, error.what, error.why) for error in opened.without_onnx)
    if profile is None:
        return Inspection(
            bound.sites,
            bound.dropped,
            bound.log10_size,
            None,
            None,
            only_packed=packed,
            without_onnx=without_onnx,
        )
    view = seen_by(profile, opened, bound, loaded_space)
    everything = Pricer(measured_choices(bound, view), CostModel(view))
    found = payoff(everything)
    kept = everything.bound.without(found.useless) if found.useless else everything.bound
    pricer = Pricer(kept, everything.cost_model)
    return Inspection(
        kept.sites,
        kept.dropped,
        kept.log10_size,
        pricer.teacher,
        pricer.smallest,
        tuple((name, option, why) for (name, option), why in found.only_smaller.items()),
        packed,
        view.basis,
        view.relative_error,
        without_onnx,
    )


def check(
    teacher: str | nn.Module,
    data: Any = None,
    space: str | Path = "joint",
    input_size: InputSize | None = None,
    candidates: int = 8,
    runtime: str = "onnxruntime",
    seed: int = 0,
    console: Console | None = None,
) -> NetworkCheck:
    """Try whether a network goes through what a search does to it: opened, changed, exported, run, compared.

    So many random joint candidates are made beside the teacher itself; nothing is trained, timed or written.
    `passed` of what is returned is the answer. Raises InputError where the teacher cannot be used at all.
    """
    from autocompress.problem.space import load_space

    loaded_space = load_space(space)
    from autocompress.pipeline.before_search.candidate_check import check_network

    return check_network(
        teacher,
        loaded_space,
        data=data,
        input_size=input_size,
        candidates=candidates,
        runtime=runtime,
        seed=seed,
        console=console or Console(),
    )


def compress(
    teacher: str | nn.Module,
    data: Any,
    device: str | Path | None = None,
    space: str | Path = "joint",
    budgets: Budgets | None = None,
    run: str | Path = "runs/latest",
    console: Console | None = None,
    **options: Any,
) -> Front:
    """Search under the budgets, distil the best, export, measure and certify them.

        compress(model, data, latency="40%", output="student")

    Args:
        teacher: a spec (`timm:NAME,…`, `package.module:callable`, `file.py:callable`) or a module.
        data: a spec (`digits`, `imagefolder:DIR`, …) or a tuple (train, validation[, test]) of datasets.
        device: name or path of a device profile. Without one the network is checked, and the profile of this
            machine that is known for it is used, or a quick one is made, for `runtime` and `threads`.
        space: name or path of a search space.
        budgets: hard limits; see `Budgets`. Or give them as typed: `latency="40%"`, `memory`, `size` and
            `packed_size`.
        run: folder that records everything; it must not exist, unless `resume` or `overwrite`.
        options: `resume=True`, `overwrite=True`, `output=FOLDER` for a copy of the most accurate student, and
            the fields of `SearchOptions`: `trials`, `students`, `time_limit_s`, `workers`, `sampler`, `seed`,
            `trial_epochs`, `distill_epochs`, …; one made before is given as `options=`. Without a device,
            trials and a time limit the time is chosen, and said.

    Raises:
        NothingFeasibleError: no student keeps the budgets; names the nearest miss.
        InputError: something that was given cannot be used; nothing was trained.
    """
    from autocompress.device.profile_files.store import load_profile
    from autocompress.pipeline.options import ProfileRequest, SearchOptions, from_keywords
    from autocompress.pipeline.request import Goal
    from autocompress.problem.space import load_space
    from autocompress.runs.student import check_output

    console, limits = console or Console(), _budgets(budgets, options)
    again = {name: bool(options.pop(name, False)) for name in ("resume", "overwrite")}
    output, replaces = options.pop("output", None), any(again.values())
    if output is not None:
        check_output(output, overwrite=replaces)
    machine: dict[str, Any] = {name: options.pop(name) for name in ("runtime", "threads") if name in options}
    asked = from_keywords(SearchOptions, options)
    goal = Goal(
        teacher, data, load_space(space), limits, Path(run), asked, from_keywords(ProfileRequest, machine)
    )
    if device is not None:
        if machine:
            raise InputError("a device profile has its own runtime and threads", fix="give one of them")
        request, opened = goal.with_profile(load_profile(device)), None
        request.check(**again)
    else:
        goal.check(**again)
        from autocompress.pipeline.one_command import request_for

        request, opened = request_for(goal, resume=again["resume"], console=console)
    from autocompress.pipeline.search_run import carry_out

    found = _answering(carry_out(request, **again, console=console, opened=opened))
    if output is not None:
        console.say(f"the student is in {found.best().save(output, overwrite=replaces)}")
    return found


def _budgets(given: Budgets | None, options: dict[str, Any]) -> Budgets:
    """Return the budgets, or those that are typed in `options`, which are taken out. Raises BudgetError."""
    from autocompress.problem.budgets import Budgets

    names = ("latency", "memory", "size", "packed_size")
    found = {name: options.pop(name, None) for name in names}
    typed = {name: value for name, value in found.items() if value is not None}
    if given is None and not typed:
        raise BudgetError("no budget is set", fix="give at least one of --latency, --memory and --size")
    if given is not None and typed:
        raise BudgetError(f"budgets and {next(iter(typed))} are both given", fix="give one of them")
    return given or Budgets.parse(**typed)


def resume(run: str | Path, add_trials: int = 0, console: Console | None = None) -> Front:
    """Go on with a search where it stopped; finished trials are not repeated."""
    from autocompress.pipeline.request import recorded_request

    request = recorded_request(Path(run), add_trials)
    request.check(resume=True, overwrite=False)
    from autocompress.pipeline.search_run import carry_out

    return _answering(carry_out(request, resume=True, overwrite=False, console=console or Console()))


def front(run: str | Path) -> Front:
    """Read the certified Pareto front of a run. Needs neither torch nor the search's packages."""
    from autocompress.runs.front import front_of
    from autocompress.runs.store import read_run

    return _answering(front_of(read_run(Path(run))))


def _answering(found: Front) -> Front:
    """Return the front with its run's answers to new budgets behind `Front.solve`, read when first asked."""

    @cache
    def answers() -> Answers:
        from autocompress.pipeline.budget_queries import Answers

        return Answers.of(found.run)

    return replace(found, answer=lambda **limits: answers().solve(**limits))


def solve(
    run: str | Path,
    latency: str | None = None,
    memory: str | None = None,
    size: str | None = None,
    packed_size: str | None = None,
) -> Answer:
    """Return the candidate that is expected to lose least within limits as typed (`1.5ms`, `40%` of the
    teacher).

    Nothing is evaluated; see `Front.solve`. Raises NothingFeasibleError when there is none.
    """
    found = front(run)
    answer: Answer = found.solve(**_parsed(found, latency, memory, size, packed_size))
    return answer


def _parsed(
    found: Front, latency: str | None, memory: str | None, size: str | None, packed_size: str | None
) -> dict[str, float | None]:
    from autocompress.problem.budgets import MIB, Budgets
    from autocompress.runs.conditions import unmeasured_teacher

    given = {"latency": latency, "memory": memory, "size": size, "packed_size": packed_size}
    if not any(given.values()):
        return {}
    for text in given.values():
        if text and "%" in text and found.teacher is None:
            raise unmeasured_teacher(text)
    limits = Budgets.parse(**given).resolve(found.teacher)
    return {
        "latency_ms": limits.latency_ms,
        "memory_mib": None if limits.peak_memory_bytes is None else limits.peak_memory_bytes / MIB,
        "size_mib": None if limits.file_bytes is None else limits.file_bytes / MIB,
        "packed_size_mib": None if limits.packed_bytes is None else limits.packed_bytes / MIB,
    }


def pick(
    run: str | Path,
    output: str | Path,
    latency: str | None = None,
    memory: str | None = None,
    size: str | None = None,
    packed_size: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Copy the most accurate certified student within these limits to `output`.

    Percentages are of the teacher's measured cost. Raises NothingFeasibleError when there is none.
    """
    found = front(run)
    limits = _parsed(found, latency, memory, size, packed_size) if found.measured else {}
    student = found.best(**limits)
    return student.save(output, overwrite=overwrite)


def bench(student: str | Path, console: Console | None = None) -> MeasuredAgain:
    """Measure a student folder again, here, and say whether it keeps the budgets it was certified for."""
    from autocompress.pipeline.bench_again import measure_again

    return measure_again(Path(student), console or Console())


def pack(student: str | Path, output: str | Path | None = None, coder: str = "context") -> tuple[Path, int]:
    """Write the student of a folder as one coded file, by default `student.acz` in it: (file, its bytes).

    `load` reads the file. Raises StudentError where the folder cannot be read or the file not be written.
    """
    from autocompress.export.student_folder import pack_student

    return pack_student(Path(student), None if output is None else Path(output), coder)


def report(run: str | Path, output: str | Path | None = None) -> Path:
    """Write one offline HTML file about a run, by default `report.html` in its folder."""
    from autocompress.reporting.html import write_report

    return write_report(Path(run), None if output is None else Path(output))


class Status(TypedDict):
    """Say what a run has done and decided so far, as JSON; `damaged` are numbers of lines, from 1."""

    run: str
    counts: dict[str, int]
    decisions: list[str]
    certified: int
    finished: bool
    exit_code: int | None
    damaged: list[int]


def status(run: str | Path) -> Status:
    """Say what a search has done and decided so far."""
    from autocompress.runs.store import read_run

    record = read_run(Path(run))
    return {
        "run": str(run),
        "counts": dict(record.counts),
        "decisions": [decision.text for decision in record.decisions],
        "certified": sum(event.student.certified for event in record.students),
        "finished": record.exit_code is not None,
        "exit_code": record.exit_code,
        "damaged": list(record.damaged),
    }


def doctor() -> JsonObject:
    """Say what this machine can do: processor, precisions, threads, runtimes, versions, problems."""
    from autocompress.device.measure.machine import doctor as examine

    return examine().to_json()


def versions() -> Mapping[str, str]:
    """Return the versions of the packages that decide results."""
    from autocompress.runs.store import environment_record

    return dict(environment_record(0)["packages"])
