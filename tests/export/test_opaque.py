"""Networks with operations that have no row: random candidates of them compute the same as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from opaque_networks import IMAGE, NETWORKS, CustomOperator, made
from torch import nn
from written_networks import net

from autocompress.cost.kernels import kernels
from autocompress.cost.memory import peak_memory_bytes
from autocompress.device.profile.latency_table import LatencyTable, Row
from autocompress.device.profile_files.kernels_csv import read_rows, rows_text
from autocompress.device.runtimes.base import get_runtime
from autocompress.errors import StudentError, TeacherError
from autocompress.export import torch_onnx
from autocompress.export.onnx import to_onnx
from autocompress.export.parity import check_model, check_parity
from autocompress.export.student_folder import SPEC, load_student, save_student
from autocompress.graph.module import build
from autocompress.graph.network import Network, Weights
from autocompress.graph.operators import TORCH_DOMAIN
from autocompress.graph.trace import trace
from autocompress.problem.space import load_space
from autocompress.transforms.apply import apply, deployed
from autocompress.transforms.families.quantize import plan, with_ranges
from autocompress.transforms.probe import probed
from autocompress.transforms.sampling import samples
from autocompress.transforms.sites import bind

CANDIDATES = 4
NATIVE = ("lstm head", "topk and gather", "global filter", "bag of words", "masked")


def runner(model: onnx.ModelProto) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    loaded = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda array: loaded.run(None, {"input": array})[0]


def with_real_ranges(network: Network, weights: Weights, x: torch.Tensor) -> Network:
    planned = plan(network)
    with torch.no_grad():
        values = build(
            replace(
                network.with_nodes(node.but(quantizer=None) for node in network.nodes), input_quantizer=None
            ),
            weights,
        ).forward_values(x, planned)
    return with_ranges(network, {name: (float(v.min()), float(v.max())) for name, v in values.items()})


def images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, *IMAGE, generator=generator) * torch.linspace(0.5, 4, count)[:, None, None, None]


@pytest.mark.parametrize("name", NETWORKS)
def test_random_candidates_compute_the_same_as_files(name: str, tmp_path: Path) -> None:
    module = made(name)
    network, weights = trace(module, IMAGE)
    bound = probed(bind(load_space("joint"), network), weights)
    assert {site.name for site in bound.of_kind("width")} >= {"width:stem.a"}
    x = images(6)
    assert check_parity(module, runner(to_onnx(network, weights)), x, rounds=False).max_error < 1e-4
    for precision, candidate in samples(bound, CANDIDATES, seed=1):
        changed, cut = apply(bound, weights, candidate)
        changed, cut = deployed(changed, cut)
        assert cut is not None
        changed = with_real_ranges(changed, cut, x)
        model = to_onnx(changed, cut)
        check_model(model)
        student = build(changed, cut)
        if precision == "fp32":
            assert check_parity(student, runner(model), x, rounds=False).max_error < 1e-4
        else:
            check_parity(student, runner(model), x, rounds=True)
        assert all(kernel.out_elements for kernel in kernels(changed))
        assert peak_memory_bytes(changed) > 0
    save_student(
        tmp_path / "student",
        network=changed,
        weights=cut,
        onnx_model=model,
        spec_extra={},
        bench={},
        readme="",
    )
    loaded = load_student(tmp_path / "student")
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), student(x), rtol=1e-4, atol=1e-4)


def test_multiply_adds_of_recurrent_layers_and_volumes_are_counted() -> None:
    network, _ = trace(made("gru over columns"), IMAGE)
    (gru,) = (one for one in kernels(network) if one.op == "opaque:gru.input")
    assert gru.macs == 8 * 2 * (3 * 20 * 32 + 3 * 20 * 20)
    network, _ = trace(made("lstm head"), IMAGE)
    (lstm,) = (one for one in kernels(network) if one.op == "opaque:lstm.input")
    assert lstm.macs == 8 * (4 * 10 * 12 + 3 * 4 * 10 * 10)
    network, _ = trace(made("spectrum"), IMAGE)
    (spectrum,) = (one for one in kernels(network) if one.op.startswith("opaque:"))
    assert spectrum.op.startswith("opaque:fft") or spectrum.op.startswith("opaque:_fft")
    assert spectrum.macs == 0


def test_a_profile_keeps_rows_of_such_kernels_and_says_which_it_lacks(tmp_path: Path) -> None:
    found = kernels(trace(made("gru over columns"), IMAGE)[0])
    assert "opaque:gru.input fp32" in LatencyTable([]).missing(found)
    rows = [Row(kernel, 1, 1.0, 2.0, 1.9, 2.1) for kernel in dict.fromkeys(found)]
    (tmp_path / "kernels.csv").write_text(rows_text(rows))
    table = LatencyTable(read_rows(tmp_path / "kernels.csv"))
    assert table.missing(found) == ()
    assert {table.lookup(kernel).how for kernel in found} == {"measured"}


def test_equal_operations_are_exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = []
    export = torch.onnx.export
    monkeypatch.setattr(
        torch.onnx, "export", lambda *args, **options: exported.append(1) or export(*args, **options)
    )
    torch_onnx._exported.cache_clear()
    module = net(
        lambda m, x: m.second(torch.logcumsumexp(m.first(torch.logcumsumexp(x, 1)), 1)),
        first=nn.Linear(8, 8),
        second=nn.Linear(8, 8),
    )
    network, weights = trace(module, (5, 8))
    model = to_onnx(network, weights)
    assert len(exported) == 1
    to_onnx(network, {name: value * 2 for name, value in weights.items()})
    assert len(exported) == 1
    assert {node.name.partition("/")[0] for node in model.graph.node} >= {
        "logcumsumexp",
        "logcumsumexp_1",
    }


def test_what_the_weights_are_rearranged_into_is_computed_beforehand() -> None:
    network, weights = trace(made("gru over columns"), IMAGE)
    model = to_onnx(network, weights)
    constants = {one.name for one in model.graph.initializer}
    assert not any(node.input and constants.issuperset(node.input) for node in model.graph.node)


def test_an_operator_without_a_form_in_onnx_is_named() -> None:
    network, weights = trace(CustomOperator().eval(), IMAGE)
    with pytest.raises(TeacherError, match=r"autocompress_tests::soft_sign[\s\S]*--runtime torch"):
        to_onnx(network, weights)


@pytest.mark.parametrize("make", [CustomOperator, *(NETWORKS[name].make for name in NATIVE)])
def test_runtimes_of_torch_call_the_operators_themselves(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = make().eval()
    model = to_onnx(*trace(module, IMAGE), batch=2, torch_operators=True)
    check_model(model)
    assert TORCH_DOMAIN in {node.domain for node in model.graph.node}
    session = get_runtime("torch").load(model.SerializeToString(), 1)
    parity = check_parity(module, session.run, images(4), rounds=False, runtime_batch=2)
    assert parity.max_error < 1e-4
    times = get_runtime("torch").node_times(model.SerializeToString(), 1, 1)
    assert {time.name.partition("/")[0] for time in times} <= {node.name for node in model.graph.node}


def test_a_student_with_an_operator_that_nobody_registered_is_refused(tmp_path: Path) -> None:
    network, weights = trace(made("running sums"), IMAGE)
    save_student(
        tmp_path,
        network=network,
        weights=weights,
        onnx_model=to_onnx(network, weights),
        spec_extra={},
        bench={},
        readme="",
    )
    spec = (tmp_path / SPEC).read_text()
    assert json.loads(spec)
    (tmp_path / SPEC).write_text(spec.replace("aten::logcumsumexp", "strangers::logcumsumexp"))
    with pytest.raises(StudentError, match=r"strangers::logcumsumexp[\s\S]*import the package"):
        load_student(tmp_path)
    (tmp_path / SPEC).write_text(spec.replace("aten::logcumsumexp", "aten::from_file"))
    with pytest.raises(StudentError, match="from_file"):
        load_student(tmp_path)
