"""Eight-bit floats, e4m3: what their bits stand for, by arithmetic and in a GPU's instructions.

Source: Micikevicius et al. 2022 (FP8 Formats for Deep Learning), table 1: a sign, four bits of
exponent with a bias of 7, and three of fraction; no infinities.
"""

import jax
import jax.numpy as jnp

_BIAS, _FRACTION = 7, 3
_FLOAT32_BIAS, _FLOAT32_FRACTION = 127, 23


def decode(bits: jax.Array) -> jax.Array:
    """The numbers of bit patterns, int32 from 0 to 255, as float32: exact, but for the two NaNs.

    Nothing in between is smaller than normal numbers of float32, which GPUs may make zeros.
    """
    exponent, fraction = bits >> _FRACTION & 15, bits & 7
    whole = jnp.where(exponent > 0, 8 + fraction, fraction)  # times a power of two
    power = jnp.maximum(exponent, 1) + (_FLOAT32_BIAS - _BIAS - _FRACTION)
    size = jax.lax.bitcast_convert_type(power << _FLOAT32_FRACTION, jnp.float32)
    return jnp.where(bits < 128, size, -size) * whole.astype(jnp.float32)


def ptx_of(place: int) -> str:
    """Instructions that make two bfloat16 numbers, $0, of a byte in two words of 16 bits, $1.

    Exponent and fraction lie in bfloat16 as in e4m3, but for their number of bits. There they mean
    2**120 times as little, numbers below the least normal one of either type among them.

    Args:
      place: of the byte in its word, 0 for the lower one.
    """
    size, sign = ("shl.b32 size, $1, 4;", "shl.b32 sign, $1, 8;")
    if place:
        size, sign = "shr.u32 size, $1, 4;", "mov.b32 sign, $1;"
    return f"""{{
        .reg .b32 size, sign, power, zero;
        mov.b32 power, 0x7B807B80;
        mov.b32 zero, 0x80008000;
        {size}
        {sign}
        and.b32 sign, sign, 0x80008000;
        lop3.b32 size, size, 0x07F007F0, sign, 0xEA;
        fma.rn.bf16x2 $0, size, power, zero;
    }}"""
