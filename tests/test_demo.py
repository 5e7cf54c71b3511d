import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from places import BENCHMARKS

from autocompress.problem.data import load_data
from autocompress.problem.teacher import check_teacher, load_teacher
from autocompress.students.accuracy import evaluate

sys.path.insert(0, str(BENCHMARKS))
import demo_teacher as demo


def test_the_demo_writes_a_teacher_that_its_spec_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "EPOCHS", 1)
    out = tmp_path / "new" / "teacher.safetensors"
    result = CliRunner().invoke(demo.main, [str(out)])
    assert result.exit_code == 0 and result.stdout == ""
    assert demo.teacher_spec(out) in result.stderr
    teacher, data = load_teacher(demo.teacher_spec(out)), load_data(demo.DATA)
    assert check_teacher(teacher.module, data.input_shape, data.num_classes) == (10,)
    assert data.test is not None
    assert f"{evaluate(teacher.module, data.test).accuracy:.2%}" in result.stderr
