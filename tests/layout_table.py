"""The README's table of layouts, from the catalogue; `python -m tests.layout_table` writes it."""

from pathlib import Path

from sharding.layout import LAYOUTS
from sharding.placement import Table

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- layouts: python -m tests.layout_table -->\n", "<!-- end layouts -->"


def table() -> str:
    """One row per layout: which mesh axes divide its weights, stored and in use, and the batch."""
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


def _divided(weights: Table) -> str:
    """Such as ``D.x F.zy``; heads and vocabulary are divided as d_ff is."""
    shown = [f"{key}.{''.join(axes)}" for key, axes in weights.items() if key in ("D", "F")]
    return " ".join(shown) or "whole"


def main() -> None:
    """Writes the table into the README."""
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(before + BEGIN + table() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
