"""A grid of compiled steps: models, slices, layouts, types and sizes, in one table.

Finished points are lines of a file, so that a run that ends early goes on where it stopped; points
of other versions of JAX or a compiler are compiled again, and so are those whose compiler died or
lacked this machine's memory. Several are compiled at once, as many as the machine has cores and
free memory for.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from model.catalog import CATALOG
from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.slices import parse_slice
from profiles.compiled.compiled_pass import compile_pass
from profiles.compiled.compiler import DIED
from profiles.compiled.toolchains import toolchain_of
from profiles.expected.candidates import LayoutNames, candidates
from profiles.expected.estimate import Estimator, best
from profiles.floor.deployment import Deployment
from profiles.floor.experts import expected_experts
from profiles.floor.memory_needed import free_memory
from profiles.floor.passes import Pass
from profiles.hlo.kernels import LIBRARY, PALLAS
from profiles.report.files import to_json, write_atomically
from profiles.report.record import Record
from sharding.error_types import FloorlineError
from sharding.mesh import parse_mesh
from sharding.stored_types import KERNELS_BY_DEFAULT

EACH = 7e9
"""Bytes of memory that one compiler may take: 80 layers of a large model took five."""
POINTS = "points.jsonl"


@dataclasses.dataclass(frozen=True)
class GridPoint:
    """One pass to compile.

    Attributes:
      model: its sizes.
      topology: text of a slice, kept as `Slice` writes it.
      names: layouts by names, of which the expected best is compiled.
      dtypes: how numbers are stored.
      pass_: the pass.
      mesh: sizes of its axes as text; None for the expected best.
    """

    model: ModelConfig
    topology: str
    names: LayoutNames
    dtypes: Dtypes
    pass_: Pass
    mesh: str | None = None

    def __post_init__(self) -> None:
        # One slice has one name, so that a rotated one finds what is recorded of it.
        object.__setattr__(self, "topology", str(parse_slice(self.topology)))

    def __str__(self) -> str:
        length = str(self.pass_.tokens if self.pass_.over_prompts else self.pass_.context)
        if self.pass_.continues:
            length = f"{self.pass_.context} and {length} tokens"
        kernels = ",".join(self.dtypes.gpu_kernels)
        return (
            f"{self.model.name} on {self.topology}, {self.names}, {self.dtypes}, "
            f"{self.pass_.phase} of batch {self.pass_.batch}, context {length}"
            + (f", mesh {self.mesh}" if self.mesh else "")
            + (f", GPU kernels {kernels}" if kernels != ",".join(KERNELS_BY_DEFAULT) else "")
        )

    def check(self) -> None:
        """Refuses names that there are none of, before anything is compiled.

        Raises:
          UsageError: an unknown chip, slice, layout or mesh.
        """
        toolchain_of(parse_slice(self.topology))
        self.names.layouts(self.model)
        if self.mesh:
            parse_mesh(self.mesh)

    def estimator(self) -> Estimator:
        """An estimator of the layout and mesh that are named, or of the expected best.

        Raises:
          LayoutError: none goes with the model and the slice.
        """
        slice = parse_slice(self.topology)
        deployment = Deployment(
            model=self.model,
            slice=slice,
            dtypes=self.dtypes,
            calibration=calibration_of(slice.chip.name),
        )
        shapes = [parse_mesh(self.mesh)] if self.mesh else None
        found = candidates(deployment, self.names.layouts(self.model), shapes)
        return best(found, [self.pass_])


def run(
    points: Sequence[GridPoint],
    folder: Path,
    versions: dict[str, str],
    progress: Callable[[Iterator[tuple[str, Record]], int], Iterator[tuple[str, Record]]],
    workers: int | None = None,
) -> list[Record]:
    """Examines every point; one that fails is a record that says so, and the rest goes on.

    Args:
      points: the grid.
      folder: where finished points are kept.
      versions: versions of JAX and of compilers; points made by others are not kept.
      progress: shows how far it is: takes finished points and how many there will be.
      workers: compilers at once; what the machine has room for if None.

    Returns:
      Records in the order of the points.
    """
    kept = _kept(folder / POINTS, versions)
    missing = [point for point in dict.fromkeys(points) if str(point) not in kept]
    with (
        open(folder / POINTS, "a", encoding="utf-8") as lines,
        ThreadPoolExecutor(workers or compilers_at_once()) as pool,
    ):
        done = {pool.submit(_compile_point, point): point for point in missing}
        finished = ((str(done[each]), each.result()) for each in as_completed(done))
        for key, record in progress(finished, len(missing)):
            kept[key] = record
            line = {"point": key, "versions": versions, "record": record}
            lines.write(to_json(line) + "\n")
            lines.flush()
    return [kept[str(point)] for point in points]


def compilers_at_once() -> int:
    """Compilers that this machine has cores and free memory for, at least one."""
    return max(min(os.cpu_count() or 1, int((free_memory() or EACH) // EACH)), 1)


def _compile_point(point: GridPoint) -> Record:
    try:
        record = compile_pass(point.estimator(), point.pass_).as_record()
    except FloorlineError as error:
        record = Record(
            model=point.model.name,
            topology=point.topology,
            layout=point.names.layout,
            batch=point.pass_.batch,
            context=point.pass_.context,
            **point.dtypes.names(),
            status="unsupported",
            message=str(error),
        )
    return record | Record(asked=str(point))


def _kept(path: Path, versions: dict[str, str]) -> dict[str, Record]:
    """Points of these versions that a run before this one finished.

    A torn last line is none, and a later line of a point that was compiled again stands for it.
    """
    found = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                one = json.loads(line)
            except ValueError:
                continue
            if one["versions"] == versions and _answered(record := Record.from_json(one["record"])):
                found[one["point"]] = record
    return found


def _answered(record: Record) -> bool:
    """Whether the compiler came to an end: not where it died or lacked this machine's memory."""
    died = (record.message or "").startswith(DIED)
    return record.status != "out_of_memory" and not died


