"""Measure what these devices achieve, and write it as a calibration.

Memory: bytes that read kernels take in per second, for arrays of 256 KiB to 1 GiB. Matmuls: FLOP/s
for 1 to 1,024 rows, in each type, in passes of some layers of a model, and of attention in them.
Collectives: every kind over every set of mesh axes, by payload, with a fitted fixed cost and rate.
Calls: when the call of a program returns, and when its result is there. Kernels are timed in turns,
and medians are fitted by lines. Takes less than a minute on a CPU.

Writes microbenchmark.json and calibration.json to --output_dir, then prints. The second is for
--calibration of estimate.py, plan.py and profile_decode.py: achieved fractions of a chip's
recommended figures, and fixed times. It is for the chip that it was measured on, and refused for
others. A CPU has no published figures: its fractions are of the best rates of the run, and no slice
is of CPUs.

On a CPU two fake devices share its cores and its memory, or as many as --devices says; elsewhere
all devices are measured. Of many processes, process 0 writes.

Examples:
  python scripts/microbenchmark.py
  python scripts/microbenchmark.py --devices=8 --mesh=2x2x2 --seconds=60
  python scripts/microbenchmark.py --rows=1,8,64,256
  python scripts/microbenchmark.py --dtype=bfloat16 --output_dir=out/h200 --json=-
  python scripts/estimate.py --model=llama3-8b --topology=h200:1 \\
      --calibration=out/h200/calibration.json
"""

import dataclasses
import datetime
import math
import sys
from pathlib import Path

import _common
from absl import flags

_DEVICES = flags.DEFINE_integer(
    "devices", None, "Number of devices. Default: 2 on a CPU, elsewhere all.", 1
)
_MESH = flags.DEFINE_string(
    "mesh", None, "Sizes of mesh axes x, y and z, such as 2x2x2. Default: all devices on z."
)
_DTYPE = flags.DEFINE_list(
    "dtype",
    None,
    "Types of matmuls; the first is the one that is calibrated. Default: float32 and bfloat16 on a "
    "CPU, elsewhere bfloat16 and float32.",
)
_ROWS = flags.DEFINE_list(
    "rows",
    None,
    "Rows of matmuls, such as 1,8,64: the batches of steps. Default: 1 to 1,024. 1,024 rows are "
    "measured always.",
)
_SECONDS = flags.DEFINE_float("seconds", 15, "Time for samples; at least five rounds.", 0)
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", "out/microbenchmark", "Folder for results.")
_ON_CPU = 2
_SHOWN = (*_common.OF_RUNS, *_common.OF_PROCESSES)

if __name__ == "__main__":
    for name in _SHOWN:
        flags.declare_key_flag(name)

with _common.importing(__name__):
    from model.dtypes import PLAIN_DTYPES, Dtypes, default_dtype
    from profiles.chips.calibration import Calibration
    from profiles.chips.local_devices import LocalDevices, local_devices
    from profiles.expected.links import embeddings, mesh_items
    from profiles.measured.bandwidth import cpu_cache
    from profiles.measured.measured_calibration import Basis, LinkCost, calibrate
    from profiles.measured.microbenchmark import MOST_ROWS, kernels, measure, results
    from profiles.measured.microbenchmark_tables import tables
    from profiles.report.document import document
    from profiles.report.files import check_writable, write_json
    from profiles.report.numbers import number
    from profiles.report.table import wrap
    from sharding import processes
    from sharding.devices import default_platform, devices
    from sharding.error_types import UsageError
    from sharding.mesh import MeshShape, make_mesh, parse_mesh, request_cpu_devices


