"""How long kernels take: what was measured, and what follows from it for shapes in between.

A measured shape is answered by its own row, so that steps such as those of odd channel counts stay.
Another shape of a measured family (same operation, precision and form) is interpolated: a power law
in the work done, moved by how far the nearest measured shapes lie from it. How wrong that is, is told
by leaving out each measured shape in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.cost.kernels import Kernel
from autocompress.errors import ProfileError

LEAST_US = 0.3
"""Below this the profilers, which count whole microseconds, tell nothing."""

FEWEST_TO_JUDGE = 8
_SUSPICIOUS, _FAR, _FEW = 1.0, 3.0, 30
_NEIGHBOURS = 3
_VECTOR = 16
_STIFFNESS = 0.1
_NEARNESS = 0.02
_DOUBT = 2.0
_RELATED_ERROR = 0.5
_LEAST_ERROR = 0.05


@dataclass(frozen=True)
class Row:
    """Hold a kernel as the runtime's profiler saw it: how often, its median and the 95 % interval of that.

    `operations` is how many of the runtime's operations it took; each adds the profiler's own overhead.
    """

    kernel: Kernel
    count: int
    operations: float
    median_us: float
    ci95_low_us: float
    ci95_high_us: float


@dataclass(frozen=True)
class Estimate:
    """Hold what is known of a kernel; `relative_error` is the half width of a 95 % interval, as a share of
    `median_us`."""

    median_us: float
    operations: float
    relative_error: float
    how: Literal["measured", "interpolated"]


class LatencyTable:
    """Answer from the rows of one device for every kernel of an operation that was measured in its
    precision."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = tuple(rows)
        self._by_kernel = {row.kernel: row for row in self.rows}
        self._groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            self._groups.setdefault(row.kernel.family, []).append(row)
            self._groups.setdefault(_relatives(row.kernel), []).append(row)
        self._curves: dict[tuple[Any, ...], _Curve] = {}

    def lookup(self, kernel: Kernel) -> Estimate:
        """Return what the profiler would show. Raises ProfileError when nothing like the kernel was
        measured."""
        row = self._by_kernel.get(kernel)
        if row is not None:
            error = (row.ci95_high_us - row.ci95_low_us) / 2 / row.median_us
            return Estimate(row.median_us, row.operations, error, "measured")
        for key in (kernel.family, _relatives(kernel)):
            if key in self._groups:
                curve = self._curve(key)
                error = max(curve.relative_error, _RELATED_ERROR if key != kernel.family else _LEAST_ERROR)
                return Estimate(curve.at(kernel), curve.operations, error, "interpolated")
        raise ProfileError(
            f"the device profile has no {kernel.op} kernels in {kernel.precision}",
            where=", ".join(kernel.nodes),
            why="nothing was measured from which its time could be told",
            fix="profile the device again with this teacher and space, and more networks",
        )

    def missing(self, kernels: Iterable[Kernel]) -> tuple[str, ...]:
        """Return operations with their precision that a lookup would raise for, in order, without repeats."""
        lacking = (kernel for kernel in kernels if _relatives(kernel) not in self._groups)
        return tuple(dict.fromkeys(" ".join(_relatives(kernel)) for kernel in lacking))

    def rows_of(self, family: tuple[Any, ...]) -> list[Row]:
        """Return the rows of a kernel's `family`."""
        return list(self._groups.get(family, ()))

    @cached_property
    def coverage(self) -> Mapping[str, int]:
        """Return the number of rows for each operation and precision."""
        counts: dict[str, int] = {}
        for row in self.rows:
            name = " ".join(_relatives(row.kernel))
            counts[name] = counts.get(name, 0) + 1
        return counts

    def _curve(self, key: tuple[Any, ...]) -> _Curve:
        if key not in self._curves:
            self._curves[key] = _Curve(self._groups[key])
        return self._curves[key]


def predicted_without(table: LatencyTable) -> Iterator[tuple[Row, float, list[float], float]]:
    """Return rows that lie far from their family's line, each with the time in µs that the rest of the family
    makes one expect, those of the nearest rows, and its own, none below `LEAST_US`. Families of fewer than
    `FEWEST_TO_JUDGE` rows say nothing, nor do kernels that others took in, which take no time."""
    for key in dict.fromkeys(row.kernel.family for row in table.rows):
        family = [row for row in table.rows_of(key) if row.operations]
        if len(family) < FEWEST_TO_JUDGE:
            continue
        for row, strays in zip(family, _Curve(family).strays(), strict=True):
            if strays:
                rest = [other for other in family if other is not row]
                yield row, _Curve(rest).at(row.kernel), _nearest_us(row, rest), max(row.median_us, LEAST_US)


