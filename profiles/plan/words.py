"""Parts of what a plan says: names of ways, prices, and what is lacking."""

import math

from profiles.plan.cells import Cell
from profiles.plan.search import Candidate, Keep
from profiles.report.numbers import exact, number


def slice_of(cell: Cell) -> str:
    """All slices of a cell, and into how many stages they divide the layers."""
    return f"{cell.whole}" + f" in {cell.stages} stages" * (cell.stages > 1)


def name_of(point: Candidate) -> str:
    """A way to serve, in one line."""
    layout, names = point.row.layout, point.cell.dtypes.names()
    parts = [slice_of(point.cell)]
    if layout:
        mesh = "x".join(map(str, point.row.mesh.values()))
        parts.append(f"{layout.name} on {mesh}, attention by {layout.attends}")
        parts += ["expert-parallel"] * layout.expert_parallel
    parts += [f"weights {names['weight_dtype']}", f"cache {names['kv_dtype']}"]
    return ", ".join([*parts, f"batch {point.batch:,}"])


def price_of(cell: Cell) -> str:
    """What a chip-hour costs, and whose price that is."""
    whose = f"of {cell.price.seller}" if cell.price.seller else "as given"
    return f"{exact(cell.price.usd)} USD per chip-hour {whose}"


def lacking_bytes(cell: Cell, keep: Keep | None = None) -> float:
    """Bytes per chip by which one sequence fits in none of these rows; infinite without rows."""
    rows = [place for place, row in enumerate(cell.rows) if not keep or keep(row)]
    return cell.missing_bytes(rows) if rows else math.inf


def gigabytes(size: float) -> str:
    """A size in GB."""
    return f"{number(size / 1e9)} GB"
