"""The charts of a report, out of a run's records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from autocompress.reporting.svg import LEAST_ERROR, Plot, Scale, axis_kind, element, line, mark
from autocompress.reporting.units import (
    COSTS,
    accuracy,
    cost,
    interval_ms,
    known,
    milliseconds,
    percent,
    significant,
    size,
)
from autocompress.runs.front import Front
from autocompress.runs.pareto import (
    PROGRESS_REFERENCE,
    WORST_LATENCY,
    hypervolume_history,
    non_dominated,
    progress_point,
)
from autocompress.runs.store import RunRecord
from autocompress.runs.student import Student

MOST_DOTS = 1500
"""More trials than this are thinned out evenly, so that a report of any run opens at once."""

_AXES = {
    "latency_ms": "latency, ms",
    "peak_memory_bytes": "peak memory, KiB",
    "file_bytes": "file size, KiB",
    "packed_bytes": "packed size, KiB",
}


@dataclass(frozen=True)
class Chart:
    """A drawing with what stands above and below it."""

    title: str
    svg: Markup
    caption: str


def trade_off(
    record: RunRecord, front: Front, labels: Mapping[str, str], name: str, wide: bool
) -> Chart | None:
    """Accuracy over the cost `name`: front, other measured students, trials, teacher, budget line."""
    unit = 1.0 if name == "latency_ms" else 1024.0
    trials = [trial for trial in record.trials if known(trial.get("accuracy")) and _predicted(trial, name)]
    left_out = [
        trial for trial in record.trials if trial["event"] == "trial_infeasible" and _predicted(trial, name)
    ]
    teacher, limit = front.teacher, front.limits.get(name)
    values = [getattr(student, name) for student in front.measured] + [
        _predicted(trial, name) for trial in trials
    ]
    values += [value for value in (teacher.get(name), limit) if known(value)]
    accuracies = [student.accuracy for student in front.measured] + [trial["accuracy"] for trial in trials]
    accuracies += [teacher["accuracy"]] if known(teacher.get("accuracy")) else []
    if not values or not accuracies:
        return None
    plot = _trade_off_plot(name, [value / unit for value in values], accuracies, wide)
    shown = Markup("").join(
        [
            *_budget_line(plot, name, limit, unit),
            *_left_out(plot, _thinned(left_out), name, unit),
            *(_trial(plot, trial, name, unit) for trial in _thinned(trials)),
            *_front_line(plot, front, name, unit),
            *_teacher(plot, teacher, name, unit),
            *(_student(plot, student, front, labels, name, unit) for student in front.measured),
        ]
    )
    title = f"Accuracy and {COSTS[name]}"
    description = (
        f"{len(front.students)} students on the front, {len(front.measured)} measured, {len(trials)} trials."
    )
    return Chart(title, plot.drawing(title, description, [shown]), _notes(plot, len(trials), len(left_out)))


def _notes(plot: Plot, trials: int, left_out: int) -> str:
    notes = []
    if plot.y.kind == "error":
        notes.append("Accuracies are spaced by the logarithm of the error.")
    if max(trials, left_out) > MOST_DOTS:
        notes.append(f"Of {trials + left_out} trials at most {MOST_DOTS} of a kind are drawn.")
    return " ".join(notes)


def _trade_off_plot(name: str, values: Sequence[float], accuracies: Sequence[float], wide: bool) -> Plot:
    width, height = (920, 440) if wide else (450, 300)
    errors = [max(1 - value, LEAST_ERROR) for value in accuracies]
    kind = "error" if max(errors) > 4 * min(errors) else "linear"
    return Plot(
        Scale.around(values, 62, width - 16, axis_kind(values)),
        Scale.around(accuracies, height - 62, 14, kind),
        width,
        height,
        _AXES[name],
        "accuracy, %",
        lambda value: f"{value:g}",
        lambda value: f"{100 * value:.4g}",
    )


def _budget_line(plot: Plot, name: str, limit: Any, unit: float) -> list[Markup]:
    if not known(limit):
        return []
    x, top, bottom = plot.x(limit / unit), plot.y.end, plot.y.start
    over = element("rect", x=x, y=top, width=max(0.0, plot.x.end - x), height=bottom - top, class_="over")
    near_edge = x > plot.x.end - 130
    text = element(
        "text",
        f"budget {cost(name, limit)}",
        x=x + (-6 if near_edge else 6),
        y=bottom - 8.0,
        class_="budget-label",
        text_anchor="end" if near_edge else "start",
    )
    return [over, line([(x, top), (x, bottom)], "budget", f"budget: {cost(name, limit)}"), text]


def _left_out(plot: Plot, trials: Sequence[Mapping[str, Any]], name: str, unit: float) -> list[Markup]:
    """Marks along the lower edge; those beyond the axis are on its end."""
    marks = []
    for trial in trials:
        x = min(max(plot.x(_predicted(trial, name) / unit), plot.x.start), plot.x.end)
        broken = ", ".join(COSTS.get(item, item) for item in trial.get("violated") or ())
        tip = f"trial {trial['trial']}, not trained: predicted to break {broken or 'a budget'}"
        marks.append(mark("tick", x, plot.y.start - 4, 3.5, "infeasible", tip))
    return marks


def _trial(plot: Plot, trial: Mapping[str, Any], name: str, unit: float) -> Markup:
    value = _predicted(trial, name)
    found = percent(trial["accuracy"])
    tip = f"trial {trial['trial']}: {found} on validation data, {cost(name, value)} predicted"
    return mark("circle", plot.x(value / unit), plot.y(trial["accuracy"]), 2.6, "trial", tip)


def _front_line(plot: Plot, front: Front, name: str, unit: float) -> list[Markup]:
    """Through the students that nobody beats in these two coordinates."""
    points = [(getattr(student, name), -student.accuracy) for student in front.students]
    best = sorted(points[index] for index in non_dominated(points))
    if len(best) < 2:
        return []
    corners: list[tuple[float, float]] = []
    for value, negative in best:
        x, y = plot.x(value / unit), plot.y(-negative)
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return [line(corners, "front-line")]


def _teacher(plot: Plot, teacher: Mapping[str, Any], name: str, unit: float) -> list[Markup]:
    if not (known(teacher.get(name)) and known(teacher.get("accuracy"))):
        return []
    x, y = plot.x(teacher[name] / unit), plot.y(teacher["accuracy"])
    tip = f"teacher: {accuracy(teacher)}, {cost(name, teacher[name])}"
    below = y + 21 < plot.y.start
    label = element(
        "text", "teacher", x=x, y=y + (21 if below else -12), class_="point-label", text_anchor="middle"
    )
    return [mark("diamond", x, y, 7, "teacher", tip), label]


def _student(
    plot: Plot, student: Student, front: Front, labels: Mapping[str, str], name: str, unit: float
) -> Markup:
    x, y = plot.x(getattr(student, name) / unit), plot.y(student.accuracy)
    class_, shape = _look(student, front)
    tip = (
        f"{labels[student.key]}  {student.key}: {accuracy(student.to_json())}, "
        f"{milliseconds(student.latency_ms)} {interval_ms(student.latency_ms_ci95)}, "
        f"file {size(student.file_bytes)}, memory {size(student.peak_memory_bytes)}"
    )
    high = plot.y(min(student.accuracy + student.accuracy_std_err, plot.y.high))
    low = plot.y(max(student.accuracy - student.accuracy_std_err, plot.y.low))
    label = _beside(plot, labels[student.key], x, y)
    return Markup("").join(
        [line([(x, low), (x, high)], "whisker"), mark(shape, x, y, 5.5, class_, tip), label]
    )


def _beside(plot: Plot, text: str, x: float, y: float) -> Markup:
    """A name up to the right of a mark, or to the left where the frame ends."""
    left = x + 16 + 7 * len(text) > plot.x.end
    anchor = "end" if left else "start"
    return element("text", text, x=x + (-9 if left else 9), y=y - 7, class_="point-label", text_anchor=anchor)


def _look(student: Student, front: Front) -> tuple[str, str]:
    if not student.certified:
        return "violated", "cross"
    if any(other.key == student.key for other in front.students):
        return "certified", "circle"
    return "beaten", "circle"


def prediction(record: RunRecord, front: Front, labels: Mapping[str, str]) -> Chart | None:
    """Measured over predicted latency, with the line on which both are equal."""
    pairs = prediction_pairs(record, labels)
    if not pairs:
        return None
    values = [value for _, predicted, measured, _ in pairs for value in (predicted, measured)]
    kind = axis_kind(values)
    across, up = Scale.around(values, 62, 434, kind), Scale.around(values, 268, 14, kind)
    plot = Plot(across, up, 450, 330, "predicted, ms", "measured, ms", _plain_number, _plain_number)
    marks = [line([(across.start, up.start), (across.end, up.end)], "diagonal", "predicted = measured")]
    looks = {student.key: _look(student, front) for student in front.measured}
    for key, predicted, measured, interval in pairs:
        x, y = across(predicted), up(measured)
        class_, shape = looks.get(key, ("teacher", "diamond"))
        name = f"{labels[key]}  {key}" if key in labels else "teacher"
        tip = f"{name}: {milliseconds(predicted)} predicted, {milliseconds(measured)} {interval_ms(interval)}"
        if interval:
            marks.append(
                line([(x, up(max(interval[0], up.low))), (x, up(min(interval[1], up.high)))], "whisker")
            )
        marks.append(mark(shape, x, y, 5.5, class_, tip))
        marks.append(_beside(plot, labels.get(key, "teacher"), x, y))
    errors = [abs(measured / predicted - 1) for _, predicted, measured, _ in pairs]
    caption = f"Mean absolute error of the prediction: {percent(sum(errors) / len(errors), 1)}."
    title = "Predicted and measured latency"
    return Chart(title, plot.drawing(title, caption, marks), caption)


Pair = tuple[str, float, float, Sequence[float]]


def prediction_pairs(record: RunRecord, labels: Mapping[str, str]) -> list[Pair]:
    """(key, predicted ms, measured ms, interval of the latter) of the teacher and each student."""
    started = next((event for event in record.events if event["event"] == "run_started"), {})
    found = [("teacher", started.get("predicted"), started.get("teacher"))]
    found += [
        (event["candidate"], event.get("predicted"), event["student"])
        for event in record.students
        if event["candidate"] in labels
    ]
    pairs: list[Pair] = []
    for key, predicted, measured in found:
        expected, actual = (predicted or {}).get("latency_ms"), (measured or {}).get("latency_ms")
        if known(expected) and known(actual) and min(expected, actual) > 0:
            pairs.append((key, expected, actual, (measured or {}).get("latency_ms_ci95") or ()))
    return pairs


def progress(record: RunRecord) -> Chart | None:
    """Hypervolume of the trials so far, of (error, latency by the teacher's)."""
    history = hypervolumes(record)
    if not history:
        return None
    top = max(history) * 1.08 or 1.0
    x, y = Scale(0, len(history), 62, 434), Scale(0, top, 268, 14)
    plot = Plot(x, y, 450, 330, "trained trials", "hypervolume", _whole_number, _plain_number)
    before = [0.0, *history[:-1]]
    rises = [index for index, value in enumerate(history) if value > before[index]]
    corners = [(x(0), y(0))]
    marks = []
    for index in rises:
        at, value = x(index + 1), history[index]
        corners += [(at, y(before[index])), (at, y(value))]
        tip = f"after {index + 1} trials: {significant(value, 4)}"
        marks.append(mark("circle", at, y(value), 2.6, "step", tip))
    corners.append((x(len(history)), y(history[-1])))
    outline = [*corners, (corners[-1][0], y(0))]
    area = "M" + "L".join(f"{across:.2f} {up:.2f}" for across, up in outline) + "Z"
    last = rises[-1] + 1 if rises else 0
    caption = (
        f"{significant(history[-1], 3)} of the rectangle between no error at no latency and "
        f"{WORST_LATENCY} times the teacher's predicted latency at an accuracy of 0; last improved by "
        f"trained trial {last} of {len(history)}."
    )
    title = "Progress of the search"
    shown = [element("path", d=area, class_="area"), line(corners, "front-line"), *marks]
    return Chart(title, plot.drawing(title, caption, shown), caption)


def hypervolumes(record: RunRecord) -> list[float]:
    """Progress of the search after each trained trial."""
    started = next((event for event in record.events if event["event"] == "run_started"), {})
    reference = (started.get("predicted") or {}).get("latency_ms") or record.teacher.get("latency_ms")
    if not known(reference) or reference <= 0:
        return []
    points = [
        progress_point(trial["accuracy"], _predicted(trial, "latency_ms"), reference)
        for trial in record.trials
        if known(trial.get("accuracy")) and _predicted(trial, "latency_ms")
    ]
    return hypervolume_history(points, PROGRESS_REFERENCE)


def _predicted(trial: Mapping[str, Any], name: str) -> float:
    value = (trial.get("predicted") or {}).get(name)
    return value if known(value) else 0.0


def _thinned(trials: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    every = -(-len(trials) // MOST_DOTS) or 1
    return trials[::every]


_plain_number: Callable[[float], str] = "{:g}".format


def _whole_number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else ""