def main() -> None:
    """Measures, and writes and prints the results."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    output = Path(_OUTPUT_DIR.value)
    if not _SECONDS.value >= 0:  # false for NaN
        raise UsageError("--seconds is nan; use a number of seconds, 0 or more")
    _check_dtypes()
    rows = _rows()
    shape = _mesh()
    processes.from_first_process(lambda: check_writable(output))
    _common.check_json()
    mesh, dtypes, here = make_mesh(shape), _dtypes(), local_devices(math.prod(shape.values()))
    ready = kernels(mesh, [Dtypes(PLAIN_DTYPES[name]) for name in dtypes], rows)
    measure(ready, _SECONDS.value)
    found = results(ready, _caches(here))
    calibration = calibrate(found, _basis(here, shape, dtypes[0], started), here.calibration)
    if not processes.is_first():
        return
    kind = devices()[0].device_kind
    whole = document(
        sys.argv, [], device_kind=kind, started=started, bandwidth=None,
        calibration=calibration.as_record(), mesh=shape, **found,
    )  # fmt: skip
    write_json(output / "microbenchmark.json", whole)
    write_json(output / "calibration.json", calibration.as_record())
    if _common.JSON.value:
        write_json(_common.JSON.value, whole)
    _common.say(f"wrote {output / 'microbenchmark.json'}, {output / 'calibration.json'}")
    _common.show(tables(found, mesh.size, kind))
    if mesh.size == 1:
        _common.show("\nCollectives: one device has none; --devices=2 or more measures them")
    _common.show("\n" + wrap(_summary(calibration), 2))


def _mesh() -> MeshShape:
    """The mesh of the flags, all on z unless they say otherwise; requests fake CPU devices."""
    shape = parse_mesh(_MESH.value) if _MESH.value else None
    count = math.prod(shape.values()) if shape else _DEVICES.value
    if shape and _DEVICES.value not in (None, count):
        raise UsageError(
            f"--mesh is {_MESH.value}, of {count} devices, beside --devices of {_DEVICES.value}; "
            "leave one of them out"
        )
    request_cpu_devices(count or _ON_CPU)
    if not count:
        count = _ON_CPU if default_platform() == "cpu" else len(devices())
    return shape or parse_mesh(str(count))


def _check_dtypes() -> None:
    for name in _DTYPE.value or ():
        if name not in PLAIN_DTYPES:
            raise UsageError(
                f"--dtype is {name!r}; use one or several of {', '.join(PLAIN_DTYPES)}"
            )


def _rows() -> list[int]:
    """Rows of matmuls; none for the default ones."""
    for text in _ROWS.value or ():
        if not text.isdecimal() or not 1 <= int(text) <= MOST_ROWS:
            raise UsageError(
                f"--rows is {text!r}; use one or several numbers of 1 to {MOST_ROWS:,}, by commas"
            )
    return [int(text) for text in _ROWS.value or ()]


def _dtypes() -> list[str]:
    """Types of matmuls, the one that is calibrated first."""
    return list(dict.fromkeys(_DTYPE.value or [default_dtype(), *PLAIN_DTYPES]))


def _caches(here: LocalDevices) -> float:
    """Bytes that the caches of all devices hold."""
    if default_platform() == "cpu":
        return cpu_cache()
    return here.slice.chip.on_chip / here.slice.chip.devices_per_chip * here.slice.devices


def _basis(here: LocalDevices, shape: MeshShape, dtype: str, started: str) -> Basis:
    """What fractions are of: the recommended figures of a chip, or the best of the run."""
    chip, count = here.slice.chip.recommended, here.slice.devices
    published = chip.name != "cpu"
    kind = devices()[0].device_kind
    parts = chip.devices_per_chip
    return Basis(
        chip=chip.name if published else kind,
        memory=chip.bandwidth / parts * count if published else None,
        flops=chip.peak(dtype) / parts * count if published else None,
        link_cost=_link_cost(here, shape),
        published=published,
        dtype=dtype,
        words=f"{count} x {kind}, {started[:10]}",
    )


def _link_cost(here: LocalDevices, shape: MeshShape) -> LinkCost:
    """Times of collectives at recommended rates, without the fixed time that is measured."""
    recommended = dataclasses.replace(here.slice, chip=here.slice.chip.recommended)
    embedding = embeddings(recommended, mesh_items(shape), for_floor=False)[0]
    unfixed = dataclasses.replace(here.calibration, collective_s=0.0)
    return lambda kind, axes: embedding.expected_cost(kind, tuple(axes), unfixed)


def _summary(found: Calibration) -> str:
    """The calibration in words."""
    rows = ", ".join(f"{fraction:.0%} of {rows:g} rows" for rows, fraction in found.compute_by_rows)
    attention = f"attention {found.attention:.1%}, " if found.attention else ""
    return (
        f"Calibration {found.name}: memory {found.memory:.0%}, arithmetic {rows}, {attention}"
        f"links {found.link:.0%}; a collective {number(found.collective_s * 1e6)} us, a step "
        f"{number(found.step_s * 1e6)} us. "
        f"{found.source[0].upper()}{found.source[1:]}."
    )


if __name__ == "__main__":
    _common.start(main, _SHOWN)
