"""The process that loads a compiler: reads a job on standard input, compiles, writes the outcome.

`python -m profiles.compiled.child FOLDER` writes FOLDER/result.json, and FOLDER/program.txt if the
program was compiled; see `profiles.compiled.compiler`.
"""

import json
import sys
import time
from pathlib import Path

import jax
from jax.experimental import topologies

from profiles.compiled.compiler import from_json, memory_sizes


def main(folder: Path) -> None:
    """Compiles one job."""
    job = json.load(sys.stdin)
    try:
        result, text = _compile(job)
        (folder / "program.txt").write_text(text)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError, TypeError) as error:
        result = {"status": "unsupported", "message": f"{type(error).__name__}: {error}"}
    (folder / "result.json").write_text(json.dumps(result))


def _compile(job: dict) -> tuple[dict, str]:
    started = time.perf_counter()
    found = topologies.get_topology_desc(
        platform=job["platform"], topology_name=job["topology"], **job["options"]
    )
    program = from_json(job["program"])
    if len(found.devices) != program.placement.devices:
        raise ValueError(
            f"topology {job['topology']} has {len(found.devices)} devices, and the mesh "
            f"{program.placement.devices}"
        )
    lowered = program.lower(found.devices, job["auto_weight_layout"])
    traced = time.perf_counter()
    compiled = lowered.compile(job["compiler_options"] or None)
    result = {
        "status": "ok",
        "trace_s": traced - started,
        "compile_s": time.perf_counter() - traced,
        "memory": memory_sizes(compiled),
    }
    return result, compiled.as_text()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
