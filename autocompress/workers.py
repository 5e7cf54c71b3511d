"""Where evaluations run: in this process, or in the processes of Ray Tune. The only file that imports ray.

Both executors pull tasks from the owner (`ask`) and hand results back (`tell`), so that the search
loop is the same for one core and a cluster. Processes exchange candidates and JSON, never models:
each worker makes its evaluator once, from a factory named as `package.module:function`, which
loads the teacher and the data there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.evaluation import (
    WAIT,
    Ask,
    Evaluate,
    Executor,
    Factory,
    InProcess,
    Result,
    Stop,
    Task,
    Tell,
    Wait,
    WorkerSession,
    evaluate_task,
    one_line,
)

__all__ = [
    "WAIT",
    "Ask",
    "Evaluate",
    "Executor",
    "Factory",
    "InProcess",
    "RayTune",
    "Result",
    "Stop",
    "Task",
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
) -> Executor:
    """In process for no workers and no address, otherwise Ray Tune.

    Raises InputError when ray is missing or `address` cannot be reached.
    """
    if workers < 0:
        raise InputError(f"workers is {workers}", fix="give 0 (in process) or the number of workers")
    if workers == 0 and address is None:
        return InProcess(factory.make(), trial_timeout_s)
    return RayTune(factory, workers or os.cpu_count() or 1, address, trial_timeout_s)


class RayTune:
    """Each task is a Ray Tune trial on one of `workers` reused actors with one thread each.

    Without `address` a Ray instance of this machine is started and ended with the executor. A task
    whose process dies is tried once more, then failed.

    Raises InputError when ray is missing or `address` cannot be reached.
    """

    def __init__(
        self,
        factory: Factory,
        workers: int,
        address: str | None = None,
        trial_timeout_s: float | None = None,
    ) -> None:
        self._factory, self._workers, self._trial_timeout_s = factory, workers, trial_timeout_s
        self._folder = Path(tempfile.mkdtemp(prefix="ac-"))
        self._owns_ray = False
        try:
            self._owns_ray = _start_ray(workers, address, self._folder)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def run(self, ask: Ask, tell: Tell, stop: Stop) -> None:
        from ray import tune
        from ray.tune.search import ConcurrencyLimiter

        bridge = _Bridge(ask, tell, stop)
        with contextlib.redirect_stdout(sys.stderr):
            tune.run(
                _trainable(self._session),
                name="tune",
                num_samples=-1,
                search_alg=ConcurrencyLimiter(_searcher(bridge), max_concurrent=self._workers),
                callbacks=[_error_callback(bridge)],
                resources_per_trial={"cpu": 1},
                reuse_actors=True,
                max_failures=1,
                raise_on_failed_trial=False,
                storage_path=str(self._folder / "results"),
                trial_dirname_creator=lambda trial: trial.trial_id,
                verbose=0,
            )
        bridge.finish()

    def close(self) -> None:
        if self._owns_ray:
            import ray

            ray.shutdown()
            self._owns_ray = False
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _session(self) -> WorkerSession:
        threads = 1 if self._workers > 1 else os.cpu_count() or 1
        folder, paths = str(Path.cwd()), tuple(path for path in sys.path if path)
        return WorkerSession(self._factory, threads, self._trial_timeout_s, folder, paths)


class _Bridge:
    """Between Tune's searcher and the owner's callbacks.

    An exception of a callback ends the run and is raised by `finish`; inside Tune it would be lost.
    """

    def __init__(self, ask: Ask, tell: Tell, stop: Stop) -> None:
        self._ask, self._tell, self._stop = ask, tell, stop
        self._live: dict[str, Task] = {}
        self._error: BaseException | None = None

    def next_task(self, trial_id: str) -> str | Wait | None:
        """The next task as JSON; None when there will be none."""
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
        why = "the worker process died twice: killed, out of memory or crashed"
        text = why if died or error is None else one_line(error)
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


# The classes below derive from Ray's, which is imported only where it is used.


def _trainable(session: WorkerSession) -> Any:
    from ray import tune

    class Evaluation(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            session.prepare()
            self._session, self._task = session, config["task"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._task = new_config["task"]
            return True

        def step(self) -> dict[str, Any]:
            return {"result": self._session.run(self._task), "done": True}

    return Evaluation


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
            """The run store is the truth; Tune's own state is never restored."""

    return Owner()


def _error_callback(bridge: _Bridge) -> Any:
    from ray import tune

    class Errors(tune.Callback):
        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_info: Any) -> None:
            del iteration, trials
            bridge.failed(trial.trial_id, trial.get_error())

    return Errors()


def _start_ray(workers: int, address: str | None, folder: Path) -> bool:
    """Connects to Ray, and says whether that has to be undone."""
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
    local: dict[str, Any] = {"num_cpus": workers, "object_store_memory": OBJECT_STORE_BYTES}
    if len(str(folder)) < 30:  # Ray puts Unix sockets below it, whose paths are short.
        local["_temp_dir"] = str(folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
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


def _check_reachable(address: str) -> None:
    """Ray itself would try for a minute."""
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
