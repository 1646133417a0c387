"""Short labels beside points of a panel: off its lines, and each group in a column of its own."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = 9  # of letters, in points
WAYS = np.deg2rad(210 + np.array([0, 30, -30, 60, -60, 180, 150, -150, 120, -120, 90, -90]))
REACHES = (9, 13, 18, 24, 31, 39)  # points from a label's point to its edge
GAP = 2.0  # points around a label that no line enters
COLUMN = np.array([14.0, 30.0])  # nearer than so, across and up, labels are read as one column
LEADER = 12.0  # points from which a thin line leads from the label to its point


class Label(NamedTuple):
    """A text for one point: where that is in the panel's data, its group and its colour."""

    text: str
    place: tuple[float, float]
    group: str
    colour: str


class _Box(NamedTuple):
    """A label as it is set: its middle and half its size, in points."""

    middle: np.ndarray
    half: np.ndarray

    def gaps(self, places: np.ndarray) -> np.ndarray:
        """How far points [N, 2] are outside of it, the larger of across and up; negative inside."""
        return (np.abs(places - self.middle) - self.half).max(-1)

    def apart(self, other: "_Box") -> np.ndarray:
        """How far another is outside of it, across and up; negative where they overlap."""
        return np.abs(other.middle - self.middle) - self.half - other.half


def write_labels(panel: "Axes", labels: Sequence[Label]) -> None:
    """Writes each label where it is off the lines that are drawn and off those before it.

    One that would lie on another is left out.

    Args:
      panel: in its final place and size.
      labels: in the order of their importance.
    """
    scale = 72 / panel.figure.dpi
    on_lines = _on_lines(panel) * scale
    frame = panel.bbox.get_points() * scale
    set_ones: list[tuple[_Box, str]] = []
    for label in labels:
        point = panel.transData.transform(label.place) * scale
        half = np.array([0.36 * SIZE * len(label.text), 0.5 * SIZE])
        boxes = [
            _Box(point + (reach + half) * (np.cos(way), np.sin(way)), half)
            for reach, way in itertools.product(REACHES, WAYS)
        ]
        costs = [_cost(box, point, label.group, on_lines, frame, set_ones) for box in boxes]
        best = int(np.argmin(costs))  # of equals the first: near, and to the lower left
        if costs[best] < np.inf:
            set_ones.append((boxes[best], label.group))
            _write(panel, label, boxes[best].middle - point)


def _cost(
    box: _Box,
    point: np.ndarray,
    group: str,
    on_lines: np.ndarray,
    frame: np.ndarray,
    others: Sequence[tuple[_Box, str]],
) -> float:
    """How ill a place is: points of lines in it or between it and its point, and other groups."""
    if (box.middle - box.half < frame[0]).any() or (box.middle + box.half > frame[1]).any():
        return np.inf
    cost = float((box.gaps(on_lines) < GAP).sum())
    way = box.middle - point
    between = point + np.linspace(0.3, 1, 12)[:, None] * way
    near = on_lines[np.abs(on_lines - point).max(-1) < np.abs(way).max() + GAP]
    cost += 0.5 * (np.abs(between[:, None] - near).max(-1) < 1).any(0).sum()
    cost += 0.1 * np.hypot(*way)
    for other, theirs in others:
        apart = box.apart(other)
        if (apart < GAP).all():
            return np.inf
        cost += 20 * (theirs != group and (apart < COLUMN).all())
    return cost


def _on_lines(panel: "Axes") -> np.ndarray:
    """Pixels all along every line of the panel, [N, 2]."""
    found = [np.empty((0, 2))]
    for line in panel.get_lines():
        ends = line.get_transform().transform(np.column_stack(line.get_data()))
        for start, end in itertools.pairwise(ends):
            steps = np.linspace(0, 1, 2 + int(np.abs(end - start).max() // 2))
            found.append(start + steps[:, None] * (end - start))
    return np.concatenate(found)


def _write(panel: "Axes", label: Label, offset: np.ndarray) -> None:
    leader = dict(arrowstyle="-", color=label.colour, linewidth=0.7, shrinkA=1, shrinkB=2)
    panel.annotate(
        label.text,
        label.place,
        xytext=tuple(offset),
        textcoords="offset points",
        ha="center",
        va="center",
        color=label.colour,
        zorder=7,
        fontsize=SIZE,
        fontweight="bold",
        arrowprops=leader if np.hypot(*offset) > LEADER + SIZE else None,
    )
