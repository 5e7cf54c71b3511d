"""Pareto dominance and hypervolume. Points are minimised in every coordinate."""

from __future__ import annotations

from collections.abc import Sequence

Point = Sequence[float]
WORST_LATENCY = 1.1
"""Times the teacher's: the hypervolume of a search reaches so far, so that accuracy counts where all
candidates take the teacher's latency, as those with small files do."""
PROGRESS_REFERENCE = (1.0, 1.0)


def non_dominated(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other point beats, in order; of equal points the first.

    A point beats another when it is nowhere larger and somewhere smaller. O(n log n) for two
    coordinates, O(n · front) otherwise.
    """
    order = sorted(range(len(points)), key=lambda index: (tuple(points[index]), index))
    kept: list[int] = []
    if points and len(points[0]) == 2:
        least = float("inf")
        for index in order:
            if points[index][1] < least:
                least = points[index][1]
                kept.append(index)
        return sorted(kept)
    for index in order:
        if not any(all(a <= b for a, b in zip(points[other], points[index], strict=True)) for other in kept):
            kept.append(index)
    return sorted(kept)


def progress_point(accuracy: float, latency_ms: float, teacher_ms: float) -> tuple[float, float]:
    """Return (error, latency as a share of `WORST_LATENCY` times the teacher's): how far a search has come is
    the hypervolume of its trials under `PROGRESS_REFERENCE`."""
    return 1 - accuracy, latency_ms / (WORST_LATENCY * teacher_ms)


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the volume between the points and a reference that is worse in every coordinate; exact.

    Points that do not beat the reference everywhere add nothing. Two coordinates are swept in
    O(n log n); more are sliced along the last one (While et al. 2006, doi:10.1109/TEVC.2005.851275).
    """
    inside = [tuple(point) for point in points if all(a < b for a, b in zip(point, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - min(point[0] for point in inside))
    if len(reference) == 2:
        return _area(inside, reference)
    volume, edge = 0.0, float(reference[-1])
    for point in sorted(inside, key=lambda point: -point[-1]):
        slab = [other[:-1] for other in inside if other[-1] <= point[-1]]
        volume += (edge - point[-1]) * hypervolume(slab, reference[:-1])
        edge = point[-1]
    return volume


def _area(points: Sequence[Point], reference: Point) -> float:
    area, top = 0.0, float(reference[1])
    for x, y in sorted(tuple(point) for point in points):
        if y < top:
            area += (reference[0] - x) * (top - y)
            top = y
    return area


def hypervolume_history(points: Sequence[Point], reference: Point) -> list[float]:
    """Return the hypervolume (two coordinates) after each point."""
    history: list[float] = []
    front: list[Point] = []
    for point in points:
        grown = [*front, point]
        kept = [grown[index] for index in non_dominated(grown)]
        # Most points of a long search change nothing.
        history.append(history[-1] if kept == front and history else hypervolume(kept, reference))
        front = kept
    return history
