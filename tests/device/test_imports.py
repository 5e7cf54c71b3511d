"""Dumps of profilers: real ones of the tools that are installed, written ones in the documented formats."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from kit_samples import kit_samples, small_kit
from priced_networks import small_resnet

from autocompress.api_profile import profile_import
from autocompress.cli.main import main
from autocompress.cost.kernels import CONVERSIONS, kernels
from autocompress.cost.layouts import Layouts
from autocompress.device.imports import parsing as imports
from autocompress.device.imports.operators import attribute_operators
from autocompress.device.imports.parsing import KINDS, OperatorTime, get_parser, parse_dump
from autocompress.device.imports.torch import _repeated
from autocompress.device.kit.folder import Kit
from autocompress.device.profile.validation import UnknownOperator
from autocompress.device.profile_files.store import load_profile
from autocompress.device.runtimes.base import get_runtime
from autocompress.errors import ProfileError

PLAIN = Layouts(0, False)
RUNS = 3000
BENCHMARK_APP = (
    "import sys; sys.modules['openvino_telemetry'] = None; "
    "from openvino.tools.benchmark.main import main; main()"
)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return small_kit(tmp_path_factory.mktemp("imports") / "kit")


def model_of(kit: Kit, index: int) -> Path:
    return kit.folder / "models" / f"{kit.entries[index].name}.onnx"


def names_of(index: int) -> list[str]:
    return [kernel.nodes[0] for kernel in kernels(kit_samples()[index].network, PLAIN) if kernel.macs]


# Real files


def onnxruntime_dump(model: Path, folder: Path, runs: int = 20) -> Path:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.profile_file_prefix = str(folder / "ort")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    feed = {given.name: np.ones(given.shape, np.float32)}
    for _ in range(runs):
        session.run(None, feed)
    return Path(session.end_profiling())


def _named(name: str, op: str) -> tuple[str, str]:
    """Which of several layout changes gets a number behind its name differs from session to session."""
    return re.sub(r"_token_\d+$", "", name), op


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_real_onnxruntime_profile(kit: Kit, tmp_path: Path, index: int):
    dump = onnxruntime_dump(model_of(kit, index), tmp_path)
    kind, operators = parse_dump(dump)
    assert kind == "onnxruntime"
    events = [event for event in json.loads(dump.read_text()) if event["cat"] == "Node"]
    assert {operator.count for operator in operators} == {20}
    theirs = get_runtime("onnxruntime").node_times(model_of(kit, index).read_bytes(), 1, 1)
    assert [_named(one.name, one.op) for one in operators] == [_named(one.name, one.op) for one in theirs]
    for operator in operators:
        times = sorted(event["dur"] for event in events if event["name"] == f"{operator.name}_kernel_time")
        assert operator.time_us == pytest.approx(sum(times[5:15]) / 10)
    profile = profile_import([dump], tmp_path / "p", models=[model_of(kit, index)])
    found = [row.kernel for row in load_profile(tmp_path / "p").table.rows]
    expected = kernels(kit_samples()[index].network, profile.layouts)
    assert {kernel for kernel in found if kernel.macs} == {kernel for kernel in expected if kernel.macs}
    assert {kernel for kernel in found if kernel.op in CONVERSIONS} == {
        kernel for kernel in expected if kernel.op in CONVERSIONS
    }
    assert profile.validation.imported.kernels_not_found == ()
    assert profile.runtime == "onnxruntime"


@pytest.fixture(scope="module")
def openvino_reports(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Counters of the first two networks, as CSV and as JSON."""
    pytest.importorskip("openvino")
    found = {}
    for index in (0, 1):
        for form, options in (("csv", []), ("json", ["-json_stats"])):
            folder = tmp_path_factory.mktemp("openvino")
            command = [sys.executable, "-c", BENCHMARK_APP, "-m", str(model_of(kit, index)), "-api", "sync"]
            command += ["-niter", str(RUNS), "-hint", "none", "-nthreads", "1", "-infer_precision", "f32"]
            command += ["-report_type", "detailed_counters", "-report_folder", str(folder), *options]
            subprocess.run(command, check=True, capture_output=True, env=os.environ)
            found[f"{index}.{form}"] = folder / f"benchmark_detailed_counters_report.{form}"
    return found


