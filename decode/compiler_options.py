"""Compiler options of steps, in addition to XLA's defaults."""

import functools

import jax
import jax.numpy as jnp

from model.dtypes import Dtypes
from sharding.quantization import Quantization

IN_PLACE = {"xla_msa_max_outstanding_evictions": "0"}
"""XLA:TPU never copies a prefetched array back from VMEM to HBM.

By default, where a layer's keys or values fit into VMEM, XLA:TPU prefetches all of them, because
attention reads them anyway, adds the new tokens in VMEM, and writes everything back: bytes that no
floor counts. With this option the new tokens are written to the cache in HBM. Caches and weights
are still prefetched.
"""

SIDE_BY_SIDE = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
"""Kernels of a CUDA graph that do not depend on each other run at the same time.

On an H200 this made llama3-8b's step for one sequence 4% shorter. Not for weights in groups: XLA
writes such matrices out, and side by side it keeps those of all layers at once, 14 GB of llama3-8b
in int4 at batch 8, in place of 0.2. By the kernel for few tokens (`sharding.grouped_gpu`) it is
5 MB there and 41 at batch 64; but of more than 256 tokens, of experts, and where the compiler
divides products, matrices are written out all the same, which an engine's options cannot tell.
"""

NO_GRAPHS = {"xla_gpu_enable_command_buffer": "", "xla_gpu_graph_min_graph_size": "1000000"}
"""No CUDA graphs, for traces: a profiler does not tell the names of what runs in a graph.

The first is no kind of operation that graphs may have, the second more than any step has.
"""

WIDE = {"xla_cpu_prefer_vector_width": "512"}
"""Loops of XLA:CPU use vectors as long as a processor has them, in place of 256 bits at most.

The exponentials of a prompt's attention take a sixth less time by it, on two cores with AVX-512.
"""

_OF_DECODE = {"tpu": IN_PLACE, "gpu": SIDE_BY_SIDE, "cuda": SIDE_BY_SIDE}
_OF_GROUPS = {"tpu": IN_PLACE}
_OF_PREFILL = {"tpu": IN_PLACE, "cpu": WIDE}


def decode_options(mesh: jax.sharding.Mesh, dtypes: Dtypes) -> dict[str, str] | None:
    """The `compiler_options` for `jax.jit` of a decode step on this mesh.

    Args:
      mesh: the devices.
      dtypes: how the model's numbers are stored.

    Returns:
      None if its compiler has none of them.
    """
    grouped = isinstance(dtypes.weights, Quantization) and dtypes.weights.group
    return _options(mesh, _OF_GROUPS if grouped else _OF_DECODE)


def prefill_options(mesh: jax.sharding.Mesh) -> dict[str, str] | None:
    """Those of a chunk of prompts; see `decode_options`."""
    return _options(mesh, _OF_PREFILL)


def _options(
    mesh: jax.sharding.Mesh, by_platform: dict[str, dict[str, str]]
) -> dict[str, str] | None:
    options = by_platform.get(mesh.devices.flat[0].platform)
    return options if options and known(mesh, *options.items()) else None


@functools.cache
def known(mesh: jax.sharding.Mesh, *options: tuple[str, str]) -> bool:
    """Whether this version of XLA has the options; it refuses those that it does not know."""
    replicated = jax.NamedSharding(mesh, jax.P())
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
    try:
        jax.jit(jnp.negative, compiler_options=dict(options)).lower(number).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True
