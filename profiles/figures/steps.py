"""Plots of a run: step time and cost of a token against batch, measured, expected and floor.

Of prompts the chunks are drawn, against the tokens that are in the cache before them. Each plot
stands alone: its title names model, devices, dtypes, layout and the bandwidth that the floors were
taken at. Colours are those of Okabe and Ito, told apart with any kind of sight.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from profiles.figures import picture
from profiles.report.files import write_atomically
from profiles.report.lines import BY_BATCH, Axis, axis_of, devices_words, lines, telling_fields
from profiles.report.numbers import exact
from profiles.report.record import Record
from profiles.report.step_table import TO
from profiles.report.titles import rates_words, subject, text_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv*P"
SHARED = "#555555"  # a floor that is the same for every line of a panel
SAME = 0.005  # floors closer than this are drawn once
TICK_ROOM = 0.04  # part of a linear axis between two numbers at its ticks
LABEL = 42  # letters of labels of which three fit beside each other in a legend
STYLES: dict[str, dict] = {
    "floor": {"linestyle": "--", "linewidth": 1.6},
    "weight floor": {"linestyle": ":", "linewidth": 1.6},
    "expected": {"linestyle": "-", "linewidth": 1, "marker": "x", "markersize": 5},
}
"""Looks of lines that are not measured."""
AXES = {"batch": "batch (sequences)", "context": "tokens in the cache before the chunk"}
AGAINST = {"batch": "batch", "context": "tokens in the cache"}

Times = Callable[[Record], dict[str, float]]


class Line(NamedTuple):
    """One line of a panel: its name in the legend, its look and its records in order."""

    label: str
    colour: str
    marker: str
    points: list[Record]


def step_time(document: dict, path: str | Path) -> "Figure":
    """Draws measured step time against batch, its expected time and floor, a panel per context.

    Of prompts it draws the time of each chunk against the tokens before it, a panel per batch.

    Args:
      document: a run's document.
      path: the PNG file to write.

    Returns:
      The figure as drawn.
    """

    by_batch = axis_of(document["points"]) is BY_BATCH

    def times(point: Record) -> dict[str, float]:
        found = {name: point.step_s[name] * 1e3 for name in ("median", "p10", "p90")}
        if _has_floor(point):
            found["floor"] = point.floor_s * 1e3
            if by_batch and point.weight_floor_s is not None:
                found["weight floor"] = point.weight_floor_s * 1e3
        if point.expected_s is not None:
            found["expected"] = point.expected_s * 1e3
        return found

    if by_batch:
        return _draw(document, path, times, "Step time against batch", "step time (ms)")
    title = "Time of a prompt's chunk against tokens in the cache"
    return _draw(document, path, times, title, "chunk time (ms)")


def cost(document: dict, path: str | Path) -> "Figure":
    """Draws what a token costs over its floor, against batch or as `step_time` does.

    The axis of costs is logarithmic, and that of batches.

    In USD per million tokens where every measured record carries a price, else in milliseconds
    of step time per token. Arguments and result are those of `step_time`.
    """
    priced = all(p.usd_per_million_tokens is not None for p in document["points"] if p.ran)

    def times(point: Record) -> dict[str, float]:
        median = point.step_s["median"]
        tokens = point.batch * (point.tokens_per_sequence or 1)
        per_second = point.usd_per_million_tokens / median if priced else 1e3 / tokens
        found = {name: point.step_s[name] * per_second for name in ("median", "p10", "p90")}
        return found | ({"floor": point.floor_s * per_second} if _has_floor(point) else {})

    if priced:
        title, axis = "Cost of a token", "cost (USD per million tokens)"
    else:
        title = "Time per token (step time over the step's tokens)"
        axis = "time per token (ms)"
    title += f" against {AGAINST[axis_of(document['points']).along]}"
    return _draw(document, path, times, title, axis, logarithmic=True)


def _has_floor(point: Record) -> bool:
    return point.floor_s is not None and point.ok


def _draw(
    document: dict, path: str | Path, times: Times, title: str, axis: str, logarithmic: bool = False
) -> "Figure":
    """A panel per context, or batch, in two columns, one legend, title above and notes below."""
    from matplotlib.figure import Figure

    lines_along = axis_of(document["points"])
    lines = _lines([point for point in document["points"] if point.ran], lines_along)

    def panel_of(line: Line) -> int:
        return getattr(line.points[0], lines_along.panel) or 0

    values = sorted({panel_of(line) for line in lines}) or [0]
    columns = min(len(values), 2)
    rows = -(-len(values) // columns)
    head = _head(document, title)
    foot = _foot(document["points"])
    height = 3.9 * rows + 1.0 + 0.2 * (len(head) + len(foot))
    figure = Figure(figsize=(10, height), dpi=120)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for panel, value in zip(panels, values, strict=False):
        mine = [line for line in lines if panel_of(line) == value]
        _panel(panel, mine, times, lines_along.along)
        _size_axis(panel, mine, lines_along.along, logarithmic)
        if len(values) > 1:
            panel.set_title(f"{lines_along.panel} {value}", fontsize=11)
    for panel in list(panels)[len(values) :]:
        panel.remove()
    _value_axis(figure.axes, logarithmic)
    figure.supylabel(axis, fontsize=11)
    frame(figure, head, foot, _legend(lines, figure.axes))
    write_atomically(path, picture.png(figure))
    return figure


def _lines(points: Sequence[Record], axis: Axis) -> list[Line]:
    """Lines in order of device count; the same colour and marker for a label in every panel."""
    telling = [field for field in telling_fields(points, axis) if field != "mesh"]

    def label(point: Record) -> str:
        told = ("prompt " * (f == "prompt_length") + text_of(point, f) for f in telling)
        return ", ".join([devices_words(point.devices, point.mesh), *told])

    groups = sorted(lines(points, axis), key=lambda group: group[0].devices or 1)
    looks = {name: i for i, name in enumerate(dict.fromkeys(label(group[0]) for group in groups))}
    return [
        Line(
            name := label(group[0]),
            COLOURS[looks[name] % len(COLOURS)],
            MARKERS[looks[name] % len(MARKERS)],
            group,
        )
        for group in groups
    ]


def _panel(panel: "Axes", lines: Sequence[Line], times: Times, along: str) -> None:
    for line in lines:
        sizes = [getattr(point, along) for point in line.points]
        values = [times(point) for point in line.points]
        low, middle, high = ([v[name] for v in values] for name in ("p10", "median", "p90"))
        look = dict(color=line.colour, marker=line.marker, label=f"measured, {line.label}")
        panel.plot(sizes, middle, linewidth=2, markersize=6, zorder=3, **look)
        panel.fill_between(sizes, low, high, color=line.colour, alpha=0.18, linewidth=0)
        panel.vlines(sizes, low, high, color=line.colour, alpha=0.5, linewidth=1.5)
    for name, style in STYLES.items():
        _floors(panel, lines, times, along, name, style)
    panel.grid(axis="y", which="major", color="#DDDDDD", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _floors(
    panel: "Axes", lines: Sequence[Line], times: Times, along: str, name: str, style: dict
) -> None:
    """Draws one kind of time that is not measured for each line, or in grey where all share it."""
    curves = {}
    for line in lines:
        found = [(getattr(p, along), times(p)[name]) for p in line.points if name in times(p)]
        if found:
            curves[line.label, line.colour] = dict(found)
    merged = {size: v for curve in curves.values() for size, v in curve.items()}
    shared = all(np.isclose(v, merged[n], rtol=SAME) for c in curves.values() for n, v in c.items())
    if shared and len(curves) > 1:
        curves = {("all device counts", SHARED): dict(sorted(merged.items()))}
    for (label, colour), curve in curves.items():
        look = dict(color=colour, **style, label=f"{name}, {label}")
        if name == "weight floor":
            panel.axhline(min(curve.values()), zorder=1, **look)
            continue
        sizes, values = list(curve), list(curve.values())
        if len(curve) == 1:  # a point has no line; a short one makes its dashes visible
            (size,) = sizes
            sizes, values = [size / 1.1, size * 1.1] if size else [-0.1, 0.1], values * 2
        panel.plot(sizes, values, zorder=2, **look)


def _size_axis(panel: "Axes", lines: Sequence[Line], along: str, logarithmic: bool) -> None:
    """The axis of sizes, with ticks at those that were run and that have room for a number.

    Linear where a step's time is drawn: that is a straight line in batch, which starts at the
    weights' read. Tokens in the cache begin with none, so that their axis is always linear.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    panel.set_xlabel(AXES[along])
    sizes = sorted({getattr(point, along) for line in lines for point in line.points})
    ticks = list(sizes)
    if logarithmic and along == "batch":
        panel.set_xscale("log", base=2)
        panel.set_xlim(*([sizes[0] / 1.3, sizes[-1] * 1.3] if sizes else [1, 2]))
    elif sizes:
        longest = max(sizes[-1], 1)
        panel.set_xlim(0 if sizes[0] else -0.03 * longest, longest * 1.05)
        ticks = [sizes[-1]]
        for size in reversed(sizes):
            if ticks[0] - size >= TICK_ROOM * longest:
                ticks.insert(0, size)
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: exact(value)))