@pytest.mark.parametrize("form", ["csv", "json"])
def test_real_openvino_counters(kit: Kit, openvino_reports: dict[str, Path], tmp_path: Path, form: str):
    dumps = [openvino_reports[f"{index}.{form}"] for index in (0, 1)]
    kind, operators = parse_dump(dumps[0])
    assert kind == "openvino"
    assert sum(operator.op == "Convolution" for operator in operators) == 5
    profile = profile_import(dumps, tmp_path / "p", models=[model_of(kit, 0), model_of(kit, 1)])
    loaded = load_profile(tmp_path / "p")
    for index in (0, 1):
        for kernel in kernels(kit_samples()[index].network, profile.layouts):
            if kernel.macs:
                assert loaded.kernel_us(kernel) > 0
    assert profile.validation.imported.kernels_not_found == ()
    assert loaded.relative_error == pytest.approx(0.1)


def test_openvino_times_are_those_of_the_file(openvino_reports: dict[str, Path]):
    path = openvino_reports["0.csv"]
    lines = list(csv.DictReader(path.read_text().splitlines(), delimiter=";"))
    _, operators = parse_dump(path, "openvino")
    by_name = {operator.name: operator for operator in operators}
    executed = [line for line in lines if line["execStatus"] == "Status.EXECUTED"]
    assert executed
    for line in executed:
        assert by_name[line["layerName"]].time_us == pytest.approx(float(line["realTime (ms)"]) * 1e3)
    fused = [line["layerName"] for line in lines if line["execType"] == "undef"]
    assert "blocks.0.add" in fused
    assert {by_name[name].time_us for name in fused} == {0.0}


@pytest.mark.parametrize("stepped", [True, False])
def test_a_real_torch_trace(tmp_path: Path, stepped: bool):
    model, image = small_resnet(), torch.zeros(1, 1, 16, 16)
    activities = [torch.profiler.ProfilerActivity.CPU]
    schedule = torch.profiler.schedule(wait=0, warmup=2, active=5, repeat=1) if stepped else None
    with (
        torch.inference_mode(),
        torch.profiler.profile(activities=activities, schedule=schedule) as profiler,
    ):
        for _ in range(7):
            model(image)
            profiler.step()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    kind, operators = parse_dump(tmp_path / "trace.json")
    assert kind == "torch"
    ops = [operator.op for operator in operators]
    assert ops.count("conv2d") == 5
    assert ops.count("batch_norm") == 5
    assert ops[-1] == "linear"
    assert {operator.count for operator in operators} == {5 if stepped else 7}
    profile = profile_import([tmp_path / "trace.json"], tmp_path / "p", teacher=small_module(), input_size=16)
    rows = {row.kernel: row.median_us for row in load_profile(tmp_path / "p").table.rows}
    assert sum(kernel.op == "conv" for kernel in rows) >= 2
    assert [one.operator for one in profile.validation.imported.unknown_operators] == ["batch_norm"]
    assert profile.validation.imported.kernels_not_found == ()


def small_module() -> torch.nn.Module:
    """With the number of channels that a teacher without data is given."""
    return small_resnet(3)


# Written ones, in the documented formats


def trtexec(names: list[str], **more: Any) -> str:
    layers = [{"name": name, "timeMs": 10.0, "averageMs": 0.1, "percentage": 1.0, **more} for name in names]
    return json.dumps([{"count": 100}, *layers])


def test_trtexec_layers_are_named_after_what_was_fused(kit: Kit, tmp_path: Path):
    first = names_of(0)
    names = ["Reformatting CopyNode for Input Tensor 0 to conv", *(f"{name} + relu_x" for name in first[:-1])]
    path = tmp_path / "layers.json"
    path.write_text(trtexec([*names, first[-1]]))
    kind, operators = parse_dump(path)
    assert kind == "trtexec"
    assert {(operator.time_us, operator.count) for operator in operators} == {(100.0, 100)}
    profile = profile_import([path], tmp_path / "p", models=[model_of(kit, 0)], device_name="Orin")
    assert profile.runtime == "tensorrt"
    assert profile.device.cpu == "Orin"
    total_us = sum(row.median_us * row.count for row in profile.table.rows)
    assert total_us == pytest.approx(100 * (len(first) + 1), rel=0.2)
    assert profile.validation.imported.unknown_operators == (UnknownOperator(names[0], 1, 100.0),)
    written = json.loads((tmp_path / "p" / "validation.json").read_text())
    assert written["import"]["unknown_operators"] == [
        {"operator": names[0], "count": 1, "total_us": 100.0},
    ]
    assert load_profile(tmp_path / "p").validation == profile.validation


