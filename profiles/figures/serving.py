"""A service's cost of a token against its load: measured, ideal and floor, and what is between.

Costs are in USD where every load has a price, else in milliseconds of wall time for each token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.figures.panels import EXPECTED, FLOOR, finish, logarithmic, panels
from profiles.figures.steps import COLOURS
from profiles.report.numbers import exact, number
from profiles.report.titles import rates_words, subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK = COLOURS
AXES = {"closed": "requests at once", "poisson": "requests per second", "trace": "trace"}
LOST = {
    "over_floor": ("decode steps over their floor", BLUE),
    "empty_slots": ("empty slots", ORANGE),
    "prompts": ("prompts between steps", GREEN),
    "padding": ("padding of prompts", PINK),
    "host": ("host", RED),
}
"""Names and colours of what is lost, in the order in which it is stacked on the floor."""


def serving_cost(document: dict, path: str | Path) -> "Figure | None":
    """Draws the cost of a token against requests at once, or against their rate where it is varied.

    Left the curves: measured, the ideal of full steps with prompts for nothing, and the floor of
    those. Right the parts of what was measured: the floor, and what is lost by cause.

    Args:
      document: of `profile_serving.py`.
      path: the PNG file to write.

    Returns:
      The figure; None of a document without loads that can be drawn.
    """
    loads, kind = drawn(document["load"])
    if not loads:
        return None
    scale, unit = _unit(loads)
    sizes = [_size(each) for each in loads]
    whole = all("lost" in each for each in loads)
    figure, (near, *others) = panels(2 if whole else 1)
    _curves(near, sizes, loads, scale)
    near.set_xlabel(AXES[kind])
    near.set_ylabel(f"cost ({unit})")
    near.set_title("cost of a token: logarithmic axes", fontsize=10)
    if others:
        _shares(others[0], loads)
        others[0].set_xlabel(AXES[kind])
        others[0].set_title("where the measured cost goes", fontsize=10)
    head = ["Cost of a token against load: a service beside full steps and their floor"]
    return finish(figure, path, [*head, *_head(document, loads)], _notes(loads))


def drawn(loads: Sequence[dict]) -> tuple[list[dict], str]:
    """The loads of one kind that are drawn, in order, and that kind: of several the first."""
    for kind in AXES:
        found = [each for each in loads if each["arrivals"] == kind]
        if found:
            return sorted(found, key=_size), kind
    return [], "closed"


def _size(load: dict) -> float:
    return load.get("concurrency") or load.get("rate") or 1


def _unit(loads: Sequence[dict]) -> tuple[float, str]:
    """Cost of a second of wall time for a token, and the unit of that."""
    if all("usd_per_million_tokens" in each for each in loads):
        return loads[0]["usd_per_million_tokens"] / loads[0][
            "s_per_token"
        ], "USD per million tokens"
    return 1e3, "ms of wall time per token"


def _curves(panel: "Axes", sizes: list[float], loads: Sequence[dict], scale: float) -> None:
    lines = {"measured": [each["s_per_token"] * scale for each in loads]}
    for name in ("ideal", "floor"):
        if all(name in each for each in loads):
            lines[name] = [each[name]["s_per_token"] * scale for each in loads]
    looks = {
        "measured": dict(color=BLUE, marker="o", linewidth=2.4, label="measured", zorder=4),
        "ideal": dict(color=BLACK, marker="x", label="ideal: steps full, prompts free", **EXPECTED),
        "floor": dict(color=BLACK, label="floor of these steps", **FLOOR),
    }
    for name, values in lines.items():
        panel.plot(sizes, values, **looks[name])
    logarithmic(panel.xaxis, sizes, base=2, room=1.2)
    logarithmic(panel.yaxis, [value for values in lines.values() for value in values], room=1.5)


def _shares(panel: "Axes", loads: Sequence[dict]) -> None:
    """A bar for each load, of its measured cost: the floor, then what is lost by cause."""
    places = range(len(loads))
    shares = [100 / each["s_per_token"] for each in loads]
    base = [each["floor"]["s_per_token"] * share for each, share in zip(loads, shares, strict=True)]
    panel.bar(places, base, 0.62, color="#BBBBBB", label="floor of full steps")
    for name, (words, colour) in LOST.items():
        heights = [
            max(each["lost"][name], 0) * share for each, share in zip(loads, shares, strict=True)
        ]
        panel.bar(places, heights, 0.62, bottom=base, color=colour, label=words)
        base = [low + height for low, height in zip(base, heights, strict=True)]
    ideal = [
        each["ideal"]["s_per_token"] * share for each, share in zip(loads, shares, strict=True)
    ]
    look = dict(color=BLACK, linewidth=2, label="ideal, in each bar", zorder=5)
    panel.hlines(ideal, [n - 0.4 for n in places], [n + 0.4 for n in places], **look)
    panel.set_xticks(list(places), [exact(_size(each)) for each in loads])
    panel.set_ylim(0, max(*base, *ideal) * 1.04)
    panel.set_ylabel("share of the measured cost (%)")


def _head(document: dict, loads: Sequence[dict]) -> list[str]:
    words = document["subject"] if not document["points"] else subject(document["points"])
    words = words.replace(", decode,", ",")
    if "rows" in loads[0]:
        words += f"; {loads[0]['rows']} rows"
    lengths = {
        (each["prompt_tokens"] / each["requests"], each["generated_tokens"] / each["requests"])
        for each in loads
    }
    if len(lengths) == 1:
        ((prompt, answer),) = lengths
        words += f", prompts of {exact(round(prompt))} tokens and answers of {exact(round(answer))}"
    rates = []
    if "bandwidth" in document:
        rates = [rates_words(document["bandwidth"], None, document["device_kind"])]
    return [words, *rates]


def _notes(loads: Sequence[dict]) -> list[str]:
    """The cheapest load in words, and what must be known of the others."""
    best = min(loads, key=lambda each: each["s_per_token"])
    notes = [f"Most tokens per second: {number(best['tokens_per_s'])} at {exact(_size(best))}"]
    if "ideal" in best:
        ideal, floor = (best[name]["tokens_per_s"] for name in ("ideal", "floor"))
        notes[0] += (
            f", {best['tokens_per_s'] / ideal:.0%} of the ideal's {number(ideal)} and "
            f"{best['tokens_per_s'] / floor:.0%} of the floor's {number(floor)}"
        )
    notes[0] += ". Prompts are in the measured cost alone."
    negative = [name for name in LOST for each in loads if each.get("lost", {}).get(name, 0) < 0]
    if negative:
        names = ", ".join(LOST[name][0] for name in dict.fromkeys(negative))
        notes.append(f"Below zero in some bars, and not drawn there: {names}.")
    return notes
