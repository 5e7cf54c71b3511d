"""The command line: complete help, exit codes, and errors that are sentences."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from places import ROOT

import autocompress
from autocompress import api
from autocompress.cli.main import main
from autocompress.cli.support import DEBUG_VARIABLE, resumable
from autocompress.errors import InterruptedSearchError, NoisyDeviceError, TeacherError
from autocompress.runs.events import RunFinished, from_json
from autocompress.runs.store import RunStore

TEACHER = {
    "key": "teacher",
    "certified": True,
    "path": "teacher/model.onnx",
    "accuracy": 0.9,
    "accuracy_std_err": 0.01,
    "latency_ms": 4.0,
    "latency_ms_ci95": [3.9, 4.1],
    "peak_memory_bytes": 2_000_000,
    "file_bytes": 1_000_000,
    "macs": 500,
    "parameters": 50,
}
SEARCH = ["search", "--teacher", "none.py:none", "--data", "digits", "--device", "none"]


def all_commands() -> list[list[str]]:
    found = [[]]
    for name, command in main.commands.items():
        found.append([name])
        if isinstance(command, click.Group):
            found += [[name, inner] for inner in command.commands]
    return found


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run with two certified students, a beaten one, and one that breaks a budget."""
    root = tmp_path / "run"
    students = [
        ("accurate", 0.88, 2.0, 300_000, []),
        ("small", 0.80, 1.0, 100_000, []),
        ("beaten", 0.79, 2.5, 400_000, []),
        ("slow", 0.89, 3.0, 300_000, ["latency_ms"]),
    ]
    limits = {"latency_ms": 2.6, "peak_memory_bytes": None, "file_bytes": None}
    with RunStore.create(root, {"identity": {}}, {}, resume=False, overwrite=False) as store:
        store.append(from_json({"event": "run_started", "teacher": TEACHER, "limits": limits}))
        for key, accuracy, latency_ms, file_bytes, violated in students:
            student = {
                **TEACHER,
                "key": key,
                "accuracy": accuracy,
                "validation_accuracy": accuracy,
                "latency_ms": latency_ms,
                "latency_ms_ci95": [latency_ms - 0.1, latency_ms + 0.1],
                "file_bytes": file_bytes,
                "certified": not violated,
                "path": f"students/{key}",
            }
            event = {"event": "certified", "candidate": key, "student": student, "violated": violated}
            store.append(from_json(event))
            folder = store.paths.student(key)
            folder.mkdir(parents=True)
            (folder / "spec.json").write_text(json.dumps({"key": key}))
            (folder / "model.onnx").touch()
        store.append(RunFinished(exit_code=0))
    return root


@pytest.mark.parametrize("command", all_commands(), ids=" ".join)
def test_help_is_complete_and_ends_with_an_example(command: list[str]):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Example:\n" in result.stdout
    assert f"autocompress {' '.join(command)}" in result.stdout.split("Example:")[1]
    target: click.Command = main
    for name in command:
        assert isinstance(target, click.Group)
        target = target.commands[name]
    for parameter in target.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} is not explained"


def test_every_function_of_the_api_has_a_command():
    functions = {"inspect", "profile", "resume", "front", "pick", "bench", "report", "doctor", "status"}
    functions |= {"pack", "check", "compress"}
    assert functions | {"search"} == set(main.commands)
    assert all(callable(getattr(autocompress, name)) for name in functions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["front", "nowhere"], "nowhere is not a run folder"),
        (["status", "nowhere"], "nowhere is not a run folder"),
        (["pick", "nowhere", "-o", "out"], "nowhere is not a run folder"),
        (["resume", "nowhere"], "nowhere is not a run folder"),
        (["report", "nowhere"], "nowhere is not a run folder"),
        (["profile", "show", "nowhere"], "there is no device profile 'nowhere'"),
        (["profile"], "Missing option '--teacher'"),
        (["profile", "--teacher", "x"], "Missing option '--output'"),
        (["profile", "--teacher", "x", "-o", "p", "--resume", "--overwrite"], "cannot both be given"),
        (["pick", "nowhere"], "Missing option '-o'"),
        (["nonsense"], "No such command 'nonsense'"),
        (SEARCH, "no budget is set"),
        ([*SEARCH, "--latency", "fast"], "the latency budget 'fast'"),
        ([*SEARCH, "--latency", "2ms", "--time", "soon"], "'soon' is not a time"),
        ([*SEARCH, "--latency", "2ms", "--time", "0s"], "'0s' is not a time"),
        ([*SEARCH, "--latency", "2ms", "--resume", "--overwrite"], "cannot both be given"),
        ([*SEARCH, "--latency", "2ms", "--trials", "0"], "--trials"),
        ([*SEARCH, "--latency", "2ms", "--sampler", "guess"], "--sampler"),
    ],
)
def test_bad_input_ends_with_2_and_a_sentence(arguments: list[str], message: str, tmp_path: Path):
    with CliRunner().isolated_filesystem(tmp_path):
        result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (
            TeacherError("none", where="a.py", fix="write it"),
            2,
            "error: none\n  where: a.py\n  fix: write it\n",
        ),
        (NoisyDeviceError("too noisy"), 5, "error: too noisy\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (
            ValueError("odd\nmore"),
            1,
            f"error: ValueError: odd (unexpected; {DEBUG_VARIABLE}=1 shows where)\n",
        ),
    ],
)
def test_errors_become_sentences_and_exit_codes(
    error: BaseException, exit_code: int, line: str, monkeypatch: pytest.MonkeyPatch
):
    def fail() -> None:
        raise error

    monkeypatch.setattr(api, "doctor", fail)
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    result = run("doctor")
    assert (result.exit_code, result.stderr, result.stdout) == (exit_code, line, "")
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    shown = run("doctor")
    assert shown.exit_code == exit_code
    assert "Traceback" in shown.stderr and shown.stderr.endswith(line)


