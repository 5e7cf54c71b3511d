"""One `autocompress search` from the request to the front: checks, preparation, search, certification.

Everything that can be wrong with the request is found before anything is trained or written.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from autocompress.cost.pricer import Pricer
from autocompress.cost.repair import Repairer
from autocompress.device.measure.machine import device_description
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile_files.store import write_profile
from autocompress.errors import InputError, NothingFeasibleError
from autocompress.export.onnx import to_onnx
from autocompress.files import JsonObject
from autocompress.graph.module import build
from autocompress.pipeline.before_search.task_fit import AskedTask
from autocompress.pipeline.certification import (
    Device,
    StudentCertifier,
    computed,
    examine,
    measured_student,
    shown_metric,
)
from autocompress.pipeline.options import NOT_RECORDED, SearchOptions
from autocompress.pipeline.preparation import OpenedTeacher, bound_space, open_teacher, priced, seen_by
from autocompress.pipeline.request import Request
from autocompress.pipeline.scoring import Scoring
from autocompress.problem.budgets import Budgets, check_reachable
from autocompress.problem.specs import absolute
from autocompress.problem.tasks.classification import Classification
from autocompress.problem.tasks.metric import ACCURACY
from autocompress.problem.tasks.task import Task
from autocompress.progress import Console, clock
from autocompress.runs.events import RunFinished, RunStarted, SiteRecord
from autocompress.runs.front import Front, front_of
from autocompress.runs.in_process import InProcess, read_crash
from autocompress.runs.ray_workers import executor
from autocompress.runs.store import RunPaths, RunStore, environment_record, read_run
from autocompress.runs.tasks import Executor
from autocompress.search.finalists import patiently
from autocompress.search.halving import Plan
from autocompress.search.loop import Search, Setting
from autocompress.students.builder import StudentBuilder
from autocompress.students.checkpoints import RUNGS, discard, save_teacher
from autocompress.students.evaluator import Evaluator
from autocompress.students.importances import importances
from autocompress.students.remote import Receiving, remote_evaluator
from autocompress.students.training.precision import device_named
from autocompress.transforms.rank_start import rank_starts

LEAST_SHARE = 0.5
"""Of the time limit: what trials and training get, however long the scores took."""


def carry_out(
    request: Request,
    *,
    resume: bool,
    overwrite: bool,
    console: Console,
    opened: OpenedTeacher | None = None,
) -> Front:
    """Run the request and return the certified front. `opened` is its teacher, where that is open already.

    Raises NothingFeasibleError after a search in which no student kept the budgets.
    """
    console.say(planned_stages(request.options))
    if request.options.time_limit_s is not None:
        console.within(request.options.time_limit_s)
    prepared = _prepare(request, opened, console)
    with RunStore.create(
        request.run,
        _config(request, prepared),
        {
            **environment_record(request.options.seed),
            "device": dict(device_description(prepared.device.runtime, prepared.device.threads).values),
        },
        resume=resume,
        overwrite=overwrite,
    ) as store:
        _keep_profile(store.paths, request.profile)
        _SearchRun(request, prepared, store, console).run()
        front = front_of(read_run(request.run))
        store.append(RunFinished(exit_code=0 if front.students else NothingFeasibleError.exit_code))
    store.paths.front.write_text(json.dumps(front.to_json(), indent=2), encoding="utf-8")
    if not front.students:
        front.best()
    return front


def planned_stages(options: SearchOptions, *before: str) -> str:
    """Return the stages of a search in a sentence, those that come before it first."""
    trials = "trials" if options.trials is None and options.time_limit_s else f"{options.most_trials} trials"
    students = "1 student" if options.students == 1 else f"{options.students} students"
    stages = (
        *before,
        "scores of single choices",
        trials,
        "longer training of the best",
        students,
        "measuring",
    )
    limit = options.time_limit_s
    return f"plan: {' → '.join(stages)}" + (f", in {clock(limit)}" if limit else "")


def _keep_profile(paths: RunPaths, profile: DeviceProfile) -> None:
    """Copy the profile into the run once, all of it or nothing: `resume` reads it from there."""
    if not paths.device.is_dir():
        unfinished = paths.device.with_name(f".{paths.device.name}.partial")
        write_profile(unfinished, profile)
        unfinished.rename(paths.device)


@dataclass(frozen=True, eq=False)
class _Prepared:
    opened: OpenedTeacher
    pricer: Pricer
    device: Device


def opened_for(request: Request, console: Console) -> OpenedTeacher:
    """Open the teacher of a request on its data. Raises InputError for what cannot be used."""
    return open_teacher(
        request.teacher,
        request.data,
        data_seed=0,
        console=console,
        cache_memory_bytes=request.options.cache_memory_mib * 2**20,
        asked=AskedTask(request.options.task, request.options.metric),
        runtime=request.profile.runtime,
    )


def _prepare(request: Request, opened: OpenedTeacher | None, console: Console) -> _Prepared:
    check_training(request.options)
    opened = opened or opened_for(request, console)
    bound = bound_space(opened, request.space)
    profile = seen_by(request.profile, opened, bound, request.space)
    pricer = priced(bound, profile, request.budgets.limited)
    _check_budgets(request.budgets, pricer)
    device = Device(request.profile.runtime, request.profile.threads, request.profile.batch)
    return _Prepared(opened, pricer, device)


def check_training(options: SearchOptions) -> None:
    """Raise InputError for a GPU that is not there, or that no worker was given."""
    if not options.is_distributed:
        device_named(options.train_on)
    elif options.train_on == "cuda" and not options.gpus_per_trial:
        raise InputError(
            "training on a GPU was asked for and workers are given none",
            fix="say what of a GPU each takes: --gpus-per-trial 0.5",
        )


def _check_budgets(budgets: Budgets, pricer: Pricer) -> None:
    """Refuse, before anything runs, a budget that no candidate reaches by its predicted cost."""
    check_reachable(budgets.resolve(pricer.teacher), pricer.smallest)


def _config(request: Request, prepared: _Prepared) -> JsonObject:
    opened = prepared.opened
    assert opened.data is not None
    return {
        "identity": {
            "teacher": opened.teacher.fingerprint,
            "data": opened.data.fingerprint,
            "space": request.space.fingerprint,
            "budgets": request.budgets.to_json(),
            "device": request.profile.fingerprint,
            "seed": request.options.seed,
            **_identity_of(opened.data.task),
        },
        "teacher": absolute(opened.teacher.spec) if opened.teacher.spec else "",
        "data": absolute(request.data) if isinstance(request.data, str) else None,
        "device": request.profile.name,
        "space": request.space.to_json(),
        "budgets": request.budgets.to_json(),
        "options": _recorded(request.options),
    }


def _identity_of(task: Task) -> dict[str, str]:
    """Return what tells the task from others; nothing for classes and accuracy, as runs always were."""
    if type(task) is Classification and task.metric == ACCURACY and not task.ending:
        return {}
    return {"task": f"{task.spec or task.name}; {task.metric_spec or task.metric.name}"}


def _recorded(options: SearchOptions) -> JsonObject:
    """Return the options as they are written; a task or metric that was given as an object is not."""
    plain = replace(options, task=_written(options.task), metric=_written(options.metric))
    return asdict(plain)


def _written(given: Any) -> str | None:
    if given is None or isinstance(given, str):
        return given and absolute(given)
    return NOT_RECORDED


class _SearchRun:
    """The steps of one run, each of which records what it did."""

    def __init__(self, request: Request, prepared: _Prepared, store: RunStore, console: Console) -> None:
        self.request, self.prepared, self.store, self.console = request, prepared, store, console
        self.paths: RunPaths = store.paths
        assert prepared.opened.data is not None
        self.data = prepared.opened.data
        self.bound = prepared.pricer.bound
        self.history = read_run(request.run)

    def run(self) -> None:
        """Measure the teacher, score single choices, search."""
        started = time.monotonic()
        begun = self.history.started or self._measure_teacher()
        builder = self._builder()
        evaluator = self._evaluator(builder)
        runner = self._executor(evaluator, builder)
        try:
            scoring = Scoring(
                builder, self.prepared.pricer, begun.limits, self.store, runner, self.console,
                self.request.options.seed, self.request.options.time_limit_s, read_crash(self.paths.crash),
            )  # fmt: skip
            scores = scoring.singles(self.history)
            pairs = scoring.pairs(self.history, scores)
            setting = Setting(
                pricer=self.prepared.pricer,
                repair=Repairer(self.prepared.pricer, begun.limits, scores.damage),
                limits=begun.limits,
                plan=self._plan(runner.workers, time.monotonic() - started),
                store=self.store,
                executor=runner,
                certify=self._certifier(begun),
                distilled_folder=self.paths.distilled,
                console=self.console,
                starts=rank_starts(self.bound, self.prepared.opened.weights),
                pairs=pairs,
                crash=scoring.crash,
            )
            search = Search(setting, read_run(self.request.run).events)
            if evaluator is not None:
                evaluator.progress, evaluator.stop = search.show_step, search.interrupt.asked
            search.run()
            discard(self.paths.distilled / RUNGS)
        finally:
            runner.close()

    def _plan(self, workers: int, spent_s: float) -> Plan:
        options = self.request.options
        steps = len(self.data.train.order(options.batch_size, False, 0, True))
        plan = self.request.plan(steps, workers)
        if plan.time_limit_s is None:
            return plan
        left_s = max(plan.time_limit_s - spent_s, LEAST_SHARE * plan.time_limit_s)
        return replace(plan, time_limit_s=left_s)

    def _certifier(self, begun: RunStarted) -> StudentCertifier:
        return StudentCertifier(
            self.prepared.opened, self.prepared.pricer, self.prepared.device, self.store, self.console,
            begun.limits, begun.teacher, self._any_noise,
        )  # fmt: skip

    @property
    def _any_noise(self) -> bool:
        """Return whether latencies are taken as they come: noise spoils nothing where none has to be kept."""
        return "latency_ms" not in self.request.budgets.limited

    def _measure_teacher(self) -> RunStarted:
        """Export and measure the teacher; record it with the limits that follow."""
        self.console.say("exporting and measuring the teacher")
        opened, device, predicted = self.prepared.opened, self.prepared.device, self.prepared.pricer.teacher
        save_teacher(self.paths.teacher, opened.network, opened.weights)
        model = self.paths.teacher_model
        exported = to_onnx(*opened.shipped, batch=device.batch, torch_operators=device.torch_operators)
        model.write_bytes(exported.SerializeToString())
        evidence = patiently(
            lambda: examine(
                model, self.data, device, module=build(*opened.shipped), any_noise=self._any_noise
            ),
            self.console.say,
        )
        known = computed(opened.network, opened.weights, predicted, predicted.packed_bytes)
        teacher = measured_student("teacher", str(model), evidence, known, self.data.task.metric)
        begun = RunStarted(
            teacher=teacher,
            limits=self.request.budgets.resolve(teacher),
            predicted=predicted,
            sites=tuple(
                SiteRecord(site.name, site.kind, site.options, site.default, site.locked)
                for site in self.bound.sites
            ),
            dropped=tuple(self.bound.dropped),
        )
        self.store.append(begun)
        size = f"{teacher.file_bytes / 1024:.0f} KiB"
        self.console.say(
            f"teacher: {shown_metric(teacher)}, {teacher.latency_ms:.3f} ms, {size}; "
            f"budgets: {begun.limits.describe()}"
        )
        check_reachable(begun.limits, self.prepared.pricer.smallest)
        return begun

    def _builder(self) -> StudentBuilder:
        weights = self.prepared.opened.weights
        settings = self.request.options.distill_settings
        return StudentBuilder(
            self.bound, weights, self.data, importances(self.bound, weights, self.data), settings
        )

    def _evaluator(self, builder: StudentBuilder) -> Evaluator | None:
        """Return that of this process; None where there are workers."""
        if self.request.options.is_distributed:
            return None
        device = self.prepared.device
        return Evaluator(builder, self.paths.distilled, device.batch, device.torch_operators)

    def _executor(self, evaluator: Evaluator | None, builder: StudentBuilder) -> Executor:
        request, options = self.request, self.request.options
        if evaluator is not None:
            return InProcess(evaluator, options.trial_timeout_s, self.paths.crash)
        factory = remote_evaluator(
            builder,
            request.space,
            self.paths.distilled,
            batch=self.prepared.device.batch,
            torch_operators=self.prepared.device.torch_operators,
            data_spec=request.data if isinstance(request.data, str) else None,
            preprocessing=self.prepared.opened.teacher.preprocessing,
        )
        runner = executor(
            factory,
            options.workers,
            options.ray_address,
            options.trial_timeout_s,
            options.cpus_per_trial,
            options.gpus_per_trial,
        )
        return Receiving(runner, self.paths.distilled)
