"""The model card of a student: the README.md of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autocompress.reporting.units import (
    COSTS,
    UNKNOWN,
    accuracy,
    cost,
    interval_ms,
    known,
    milliseconds,
    percent,
    plain,
    points,
    quantity,
    ratio,
    significant,
    size,
)

_KINDS = {
    "width": "share of the channels kept",
    "rank": "rank of the factors, as a share of the full one",
    "bits": "bits of the weights; activations have 8 where weights have fewer than 32, 1 at `xnor`",
    "block": "form of the block",
    "structure": "form of the layer's matrix",
    "merge": "merged with the layer behind it",
    "sparsity": "share or pattern of the weights that are not zero",
    "codebook": "values that its weights share",
}


def student_card(spec: Mapping[str, Any], bench: Mapping[str, Any]) -> str:
    """Markdown about a student, out of what `spec.json` and `bench.json` hold; see `campaign`."""
    sections = (
        _introduction(spec, bench),
        _budgets(bench),
        _numbers(bench),
        _loading(spec, bench),
        _measurement(bench),
        _decisions(spec),
        _classes(spec),
        _limitations(bench),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _introduction(spec: Mapping[str, Any], bench: Mapping[str, Any]) -> str:
    student = bench["student"]
    state = "certified" if student.get("certified") else "**not certified**: it breaks a budget"
    return (
        f"# Student {_code(student['key'])}\n\n"
        f"A compressed image classifier ({plain(spec.get('num_classes'))} classes), distilled from "
        f"{_code(spec.get('teacher'))} on {_code(spec.get('data'))} by autocompress. It is {state}."
    )


def _budgets(bench: Mapping[str, Any]) -> str:
    given = {name: limit for name, limit in (bench.get("limits") or {}).items() if known(limit)}
    if not given:
        return ""
    rows = [
        (
            COSTS.get(name, name),
            f"≤ {cost(name, limit)}",
            _against_limit(name, bench["student"]),
            "**broken**" if name in (bench.get("violated") or ()) else "kept",
        )
        for name, limit in given.items()
    ]
    return "## Budgets\n\n" + _table(("budget", "limit", "student", ""), rows)


def _against_limit(name: str, student: Mapping[str, Any]) -> str:
    text = cost(name, student.get(name))
    if name != "latency_ms" or not student.get("latency_ms_ci95"):
        return text
    return f"{text}, upper end of the interval {milliseconds(student['latency_ms_ci95'][1])}"


def _numbers(bench: Mapping[str, Any]) -> str:
    student, teacher = bench["student"], bench.get("teacher") or {}
    rows = [
        ("accuracy", accuracy(teacher), accuracy(student), f"{_points(student, teacher)} points"),
        ("latency", _latency(teacher), _latency(student), _less("latency_ms", student, teacher, "faster")),
    ]
    for name, label, text, word in (
        ("peak_memory_bytes", "memory of activations and weights", size, "less"),
        ("file_bytes", "file `model.onnx`", size, "smaller"),
        ("packed_bytes", "weights, coded where `student.acz` is", size, "smaller"),
        ("macs", "multiply-adds of one example", quantity, "fewer"),
        ("parameters", "parameters", quantity, "fewer"),
    ):
        rows.append(
            (label, text(teacher.get(name)), text(student.get(name)), _less(name, student, teacher, word))
        )
    source = bench.get("accuracy_from", "validation")
    note = f"Accuracy is on {source} data, with its standard error"
    if source != "test":
        note += "; the search chose by the same data, so expect slightly less on new data"
    return (
        "## Numbers\n\n"
        + _table(("", "teacher", "student", "difference"), rows)
        + f"\n\n{note}. Both were computed from the exported files by the runtime. Latency is of one run "
        f"of batch {bench.get('batch', 1)}, with its 95 % interval. Memory is computed from the network."
    )


def _points(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    return points(student.get("accuracy"), teacher.get("accuracy"))


def _latency(record: Mapping[str, Any]) -> str:
    return f"{milliseconds(record.get('latency_ms'))} {interval_ms(record.get('latency_ms_ci95'))}"


def _less(name: str, student: Mapping[str, Any], teacher: Mapping[str, Any], word: str) -> str:
    times = ratio(teacher.get(name), student.get(name))
    return UNKNOWN if times == UNKNOWN else f"{times} {word}"


def _loading(spec: Mapping[str, Any], bench: Mapping[str, Any]) -> str:
    mean, std = list(spec.get("mean") or ()), list(spec.get("std") or ())
    threads, batch = bench.get("threads", 1), bench.get("batch", 1)
    return f"""## Use

