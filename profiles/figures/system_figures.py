"""Figures of whole systems: pipelines, racks, training beside serving, MFU against context.

Styles and words are those of `profiles.figures.curve_figures`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from profiles.figures.curve_figures import BLACK, BLUE, GREEN, ORANGE, RED
from profiles.figures.panels import EXPECTED, finish, logarithmic, panels, peaks_words, subject
from profiles.figures.steps import SHARED
from profiles.figures.study import Study
from profiles.figures.systems import HOP_S, Racks, Stages, Training, Utilization
from profiles.report.numbers import number, several

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARK = dict(color=SHARED, linestyle=":", linewidth=1.6)


def pipeline(study: Study, data: Stages, path: str | Path) -> "Figure":
    """Draws latency and memory of a pipeline against its stages.

    Args:
      study: the study that the data are from.
      data: what `Study.data` gives for a figure of this name.
      path: the PNG file to write.

    Returns:
      The figure.
    """
    figure, (time, memory) = panels(2, 5.6)
    dots = dict(marker="o", **EXPECTED)
    late = f"with {number(HOP_S * 1e3)} ms for each hop, as many as stages"
    time.plot(data.stages, data.hops * 1e3, color=RED, label=late, **dots)
    time.plot(data.stages, data.step * 1e3, color=BLUE, label="floor, hops without latency", **dots)
    memory.plot(data.stages, data.weights / 1e9, color=GREEN, label="weights", **dots)
    cache = "KV cache: as many batches in flight as stages"
    memory.plot(data.stages, data.kv_cache / 1e9, color=ORANGE, label=cache, **dots)
    for panel, words in ((time, "time from a token to the next (ms)"), (memory, "GB per chip")):
        logarithmic(panel.xaxis, data.stages, base=2)
        panel.set_xticks(data.stages)
        panel.set_xlabel("stages, each on a slice of its own")
        panel.set_ylabel(words)
        panel.set_ylim(0)
    head = ["A pipeline saves weights per chip, no cache, and makes no token faster"]
    head += [subject(study.estimator, f"batches of {data.batch}, context {study.context}")]
    notes = []
    if data.hidden:
        worst = number(data.hidden[-1])
        notes = [
            "Sending inside a stage over sending to the next, network / fabric x experts per token "
            f"x 2 x layers of experts per stage: {worst} at {data.stages[-1]} stages; from 1 on a "
            "hop's bytes are hidden, its latency is not."
        ]
    return finish(figure, path, [*head, peaks_words(study.estimator)[0]], notes)


def racks(study: Study, data: Racks, path: str | Path) -> "Figure":
    """Draws a layer of experts over racks; arguments as in `pipeline`."""
    figure, (panel,) = panels(1, 5.6)
    dots = dict(marker="o", **EXPECTED)
    longer = np.maximum(data.network, data.fabric)
    whole = dict(color=BLACK, linewidth=5, alpha=0.25)
    panel.plot(data.racks, longer * 1e6, label="floor of the layer: the longer of both", **whole)
    panel.plot(data.racks, data.network * 1e6, color=RED, label="between racks: network", **dots)
    panel.plot(data.racks, data.fabric * 1e6, color=BLUE, label="inside them: fabric", **dots)
    logarithmic(panel.xaxis, data.racks, base=2)
    panel.set_xticks(data.racks)
    panel.set_ylim(0)
    panel.set_xlabel(f"racks of {several(data.size, 'chip')}")
    panel.set_ylabel("time of a layer's tokens, to experts and back (us)")
    times = number(data.network[1] / data.fabric[0])
    head = [f"A layer of experts over two racks takes {times} times as long as in one"]
    work = f"{number(data.per_chip)} sequences on each chip"
    chip = study.estimator.chip
    work += f" of {chip.name}"
    head += [subject(study.estimator, work, layout=False, slice=False)]
    head += [
        f"Floor: per chip {number(chip.fabric / 1e9)} GB/s of fabric and "
        f"{number(chip.network / 1e9)} GB/s of network one way, highest published, both at once."
    ]
    notes = ["Of r racks, (r - 1) / r of the bytes go between them."]
    return finish(figure, path, head, notes)


def training(study: Study, data: Training, path: str | Path) -> "Figure":
    """Draws training that costs as much as serving does; arguments as in `pipeline`."""
    figure, (panel,) = panels(1, 5.6)
    served = data.served / 1e12
    third = "serving at a third of training's MFU: as many tokens trained on as served"
    panel.plot(served, data.third, color=RED, label=third, **EXPECTED)
    alike = "at the same MFU: a third as many, 2 FLOPs per parameter against 6"
    panel.plot(served, data.alike, color=BLUE, label=alike, **EXPECTED)
    panel.axhline(100, label="100 times", **MARK)
    panel.axhline(1, color=BLACK, linewidth=1.2, label="compute-optimal: 20 tokens per parameter")
    logarithmic(panel.xaxis, served)
    logarithmic(panel.yaxis, [*data.alike, *data.third])
    panel.set_xlabel("tokens served over the model's life (trillions)")
    panel.set_ylabel("tokens trained on over compute-optimal ones")
    name, active = study.options.deployment.model.name, number(data.active / 1e9)
    head = ["Training that costs as much as serving goes far past the compute-optimal point"]
    head += [f"{name}, {active} billion active parameters"]
    notes = ["A day of 10 million tokens per second is 0.864 trillion."]
    return finish(figure, path, head, notes)


def mfu(study: Study, data: Utilization, path: str | Path) -> "Figure":
    """Draws the most that MFU can be against context; arguments as in `pipeline`."""
    figure, (panel,) = panels(1, 5.6)
    panel.plot(data.contexts, data.whole, color=BLUE, label="attention reads all", **EXPECTED)
    root = "attention reads the square root of the context"
    panel.plot(data.contexts, data.root, color=GREEN, label=root, **EXPECTED)
    panel.axhline(0.5, label="a half", **MARK)
    for context, words in ((data.balanced, "falls"), (data.halved, "is a half")):
        if context:
            label = f"{words} from {number(context)} tokens"
            if words == "is a half":
                label = f"is a half at {number(context)} tokens"
            value = 1.0 if words == "falls" else 0.5
            colour = ORANGE if words == "falls" else RED
            panel.plot([context], [value], "o", color=colour, markersize=9, label=label)
    logarithmic(panel.xaxis, data.contexts, base=10)
    panel.set_ylim(0, 1.05)
    panel.set_xlabel("context (tokens)")
    panel.set_ylabel("MFU at large batches, at most")
    head = ["Where reading the cache takes longer than arithmetic, MFU falls, whatever the batch"]
    head += [subject(study.estimator), peaks_words(study.estimator)[0]]
    notes = ["Arithmetic of attention is included: it keeps MFU from falling as fast as 1/context."]
    return finish(figure, path, head, notes)