# What is recorded ---------------------------------------------------------------------------------


def write_grid(path: Path, document: dict) -> None:
    """Writes a grid's document as lines of JSON: first all but its points, then one for each.

    What layers have in common is said once, see `merged`.

    Raises:
      OutputError: the file cannot be written.
    """
    head = {name: value for name, value in document.items() if name != "points"}
    lines = [head, *map(merged, document["points"])]
    write_atomically(path, "".join(to_json(line) + "\n" for line in lines).encode())


def read_grid(path: Path) -> dict:
    """The document that `write_grid` wrote."""
    head, *points = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return head | {"points": list(map(Record.from_json, points))}


def merged(record: Record) -> Record:
    """A point whose collectives of several layers, alike in all else, are one of ``layer_*``."""
    if not record.compiled:
        return record
    alike: dict[str, list[dict]] = {}
    for one in record.compiled["collectives"]:
        every = one | {"where": re.sub(r"\blayer_\d+", "layer_*", one["where"])}
        alike.setdefault(to_json(every | {"count": 0}), []).append(every)
    collectives = [
        group[0] | {"count": sum(one["count"] for one in group)} for group in alike.values()
    ]
    return record | Record(compiled={**record.compiled, "collectives": collectives})


# What a table has --------------------------------------------------------------------------------


def summary(record: Record) -> dict[str, object]:
    """A point in a line: sizes per chip and how they compare, and what was found.

    Returns:
      Absent fields are not known, as of a step that does not fit.
    """
    same = ("model", "topology", "mesh", "layout", "attention", "collectives", "weight_dtype",
            "kv_dtype", "phase", "batch", "context", "tokens_per_sequence", "floor_s", "expected_s",
            "status", "message")  # fmt: skip
    row = {name: value for name in same if (value := getattr(record, name)) is not None}
    if not record.compiled:
        return row
    compiled, counted = record.compiled, record.bytes_per_chip
    parts = record.devices // record.chips
    resident = counted["weights_resident"] + counted["kv_resident"]
    held = (compiled["argument_bytes"] + compiled["temporary_bytes"]) * parts
    moved = sum(map(_beside_floor, compiled["copies"])) * parts
    read = counted["weights_read"] + counted["kv_read"] + counted["kv_written"]
    alone = [one for one in compiled["collectives"] if one["overlap"] == "alone"]
    costliest = next(iter(record.findings), {"message": "", "cost_s": 0.0})
    return row | {
        "arguments_over_floor": compiled["argument_bytes"] * parts / resident,
        "temporaries_over_arguments": compiled["temporary_bytes"] / compiled["argument_bytes"],
        "resident_over_capacity": held / counted["capacity"],
        "bytes_over_floor": (read + moved) / read,
        "cache_aliased": compiled["cache_aliased"],
        "collectives_as_expected": record.collectives_as_expected,
        "collectives_alone": sum(one["count"] for one in alone),
        "copies": sum(copy["count"] for copy in compiled["copies"]),
        "findings": len(record.findings),
        "costliest_finding": costliest["message"],
        "costliest_over_floor": costliest["cost_s"] / record.floor_s,
        "compile_s": compiled["compile_s"],
        **_kernels(record, counted["weights_read"] + counted["kv_read"]),
    }


def _beside_floor(copy: dict) -> int:
    """Bytes per step of a copy beside the floor's: read and written, or as `Move` has them."""
    return copy.get("beside_floor", copy["bytes"]) * copy["count"]


def _kernels(record: Record, read: float) -> dict[str, float]:
    """Of a step for GPUs its kernels, and the bytes that they read over the floor's."""
    found = record.compiled.get("kernels")
    if found is None:
        return {}
    chosen = _chosen_experts(record)
    return {
        "kernels": sum(one["count"] for one in found),
        "library_calls": sum(one["count"] for one in found if one["sort"] == LIBRARY),
        "read_over_floor": sum(
            one["resident_read"] * (chosen if (one["sort"], one["where"]) == _EXPERTS else 1)
            for one in found
        )
        / read,
    }


_EXPERTS = PALLAS, "layer/mixture"
"""The kernel that has all experts of a chip as an operand, and reads those that are chosen."""


def _chosen_experts(record: Record) -> float:
    """The part of all experts that tokens of a step choose, spread evenly; 1 of other models."""
    entry = CATALOG.get(record.model)
    if not entry or not entry.config.experts:
        return 1.0
    tokens = record.batch * (record.tokens_per_sequence or 1)
    return expected_experts(entry.config, tokens) / entry.config.experts
