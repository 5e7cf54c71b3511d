"""Kits: written here, measured by their own script, here or over ssh, and imported with suspicion."""

from __future__ import annotations

import ast
import getpass
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from kit_samples import COUNT, ORIGIN, QUICKLY, kit_samples, small_kit
from places import NETWORKS

from autocompress import api_profile
from autocompress.cli.main import main
from autocompress.device.kit import folder as kit_folder
from autocompress.device.kit.folder import Kit, read_kit
from autocompress.device.kit.remote import Host, run_remotely
from autocompress.device.kit.results import read_results
from autocompress.device.measure.layout_probe import detect_layouts
from autocompress.device.measure.machine import machine
from autocompress.device.profile.profile import DeviceProfile
from autocompress.device.profile.sources import CandidateOrigin
from autocompress.device.profile_files.store import load_profile
from autocompress.device.profiler import ProfileSubject, make_profile
from autocompress.device.runtimes.base import get_runtime
from autocompress.device.runtimes.description import DeviceDescription
from autocompress.errors import InputError, NoisyDeviceError, ProfileError
from autocompress.pipeline.device_kits import import_kit

HERE = DeviceDescription(vars(machine()))
SCRIPT = Path(kit_folder.__file__).with_name("measure_kit.py")


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In an environment in which autocompress cannot be imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-I", str(folder / "measure_kit.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kits") / "kit"
    small_kit(folder)
    done = run_script(folder)
    assert done.returncode == 0, done.stderr
    assert f"{COUNT} of {COUNT} networks" in done.stdout
    return folder


@pytest.fixture
def kit(measured: Path, tmp_path: Path) -> Path:
    """A measured kit to be damaged."""
    return Path(shutil.copytree(measured, tmp_path / "kit"))


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> DeviceProfile:
    runtime = get_runtime("onnxruntime")
    subject = ProfileSubject("direct", runtime.name, 1, 1, HERE, ORIGIN, detect_layouts(runtime, 1))
    return make_profile(kit_samples(), runtime, tmp_path_factory.mktemp("direct"), subject)


def rows_of(profile: DeviceProfile) -> dict[Any, Any]:
    return {row.kernel: row for row in profile.table.rows}


def test_networks_come_out_of_a_kit_as_they_went_in(tmp_path: Path):
    kit = small_kit(tmp_path / "kit")
    assert kit.reference == kit_samples()[0].name
    for entry, sample in zip(kit.entries, kit_samples(), strict=True):
        assert kit.sample(entry) == sample
        data = (tmp_path / "kit" / "models" / f"{entry.name}.onnx").read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry.sha256


def test_the_script_imports_the_standard_library_only():
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names <= {*sys.stdlib_module_names}


def test_a_kit_gives_the_profile_that_measuring_directly_gives(
    measured: Path, direct: DeviceProfile, tmp_path: Path
):
    profile = import_kit(measured, tmp_path / "p")
    mine, theirs = rows_of(profile), rows_of(direct)
    assert mine.keys() == theirs.keys()
    assert all(
        (mine[key].count, mine[key].operations) == (theirs[key].count, theirs[key].operations) for key in mine
    )
    assert profile.layouts == direct.layouts
    assert profile.file_coefficients == direct.file_coefficients
    assert (profile.runtime, profile.threads, profile.batch) == ("onnxruntime", 1, 1)
    assert profile.sources[0].input_shape == (1, 1, 16, 16)
    assert profile.sources[0].teacher_latency_ms
    loaded = load_profile(tmp_path / "p")
    assert loaded.fingerprint == profile.fingerprint
    loaded.check_here(HERE)


def test_the_device_is_described_as_it_describes_itself(measured: Path):
    found = json.loads((measured / "device.json").read_text())
    assert {**found, **HERE.values} == found
    runtime = get_runtime("onnxruntime").describe(1)
    assert {**found, **runtime} == found


def test_a_stopped_run_goes_on_and_measures_nothing_twice(kit: Path):
    path = kit / "results.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:50])
    with pytest.raises(ProfileError, match="cannot be used") as caught:
        read_results(path, read_kit(kit))
    assert "2 of 8 networks are missing" in caught.value.why
    assert "goes on" in caught.value.fix
    done = run_script(kit)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6 of 8")
    again = path.read_text().splitlines()
    assert again[:-2] == lines[:-2]
    assert [json.loads(line)["name"] for line in again[-2:]] == [
        json.loads(line)["name"] for line in lines[-2:]
    ]


def test_results_of_other_threads_are_not_mixed_in(kit: Path):
    done = run_script(kit, "--threads", "2")
    assert done.returncode == 2
    assert "another kit, runtime or number of threads" in done.stderr