def _nearest_us(row: Row, rest: list[Row]) -> list[float]:
    point = work(row.kernel)
    nearest = sorted(rest, key=lambda other: float(((work(other.kernel) - point) ** 2).sum()))
    return [max(other.median_us, LEAST_US) for other in nearest[:_NEIGHBOURS]]


def _relatives(kernel: Kernel) -> tuple[str, str]:
    """Return kernels of the same operation and precision in another form, such as another stride."""
    return (kernel.op, kernel.precision)


def work(kernel: Kernel) -> NDArray[np.float64]:
    """Return the logarithms of what a kernel's time grows with, and whether its channels fill whole
    vectors."""
    macs, read, written = kernel.macs / 3e4, kernel.in_elements / 2e3, kernel.out_elements / 2e3
    channels = (kernel.in_channels / 8, kernel.out_channels / 8)
    amounts = np.log1p(np.array([macs, _padded_macs(kernel) / 3e4, read, written, *channels]))
    layer = kernel.op == "conv"
    fills = [
        1.0 * (layer and kernel.out_channels % _VECTOR == 0),
        0.5 * (layer and kernel.out_channels % 8 == 0),
    ]
    return np.concatenate([amounts, fills])


def _padded_macs(kernel: Kernel) -> int:
    """Return the multiply-adds when channels are rounded up to whole vectors, as convolutions do."""
    if kernel.op != "conv":
        return kernel.macs
    inner = 1 if kernel.groups > 1 else _rounded_up(kernel.in_channels)
    taps = kernel.kernel_height * kernel.kernel_width
    return kernel.height * kernel.width * taps * inner * _rounded_up(kernel.out_channels)


def _rounded_up(channels: int) -> int:
    return -(-channels // _VECTOR) * _VECTOR


class _Curve:
    """Predict log time = linear in the logarithms of the work (ridge) + weighted mean of near residuals."""

    def __init__(self, rows: list[Row]) -> None:
        self._points = np.stack([work(row.kernel) for row in rows])
        self._times = np.log([max(row.median_us, LEAST_US) for row in rows])
        self.operations = float(np.median([row.operations for row in rows]))
        self._centre = self._points.mean(axis=0)
        self._slopes, self._level = _ridge(self._points - self._centre, self._times)
        self._residuals = self._times - self._line(self._points)

    def at(self, kernel: Kernel) -> float:
        point = work(kernel)
        return float(np.exp(self._line(point) + self._near(point, np.ones(len(self._times)))))

    def strays(self) -> list[bool]:
        """Return which rows lie far from the line; one of few rows may have drawn the line to itself."""
        far = np.abs(self._residuals) > _SUSPICIOUS
        if len(self._times) < _FEW:
            far |= np.abs(self._times - np.median(self._times)) > _FAR
        return [bool(value) for value in far]

    @cached_property
    def relative_error(self) -> float:
        """Return 1.96 root mean squares of the errors at each row when its own residual is not used."""
        left_out = []
        for index, point in enumerate(self._points):
            use = np.ones(len(self._times))
            use[index] = 0.0
            left_out.append(self._near(point, use) - self._residuals[index])
        return float(1.96 * np.sqrt(np.mean(np.square(left_out)))) if len(left_out) > 2 else _RELATED_ERROR

    def _line(self, points: NDArray[np.float64]) -> Any:
        return (points - self._centre) @ self._slopes + self._level

    def _near(self, point: NDArray[np.float64], use: NDArray[np.float64]) -> float:
        weights = use / (((self._points - point) ** 2).sum(axis=1) + _NEARNESS)
        return float(weights @ self._residuals / (weights.sum() + _DOUBT))


def _ridge(points: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    level = float(values.mean())
    normal = points.T @ points + _STIFFNESS * np.eye(points.shape[1])
    slopes = np.linalg.solve(normal, points.T @ (values - level))
    return slopes.astype(np.float64), level
