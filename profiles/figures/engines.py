"""Bars of engines that were compared here: a decode step beside the first token, with spread.

Engines whose services others published are drawn by `league`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.figures import picture
from profiles.figures.steps import COLOURS
from profiles.report.files import write_atomically
from profiles.report.numbers import exact, ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = {
    "step_s": "decode step (ms)",
    "first_token_s": "first token: the whole prompt (ms)",
}


def engine_bars(document: Mapping, path: str | Path) -> "Figure":
    """Draws a bar for each engine that was measured; those without times are named below.

    Args:
      document: of `scripts/compare_engines.py`.
      path: the PNG file.

    Returns:
      The figure, for a test to look at.

    Raises:
      OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    measured = [engine for engine in document["engines"] if "step_s" in engine]
    figure = Figure(figsize=(11, 1.9 + 0.55 * max(len(measured), 1)), dpi=100)
    for panel, (field, label) in zip(
        figure.subplots(1, 2, sharey=True), _PANELS.items(), strict=True
    ):
        _bars(panel, measured, field)
        panel.set_xlabel(label)
    work = document["work"]
    title = (
        f"{document['model']}, {document['dtype']}, on {document['device_kind']}, "
        f"batch {exact(work['batch'])}: medians of {exact(work['rounds'])} rounds in turns"
    )
    subtitle = (
        f"prompts of {exact(work['prompt_length'])} tokens, {exact(work['new_tokens'])} new ones "
        f"each, {exact(work['threads'])} threads; lines from p10 to p90"
    )
    absent = [engine["name"] for engine in document["engines"] if "step_s" not in engine]
    if absent:
        subtitle += f"; not measured: {', '.join(absent)}"
    figure.suptitle(title, x=0.02, y=0.985, ha="left", fontsize=11, fontweight="bold")
    figure.text(0.02, 0.86 if len(measured) > 2 else 0.83, subtitle, fontsize=9)
    picture.lay_out(figure, rect=(0, 0, 1, 0.9))
    write_atomically(path, picture.png(figure))
    return figure


def _bars(panel: "Axes", engines: Sequence[Mapping], field: str) -> None:
    names = [f"{engine['name']}\n({engine['dtype']})" for engine in engines]
    middle = [engine[field]["median"] * 1e3 for engine in engines]
    low = [m - engine[field]["p10"] * 1e3 for m, engine in zip(middle, engines, strict=True)]
    high = [engine[field]["p90"] * 1e3 - m for m, engine in zip(middle, engines, strict=True)]
    colours = [COLOURS[0] if number == 0 else "#999999" for number in range(len(engines))]
    panel.barh(names, middle, xerr=(low, high), color=colours, capsize=3, height=0.62)
    for row, (value, more) in enumerate(zip(middle, high, strict=True)):
        panel.annotate(
            ms(value / 1e3), (value + more, row), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=9,
        )  # fmt: skip
    panel.set_xlim(0, 1.18 * max((v + h for v, h in zip(middle, high, strict=True)), default=1))
    panel.set_ylim(len(engines) - 0.4, -0.6)  # the first above
    panel.spines[["top", "right"]].set_visible(False)
