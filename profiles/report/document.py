"""The document of a run: its records, and what is needed to read or repeat them."""

import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from profiles.report.record import Record, Seconds

GPU_COMPILERS = ("jax-cuda13-pjrt", "jax-cuda12-pjrt")
"""Libraries that have XLA for GPUs, beside which no version of XLA is told."""


def document(
    command: Sequence[str],
    points: Sequence[Record],
    *,
    device_kind: str,
    started: str,
    bandwidth: dict | None,
    **more: object,
) -> dict:
    """One run's document, which `profiles.report.files.write_json` writes.

    Args:
      command: the command line, program first.
      points: one record per step measured or computed.
      device_kind: JAX's name of the devices.
      started: when the run began, ISO 8601.
      bandwidth: `{"bytes_per_s", "source": "measured" | "published"}`, what floors were taken at;
        None where the run has no floor.
      **more: what the script adds, such as `fits`, `prompts` or `calibration`.
    """
    head = {"schema": 1, "command": list(command), "versions": versions()}
    run = {"device_kind": device_kind, "started": started}
    if bandwidth is not None:
        run["bandwidth"] = dict(bandwidth)
    return {**head, **run, **more, "points": list(points)}


def read_document(path: Path) -> dict:
    """A document that a run wrote, its points and whole prompts as records."""
    found = json.loads(path.read_text(encoding="utf-8"))
    records = (field for field in ("points", "prompts") if field in found)
    return found | {field: list(map(Record.from_json, found[field])) for field in records}


def versions() -> dict[str, str]:
    """Versions of Python, of the installed libraries that decide a step's time, and of this one."""
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "libtpu", *GPU_COMPILERS, "floorline"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def summarise(samples: Sequence[float]) -> Seconds:
    """Median and spread of times in seconds, with the samples themselves."""
    p10, median, p90 = (float(v) for v in np.percentile(samples, (10, 50, 90)))
    return {"median": median, "p10": p10, "p90": p90, "samples": [float(s) for s in samples]}
