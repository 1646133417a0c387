"""Bars of published services: the part of their time that the floor is, by engine, chip and model.

They are of what others published; bars of engines that were compared here are those of `engines`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from profiles.figures import picture
from profiles.figures.curve_figures import BLUE, GREEN, ORANGE, RED
from profiles.figures.panels import key
from profiles.report.files import write_atomically
from profiles.report.numbers import several

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"weights": BLUE, "kv cache": GREEN, "compute": RED, "communication": ORANGE}


class Bar(NamedTuple):
    """Runs that a bar is of.

    Attributes:
      name: engine, chip and model.
      of_floor: for each run the floor over the published time.
      median: the median of these.
      of_expected: the median of the expected time over the published time.
      bound: what bounds the floor of the run at the median, a key of `COLOURS`.
    """

    name: str
    of_floor: Sequence[float]
    median: float
    of_expected: float
    bound: str


def league_bars(bars: Sequence[Bar], path: str | Path) -> "Figure":
    """Draws a bar for each entry of the league, with its runs and its expected time.

    Args:
      bars: the entries, at least one, in the order in which they are drawn from above.
      path: the PNG file.

    Returns:
      The figure, for a test to look at.

    Raises:
      OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.9 + 0.26 * len(bars)), dpi=100)
    panel = figure.subplots()
    names = [f"{bar.name} ({len(bar.of_floor)})" for bar in bars]
    places = range(len(bars))
    colours = [COLOURS[bar.bound] for bar in bars]
    panel.barh(places, [bar.median for bar in bars], color=colours, height=0.66, alpha=0.75)
    for place, bar in zip(places, bars, strict=True):
        panel.plot(bar.of_floor, [place] * len(bar.of_floor), "|", color="black", markersize=6)
        panel.plot(bar.of_expected, place, "D", color="white", markeredgecolor="black")
    panel.axvline(1.0, color="black", linewidth=1)
    panel.set_yticks(places, names, fontsize=8)
    panel.set_ylim(len(bars) - 0.4, -0.6)  # the first above
    panel.set_xlim(left=0)
    panel.set_xlabel("part of the published time")
    panel.spines[["top", "right"]].set_visible(False)
    marks = [key(color=COLOURS[bound], linewidth=6, label=f"floor, bound by {bound}")
             for bound in COLOURS if any(bar.bound == bound for bar in bars)]  # fmt: skip
    marks.append(key(color="black", marker="|", linestyle="", label="floor of one run"))
    marks.append(key(color="black", marker="D", markerfacecolor="white", linestyle="",
                     label="expected, median"))  # fmt: skip
    panel.annotate("published", (1, -0.6), xytext=(4, 2), textcoords="offset points", fontsize=8)
    figure.legend(handles=marks, loc="lower center", ncols=len(marks), fontsize=8)
    runs = several(sum(len(bar.of_floor) for bar in bars), "published run")
    title = f"What engines reach of the floor: medians of {runs} of services"
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
    picture.lay_out(figure, rect=(0, 0.35 / figure.get_figheight(), 1, 0.99))
    write_atomically(path, picture.png(figure))
    return figure
