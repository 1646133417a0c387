"""Matrix multiplication with weights stored ``[outputs, inputs]``."""

import jax
import jax.numpy as jnp


def linear(
    weight: jax.Array, x: jax.Array, sharding: jax.P, dtype: jnp.dtype | None = None
) -> jax.Array:
    """Multiplies every token by a weight of any number of output and input dimensions.

    The weight is the first operand and its dimensions keep their stored order. So XLA reads it
    in place as one long matrix; as second operand, or with its inputs in another order, XLA:CPU
    first copies it into that order at every step (3 to 6 times slower).

    Args:
      weight: [outputs..., inputs...].
      x: [B, T, inputs...].
      sharding: of the result. Where mesh axes divide the inputs and the result does not name
        them, the partial sums are all-reduced.
      dtype: of the result; that of `x` if None.

    Returns:
      [B, T, outputs...].
    """
    inputs = x.ndim - 2
    outputs = weight.ndim - inputs
    contracting = (tuple(range(outputs, weight.ndim)), tuple(range(2, x.ndim)))
    spec = tuple(sharding) + (None,) * (outputs + 2 - len(sharding))
    result = jax.lax.dot_general(  # [outputs..., B, T]
        weight,
        x,
        (contracting, ((), ())),
        preferred_element_type=dtype or x.dtype,
        out_sharding=jax.P(*spec[2:], *spec[:2]),
    )
    return jnp.moveaxis(result, (-2, -1), (0, 1))
