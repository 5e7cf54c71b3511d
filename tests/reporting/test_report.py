"""What the tables, the card and the HTML say equals what was recorded."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from report_run import LIMITS, STUDENTS, TEACHER, cost, started, student, trials, whole_run, write_run

from autocompress.api import Inspection
from autocompress.device.profile.validation import Validation
from autocompress.device.runtimes.description import DeviceDescription
from autocompress.errors import RunError
from autocompress.problem.budgets import Limits
from autocompress.problem.candidate import Cost, Site
from autocompress.reporting import charts, profile_tables, units
from autocompress.reporting import tables as table
from autocompress.reporting.card import Origin, student_card
from autocompress.reporting.html import elapsed, letters, render, write_report
from autocompress.reporting.inspection_tables import inspection_table
from autocompress.reporting.rows import strength
from autocompress.reporting.svg import Scale, element
from autocompress.runs.certificate import Certificate
from autocompress.runs.front import front_of
from autocompress.runs.store import read_run
from autocompress.runs.student import Student

KINDS_OF_TRIALS = ("trial_finished", "trial_failed", "trial_infeasible")
EVIL = '<script>alert("x")</script>'
BEST = Student.from_json(STUDENTS[0][0])
BROKEN = Student.from_json(STUDENTS[4][0])
MEASUREMENT = {
    "latency_ms": 0.4321, "latency_ms_ci95": [0.43, 0.4343],
    "p90_ms": 0.45, "p95_ms": 0.47, "p99_ms": 0.5,
    "runs": 8123, "block_medians_ms": [0.43] * 7, "spread": 0.0123, "reference_drift": 0.002,
}  # fmt: skip


def text_of(renderable: Any, width: int = 80) -> str:
    from rich.console import Console

    console = Console(width=width, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


class _Reader(HTMLParser):
    """Open tags and attributes of a document; fails where a tag is closed that is not open."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_numbers_keep_their_significant_digits() -> None:
    assert [units.significant(value) for value in (0.04321, 0.5, 1.482, 12.34, 1234.5, 0)] == [
        "0.0432", "0.500", "1.48", "12.3", "1234", "0",
    ]  # fmt: skip
    assert [units.quantity(value) for value in (950, 12_345, 41_100_000, 2e9)] == [
        "950",
        "12.3 k",
        "41.1 M",
        "2.00 G",
    ]
    assert units.size(512 * 1024) == "512 KiB"
    teacher = Student.from_json(TEACHER)
    assert units.points(BEST, teacher) == "+0.28"
    assert units.points(replace(BEST, accuracy=0.9583), teacher) == "−1.11"
    assert units.ratio(1.482, 0.4321) == "3.4×"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "x", True])
def test_what_is_not_known_is_a_dash(value: Any) -> None:
    formats = (units.significant, units.milliseconds, units.size, units.quantity, units.percent)
    assert {show(value) for show in formats} == {"–"}
    assert units.ratio(1.0, value) == "–"
    unknown = replace(BEST, accuracy=value, file_bytes=value)
    assert units.accuracy(unknown) == "–"
    assert units.points(BEST, unknown) == units.points(unknown, BEST) == "–"
    assert units.cost_of(unknown, "file_bytes") is None


def test_what_was_not_recorded_is_a_dash() -> None:
    assert units.size(units.cost_of(BEST, "packed_bytes")) == "–"
    assert units.less(BEST, replace(BEST, packed_bytes=100), "packed_bytes") == "–"
    assert units.accuracy(None) == units.points(BEST, None) == "–"
    assert units.limits(None) == ""


def test_front_table_has_the_recorded_numbers_in_80_columns(tmp_path: Path) -> None:
    front = front_of(read_run(whole_run(tmp_path / "run")))
    text = text_of(table.front_table(front))
    for expected in (
        "96.94 ± 0.91",
        "97.22 ± 0.87",
        "+0.28 points",
        "0.432 ms 3.4×",
        "[0.430, 0.434]",
        "41.1 M",
    ):
        assert expected in text
    assert "latency ≤ 0.500 ms, file size ≤ 512 KiB" in text
    assert "…" not in text
    assert [key for key in ("a1b2c3d4e5f6", "badc0ffee000") if key in text] == ["a1b2c3d4e5f6"]
    assert "1 measured student that broke a budget" in text


