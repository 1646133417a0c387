"""What XLA makes of steps for TPUs and GPUs, from recorded grids, for this folder's page.

`python -m profiles.compiled.compiled_table` writes it; `scripts/compile_matrix.py` records the
grids.
"""

from collections.abc import Callable

from profiles.chips.slices import parse_slice
from profiles.compiled.grid import read_grid, summary
from profiles.compiled.toolchains import toolchain_of
from profiles.report.numbers import ms
from profiles.report.pages import ROOT, Part
from profiles.report.record import Record
from profiles.report.table import Table

RECORDED = ROOT / "profiles/results/compiled"
PART = Part("profiles/compiled/README.md", "compiled", "profiles.compiled.compiled_table")
COMPILERS = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-pjrt",)}
Cells = Callable[[tuple[str, str, str, str], list[Record]], list[str]]
"""Makes the cells of a row: of what it is, and of its records."""

HEAD = (
    "model, weights, cache", "slice, mesh", "layout, attention", "step: batch x tokens", "floor ms",
    "arguments / floor's", "temporaries / arguments", "cache in place, collectives as expected",
    "copied, of the floor's bytes", "collectives alone", "costliest finding, of the floor",
)  # fmt: skip


GPU_HEAD = (
    "model, weights, cache", "GPUs, mesh", "layout, attention", "step: batch x tokens", "floor ms",
    "arguments / floor's", "temporaries / arguments", "cache in place, collectives as expected",
    "kernels", "library calls", "weights and cache read / floor's",
    "costliest findings, of the floor",
)  # fmt: skip


def recorded() -> list[dict]:
    """The grids' documents."""
    return [read_grid(path) for path in sorted(RECORDED.glob("*/matrix.jsonl"))]


def table() -> str:
    """A row for each model, slice and layout, of one size or of several, in Markdown."""
    tpus = _part("tpu", HEAD, "llllrrrcrrl", _cells)
    gpus = _part("gpu", GPU_HEAD, "llllrrrcrrrl", _gpu_cells)
    return f"{tpus}\n{gpus}"


def _part(platform: str, head: tuple[str, ...], align: str, cells: Cells) -> str:
    """The table of one platform's steps, and what compiled them."""
    steps, made = {}, set()
    for found in recorded():
        points = [point for point in found["points"] if _platform(point) == platform]
        for point in points:
            steps.setdefault(_case(point), []).append(point)
        if points:
            used = (*COMPILERS[platform], "jax")
            versions = [f"{name} {found['versions'][name]}" for name in used]
            made.add((*versions, found["started"][:10]))
    said = "; ".join(map(", ".join, sorted(made)))
    rows = [cells(case, records) for case, records in steps.items()]
    return f"Compiled by {said}:\n\n{Table(head, rows, align=align).markdown()}\n"


def _platform(record: Record) -> str:
    return toolchain_of(parse_slice(record.topology)).platform


def _case(record: Record) -> tuple[str, str, str, str]:
    """The cells that say which steps a row is of, all but their batches."""
    row = summary(record)
    overlapped = ", overlapped" * (row["collectives"] == "overlapped")
    tokens = row["tokens_per_sequence"]
    return (
        f"{row['model']}, {row['weight_dtype']}, {row['kv_dtype']}",
        f"{row['topology']}, {'x'.join(map(str, row['mesh'].values()))}",
        f"{row['layout']}, {row['attention']}{overlapped}",
        _work(tokens, row["context"]),
    )


def _work(tokens: int, context: int) -> str:
    """New and cached tokens of each sequence, with a place for the number of sequences."""
    if tokens == 1:
        return f"decode %s x {context:,}"
    return f"prefill %s x {tokens:,}" + f" after {context:,}" * (context > 0)


def _gpu_cells(case: tuple[str, str, str, str], records: list[Record]) -> list[str]:
    """A row of GPUs: what differs by batch one after another, and else the worst."""
    first = _cells(case, records)[:8]
    rows = [summary(record) for record in records if record.ok]
    costs: dict[str, float] = {}
    for record in records:
        for finding in record.findings or ():
            cost = finding["cost_s"] / record.floor_s
            costs[finding["kind"]] = max(costs.get(finding["kind"], 0.0), cost)
    worst = sorted(costs, key=lambda kind: -costs[kind])[:2]
    return [
        *first,
        ", ".join(str(row["kernels"]) for row in rows),
        ", ".join(dict.fromkeys(str(row["library_calls"]) for row in rows)),
        ", ".join(f"{row['read_over_floor']:.2f}" for row in rows),
        ", ".join(f"{kind.replace('_', ' ')} {costs[kind]:.0%}" for kind in worst) or "none",
    ]


def _cells(case: tuple[str, str, str, str], records: list[Record]) -> list[str]:
    """A row: of several batches, floors one after another, and else the worst of them."""
    *which, work = case
    batches = ", ".join(
        str(record.batch) + " (does not fit)" * (record.status == "does_not_fit")
        for record in records
    )
    compiled = [record for record in records if record.ok]
    rows = [summary(record) for record in compiled]
    worst = max(rows, key=lambda row: row["costliest_over_floor"])
    kinds = rows.index(worst) if worst["findings"] else None
    kind = compiled[kinds].findings[0]["kind"].replace("_", " ") if kinds is not None else ""
    sound = all(row["cache_aliased"] and row["collectives_as_expected"] for row in rows)
    return [
        *which,
        work % batches,
        ", ".join(ms(record.floor_s) for record in records),
        f"{max(row['arguments_over_floor'] for row in rows):.4f}",
        f"{max(row['temporaries_over_arguments'] for row in rows):.1%}",
        "yes" if sound else "NO",
        f"{max(row['bytes_over_floor'] for row in rows) - 1:.1%}",
        ", ".join(str(row["collectives_alone"]) for row in rows),
        f"{kind} {worst['costliest_over_floor']:.1%}" if kind else "none",
    ]


if __name__ == "__main__":
    PART.write(table())
