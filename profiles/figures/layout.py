"""Draws a layout: the mesh, and the part of each kind of array that each chip holds."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from profiles.figures import picture
from profiles.figures.steps import COLOURS
from profiles.report.files import write_atomically
from sharding.axes import LOGICAL_AXES
from sharding.layout import Axes
from sharding.placement import Placement, entry_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel
    from matplotlib.figure import Figure

MOST_CHIPS = 128
"""Most chips to draw; the picture of a larger mesh says that it shows only the first ones."""
_CELL = 0.82  # side of a chip's square, as a fraction of its cell


class Shown(NamedTuple):
    """One kind of array: title, axes down and across a chip's square, and sharding."""

    title: str
    down: str
    across: str
    spec: jax.P


def layout_figure(placement: Placement, subject: str, path: str | Path) -> "Figure":
    """Draws what each chip holds: a panel per kind of array, a square per chip.

    A square stands for the entire array; its filled part is that chip's shard.

    Args:
      placement: the layout on a mesh.
      subject: the picture's second line, which names model, dtypes, batch and context.
      path: the PNG file to write.

    Returns:
      The figure.
    """
    from matplotlib.figure import Figure

    kinds = shown_arrays(placement)
    chips = list(itertools.product(*map(range, placement.mesh.values())))[:MOST_CHIPS]
    rows, columns = _grid(placement)
    across = 2 if columns > 8 else 3
    down = -(-len(kinds) // across)
    width = 13.0
    panel_height = (width / across - 0.5) * min(rows, -(-MOST_CHIPS // columns)) / columns
    height = down * (max(panel_height, 0.6) + 1.1) + 1.1
    figure = Figure(figsize=(width, height), dpi=120)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for panel, kind in zip(panels, kinds, strict=False):
        _draw(panel, kind, placement, chips)
    for panel in panels[len(kinds) :]:
        panel.remove()
    head = [f"What each chip holds: {placement.layout.name}", *picture.lines(subject, 150)]
    head += _legend(placement, len(chips))
    y = 1 - 0.1 / height
    for line, text in enumerate(head):
        size, weight = (14, "bold") if not line else (9.5, "normal")
        figure.text(0.02, y, text, fontsize=size, fontweight=weight, va="top")
        y -= (0.3 if not line else 0.2) / height
    picture.lay_out(figure, rect=(0, 0, 1, y), h_pad=2.6)
    write_atomically(path, picture.png(figure))
    return figure


def shown_arrays(placement: Placement) -> list[Shown]:
    """The kinds of arrays in whose sharding layouts differ."""
    stored, use = placement.weights, placement.use
    mixture = "E" in placement.sizes
    width = "EF" if mixture else "F"
    what = "Experts" if mixture else "MLP"
    kinds = [
        Shown(f"{what}: weights as stored", width, "D", stored(width + "D")),
        Shown("Queries: weights as stored", "KGh", "D", stored("KGhD")),
        Shown("Embedding as stored", "V", "D", stored("VD")),
        Shown("KV cache", "B", "KS", placement.cache("BKS")),
        Shown("Residual stream", "B", "R", placement.activations("BR")),
        Shown("Queries in attention", "B", "KG", placement.attention("BKG")),
    ]
    if use(width + "D") != stored(width + "D"):
        kinds.insert(1, Shown(f"{what}: weights in use", width, "D", use(width + "D")))
    return kinds


def part(
    divided: Sequence[Axes], chip: dict[str, int], mesh: dict[str, int]
) -> tuple[float, float]:
    """Position of a chip's shard along one side of its square.

    Args:
      divided: mesh axes that divide each dimension of that side, the slowest first.
      chip: the chip's coordinate along each mesh axis.
      mesh: sizes of the mesh axes.

    Returns:
      Begin and length of the shard on a side of length 1.
    """
    begin, length = 0.0, 1.0
    for axis in itertools.chain(*divided):
        length /= mesh[axis]
        begin += chip[axis] * length
    return begin, length


def _draw(panel: "Panel", kind: Shown, placement: Placement, chips: list[tuple[int, ...]]) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    _, columns = _grid(placement)
    divided = [entry_axes(entry) for entry in kind.spec]
    split = len(kind.down)
    outlines, parts, colours = [], [], []
    for coordinates in chips:
        chip = dict(zip(placement.mesh, coordinates, strict=True))
        row, column = divmod(
            np.ravel_multi_index(coordinates, tuple(placement.mesh.values())), columns
        )
        left, top = column + (1 - _CELL) / 2, row + (1 - _CELL) / 2
        outlines.append(Rectangle((left, top), _CELL, _CELL))
        y, height = part(divided[:split], chip, placement.mesh)
        x, width = part(divided[split:], chip, placement.mesh)
        size = (width * _CELL, height * _CELL)
        parts.append(Rectangle((left + x * _CELL, top + y * _CELL), *size))
        colours.append(COLOURS[chip["x"] % len(COLOURS)])
        if len(chips) <= 16:
            name = "".join(map(str, coordinates))
            panel.text(column + 0.5, row + 1.03, name, fontsize=7, ha="center", va="center")
    panel.add_collection(
        PatchCollection(outlines, facecolor="#EEEEEE", edgecolor="#999999", lw=0.6)
    )
    panel.add_collection(PatchCollection(parts, facecolor=colours, edgecolor=colours, lw=0.8))
    panel.set_xlim(0, columns)
    panel.set_ylim(max(1, -(-len(chips) // columns)) + 0.2, 0)
    panel.set_aspect("equal")
    panel.axis("off")
    copies = placement.copies(kind.spec)
    share = (
        f"1/{placement.devices // copies} of it on each chip"
        if copies < placement.devices
        else ("whole on each chip")
    )
    panel.set_title(f"{kind.title} {_notation(kind)}\n{share}, {_copies(copies)}", fontsize=9)


def _notation(kind: Shown) -> str:
    pairs = zip(kind.down + kind.across, (entry_axes(entry) for entry in kind.spec), strict=True)
    return f"[{', '.join(letter + '.' * bool(by) + ''.join(by) for letter, by in pairs)}]"


def _copies(copies: int) -> str:
    return "1 copy" if copies == 1 else f"{copies} copies"


def _grid(placement: Placement) -> tuple[int, int]:
    """Rows and columns of chips: x by y times z; one row of x if y and z are 1."""
    x, y, z = placement.mesh.values()
    return (x, y * z) if y * z > 1 else (1, x)


def _legend(placement: Placement, chips: int) -> list[str]:
    """Lines that explain squares, colours and letters."""
    sizes = ", ".join(f"{axis}={size}" for axis, size in placement.mesh.items())
    rows, _ = _grid(placement)
    order = "a row for each x, in it z fastest" if rows > 1 else "in the order of x, y, z"
    text = (
        f"Mesh {sizes}: {order}; colour tells x, numbers below are x, y and z. A square is the "
        "whole array, its filled part what the chip holds; the first letters run down, the last "
        "ones across."
    )
    if placement.devices > chips:
        text += f" The first {chips} of {placement.devices} chips."
    used = dict.fromkeys("".join(k.down + k.across for k in shown_arrays(placement)))
    words = "; ".join(f"{letter} {LOGICAL_AXES[letter].split(':')[0]}" for letter in used)
    return picture.lines(text, 170) + picture.lines(words, 170)
