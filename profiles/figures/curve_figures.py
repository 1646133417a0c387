"""Figures of decode steps against batch: step time, cost of a token, and both for each context.

Each explains itself: its title names model, types, slice, context and layout, and the rates of
floor and expected time. Floors are dashed, expected times solid, as in every plot of the project.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from profiles.figures.curves import StepCurves, Unit
from profiles.figures.panels import (
    EXPECTED,
    FLOOR,
    PALE,
    finish,
    key,
    logarithmic,
    panels,
    peaks_words,
    sized_words,
    subject,
)
from profiles.figures.steps import COLOURS, SHARED
from profiles.figures.study import Study
from profiles.report.numbers import exact, ms, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK = COLOURS
TERMS = {
    "weights": ("weights", BLUE),
    "kv_cache": ("KV cache", RED),
    "compute": ("compute", GREEN),
    "communication": ("communication", SKY),
}
BATCH = "batch (sequences)"


def latency(study: Study, path: str | Path) -> "Figure":
    """Draws a step's floor with its terms, and its expected time, against batch.

    Args:
      study: the study whose curves are drawn.
      path: the PNG file to write.

    Returns:
      The figure.
    """
    curves = study.steps[0]
    figure, (near, far) = panels(2)
    for panel in (near, far):
        _terms(panel, curves, curves.batches, lambda seconds: seconds * 1e3)
        _curve(panel, curves, curves.memory * 1e3, "memory: weights + KV cache", PINK)
        _totals(panel, curves, curves.floor * 1e3, curves.expected * 1e3)
        _takeover(panel, curves, 1e3)
        _unfit(panel, curves)
        panel.set_xlabel(BATCH)
        panel.set_ylabel("step time (ms)")
    last = _near(curves)
    near.set_xlim(0, last)
    top = min(1.05 * curves.at("expected", last), 2.2 * curves.at("floor", last))
    near.set_ylim(0, 1e3 * max(top, 1.05 * curves.at("floor", last)))
    near.set_title("straight lines: linear axes", fontsize=10)
    logarithmic(far.xaxis, curves.batches, base=2)
    lowest = max(1e3 * _least(curves), 1e3 * curves.floor[0] / 200)
    logarithmic(far.yaxis, [lowest, *(curves.expected * 1e3)], room=1.5)
    far.set_title("all batches: logarithmic axes", fontsize=10)
    head = ["Time of a decode step against batch, and the terms of its floor"]
    head += _of_steps(study)
    return finish(figure, path, head, [*_notes(study, curves), _expected_words(study, curves)])


def cost(study: Study, path: str | Path) -> "Figure":
    """Draws the cost of a token against batch, by term; the arguments are those of `latency`."""
    curves, unit = study.steps[0], study.unit
    batches = curves.batches
    figure, (near, far) = panels(2)
    floor, expected = unit.cost(curves.floor, batches), unit.cost(curves.expected, batches)
    bound = unit.cost(curves.limit, 1)
    for panel in (near, far):
        _terms(panel, curves, batches, lambda seconds: unit.cost(seconds, batches))
        _totals(panel, curves, floor, expected)
        label = f"limit of the floor: {number(bound)} {unit.name}"
        panel.axhline(bound, color=SHARED, linestyle=":", linewidth=1.8, label=label)
        if curves.takeover and curves.takeover <= batches[-1]:
            _takeover(panel, curves, unit.cost(1, curves.takeover))
        _unfit(panel, curves)
        panel.set_xlabel(BATCH)
        panel.set_ylabel(f"cost ({unit.name})")
    last = _near(curves)
    near.set_xlim(0, last)
    level = unit.cost(curves.at("expected", last), last)
    near.set_ylim(0, max(5 * bound, 2.2 * level))
    near.set_title("linear axes", fontsize=10)
    logarithmic(far.xaxis, batches, base=2)
    lowest = min(min(unit.cost(getattr(curves, name), batches)) for name in _drawn(curves))
    top = max(expected)
    logarithmic(far.yaxis, [max(lowest, bound / 30), top], room=1.5)
    far.set_title("all batches: logarithmic axes", fontsize=10)
    head = ["Cost of a token against batch: weights are shared, cache and compute are not"]
    head += _of_steps(study, priced=True)
    return finish(figure, path, head, _notes(study, curves))


def contexts(study: Study, path: str | Path) -> "Figure":
    """Draws step time and cost for every context; the arguments are those of `latency`."""
    unit, steps = study.unit, sorted(study.steps, key=lambda each: each.context)
    figure, (times, costs) = panels(2, 6.3)
    handles = []
    for colour, curves in zip(_hues(len(steps)), steps, strict=True):
        _one_context(times, costs, unit, curves, colour)
        words = "compute never takes over"
        if curves.takeover:
            words = f"compute takes over at batch {curves.takeover}"
        handles.append(key(color=colour, linewidth=3, label=f"context {curves.context}: {words}"))
    for panel, axis, scale in (
        (times, "step time (ms)", lambda curves, seconds: seconds * 1e3),
        (costs, f"cost ({unit.name})", lambda curves, s: unit.cost(s, curves.batches)),
    ):
        panel.set_xlabel(BATCH)
        panel.set_ylabel(axis)
        logarithmic(panel.xaxis, steps[0].batches, base=2)
        both = [scale(curves, each) for curves in steps for each in (curves.floor, curves.expected)]
        logarithmic(panel.yaxis, np.concatenate(both), room=1.3)
    handles += [
        key(label="expected", **EXPECTED),
        key(label="floor", **FLOOR),
        key(marker="o", markersize=8, linestyle="none", label="compute takes over"),
        key(alpha=PALE, linewidth=3, label="pale: does not fit in memory"),
    ]
    head = ["Time of a decode step and cost of a token against batch, by context"]
    head += [subject(study.estimator), *peaks_words(study.estimator, priced=True)]
    return finish(
        figure, path, head, [balance_words(study), *sized_words(study.estimator)], handles
    )


def _one_context(times: "Axes", costs: "Axes", unit: Unit, curves: StepCurves, colour: str) -> None:
    batches, name = curves.batches, f"context {curves.context}"
    for kind, look in (("floor", FLOOR), ("expected", EXPECTED)):
        seconds, look = getattr(curves, kind), dict(color=colour, label=f"{kind}, {name}", **look)
        _fitting(times, curves, seconds * 1e3, **look)
        _fitting(costs, curves, unit.cost(seconds, batches), **look)
    if curves.takeover and curves.takeover <= batches[-1]:
        seconds = curves.at("floor", curves.takeover)
        mark = dict(marker="o", color=colour, markersize=8, zorder=5, linestyle="none")
        times.plot([curves.takeover], [seconds * 1e3], label=f"takeover, {name}", **mark)
        costs.plot([curves.takeover], [unit.cost(seconds, curves.takeover)], **mark)


def balance_words(study: Study) -> str:
    """Words about the context beyond which no batch makes a step compute-bound."""
    if study.balanced is None:
        return (
            "The cache never takes as long to read as a sequence's arithmetic: enough batch "
            "makes a step compute-bound at any context."
        )
    return (
        f"Balanced context: {exact(study.balanced)} tokens. Beyond it one more sequence takes "
        "memory longer than arithmetic: no batch is compute-bound."
    )


def _of_steps(study: Study, priced: bool = False) -> list[str]:
    estimator = study.estimator
    return [subject(estimator, f"context {study.context}"), *peaks_words(estimator, priced)]


def _expected_words(study: Study, curves: StepCurves) -> str:
    """The rule that combines the terms of an expected time, and the terms at one batch."""
    last = int(curves.batches[-1])
    batch = min(curves.takeover or last, curves.fits_to or last, last)
    terms = study.estimator.decode(batch, curves.context).expected
    memory, sent, rest, total = (
        ms(seconds)
        for seconds in (terms.memory, terms.communication, terms.overhead, terms.seconds)
    )
    compute = ms(max(terms.compute, terms.overlapped))
    rule, sums = "max(memory, compute) + communication", f"max({memory}, {compute}) + {sent}"
    if terms.adds:
        rule, sums = "memory + compute + communication", f"{memory} + {compute} + {sent}"
    elif terms.hidden:
        rule, sums = "max(memory, compute + communication)", f"max({memory}, {compute} + {sent})"
    return f"Expected: {rule} + overhead; at batch {batch}, in ms, {sums} + {rest} = {total}."


def _drawn(curves: StepCurves) -> list[str]:
    """Names of the terms that are above 0 at any batch."""
    return [name for name in TERMS if getattr(curves, name).max() > 0]


def _least(curves: StepCurves) -> float:
    return min(float(getattr(curves, name).min()) for name in _drawn(curves))


def _near(curves: StepCurves) -> float:
    """The last batch of linear axes: twice the batch where lines cross, or where the cache takes
    as long as the weights."""
    sequence = (curves.kv_cache / curves.batches)[-1]
    crossing = curves.takeover or (curves.weights[-1] / sequence if sequence else 0)
    return float(min(max(2 * crossing, 4), curves.batches[-1]))


def _terms(panel: "Axes", curves: StepCurves, batches: np.ndarray, scale: object) -> None:
    for name in _drawn(curves):
        label, colour = TERMS[name]
        _curve(panel, curves, scale(getattr(curves, name)), label, colour)


def _curve(panel: "Axes", curves: StepCurves, values: np.ndarray, label: str, colour: str) -> None:
    panel.plot(curves.batches, values, color=colour, linewidth=1.7, label=label)


def _totals(panel: "Axes", curves: StepCurves, floor: np.ndarray, expected: np.ndarray) -> None:
    panel.plot(
        curves.batches, floor, color=BLACK, zorder=4, label="floor", **FLOOR | {"linewidth": 2.6}
    )
    panel.plot(curves.batches, expected, color=BLACK, zorder=3, label="expected", **EXPECTED)


def _takeover(panel: "Axes", curves: StepCurves, scale: float) -> None:
    batch = curves.takeover
    if not batch or batch > curves.batches[-1]:
        return
    height = max(curves.at("compute", batch), curves.at("memory", batch)) * scale
    look = dict(color=ORANGE, markeredgecolor=BLACK, markersize=9, linestyle="none", zorder=6)
    words = f"compute takes over at batch {batch}"
    if curves.at("communication", batch) * scale > 1.001 * height:
        words = f"compute passes memory at batch {batch}"
    panel.plot([batch], [height], marker="o", label=words, **look)


def _unfit(panel: "Axes", curves: StepCurves) -> None:
    """Shades the batches that do not fit."""
    last = float(curves.batches[-1])
    if curves.fits_to < last:
        words = f"does not fit in memory: beyond batch {curves.fits_to}"
        if curves.fits_to < curves.batches[0]:
            words = "does not fit in memory at any of these batches"
        panel.axvspan(max(curves.fits_to, 1e-9), last * 2, color="#EFEFEF", zorder=0, label=words)


def _fitting(panel: "Axes", curves: StepCurves, values: np.ndarray, **look: object) -> None:
    """Draws a line, pale where batches do not fit."""
    batches, largest = curves.batches, curves.fits_to
    label = look.pop("label")
    panel.plot(batches, values, alpha=PALE, label=label, **look)
    inside = batches <= largest
    if inside.any():
        ends = np.append(batches[inside], min(largest, batches[-1]))
        edge = np.exp(np.interp(np.log(ends[-1]), np.log(batches), np.log(values)))
        panel.plot(ends, np.append(values[inside], edge), label=f"_{label}, fits", **look)


def _notes(study: Study, curves: StepCurves) -> list[str]:
    notes = []
    if curves.takeover is None:
        notes.append(f"At context {curves.context} compute never takes over, at any batch.")
    elif curves.takeover > curves.batches[-1]:
        notes.append(f"Compute takes over at batch {curves.takeover}, beyond what is drawn.")
    multiple = study.estimator.padded(1)
    if multiple > 1:
        notes.append(
            f"The layout pads batches to multiples of {multiple}: beyond that only those are drawn."
        )
    return [*notes, *sized_words(study.estimator), balance_words(study)]


def _hues(count: int) -> Sequence[str]:
    hues = (SKY, BLUE, GREEN, ORANGE, RED, PINK, BLACK)
    return [hues[index % len(hues)] for index in range(count)]