def test_later_trtexec_says_medians_and_older_ones_sums(tmp_path: Path):
    path = tmp_path / "layers.json"
    path.write_text(trtexec(["conv"], medianMs=0.09))
    assert parse_dump(path)[1] == [OperatorTime("conv", "", 90.0, 100)]
    path.write_text('[{"count": 4}, {"name": "conv", "timeMs": 2.0}]')
    assert parse_dump(path)[1] == [OperatorTime("conv", "", 500.0, 4)]


TFLITE_TEXT = """
INFO: Initialized TensorFlow Lite runtime.
Profiling Info for Benchmark Initialization:
Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                 CONV_2D\t    0.120\t    0.100\t 50.000%\t 50.000%\t     0.000\t        1\t[relu1;conv1]:0
\t                SOFTSIGN\t    0.020\t    0.010\t  5.000%\t 55.000%\t     0.000\t        1\t[odd]:1
\t         FULLY_CONNECTED\t    0.020\t    0.045\t 45.000%\t100.000%\t     0.000\t        2\t[call:0]:2

============================== Top by Computation Time ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                 CONV_2D\t    0.120\t    0.100\t 50.000%\t 50.000%\t     0.000\t        1\t[relu1;conv1]:0

Number of nodes executed: 3
"""

TFLITE_CSV = """============================== Run Order ==============================
node type, start, first, avg_ms, %, cdf%, mem KB, times called, name
CONV_2D, 0.000, 0.120, 0.100, 50%, 50%, 0, 1, [relu1, conv1]:0
FULLY_CONNECTED, 0.1, 0.020, 0.045, 45%, 100%, 0, 2, [out]:2

"""

