"""The table of models and stored types, from the code; `python -m tests.storage_table` writes it.

All of the catalogue to `profiles/results/stored-types.md`, a few models to the README.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import jax.numpy as jnp

from model.catalog import CATALOG
from model.config import ModelConfig
from model.form import Form
from profiles.floor.counts import decode_traffic
from profiles.report.numbers import number
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.scaled import SCHEMES

ROOT = Path(__file__).parents[1]
README, WHOLE = ROOT / "README.md", ROOT / "profiles/results/stored-types.md"
BEGIN, END = "<!-- storage: python -m tests.storage_table -->\n", "<!-- end storage -->"
SHOWN = "smollm2-135m", "llama3-8b", "llama3-70b", "mixtral-8x7b"
CONTEXT = 2048
STORED = {"bfloat16": jnp.bfloat16, **SCHEMES}
PERPLEXITY = {"int8": 1.015, "fp8": 1.04, "int4": 1.02}
"""Largest ratio to float32's that SmolLM2 may have: `tests/decode/test_perplexity.py`."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A test, and the models and types that it covers."""

    test: str
    what: str
    covers: Callable[[str, str], bool]


CHECKS = (
    Check(
        "tests/decode/test_quantized.py",
        "every layout and schedule gives one device's logits, and the bytes are the compiler's, on "
        "small models of the same parts",
        lambda model, stored: stored in SCHEMES,
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
    """Bytes of models in each type, in Markdown."""
    lines = [
        "| model | weights | GB resident | GB read per step, batch 1 | batch 64 | tests |",
        "|---|---|---:|---:|---:|---|",
    ]
    for model in models:
        for stored in STORED:
            found = _bytes(CATALOG[model].config, stored)
            cells = " | ".join(number(size / 1e9) for size in found)
            tests = " ".join(f"[{n}]" for n, c in enumerate(CHECKS, 1) if c.covers(model, stored))
            name = f"`{model}`" if stored == "bfloat16" else ""
            lines.append(f"| {name} | {stored} | {cells} | {tests} |")
    notes = [f"{n}. `{c.test}`: {c.what}." for n, c in enumerate(CHECKS, 1)]
    return "\n".join([*lines, "", *notes]) + "\n"


def whole() -> str:
    """The file of all models."""
    return (
        "# Bytes of every catalogue model in every stored type\n\n"
        "By `python -m tests.storage_table`, on one device: weights with their scales, and what a "
        f"decode step reads of weights and of a bfloat16 cache of {CONTEXT:,} tokens (or as many "
        "as the model takes).\n\n" + table(CATALOG)
    )


def _bytes(config: ModelConfig, stored: str) -> list[float]:
    """Resident weights, and what a step reads at batch 1 and at batch 64, on one device."""
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, parse_mesh("1"))
    slots = min(CONTEXT, config.max_context)
    one, many = (
        decode_traffic(
            config,
            placement,
            Form(jnp.bfloat16, STORED[stored]),
            batch=batch,
            context=slots - 1,
            slots=slots,
        )
        for batch in (1, 64)
    )
    return [one.weights_resident, *(each.weights_read + each.kv_read for each in (one, many))]


def main() -> None:
    """Writes both."""
    WHOLE.write_text(whole())
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(before + BEGIN + table(SHOWN) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
