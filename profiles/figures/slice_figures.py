"""Figures across slices, models and layouts: chips, cost against latency, sparsity, communication.

Styles and words are those of `profiles.figures.curve_figures`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from profiles.expected.candidates import AUTO
from profiles.figures.curve_figures import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY
from profiles.figures.curves import RULE_RATIO, RULE_SPARSITY, ChipCurve, Tradeoff, Volumes
from profiles.figures.labels import Label, write_labels
from profiles.figures.panels import (
    EXPECTED,
    FLOOR,
    finish,
    key,
    logarithmic,
    panels,
    peaks_words,
    sized_words,
    subject,
)
from profiles.figures.steps import MARKERS, SHARED
from profiles.figures.study import BEST, ChipScaling, Sparsities, Study, Tradeoffs
from profiles.report.numbers import milliseconds, number, several, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHAPES = "os^DvPX"
HUES = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK)


def chips(study: Study, data: ChipScaling, path: str | Path) -> "Figure":
    """Draws step time against number of chips, a line per layout.

    Args:
      study: the study that the data are from.
      data: the result of the study's `scaling`.
      path: the PNG file to write.

    Returns:
      The figure.
    """
    figure, (panel,) = panels(1, 6.3)
    handles = []
    for index, curve in enumerate(data.curves):
        colour = GREEN if curve.name == BEST else HUES[index]
        _chip_lines(panel, curve, colour, wide=curve.name == BEST)
        handles.append(key(color=colour, linewidth=3, label=_least_time(curve)))
    sizes, ideal = list(data.ideal), np.array(list(data.ideal.values())) * 1e3
    panel.plot(sizes, ideal, color=SHARED, linestyle=":", linewidth=1.8, label="weights / chips")
    panel.set_xlabel("chips")
    panel.set_ylabel("step time (ms)")
    values = [each * 1e3 for curve in data.curves for each in (*curve.floor, *curve.expected)]
    logarithmic(panel.xaxis, sizes, base=2, room=1.2)
    panel.set_xticks(sizes)
    logarithmic(panel.yaxis, [*values, *ideal], room=1.25)
    handles += [
        key(label="expected", marker="o", markersize=7, **EXPECTED),
        key(label="floor, in its line's colour", **FLOOR),
        key(label="reading all weights, evenly divided: 1/chips", linestyle=":", linewidth=1.8),
        key(marker="o", markersize=7, markerfacecolor="white", linestyle="none",
            label="hollow: does not fit in memory"),
    ]  # fmt: skip
    name = study.options.deployment.slice.chip.name
    work = f"slices of {name}, batch {data.batch}, context {data.context}"
    head = ["Time of a decode step against chips: where communication stops the fall"]
    head += [subject(study.estimator, work, layout=False, slice=False)]
    head += peaks_words(study.estimator)
    notes = [*_chosen(study), *data.notes]
    return finish(figure, path, head, notes, handles)


def pareto(study: Study, data: Tradeoffs, path: str | Path) -> "Figure":
    """Draws cost against latency, a line per slice and the front; arguments as in `chips`."""
    figure, (panel,) = panels(1, 7.2)
    handles = []
    for index, (colour, each) in enumerate(zip(HUES, data.slices, strict=False)):
        steps, floors = each.expected * 1e3, each.floor * 1e3
        look = dict(color=colour, marker=MARKERS[index], markersize=9 - index, zorder=3)
        # Lines of falling width, so that one below another still shows.
        look |= dict(linewidth=7 - 1.3 * index if index < 5 else 1.2)
        panel.plot(steps, each.expected_cost, label=f"expected, {each.topology}", **look)
        pale = dict(color=colour, alpha=0.55, **FLOOR | {"linewidth": 1.2})
        panel.plot(floors, each.floor_cost, label=f"floor, {each.topology}", **pale)
        handles.append(key(color=colour, linewidth=3, marker=MARKERS[index], label=each.topology))
    for kind, points, style in (
        ("expected", data.front, "-"),
        ("floor", data.floor_front, (0, (5, 2))),
    ):
        _front(panel, kind, _at(data, points, kind), style)
    points = [value for each in data.slices for value in (*each.expected, *each.floor)]
    costs = [value for each in data.slices for value in (*each.expected_cost, *each.floor_cost)]
    logarithmic(panel.xaxis, np.array(points or [1e-3, 1]) * 1e3, room=1.2)
    logarithmic(panel.yaxis, costs or [1, 10], room=1.4)
    panel.set_xlabel("step time, which is the time per token of a sequence (ms)")
    panel.set_ylabel(f"cost ({data.unit})")
    handles += [
        key(label="expected, a mark per batch", marker="o", markersize=5, **EXPECTED),
        key(label="floor", **FLOOR),
        key(color=BLACK, alpha=0.25, linewidth=7, label="front of expected: batch at its points"),
        key(color=BLACK, linewidth=2.6, linestyle=(0, (5, 2)), label="front of the floor"),
    ]
    head = ["Cost of a token against latency: batch and slice trade one for the other"]
    head += [subject(study.estimator, f"context {data.context}", layout=False, slice=False)]
    for each in study.compared():
        words = peaks_words(each, priced=True)
        head += words if len(study.compared()) == 1 else [f"{each.chip.name}: {' '.join(words)}"]
    notes = [*data.notes, *sized_words(study.estimator)]
    if study.estimator.placement:
        notes.append("At each batch, expected and floor are of the layout expected to be fastest.")
    return finish(figure, path, head, notes, handles, lambda: write_labels(panel, _batches(data)))


def sparsity(study: Study, data: Sparsities, path: str | Path) -> "Figure":
    """Draws critical batch against sparsity, with models as points; arguments as in `chips`."""
    figure, (panel,) = panels(1, 6.0)
    highest = 1.4 * max(*(ratio for ratio, _ in data.models.values()), RULE_SPARSITY)
    line = np.array([1.0, highest])
    chip = study.options.deployment.slice.chip.name
    rule = f"{chip}: {number(data.dense)} x total / active"
    panel.plot(line, data.dense * line, color=BLUE, label=rule, **EXPECTED)
    thumb = f"rule of thumb: {RULE_RATIO} x sparsity, {RULE_RATIO} x {RULE_SPARSITY} = "
    thumb += f"{RULE_RATIO * RULE_SPARSITY}"
    grey = dict(color=SHARED, linestyle=":", linewidth=1.8)
    panel.plot(line, RULE_RATIO * line, label="_rule of thumb", **grey)
    star = dict(marker="*", markersize=15, color=ORANGE, markeredgecolor=BLACK)
    panel.plot([RULE_SPARSITY], [RULE_RATIO * RULE_SPARSITY], zorder=4, label="_thumb", **star)
    handles = _models(panel, data, study.options.deployment.model.name)
    logarithmic(panel.xaxis, [0.8, highest], base=10, room=1.0)
    values = [data.dense, RULE_RATIO, *(batch for _, batch in data.models.values())]
    logarithmic(panel.yaxis, [*values, max(data.dense, RULE_RATIO) * highest], room=1.4)
    panel.set_xlabel("sparsity: total over active parameters")
    panel.set_ylabel("critical batch (sequences)")
    handles = [
        key(color=BLUE, label=rule, **EXPECTED),
        key(label=thumb, **{**star, **grey, "color": SHARED, "markerfacecolor": ORANGE}),
        *handles,
    ]
    dtypes = study.options.deployment.dtypes
    head = ["Critical batch against sparsity: from there on a step is bound by compute"]
    head += [
        f"{dtypes}, chip {chip}, no context, all experts read. Line: peak x bytes per weight / "
        f"(2 x bandwidth) x total / active, at {number(data.arithmetic)} FLOPs a byte.",
        peaks_words(study.estimator)[0],
    ]
    note = "Points: critical batches of models at their exact sizes."
    return finish(figure, path, head, [note], handles)


def _models(panel: "Axes", data: Sparsities, own: str) -> list[object]:
    """Draws each model's point, the study's own with an edge, and returns the legend's entries."""
    handles = []
    for index, (name, (ratio, batch)) in enumerate(sorted(data.models.items(), key=_by_ratio)):
        look = dict(marker=SHAPES[index % 7], color=HUES[1:][index % 6], markersize=10)
        look |= dict(linestyle="none") | (dict(markeredgecolor=BLACK) if name == own else {})
        panel.plot([ratio], [batch], zorder=5, label=name, **look)
        handles.append(key(label=f"{name}: {number(batch)} at sparsity {number(ratio)}", **look))
    return handles