def test_a_narrow_terminal_cuts_nothing_off_the_front_table(tmp_path: Path) -> None:
    front = front_of(read_run(whole_run(tmp_path / "run")))
    narrow, wide = (text_of(table.front_table(front), width=width) for width in (60, 110))
    assert "…" not in narrow and max(map(len, narrow.splitlines())) <= 60
    assert sorted("".join(narrow.split()).replace("─", "")) == sorted("".join(wide.split()).replace("─", ""))


def test_front_table_without_students(tmp_path: Path) -> None:
    text = text_of(table.front_table(front_of(read_run(write_run(tmp_path / "run", [started()])))))
    assert "no certified student; 0 measured" in text
    assert "96.94" in text


def test_inspection_of_many_sites_shares_rows() -> None:
    free = [
        Site(
            f"width:layer{stage}.{index}.conv1", "width", f"layer{stage}.{index}.conv1", (0.25, 0.5, 1.0), 1.0
        )
        for stage in range(1, 5)
        for index in range(25)
    ]
    locked = Site("width:fc", "width", "fc", (1.0,), 1.0, locked="gives the [red]classes[/]")
    dropped = tuple((f"rank:layer{i}.conv", 0.75, f"saves {i} bytes only") for i in range(3))
    inspection = Inspection(
        (*free, locked), dropped, 47.7,
        Cost(1.5, (1.4, 1.6), 1 << 21, 1 << 22, 1, 1), Cost(0.05, (0.04, 0.06), 1 << 17, 1 << 15, 1, 1),
    )  # fmt: skip
    text = text_of(inspection_table(inspection), 100)
    assert "layer[1-4].[0-24].conv1" in text
    assert "100 decisions at 101 sites, 10^47.7 candidates" in text
    assert "gives the [red]classes[/]" in text
    assert "layer[0-2].conv" in text and "saves 0 bytes only (and the like)" in text
    assert "1.50 ms" in text and "0.0500 ms" in text and "30×" in text and "128×" in text
    assert len(text.splitlines()) < 40


def test_patterns_name_what_differs() -> None:
    assert table.patterns(["a.0.b", "a.1.b", "a.3.b", "fc"]) == ["a.[0-1,3].b", "fc"]
    assert table.patterns(["layer1.conv2"]) == ["layer1.conv2"]
    assert table.patterns([]) == []


def test_profile_table_says_how_well_it_predicts() -> None:
    profile = SimpleNamespace(
        name="cpu-1",
        runtime="onnxruntime",
        threads=2,
        batch=1,
        table=SimpleNamespace(rows=range(345)),
        sources=[SimpleNamespace(network="resnet20", space="joint", input_shape=(1, 3, 32, 32))],
        device=DeviceDescription({"cpu": "[Xeon]", "features": ["AVX2"], "version": "1.32.0"}),
        validation=Validation(count=12, mean_error=0.031, within_5_percent=0.75),
    )
    text = text_of(profile_tables.profile_table(profile))
    for expected in (
        "cpu-1",
        "onnxruntime",
        "[Xeon]",
        "AVX2",
        "1.32.0",
        "345",
        "resnet20",
        "3.1 %",
        "75.0 %",
    ):
        assert expected in text
    assert "rank correlation" not in text
    profile.validation = Validation()
    assert "no network was held out" in text_of(profile_tables.profile_table(profile))


