"""A waterfall: from the floor of a step to its measured time, block by block, largest gap first."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from profiles.figures import picture
from profiles.figures.steps import SHARED, frame
from profiles.report.files import write_atomically
from profiles.report.numbers import ms
from profiles.report.record import Record
from profiles.report.titles import bandwidth_words, subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FLOOR, MORE, LESS, WHOLE = "#009E73", "#D55E00", "#56B4E9", "#0072B2"
LEAST = 0.01  # part of the measured step below which bars share one
REMEDIES = 3  # that are written below the bars
FOOT = 140  # letters of a line there


class Bar(NamedTuple):
    """One bar: from where to where it goes, in milliseconds."""

    name: str
    start: float
    end: float
    colour: str


def waterfall(document: dict, path: str | Path) -> "Figure":
    """Draws where a step's time over its floor goes.

    Args:
      document: an explained step's document, as `scripts/explain_step.py` writes it.
      path: the PNG file to write.

    Returns:
      The figure as drawn.
    """
    from matplotlib.figure import Figure

    (record,) = document["points"]
    bars = bars_of(document, record.step_s["median"])
    head, foot = _head(document, record), _foot(document)
    height = 0.42 * len(bars) + 1.1 + 0.2 * (len(head) + len(foot))
    figure = Figure(figsize=(10, height), dpi=120)
    panel = figure.subplots()
    _draw(panel, bars)
    frame(figure, head, foot, [])
    write_atomically(path, picture.png(figure))
    return figure


def bars_of(document: dict, measured_s: float) -> list[Bar]:
    """The bars in order: the floor, what comes on top of each other, and the measured step."""
    steps = [(each["name"], each["seconds"]) for each in document["waterfall"]]
    (floor, floor_s), *steps = steps
    large = [each for each in steps if abs(each[1]) >= LEAST * measured_s]
    small = [each for each in steps if each not in large]
    if small:
        name = small[0][0] if len(small) == 1 else f"{len(small)} others"
        large.append((name, sum(seconds for _, seconds in small)))
    bars = [Bar(floor, 0.0, floor_s * 1e3, FLOOR)]
    for name, seconds in large:
        start = bars[-1].end
        bars.append(Bar(name, start, start + seconds * 1e3, MORE if seconds >= 0 else LESS))
    return [*bars, Bar("measured", 0.0, measured_s * 1e3, WHOLE)]


def _draw(panel: "Axes", bars: list[Bar]) -> None:
    longest = max(max(bar.start, bar.end) for bar in bars)
    for row, bar in enumerate(bars):
        left, right = sorted((bar.start, bar.end))
        panel.barh(row, right - left, left=left, height=0.62, color=bar.colour, zorder=3)
        change = bar.colour in (MORE, LESS)
        sign = "+" if bar.colour == MORE else "\N{MINUS SIGN}" if change else ""
        said = f"{sign}{ms((right - left) / 1e3)} ms"
        panel.text(right + 0.008 * longest, row, said, va="center", fontsize=9.5, zorder=4)
        if row + 1 < len(bars):
            panel.plot([bar.end] * 2, [row, row + 1], color=SHARED, linewidth=0.8, zorder=2)
    panel.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=10)
    panel.set_ylim(len(bars) - 0.5, -0.5)
    panel.set_xlim(min(0.0, *(min(bar.start, bar.end) for bar in bars)), 1.12 * longest)
    panel.set_xlabel("time of a step (ms)", fontsize=10)
    panel.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(axis="y", length=0)


def _head(document: dict, record: Record) -> list[str]:
    words = f"{subject([record])}, batch {record.batch}, context {record.context}"
    floor = bandwidth_words(document["bandwidth"], document["device_kind"])
    title = "From the floor of a decode step to its measured time"
    return [title, *picture.lines(words, 126), *picture.lines(f"Floor at {floor}", 126)]


def _foot(document: dict) -> list[str]:
    """What is known to help the blocks that lost most."""
    told: dict[str, list[str]] = {}
    for block in document["blocks"]:
        if "remedy" in block:
            told.setdefault(block["remedy"], []).append(block["name"])
    lines = []
    for words, names in list(told.items())[:REMEDIES]:
        lines += textwrap.wrap(f"{', '.join(names)}: {words}", FOOT, subsequent_indent="    ")
    return lines
