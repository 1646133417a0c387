"""The README's table of perplexities; `python -m tests.perplexity_table` measures and writes it.

With `--accept_terms` Gemma 3 270M too. Takes some five minutes on two cores.
"""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from decode.load import ModelSource, find_source
from decode.perplexity import perplexity
from model.form import Form
from profiles.report.document import versions
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from sharding.scaled import SCHEMES

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "tests/text/river.txt"
RECORD = ROOT / "profiles/results/perplexity.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- perplexity: python -m tests.perplexity_table -->\n", "<!-- end perplexity -->"
PARTS = 4
"""As so many texts a batch of decode steps reads it, from the KV cache."""


def forms(cached: bool) -> dict[str, Form]:
    """What is compared, by name; the first is what the others are held against."""
    if cached:
        stored = {"float32": None, "int8": SCHEMES["int8"], "fp8": SCHEMES["fp8"]}
        return {f"KV cache {name}": Form(jnp.float32, None, each) for name, each in stored.items()}
    return {
        "float32": Form(jnp.float32),
        "bfloat16": Form(jnp.float32, jnp.bfloat16),
        **{name: Form(jnp.float32, scheme) for name, scheme in SCHEMES.items()},
        "int8, activations rounded too": Form(jnp.float32, SCHEMES["int8"], None, True),
    }


def measure(source: ModelSource, form: Form, cached: bool) -> float:
    """Perplexity of the text."""
    tokens = np.array(source.tokenizer.encode(TEXT.read_text()), np.int32)
    parts = PARTS if cached else 1
    tokens = tokens[: len(tokens) // parts * parts].reshape(parts, -1)
    engine = source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh("1"), form)
    return perplexity(engine, tokens, cached)


def record(models: list[str]) -> dict:
    """Measures every form of every model."""
    found = {}
    for model in models:
        source = find_source(model, accept_terms=True)
        rows = found[model] = {}
        for cached in (False, True):
            for name, form in forms(cached).items():
                rows[name] = measure(source, form, cached)
                print(f"{model} {name}: {rows[name]:.3f}", file=sys.stderr, flush=True)
    return {"text": TEXT.name, "versions": versions(), "perplexity": found}


def table(run: dict) -> str:
    """A run in Markdown."""
    models = run["perplexity"]
    lines = ["| stored | " + " | ".join(models) + " |", "|---|" + "---:|" * len(models)]
    for cached in (False, True):
        names = list(forms(cached))
        for name in names:
            cells = (_cell(rows[name], rows[names[0]]) for rows in models.values())
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: float, base: float) -> str:
    return f"{value:.2f}" + f" ({value / base - 1:+.2%})" * (value != base)


def main() -> None:
    """Measures, and writes the record and the README."""
    models = ["smollm2-135m", *["gemma3-270m"] * ("--accept_terms" in sys.argv)]
    run = record(models)
    RECORD.write_text(json.dumps(run, indent=1) + "\n")
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(before + BEGIN + table(run) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