def communication(study: Study, data: Volumes, path: str | Path) -> "Figure":
    """Draws the bytes that layouts send in a layer of a prefill; arguments as in `chips`."""
    figure, (panel,) = panels(1, 6.4)
    handles, begins = [], data.begins()
    for colour, (name, sent) in zip(HUES, data.sent.items(), strict=False):
        panel.plot(data.tokens, sent / 1e6, color=colour, linewidth=2, label=name)
        handles.append(
            key(color=colour, linewidth=3, label=f"{name}: {_least_words(name, begins)}")
        )
    best = np.min(list(data.sent.values()), axis=0) / 1e6
    panel.plot(data.tokens, best, color=BLACK, alpha=0.2, linewidth=9, zorder=1, label="least")
    for name in list(begins)[1:]:
        index = data.tokens.tolist().index(begins[name])
        point = (data.tokens[index], best[index])
        panel.plot(*([each] for each in point), "o", color=BLACK, zorder=5, label=f"_to {name}")
    handles.append(key(color=BLACK, alpha=0.2, linewidth=8, label="the least of them"))
    handles.append(
        key(color=BLACK, marker="o", linestyle="none", label="another becomes the least")
    )
    logarithmic(panel.xaxis, data.tokens, base=2)
    every = np.concatenate(list(data.sent.values())) / 1e6
    logarithmic(panel.yaxis, every[every > 0], room=1.4)
    panel.set_xlabel("tokens of a prefill (prompts x length)")
    panel.set_ylabel("communication (MB per chip and layer)")
    deployment = study.options.deployment
    mesh = "x".join(str(size) for size in data.mesh.values())
    head = ["Communication of a layer against tokens, by layout"]
    work = f"mesh {mesh}, prefill of {several(data.batch, 'prompt')} of rising length"
    head += [subject(study.estimator, work, layout=False)]
    head += [
        f"Exact counts of this model and mesh, activations in {deployment.dtypes.dtype.name}: an "
        "all-gather or reduce-scatter counts its larger side, an all-reduce both."
    ]
    notes = ["After Pope et al. 2022, figure 3, which has the same layouts for PaLM 540B."]
    return finish(figure, path, head, notes, handles)


