"""Heat maps of a grid of compiled steps: what they hold, and what they move beyond the floor."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from profiles.figures import picture
from profiles.figures.panels import DPI
from profiles.report.files import write_atomically
from profiles.report.numbers import number
from profiles.report.titles import field_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW = ("model", "weight_dtype", "kv_dtype", "phase", "batch", "work")
_COLUMN = ("topology", "layout", "attention", "collectives")


def heat_map(
    rows: Sequence[Mapping], field: str, title: str, path: Path, span: tuple[float, float]
) -> "Figure":
    """A coloured square for each point, with its number; grey says why there is none.

    Args:
      rows: what `profiles.compiled.grid.summary` gives.
      field: what is drawn.
      title: what that is, with what it is over.
      path: the PNG file.
      span: numbers at which colours begin and end.

    Returns:
      The figure, for a test to look at.

    Raises:
      OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    names = [_name(row, _ROW) for row in rows], [_name(row, _COLUMN) for row in rows]
    ups, acrosses = (list(dict.fromkeys(each)) for each in names)
    meshes = {name: {} for name in acrosses}  # meshes of a column's squares, each once
    for row, across in zip(rows, names[1], strict=True):
        meshes[across] |= {field_text(row["mesh"]): None} if "mesh" in row else {}
    values = np.full((len(ups), len(acrosses)), np.nan)
    words = {}
    for row, up, across in zip(rows, *names, strict=True):
        place = ups.index(up), acrosses.index(across)
        values[place] = row.get(field, np.nan)
        words[place] = number(row[field]) if field in row else row["status"].replace("_", "\n")
    figure = Figure(figsize=(4.6 + 1.75 * len(acrosses), 2.6 + 0.42 * len(ups)), dpi=DPI)
    panel = figure.subplots()
    panel.set_facecolor("#D8D8D8")  # seen where a number is missing
    image = panel.imshow(values, cmap="YlOrRd", vmin=span[0], vmax=span[1], aspect="auto")
    for (up, across), text in words.items():
        dark = values[up, across] > span[0] + 0.6 * (span[1] - span[0])
        panel.text(across, up, text, ha="center", va="center", fontsize=8,
                   color="white" if dark else "black")  # fmt: skip
    labels = ["\n".join([name, *found]) for name, found in meshes.items()]
    panel.set_xticks(range(len(acrosses)), labels, fontsize=8)
    panel.set_yticks(range(len(ups)), ups, fontsize=8)
    # From the figure's edge: a grid of one column is narrower than its title.
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, fontweight="bold")
    figure.colorbar(image, ax=panel, extend="max")
    picture.lay_out(figure)
    write_atomically(path, picture.png(figure))
    return figure


def _name(row: Mapping, fields: Sequence[str]) -> str:
    tokens = row.get("tokens_per_sequence", 1)
    work = f"x {tokens if tokens > 1 else row.get('context', 0):,}"
    shown = [str(value) for field in fields if (value := {**row, "work": work}.get(field))]
    return "\n".join(shown) if fields is _COLUMN else " ".join(shown)