def _value_axis(panels: Sequence["Axes"], logarithmic: bool) -> None:
    """The axis that panels share, linear from zero or logarithmic."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    values = [v for panel in panels for line in panel.get_lines() for v in line.get_ydata()]
    if not values or not logarithmic:
        panels[0].set_ylim(bottom=0)
        return
    for panel in panels:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: exact(value)))
    # Room to a tick on either side, so that a short range has two of them at least.
    panels[0].set_ylim(min(values) / 1.6, max(values) * 1.6)


def _head(document: dict, title: str) -> list[str]:
    """The plot's name, then what was run and what its floors refer to, in lines that fit."""
    points = document["points"]
    words = subject(points)
    if axis_of(points) is BY_BATCH:
        words += _sizes(points, "context", ", context {}")
    else:
        words += _sizes(points, "batch", ", batch {}")
        words += _sizes(points, "prompt_length", ", prompts of {} tokens")
    rates = rates_words(document["bandwidth"], document.get("calibration"), document["device_kind"])
    return [title, *picture.lines(words, 126), *picture.lines(rates, 126)]


def _sizes(points: Sequence[Record], field: str, words: str) -> str:
    """The values of a field in words, empty if none is known."""
    sizes = sorted({getattr(point, field) for point in points} - {None})
    return words.format(", ".join(map(str, sizes))) * bool(sizes)


