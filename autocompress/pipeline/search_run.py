"""One `autocompress search` from the request to the front: checks, preparation, search, certification.

Everything that can be wrong with the request is found before anything is trained or written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from autocompress.cost.pricer import Damage, Pricer, Repairer
from autocompress.device.measure.machine import device_description
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile_files.store import write_profile
from autocompress.errors import InputError, NothingFeasibleError, StudentError
from autocompress.export.onnx import to_onnx
from autocompress.export.student_folder import coded_again, load_student, packed_size, read_spec, save_student
from autocompress.graph.module import build
from autocompress.pipeline.certification import Certificate, Device, count, examine, student_record
from autocompress.pipeline.preparation import OpenedTeacher, bound_space, open_teacher, priced, seen_by
from autocompress.pipeline.request import RECORDED, Request
from autocompress.pipeline.scoring import Scoring
from autocompress.problem.budgets import Budgets, Limits, check_reachable
from autocompress.problem.candidate import Candidate
from autocompress.progress import Console
from autocompress.reporting.card import student_card
from autocompress.runs.front import Front, front_of
from autocompress.runs.in_process import Crash, InProcess
from autocompress.runs.ray_workers import executor
from autocompress.runs.store import RunPaths, RunStore, environment_record, read_run
from autocompress.runs.tasks import Executor
from autocompress.search.finalists import patiently
from autocompress.search.halving import scaled
from autocompress.search.loop import Search
from autocompress.search.proposers.solver import Pairs
from autocompress.students.builder import Workshop
from autocompress.students.evaluator import RUNGS, Evaluator, discard, importances, save_teacher
from autocompress.students.remote import Receiving, remote_evaluator
from autocompress.students.training.precision import device_named
from autocompress.transforms.rank_start import rank_starts


def carry_out(request: Request, *, resume: bool, overwrite: bool, console: Console) -> Front:
    """Runs the request; returns the certified front.

    Raises NothingFeasibleError after a search in which no student kept the budgets.
    """
    prepared = _prepare(request, console)
    with RunStore.create(
        request.run,
        _config(request, prepared),
        {
            **environment_record(request.seed),
            "device": device_description(prepared.device.runtime, prepared.device.threads),
        },
        resume=resume,
        overwrite=overwrite,
    ) as store:
        _keep_profile(store.paths, request.profile)
        _Campaign(request, prepared, store, console).run()
        front = front_of(read_run(request.run))
        store.append("run_finished", exit_code=0 if front.students else NothingFeasibleError.exit_code)
    store.paths.front.write_text(json.dumps(front.to_json(), indent=2), encoding="utf-8")
    if not front.students:
        front.best()
    return front


def _keep_profile(paths: RunPaths, profile: DeviceProfile) -> None:
    """Copies the profile into the run once, all of it or nothing: `resume` reads it from there."""
    if not paths.device.is_dir():
        unfinished = paths.device.with_name(f".{paths.device.name}.partial")
        write_profile(unfinished, profile)
        unfinished.rename(paths.device)


@dataclass(frozen=True, eq=False)
class _Prepared:
    opened: OpenedTeacher
    pricer: Pricer
    device: Device


def _prepare(request: Request, console: Console) -> _Prepared:
    _check_training(request)
    opened = open_teacher(request.teacher, request.data, data_seed=0, console=console)
    bound = bound_space(opened, request.space)
    profile = seen_by(request.profile, opened, bound, request.space)
    pricer = priced(bound, profile, request.budgets.limited)
    _check_budgets(request.budgets, pricer)
    device = Device(request.profile.runtime, request.profile.threads, request.profile.batch)
    return _Prepared(opened, pricer, device)


def _check_training(request: Request) -> None:
    """Raises InputError for a GPU that is not there, or that no worker was given."""
    if not request.workers and request.ray_address is None:
        device_named(request.train_on)
    elif request.train_on == "cuda" and not request.gpus_per_trial:
        raise InputError(
            "training on a GPU was asked for and workers are given none",
            fix="say what of a GPU each takes: --gpus-per-trial 0.5",
        )


def _check_budgets(budgets: Budgets, pricer: Pricer) -> None:
    """Refuses, before anything runs, a budget that no candidate reaches by its predicted cost."""
    check_reachable(budgets.resolve(pricer.teacher), pricer.smallest)


def _config(request: Request, prepared: _Prepared) -> dict[str, Any]:
    options = {name: getattr(request, name) for name in RECORDED}
    opened = prepared.opened
    assert opened.data is not None
    return {
        "identity": {
            "teacher": opened.teacher.fingerprint,
            "data": opened.data.fingerprint,
            "space": request.space.fingerprint,
            "budgets": request.budgets.to_json(),
            "device": request.profile.fingerprint,
            "seed": request.seed,
        },
        "teacher": opened.teacher.spec,
        "data": request.data if isinstance(request.data, str) else None,
        "device": request.profile.name,
        "space": request.space.to_json(),
        "budgets": request.budgets.to_json(),
        "options": options,
    }


class _Campaign:
    """The steps of one run, each of which records what it did."""

    def __init__(self, request: Request, prepared: _Prepared, store: RunStore, console: Console) -> None:
        self.request, self.prepared, self.store, self.console = request, prepared, store, console
        self.paths: RunPaths = store.paths
        assert prepared.opened.data is not None
        self.data = prepared.opened.data
        self.bound = prepared.pricer.bound
        self.history = read_run(request.run).events

    def run(self) -> None:
        started = time.monotonic()
        limits, teacher = self._teacher()
        workshop = self._workshop(importances(self.bound, self.prepared.opened.weights, self.data))
        evaluator = self._evaluator(workshop)
        runner = self._executor(evaluator, workshop)
        try:
            scoring = self._scoring(workshop, limits, runner)
            damage = scoring.damage(self.history)
            pairs = scoring.pairs(self.history, damage)
            search = self._search(started, limits, teacher, damage, pairs, runner, scoring.crash)
            if evaluator is not None:
                evaluator.progress, evaluator.stop = search.show_step, search.interrupt.asked
            search.run(read_run(self.request.run).events)
            discard(self.paths.distilled / RUNGS)
        finally:
            runner.close()

    def _scoring(self, workshop: Workshop, limits: Limits, runner: Executor) -> Scoring:
        request = self.request
        return Scoring(
            workshop,
            self.prepared.pricer,
            limits,
            self.store,
            runner,
            self.console,
            request.seed,
            request.time_limit_s,
        )

    def _search(
        self,
        started: float,
        limits: Limits,
        teacher: Mapping[str, Any],
        damage: Damage,
        pairs: Pairs,
        runner: Executor,
        crash: Crash | None,
    ) -> Search:
        steps = len(self.data.train.order(self.request.batch_size, False, 0, True))
        plan = replace(
            scaled(self.request.plan, steps),
            epoch_images=steps * self.request.batch_size,
            workers=runner.workers,
        )
        if plan.time_limit_s is not None:
            plan = replace(plan, time_limit_s=max(1.0, plan.time_limit_s - (time.monotonic() - started)))
        return Search(
            pricer=self.prepared.pricer,
            repair=Repairer(self.prepared.pricer, limits, damage),
            limits=limits,
            plan=plan,
            store=self.store,
            executor=runner,
            certify=lambda candidate: self._certify(candidate, limits, teacher),
            distilled_folder=self.paths.distilled,
            console=self.console,
            starts=rank_starts(self.bound, self.prepared.opened.weights),
            pairs=pairs,
            crash=crash,
        )

    @property
    def _any_noise(self) -> bool:
        """Noise spoils nothing where no latency has to be kept."""
        return "latency_ms" not in self.request.budgets.limited

    def _teacher(self) -> tuple[Limits, Mapping[str, Any]]:
        """The teacher's measured record and the limits that follow; measured once a run."""
        known = next((event for event in self.history if event["event"] == "run_started"), None)
        if known is not None:
            return Limits.from_json(known["limits"]), known["teacher"]
        self.console.say("exporting and measuring the teacher")
        network, weights = self.prepared.opened.network, self.prepared.opened.weights
        save_teacher(self.paths.teacher, network, weights)
        model = self.paths.teacher_model
        shipped = self.prepared.opened.shipped
        model.write_bytes(to_onnx(*shipped, batch=self.prepared.device.batch).SerializeToString())
        certificate = patiently(
            lambda: examine(
                model, self.data, self.prepared.device, module=build(*shipped), any_noise=self._any_noise
            ),
            self.console.say,
        )
        predicted = self.prepared.pricer.teacher
        nothing = Limits(latency_ms=1e12)
        record, _ = student_record(
            "teacher", certificate, predicted.peak_memory_bytes, count(build(network, weights),
            network.input_shape[1:]), str(model), nothing, predicted.packed_bytes,
        )  # fmt: skip
        limits = self.request.budgets.resolve(record)
        self.store.append(
            "run_started",
            teacher=record,
            limits=limits.to_json(),
            predicted=predicted.to_json(),
            sites=[
                {
                    "name": site.name,
                    "kind": site.kind,
                    "options": list(site.options),
                    "default": site.default,
                    "locked": site.locked,
                }
                for site in self.bound.sites
            ],
            dropped=[list(item) for item in self.bound.dropped],
        )
        self.console.say(
            f"teacher: {record['accuracy']:.2%} accuracy, {record['latency_ms']:.3f} ms, "
            f"{record['file_bytes'] / 1024:.0f} KiB; budgets: {limits.describe()}"
        )
        check_reachable(limits, self.prepared.pricer.smallest)
        return limits, record

    def _workshop(self, saliency: Mapping[str, Any]) -> Workshop:
        request = self.request
        return Workshop(
            self.bound,
            self.prepared.opened.weights,
            self.data,
            saliency,
            request.seed,
            request.batch_size,
            request.learning_rate,
            request.train_on,
        )

    def _evaluator(self, workshop: Workshop) -> Evaluator | None:
        """That of this process; None where there are workers."""
        if self.request.workers or self.request.ray_address is not None:
            return None
        return Evaluator(workshop, self.paths.distilled, self.prepared.device.batch)

    def _executor(self, evaluator: Evaluator | None, workshop: Workshop) -> Executor:
        request = self.request
        if evaluator is not None:
            return InProcess(evaluator, request.trial_timeout_s, self.paths.crash)
        factory = remote_evaluator(
            workshop,
            request.space,
            self.paths.distilled,
            batch=self.prepared.device.batch,
            data_spec=request.data if isinstance(request.data, str) else None,
            preprocessing=self.prepared.opened.teacher.preprocessing,
        )
        runner = executor(
            factory,
            request.workers,
            request.ray_address,
            request.trial_timeout_s,
            request.cpus_per_trial,
            request.gpus_per_trial,
        )
        return Receiving(runner, self.paths.distilled)

    def _certify(self, candidate: Candidate, limits: Limits, teacher: Mapping[str, Any]) -> Mapping[str, Any]:
        """Examines a distilled student, writes its folder, records the outcome."""
        source = self.paths.distilled / candidate.key
        try:
            module = load_student(source)
        except StudentError:
            discard(source)  # So that a resumed run distils it again.
            raise
        self.console.say(f"measuring student {candidate.key}")
        certificate = examine(
            source / "model.onnx", self.data, self.prepared.device,
            module=module, reference=self.paths.teacher_model, any_noise=self._any_noise,
        )  # fmt: skip
        network, weights = module.source_network, module.export_weights()
        floating = replace(
            network, nodes=tuple(replace(n, quantizer=None) for n in network.nodes), input_quantizer=None
        )
        cost = self.prepared.pricer.price(candidate)
        spec = {
            "choices": read_spec(source)["choices"],
            "num_classes": self.data.num_classes,
            "class_names": list(self.data.class_names),
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "teacher": self.prepared.opened.teacher.name,
            "data": self.data.name,
        }
        coded = coded_again(source, spec)
        record, violated = student_record(
            candidate.key, certificate, cost.peak_memory_bytes,
            count(build(floating, weights), network.input_shape[1:]),
            f"students/{candidate.key}", limits, packed_size(source) if coded is None else len(coded),
        )  # fmt: skip
        bench = self._bench(certificate, record, limits, violated, teacher)
        self.store.append("exported", candidate=candidate.key, path=record["path"])
        save_student(
            self.paths.student(candidate.key),
            network=network,
            weights=weights,
            onnx_model=to_onnx(network, weights, batch=self.prepared.device.batch),
            spec_extra=spec,
            bench=bench,
            readme=student_card(spec, bench),
            coded=coded or False,
        )
        self.store.append(
            "certified", candidate=candidate.key, student=record, violated=violated, predicted=cost.to_json()
        )
        discard(source)
        state = "certified" if not violated else "breaks " + ", ".join(violated)
        self.console.say(
            f"student {candidate.key}: {record['accuracy']:.2%}, {record['latency_ms']:.3f} ms, "
            f"{record['file_bytes'] / 1024:.0f} KiB: {state}"
        )
        return record

    def _bench(
        self,
        certificate: Certificate,
        record: Mapping[str, Any],
        limits: Limits,
        violated: list[str],
        teacher: Mapping[str, Any],
    ) -> dict[str, Any]:
        device = self.prepared.device
        return {
            "student": dict(record),
            "teacher": dict(teacher),
            "limits": limits.to_json(),
            "violated": violated,
            "measurement": certificate.measurement.to_json(),
            "parity": certificate.parity.to_json() if certificate.parity else None,
            "accuracy_from": record["accuracy_from"],
            "runtime": device.runtime,
            "threads": device.threads,
            "batch": device.batch,
            "device": device_description(device.runtime, device.threads),
        }
