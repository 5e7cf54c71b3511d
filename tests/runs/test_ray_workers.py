"""The executors: the same tasks in process and on two Ray workers, with every kind of accident."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autocompress.errors import InputError, TooManyFailuresError
from autocompress.runs.in_process import InProcess, read_crash
from autocompress.runs.ray_workers import executor
from autocompress.runs.tasks import WAIT, Executor, Factory, Job, Result, Stage, Wait

TARGET = "worker_evaluator:make"


class Owner:
    """Gives `tasks` in order and keeps what it is told; waits after `pause` until a result is there."""

    def __init__(self, tasks: list[Job], pause: int = -1) -> None:
        self.tasks, self.pause = tasks, pause
        self.given: list[int] = []
        self.results: list[Result] = []

    def ask(self) -> Job | Wait | None:
        if len(self.given) == len(self.tasks):
            return None
        if len(self.given) == self.pause and not self.results:
            return WAIT
        task = self.tasks[len(self.given)]
        self.given.append(task.trial)
        return task

    def tell(self, result: Result) -> None:
        self.results.append(result)

    def run(self, on: Executor) -> dict[int, Result]:
        on.run(self.ask, self.tell, lambda: False)
        assert len({result.trial for result in self.results}) == len(self.results)
        return {result.trial: result for result in self.results}


def squares(count: int, **payloads: dict[str, str]) -> list[Job]:
    """Tasks 0 … count-1; `t3={"do": …}` gives task 3 a payload."""
    return [Job(i, {"x": i}, "one-shot", payloads.get(f"t{i}", {})) for i in range(count)]


@pytest.fixture(scope="module")
def ray_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Executor, Path]]:
    pytest.importorskip("ray.tune")
    made = tmp_path_factory.mktemp("workers") / "made"
    arrays = {"numbers": {"few": np.arange(1000)}}
    on = executor(Factory(TARGET, {"made": str(made)}, arrays), workers=2, trial_timeout_s=2)
    yield on, made
    on.close()


def check_squares(results: dict[int, Result], wrong: set[int]) -> None:
    for trial, result in results.items():
        if trial not in wrong:
            assert result.ok and not result.error
            assert result.values["square"] == trial**2
            assert result.stage == "one-shot"
            assert result.seconds >= 0


def check_raised(result: Result) -> None:
    assert not result.ok
    assert result.error == "ArithmeticError: no"
    assert "Traceback" in result.detail


def test_in_process_runs_all_tasks_in_order() -> None:
    owner = Owner(squares(20, t7={"do": "raise"}))
    results = owner.run(executor(Factory(TARGET)))
    assert list(results) == list(range(20))
    check_squares(results, {7})
    check_raised(results[7])


def test_two_ray_workers_survive_errors_and_killed_processes(
    ray_two: tuple[Executor, Path], tmp_path: Path
) -> None:
    on, made = ray_two
    accidents = {
        "t3": {"do": "raise"},
        "t5": {"do": "segfault"},
        "t9": {"do": "kill once", "mark": str(tmp_path / "mark")},
        "t11": {"do": "sleep"},
        "t14": {"do": "hang"},
        "t15": {"do": "exhaust memory"},
        "t18": {"do": "sum"},
    }
    results = Owner(squares(20, **accidents), pause=2).run(on)
    assert set(results) == set(range(20))
    check_squares(results, {3, 5, 11, 14, 15, 18})
    check_raised(results[3])
    for deadly in (5, 14):
        assert not results[deadly].ok and "died twice" in results[deadly].error
    assert not results[11].ok and results[11].error == "took longer than 2 s"
    assert not results[15].ok and results[15].error == "MemoryError"
    assert results[18].values == {"sum": 499_500, "writable": False}
    assert results[0].values["threads"] == "1"
    deaths = 2 + 1 + 2
    assert len(made.read_text().split()) <= 2 + deaths, "an evaluator is made once a process"


def test_exception_of_the_owner_ends_the_run_after_draining(ray_two: tuple[Executor, Path]) -> None:
    def tell(result: Result) -> None:
        raise TooManyFailuresError(f"trial {result.trial}")

    owner = Owner(squares(10))
    with pytest.raises(TooManyFailuresError):
        ray_two[0].run(owner.ask, tell, lambda: False)
    assert len(owner.given) < 10


def test_stop_finishes_what_is_under_way(ray_two: tuple[Executor, Path]) -> None:
    owner = Owner(squares(10))
    ray_two[0].run(owner.ask, owner.tell, lambda: len(owner.given) >= 4)
    assert sorted(result.trial for result in owner.results) == [0, 1, 2, 3]
    assert all(result.ok for result in owner.results)


def test_in_process_time_limit_stop_and_wait_for_nothing() -> None:
    on = executor(Factory(TARGET), trial_timeout_s=0.2)
    results = Owner(squares(3, t1={"do": "sleep"})).run(on)
    assert [results[i].ok for i in range(3)] == [True, False, True]
    assert results[1].error == "took longer than 0.2 s"
    owner = Owner(squares(3))
    on.run(owner.ask, owner.tell, lambda: len(owner.given) == 2)
    assert len(owner.results) == 2
    with pytest.raises(RuntimeError, match="no task is under way"):
        InProcess(lambda _task: {}).run(lambda: WAIT, owner.tell, lambda: False)


def test_the_time_limit_is_longer_where_a_task_is() -> None:
    task = Job(0, {"x": 0}, Stage.TRIAL, {"do": "sleep"}, length=3)
    (result,) = Owner([task]).run(executor(Factory(TARGET), trial_timeout_s=0.1)).values()
    assert result.error == "took longer than 0.3 s"


def test_what_brings_this_process_down_is_found_afterwards(tmp_path: Path) -> None:
    note = tmp_path / "crash"
    code = (
        "import ctypes, pathlib\n"
        "from autocompress.runs.in_process import InProcess\n"
        "from autocompress.runs.tasks import Job\n"
        "tasks = iter([Job(0, {'x': 1}, 'trial'), None])\n"
        f"on = InProcess(lambda _: ctypes.string_at(0), crash_file=pathlib.Path({str(note)!r}))\n"
        "on.run(lambda: next(tasks), print, lambda: False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGSEGV
    crash = read_crash(note)
    assert crash is not None and (crash.stage, crash.candidate) == ("trial", {"x": 1})
    assert crash.text.startswith("Fatal Python error: Segmentation fault") and "Segm" in crash.reason
    assert read_crash(note) is None
    on = InProcess(lambda _: {}, crash_file=note)
    on.run(lambda: None, print, lambda: False)
    assert not note.exists()


def test_a_trial_that_no_node_holds_is_one_clear_error(ray_two: tuple[Executor, Path]) -> None:
    del ray_two  # Ray has two processors and no GPU here
    with pytest.raises(InputError, match="holds a trial of 64 CPUs") as caught:
        executor(Factory(TARGET), workers=1, cpus_per_trial=64)
    assert "2 CPUs" in caught.value.why and "--cpus-per-trial" in caught.value.fix
    with pytest.raises(InputError, match=r"1 CPUs and 0\.5 GPUs"):
        executor(Factory(TARGET), workers=2, gpus_per_trial=0.5)


def test_fractions_of_a_processor_run_more_workers(ray_two: tuple[Executor, Path], tmp_path: Path) -> None:
    del ray_two  # its two processors are what is shared here
    on = executor(Factory(TARGET), workers=4, cpus_per_trial=0.5)
    meeting = {"do": "meet", "folder": str(tmp_path), "count": 4}
    results = Owner([Job(i, {"x": i}, Stage.TRIAL, meeting) for i in range(4)]).run(on)
    assert all(result.ok for result in results.values())
    assert {result.values["threads"] for result in results.values()} == {"1"}


def test_factory_errors_reach_the_user() -> None:
    with pytest.raises(ValueError, match="teacher is gone"):
        executor(Factory(TARGET, {"broken": True}))
    with pytest.raises(InputError, match="workers is -1"):
        executor(Factory(TARGET), workers=-1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "no.such.host.invalid:6379"])
def test_unreachable_cluster_is_one_clear_error(address: str) -> None:
    pytest.importorskip("ray.tune")
    probe = (
        "from autocompress.errors import InputError\n"
        "from autocompress.runs.ray_workers import executor\n"
        "from autocompress.runs.tasks import Factory\n"
        f"try: executor(Factory('{TARGET}'), address='{address}')\n"
        "except InputError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert f"the Ray cluster {address} cannot be used" in done.stdout
    assert "Traceback" not in done.stderr


def test_missing_ray_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="not installed"):
        executor(Factory(TARGET), workers=2)


def test_in_process_does_not_import_ray() -> None:
    code = "import sys, autocompress.runs.ray_workers; raise SystemExit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