Images are float32 `(N, C, H, W)`, normalised per channel: `(x / 255 - mean) / std` for 8-bit pixels `x`, with
mean {mean} and std {std}.

```python
import autocompress as ac
import torch

mean = torch.tensor({mean}).view(1, -1, 1, 1)
std = torch.tensor({std}).view(1, -1, 1, 1)
model = ac.load("path/to/this/folder")  # a torch.nn.Module in eval mode; the teacher is not needed
with torch.no_grad():
    scores = model((pixels / 255 - mean) / std)  # pixels: (N, C, H, W)
```

Without autocompress or torch:

```python
import numpy as np
import onnxruntime

mean = np.array({mean}, np.float32).reshape(1, -1, 1, 1)
std = np.array({std}, np.float32).reshape(1, -1, 1, 1)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}
session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
scores = session.run(None, {{name: ((pixels / 255 - mean) / std).astype(np.float32)}})[0]  # N = {batch}
```"""


def _measurement(bench: Mapping[str, Any]) -> str:
    measured, parity = bench.get("measurement") or {}, bench.get("parity") or {}
    device = bench.get("device") or {}
    runtime = f"{bench.get('runtime', UNKNOWN)} {device.get('version', '')}".strip()
    rows = [
        ("runtime", runtime),
        ("threads", plain(bench.get("threads"))),
        ("batch", plain(bench.get("batch"))),
    ]
    if device.get("cpu"):
        rows.append(("processor", plain(device["cpu"])))
    rows += [
        ("runs", plain(measured.get("runs"))),
        ("blocks of runs", plain(len(measured.get("block_medians_ms") or ()) or None)),
        ("median of block medians", milliseconds(measured.get("latency_ms"))),
        ("95 % interval (bootstrap over blocks), ms", interval_ms(measured.get("latency_ms_ci95"))),
        ("90th, 95th, 99th percentile", _percentiles(measured)),
        ("spread of the block medians", percent(measured.get("spread"))),
    ]
    if known(measured.get("reference_drift")):
        rows.append(("drift of the teacher, timed in between", percent(measured["reference_drift"])))
    if parity:
        rows += [
            ("largest difference to the torch module, of the output range", _share(parity.get("max_error"))),
            ("same best class as the torch module", percent(parity.get("agreement"), 1)),
        ]
    return (
        "## How it was measured\n\n"
        "In a fresh process, pinned, after a warm-up, in blocks of runs in random order. "
        "`autocompress bench` measures this folder again; `bench.json` holds every number.\n\n"
        + _table(("", ""), rows)
    )


def _percentiles(measured: Mapping[str, Any]) -> str:
    return ", ".join(milliseconds(measured.get(f"p{percentile}_ms")) for percentile in (90, 95, 99))


def _share(value: Any) -> str:
    return f"{significant(100 * value, 2)} %" if known(value) else UNKNOWN


def _decisions(spec: Mapping[str, Any]) -> str:
    choices = spec.get("choices") or {}
    if not choices:
        return "## Decisions\n\nEvery layer is as in the teacher."
    rows = []
    for name, option in sorted(choices.items()):
        kind, _, target = name.partition(":")
        rows.append((_code(target), _KINDS.get(kind, kind), plain(option)))
    return "## Decisions\n\nWhat is not listed is as in the teacher.\n\n" + _table(
        ("layers", "decision", "choice"), rows
    )


def _classes(spec: Mapping[str, Any]) -> str:
    names = list(spec.get("class_names") or ())
    if not names:
        return ""
    shown = ", ".join(f"{index} {_code(name)}" for index, name in enumerate(names[:20]))
    rest = f", and {len(names) - 20} more in `spec.json`" if len(names) > 20 else ""
    return f"## Classes\n\n{shown}{rest}"


def _limitations(bench: Mapping[str, Any]) -> str:
    threads = plain(bench.get("threads"))
    return (
        "## Limits\n\n"
        f"- Latency holds for the device above with {threads} thread(s); measure it again elsewhere.\n"
        "- Memory is weights plus the activations alive at once, without the runtime's own.\n"
        "- It knows no more than its training data, and it inherits the teacher's mistakes. Its accuracy on "
        "other data, and on single classes, was not examined."
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(value: Any) -> str:
    """A name as code; nothing in it can end the code or the line."""
    return "`" + " ".join(plain(value).replace("`", "'").split()) + "`"
