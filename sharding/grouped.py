"""TPU kernels: products of matrices whose groups of inputs have a scale each.

XLA:TPU multiplies scales into values before a matmul, and to do so writes a scale for every value
to HBM as float32: eight times the bytes of the 4-bit values themselves, there and back.

For few tokens the matrix is what takes time to read, and values go to the matrix unit as the
integers that they are. Each token is laid out once for each of the groups that share a vector
register's lanes, zeros elsewhere, so that one product gives every group's sum apart; scales
multiply those sums. Offsets multiply sums of the token's own values.

For many tokens the products take the time, and scales are multiplied into a tile of the matrix at a
time, in VMEM.

Pallas: https://docs.jax.dev/en/latest/pallas/tpu/index.html.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sharding.float4 import EXPONENTS, decode, decode_scales

LANES, _SUBLANES = 128, 8
_TILES = (512, 256, 128)
_FEW_TOKENS = 256  # for more, products of dense values are cheaper
_MAX_VALUES = 2**21  # values of a matrix's tile, or of all tokens: a few MB of VMEM
_TOKENS = 512  # at a time, of many ...
_TILE_ROWS = (1024, 512, 256, 128)
_MAX_DENSE_VALUES = 2**19  # ... by as many values of the matrix, dense: 3 MB of VMEM


def kernel_for(
    outer: int, inner: int, rows: int, inputs: int, groups: int, tokens: int
) -> Callable[..., jax.Array] | None:
    """`multiply_few` or `multiply_many`; None where neither fits, as for a scale to each row.

    Args:
      outer: shards that the outputs lie in ...
      inner: ... and the inputs.
      rows: outputs of a shard.
      inputs: its other dimension.
      groups: into which its inputs are divided.
      tokens: number of tokens that the matrix multiplies.
    """
    if outer * inner == 1 and tile_of(rows, inputs, groups, tokens):
        return multiply_few
    return multiply_many if dense_tile_of(rows, inputs, groups) else None


def tile_of(rows: int, inputs: int, groups: int, tokens: int) -> int | None:
    """Rows of the matrix that are taken at a time for few tokens; None where none fit or pay.

    Those of the last tile may be fewer.

    Args:
      rows: number of rows of the matrix.
      inputs: its other dimension.
      groups: into which its inputs are divided.
      tokens: number of tokens that it multiplies.
    """
    if groups < 2 or inputs % LANES or LANES % (inputs // groups):
        return None
    if tokens > _FEW_TOKENS or tokens * inputs > _MAX_VALUES:
        return None
    fitting = [n for n in _TILES if n <= rows and n * inputs <= _MAX_VALUES]
    return next((n for n in fitting if rows % n == 0), min(fitting, default=None))


def dense_tile_of(rows: int, inputs: int, groups: int) -> tuple[int, int] | None:
    """Rows and inputs that are made dense at a time for many tokens; None where none fit.

    Args:
      rows: number of rows of the matrix.
      inputs: its other dimension.
      groups: into which its inputs are divided.
    """
    if groups < 2 or inputs % groups:
        return None
    # Whole registers of values and of scales; of scales with gaps where nothing else fits.
    for scales in (_SUBLANES, 1):
        granule = math.lcm(LANES, scales * (inputs // groups))
        columns = [n for n in range(granule, inputs + 1, granule) if inputs % n == 0]
        fitting = [
            (n, k)
            for n in _TILE_ROWS
            if rows % n == 0
            for k in columns
            if n * k <= _MAX_DENSE_VALUES
        ]
        if fitting:
            return max(fitting, key=lambda tile: (math.prod(tile), tile))
    return None


def multiply_few(
    values: jax.Array,
    scales: jax.Array,
    offsets: jax.Array | None,
    x: jax.Array,
    dtype: jnp.dtype,
    interpret: bool = False,
) -> jax.Array:
    """A matrix in one shard times few tokens; arguments and result are those of `multiply_many`."""
    coded, scales = scales.dtype == EXPONENTS, decode_scales(scales)
    numbers = [scales[0, 0]] if offsets is None else [scales[0, 0], offsets[0, 0]]
    values, x = values[0, 0], x[:, 0]
    (rows, inputs), groups, tokens = values.shape, scales.shape[-1], x.shape[0]
    tile, sums = tile_of(rows, inputs, groups, tokens), sums_of(x, groups, offsets)
    # XLA:TPU keeps a matrix whose rows are not whole registers by its columns: it is read so.
    transposed = groups % LANES != 0
    by_rows = pl.BlockSpec((tile, groups), lambda n: (n, 0))
    by_groups = pl.BlockSpec((groups, tile), lambda n: (0, n))
    product = pl.pallas_call(
        functools.partial(multiply_tile, inputs // groups, transposed, coded),
        grid=(pl.cdiv(rows, tile),),
        in_specs=[
            pl.BlockSpec((tokens, inputs), lambda n: (0, 0)),
            pl.BlockSpec((tile, inputs), lambda n: (n, 0)),
            *(by_groups if transposed else by_rows for _ in numbers),
            *(pl.BlockSpec((tokens, groups), lambda n: (0, 0)) for _ in sums),
        ],
        out_specs=pl.BlockSpec((tokens, tile), lambda n: (0, n)),
        out_shape=jax.ShapeDtypeStruct((tokens, rows), dtype),
        interpret=pltpu.InterpretParams() if interpret else False,
        name="multiply_groups_few",
    )(x, values, *(number.T if transposed else number for number in numbers), *sums)
    return product[:, None]


def sums_of(x: jax.Array, groups: int, offsets: jax.Array | None) -> list[jax.Array]:
    """What offsets multiply: sums of each token's numbers of a group, [M, groups], if needed."""
    if offsets is None:
        return []
    return [jnp.sum(x.astype(jnp.float32).reshape(len(x), groups, -1), axis=-1)]


