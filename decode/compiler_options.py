"""Options that a decode step is compiled with, beside XLA's own."""

import functools

import jax
import jax.numpy as jnp

IN_PLACE = {"xla_msa_max_outstanding_evictions": "0"}
"""Nothing goes back from VMEM to HBM.

Where a layer's keys or values fit into VMEM, XLA:TPU brings them there whole, as attention needs
them anyway, adds the new tokens there, and writes everything back: bytes that no floor counts. With
this the new tokens are written where the cache lies. What attention reads ahead of time, it still
does; so for weights.
"""

SIDE_BY_SIDE = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
"""Kernels of a CUDA graph that do not need each other run at the same time.

llama3-8b's step for one sequence took 4% less time so on an H200.
"""

_OF_DECODE = {"tpu": IN_PLACE, "gpu": SIDE_BY_SIDE, "cuda": SIDE_BY_SIDE}


def decode_options(mesh: jax.sharding.Mesh) -> dict[str, str] | None:
    """What `jax.jit` takes as `compiler_options` on this mesh, if its compiler knows them."""
    options = _OF_DECODE.get(mesh.devices.flat[0].platform)
    return options if options and known(mesh, *options.items()) else None


@functools.cache
def known(mesh: jax.sharding.Mesh, *options: tuple[str, str]) -> bool:
    """Whether this version of XLA has the options; it refuses those that it does not know."""
    whole = jax.NamedSharding(mesh, jax.P())
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    try:
        jax.jit(jnp.negative, compiler_options=dict(options)).lower(number).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True