def _foot(points: Sequence[Record]) -> list[str]:
    """What is not drawn, and why."""
    notes = []
    for point in points:
        if point.ran and point.ok:
            continue
        where = devices_words(point.devices, point.mesh)
        what = "floor not drawn" if point.ran else "not drawn"
        notes.append(
            f"{where}, context {point.context}, batch {point.batch}: {what} "
            f"({point.status or 'ok'})"
        )
    return notes if len(notes) < 5 else [*notes[:3], f"and {len(notes) - 3} more not drawn"]


def _legend(lines: Sequence[Line], panels: Sequence["Axes"]) -> list:
    """A handle for each line's colour, then one in grey for each kind of line that is drawn."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = {line.label: (line.colour, line.marker) for line in lines}
    handles = [
        Line2D([], [], color=colour, marker=marker, linewidth=2, label=f"measured median, {label}")
        for label, (colour, marker) in colours.items()
    ]
    handles.append(Patch(color=SHARED, alpha=0.25, label=f"measured, p10{TO}p90"))
    drawn = [line.get_label() for panel in panels for line in panel.get_lines()]
    for name, style in STYLES.items():
        if any(label.startswith(f"{name},") for label in drawn):
            alike = all(f"{name}, all" in label for label in drawn if label.startswith(f"{name},"))
            words = name + ", the same for all lines" * (alike and len(colours) > 1)
            words += ", in its line's colour" * (not alike and len(colours) > 1)
            colour = SHARED if alike or len(colours) > 1 else lines[0].colour
            handles.append(Line2D([], [], color=colour, **style, label=words))
    return handles


def frame(figure: "Figure", head: Sequence[str], foot: Sequence[str], handles: list) -> None:
    """Sets title, legend and notes around the panels, each in room of its own.

    Args:
      figure: with its panels.
      head: the title, then lines below it.
      foot: notes at the bottom.
      handles: entries of the legend.
    """
    inch = 1 / figure.get_figheight()
    y = 1 - 0.12 * inch
    for text, size, weight in [
        (head[0], 14, "bold"),
        *((more, 9.5, "normal") for more in head[1:]),
    ]:
        figure.text(0.06, y, text, fontsize=size, fontweight=weight, va="top")
        y -= (0.3 if size > 10 else 0.2) * inch
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    columns = max(min(len(handles), 3 if longest <= LABEL else 2), 1)
    below = 0.2 * len(foot) + 0.1
    for i, note in enumerate(reversed(foot)):
        figure.text(0.06, (0.1 + 0.2 * i) * inch, note, fontsize=9, color=SHARED)
    legend_rows = -(-len(handles) // columns)
    place = dict(loc="lower center", bbox_to_anchor=(0.5, below * inch))
    figure.legend(handles=handles, ncols=columns, frameon=False, fontsize=9.5, **place)
    bottom = below + 0.24 * legend_rows + 0.15
    picture.lay_out(figure, rect=(0.01, bottom * inch, 0.99, y - 0.05 * inch))
