"""Where evaluations run: in this process, or in the processes of Ray Tune. The only file that imports ray.

Both executors pull tasks from the owner (`ask`) and hand results back (`tell`), so that the search
loop is the same for one core and a cluster. Processes exchange candidates and JSON, never models:
each worker makes its evaluator once, from a factory named as `package.module:function` and the teacher and
the data as arrays, of which each node holds one copy in Ray's object store.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.files import JsonObject
from autocompress.runs.in_process import InProcess, WorkerSession, evaluate_task
from autocompress.runs.tasks import (
    WAIT,
    Ask,
    Evaluate,
    Executor,
    Factory,
    Job,
    Result,
    Stop,
    Tell,
    Wait,
    one_line,
)

__all__ = [
    "WAIT",
    "Ask",
    "Evaluate",
    "Executor",
    "Factory",
    "InProcess",
    "Job",
    "RayTune",
    "Result",
    "Stop",
    "Tell",
    "Wait",
    "evaluate_task",
    "executor",
]

OBJECT_STORE_BYTES = 100 * 1024 * 1024
CONNECT_TIMEOUT_S = 3.0

# Ray reads these when it is imported or when its processes start.
_RAY_ENVIRONMENT = {
    "ORT_DISABLE_TELEMETRY": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


def executor(
    factory: Factory,
    workers: int = 0,
    address: str | None = None,
    trial_timeout_s: float | None = None,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float = 0.0,
) -> Executor:
    """Return an executor: in process for no workers and no address, otherwise Ray Tune.

    Raises InputError when ray is missing, `address` cannot be reached, or no node of the cluster has what
    a trial takes.
    """
    if workers < 0:
        raise InputError(f"workers is {workers}", fix="give 0 (in process) or the number of workers")
    if workers == 0 and address is None:
        return InProcess(factory.make(), trial_timeout_s)
    return RayTune(factory, workers, address, trial_timeout_s, cpus_per_trial, gpus_per_trial)


class RayTune:
    """Make each task a Ray Tune trial on one of `workers` reused actors; 0 is as many as the cluster holds.

    A trial takes `cpus_per_trial` and `gpus_per_trial`, which may be fractions, and has a thread for each
    whole processor, but at least one. Without `cpus_per_trial` it takes one processor, or all of them when
    it is the only worker of this machine. What a factory holds in arrays lies once on each node.

    Without `address` a Ray instance of this machine is started and ended with the executor. A task whose
    process or node dies is tried once more, then failed.

    Raises InputError when ray is missing, `address` cannot be reached, or no node of the cluster has what
    a trial takes.
    """

    def __init__(
        self,
        factory: Factory,
        workers: int,
        address: str | None = None,
        trial_timeout_s: float | None = None,
        cpus_per_trial: float | None = None,
        gpus_per_trial: float = 0.0,
    ) -> None:
        alone = workers == 1 and address is None
        self._cpus = cpus_per_trial or (os.cpu_count() or 1 if alone else 1)
        self._gpus = gpus_per_trial
        self._factory, self._trial_timeout_s = factory, trial_timeout_s
        self._folder = Path(tempfile.mkdtemp(prefix="ac-"))
        self._owns_ray = False
        try:
            self._owns_ray = _start_ray(
                math.ceil(workers * self._cpus), address, self._folder, factory.array_bytes
            )
            room = _room(self._cpus, self._gpus)
            self.workers = workers or room
            self._arrays = _placed(factory)
        except BaseException:
            self.close()
            raise

    def run(self, ask: Ask, tell: Tell, stop: Stop) -> None:
        from ray import tune
        from ray.tune.search import ConcurrencyLimiter

        bridge = _Bridge(ask, tell, stop)
        with contextlib.redirect_stdout(sys.stderr):
            tune.run(
                _trainable(self._session, self._arrays),
                name="tune",
                num_samples=-1,
                search_alg=ConcurrencyLimiter(_searcher(bridge), max_concurrent=self.workers),
                callbacks=[_error_callback(bridge)],
                resources_per_trial={"cpu": self._cpus, "gpu": self._gpus},
                reuse_actors=True,
                max_failures=1,
                raise_on_failed_trial=False,
                storage_path=str(self._folder / "results"),
                trial_dirname_creator=lambda trial: trial.trial_id,
                verbose=0,
            )
        bridge.finish()

    def close(self) -> None:
        self._arrays = None
        if self._owns_ray:
            import ray

            ray.shutdown()
            self._owns_ray = False
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _session(self) -> WorkerSession:
        threads, factory = max(1, int(self._cpus)), replace(self._factory, arrays={})
        folder, paths = str(Path.cwd()), tuple(path for path in sys.path if path)
        return WorkerSession(factory, threads, self._trial_timeout_s, folder, paths)


class _Bridge:
    """Stand between Tune's searcher and the owner's callbacks.

    An exception of a callback ends the run and is raised by `finish`; inside Tune it would be lost.
    """

    def __init__(self, ask: Ask, tell: Tell, stop: Stop) -> None:
        self._ask, self._tell, self._stop = ask, tell, stop
        self._live: dict[str, Job] = {}
        self._error: BaseException | None = None

    def next_task(self, trial_id: str) -> str | Wait | None:
        """Return the next task as JSON; None when there will be none."""
        try:
            if self._error or self._stop():
                return None
            task = self._ask()
            if isinstance(task, Wait) and not self._live:
                raise RuntimeError("ask waits for a result although no task is under way")
        except BaseException as error:
            self._error = error
            return None
        if task is None or isinstance(task, Wait):
            return task
        self._live[trial_id] = task
        return json.dumps(asdict(task))

    def finished(self, trial_id: str, result_json: str) -> None:
        if trial_id in self._live:
            del self._live[trial_id]
            self._report(Result(**json.loads(result_json)))

    def failed(self, trial_id: str, error: BaseException | None) -> None:
        if trial_id not in self._live:
            return
        task = self._live.pop(trial_id)
        died = error is None or "Actor" in type(error).__name__
        text = _cause_of_death(error) if died or error is None else one_line(error)
        self._report(Result(task.trial, False, error=text, detail=str(error or ""), stage=task.stage))

    def finish(self) -> None:
        for trial_id in list(self._live):
            self.failed(trial_id, None)
        if self._error:
            raise self._error

    def _report(self, result: Result) -> None:
        if self._error:
            return
        try:
            self._tell(result)
        except BaseException as error:
            self._error = error


def _cause_of_death(error: BaseException | None) -> str:
    if "running low on memory" in str(error):
        return "the worker process died twice: its node ran out of memory"
    return "the worker process died twice: killed, out of memory, crashed or hung in native code"


# The classes below derive from Ray's, which is imported only where it is used.


def _trainable(session: WorkerSession, arrays: Any) -> Any:
    import ray
    from ray import tune

    class RayEvaluation(tune.Trainable):
        def setup(self, config: JsonObject) -> None:
            session.prepare()
            session.factory = replace(session.factory, arrays=ray.get(arrays))
            self._session, self._task = session, config["task"]

        def reset_config(self, new_config: JsonObject) -> bool:
            self._task = new_config["task"]
            return True

        def step(self) -> JsonObject:
            return {"result": self._session.run(self._task), "done": True}

    return RayEvaluation


def _searcher(bridge: _Bridge) -> Any:
    from ray.tune.search import Searcher

    class Owner(Searcher):
        def suggest(self, trial_id: str) -> Any:
            task = bridge.next_task(trial_id)
            if task is None:
                return Searcher.FINISHED
            return None if isinstance(task, Wait) else {"task": task}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            if result and not error:
                bridge.finished(trial_id, result["result"])

        def save(self, checkpoint_path: str) -> None:
            """Save nothing: the run store is the truth; Tune's own state is never restored."""

    return Owner()


