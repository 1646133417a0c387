"""Plots of a run: step time and cost of a token against batch, measured and floor.

Each plot stands alone: its title names model, devices, dtypes, layout and the bandwidth that the
floors were taken at. Colours are those of Okabe and Ito, told apart with any kind of sight.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from profiles.figures import picture
from profiles.report.files import write_atomically
from profiles.report.lines import devices_words, lines, telling_fields
from profiles.report.numbers import exact
from profiles.report.record import Record
from profiles.report.step_table import TO
from profiles.report.titles import bandwidth_words, subject, text_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv*P"
SHARED = "#555555"  # a floor that is the same for every line of a panel
SAME = 0.005  # floors closer than this are drawn once
TICK_ROOM = 0.04  # part of a linear axis between two numbers at its ticks

Times = Callable[[Record], dict[str, float]]


class Line(NamedTuple):
    """One line of a panel: its name in the legend, its look and its records by batch."""

    label: str
    colour: str
    marker: str
    points: list[Record]


def step_time(document: dict, path: str | Path) -> "Figure":
    """Draws measured step time against batch over its floor, a panel per context.

    Args:
      document: a run's document.
      path: the PNG file to write.

    Returns:
      The figure as drawn.
    """

    def times(point: Record) -> dict[str, float]:
        found = {name: point.step_s[name] * 1e3 for name in ("median", "p10", "p90")}
        if _has_floor(point):
            found["floor"] = point.floor_s * 1e3
            if point.weight_floor_s is not None:
                found["weight floor"] = point.weight_floor_s * 1e3
        return found

    return _draw(document, path, times, "Step time against batch", "step time (ms)")


def cost(document: dict, path: str | Path) -> "Figure":
    """Draws what a token costs against batch over its floor, both axes logarithmic.

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
        title, axis = "Cost of a token against batch", "cost (USD per million tokens)"
    else:
        title = "Time per token (step time over the step's tokens) against batch"
        axis = "time per token (ms)"
    return _draw(document, path, times, title, axis, logarithmic=True)


def _has_floor(point: Record) -> bool:
    return point.floor_s is not None and point.ok