def test_bench_doctor_and_status_tables() -> None:
    bench = {
        "student": "abc",
        "measured": {**MEASUREMENT, "latency_ms": 0.4, "latency_ms_ci95": [0.39, 0.41]},
        "recorded": MEASUREMENT,
        "latency_ms": 0.4,
        "recorded_latency_ms": 0.41,
        "ratio": 0.9756,
        "limits": LIMITS,
        "violated": ["file_bytes"],
        "within_budget": False,
    }
    text = text_of(table.bench_table(bench))
    assert "0.400 ms [0.390, 0.410]" in text and "0.432 ms [0.430, 0.434]" in text and "0.470 ms" in text
    assert "0.976×" in text and "broken: file size" in text
    assert "latency ≤ 0.500 ms, file size ≤ 512 KiB" in text
    assert "kept" in text_of(table.bench_table({**bench, "violated": []}))
    doctor = {"cpu": "[bold]X", "memory_bytes": 1 << 33, "packages": {"torch": None}, "problems": ["[noisy]"]}
    text = text_of(table.doctor_table(doctor))
    assert "[bold]X" in text and "8 GiB" in text and "not installed" in text and "[noisy]" in text
    status = {
        "run": "runs/a",
        "counts": {"finished": 7},
        "decisions": ["[d]"],
        "certified": 2,
        "damaged": [9],
        "finished": False,
        "exit_code": None,
    }
    text = text_of(table.status_table(status))
    assert "runs/a" in text and "7" in text and "[d]" in text and "line 9" in text and "under way" in text
    assert "exit code 3" in text_of(table.status_table({**status, "finished": True, "exit_code": 3}))


ORIGIN = Origin(
    teacher="timm:resnet20|x",
    data="digits",
    num_classes=3,
    class_names=("cat", "d`o|g\n", "emu"),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    choices={"width:layer1.0.conv1": 0.5, "block:layer2.0": "drop"},
)
CERTIFICATE = Certificate(
    student=replace(BEST, accuracy_from="test"),
    teacher=Student.from_json(TEACHER),
    limits=Limits.from_json(LIMITS),
    violated=(),
    measurement=MEASUREMENT,
    parity={"max_error": 0.0123, "mean_error": 0.001, "agreement": 1.0, "examples": 64},
    runtime="onnxruntime",
    threads=2,
    batch=1,
    device={"cpu": "Xeon", "version": "1.32.0"},
)


def test_card_says_what_was_measured() -> None:
    text = student_card(ORIGIN, CERTIFICATE)
    for expected in (
        "# Student `a1b2c3d4e5f6`",
        "| accuracy | 96.94 ± 0.91 % | 97.22 ± 0.87 % | +0.28 points |",
        "| latency | 1.48 ms [1.47, 1.49] | 0.432 ms [0.430, 0.434] | 3.4× faster |",
        "| file `model.onnx` | 4 MiB | 328 KiB | 13× smaller |",
        "| latency | ≤ 0.500 ms | 0.432 ms, upper end of the interval 0.434 ms | kept |",
        "Accuracy is on test data",
        "mean [0.5, 0.4, 0.3] and std [0.2, 0.25, 0.3]",
        "options.intra_op_num_threads = 2",
        "| runtime | onnxruntime 1.32.0 |",
        "| weights, coded where `student.acz` is | – | – | – |",
        "| runs | 8123 |",
        "| blocks of runs | 7 |",
        "| 90th, 95th, 99th percentile | 0.450 ms, 0.470 ms, 0.500 ms |",
        "| drift of the teacher, timed in between | 0.20 % |",
        "| largest difference to the torch module, of the output range | 1.2 % |",
        "| same best class as the torch module | 100.0 % |",
        "| `layer1.0.conv1` | share of the channels kept | 0.5 |",
        "| `layer2.0` | form of the block | drop |",
        "`d'o|g`",
    ):
        assert expected in text, expected
    assert "It is certified." in text


def test_card_is_of_what_the_folder_holds() -> None:
    spec = json.loads(json.dumps({**vars(ORIGIN), "network": {}}))
    again = Certificate.from_json(json.loads(json.dumps(CERTIFICATE.to_json())))
    assert student_card(Origin.from_json(spec), again) == student_card(ORIGIN, CERTIFICATE)