def _error_callback(bridge: _Bridge) -> Any:
    from ray import tune

    class Errors(tune.Callback):
        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_info: Any) -> None:
            del iteration, trials
            bridge.failed(trial.trial_id, trial.get_error())

    return Errors()


def _placed(factory: Factory) -> Any:
    """Return a reference to the arrays in the object store, from where each node takes one copy."""
    import ray

    return ray.put({group: dict(arrays) for group, arrays in factory.arrays.items()})


def _room(cpus: float, gpus: float) -> int:
    """Return how many trials the nodes hold at once. Raises InputError where not one node holds one."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = [_places(node.get("CPU", 0.0), cpus) for node in nodes]
    if gpus:
        places = [min(n, _places(node.get("GPU", 0.0), gpus)) for n, node in zip(places, nodes, strict=True)]
    if sum(places) < 1:
        most = ", ".join(f"{max(node.get(name, 0.0) for node in nodes):g} {name}s" for name in ("CPU", "GPU"))
        raise InputError(
            f"no node of the Ray cluster holds a trial of {cpus:g} CPUs and {gpus:g} GPUs",
            why=f"the most that a node has: {most}",
            fix="give less with --cpus-per-trial and --gpus-per-trial, or start larger nodes",
        )
    return sum(places)


def _places(available: float, needed: float) -> int:
    return int(available / needed + 1e-6)


def _start_ray(cpus: int, address: str | None, folder: Path, array_bytes: int) -> bool:
    """Connect to Ray, and say whether that has to be undone."""
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.tune
    except ImportError as error:
        raise InputError(
            "workers need Ray Tune, which is not installed",
            why=one_line(error),
            fix="pip install 'ray[tune]', or leave out --workers to run in this process",
        ) from error
    if ray.is_initialized():
        return False
    if address:
        _check_reachable(address)
    store_bytes = OBJECT_STORE_BYTES + int(1.1 * array_bytes)
    local: dict[str, Any] = {"num_cpus": max(1, cpus), "object_store_memory": store_bytes}
    if len(str(folder)) < 30:  # Ray puts Unix sockets below it, whose paths are short.
        local["_temp_dir"] = str(folder)
    try:
        with contextlib.redirect_stdout(sys.stderr), _own_ending():
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                logging_level="ERROR",
                log_to_driver=False,
                **({} if address else local),
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _unreachable(address or "of this machine", one_line(error)) from error
    return True


@contextlib.contextmanager
def _own_ending() -> Iterator[None]:
    """Keep what this process does on SIGTERM: Ray, when it starts, puts an end of its own in its place."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _check_reachable(address: str) -> None:
    """Raise InputError where the address does not answer: Ray itself would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not host or not port.isdigit():
        raise _unreachable(address, "it is not HOST:PORT")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, one_line(error)) from error


def _unreachable(address: str, why: str) -> InputError:
    return InputError(
        f"the Ray cluster {address} cannot be used",
        why=why,
        fix="start it (ray start --head) and give its HOST:PORT, or leave out --ray-address",
    )
