"""A loss curve for the page: raw and smoothed, and small however long the run."""

from __future__ import annotations

MOST_POINTS = 2000
_SMOOTHING = 0.97
"""Of the running mean: about the last thirty steps count."""

Point = tuple[int, float, float]
"""Step, loss and smoothed loss."""


class Curve:
    """Points of which every second goes, from the first to the last, when they become too many."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._latest: Point | None = None
        self._every = 1
        self._sum = self._weight = 0.0

    def add(self, step: int, loss: float) -> None:
        """Take the loss of the next step up."""
        self._sum = _SMOOTHING * self._sum + (1 - _SMOOTHING) * loss
        self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
        self._latest = step, _short(loss), _short(self._sum / self._weight)
        if step % self._every == 0:
            self._points.append(self._latest)
        if len(self._points) >= MOST_POINTS:
            self._every *= 2
            self._points = [point for point in self._points if point[0] % self._every == 0]

    def since(self, step: int) -> list[Point]:
        """Return the points after ``step`` and always the latest one."""
        points = [point for point in self._points if point[0] > step]
        if self._latest is not None and self._latest[0] > step and points[-1:] != [self._latest]:
            points.append(self._latest)
        return points


def _short(number: float) -> float:
    """Return the number with six digits: thousands of them travel to the page."""
    return float(f"{number:.6g}")
