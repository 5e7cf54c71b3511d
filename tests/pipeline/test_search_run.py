"""The whole job on handwritten digits, in miniature: profile, search, certify, pick, load, resume."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from priced_networks import small_resnet
from small_search import CALM, Setting, compress, environment

import autocompress as ac
from autocompress import api
from autocompress.export.student_folder import is_intact, read_spec
from autocompress.pipeline import certification as certify
from autocompress.problem.data import load_data
from autocompress.progress import Console
from autocompress.runs.store import read_run


def test_a_search_in_one_shot_decides_by_what_it_measures(setting: Setting, tmp_path: Path):
    run = tmp_path / "run"
    plan = {"trial_epochs": 0, "trials": 6, "students": 1, "distill_epochs": 16, "time_limit_s": 36_000.0}
    compress(setting, run, **plan)
    record = read_run(run)
    trials = [trial for trial in record.trials if trial.name == "trial_finished"]
    size = load_data("digits").validation.size
    assert len(trials) == 6
    assert all(trial.images == size or trial.stopped for trial in trials)
    assert all(trial.accuracy_std_err > 0 for trial in trials)
    (scored,) = [event for event in record.events if event.name == "scored"]
    best = max(scored.rankings, key=lambda ranking: ranking["correlation"])
    assert len(scored.rankings) == 3 and scored.measure == best["measure"]
    promoted = [event for event in record.events if event.name == "promoted"]
    assert len(promoted) == 2 and {event.rung for event in promoted} == {1}
    decisions = " | ".join(api.status(run)["decisions"])
    for said in ("random joint candidates at", "as many as were asked for → training 2", "an epoch takes"):
        assert said in decisions
    assert not (run / "distilled" / "rungs").exists()


def test_the_front_holds_certified_students_that_keep_the_budgets(finished: Path):
    front, record = ac.front(finished), read_run(finished)
    assert front.students
    for student in front.students:
        assert student.certified
        assert student.latency_ms_ci95[1] <= record.limits.latency_ms
        assert student.file_bytes <= record.limits.file_bytes <= 0.7 * front.teacher.file_bytes
        assert student.file_bytes == (student.folder / "model.onnx").stat().st_size
        assert student.macs <= front.teacher.macs
    best = front.students[0]
    assert best.accuracy > 0.5
    assert json.loads((finished / "front.json").read_text()) == front.to_json()
    assert record.exit_code == 0


PACKED = """
name: packed
rules:
  - match: {layer: any}
    sparsity: {keep: [0.1, 0.25, 0.5, 1.0], method: obs}
    codebook: [none, 32, 8]
    bits: [32, 8]
"""


def test_a_budget_of_the_packed_size_brings_sparse_and_shared_weights(setting: Setting, tmp_path: Path):
    (setting.folder / "packed.yaml").write_text(PACKED)
    run = tmp_path / "run"
    small = ac.Budgets(packed_size_ratio=0.15)
    plan = {"trials": 2, "students": 1, "trial_epochs": 0.5, "distill_epochs": 2, "quantized_epochs": 1}
    front = compress(setting, run, space=str(setting.folder / "packed.yaml"), budgets=small, **plan)
    (student,) = front.students
    coded = student.folder / "student.acz"
    assert student.packed_bytes == coded.stat().st_size <= 0.15 * front.teacher.packed_bytes
    assert is_intact(student.folder)
    choices = read_spec(student.folder)["choices"]
    assert any(name.startswith(("sparsity:", "codebook:")) for name in choices)
    images = next(iter(load_data("digits").validation.batches(16)))[0]
    with torch.no_grad():
        torch.testing.assert_close(ac.load(coded)(images), ac.load(student.folder)(images), rtol=0, atol=0.05)
    assert front.filtered(packed_size="<15%").students == front.students
    with pytest.raises(ac.NothingFeasibleError, match="packed size"):
        front.best(packed_size_mib=1e-4)
    assert ac.pick(run, tmp_path / "picked", packed_size="15%") == tmp_path / "picked"
    answer = ac.front(run).solve(packed_size_mib=0.13 * front.teacher.packed_bytes / 2**20)
    assert answer.predicted.packed_bytes <= 0.13 * front.teacher.packed_bytes


def test_noise_spoils_only_what_has_to_keep_a_latency(finished: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(certify, "CERTIFY", replace(CALM, most_spread=-1, attempts=1))
    data = load_data("digits")
    model, device = next(finished.glob("students/*/model.onnx")), certify.Device("onnxruntime", 1)
    found = certify.examine(model, data, device, reference=model, any_noise=True).measurement
    low, high = found.latency_ms_ci95
    assert low <= found.latency_ms <= high
    with pytest.raises(ac.NoisyDeviceError):
        certify.examine(model, data, device, reference=model)


def test_a_run_folder_holds_what_its_readme_says(finished: Path):
    assert {path.name for path in finished.iterdir() if not path.name.startswith(".")} == {
        *("config.yaml", "environment.json", "device", "events.jsonl", "teacher", "students", "front.json"),
        "distilled",
    }
    for folder in (finished / "students").iterdir():
        assert {path.name for path in folder.iterdir()} == {
            *("spec.json", "model.safetensors", "model.onnx", "bench.json", "README.md")
        }
    assert list((finished / "distilled").iterdir()) == []
    assert read_run(finished).damaged == ()


def test_a_student_is_loaded_elsewhere_and_is_as_accurate_as_recorded(finished: Path, tmp_path: Path):
    """In a fresh process, in another folder, without the teacher: by `ac.load` and by plain ONNX Runtime."""
    folder = ac.pick(finished, tmp_path / "student")
    code = f"""
