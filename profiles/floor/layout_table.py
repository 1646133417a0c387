"""Generates the tables of layouts: what each divides, and the collectives that it needs.

`python -m profiles.floor.layout_table` writes the first to the README of `sharding`, the second to
that of this folder.
"""

import collections
import dataclasses

from model.catalog import find_model
from model.dtypes import BFLOAT16
from profiles.floor.collective import Collective
from profiles.floor.communication import expected_collectives
from profiles.report.numbers import number
from profiles.report.pages import Part
from sharding.catalog import ATTENTION, LAYOUTS, attend_by
from sharding.layout import Layout, Table
from sharding.mesh import parse_mesh
from sharding.placement import Placement

MODULE = "profiles.floor.layout_table"
DIVISIONS = Part("sharding/README.md", "layouts", MODULE)
PAYMENTS = Part("profiles/floor/README.md", "collectives", MODULE)
MODEL, MESH, BATCH, PROMPT = "llama3-70b", "4x4x4", 64, 2048


def divisions() -> str:
    """One row per layout: mesh axes that divide stored weights, weights in use and the batch."""
    lines = [
        "| `--layout` | weights stored | weights in use | batch over | for |",
        "| --- | --- | --- | --- | --- |",
    ]
    for layout in LAYOUTS.values():
        use = "as stored" if layout.use is None else _divided(layout.use)
        batch = "".join(layout.activations["B"]) or "none"
        lines.append(
            f"| `{layout.name}` | {_divided(layout.weights)} | {use} | {batch} | {layout.summary} |"
        )
    return "\n".join(lines) + "\n"


def payments() -> str:
    """The collectives in a layer: a row per layout, and per kind of attention for one layout."""
    lines = [
        f"Expected collectives of one layer of {MODEL} in bfloat16 on {MESH}, and their payload in "
        f"MB per chip: of a decode step of {BATCH} sequences, and of {BATCH} prompts of {PROMPT:,} "
        "tokens:\n",
        "| layout, attention | collectives per layer | decode | prefill |",
        "| --- | --- | ---: | ---: |",
    ]
    rows = [(layout, "heads") for layout in LAYOUTS.values()]
    rows += [(LAYOUTS["weight_stationary_2d"], kind) for kind in ATTENTION if kind != "heads"]
    for layout, kind in rows:
        chosen = attend_by(layout, kind)
        decode, prefill = _of_a_layer(chosen, 1), _of_a_layer(chosen, PROMPT)
        lines.append(
            f"| `{layout.name}`, {kind} | {_words(decode)} | {_megabytes(decode)} | "
            f"{_megabytes(prefill)} |"
        )
    return "\n".join(lines) + "\n"


def _of_a_layer(layout: Layout, tokens: int) -> list[Collective]:
    config = dataclasses.replace(find_model(MODEL), layers=1)
    placement = Placement.of(layout, config.sizes, parse_mesh(MESH))
    listed = expected_collectives(
        config,
        placement if tokens == 1 else placement.prefill,
        BFLOAT16,
        batch=BATCH,
        tokens=tokens,
    )
    return [each for each in listed if each.in_layers]


def _words(listed: list[Collective]) -> str:
    counts = collections.Counter()
    for each in listed:
        counts[each.kind, each.axes] += each.count
    return ", ".join(f"{n} {kind} {''.join(axes)}" for (kind, axes), n in sorted(counts.items()))


def _megabytes(listed: list[Collective]) -> str:
    return number(sum(each.payload_bytes * each.count for each in listed) / 1e6)


def _divided(weights: Table) -> str:
    """The division in letters, such as ``D.x F.zy``; heads and vocabulary divide as d_ff does."""
    shown = [f"{key}.{''.join(axes)}" for key, axes in weights.items() if key in ("D", "F")]
    return " ".join(shown) or "whole"


if __name__ == "__main__":
    DIVISIONS.write(divisions())
    PAYMENTS.write(payments())
