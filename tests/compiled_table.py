"""What XLA's TPU compiler makes of steps, from recorded grids, for the README.

`python -m tests.compiled_table` writes it; `scripts/compile_matrix.py` records the grids.
"""

import json
from pathlib import Path

from profiles.matrix import summary
from profiles.report import ms

ROOT = Path(__file__).parents[1]
README, RECORDED = ROOT / "README.md", ROOT / "profiles/results/compiled"
BEGIN, END = "<!-- compiled: python -m tests.compiled_table -->\n", "<!-- end compiled -->"


def recorded() -> list[dict]:
    """The grids' documents."""
    return [json.loads(path.read_text()) for path in sorted(RECORDED.glob("*/matrix.json"))]


def table() -> str:
    """A row for each recorded step, in Markdown."""
    points, made = [], set()
    for found in recorded():
        points += found["points"]
        versions = found["versions"]
        made.add((versions["libtpu"], versions["jax"], found["started"][:10]))
    said = "; ".join(f"libtpu {libtpu}, jax {jax}, {date}" for libtpu, jax, date in sorted(made))
    head = (
        "| model, weights, cache | slice, mesh | layout, attention | step | floor ms | arguments "
        "/ floor's | temporaries / arguments | cache in place | collectives as expected, alone "
        "| costliest finding, of the floor |"
    )
    lines = [f"Compiled by {said}:", "", head, "|---|---|---|---|---:|---:|---:|:---:|:---:|---|"]
    return "\n".join([*lines, *map(_line, points)]) + "\n"


def _line(record: dict) -> str:
    row = summary(record)
    mesh = "x".join(map(str, row["mesh"].values()))
    tokens = row["tokens_per_sequence"]
    work = f"decode {row['batch']} x {row['context']:,}"
    if tokens > 1:
        work = f"prefill {row['batch']} x {tokens:,}"
    cells = [
        f"{row['model']}, {row['weight_dtype']}, {row['kv_dtype']}",
        f"{row['topology']}, {mesh}",
        f"{row['layout']}, {row['attention']}"
        + ", overlapped" * (row["collectives"] == "overlapped"),
        work,
        ms(row["floor_s"]),
    ]
    if "arguments_over_floor" not in row:
        return "| " + " | ".join([*cells, row["status"].replace("_", " "), "", "", "", ""]) + " |"
    kinds = [each["kind"].replace("_", " ") for each in record["findings"]]
    return (
        "| "
        + " | ".join(
            [
                *cells,
                f"{row['arguments_over_floor']:.4f}",
                f"{row['temporaries_over_arguments']:.1%}",
                "yes" if row["cache_aliased"] else "NO",
                f"{'yes' if row['collectives_as_expected'] else 'NO'}, {row['collectives_alone']}",
                f"{kinds[0]} {row['costliest_over_floor']:.1%}" if kinds else "none",
            ]
        )
        + " |"
    )


if __name__ == "__main__":
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + table() + END + rest.split(END)[1])