def multiply_tile(
    group: int, transposed: bool, coded: bool, x_ref, values_ref, scales_ref, *rest
) -> None:
    """One tile of rows: tokens, values, scales, offsets and sums of tokens -> [M, N].

    Args:
      group: inputs that share a scale.
      transposed: scales and offsets are [groups, N], not [N, groups].
      coded: values are codes of `sharding.float4`.
      x_ref, values_ref, scales_ref: [M, K], [N, K] and scales.
      rest: offsets and `sums_of` tokens, if values have offsets; then the result.
    """
    *beside, out_ref = rest
    (tokens, dtype), (rows, inputs) = (x_ref.shape[0], x_ref.dtype), values_ref.shape
    per_register = LANES // group
    lane = jax.lax.broadcasted_iota(jnp.int32, (per_register, 1, LANES), 2)
    first_lane = jax.lax.broadcasted_iota(jnp.int32, (per_register, 1, LANES), 0) * group
    in_group = (lane >= first_lane) & (lane < first_lane + group)
    scales, *offsets = (
        ref[...] if transposed else ref[...].T for ref in (scales_ref, *beside[:1])
    )  # [groups, N]
    total = jnp.zeros((tokens, rows), jnp.float32)
    for offset, sums_ref in zip(offsets, beside[1:], strict=True):
        total = jnp.dot(sums_ref[...], offset, precision=jax.lax.Precision.HIGHEST)
    for start in range(0, inputs, LANES):
        lanes = slice(start, start + LANES)
        # Selected as float32: 16-bit vectors take masks of another shape.
        apart = jnp.where(in_group, x_ref[:, lanes].astype(jnp.float32)[None], 0).astype(dtype)
        group_sums = jax.lax.dot_general(  # [per_register * M, N]
            apart.reshape(per_register * tokens, LANES),
            _numbers(values_ref[:, lanes], coded).astype(dtype),
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        tile_groups = slice(start // group, start // group + per_register)
        tile_scales = scales[tile_groups, None]  # [per_register, 1, N]
        total += jnp.sum(group_sums.reshape(per_register, tokens, rows) * tile_scales, axis=0)
    out_ref[...] = total.astype(out_ref.dtype)


def _numbers(values: jax.Array, coded: bool) -> jax.Array:
    """Values as numbers, before scales."""
    return decode(values) if coded else values


def multiply_many(
    values: jax.Array,
    scales: jax.Array,
    offsets: jax.Array | None,
    x: jax.Array,
    dtype: jnp.dtype,
    interpret: bool = False,
) -> jax.Array:
    """A matrix times many tokens, all on one device; the matrix may lie in shards.

    Args:
      values: [P, Q, N, K], integers: shard p, q has outputs p of P and inputs q of Q. They are
        codes of `sharding.float4` if scales are exponents of it.
      scales: [P, Q, N, groups] float32.
      offsets: as scales, if any.
      x: [M, Q, K].
      dtype: type of the product.
      interpret: run it on a CPU, as a TPU would.

    Returns:
      [M, P, N].
    """
    (outer, inner, rows, inputs), groups, tokens = values.shape, scales.shape[-1], x.shape[0]
    coded, scales = scales.dtype == EXPONENTS, decode_scales(scales)
    tile_rows, tile_inputs = dense_tile_of(rows, inputs, groups)
    tile_groups = tile_inputs * groups // inputs
    across, along = rows // tile_rows, inputs // tile_inputs  # tiles of a shard
    tile_tokens = min(_TOKENS, -(-tokens // LANES) * LANES)

    def values_index(n: int, k: int) -> tuple[int, ...]:
        div, rem = jax.lax.div, jax.lax.rem  # for numbers that are never negative
        return div(n, across), div(k, along), rem(n, across), rem(k, along)

    def scales_index(n: int, m: int, k: int) -> tuple[int, ...]:
        p, q, n, k = values_index(n, k)
        return p, q, k, 0, n

    def in_tiles(number: jax.Array) -> jax.Array:  # -> [P, Q, tiles, groups of a tile, N]
        return number.swapaxes(2, 3).reshape(outer, inner, along, tile_groups, rows)

    numbers = [scales] if offsets is None else [scales, offsets]
    scales_spec = pl.BlockSpec((None, None, None, tile_groups, tile_rows), scales_index)
    product = pl.pallas_call(
        functools.partial(_dense_kernel, coded),
        grid=(outer * across, pl.cdiv(tokens, tile_tokens), inner * along),
        in_specs=[
            pl.BlockSpec((tile_tokens, tile_inputs), lambda n, m, k: (m, k)),
            pl.BlockSpec((None, None, tile_rows, tile_inputs), lambda n, m, k: values_index(n, k)),
            *(scales_spec for _ in numbers),
        ],
        out_specs=pl.BlockSpec((tile_tokens, tile_rows), lambda n, m, k: (m, n)),
        out_shape=jax.ShapeDtypeStruct((tokens, outer * rows), dtype),
        scratch_shapes=[pltpu.VMEM((tile_tokens, tile_rows), jnp.float32)],
        interpret=pltpu.InterpretParams() if interpret else False,
        name="multiply_groups_many",
    )(x.reshape(tokens, -1), values, *map(in_tiles, numbers))
    return product.reshape(tokens, outer, rows)


def _dense_kernel(coded: bool, x_ref, values_ref, scales_ref, *rest) -> None:
    """A tile: tokens [M, K], values [N, K], scales and offsets [groups, N] -> [M, N], summed."""
    *offsets_ref, out_ref, sums_ref = rest
    (rows, inputs), groups = values_ref.shape, scales_ref.shape[0]

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        sums_ref[...] = jnp.zeros_like(sums_ref)

    dense = (
        _numbers(values_ref[...], coded)
        .astype(jnp.float32)
        .T.reshape(groups, inputs // groups, rows)
    )
    dense *= scales_ref[...][:, None]
    for offset_ref in offsets_ref:
        dense += offset_ref[...][:, None]
    dense = dense.reshape(inputs, rows).astype(x_ref.dtype)
    sums_ref[...] += jnp.dot(x_ref[...], dense, preferred_element_type=jnp.float32)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        out_ref[...] = sums_ref[...].astype(out_ref.dtype)