def test_times_are_given_as_seconds(monkeypatch: pytest.MonkeyPatch, finished: Path, tmp_path: Path):
    given: dict[str, object] = {}

    def compress(**options: object) -> object:
        given.update(options)
        return api.front(finished)

    monkeypatch.setattr(api, "compress", compress)
    result = run(
        *SEARCH, "--size", "40%", "--time", "1.5h", "--trial-timeout", "90s", "--run", tmp_path / "new"
    )
    assert result.exit_code == 0, result.stderr
    assert (given["time_limit_s"], given["trial_timeout_s"]) == (5400.0, 90.0)
    assert given["budgets"].to_json() == {"size_ratio": 0.4}
    assert "accurate" in result.stdout and "pick" in result.stderr


def test_an_interrupted_search_says_how_to_go_on(finished: Path, tmp_path: Path):
    with pytest.raises(InterruptedSearchError, match=f"autocompress resume {finished}"), resumable(finished):
        raise KeyboardInterrupt
    with pytest.raises(InterruptedSearchError, match="the same command again"), resumable(tmp_path / "none"):
        raise KeyboardInterrupt


def test_ctrl_c_ends_a_command_with_130(tmp_path: Path):
    (tmp_path / "slow.py").write_text(
        "import sys, time\n"
        "from autocompress import api\nfrom autocompress.cli import main as cli\n"
        "def doctor():\n"
        "    sys.stderr.write('started\\n'); sys.stderr.flush(); time.sleep(30)\n"
        "api.doctor = doctor\n"
        "cli.main(['doctor'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "slow.py")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "started\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert (process.returncode, rest) == (130, "error: interrupted\n")


def test_front_shows_certified_students_only(finished: Path):
    result = run("front", finished, "--format", "json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert data["run"] == str(finished)
    assert data["teacher"]["latency_ms"] == 4.0
    assert [student["key"] for student in data["students"]] == ["accurate", "small"]
    assert data["students"][0]["latency_ms_ci95"] == [1.9, 2.1]
    table = run("front", finished)
    assert "accurate" in table.stdout and "slow" not in table.stdout and table.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["--latency", "<=1.5ms"], ["small"]),
        (["--latency", ">=50%"], ["accurate"]),
        (["--size", "<300KB"], ["small"]),
        (["--memory", "<=1KiB"], []),
        (["--sort", "size"], ["small", "accurate"]),
    ],
)
def test_front_filters_and_sorts(finished: Path, arguments: list[str], keys: list[str]):
    result = run("front", finished, "--format", "json", *arguments)
    assert [student["key"] for student in json.loads(result.stdout)["students"]] == keys


def test_pick_copies_the_most_accurate_that_fits(finished: Path, tmp_path: Path):
    out = tmp_path / "student"
    result = run("pick", finished, "--latency", "1.5ms", "-o", out)
    assert (result.exit_code, result.stdout) == (0, f"{out}\n")
    assert json.loads((out / "spec.json").read_text()) == {"key": "small"}
    refused = run("pick", finished, "-o", out)
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr
    assert run("pick", finished, "-o", out, "--overwrite").exit_code == 0
    assert json.loads((out / "spec.json").read_text()) == {"key": "accurate"}


def test_pick_names_the_nearest_miss(finished: Path, tmp_path: Path):
    result = run("pick", finished, "--latency", "0.5ms", "-o", tmp_path / "student")
    assert result.exit_code == 3
    assert "small" in result.stderr and "limit of 0.5 ms" in result.stderr
    assert not (tmp_path / "student").exists()


def test_status_tells_how_far_a_run_is(finished: Path):
    data = json.loads(run("status", finished, "--format", "json").stdout)
    assert (data["certified"], data["counts"]["measured"], data["finished"]) == (3, 4, True)
    assert "finished" in run("status", finished).stdout


@pytest.mark.parametrize(("violated", "exit_code"), [([], 0), (["latency_ms"], 3)])
def test_bench_ends_with_3_where_a_budget_is_broken(
    violated: list[str], exit_code: int, monkeypatch: pytest.MonkeyPatch
):
    found = {
        "student": "key",
        "measured": {"latency_ms": 2.0, "latency_ms_ci95": [1.9, 2.1]},
        "recorded": {"latency_ms": 1.0, "latency_ms_ci95": [0.9, 1.1]},
        "ratio": 2.0,
        "limits": {"latency_ms": 1.5, "peak_memory_bytes": None, "file_bytes": None},
        "violated": violated,
        "within_budget": not violated,
    }
    monkeypatch.setattr(api, "bench", lambda _: found)
    result = run("bench", "student", "--format", "json")
    assert (result.exit_code, json.loads(result.stdout)) == (exit_code, found)
    assert run("bench", "student").exit_code == exit_code


def test_doctor_prints_json_and_a_table():
    data = json.loads(run("doctor", "--format", "json").stdout)
    assert {"cpu", "usable_cores", "problems", "packages"} <= set(data)
    assert data["architecture"] in run("doctor").stdout


def test_version_is_that_of_the_package():
    assert run("--version").stdout == f"{autocompress.__version__}\n"
