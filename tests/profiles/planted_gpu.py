"""Steps compiled for GPUs that are not there, sound and with what XLA:GPU does badly, to be found.

`python -m tests.profiles.planted_gpu`, with the extra `gpu-compile`, writes the folder
`gpu_programs` anew, as `planted` does its own.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import jax.numpy as jnp
from jax.experimental import topologies

from model.dtypes import Dtypes
from profiles.chips.slices import parse_slice
from profiles.compiled.toolchains import GPU
from sharding.catalog import LAYOUTS
from sharding.quantization import QUANTIZATIONS
from tests.profiles.planted import CONFIG, Planted, lowered, write_programs

PROGRAMS = Path(__file__).with_name("gpu_programs")
STEP = Planted(topology="h200:4", config=dataclasses.replace(CONFIG, layers=2, d_ff=16384))
CASES = {
    "sound": STEP,
    "undonated": dataclasses.replace(STEP, donate=False),
    "grouped": dataclasses.replace(
        STEP,
        dtypes=Dtypes(jnp.bfloat16, QUANTIZATIONS["int4"], gpu_kernels=("attention_step", "norm")),
    ),
    "converted": dataclasses.replace(
        STEP, dtypes=Dtypes(jnp.bfloat16, QUANTIZATIONS["int8"]), batch=64
    ),
    "two_dimensions": dataclasses.replace(
        STEP, layout=LAYOUTS["weight_stationary_2d"], mesh="2x1x2", batch=16
    ),
}


def write(folder: Path) -> None:
    """Compiles each and writes it, with the bytes that it accounts for."""
    slice = parse_slice(STEP.topology)
    name, options = GPU.topology(slice)
    found = topologies.get_topology_desc(
        platform=GPU.topology_platform, topology_name=name, **options
    )
    steps = {name: functools.partial(lowered, case, found.devices) for name, case in CASES.items()}
    write_programs(folder, steps)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else PROGRAMS)
