"""The model card of a student: the README.md of its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autocompress.device.measure.statistics import Measurement
from autocompress.files import JsonObject
from autocompress.problem.candidate import Option
from autocompress.reporting.units import (
    COSTS,
    UNKNOWN,
    accuracy,
    beside_teacher,
    capital,
    cost,
    cost_of,
    interval_ms,
    known,
    less,
    milliseconds,
    percent,
    plain,
    quantity,
    significant,
    size,
)
from autocompress.runs.certificate import Certificate
from autocompress.runs.student import Student

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


_COUNTS: tuple[tuple[str, str, Callable[[float | None], str], str], ...] = (
    ("peak_memory_bytes", "memory of activations and weights", size, "less"),
    ("file_bytes", "file `model.onnx`", size, "smaller"),
    ("packed_bytes", "weights, coded where `student.acz` is", size, "smaller"),
    ("macs", "multiply-adds of one example", quantity, "fewer"),
    ("parameters", "parameters", quantity, "fewer"),
)
"""(cost, what it is, how it is shown, the word for less of it)."""


CLASSIFICATION = "classification"


@dataclass(frozen=True)
class Origin:
    """Say what a student was made of, and what its images are normalised with."""

    teacher: str
    data: str
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    choices: Mapping[str, Option]
    task: str = CLASSIFICATION

    @classmethod
    def from_json(cls, spec: JsonObject) -> Origin:
        """Return what a student's `spec.json` says of it. Raises KeyError where it lacks something."""
        return cls(
            spec["teacher"],
            spec["data"],
            spec["num_classes"],
            tuple(spec["class_names"]),
            tuple(spec["mean"]),
            tuple(spec["std"]),
            dict(spec["choices"]),
            spec.get("task", CLASSIFICATION),
        )


