"""Measures the perplexity of models in every stored type, and writes the table of them.

`python -m profiles.measured.perplexity_table` writes the record, and the table in the README of
`model`; with `--accept_terms` it includes Gemma 3 270M. It takes about five minutes on two cores.
"""

import json
import sys

import jax.numpy as jnp
import numpy as np

from decode.load import ModelSource, find_source
from decode.perplexity import perplexity
from model.dtypes import Dtypes
from profiles.report.document import versions
from profiles.report.pages import ROOT, Part
from profiles.report.table import Table
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from sharding.quantization import QUANTIZATIONS

TEXT = ROOT / "tests/text/river.txt"
RECORD = ROOT / "profiles/results/perplexity.json"
PART = Part("model/README.md", "perplexity", "profiles.measured.perplexity_table")
PARTS = 4
"""Number of parts of the text, which decode steps read as a batch, from the KV cache."""


def dtype_sets(cached: bool) -> dict[str, Dtypes]:
    """The dtypes to compare, by name; the others are compared with the first."""
    if cached:
        stored = {"float32": None, "int8": QUANTIZATIONS["int8"], "fp8": QUANTIZATIONS["fp8"]}
        return {
            f"KV cache {name}": Dtypes(jnp.float32, None, each) for name, each in stored.items()
        }
    # Not those for experts alone, which these models have none of.
    of_all = {name: each for name, each in QUANTIZATIONS.items() if not each.experts_only}
    return {
        "float32": Dtypes(jnp.float32),
        "bfloat16": Dtypes(jnp.float32, jnp.bfloat16),
        **{name: Dtypes(jnp.float32, quantization) for name, quantization in of_all.items()},
        "int8, activations rounded too": Dtypes(jnp.float32, QUANTIZATIONS["int8"], None, True),
    }


def measure(source: ModelSource, dtypes: Dtypes, cached: bool) -> float:
    """The perplexity of the text under a model in these dtypes."""
    tokens = np.array(source.tokenizer.encode(TEXT.read_text()), np.int32)
    parts = PARTS if cached else 1
    tokens = tokens[: len(tokens) // parts * parts].reshape(parts, -1)
    engine = source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh("1"), dtypes)
    return perplexity(engine, tokens, cached)


def record(models: list[str]) -> dict:
    """Measures every model in all dtypes."""
    perplexities = {}
    for model in models:
        source = find_source(model, accept_terms=True)
        rows = perplexities[model] = {}
        for cached in (False, True):
            for name, dtypes in dtype_sets(cached).items():
                rows[name] = measure(source, dtypes, cached)
                print(f"{model} {name}: {rows[name]:.3f}", file=sys.stderr, flush=True)
    return {"text": TEXT.name, "versions": versions(), "perplexity": perplexities}


def table(run: dict) -> str:
    """The table of a run, in Markdown."""
    models = run["perplexity"]
    cells = []
    for cached in (False, True):
        names = list(dtype_sets(cached))
        for name in names:
            cells.append([name, *(_cell(rows[name], rows[names[0]]) for rows in models.values())])
    align = "l" + "r" * len(models)
    return Table(["stored", *models], cells, align).markdown() + "\n"


def _cell(value: float, base: float) -> str:
    return f"{value:.2f}" + f" ({value / base - 1:+.2%})" * (value != base)


def main() -> None:
    """Measures, and writes the record and the table."""
    models = ["smollm2-135m", *["gemma3-270m"] * ("--accept_terms" in sys.argv)]
    run = record(models)
    RECORD.write_text(json.dumps(run, indent=1) + "\n")
    PART.write(table(run))


if __name__ == "__main__":
    main()