TFLITE_DELEGATED = """============================== Run Order ==============================
node type, first, avg_ms, %, cdf%, mem KB, times called, name
TfLiteXNNPackDelegate, 0.2, 0.2, 100%, 100%, 0, 1, [out]:5

Delegate internal:
============================== Run Order ==============================
node type, first, avg_ms, %, cdf%, mem KB, times called, name
Convolution (NHWC; F32) IGEMM, 0.1, 0.11, 50%, 50%, 0, 1, Delegate/Convolution (NHWC; F32) IGEMM:0
Fully Connected (NC; F32) GEMM, 0.1, 0.09, 50%, 100%, 0, 1, Delegate/Fully Connected (NC; F32) GEMM:1

"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            TFLITE_TEXT,
            [
                ("CONV_2D", "relu1;conv1", 100.0),
                ("SOFTSIGN", "odd", 10.0),
                ("FULLY_CONNECTED", "call:0", 90.0),
            ],
        ),
        (TFLITE_CSV, [("CONV_2D", "relu1, conv1", 100.0), ("FULLY_CONNECTED", "out", 90.0)]),
    ],
)
def test_tflite_tables(tmp_path: Path, text: str, expected: list[tuple[str, str, float]]):
    (tmp_path / "ops.csv").write_text(text)
    kind, operators = parse_dump(tmp_path / "ops.csv")
    assert kind == "tflite"
    assert [(one.op, one.name) for one in operators] == [(op, name) for op, name, _ in expected]
    assert [one.time_us for one in operators] == pytest.approx([time for *_, time in expected])


def test_a_tflite_delegate_is_seen_from_within(tmp_path: Path):
    (tmp_path / "ops.csv").write_text(TFLITE_DELEGATED)
    operators = parse_dump(tmp_path / "ops.csv")[1]
    assert [one.time_us for one in operators] == pytest.approx([110.0, 90.0])
    assert all(one.op.startswith(("Convolution", "Fully")) for one in operators)


# What the operators are


def operator(name: str, op: str = "", time_us: float = 10.0) -> OperatorTime:
    return OperatorTime(name, op, time_us, 1)


def test_operators_without_our_names_are_found_by_their_order():
    sample = kit_samples()[0]
    cut = kernels(sample.network, PLAIN)
    kinds = {"conv": "CONV_2D", "mean": "AVERAGE_POOL_2D", "linear": "FULLY_CONNECTED"}
    kinds |= {"add": "ADD", "relu": "RELU"}
    operators = [
        operator(f"x{place}", kinds.get(kernel.op, "OTHER"), place + 1.0) for place, kernel in enumerate(cut)
    ]
    found = attribute_operators(operators, sample.model, sample.network, cut)
    assert [timing.time_us for timing in found.timings] == [place + 1.0 for place in range(len(cut))]
    assert found.unknown == found.missing == ()


def test_unknown_operators_keep_their_time_beside_their_neighbours():
    sample = kit_samples()[0]
    cut = [kernel for kernel in kernels(sample.network, PLAIN) if kernel.macs]
    operators = [operator(kernel.nodes[0]) for kernel in cut]
    operators.insert(1, operator("mystery", "Reformat", 3.0))
    operators.insert(1, operator("strange", "HardSwish", 4.0))
    operators.append(operator("last", "Reformat", 5.0))
    found = attribute_operators(operators, sample.model, sample.network, cut)
    assert [one.name for one in found.unknown] == ["strange", "mystery", "last"]
    times = [timing.time_us for timing in found.timings]
    assert times[:2] == [14.0, 13.0]
    assert times[-1] == 15.0
    assert sum(times) == pytest.approx(sum(one.time_us for one in operators))
    assert sum(timing.operations for timing in found.timings) == len(operators)


def test_one_operator_of_two_layers_is_shared_out_by_their_arithmetic():
    sample = kit_samples()[0]
    cut = [kernel for kernel in kernels(sample.network, PLAIN) if kernel.macs]
    first, second, *rest = cut
    operators = [
        operator(f"{first.nodes[0]} || {second.nodes[0]}", "", 30.0),
        *(operator(kernel.nodes[0]) for kernel in rest),
    ]
    times = [
        timing.time_us for timing in attribute_operators(operators, sample.model, sample.network, cut).timings
    ]
    assert times[0] == pytest.approx(30.0 * first.macs / (first.macs + second.macs))
    assert times[0] + times[1] == pytest.approx(30.0)


def test_layers_that_nothing_names_are_left_out_and_listed():
    sample = kit_samples()[0]
    cut = [kernel for kernel in kernels(sample.network, PLAIN) if kernel.macs]
    found = attribute_operators(
        [operator(kernel.nodes[0]) for kernel in cut[:-1]], sample.model, sample.network, cut
    )
    assert [timing.kernel for timing in found.timings] == cut[:-1]
    assert found.missing == (cut[-1],)


def test_runs_are_the_shortest_repetition():
    assert _repeated(list("abcabcabc")) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert _repeated(list("aab")) == [[0, 1, 2]]
    assert _repeated(list("aaaa")) == [[0], [1], [2], [3]]


# Latencies


def trtexec_dumps(kit: Kit, folder: Path) -> tuple[list[Path], list[Path], list[float]]:
    """Dumps of all networks of the kit, with the sums of their layers in ms."""
    dumps, models, sums = [], [], []
    for index, entry in enumerate(kit.entries):
        layers = [
            {
                "name": kernel.nodes[0],
                "timeMs": 1.0,
                "averageMs": (1 + kernel.macs / 1e4) / 1e3,
                "percentage": 1.0,
            }
            for kernel in kernels(kit_samples()[index].network, PLAIN)
            if kernel.macs
        ]
        path = folder / f"{entry.name}.json"
        path.write_text(json.dumps([{"count": 1}, *layers]))
        dumps.append(path)
        models.append(model_of(kit, index))
        sums.append(sum(layer["averageMs"] for layer in layers))
    return dumps, models, sums


def test_without_latencies_nothing_is_fitted_or_validated(kit: Kit, tmp_path: Path):
    dumps, models, _ = trtexec_dumps(kit, tmp_path)
    profile = profile_import(dumps[:2], tmp_path / "p", models=models[:2])
    assert set(profile.fit.scales.values()) == {1.0}
    assert set(profile.fit.overheads_us.values()) == {0.0}
    assert profile.constant_us == 0
    assert profile.validation.error95 is None
    assert profile.validation.note.startswith("not validated")


def test_few_latencies_set_the_scale_and_many_validate(kit: Kit, tmp_path: Path):
    dumps, models, sums = trtexec_dumps(kit, tmp_path)
    latencies = [f"{0.8 * total!r}ms" for total in sums]
    few = profile_import(dumps[:2], tmp_path / "few", models=models[:2], latencies=latencies[:2])
    assert list(few.fit.scales.values()) == pytest.approx([0.8] * len(few.fit.scales))
    assert few.validation.error95 is None
    assert few.sources[0].teacher_latency_ms == pytest.approx(0.8 * sums[0])
    many = profile_import(dumps, tmp_path / "many", models=models, latencies=latencies)
    assert many.validation.count + len(many.validation.unpredicted) == len(dumps)
    assert load_profile(tmp_path / "many").validation.error95 is not None


@pytest.mark.parametrize("factor", [1e-3, 1e3, 0.2, 4.0])
def test_a_latency_in_another_unit_is_noticed(kit: Kit, tmp_path: Path, factor: float):
    dumps, models, sums = trtexec_dumps(kit, tmp_path)
    with pytest.raises(ProfileError, match="contradict"):
        profile_import(dumps[:1], tmp_path / "p", models=models[:1], latencies=[f"{factor * sums[0]!r}ms"])


# What cannot be used

GOOD = {
    "onnxruntime": '[{"cat": "Node", "name": "a_kernel_time", "dur": 3, "args": {"op_name": "Conv"}}]',
    "openvino": "layerName;execStatus;layerType;execType;realTime (ms);cpuTime (ms)\n"
    "a;Status.EXECUTED;Convolution;jit;0.1;0.1\n",
    "trtexec": '[{"count": 1}, {"name": "a", "timeMs": 1, "averageMs": 1, "percentage": 100}]',
    "tflite": TFLITE_CSV,
    "torch": '{"traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "aten::relu", '
    '"ts": 1, "dur": 2, "pid": 1, "tid": 1}]}',
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_tool_is_found_out_and_another_one_is_refused(tmp_path: Path, kind: str):
    path = tmp_path / "dump"
    path.write_text(GOOD[kind])
    assert parse_dump(path)[0] == kind
    assert parse_dump(path, kind)[1]
    for other in set(KINDS) - {kind}:
        with pytest.raises(ProfileError) as caught:
            parse_dump(path, other)
        assert f"not a dump of {other}" in caught.value.why
        assert caught.value.fix == f"give --kind {kind}"


BAD = {
    "empty": ("", "is empty"),
    "blank": ("\n \n", "is empty"),
    "prose": ("hello", "not a dump of a tool that is known"),
    "an empty list": ("[]", "not a dump of a tool that is known"),
    "cut off": (GOOD["trtexec"][:-10], "not a dump of a tool that is known"),
    "deep": ("[" * 100_000, "not a dump of a tool that is known"),
    "no times": ('[{"cat": "Session", "name": "model_run", "dur": 3}]', "has no operator with a time"),
    "not a number": (GOOD["trtexec"].replace('"averageMs": 1', '"averageMs": NaN'), "the time nan"),
    "endless": (GOOD["trtexec"].replace('"averageMs": 1', '"averageMs": 1e999'), "the time inf"),
    "negative": (GOOD["onnxruntime"].replace("3", "-3"), "the time -3"),
    "all zero": (GOOD["onnxruntime"].replace("3", "0"), "times are 0"),
    "text for a time": (GOOD["onnxruntime"].replace("3", '"x"'), "damaged: ValueError"),
    "no operator": (GOOD["onnxruntime"].replace('"op_name"', '"op"'), "damaged: KeyError"),
    "a number for an event": (GOOD["onnxruntime"].replace("]", ", 3]"), "damaged"),
    "a short line": (GOOD["openvino"] + "a;b;c\n", "line 3 has 3 cells"),
    "a short row": (TFLITE_CSV.replace(", 1, [relu1, conv1]:0", ""), "damaged"),
    "no duration": (GOOD["torch"].replace('"dur": 2, ', ""), "damaged"),
    "a year": (GOOD["trtexec"].replace('"averageMs": 1', '"averageMs": 1e10'), "µs"),
}


@pytest.mark.parametrize("name", BAD)
def test_dumps_that_are_refused(tmp_path: Path, name: str):
    text, why = BAD[name]
    (tmp_path / "dump").write_text(text)
    with pytest.raises(ProfileError) as caught:
        parse_dump(tmp_path / "dump")
    assert why in caught.value.why
    assert caught.value.where == str(tmp_path / "dump")


def test_a_byte_order_mark_is_read_over_and_other_encodings_are_refused(tmp_path: Path):
    path = tmp_path / "dump"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD["trtexec"].encode())
    assert parse_dump(path)[0] == "trtexec"
    path.write_bytes(GOOD["trtexec"].encode("utf-16"))
    with pytest.raises(ProfileError) as caught:
        parse_dump(path)
    assert "UTF-8" in caught.value.why


def test_a_huge_file_is_not_read(tmp_path: Path):
    with (tmp_path / "dump").open("wb") as file:
        file.truncate(1024**3)
    with pytest.raises(ProfileError) as caught:
        parse_dump(tmp_path / "dump")
    assert "1,024 MiB" in caught.value.why
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ProfileError):
            parse_dump(path)


def test_too_many_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(imports, "MOST_OPERATORS", 2)
    (tmp_path / "dump").write_text(trtexec(["a", "b", "c"]))
    with pytest.raises(ProfileError):
        parse_dump(tmp_path / "dump")


def test_every_tool_has_a_parser_of_the_contract():
    for kind in KINDS:
        parser = get_parser(kind)
        assert isinstance(parser.RUNTIME, str)
        assert callable(parser.recognises)
        assert callable(parser.parse)
    with pytest.raises(ProfileError, match="'perf'"):
        get_parser("perf")


def test_commands_end_with_code_2(kit: Kit, tmp_path: Path):
    dump = tmp_path / "layers.json"
    dump.write_text(trtexec(names_of(0)))
    other = tmp_path / "other.json"
    other.write_text(trtexec(["conv_of_another_network"]))
    small = tmp_path / "model.onnx"
    small.write_bytes(kit_samples()[0].model)
    model, out = ["--model", str(model_of(kit, 0))], ["-o", str(tmp_path / "p")]
    for arguments, word in (
        ([str(dump)], "--model"),
        ([str(dump), *model, "--teacher", "timm:resnet18"], "--model"),
        ([str(dump), *model, *model], "1 dumps and 2 times --model"),
        ([str(dump), *model, "--latency", "1ms", "--latency", "1ms"], "2 times --latency"),
        ([str(dump), *model, "--latency", "40%"], "not a latency"),
        ([str(dump), *model, "--latency", "fast"], "fast"),
        ([str(dump), *model, "--kind", "tflite"], "give --kind trtexec"),
        ([str(dump), "--model", str(small)], "not a model of a kit"),
        ([str(dump), "--model", str(dump)], "cannot be read"),
        ([str(dump), "--model", str(tmp_path / "none.onnx")], "missing"),
        ([str(other), *model], "does not fit the model"),
        ([str(tmp_path / "none.json"), *model], "no file"),
    ):
        found = CliRunner().invoke(main, ["profile", "import", *arguments, *out])
        assert found.exit_code == 2, found.output
        assert found.output.count("error: ") == 1
        assert word in found.output
    assert not (tmp_path / "p").exists()


def test_the_command_lists_unknown_operators(kit: Kit, tmp_path: Path):
    dump = tmp_path / "layers.json"
    dump.write_text(trtexec(["mystery", *names_of(0)]))
    arguments = ["profile", "import", str(dump), "--model", str(model_of(kit, 0)), "-o", str(tmp_path / "p")]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0, found.output
    assert "unknown operator, counted with its neighbour: mystery, 1 times, 100 µs" in found.output
