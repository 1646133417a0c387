"""Parts that the figures of curves share: panels, titles, notes, axes and legends."""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from profiles.expected.estimate import Estimator
from profiles.figures import picture
from profiles.figures.curves import layout_words
from profiles.figures.steps import SHARED, frame
from profiles.report.files import write_atomically
from profiles.report.numbers import exact, number, several, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXPECTED = dict(linestyle="-", linewidth=2)
FLOOR = dict(linestyle=(0, (5, 2)), linewidth=1.8)
WIDTH, DPI = 11.0, 100
LINE = 140  # characters of a line below the title
PALE = 0.28


def panels(count: int, height: float = 5.9) -> "tuple[Figure, list[Axes]]":
    """An empty figure with panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    return figure, list(figure.subplots(1, count, squeeze=False).flat)


def finish(
    figure: "Figure",
    path: str | Path,
    head: Sequence[str],
    notes: Iterable[str],
    handles: Sequence[object] | None = None,
    at_last: Callable[[], None] = lambda: None,
) -> "Figure":
    """Writes title, notes and legend around the panels, and saves the PNG file.

    Args:
      figure: the figure, with its panels drawn.
      path: path of the file.
      head: the title, then lines about the subject; long ones are wrapped.
      notes: lines at the bottom; long ones are wrapped.
      handles: entries of the legend; if None, the lines with a name, each name once.
      at_last: draws into the panels what depends on their final positions.

    Raises:
      OutputError: the file cannot be written.
    """
    for panel in figure.axes:
        panel.grid(which="major", color="#E3E3E3", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    named = {} if handles is None else {handle.get_label(): handle for handle in handles}
    if handles is None:
        for panel in figure.axes:
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                named.setdefault(label, handle)
    lines = [head[0], *(line for text in head[1:] for line in picture.lines(text, LINE))]
    foot = [line for note in notes for line in picture.lines(note, LINE)]
    frame(figure, lines, foot, list(named.values()))
    at_last()
    write_atomically(path, _png(figure))
    return figure


def _png(figure: "Figure") -> bytes:
    """The picture with a palette of 256 colours, which takes a third of the bytes."""
    from PIL import Image

    drawn, small = io.BytesIO(picture.png(figure)), io.BytesIO()
    pixels = np.asarray(Image.open(drawn).convert("RGB"))
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    colours, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    levels = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=-1)
    kept = levels[np.argsort(-counts, kind="stable")[:256]]
    nearest = np.square(levels[:, None] - kept).sum(-1).argmin(-1).astype(np.uint8)
    image = Image.fromarray(nearest[places].reshape(packed.shape))
    image.putpalette(kept.astype(np.uint8).tobytes())
    image.save(small, "png", optimize=True)
    return small.getvalue()


def subject(estimator: Estimator, *more: str, layout: bool = True, slice: bool = True) -> str:
    """A line with model, types, slice, and more that all lines of a figure have in common."""
    deployment = estimator.deployment
    chips = deployment.slice.chips
    parts = [deployment.model.name, str(deployment.dtypes)]
    parts += [f"{deployment.slice} ({several(chips, 'chip')})"] if slice else []
    parts += [f"experts by {deployment.experts}"] if deployment.model.experts else []
    parts += [*more, *([layout_words(estimator)] if layout else [])]
    return ", ".join(parts)


def peaks_words(estimator: Estimator, priced: bool = False) -> list[str]:
    """Two lines: the rates of the floor; calibration and price of expected times and costs."""
    deployment, peaks, chip = estimator.deployment, estimator.peaks, estimator.chip
    parts = peaks.devices_per_chip
    floor = f"{number(peaks.bandwidth * parts / 1e9)} GB/s of memory, "
    floor += f"{number(peaks.flops * parts / 1e12)} TFLOP/s ({deployment.arithmetic})"
    if chip.link and deployment.slice.chips > 1:
        floor += f" and links of {number(chip.link / 1e9)} GB/s"
    expected = (
        f"Expected: recommended figures, calibration {deployment.calibration.describe(chip.name)}."
    )
    if priced and deployment.price is None:
        expected += " No price of the chip is known: costs are in chip-seconds."
    elif priced:
        expected += f" Price: {deployment.price}."
    return [f"Floor: per chip {floor}, {chip.source}, all overlapped.", expected]


def sized_words(estimator: Estimator) -> list[str]:
    """A line about collectives, if a model is known by its sizes alone."""
    if estimator.placement:
        return []
    name = estimator.deployment.model.name
    return [f"{name} is known by its sizes alone: collectives are in expected times, in no floor."]


def logarithmic(axis: object, values: Sequence[float], base: int = 10, room: float = 1.15) -> None:
    """Makes an axis logarithmic over these values, with decimal numbers at its ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = min(values) / room, max(values) * room
    axis._set_axes_scale("log", base=base)
    wide = np.log10(high / low)
    subs = (1.0,) if base == 2 or wide > 3 else (1.0, 2.0, 5.0)
    step = 4 if base == 2 and wide > 2.7 else base  # labels of ten powers of two would touch
    axis.set_major_locator(LogLocator(step, subs=subs, numticks=16))
    axis.set_minor_locator(NullLocator())
    text = exact if base == 2 else short
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(low, high)


def key(**look: object) -> object:
    """An entry for the legend that draws nothing in the panel."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"color": SHARED, **look})