def test_results_elsewhere_are_imported_with_their_kit(kit: Path, tmp_path: Path):
    target = tmp_path / "fetched"
    target.mkdir()
    for name in ("results.jsonl", "device.json", "optimized"):
        (kit / name).rename(target / name)
    profile = import_kit(target / "results.jsonl", tmp_path / "p", kit=kit)
    assert profile.sources[0].networks == COUNT


def test_a_kit_that_was_made_before_says_where_its_networks_come_from(kit: Path):
    manifest = json.loads((kit / "kit.json").read_text())
    assert list(manifest["source"]) == [
        "space", "space_fingerprint", "network", "teacher_fingerprint", "input_shape", "seed",
    ]  # fmt: skip
    assert read_kit(kit).origin == ORIGIN
    manifest["source"] = {"teacher": "older", "space": "joint", "input_shape": [1, 3, 8, 8], "later": [1]}
    (kit / "kit.json").write_text(json.dumps(manifest))
    assert read_kit(kit).origin == CandidateOrigin("older", "joint", input_shape=(1, 3, 8, 8))
    manifest["source"] = {"seed": "one"}
    (kit / "kit.json").write_text(json.dumps(manifest))
    with pytest.raises(ProfileError, match="cannot be used") as caught:
        read_kit(kit)
    assert "source.seed is no whole number" in caught.value.why


def test_a_device_that_is_too_noisy_is_called_so(tmp_path: Path):
    small_kit(tmp_path / "kit", replace(QUICKLY, last_resort=-1.0))
    done = run_script(tmp_path / "kit")
    assert done.returncode == 5
    assert "too noisy" in done.stderr


def test_the_script_takes_only_the_files_of_its_kit(kit: Path):
    model = next((kit / "models").glob("*.onnx"))
    model.write_bytes(model.read_bytes() + b"x")
    done = run_script(kit)
    assert done.returncode == 2
    assert "not the file that kit.json lists" in done.stderr


@pytest.mark.parametrize("file", ["../secret.onnx", "/etc/passwd", "models/../../x.onnx"])
def test_the_script_opens_nothing_outside_of_its_folder(kit: Path, file: str):
    edit_manifest(kit, lambda data: data["models"][0].update(file=file))
    done = run_script(kit)
    assert done.returncode == 2
    assert "outside of models/" in done.stderr