def test_card_python_compiles() -> None:
    blocks = re.findall(r"```python\n(.*?)```", student_card(ORIGIN, CERTIFICATE), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")


def test_card_names_a_broken_budget_and_validation_data() -> None:
    student = replace(BROKEN, accuracy_from="validation")
    certificate = replace(CERTIFICATE, student=student, violated=("latency_ms",), parity=None)
    text = student_card(replace(ORIGIN, choices={}), certificate)
    assert "**not certified**" in text
    assert "| **broken** |" in text
    assert "Accuracy is on validation data" in text and "expect slightly less" in text
    assert "Every layer is as in the teacher." in text


def test_report_has_the_recorded_numbers(tmp_path: Path) -> None:
    root = whole_run(tmp_path / "digits")
    path = write_report(root)
    assert path == root / "report.html"
    html = path.read_text(encoding="utf-8")
    reader = _Reader(html)
    assert reader.open == []
    texts = set(reader.texts)
    for record, _ in STUDENTS:
        found = Student.from_json(record)
        assert {found.key, units.accuracy(found), units.milliseconds(found.latency_ms)} <= texts
        assert units.size(found.file_bytes) in texts
    assert {"96.94 ± 0.91 %", "breaks latency", "certified, beaten by another", "3.4×", "13×"} <= texts
    counts = read_run(root).counts
    assert {str(counts["finished"]), str(counts["infeasible"]), "4 of 5"} <= texts
    assert "starting from 6 candidates" in texts and "0:00:02" in texts
    assert "its accuracy or loss is not a finite number" in texts
    assert not list(root.glob(".report*"))


def test_report_asks_for_nothing(tmp_path: Path) -> None:
    html = render(read_run(whole_run(tmp_path / "run")))
    assert "//" not in html.replace("/*", "").split("<main>")[0].replace("<!", "")
    assert not re.search(r"https?:|@import|url\(|<script|<link|<img|<iframe", html)
    attributes = [set(attributes) for _, attributes in _Reader(html).tags]
    assert not any({"src", "href", "xlink:href"} & found for found in attributes)
    assert "default-src 'none'" in html


def test_every_drawing_has_a_name_and_axes_with_units(tmp_path: Path) -> None:
    reader = _Reader(render(read_run(whole_run(tmp_path / "run"))))
    named = [found for tag, found in reader.tags if tag == "svg" and found.get("role") == "img"]
    assert len(named) == 5
    assert all(found["aria-label"] for found in named)
    assert {"latency, ms", "accuracy, %", "file size, KiB", "peak memory, KiB", "predicted, ms"} <= set(
        reader.texts
    )
    assert {"budget 0.500 ms", "budget 512 KiB"} <= set(reader.texts)


def test_report_escapes_everything(tmp_path: Path) -> None:
    record = student(EVIL, 0.9, 0.3, 0.1, True)
    free = {"name": f"width:{EVIL}", "kind": EVIL, "options": [EVIL, 1.0], "locked": ""}
    locked = {"name": EVIL, "kind": "bits", "options": [32], "locked": EVIL}
    start = {**started(), "sites": [free, locked]}
    trial = {**trials(1)[0], "candidate": EVIL, "choices": {f"width:{EVIL}": EVIL}}
    failed = {"event": "trial_failed", "trial": 7, "candidate": EVIL, "choices": {}, "reason": EVIL}
    left_out = {"event": "trial_infeasible", "trial": 8, "candidate": "c", "choices": {},
                "predicted": trial["predicted"], "violated": [EVIL]}  # fmt: skip
    certified = {
        "event": "certified",
        "candidate": EVIL,
        "student": record,
        "violated": [EVIL],
    }
    events = [start, {"event": "decision", "text": EVIL}, trial, failed, left_out, certified]
    root = write_run(tmp_path / "run", events, config=f"teacher: '{EVIL}'\n")
    html = render(read_run(root))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 8
    assert _Reader(html).open == []


@pytest.mark.parametrize(
    "events",
    [
        [],
        [started()],
        [started(), {"event": "run_finished", "exit_code": 3}],
        [started(), *[event for event in trials(40) if event["event"] != "trial_finished"]],
        [started(), *trials(1)],
        trials(20),
    ],
    ids=["nothing", "teacher", "nothing feasible", "none trained", "one trial", "no teacher"],
)
def test_runs_in_which_little_happened(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    root = write_run(tmp_path / "run", events)
    html = write_report(root).read_text(encoding="utf-8")
    assert _Reader(html).open == []
    assert "No student is certified" in html
    assert text_of(table.front_table(front_of(read_run(root))))
    for value in re.findall(r"nan|inf\b", html.split("<main>")[1]):
        pytest.fail(f"{value} in the report")


def test_one_student_and_equal_values(tmp_path: Path) -> None:
    record = student("only", 1.0, TEACHER["latency_ms"], 1.0, True)
    event = {"event": "certified", "candidate": "only", "student": record, "violated": []}
    start = {**started(), "teacher": {**TEACHER, "accuracy": 1.0}}
    html = render(read_run(write_run(tmp_path / "run", [start, event])))
    assert "100.00 ± 0.87 %" in html


def test_runs_of_earlier_versions_lack_fields(tmp_path: Path) -> None:
    """Trials without a cost, an accuracy, a candidate or a reason; a student without its prediction."""
    whole = {kind: next(one for one in trials(80) if one["event"] == kind) for kind in KINDS_OF_TRIALS}
    lacking = [
        {name: value for name, value in {**whole[kind], "trial": number}.items() if name not in absent}
        for number, (kind, absent) in enumerate(
            (kind, absent)
            for kind in KINDS_OF_TRIALS
            for absent in ({"predicted"}, {"accuracy", "violated", "reason"}, {"candidate", "choices"})
        )
    ]
    start = {name: value for name, value in started().items() if name != "predicted"}
    event = {"event": "certified", "candidate": BEST.key, "student": STUDENTS[0][0]}
    record = read_run(write_run(tmp_path / "run", [start, *lacking, event]))
    assert record.damaged == () and len(record.trials) == 9
    html = render(record)
    texts = set(_Reader(html).texts)
    assert {"no reason recorded", "unknown", "97.22 ± 0.87 %", "13×"} <= texts
    assert [trial.trial for trial in charts.trained(record, "latency_ms")] == [2]
    assert "Predicted and measured latency" not in html
    assert "accuracy on" not in text_of(table.front_table(front_of(record)))


def test_front_table_says_what_the_accuracy_is_on_and_compares_packed_sizes(tmp_path: Path) -> None:
    start = started() | {
        "teacher": {**TEACHER, "accuracy_from": "test", "packed_bytes": 3 << 20},
        "limits": {**LIMITS, "packed_bytes": 1 << 20},
    }
    record = {**STUDENTS[0][0], "accuracy_from": "test", "packed_bytes": 1 << 18}
    event = {"event": "certified", "candidate": record["key"], "student": record, "violated": []}
    run = read_run(write_run(tmp_path / "run", [start, event]))
    text = text_of(table.front_table(front_of(run)), width=100)
    assert "accuracy on test data" in text and "packed size ≤ 1 MiB" in text
    assert "256 KiB" in text and "12×" in text
    assert "Accuracy and packed size" in render(run)


def test_damage_is_reported(tmp_path: Path) -> None:
    root = whole_run(tmp_path / "run")
    path = root / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[5] = lines[5].replace("trial", "trail", 1)
    path.write_text("".join(lines), encoding="utf-8")
    assert "line 6 of events.jsonl could not be read" in render(read_run(root))


def test_report_elsewhere_and_unwritable(tmp_path: Path) -> None:
    root = whole_run(tmp_path / "run")
    assert write_report(root, tmp_path / "new/there.html").is_file()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be written"):
        write_report(root, tmp_path / "file/report.html")
    with pytest.raises(RunError, match="is not a run folder"):
        write_report(tmp_path / "absent")


def test_thousands_of_trials_stay_small(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", [started(), *trials(6000)])
    html = render(read_run(root))
    assert "at most 1500 of a kind are drawn" in html
    assert len(html) < 3_000_000


def test_hypervolume_by_hand(tmp_path: Path) -> None:
    """Under (1, 2.2 ms), the teacher taking 2 ms: 0.5 · 1.2 / 2.2, and 0.25 · 0.7 / 2.2 more."""
    event = {"event": "trial_finished", "choices": {}, "candidate": "c"}
    first = {**event, "trial": 0, "accuracy": 0.5, "predicted": cost(1.0, 0.5)}
    second = {**event, "trial": 1, "accuracy": 0.75, "predicted": cost(1.5, 0.5)}
    root = write_run(tmp_path / "run", [{**started(), "predicted": cost(2.0, 1.0)}, first, second])
    assert charts.hypervolumes(read_run(root)) == pytest.approx([0.6 / 2.2, 0.775 / 2.2])


def test_prediction_pairs_are_those_recorded(tmp_path: Path) -> None:
    record = read_run(whole_run(tmp_path / "run"))
    pairs = charts.prediction_pairs(record, letters(front_of(record)))
    assert pairs[0] == charts.Pair("teacher", 1.45, TEACHER["latency_ms"], (1.474, 1.4902))
    assert {(pair.key, pair.predicted_ms, pair.measured_ms) for pair in pairs[1:]} == {
        (found["key"], predicted, found["latency_ms"]) for found, predicted in STUDENTS
    }


def test_letters_start_with_the_front(tmp_path: Path) -> None:
    front = front_of(read_run(whole_run(tmp_path / "run")))
    assert letters(front) == {
        "a1b2c3d4e5f6": "A", "0f1e2d3c4b5a": "B", "77aa88bb99cc": "C",
        "deadbeef0001": "D", "badc0ffee000": "E",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (1.0, 0),
        (0.25, 0.75),
        ("full", 0),
        (32, 0),
        (8, 0.75),
        ("keep", 0),
        ("drop", 1),
        ("depthwise_separable", 0.5),
    ],
)
def test_shades(option: Any, expected: float) -> None:
    assert strength(option) == expected


def test_a_site_whose_default_is_no_codebook_shows_every_number_of_values() -> None:
    assert strength("none", "none") == 0.0
    assert all(strength(option, "none") > 0 for option in (8, 32, 256))
    assert strength(32, 32) == 0.0 < strength(16, 32) < strength(2, 32)


@pytest.mark.parametrize("kind", ["linear", "log", "error"])
def test_scales_keep_order_and_round_ticks(kind: str) -> None:
    values = [0.31, 0.42, 0.93, 0.975]
    scale = Scale.around(values, 0, 400, kind)
    pixels = [scale(value) for value in values]
    assert pixels == sorted(pixels) and pixels[0] > 0 and pixels[-1] < 400
    ticks = scale.ticks()
    assert len(ticks) >= 3 and ticks == sorted(ticks)
    assert all(scale.low <= tick <= scale.high for tick in ticks)
    assert Scale.around([], 0, 1)(0.5) == 0.5


def test_positions_on_a_scale_by_hand() -> None:
    assert Scale(1, 100, 0, 200, "log")(10) == pytest.approx(100)
    assert Scale(0, 0.99, 0, 200, "error")(0.9) == pytest.approx(100)
    assert Scale(0, 4, 100, 0)(1) == 75


def test_elements_are_escaped() -> None:
    assert (
        element("text", "<&>", class_='a"b', x=1.0) == '<text class="a&#34;b" x="1.00">&lt;&amp;&gt;</text>'
    )


def test_times() -> None:
    assert elapsed("2026-01-01T00:00:00+00:00", "2026-01-01T01:02:03+00:00") == "1:02:03"
    assert elapsed("", "x") == "–"


def test_reports_need_no_heavy_packages() -> None:
    import subprocess
    import sys

    heavy = ["torch", "optuna", "ray", "onnx", "onnxruntime", "timm", "scipy", "sklearn"]
    code = (
        "import sys, json, autocompress.reporting.html, autocompress.reporting.tables;"
        "import autocompress.reporting.card, autocompress.reporting.inspection_tables;"
        f"print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