def student_card(origin: Origin, certificate: Certificate) -> str:
    """Return Markdown about a student: what it is, what was measured of it and how, and its limits."""
    sections = (
        _introduction(origin, certificate.student),
        _budgets(certificate),
        _numbers(certificate),
        _loading(origin, certificate),
        _measurement(certificate),
        _decisions(origin),
        _classes(origin),
        _limitations(certificate),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _introduction(origin: Origin, student: Student) -> str:
    state = "certified" if student.certified else "**not certified**: it breaks a budget"
    return (
        f"# Student {_code(student.key)}\n\n"
        f"{_kind(origin)}, distilled from "
        f"{_code(origin.teacher)} on {_code(origin.data)} by autocompress. It is {state}."
    )


def _kind(origin: Origin) -> str:
    if origin.task == CLASSIFICATION:
        return f"A compressed image classifier ({origin.num_classes} classes)"
    return f"A compressed network for {origin.task}"


def _budgets(certificate: Certificate) -> str:
    rows = [
        (
            COSTS[name],
            f"≤ {cost(name, limit)}",
            _against_limit(name, certificate.student),
            "**broken**" if name in certificate.violated else "kept",
        )
        for name, limit in certificate.limits.as_dict.items()
    ]
    return "## Budgets\n\n" + _table(("budget", "limit", "student", ""), rows)


def _against_limit(name: str, student: Student) -> str:
    text = cost(name, cost_of(student, name))
    if name != "latency_ms":
        return text
    return f"{text}, upper end of the interval {milliseconds(student.latency_ms_ci95[1])}"


def _numbers(certificate: Certificate) -> str:
    student, teacher = certificate.student, certificate.teacher
    rows = [
        (student.metric.name, accuracy(teacher), accuracy(student), beside_teacher(student, teacher)),
        ("latency", _latency(teacher), _latency(student), _less("latency_ms", certificate, "faster")),
    ]
    rows += [
        (label, text(cost_of(teacher, name)), text(cost_of(student, name)), _less(name, certificate, word))
        for name, label, text, word in _COUNTS
    ]
    source = student.accuracy_from
    note = f"{capital(student.metric.name)} is on {source} data, with its standard error"
    if source != "test":
        note += "; the search chose by the same data, so expect slightly less on new data"
    return (
        "## Numbers\n\n"
        + _table(("", "teacher", "student", "difference"), rows)
        + f"\n\n{note}. Both were computed from the exported files by the runtime. Latency is of one run "
        f"of batch {certificate.batch}, with its 95 % interval. Memory is computed from the network."
    )


def _latency(model: Student) -> str:
    return f"{milliseconds(model.latency_ms)} {interval_ms(model.latency_ms_ci95)}"


def _less(name: str, certificate: Certificate, word: str) -> str:
    times = less(certificate.teacher, certificate.student, name)
    return UNKNOWN if times == UNKNOWN else f"{times} {word}"


def _loading(origin: Origin, certificate: Certificate) -> str:
    mean, std, batch = list(origin.mean), list(origin.std), certificate.batch
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
options.intra_op_num_threads = {certificate.threads}
session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
scores = session.run(None, {{name: ((pixels / 255 - mean) / std).astype(np.float32)}})[0]  # N = {batch}
```"""


def _measurement(certificate: Certificate) -> str:
    measured = Measurement.from_json(dict(certificate.measurement))
    return (
        "## How it was measured\n\n"
        "In a fresh process, pinned, after a warm-up, in blocks of runs in random order. "
        "`autocompress bench` measures this folder again; `bench.json` holds every number.\n\n"
        + _table(("", ""), [*_device(certificate), *_timing(measured), *_parity(certificate.parity)])
    )


def _device(certificate: Certificate) -> list[tuple[str, str]]:
    device = certificate.device
    rows = [
        ("runtime", f"{certificate.runtime} {device.get('version', '')}".strip()),
        ("threads", str(certificate.threads)),
        ("batch", str(certificate.batch)),
    ]
    return [*rows, ("processor", plain(device["cpu"]))] if device.get("cpu") else rows


def _timing(measured: Measurement) -> list[tuple[str, str]]:
    percentiles = (measured.p90_ms, measured.p95_ms, measured.p99_ms)
    rows = [
        ("runs", str(measured.runs)),
        ("blocks of runs", str(len(measured.block_medians_ms))),
        ("median of block medians", milliseconds(measured.latency_ms)),
        ("95 % interval (bootstrap over blocks), ms", interval_ms(measured.latency_ms_ci95)),
        ("90th, 95th, 99th percentile", ", ".join(map(milliseconds, percentiles))),
        ("spread of the block medians", percent(measured.spread)),
    ]
    if known(measured.reference_drift):
        rows.append(("drift of the teacher, timed in between", percent(measured.reference_drift)))
    return rows


def _parity(parity: Mapping[str, float] | None) -> list[tuple[str, str]]:
    if not parity:
        return []
    return [
        ("largest difference to the torch module, of the output range", _share(parity["max_error"])),
        ("same best class as the torch module", percent(parity["agreement"], 1)),
    ]


def _share(value: float) -> str:
    return f"{significant(100 * value, 2)} %" if known(value) else UNKNOWN


def _decisions(origin: Origin) -> str:
    if not origin.choices:
        return "## Decisions\n\nEvery layer is as in the teacher."
    rows = []
    for name, option in sorted(origin.choices.items()):
        kind, _, target = name.partition(":")
        rows.append((_code(target), _KINDS.get(kind, kind), plain(option)))
    return "## Decisions\n\nWhat is not listed is as in the teacher.\n\n" + _table(
        ("layers", "decision", "choice"), rows
    )


def _classes(origin: Origin) -> str:
    names = origin.class_names
    if not names:
        return ""
    shown = ", ".join(f"{index} {_code(name)}" for index, name in enumerate(names[:20]))
    rest = f", and {len(names) - 20} more in `spec.json`" if len(names) > 20 else ""
    return f"## Classes\n\n{shown}{rest}"


def _limitations(certificate: Certificate) -> str:
    return (
        "## Limits\n\n"
        f"- Latency holds for the device above with {certificate.threads} thread(s); measure it again "
        "elsewhere.\n"
        "- Memory is weights plus the activations alive at once, without the runtime's own.\n"
        f"- It knows no more than its training data, and it inherits the teacher's mistakes. Its "
        f"{certificate.student.metric.name} on other data, and on single classes, was not examined."
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(name: str) -> str:
    """Return a name as code; nothing in it can end the code or the line."""
    return "`" + " ".join(plain(name).replace("`", "'").split()) + "`"
