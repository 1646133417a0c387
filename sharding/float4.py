"""Four-bit floats that share a power of two: the codes of MXFP4, and what they stand for.

A value is a code of 4 bits, e2m1: a sign, two bits of exponent and one of fraction. 32 of them
share a scale of 8 bits, e8m0: an exponent. Codes are kept as unsigned integers, of which every
platform has 4-bit arrays; few have arrays of such floats.

Source: Open Compute Project, Microscaling Formats (MX) Specification 1.0, sections 5.3.3, 5.4.1 and
6.3: the types, and how numbers are rounded to them.
"""

import jax
import jax.numpy as jnp
import numpy as np

GROUP = 32
"""Values that share a scale."""
NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What each code of e2m1 stands for."""
EXPONENTS = jnp.dtype("uint8")
"""Type of arrays of e8m0 scales; no other scales are of it."""
_BIAS = 127  # of the exponents of float32 and of e8m0 alike
_LARGEST_EXPONENT = 2  # of e2m1, whose largest number is 6
_SIGN = 8


def decode(codes: jax.Array) -> jax.Array:
    """The numbers that codes of e2m1 stand for, float32, by arithmetic that every platform has.

    They are those of `NUMBERS`: a table would be read number by number.
    """
    codes = codes.astype(jnp.int32)
    size = codes & (_SIGN - 1)
    doubled = size + jnp.maximum(size - 4, 0) + 2 * jnp.maximum(size - 6, 0)
    return jnp.where(codes < _SIGN, 0.5, -0.5) * doubled.astype(jnp.float32)


def decode_scales(scales: jax.Array) -> jax.Array:
    """What scales multiply by, float32: e8m0 has the exponents of float32, others stay as they are.

    The code 0 is 0 here in place of 2**-127, which float32 has no normal number for.
    """
    if scales.dtype != EXPONENTS:
        return scales
    return jax.lax.bitcast_convert_type(scales.astype(jnp.int32) << 23, jnp.float32)


def decode_values(values: jax.Array, scales: jax.Array) -> jax.Array:
    """Values that stand beside these scales, float32: codes if the scales are exponents."""
    return decode(values) if scales.dtype == EXPONENTS else values.astype(jnp.float32)


def encode(blocks: jax.Array, largest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes of blocks that share a scale, and the scales.

    The scale puts the largest number of a block from 4 up to 8, and what is then above 6 becomes 6.

    Args:
      blocks: float32.
      largest: the largest size of a number of each block, of a shape that goes with `blocks`.

    Returns:
      4-bit integers like `blocks`, and 8-bit ones like `largest`.
    """
    exponents = jax.lax.bitcast_convert_type(largest, jnp.int32) >> 23
    exponents = jnp.where(largest > 0, jnp.maximum(exponents - _LARGEST_EXPONENT, 1), _BIAS)
    scales = exponents.astype(EXPONENTS)
    size = jnp.abs(blocks) / decode_scales(scales)
    # Half way between two numbers the code that is even is taken.
    above = (
        size > 0.25,
        size >= 0.75,
        size > 1.25,
        size >= 1.75,
        size > 2.5,
        size >= 3.5,
        size > 5,
    )
    codes = sum(each.astype(jnp.int32) for each in above)
    return (codes + jnp.where(blocks < 0, _SIGN, 0)).astype(jnp.uint4), scales