def _chosen(study: Study) -> list[str]:
    """A line about what was chosen on each slice; for a model known by its sizes, about that."""
    if study.estimator.placement is None:
        return sized_words(study.estimator)
    chosen = "the mesh is the one"
    if study.options.names.attention == AUTO:
        chosen = "mesh and attention are those"
    return [f"On each slice, {chosen} expected to be fastest."]


def _least_words(name: str, begins: dict[str, int]) -> str:
    """The range of tokens in which a layout sends least, to two digits."""
    if name not in begins:
        return "never least"
    order = list(begins)
    index = order.index(name)
    rounded = [short(float(f"{tokens:.2g}")) for tokens in begins.values()]
    until = f" to {rounded[index + 1]}" if index + 1 < len(order) else ""
    return f"least from {rounded[index]}{until}" if index else f"least{until and ' up' + until}"


def _by_ratio(model: tuple[str, tuple[float, float]]) -> float:
    return model[1][0]


def _least_time(curve: ChipCurve) -> str:
    """The layout, its lowest expected time, and the number of chips for it."""
    if not curve.fits.any():
        return curve.name
    fastest = int(np.argmin(np.where(curve.fits, curve.expected, np.inf)))
    chips = several(curve.chips[fastest], "chip")
    return f"{curve.name}: least {milliseconds(curve.expected[fastest])} at {chips}"


def _chip_lines(panel: "Axes", curve: ChipCurve, colour: str, wide: bool) -> None:
    """Draws expected time and floor of one layout, with hollow markers where it does not fit."""
    under = dict(linewidth=7, alpha=0.3, zorder=1) if wide else dict(linewidth=2, zorder=3)
    expected, floor = curve.expected * 1e3, curve.floor * 1e3
    panel.plot(curve.chips, expected, color=colour, label=f"expected, {curve.name}", **under)
    dashes = FLOOR | ({"linewidth": 5, "alpha": 0.4} if wide else {})
    panel.plot(curve.chips, floor, color=colour, label=f"floor, {curve.name}", **dashes)
    for fits, face in ((True, colour), (False, "white")):
        these = curve.fits == fits
        mark = dict(marker="o", linestyle="none", markersize=7 if wide else 6, zorder=4)
        label = f"_{'fits' if fits else 'does not fit'}, {curve.name}"
        panel.plot(curve.chips[these], expected[these], color=colour, markerfacecolor=face,
                   label=label, **mark)  # fmt: skip


def _at(
    data: Tradeoffs, points: Sequence[tuple[str, int]], kind: str
) -> list[tuple[float, float, int]]:
    """Milliseconds, cost and batch of each point of a front."""
    slices: dict[str, Tradeoff] = {each.topology: each for each in data.slices}
    placed = []
    for topology, batch in points:
        each = slices[topology]
        index = each.batches.tolist().index(batch)
        placed.append(
            (getattr(each, kind)[index] * 1e3, getattr(each, f"{kind}_cost")[index], batch)
        )
    return placed


def _front(
    panel: "Axes", kind: str, points: Sequence[tuple[float, float, int]], style: object
) -> None:
    if not points:
        return
    times, costs, _ = zip(*points, strict=True)
    expected = kind == "expected"
    look = dict(linewidth=9, alpha=0.22, zorder=2) if expected else dict(linewidth=2.6, zorder=4)
    panel.plot(times, costs, color=BLACK, linestyle=style, label=f"front, {kind}", **look)


def _batches(data: Tradeoffs) -> list[Label]:
    """Labels with the batch of each point of the front, in the colour of its slice."""
    names = [each.topology for each in data.slices]
    points = zip(data.front, _at(data, data.front, "expected"), strict=True)
    return [
        Label(str(batch), (time, cost), topology, HUES[names.index(topology)])
        for (topology, _), (time, cost, batch) in points
    ]