def edit_manifest(kit: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((kit / "kit.json").read_text())
    change(data)
    (kit / "kit.json").write_text(json.dumps(data))


def first_model(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["models"][0].update(values)


MANIFESTS = {
    "a path upwards": (first_model(file="../x.onnx"), "outside of models"),
    "a name upwards": (first_model(name="../x", file="models/../x.onnx"), "outside of models"),
    "no digest": (first_model(sha256="abc"), "no SHA-256"),
    "two of a name": (lambda data: data["models"].append(data["models"][0]), "not unique"),
    "an unknown reference": (lambda data: data.update(reference="none"), "reference"),
    "no threads": (lambda data: data.update(threads=0), "threads is 0"),
    "threads in words": (lambda data: data.update(threads="two"), "threads is 'two'"),
    "a later format": (lambda data: data.update(format=2), "format 2"),
    "no models": (lambda data: data.pop("models"), "KeyError 'models'"),
    "models of another kind": (lambda data: data.update(models=[3]), "TypeError"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_are_refused(kit: Path, name: str):
    change, why = MANIFESTS[name]
    edit_manifest(kit, change)
    with pytest.raises(ProfileError) as caught:
        read_kit(kit)
    assert why in caught.value.why
    assert caught.value.where.endswith("kit.json")


def edit_line(number: int, **values: Any) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        lines[number] = json.dumps({**json.loads(lines[number]), **values})
        return lines

    return change


RESULTS = {
    "of another kit": (edit_line(0, kit="0" * 64), "another kit"),
    "not a number": (edit_line(2, latency_ms=[float("nan"), 1.0]), "line 3: the time nan"),
    "endless": (edit_line(2, reference_ms=[float("inf"), 1.0]), "line 3: the time inf"),
    "negative": (edit_line(2, latency_ms=[-1.0, 1.0]), "line 3: the time -1.0"),
    "nothing": (edit_line(2, latency_ms=[0, 0]), "line 3: the time 0"),
    "text": (edit_line(2, latency_ms=["1", "2"]), "not a number"),
    "no list": (edit_line(2, latency_ms=3), "TypeError"),
    "unequal": (edit_line(2, latency_ms=[1.0]), "has no times"),
    "another unit": (edit_line(2, latency_ms=[9e5], reference_ms=[1.0]), "and its operations"),
    "negative nodes": (edit_line(2, nodes=[["a", "Conv", -3, []]]), "the time -3"),
    "nodes without time": (edit_line(2, nodes=[["a", "Conv", 0, []]]), "has no times"),
    "nodes of another form": (edit_line(2, nodes=[["a", "Conv"]]), "ValueError"),
    "numbers as names": (edit_line(2, nodes=[[1, "Conv", 3, []]]), "is not a name"),
    "an unknown network": (edit_line(2, name="../../x"), "no network of this kit"),
    "another version": (edit_line(2, sha256="0" * 64), "no network of this kit"),
    "another rewritten file": (edit_line(2, optimized_sha256="0" * 64), "not the file that the results name"),
    "one twice": (lambda lines: [*lines, lines[-1]], "twice"),
    "too few": (lambda lines: lines[:4], "5 of 8 networks are missing"),
    "nothing measured": (lambda lines: lines[:1], "8 of 8 networks are missing"),
    "not JSON": (lambda lines: [*lines[:2], "{", *lines[3:]], "line 3: it is not JSON"),
    "deep": (lambda lines: [*lines[:2], "[" * 100_000, *lines[3:]], "line 3: it is not JSON"),
    "a list": (lambda lines: [*lines[:2], "[1]", *lines[3:]], "line 3: it is not a JSON object"),
    "a runtime with a path": (edit_line(0, runtime="../x"), "the runtime is"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_that_are_refused(kit: Path, name: str):
    change, why = RESULTS[name]
    path = kit / "results.jsonl"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(ProfileError) as caught:
        import_kit(kit, kit.parent / "p")
    assert why in caught.value.why
    assert not (kit.parent / "p").exists()


def test_files_that_are_missing_or_too_large(kit: Path, monkeypatch: pytest.MonkeyPatch):
    for path in (
        kit / "device.json",
        next((kit / "optimized").glob("*.onnx")),
        next((kit / "models").glob("[0-9]*.onnx")),
    ):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(ProfileError) as caught:
            import_kit(kit, kit.parent / "p")
        assert str(path) in caught.value.where
        path.write_bytes(content)
    with (kit / "results.jsonl").open("r+b") as file:
        file.truncate(1024**3)
    with pytest.raises(ProfileError, match="cannot be imported") as caught:
        import_kit(kit, kit.parent / "p")
    assert "1,024 MiB" in caught.value.why
    monkeypatch.setattr(kit_folder, "MOST_MODEL_BYTES", 10)
    with pytest.raises(ProfileError, match="cannot be used"):
        kit_folder.read_bytes(kit / "kit.json", kit_folder.MOST_MODEL_BYTES)


def test_a_rewritten_network_that_is_no_network(kit: Path):
    lines = (kit / "results.jsonl").read_text().splitlines()
    name = json.loads(lines[1])["name"]
    (kit / "optimized" / f"{name}.onnx").write_bytes(b"\xff" * 50)
    digest = hashlib.sha256(b"\xff" * 50).hexdigest()
    (kit / "results.jsonl").write_text("\n".join(edit_line(1, optimized_sha256=digest)(lines)) + "\n")
    with pytest.raises(ProfileError, match=f"rewritten network {name} cannot be read"):
        import_kit(kit, kit.parent / "p")


@pytest.mark.parametrize("name", ["pi", "me@raspberrypi.local", "10.0.0.7", "u@fe80::1", "::1", "a_b@c-d"])
def test_hosts_to_connect_to(name: str):
    assert Host(name).name == name


@pytest.mark.parametrize(
    "name", ["-oProxyCommand=touch x", "", "a b", "a;b", "u@-x", "$(x)", "a\nb", "u@h:dir", "@h"]
)
def test_what_is_no_host(name: str):
    with pytest.raises(InputError, match="not a host"):
        Host(name)


def test_what_is_no_option_and_no_python():
    for option in ("-oPort=1", "Port", "=1", "Port=1\nX=2"):
        with pytest.raises(InputError, match="not an option"):
            Host("pi", (option,))
    for python in ("-c", "python; rm", "$(x)", "a'b"):
        with pytest.raises(InputError, match="not a path of Python"):
            Host("pi", (), python)


def test_commands_end_with_code_2(kit: Path, tmp_path: Path):
    out = ["-o", str(tmp_path / "p")]
    teacher = ["--teacher", "timm:resnet18"]
    for arguments in (
        ["profile", "import", str(tmp_path / "none"), *out],
        ["profile", "import", str(tmp_path), *out],
        ["profile", "import", str(kit / "kit.json"), *out],
        ["profile", "kit", *teacher, "-o", str(tmp_path / "k"), "--ssh", "-x"],
        ["profile", "kit", *teacher, "-o", str(tmp_path), "--networks", "20"],
        ["profile", "kit", *teacher, "-o", str(tmp_path / "k"), "--networks", "2"],
    ):
        found = CliRunner().invoke(main, arguments)
        assert found.exit_code == 2, found.output
        assert found.output.count("error: ") == 1


def test_the_command_imports_a_kit_and_replaces_nothing_unasked(kit: Path, tmp_path: Path):
    arguments = ["profile", "import", str(kit), "-o", str(tmp_path / "p")]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert CliRunner().invoke(main, arguments).exit_code == 2
    assert CliRunner().invoke(main, [*arguments, "--overwrite"]).exit_code == 0


TEACHER = """
from priced_networks import small_resnet

def build():
    return small_resnet(3)
"""


def test_the_command_writes_a_kit_and_goes_on_with_the_same_one_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(NETWORKS)
    (tmp_path / "teacher.py").write_text(TEACHER)
    folder = tmp_path / "kit"
    command = ["profile", "kit", "--teacher", f"{tmp_path}/teacher.py:build", "--input-size", "16"]
    command += ["--networks", "8", "-o", str(folder)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "measure_kit.py" in done.output
    assert (folder / "measure_kit.py").read_bytes() == SCRIPT.read_bytes()
    assert "profile import" in (folder / "README.md").read_text()
    before = read_kit(folder).identity
    assert CliRunner().invoke(main, [*command, "--resume"]).exit_code == 0
    assert read_kit(folder).identity == before
    refused = CliRunner().invoke(main, [*command, "--resume", "--threads", "2"])
    assert refused.exit_code == 2
    assert "its threads is 1, now 2" in refused.output


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A real sshd on the loopback interface, with keys of its own."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("ssh-keygen") is None or shutil.which("scp") is None:
        pytest.skip("OpenSSH's server and client are not installed")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = free_port()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
        "PasswordAuthentication": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    server = subprocess.Popen(
        [sshd, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(100):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            pytest.skip("sshd does not start here")
        options = (
            f"Port={port}",
            f"IdentityFile={folder / 'user'}",
            "IdentitiesOnly=yes",
            f"UserKnownHostsFile={folder / 'known'}",
            "StrictHostKeyChecking=yes",
        )
        yield Host(f"{getpass.getuser()}@127.0.0.1", options, sys.executable)
    finally:
        server.terminate()
        server.wait()


def left_behind(kit: Kit) -> bool:
    return (Path.home() / f"autocompress-kit-{kit.identity[:16]}").exists()


def test_a_kit_run_over_ssh_gives_the_same_kernels(host: Host, direct: DeviceProfile, tmp_path: Path):
    kit = small_kit(tmp_path / "kit")
    seen: list[tuple[int, int]] = []
    results = run_remotely(kit, host, "onnxruntime", 1, lambda *counts: seen.append(counts))
    assert results == kit.folder / "results.jsonl"
    assert seen == [(done, COUNT) for done in range(COUNT + 1)]
    assert not left_behind(kit)
    profile = import_kit(kit.folder, tmp_path / "p")
    assert rows_of(profile).keys() == rows_of(direct).keys()
    assert profile.layouts == direct.layouts
    assert profile.device.cpu == machine().cpu


def test_what_goes_wrong_over_ssh_is_said(host: Host, tmp_path: Path):
    kit = small_kit(tmp_path / "kit", replace(QUICKLY, last_resort=-1.0))
    with pytest.raises(InputError, match="there is no /no/python"):
        run_remotely(kit, replace(host, python="/no/python"), "onnxruntime", 1)
    with pytest.raises(NoisyDeviceError):
        run_remotely(kit, host, "onnxruntime", 1)
    assert left_behind(kit)
    shutil.rmtree(Path.home() / f"autocompress-kit-{kit.identity[:16]}")
    closed = replace(host, options=(f"Port={free_port()}", *host.options[1:]))
    with pytest.raises(InputError, match="cannot be reached"):
        run_remotely(kit, closed, "onnxruntime", 1)


def test_options_that_would_be_ignored_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="--ssh-option, --python cannot be used without --ssh") as caught:
        api_profile.profile_kit(
            "timm:resnet18", "resnet", tmp_path / "kit", ssh_options=["Port=2"], python="python4"
        )
    assert "leave out --ssh-option and --python" in str(caught.value)
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="--threads, --device-name cannot be used with a kit"):
        api_profile.profile_import(
            tmp_path / "results.jsonl", tmp_path / "made", threads=2, device_name="phone"
        )
    assert not (tmp_path / "kit").exists()
    assert not (tmp_path / "made").exists()
