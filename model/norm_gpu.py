"""The residual sum of one token and its norm, as one Pallas Triton kernel.

XLA:GPU fuses a norm of several tokens, and their sum with it. Of one token, whose sum of squares is
a number and no row, it makes a kernel for the sum of squares and one for the rest.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

MOST = 2**14
"""Most numbers of a token, all of which one program holds."""


def takes(x: jax.Array) -> bool:
    """Whether `add_and_norm` serves: each device has one token, and all numbers of it."""
    shape = jax.typeof(x).sharding.shard_shape(x.shape)
    return shape[:-1] == (1, 1) and shape[-1] == x.shape[-1] <= MOST


def add_and_norm(
    x: jax.Array,
    more: jax.Array,
    scale: jax.Array,
    *,
    epsilon: float,
    centred: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """x + more, and that normed; one device's own arrays.

    Args:
      x: [1, 1, D], bfloat16 or float32.
      more: the same.
      scale: [D] float32, multiplies the normed sum.
      epsilon: added to the mean square.
      centred: the mean is taken away first.
      interpret: run the kernel's own arithmetic on any platform, slowly.

    Returns:
      The sum and its norm, each as x.
    """
    size = x.shape[-1]
    row = jax.ShapeDtypeStruct((size,), x.dtype)
    parts = pl.pallas_call(
        functools.partial(_kernel, size, epsilon, centred),
        out_shape=(row, row),
        compiler_params=plgpu.CompilerParams(num_warps=8),
        interpret=interpret,
        name="add_and_norm",
    )(x.reshape(size), more.reshape(size), scale)
    return tuple(part.reshape(x.shape) for part in parts)


def _kernel(
    size: int, epsilon: float, centred: bool, x_ref, more_ref, scale_ref, sum_ref, normed_ref
) -> None:
    lane = jnp.arange(pl.next_power_of_2(size))
    real = lane < size

    def read(ref) -> jax.Array:
        return plgpu.load(ref.at[lane], mask=real, other=0.0).astype(jnp.float32)

    x = (read(x_ref) + read(more_ref)).astype(sum_ref.dtype)
    plgpu.store(sum_ref.at[lane], x, mask=real)
    y = x.astype(jnp.float32)
    if centred:
        y = jnp.where(real, y - jnp.sum(y) / size, 0.0)
    y = y * jax.lax.rsqrt(jnp.sum(y * y) / size + epsilon)
    plgpu.store(normed_ref.at[lane], (read(scale_ref) * y).astype(x.dtype), mask=real)
