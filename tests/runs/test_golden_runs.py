"""A run, its students and a coded file that an earlier version wrote: all of it is still read."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from places import GOLDEN

import autocompress as ac
from autocompress.device.measure.statistics import Measurement
from autocompress.pipeline.budget_queries import Answers
from autocompress.pipeline.preparation import open_teacher
from autocompress.pipeline.request import recorded_request
from autocompress.runs.certificate import read_certificate
from autocompress.runs.events import OtherEvent, from_json
from autocompress.runs.store import read_run

RUN = GOLDEN / "run-1"
FIRST, SECOND = "1abfbffce665", "2662e8b2064c"
LOGITS = {
    RUN / "students" / FIRST: [0.0826, -0.12485, -0.05396, -0.08408, 0.19867],
    RUN / "students" / SECOND: [0.06394, -0.11193, -0.03164, -0.02283, 0.25705],
    GOLDEN / "student-1.acz": [0.06394, -0.11193, -0.03164, -0.02283, 0.25705],
}


def test_every_event_is_known_and_written_as_it_was():
    import json

    record = read_run(RUN)
    assert record.damaged == () and record.exit_code == 0
    assert not any(isinstance(event, OtherEvent) for event in record.events)
    for line in (RUN / "events.jsonl").read_text().splitlines():
        data = json.loads(line)
        again = json.loads(json.dumps(from_json(data).to_json(), default=lambda value: value.to_json()))
        for name, value in again.items():
            if name != "student" and name != "teacher":
                assert data[name] == value, name
            else:
                assert data[name].items() <= value.items()
        assert again.keys() >= data.keys() - {"seq", "time", "event", "crc32"}


def test_the_front_is_as_it_was():
    front = ac.front(RUN)
    assert [student.key for student in front.students] == [FIRST]
    assert {student.key for student in front.measured} == {FIRST, SECOND}
    assert (
        front.teacher is not None and front.teacher.file_bytes == (RUN / "teacher/model.onnx").stat().st_size
    )
    assert front.best(latency_ms=0.006).key == FIRST


@pytest.mark.parametrize("path", LOGITS, ids=lambda path: path.stem)
def test_students_compute_what_they_did(path: Path):
    model = ac.load(path)
    with torch.no_grad():
        found = model(torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8))[0, :5]
    assert found.tolist() == pytest.approx(LOGITS[path], abs=1e-4)


def test_certificates_and_reports_are_read(tmp_path: Path):
    certificate = read_certificate(RUN / "students" / FIRST / "bench.json")
    assert certificate.student.certified and certificate.runtime == "onnxruntime"
    assert Measurement.from_json(certificate.measurement).latency_ms == certificate.student.latency_ms
    assert FIRST in ac.report(RUN, tmp_path / "report.html").read_text(encoding="utf-8")


def test_budgets_are_answered_from_it():
    teacher = ac.front(RUN).teacher
    assert teacher is not None
    answer = Answers.of(RUN).solve(latency_ms=0.8 * teacher.latency_ms)
    assert answer.predicted.latency_ms_ci95[1] <= 0.8 * teacher.latency_ms


def test_its_search_may_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Everything that a resumed run must agree on is still told the same."""
    shutil.copytree(RUN, tmp_path / "run")
    shutil.copy(GOLDEN / "run_1_teacher.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    request = recorded_request(Path("run"), add_trials=2)
    assert request.options.most_trials == 8 and request.options.students == 2
    opened = open_teacher(request.teacher, request.data, data_seed=0)
    assert opened.data is not None
    identity = yaml.safe_load((RUN / "config.yaml").read_text())["identity"]
    assert identity == {
        "teacher": opened.teacher.fingerprint,
        "data": opened.data.fingerprint,
        "space": request.space.fingerprint,
        "budgets": request.budgets.to_json(),
        "device": request.profile.fingerprint,
        "seed": request.options.seed,
    }
