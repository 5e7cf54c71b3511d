"""Teachers with operators that have no form in ONNX: what is said of them, and where they may be searched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from opaque_networks import IMAGE, CustomOperator
from places import ROOT

import autocompress as ac
from autocompress.graph.operators import PROVIDERS_VARIABLE, has_gradient
from autocompress.pipeline.preparation import open_teacher

OWN = """
import torch
from torch import nn

@torch.library.custom_op("one_users_own::halved", mutates_args=())
def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2

@halved.register_fake
def _(x):
    return torch.empty_like(x)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.b(halved(self.a(x))).mean((2, 3))
"""


def test_inspect_names_what_has_no_form_in_onnx() -> None:
    found = ac.inspect(CustomOperator().eval(), input_size=IMAGE)
    ((where, what, why),) = found.without_onnx
    assert where == "soft_sign" and "autocompress_tests::soft_sign" in what and why
    assert found.to_json()["without_onnx"][0]["operation"] == "soft_sign"
    assert any("soft_sign" in site.locked for site in found.sites)
    assert any(not site.locked for site in found.sites)


def test_runtimes_that_need_onnx_refuse_it_and_torch_does_not() -> None:
    module = CustomOperator().eval()
    with pytest.raises(ac.TeacherError, match=r"soft_sign[\s\S]*--runtime torch"):
        open_teacher(module, None, IMAGE, runtime="onnxruntime")
    assert open_teacher(module, None, IMAGE, runtime="torch").without_onnx == ()


def test_other_processes_import_the_file_that_registers_an_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROVIDERS_VARIABLE, "")
    (tmp_path / "own.py").write_text(OWN)
    open_teacher(f"{tmp_path}/own.py:Net", None, IMAGE, runtime="torch")
    assert os.environ[PROVIDERS_VARIABLE] == str(tmp_path / "own.py")
    code = "from autocompress.graph.operators import implementation; implementation('one_users_own::halved')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    environment[PROVIDERS_VARIABLE] = ""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert b"registered no operator one_users_own::halved" in done.stderr


def test_an_operator_without_a_gradient_is_known() -> None:
    assert not has_gradient("autocompress_tests::soft_sign")
    assert has_gradient("aten::gru.input")
    assert has_gradient("relu")
