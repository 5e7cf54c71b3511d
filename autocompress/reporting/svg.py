"""Scales, axes and marks for small charts as inline SVG. Everything that is written is escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

LEAST_ERROR = 5e-4
"""Accuracies closer to 1 than this are drawn as if they were this far from it."""

_ROUND = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
_BETWEEN = (0.2, 0.4, 0.6, 0.7, 0.85, 0.93, 0.96, 0.97)


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """Return an element; `class_` is `class`, other underscores are dashes, numbers have two decimals."""
    parts = [Markup("<{}").format(Markup(tag))]
    for name, value in attributes.items():
        text = f"{value:.2f}" if isinstance(value, float) else value
        parts.append(Markup(' {}="{}"').format(Markup(name.rstrip("_").replace("_", "-")), text))
    inside = Markup("").join(escape(child) for child in children)
    return Markup("").join(parts) + Markup(">") + inside + Markup("</{}>").format(Markup(tag))


@dataclass(frozen=True)
class Scale:
    """Map a domain of values to pixels; `kind` is `linear`, `log`, or `error`.

    `error` is for accuracies and spaces them by the logarithm of 1 − accuracy.
    """

    low: float
    high: float
    start: float
    end: float
    kind: str = "linear"

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float, kind: str = "linear") -> Scale:
        """Return a scale with all values inside and a little room; with no values from 0 to 1."""
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return cls(0.0, 1.0, start, end)
        bare = cls(0.0, 1.0, start, end, kind)
        low, high = bare._forward(min(finite)), bare._forward(max(finite))
        room = 0.07 * (high - low) or 0.05 * abs(high) or 0.5
        return cls(bare._back(low - room), bare._back(high + room), start, end, kind)

    def __call__(self, value: float) -> float:
        low, high = self._forward(self.low), self._forward(self.high)
        share = (self._forward(value) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, least_pixels: float = 56) -> list[float]:
        """Return round values inside the domain, no two closer than `least_pixels`."""
        count = max(2, int(abs(self.end - self.start) / least_pixels))
        if self.kind == "error":
            found = _thinned(
                [a for a in (*_ROUND, *_BETWEEN) if self.low <= a <= self.high], self, least_pixels
            )
            if len(found) >= 3:
                return found
        if self.kind == "log":
            found = _thinned(_decades(self.low, self.high), self, least_pixels)
            if len(found) >= 3:
                return found
        return _thinned(_steps(self.low, self.high, count), self, least_pixels)

    def _forward(self, value: float) -> float:
        if self.kind == "log":
            return math.log10(max(value, 1e-12))
        if self.kind == "error":
            return -math.log10(max(1 - value, LEAST_ERROR))
        return value

    def _back(self, value: float) -> float:
        if self.kind == "log":
            return float(10**value)
        if self.kind == "error":
            return min(1 - float(10**-value), 1 - LEAST_ERROR)
        return value


def axis_kind(values: Sequence[float]) -> str:
    """Return `log` where the largest value is more than three times the smallest, else `linear`."""
    positive = [value for value in values if value > 0]
    return "log" if positive and max(positive) > 3 * min(positive) else "linear"


def _steps(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return the values 1, 2, 5, … of each power of ten in between, the roundest first."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [
        round(factor * 10.0**exponent, 12)
        for factors in ((1,), (2, 5), (3, 1.5, 4, 7))
        for exponent in exponents
        for factor in factors
        if low <= factor * 10.0**exponent <= high
    ]


def _thinned(values: list[float], scale: Scale, least_pixels: float) -> list[float]:
    """Return those that have room beside the ones before them, in order of size."""
    kept: list[float] = []
    for value in values:
        if all(abs(scale(value) - scale(other)) >= least_pixels for other in kept):
            kept.append(value)
    return sorted(kept)


@dataclass(frozen=True)
class Plot:
    """A frame with two labelled axes; `width` and `height` are of the whole drawing."""

    x: Scale
    y: Scale
    width: int
    height: int
    x_label: str
    y_label: str
    x_text: Callable[[float], str]
    y_text: Callable[[float], str]

    def axes(self) -> list[Markup]:
        """Draw the axes with their ticks, grid lines and labels."""
        left, right, top, bottom = self.x.start, self.x.end, self.y.end, self.y.start
        parts = []
        for value in self.y.ticks(34):
            y = self.y(value)
            parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
            parts.append(
                element("text", self.y_text(value), x=left - 8, y=y + 4, class_="tick", text_anchor="end")
            )
        for value in self.x.ticks(64):
            x = self.x(value)
            parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
            parts.append(
                element("text", self.x_text(value), x=x, y=bottom + 18, class_="tick", text_anchor="middle")
            )
        middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
        parts.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
        parts.append(element("line", x1=left, x2=left, y1=top, y2=bottom, class_="axis"))
        parts.append(
            element(
                "text", self.x_label, x=middle_x, y=self.height - 6.0, class_="label", text_anchor="middle"
            )
        )
        turned = f"translate(14 {middle_y:.2f}) rotate(-90)"
        parts.append(element("text", self.y_label, transform=turned, class_="label", text_anchor="middle"))
        return parts

    def drawing(self, title: str, description: str, marks: Iterable[str]) -> Markup:
        """Return the whole SVG with a name and a description for screen readers."""
        return element(
            "svg",
            *self.axes(),
            *marks,
            viewBox=f"0 0 {self.width} {self.height}",
            role="img",
            aria_label=f"{title}. {description}",
        )


def mark(shape: str, x: float, y: float, radius: float, class_: str, tip: str = "") -> Markup:
    """Draw a symbol of the given shape with a hover text.

    Shapes differ, so colour is never needed to tell.
    """
    inside = (element("title", tip),) if tip else ()
    if shape == "circle":
        return element("circle", *inside, cx=x, cy=y, r=radius, class_=class_)
    return element("path", *inside, d=_outline(shape, x, y, radius), class_=class_)


def _outline(shape: str, x: float, y: float, r: float) -> str:
    if shape == "cross":
        falling = f"M{x - r:.2f} {y - r:.2f}L{x + r:.2f} {y + r:.2f}"
        return f"{falling}M{x - r:.2f} {y + r:.2f}L{x + r:.2f} {y - r:.2f}"
    if shape == "tick":
        return f"M{x:.2f} {y - r:.2f}L{x:.2f} {y + r:.2f}"
    corners = {"diamond": ((0, -r), (r, 0), (0, r), (-r, 0)), "square": ((-r, -r), (r, -r), (r, r), (-r, r))}
    return "M" + "L".join(f"{x + dx:.2f} {y + dy:.2f}" for dx, dy in corners[shape]) + "Z"


def line(points: Sequence[tuple[float, float]], class_: str, tip: str = "") -> Markup:
    """Draw a line through pixel positions."""
    path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    return element("path", *((element("title", tip),) if tip else ()), d=path, class_=class_)