import json, sys
import numpy as np, torch
import autocompress as ac
import onnxruntime
from autocompress.problem.data import load_data
assert not any(name.startswith("priced_networks") for name in sys.modules)
data = load_data("digits", preprocessing=None)
model = ac.load({str(folder)!r})
session = onnxruntime.InferenceSession({str(folder / "model.onnx")!r}, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
right = [0, 0]
for images, labels in data.test.batches(1):
    with torch.no_grad():
        right[0] += int(model(images).argmax() == labels[0])
    right[1] += int(session.run(None, {{name: images.numpy()}})[0].argmax() == int(labels[0]))
print(json.dumps([count / data.test.size for count in right]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    loaded, plain = json.loads(done.stdout.splitlines()[-1])
    recorded = json.loads((folder / "bench.json").read_text())["student"]["accuracy"]
    assert plain == pytest.approx(recorded, abs=1e-9)
    assert loaded == pytest.approx(recorded, abs=0.012)


def test_bench_measures_a_picked_student_again(finished: Path, tmp_path: Path):
    found = ac.bench(ac.pick(finished, tmp_path / "student"), Console(quiet=True))
    assert found["latency_ms"] > 0
    assert found["within_budget"] == (found["violated"] == [])
    (tmp_path / "student" / "model.onnx").write_bytes(b"changed")
    with pytest.raises(ac.StudentError):
        ac.bench(tmp_path / "student", Console(quiet=True))


def test_pick_names_the_nearest_miss(finished: Path, tmp_path: Path):
    with pytest.raises(ac.NothingFeasibleError) as caught:
        ac.pick(finished, tmp_path / "student", latency="0.0001ms")
    assert "latency" in caught.value.why
    assert not (tmp_path / "student").exists()


def test_the_report_is_one_offline_file(finished: Path, tmp_path: Path):
    text = ac.report(finished, tmp_path / "report.html").read_text()
    assert "<svg" in text and 'src="http' not in text and 'href="http' not in text
    for student in ac.front(finished).students:
        assert student.key in text


def test_resuming_a_finished_run_repeats_nothing_and_more_trials_are_added(finished: Path, tmp_path: Path):
    run = tmp_path / "again"
    shutil.copytree(finished, run)
    before = [trial.candidate for trial in read_run(run).trials]
    ac.resume(run, console=Console(quiet=True))
    assert [trial.candidate for trial in read_run(run).trials] == before
    ac.resume(run, add_trials=2, console=Console(quiet=True))
    after = [trial.candidate for trial in read_run(run).trials if trial.name == "trial_finished"]
    assert after[: len(before)] == before
    assert len(set(after)) == len(after) == 6


def test_another_search_is_refused_with_what_changed(setting: Setting, finished: Path):
    before = (finished / "events.jsonl").read_bytes()
    with pytest.raises(ac.RunError, match="budgets") as caught:
        compress(setting, finished, budgets=ac.Budgets(latency_ratio=0.9), resume=True)
    assert "0.97" in caught.value.why and "0.9" in caught.value.why
    assert (finished / "events.jsonl").read_bytes() == before


def test_the_same_seed_gives_the_same_trials(setting: Setting, finished: Path, tmp_path: Path):
    limits = read_run(finished).limits  # the teacher's latency is never measured equal twice
    budgets = ac.Budgets(latency_ms=limits.latency_ms, size_mib=limits.file_bytes / 1024**2)
    compress(setting, tmp_path / "twin", budgets=budgets)
    mine, theirs = (
        [(t.trial, t.candidate, getattr(t, "accuracy", None)) for t in read_run(run).trials]
        for run in (finished, tmp_path / "twin")
    )
    assert mine == theirs


def test_own_modules_and_datasets_from_python(setting: Setting, tmp_path: Path):
    """The teacher is used as it is and not changed; datasets are any that give (image, label)."""
    import torch
    from safetensors.torch import load_file

    from autocompress.problem.teacher import fingerprint

    model = small_resnet(in_channels=3, classes=10)
    model.load_state_dict(load_file(setting.folder / "teacher.safetensors"))
    before = fingerprint(model)
    data = load_data("digits")
    train, validation = (
        torch.utils.data.TensorDataset(*map(torch.cat, zip(*split.batches(256), strict=True)))
        for split in (data.train, data.validation)
    )
    front = compress(setting, tmp_path / "own", teacher=model, data=(train, validation), trials=2, students=1)
    assert front.students[0].certified
    assert fingerprint(model) == before
    with pytest.raises(ac.RunError, match="object"):
        ac.resume(tmp_path / "own")
