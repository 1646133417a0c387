"""Compile a grid of steps for TPUs or GPUs, with none at hand, into one table.

Every combination of --model, --topology, --layout, --attention, types, --batch and --context is
compiled as compile_step.py does it. Writes matrix.csv, matrix.jsonl, and two heat maps: bytes that
a chip holds over its capacity, and bytes that a step moves over the floor's. A run that is stopped
continues where it stopped; a point that does not fit or that the compiler refuses has a row, too,
and one whose compiler died or lacked this machine's memory is compiled again by the next run.

Examples:
  python scripts/compile_matrix.py --model=llama3-8b --topology=v5e:2x4,v5p:2x2x1 --batch=1,32
  python scripts/compile_matrix.py --model=llama3-8b,llama3-70b --topology=v5e:4x4,v6e:2x4 \\
      --weight_dtype=bfloat16,int8 --layout=weight_stationary_1d,weight_stationary_2d
  python scripts/compile_matrix.py --model=llama3-8b --topology=h100:8,b200:8 --batch=1,64
  python scripts/compile_matrix.py --phase=prefill --context=2048 --batch=1 --json=-
"""

import datetime
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import _array_flags
import _common
from absl import flags

_TOPOLOGY = flags.DEFINE_list("topology", ["v5e:2x4"], "Slices, such as v5e:4x4,v5p:2x2x2,h100:8.")
_BATCH = flags.DEFINE_list("batch", ["1", "32"], "Sequences.")
_CONTEXT = flags.DEFINE_list(
    "context", ["2048"], "Tokens in each sequence's cache; for prefill, tokens of each prompt."
)
_PHASE = flags.DEFINE_enum("phase", "decode", ["decode", "prefill"], "Which passes.")
_CHUNK = _array_flags.define_chunk(
    "Tokens of a prompt that run at once, a multiple of 16; of longer prompts the last whole one "
    "is compiled, after all tokens before it. Default: 2048."
)
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Concurrent compilers; by default as many as cores and memory allow.", 1
)
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", "out/matrix", "Folder for results.")
_array_flags.define_step_flags()
_array_flags.define_gpu_kernels()
_array_flags.leave_open()

if __name__ == "__main__":
    for name in _common.OF_SHAPES:
        flags.declare_key_flag(name)
    for module in (_array_flags,):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _dtypes
    import _layouts
    from tqdm import tqdm

    from model.catalog import find_model
    from profiles.chips.slices import parse_slice
    from profiles.compiled.grid import GridPoint, run, summary, write_grid
    from profiles.compiled.toolchains import check_compiler, libraries_of
    from profiles.figures.grid import heat_map
    from profiles.floor.passes import Pass
    from profiles.report.document import document, versions
    from profiles.report.files import check_writable, write_csv, write_json
    from profiles.report.numbers import ms
    from profiles.report.record import Record
    from profiles.report.table import Table
    from profiles.report.titles import field_text
    from sharding.error_types import UsageError


def main() -> None:
    """Compiles the points that are not compiled yet, prints the table and writes the files."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    output = Path(_OUTPUT_DIR.value)
    _common.check_json()
    points = _points()
    for point in points:
        point.check()
    slices = [parse_slice(topology) for topology in dict.fromkeys(p.topology for p in points)]
    for slice in slices:
        check_compiler(slice)
    check_writable(output)
    libraries = ("jax", *libraries_of(slices))
    used = {name: versions()[name] for name in libraries if name in versions()}
    records = run(points, output, used, _progress, _WORKERS.value)
    rows = [summary(record) for record in records]
    results = document(sys.argv, records, device_kind="", started=started, bandwidth=None)
    write_grid(output / "matrix.jsonl", results)
    write_csv(output / "matrix.csv", rows)
    named = ", ".join(f"{name} {version}" for name, version in used.items())
    held, moved = "arguments and temporaries / memory of a chip", "bytes moved / the floor's bytes"
    heat_map(rows, "resident_over_capacity", f"{held}\n({named})", output / "resident.png", (0, 1))
    heat_map(rows, "bytes_over_floor", f"{moved}\n({named})", output / "bytes.png", (1, 2))
    if _common.JSON.value:
        write_json(_common.JSON.value, results)
    _common.show(table(rows))
    _common.say(f"wrote matrix.jsonl, matrix.csv, resident.png and bytes.png to {output}")


def table(rows: list[dict]) -> str:
    """The table, with a row for each point."""
    head = ("model", "slice", "mesh", "layout", "attention", "weights", "cache", "batch",
            "context", "floor ms", "arguments / floor's", "temporaries", "cache in place",
            "collectives as expected", "costliest finding")  # fmt: skip
    return Table(head, [_cells(row) for row in rows]).terminal()


def _cells(row: dict) -> tuple[str, ...]:
    mesh = field_text(row["mesh"]) if "mesh" in row else ""
    tokens = row.get("tokens_per_sequence", 1)
    what = (row["model"], row["topology"], mesh, row["layout"], row.get("attention", ""),
            row["weight_dtype"], row["kv_dtype"], f"{row['batch']:,}",
            f"{tokens if tokens > 1 else row['context']:,}",
            ms(row["floor_s"]) if "floor_s" in row else "")  # fmt: skip
    if "arguments_over_floor" not in row:
        return (*what, row["status"], "", "", "", row.get("message", "")[:60])
    return (
        *what,
        f"{row['arguments_over_floor']:.4f}",
        f"{row['temporaries_over_arguments']:.1%}",
        "yes" if row["cache_aliased"] else "NO",
        "yes" if row["collectives_as_expected"] else "NO",
        f"{row['costliest_over_floor']:.1%} of floor" if row["findings"] else "none",
    )


def _points() -> list[GridPoint]:
    """Every combination of the flags' values, without duplicates.

    Raises:
      UsageError: a prompt has a single token.
    """
    prefill, points = _PHASE.value == "prefill", []
    chunk = _array_flags.accelerator_chunk(_CHUNK, _PHASE.value)
    for name in _common.MODEL.value.split(","):
        model = _common.lengthened(find_model(name))
        _layouts.check_divides(model)
        contexts = _common.lengths(_CONTEXT, model, prefill)
        if prefill and min(contexts) < 2:
            raise UsageError(f"--context is {min(contexts)} with --phase=prefill; use 2 or more")
        passes = [
            Pass(batch, 0, length).last_chunk(chunk) if prefill else Pass(batch, length)
            for batch in _common.integers("batch", _BATCH.value)
            for length in contexts
        ]
        grid = itertools.product(
            _TOPOLOGY.value,
            _dtypes.dtype_sets(here=False),
            _layouts.names(),
            passes,
        )
        points += [
            GridPoint(model, topology, names, dtypes, pass_)
            for topology, dtypes, names, pass_ in grid
        ]
    return list(dict.fromkeys(points))


def _progress(finished: Iterator[tuple[str, Record]], count: int) -> Iterator[tuple[str, Record]]:
    """Shows a progress bar in a terminal, else a line for each point."""
    watched = sys.stderr.isatty()
    with tqdm(finished, total=count, disable=not watched, file=sys.stderr, leave=False) as bar:
        for number, (key, record) in enumerate(bar, 1):
            bar.set_description_str(key)
            if not watched:
                _common.say(f"{number} of {count}: {key}: {record.status}")
            yield key, record


if __name__ == "__main__":
    _common.start(main, _common.OF_SHAPES)