def _draw(
    document: dict, path: str | Path, times: Times, title: str, axis: str, logarithmic: bool = False
) -> "Figure":
    """A panel per context in two columns, one legend, a title above and notes below."""
    from matplotlib.figure import Figure

    lines = _lines([point for point in document["points"] if point.ran])
    contexts = sorted({line.points[0].context or 0 for line in lines}) or [0]
    columns = min(len(contexts), 2)
    rows = -(-len(contexts) // columns)
    head = _head(document, title)
    foot = _foot(document["points"])
    height = 3.9 * rows + 1.0 + 0.2 * (len(head) + len(foot))
    figure = Figure(figsize=(10, height), dpi=120)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for panel, context in zip(panels, contexts, strict=False):
        mine = [line for line in lines if (line.points[0].context or 0) == context]
        _panel(panel, mine, times)
        _batch_axis(panel, sorted({p.batch for line in mine for p in line.points}), logarithmic)
        if len(contexts) > 1:
            panel.set_title(f"context {context}", fontsize=11)
    for panel in list(panels)[len(contexts) :]:
        panel.remove()
    _value_axis(figure.axes, logarithmic)
    figure.supylabel(axis, fontsize=11)
    frame(figure, head, foot, _legend(lines, figure.axes))
    write_atomically(path, picture.png(figure))
    return figure


def _lines(points: Sequence[Record]) -> list[Line]:
    """Lines in order of device count; the same colour and marker for a label in every panel."""
    telling = [field for field in telling_fields(points) if field != "mesh"]

    def label(point: Record) -> str:
        told = (text_of(point, field) for field in telling)
        return ", ".join([devices_words(point.devices, point.mesh), *told])

    groups = sorted(lines(points), key=lambda group: group[0].devices or 1)
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


def _panel(panel: "Axes", lines: Sequence[Line], times: Times) -> None:
    for line in lines:
        batches = [point.batch for point in line.points]
        values = [times(point) for point in line.points]
        low, middle, high = ([v[name] for v in values] for name in ("p10", "median", "p90"))
        look = dict(color=line.colour, marker=line.marker, label=f"measured, {line.label}")
        panel.plot(batches, middle, linewidth=2, markersize=6, zorder=3, **look)
        panel.fill_between(batches, low, high, color=line.colour, alpha=0.18, linewidth=0)
        panel.vlines(batches, low, high, color=line.colour, alpha=0.5, linewidth=1.5)
    for name, style in (("floor", "--"), ("weight floor", ":")):
        _floors(panel, lines, times, name, style)
    panel.grid(axis="y", which="major", color="#DDDDDD", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _floors(panel: "Axes", lines: Sequence[Line], times: Times, name: str, style: str) -> None:
    """Draws one kind of floor for each line, or once in grey where all lines share it."""
    curves = {}
    for line in lines:
        found = [(p.batch, times(p)[name]) for p in line.points if name in times(p)]
        if found:
            curves[line.label, line.colour] = dict(found)
    merged = {batch: v for curve in curves.values() for batch, v in curve.items()}
    shared = all(np.isclose(v, merged[b], rtol=SAME) for c in curves.values() for b, v in c.items())
    if shared and len(curves) > 1:
        curves = {("all device counts", SHARED): dict(sorted(merged.items()))}
    for (label, colour), curve in curves.items():
        look = dict(color=colour, linestyle=style, linewidth=1.6, label=f"{name}, {label}")
        if name == "weight floor":
            panel.axhline(min(curve.values()), zorder=1, **look)
            continue
        batches, values = list(curve), list(curve.values())
        if len(curve) == 1:  # a point has no line; a short one makes its dashes visible
            batches, values = [batches[0] / 1.1, batches[0] * 1.1], values * 2
        panel.plot(batches, values, zorder=2, **look)


def _batch_axis(panel: "Axes", batches: Sequence[int], logarithmic: bool) -> None:
    """The axis of batches, with ticks at those that were run and that have room for a number.

    Linear where a step's time is drawn: that is a straight line in batch, which starts at the
    weights' read.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    panel.set_xlabel("batch (sequences)")
    ticks = list(batches)
    if logarithmic:
        panel.set_xscale("log", base=2)
        panel.set_xlim(*([batches[0] / 1.3, batches[-1] * 1.3] if batches else [1, 2]))
    elif batches:
        panel.set_xlim(0, batches[-1] * 1.05)
        ticks = [batches[-1]]
        for batch in reversed(batches):
            if ticks[0] - batch >= TICK_ROOM * batches[-1]:
                ticks.insert(0, batch)
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
    contexts = sorted({point.context for point in points if point.context is not None})
    words = subject(points)
    words += f", context {', '.join(map(str, contexts))}" * bool(contexts)
    floor = bandwidth_words(document["bandwidth"], document["device_kind"])
    return [title, *picture.lines(words, 126), *picture.lines(f"Floor at {floor}", 126)]


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
    for name, style in (("floor", "--"), ("weight floor", ":")):
        if any(label.startswith(f"{name},") for label in drawn):
            alike = all(f"{name}, all" in label for label in drawn if label.startswith(f"{name},"))
            words = name + ", the same for all lines" * (alike and len(colours) > 1)
            words += ", in its line's colour" * (not alike and len(colours) > 1)
            colour = SHARED if alike or len(colours) > 1 else lines[0].colour
            handles.append(
                Line2D([], [], color=colour, linestyle=style, linewidth=1.6, label=words)
            )
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
    columns = 3 if len(handles) > 2 else max(len(handles), 1)
    below = 0.2 * len(foot) + 0.1
    for i, note in enumerate(reversed(foot)):
        figure.text(0.06, (0.1 + 0.2 * i) * inch, note, fontsize=9, color=SHARED)
    legend_rows = -(-len(handles) // columns)
    place = dict(loc="lower center", bbox_to_anchor=(0.5, below * inch))
    figure.legend(handles=handles, ncols=columns, frameon=False, fontsize=9.5, **place)
    bottom = below + 0.24 * legend_rows + 0.15
    picture.lay_out(figure, rect=(0.01, bottom * inch, 0.99, y - 0.05 * inch))
