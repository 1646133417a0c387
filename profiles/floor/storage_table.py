"""Generates the tables of the bytes of models in every stored type.

`python -m profiles.floor.storage_table` writes the table of all models to
`profiles/results/stored-types.md`, and that of a few models to the README of `model`.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax.numpy as jnp

from model.catalog import CATALOG
from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Pass
from profiles.report.numbers import number
from profiles.report.pages import ROOT, Part
from profiles.report.table import Table
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS

CATALOG_FILE = ROOT / "profiles/results/stored-types.md"
PART = Part("model/README.md", "storage", "profiles.floor.storage_table")
SHOWN = "smollm2-135m", "llama3-8b", "llama3-70b", "mixtral-8x7b"
CONTEXT = 2048
STORED = {"bfloat16": jnp.bfloat16, **QUANTIZATIONS}
PERPLEXITY = {"int8": 1.015, "fp8": 1.04, "int4": 1.02}
"""Highest perplexity of SmolLM2 over float32's that `tests/decode/test_perplexity.py` allows."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A test, what it checks, and the models and types that it covers."""

    test: str
    what: str
    covers: Callable[[str, str], bool]


CHECKS = (
    Check(
        "tests/decode/test_quantized.py",
        "every layout and schedule gives one device's logits, and the bytes are the compiler's, on "
        "small models of the same parts",
        lambda model, stored: stored in QUANTIZATIONS,
    ),
    Check(
        "tests/model/test_catalog.py",
        "the shapes have the published number of parameters",
        lambda model, stored: True,
    ),
    Check(
        "tests/decode/test_perplexity.py",
        "perplexity of 1,341 tokens of text within its bar",
        lambda model, stored: model == "smollm2-135m" and stored in PERPLEXITY,
    ),
)


def table(models: Iterable[str]) -> str:
    """A Markdown table of the bytes of models in each type."""
    head = "model", "weights", "GB resident", "GB read per step, batch 1", "batch 64", "tests"
    rows = []
    for model in models:
        for stored in STORED:
            found = _bytes(CATALOG[model].config, stored)
            tests = " ".join(f"[{n}]" for n, c in enumerate(CHECKS, 1) if c.covers(model, stored))
            name = f"`{model}`" if stored == "bfloat16" else ""
            rows.append((name, stored, *(number(size / 1e9) for size in found), tests))
    notes = [f"{n}. `{c.test}`: {c.what}." for n, c in enumerate(CHECKS, 1)]
    return "\n".join([Table(head, rows, align="llrrrl").markdown(), "", *notes]) + "\n"


def catalog_text() -> str:
    """The text of the file with all models."""
    return (
        "# Bytes of every catalogue model in every stored type\n\n"
        "By `python -m profiles.floor.storage_table`, on one device: weights with their scales, "
        f"and what a decode step reads of weights and of a bfloat16 cache of {CONTEXT:,} tokens "
        "(or as many as the model takes).\n\n" + table(CATALOG)
    )


def _bytes(config: ModelConfig, stored: str) -> list[float]:
    """Bytes of weights, and bytes that a step reads at batch 1 and at batch 64, on one device."""
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, parse_mesh("1"))
    slots = min(CONTEXT, config.max_context)
    counter = PassCounter(config, placement, Dtypes(jnp.bfloat16, STORED[stored]))
    one, many = (
        counter.count(Pass(batch=batch, context=slots - 1, slots=slots)) for batch in (1, 64)
    )
    return [one.weights_resident, *(each.weights_read + each.kv_read for each in (one, many))]


if __name__ == "__main__":
    CATALOG_FILE.write_text(catalog_text())
    PART.write(table(SHOWN))
