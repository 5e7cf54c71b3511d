"""The charts of accuracy over a cost: the front, other measured students, trials, teacher and budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup

from autocompress.problem.tasks.metric import SHARE, Metric
from autocompress.reporting.charts import Chart, Trained, beside, shape_of, state_of, trained
from autocompress.reporting.svg import LEAST_ERROR, Plot, Scale, axis_kind, element, line, mark
from autocompress.reporting.units import (
    COSTS,
    accuracy,
    capital,
    cost,
    cost_of,
    interval_ms,
    known,
    metric_of,
    metric_value,
    milliseconds,
    names,
    size,
)
from autocompress.runs.events import TrialInfeasible
from autocompress.runs.front import Front
from autocompress.runs.pareto import non_dominated
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
class _LeftOut:
    """A trial that was not trained, because its predicted cost breaks limits."""

    trial: int
    violated: tuple[str, ...]
    predicted: float


@dataclass(frozen=True)
class _Shown:
    """Hold what a chart of the cost `name` shows."""

    name: str
    front: Front
    labels: Mapping[str, str]
    trials: list[Trained]
    left_out: list[_LeftOut]

    @property
    def teacher(self) -> Student | None:
        """Return the teacher; None where it cannot be drawn."""
        teacher = self.front.teacher
        if teacher is None or cost_of(teacher, self.name) is None or not known(teacher.accuracy):
            return None
        return teacher

    @property
    def metric(self) -> Metric:
        """Return the metric that models are judged by."""
        return metric_of(self.front.teacher)

    @property
    def limit(self) -> float | None:
        """Return the budget in milliseconds or bytes; None without one."""
        return self.front.own_limits.get(self.name)

    @property
    def models(self) -> list[Student]:
        """Return the measured students, then the teacher."""
        return [*self.front.measured, *([self.teacher] if self.teacher else [])]

    @property
    def costs(self) -> list[float]:
        """Return every cost that must be on the axis."""
        measured = [float(getattr(model, self.name)) for model in self.models]
        limit = [] if self.limit is None else [self.limit]
        return [*measured, *(trial.predicted for trial in self.trials), *limit]

    @property
    def accuracies(self) -> list[float]:
        """Return every accuracy that must be on the axis."""
        return [*(model.accuracy for model in self.models), *(trial.accuracy for trial in self.trials)]


def trade_off(
    record: RunRecord, front: Front, labels: Mapping[str, str], name: str, wide: bool
) -> Chart | None:
    """Draw accuracy over the cost `name`; None where nothing was measured or trained."""
    shown = _Shown(name, front, labels, trained(record, name), _left_out(record, name))
    if not shown.costs or not shown.accuracies:
        return None
    drawing = _Drawing(shown, _plot(shown, wide))
    title = f"{capital(shown.metric.name)} and {COSTS[name]}"
    description = (
        f"{len(front.students)} students on the front, {len(front.measured)} measured, "
        f"{len(shown.trials)} trials."
    )
    return Chart(title, drawing.plot.drawing(title, description, [drawing.marks()]), drawing.notes())


def _left_out(record: RunRecord, name: str) -> list[_LeftOut]:
    return [
        _LeftOut(trial.trial, trial.violated, value)
        for trial in record.trials
        if isinstance(trial, TrialInfeasible)
        if (value := cost_of(trial.predicted, name)) is not None
    ]


def _unit(name: str) -> float:
    return 1.0 if name == "latency_ms" else 1024.0


def _metric_axis(metric: Metric) -> str:
    return f"{metric.name}, {metric.unit}" if metric.unit else metric.name


def _axis_number(metric: Metric, score: float) -> str:
    value = metric.value(score)
    return f"{100 * value if metric.unit == SHARE else value:.4g}"


def _plot(shown: _Shown, wide: bool) -> Plot:
    width, height = (920, 440) if wide else (450, 300)
    values = [value / _unit(shown.name) for value in shown.costs]
    errors = [max(1 - value, LEAST_ERROR) for value in shown.accuracies]
    kind = "error" if max(errors) > 4 * min(errors) else "linear"
    return Plot(
        Scale.around(values, 62, width - 16, axis_kind(values)),
        Scale.around(shown.accuracies, height - 62, 14, kind),
        width,
        height,
        _AXES[shown.name],
        _metric_axis(shown.metric),
        lambda value: f"{value:g}",
        lambda score: _axis_number(shown.metric, score),
    )


@dataclass(frozen=True)
class _Drawing:
    """The marks of a chart, at their places in its plot."""

    shown: _Shown
    plot: Plot

    def marks(self) -> Markup:
        """Draw everything, what matters most on top."""
        shown = self.shown
        return Markup("").join(
            [
                *self._budget(),
                *(self._tick(trial) for trial in _thinned(shown.left_out)),
                *(self._dot(trial) for trial in _thinned(shown.trials)),
                *self._front_line(),
                *self._teacher(),
                *(self._student(student) for student in shown.front.measured),
            ]
        )

    def notes(self) -> str:
        """Return what a reader must know about the axes and what is not drawn."""
        trials, left_out = len(self.shown.trials), len(self.shown.left_out)
        notes = []
        if self.plot.y.kind == "error":
            notes.append("Accuracies are spaced by the logarithm of the error.")
        if max(trials, left_out) > MOST_DOTS:
            notes.append(f"Of {trials + left_out} trials at most {MOST_DOTS} of a kind are drawn.")
        return " ".join(notes)

    def _x(self, value: float) -> float:
        return self.plot.x(value / _unit(self.shown.name))

    def _cost(self, value: float) -> str:
        return cost(self.shown.name, value)

    def _budget(self) -> list[Markup]:
        limit = self.shown.limit
        if limit is None:
            return []
        plot = self.plot
        x, top, bottom = self._x(limit), plot.y.end, plot.y.start
        width = max(0.0, plot.x.end - x)
        over = element("rect", x=x, y=top, width=width, height=bottom - top, class_="over")
        near_edge = x > plot.x.end - 130
        text = element(
            "text",
            f"budget {self._cost(limit)}",
            x=x + (-6 if near_edge else 6),
            y=bottom - 8.0,
            class_="budget-label",
            text_anchor="end" if near_edge else "start",
        )
        return [over, line([(x, top), (x, bottom)], "budget", f"budget: {self._cost(limit)}"), text]

    def _tick(self, trial: _LeftOut) -> Markup:
        """Draw a mark on the lower edge; one beyond the axis is on its end."""
        x = min(max(self._x(trial.predicted), self.plot.x.start), self.plot.x.end)
        broken = names(trial.violated) or "a budget"
        tip = f"trial {trial.trial}, not trained: predicted to break {broken}"
        return mark("tick", x, self.plot.y.start - 4, 3.5, "infeasible", tip)

    def _dot(self, trial: Trained) -> Markup:
        found, predicted = metric_value(self.shown.metric, trial.accuracy), self._cost(trial.predicted)
        tip = f"trial {trial.trial}: {found} on validation data, {predicted} predicted"
        return mark("circle", self._x(trial.predicted), self.plot.y(trial.accuracy), 2.6, "trial", tip)

    def _front_line(self) -> list[Markup]:
        """Draw a line through the students that nobody beats in these two coordinates."""
        points = [
            (float(getattr(student, self.shown.name)), -student.accuracy)
            for student in self.shown.front.students
        ]
        best = sorted(points[index] for index in non_dominated(points))
        if len(best) < 2:
            return []
        corners: list[tuple[float, float]] = []
        for value, negative in best:
            x, y = self._x(value), self.plot.y(-negative)
            if corners:
                corners.append((x, corners[-1][1]))
            corners.append((x, y))
        return [line(corners, "front-line")]

    def _teacher(self) -> list[Markup]:
        teacher = self.shown.teacher
        if teacher is None:
            return []
        value = float(getattr(teacher, self.shown.name))
        x, y = self._x(value), self.plot.y(teacher.accuracy)
        tip = f"teacher: {accuracy(teacher)}, {self._cost(value)}"
        below = y + 21 < self.plot.y.start
        label = element(
            "text", "teacher", x=x, y=y + (21 if below else -12), class_="point-label", text_anchor="middle"
        )
        return [mark("diamond", x, y, 7, "teacher", tip), label]

    def _student(self, student: Student) -> Markup:
        plot, label = self.plot, self.shown.labels[student.key]
        x, y = self._x(getattr(student, self.shown.name)), plot.y(student.accuracy)
        state = state_of(student, self.shown.front)
        tip = (
            f"{label}  {student.key}: {accuracy(student)}, "
            f"{milliseconds(student.latency_ms)} {interval_ms(student.latency_ms_ci95)}, "
            f"file {size(student.file_bytes)}, memory {size(student.peak_memory_bytes)}"
        )
        high = plot.y(min(student.accuracy + student.accuracy_std_err, plot.y.high))
        low = plot.y(max(student.accuracy - student.accuracy_std_err, plot.y.low))
        return Markup("").join(
            [
                line([(x, low), (x, high)], "whisker"),
                mark(shape_of(state), x, y, 5.5, state, tip),
                beside(plot, label, x, y),
            ]
        )


Item = TypeVar("Item")


def _thinned(trials: Sequence[Item]) -> Sequence[Item]:
    every = -(-len(trials) // MOST_DOTS) or 1
    return trials[::every]
