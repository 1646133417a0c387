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


def decode_options(mesh: jax.sharding.Mesh) -> dict[str, str] | None:
    """What `jax.jit` takes as `compiler_options`: `IN_PLACE` on TPUs whose compiler knows it."""
    on_tpu = all(device.platform == "tpu" for device in mesh.devices.flat)
    return IN_PLACE if on_tpu and known(mesh) else None


@functools.cache
def known(mesh: jax.sharding.Mesh) -> bool:
    """Whether this version of XLA has the option; it refuses one that it does not know."""
    whole = jax.NamedSharding(mesh, jax.P())
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    try:
        jax.jit(jnp.negative, compiler_options=IN_PLACE).lower(number).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True
