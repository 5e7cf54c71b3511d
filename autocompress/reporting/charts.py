"""The charts of a report, out of a run's records; `trade_off` has those of accuracy and a cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from markupsafe import Markup

from autocompress.problem.tasks.metric import ACCURACY
from autocompress.reporting.svg import Plot, Scale, axis_kind, element, line, mark
from autocompress.reporting.units import (
    cost_of,
    interval_ms,
    known,
    metric_of,
    metric_value,
    milliseconds,
    percent,
    significant,
)
from autocompress.runs.events import TrialFinished
from autocompress.runs.front import Front
from autocompress.runs.pareto import (
    PROGRESS_REFERENCE,
    WORST_LATENCY,
    hypervolume_history,
    progress_point,
)
from autocompress.runs.store import RunRecord
from autocompress.runs.student import Student


@dataclass(frozen=True)
class Chart:
    """A drawing with what stands above and below it."""

    title: str
    svg: Markup
    caption: str


def state_of(student: Student, front: Front) -> str:
    """Return whether a student is certified, beaten by another certified one, or violated a budget."""
    if not student.certified:
        return "violated"
    return "certified" if any(other.key == student.key for other in front.students) else "beaten"


def shape_of(state: str) -> str:
    """Return the symbol of a model in that state."""
    return {"violated": "cross", "teacher": "diamond"}.get(state, "circle")


def beside(plot: Plot, text: str, x: float, y: float) -> Markup:
    """Write a name up to the right of a mark, or to the left where the frame ends."""
    left = x + 16 + 7 * len(text) > plot.x.end
    anchor = "end" if left else "start"
    return element("text", text, x=x + (-9 if left else 9), y=y - 7, class_="point-label", text_anchor=anchor)


@dataclass(frozen=True)
class Trained:
    """A trained trial: its accuracy on validation data, and what one of its costs is predicted to be."""

    trial: int
    accuracy: float
    predicted: float


def trained(record: RunRecord, name: str) -> list[Trained]:
    """Return the trained trials of a run whose cost `name` was predicted."""
    return [
        Trained(trial.trial, trial.accuracy, value)
        for trial in record.trials
        if isinstance(trial, TrialFinished) and known(trial.accuracy)
        if (value := cost_of(trial.predicted, name)) is not None
    ]


@dataclass(frozen=True)
class Pair:
    """A model's predicted latency and its measured one; `key` is the student's, or `teacher`."""

    key: str
    predicted_ms: float
    measured_ms: float
    interval_ms: tuple[float, float]


def prediction(record: RunRecord, front: Front, labels: Mapping[str, str]) -> Chart | None:
    """Draw measured over predicted latency, with the line on which both are equal."""
    pairs = prediction_pairs(record, labels)
    if not pairs:
        return None
    values = [value for pair in pairs for value in (pair.predicted_ms, pair.measured_ms)]
    kind = axis_kind(values)
    across, up = Scale.around(values, 62, 434, kind), Scale.around(values, 268, 14, kind)
    plot = Plot(across, up, 450, 330, "predicted, ms", "measured, ms", _plain_number, _plain_number)
    marks = [line([(across.start, up.start), (across.end, up.end)], "diagonal", "predicted = measured")]
    states = {student.key: state_of(student, front) for student in front.measured}
    for pair in pairs:
        marks += _pair(plot, pair, labels.get(pair.key, ""), states.get(pair.key, "teacher"))
    errors = [abs(pair.measured_ms / pair.predicted_ms - 1) for pair in pairs]
    caption = f"Mean absolute error of the prediction: {percent(sum(errors) / len(errors), 1)}."
    title = "Predicted and measured latency"
    return Chart(title, plot.drawing(title, caption, marks), caption)


def _pair(plot: Plot, pair: Pair, label: str, state: str) -> list[Markup]:
    x, y = plot.x(pair.predicted_ms), plot.y(pair.measured_ms)
    name = f"{label}  {pair.key}" if label else "teacher"
    measured = f"{milliseconds(pair.measured_ms)} {interval_ms(pair.interval_ms)}"
    tip = f"{name}: {milliseconds(pair.predicted_ms)} predicted, {measured}"
    low, high = pair.interval_ms
    return [
        line([(x, plot.y(max(low, plot.y.low))), (x, plot.y(min(high, plot.y.high)))], "whisker"),
        mark(shape_of(state), x, y, 5.5, state, tip),
        beside(plot, label or "teacher", x, y),
    ]


def prediction_pairs(record: RunRecord, labels: Mapping[str, str]) -> list[Pair]:
    """Return the pairs of the teacher and of each student that has a label."""
    started = record.started
    found = [] if started is None else [("teacher", started.predicted, started.teacher)]
    found += [
        (event.candidate, event.predicted, event.student)
        for event in record.students
        if event.candidate in labels
    ]
    pairs = []
    for key, predicted, student in found:
        expected, actual = cost_of(predicted, "latency_ms"), cost_of(student, "latency_ms")
        if expected is not None and actual is not None:
            pairs.append(Pair(key, expected, actual, student.latency_ms_ci95))
    return pairs


def progress(record: RunRecord) -> Chart | None:
    """Draw the hypervolume of the trials so far, of (error, latency by the teacher's)."""
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
    caption = _progress_caption(history, rises[-1] + 1 if rises else 0, _nothing(record))
    title = "Progress of the search"
    shown = [element("path", d=area, class_="area"), line(corners, "front-line"), *marks]
    return Chart(title, plot.drawing(title, caption, shown), caption)


def _nothing(record: RunRecord) -> str:
    """Return what a network that knows nothing has of the metric."""
    metric = metric_of(record.started.teacher if record.started else None)
    if metric == ACCURACY:
        return "an accuracy of 0"
    return f"{metric.name} of {metric_value(metric, 0.0)}"


def _progress_caption(history: list[float], last_rise: int, nothing: str) -> str:
    return (
        f"{significant(history[-1], 3)} of the rectangle between no error at no latency and "
        f"{WORST_LATENCY} times the teacher's predicted latency at {nothing}; last improved by "
        f"trained trial {last_rise} of {len(history)}."
    )


def hypervolumes(record: RunRecord) -> list[float]:
    """Return the progress of the search after each trained trial."""
    started = record.started
    if started is None:
        return []
    reference_ms = cost_of(started.predicted, "latency_ms") or cost_of(started.teacher, "latency_ms")
    if reference_ms is None:
        return []
    points = [
        progress_point(trial.accuracy, trial.predicted, reference_ms)
        for trial in trained(record, "latency_ms")
    ]
    return hypervolume_history(points, PROGRESS_REFERENCE)


_plain_number: Callable[[float], str] = "{:g}".format


def _whole_number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else ""
