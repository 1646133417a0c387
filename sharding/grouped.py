"""A TPU kernel: the product of a matrix whose groups of inputs have a scale each.

XLA:TPU multiplies scales into values before a matmul, and to do so writes a scale for every value
to HBM as float32: eight times the bytes of the 4-bit values themselves, there and back. Here values
go to the matrix unit as the integers that they are. Each token is laid out once for each of the
groups that share a vector register's lanes, zeros elsewhere, so that one product gives every
group's sum apart; scales multiply those sums. Offsets multiply sums of the token's own values.

Pallas: https://docs.jax.dev/en/latest/pallas/tpu/index.html.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128
_TILES = (512, 256, 128)
_MOST_TOKENS = 256  # of more, products of dense values are cheaper
_MOST_VALUES = 2**21  # of a matrix's tile, or of all tokens: a few MB of VMEM


def tile_of(rows: int, inputs: int, groups: int, tokens: int) -> int | None:
    """Rows of the matrix that the kernel takes at a time; None where it does not fit or pay.

    Args:
      rows: of the matrix.
      inputs: its other dimension.
      groups: into which its inputs are divided.
      tokens: that it multiplies.
    """
    if groups < 2 or inputs % _LANES or _LANES % (inputs // groups):
        return None
    if tokens > _MOST_TOKENS or tokens * inputs > _MOST_VALUES:
        return None
    fit = (n for n in _TILES if rows % n == 0 and n * inputs <= _MOST_VALUES)
    return next(fit, None)


def multiply_groups(
    values: jax.Array,
    scales: jax.Array,
    offsets: jax.Array | None,
    x: jax.Array,
    dtype: jnp.dtype,
    interpret: bool = False,
) -> jax.Array:
    """A matrix times tokens, all on one device.

    Args:
      values: [N, K], integers.
      scales: [N, groups] float32.
      offsets: as scales, if any.
      x: [M, K].
      dtype: of the product.
      interpret: run it on a CPU, as a TPU would.

    Returns:
      [N, M].
    """
    (rows, inputs), groups, tokens = values.shape, scales.shape[1], x.shape[0]
    tile = tile_of(rows, inputs, groups, tokens)
    sums = jnp.sum(x.astype(jnp.float32).reshape(tokens, groups, -1), axis=-1)
    # XLA:TPU keeps a matrix whose rows are not whole registers by its columns: it is read so.
    turned = groups % _LANES != 0
    numbers = [scales] if offsets is None else [scales, offsets]
    by_rows = pl.BlockSpec((tile, groups), lambda n: (n, 0))
    by_groups = pl.BlockSpec((groups, tile), lambda n: (0, n))
    product = pl.pallas_call(
        functools.partial(_kernel, inputs // groups, turned),
        grid=(rows // tile,),
        in_specs=[
            pl.BlockSpec((tokens, inputs), lambda n: (0, 0)),
            pl.BlockSpec((tokens, groups), lambda n: (0, 0)),
            pl.BlockSpec((tile, inputs), lambda n: (n, 0)),
            *(by_groups if turned else by_rows for _ in numbers),
        ],
        out_specs=pl.BlockSpec((tokens, tile), lambda n: (0, n)),
        out_shape=jax.ShapeDtypeStruct((tokens, rows), dtype),
        interpret=pltpu.InterpretParams() if interpret else False,
        name="multiply_groups",
    )(x, sums, values, *(number.T if turned else number for number in numbers))
    return product.T


def _kernel(group: int, turned: bool, x_ref, sums_ref, values_ref, scales_ref, *rest) -> None:
    """One tile of rows: tokens, their sums, values, scales and offsets -> [M, N]."""
    *offsets_ref, out_ref = rest
    (tokens, dtype), (rows, inputs) = (x_ref.shape[0], x_ref.dtype), values_ref.shape
    many = _LANES // group
    lane = jax.lax.broadcasted_iota(jnp.int32, (many, 1, _LANES), 2)
    first = jax.lax.broadcasted_iota(jnp.int32, (many, 1, _LANES), 0) * group
    own = (lane >= first) & (lane < first + group)
    scales, *offsets = (
        ref[...] if turned else ref[...].T for ref in (scales_ref, *offsets_ref)
    )  # [groups, N]
    total = jnp.zeros((tokens, rows), jnp.float32)
    for offset in offsets:
        total = jnp.dot(sums_ref[...], offset, precision=jax.lax.Precision.HIGHEST)
    for start in range(0, inputs, _LANES):
        lanes = slice(start, start + _LANES)
        # Selected as float32: 16-bit vectors take masks of another shape.
        apart = jnp.where(own, x_ref[:, lanes].astype(jnp.float32)[None], 0).astype(dtype)
        found = jax.lax.dot_general(  # [many * M, N]
            apart.reshape(many * tokens, _LANES),
            values_ref[:, lanes].astype(dtype),
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        here = scales[start // group : start // group + many, None]  # [many, 1, N]
        total += jnp.sum(found.reshape(many, tokens, rows) * here, axis=0)
    out_ref[...] = total.astype(out_ref.dtype)
