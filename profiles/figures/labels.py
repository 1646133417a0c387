"""Places short labels beside points of a panel, away from lines and from labels of other groups."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = 9  # font size in points
ANGLES = np.deg2rad(210 + np.array([0, 30, -30, 60, -60, 180, 150, -150, 120, -120, 90, -90]))
REACHES = (9, 13, 18, 24, 31, 39)  # points from a label's point to its edge
GAP = 2.0  # points to keep between a label and any line
COLUMN = np.array([14.0, 30.0])  # points across and up within which labels look like one column
LEADER = 12.0  # points of distance beyond which a thin line connects a label to its point


class Label(NamedTuple):
    """A text for one point, given in the panel's data coordinates, with its group and colour."""

    text: str
    position: tuple[float, float]
    group: str
    colour: str


class _Box(NamedTuple):
    """The rectangle of a label: its middle and half its size, in points."""

    middle: np.ndarray
    half: np.ndarray

    def gaps(self, positions: np.ndarray) -> np.ndarray:
        """Distance of points [N, 2] from it, the larger of across and up; negative inside."""
        return (np.abs(positions - self.middle) - self.half).max(-1)

    def apart(self, other: "_Box") -> np.ndarray:
        """Distances of another one from it, across and up; negative where they overlap."""
        return np.abs(other.middle - self.middle) - self.half - other.half


def write_labels(panel: "Axes", labels: Sequence[Label]) -> None:
    """Writes each label away from drawn lines and from the labels before it.

    A label that would overlap another one is left out.

    Args:
      panel: the panel, which must already have its final position and size.
      labels: the labels, the most important first.
    """
    scale = 72 / panel.figure.dpi
    on_lines = _on_lines(panel) * scale
    frame = panel.bbox.get_points() * scale
    set_ones: list[tuple[_Box, str]] = []
    for label in labels:
        point = panel.transData.transform(label.position) * scale
        half = np.array([0.36 * SIZE * len(label.text), 0.5 * SIZE])
        boxes = [
            _Box(point + (reach + half) * (np.cos(angle), np.sin(angle)), half)
            for reach, angle in itertools.product(REACHES, ANGLES)
        ]
        costs = [_cost(box, point, label.group, on_lines, frame, set_ones) for box in boxes]
        best = int(np.argmin(costs))  # the first of equal ones: near, and to the lower left
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
    """Penalty of a box for points of lines in it or on its leader, and for other groups nearby."""
    if (box.middle - box.half < frame[0]).any() or (box.middle + box.half > frame[1]).any():
        return np.inf
    cost = float((box.gaps(on_lines) < GAP).sum())
    offset = box.middle - point
    between = point + np.linspace(0.3, 1, 12)[:, None] * offset
    near = on_lines[np.abs(on_lines - point).max(-1) < np.abs(offset).max() + GAP]
    cost += 0.5 * (np.abs(between[:, None] - near).max(-1) < 1).any(0).sum()
    cost += 0.1 * np.hypot(*offset)
    for other, theirs in others:
        apart = box.apart(other)
        if (apart < GAP).all():
            return np.inf
        cost += 20 * (theirs != group and (apart < COLUMN).all())
    return cost


def _on_lines(panel: "Axes") -> np.ndarray:
    """Points along every line of the panel in pixels, [N, 2]."""
    segments = [np.empty((0, 2))]
    for line in panel.get_lines():
        ends = line.get_transform().transform(np.column_stack(line.get_data()))
        for start, end in itertools.pairwise(ends):
            steps = np.linspace(0, 1, 2 + int(np.abs(end - start).max() // 2))
            segments.append(start + steps[:, None] * (end - start))
    return np.concatenate(segments)


def _write(panel: "Axes", label: Label, offset: np.ndarray) -> None:
    leader = dict(arrowstyle="-", color=label.colour, linewidth=0.7, shrinkA=1, shrinkB=2)
    panel.annotate(
        label.text,
        label.position,
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
