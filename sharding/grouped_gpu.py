"""GPU kernel: products of few tokens with a matrix in few bits, and scales of groups or outputs.

XLA:GPU's matmul takes no scales of groups: it first writes such a matrix out in the type of the
tokens. Here a program reads a tile of the matrix as it is packed, makes numbers of it in registers,
and multiplies those. Values are read as words of 16 bits. The first values of all words make one
product, their second values another, and so on, so that values need not be brought into order:
tokens are. Where the rows make too few programs, several divide the inputs, and sums are added up.

In bfloat16, 4 bits become a number by being part of another's: 128 + value, of which two stand in
a register. Less 136 it is an integer from -8 to 7, which a scale multiplies; an offset that allows
for the 8 is added. Both are rounded to bfloat16: a value errs by its own rounding and those two. Of
8 bits each half becomes such a number, and both make the integer, which bfloat16 holds exactly.
Floats of 8 bits are moved into bfloat16's fields, and stay exact: scales of their groups multiply
sums of products, in float32.

Sources: Kim et al. 2022 (Who Says Elephants Can't Run), section 3.1, for numbers made by their
bits; Frantar et al. 2024 (MARLIN), section 3, for matrices that are converted beside tensor cores.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from sharding import float8

MOST_TOKENS, MOST_OF_OUTPUTS = 256, 64
"""Tokens above which XLA's own form is used, by scales of groups and of outputs.

Each 64 tokens convert the matrix anew. That is less work than writing a matrix out and reading it,
for 256; XLA's matmul of a matrix with a scale to each output converts it once.
"""
LEAST_OF_OUTPUTS = 9
"""Fewer tokens XLA's matmul multiplies as fast as it reads such a matrix."""
_PROGRAMS = 528  # four for each of an H200's 132 multiprocessors
_FEW = 16  # tokens of the smallest product of tensor cores
_TILE_VALUES = 256  # of a row; half as many for more tokens than that
_WORD = 16  # bits


Convert = Callable[..., Iterator[jax.Array]]
"""`values_of` or `floats_of`, with their first arguments given."""


class Tiles(NamedTuple):
    """How the work is divided.

    Attributes:
      rows: of the matrix, for one program; each of its two warps has half of them.
      words: of a row, at a time.
      tokens: for one program, a power of two from 16.
      splits: programs that divide the inputs of a shard.
      stages: tiles in flight at once, the one being multiplied included.
    """

    rows: int
    words: int
    tokens: int
    splits: int
    stages: int


def kernel_for(
    outer: int, inner: int, rows: int, inputs: int, groups: int, tokens: int
) -> Callable[..., jax.Array] | None:
    """`multiply_packed`, or None where it does not fit or pay; see `sharding.grouped.kernel_for`.

    Args:
      outer: shards that the outputs lie in ...
      inner: ... and the inputs.
      rows: outputs of a shard.
      inputs: its other dimension.
      groups: into which its inputs are divided; 1 for a scale to each output.
      tokens: number of tokens that the matrix multiplies.
    """
    group = inputs // groups
    if inputs % groups or inputs % _FEW:
        return None
    if groups == 1:
        return multiply_packed if LEAST_OF_OUTPUTS <= tokens <= MOST_OF_OUTPUTS else None
    whole = group >= _FEW and _TILE_VALUES // 2 % group == 0
    return multiply_packed if whole and tokens <= MOST_TOKENS else None


def choose_tiles(shards: int, rows: int, inputs: int, tokens: int, per_word: int) -> Tiles:
    """Tiles for a matrix of so many shards, [rows, inputs] each."""
    few = tokens <= _FEW
    words = _TILE_VALUES // (1 if few else 2) // per_word
    tile_rows, most = (32, _PROGRAMS) if few else (64, _PROGRAMS // 2)
    tile_tokens = min(max(_FEW, pl.next_power_of_2(tokens)), 64)
    programs = shards * pl.cdiv(rows, tile_rows) * pl.cdiv(tokens, tile_tokens)
    steps = pl.cdiv(inputs // per_word, words)
    splits = max(1, min(most // programs, steps // 2))
    return Tiles(tile_rows, words, tile_tokens, splits, stages=4 if few else 3)


@functools.partial(jax.jit, static_argnames=("dtype", "interpret"))
def multiply_packed(
    values: jax.Array,
    scales: jax.Array,
    offsets: jax.Array | None,
    x: jax.Array,
    dtype: jnp.dtype,
    interpret: bool = False,
    number: jax.Array | None = None,
) -> jax.Array:
    """A matrix times few tokens, all on one device; the matrix may lie in shards or in a stack.

    It is traced once for all matrices of a shape, which takes longer than the rest of a layer.

    Args:
      values: [P, Q, N, K], integers of 4 or 8 bits or floats of 8: shard p, q has outputs p and
        inputs q.
      scales: [P, Q, N, groups] float32; one group is a scale for each output.
      offsets: as scales, if any.
      x: [M, Q, K], bfloat16 or float32; float32 is multiplied in full, without TF32.
      dtype: type of the product.
      interpret: run the kernel's own arithmetic on any platform, slowly.
      number: int32, of the one matrix of a stack, p of P, that is multiplied; None for all.

    Returns:
      [M, P, N]; of one matrix [M, 1, N].
    """
    (stacked, inner, rows, inputs), groups, tokens = values.shape, scales.shape[-1], x.shape[0]
    outer = stacked if number is None else 1
    convert, floats = _conversion(values.dtype), jnp.issubdtype(values.dtype, jnp.floating)
    per_word = _WORD // (4 if values.dtype in (jnp.int4, jnp.uint4) else 8)
    width = inputs // per_word
    tiles = choose_tiles(outer * inner, rows, inputs, tokens, per_word)
    words = values.reshape(stacked, inner, rows, width, per_word)
    words = jax.lax.bitcast_convert_type(words, jnp.int16)  # for which XLA:GPU moves nothing
    x = x.reshape(tokens, inner, width, per_word).transpose(1, 3, 0, 2)  # [Q, per_word, M, words]
    numbers = [scales] if offsets is None else [scales, offsets]
    which = [] if number is None else [number[None]]
    parts = inner * tiles.splits

    def of_shard(m: int, n: int, part: int) -> tuple[int, ...]:
        return part // parts, part % parts // tiles.splits, 0, 0  # of a stack 0: all of it

    shard = None if number is None else stacked

    def of_inputs(m: int, n: int, part: int) -> tuple[int, ...]:
        return part % parts // tiles.splits, 0, 0, 0

    product = pl.pallas_call(
        functools.partial(_kernel, tiles, functools.partial(convert, x.dtype, interpret), floats),
        grid=(pl.cdiv(tokens, tiles.tokens), pl.cdiv(rows, tiles.rows), outer * parts),
        in_specs=[
            pl.BlockSpec((None, per_word, tokens, width), of_inputs),
            pl.BlockSpec((shard, None, rows, width), of_shard),
            *(pl.BlockSpec((shard, None, rows, groups), of_shard) for _ in numbers),
            *(pl.BlockSpec((1,), lambda m, n, part: (0,)) for _ in which),
        ],
        out_specs=pl.BlockSpec(
            (None, tokens, None, rows), lambda m, n, part: (part % parts, 0, part // parts, 0)
        ),
        out_shape=jax.ShapeDtypeStruct(
            (parts, tokens, outer, rows), dtype if parts == 1 else jnp.float32
        ),
        # Tensor cores of a pair of warps take numbers from registers, on all GPUs alike.
        compiler_params=plgpu.CompilerParams(num_warps=2, num_stages=tiles.stages),
        interpret=interpret,
        name="multiply_packed",
    )(x, words, *numbers, *which)
    return product[0] if parts == 1 else jnp.sum(product, axis=0).astype(dtype)


def _conversion(stored: jnp.dtype) -> Convert:
    """What makes numbers of words with values of this type."""
    if jnp.issubdtype(stored, jnp.floating):
        return floats_of
    signed = jnp.issubdtype(stored, jnp.signedinteger)
    return functools.partial(values_of, signed)


def _kernel(
    tiles: Tiles, convert: Convert, floats: bool, x_ref, words_ref, scales_ref, *rest
) -> None:
    """One program: its rows and tokens over its share of the words.

    References are tokens [per_word, M, words], words [N, words], scales and offsets [N, groups], if
    any; then sums [M, N]. Those of a stack have its dimension before, and its number comes before
    sums.
    """
    *rest, out_ref = rest
    stacked = len(scales_ref.shape) == 3
    first = jnp.zeros((1, 1), jnp.int32)
    of_stack = (plgpu.load(rest.pop().at[first]),) if stacked else ()
    (per_word, tokens, width), (rows, groups) = x_ref.shape, scales_ref.shape[-2:]
    token = pl.program_id(0) * tiles.tokens + jnp.arange(tiles.tokens)
    row = pl.program_id(1) * tiles.rows + jnp.arange(tiles.rows)
    at, kept = (token[None], row[:, None]), (token < tokens)[None] & (row < rows)[:, None]
    real = (token < tokens)[:, None]
    row = jnp.minimum(row, rows - 1)[:, None]
    scaled_apart = floats and groups > 1
    count = tiles.words * groups // width if groups > 1 else 0  # groups of a tile
    parts = count if scaled_apart else 1
    words = tiles.words // parts

    def numbers_of(group: jax.Array) -> list[jax.Array]:
        """Scales, and offsets if any, of some groups: [N, groups] each."""
        return [
            plgpu.load(
                ref.at[(*of_stack, row, group[None])], mask=(group < groups)[None], other=0.0
            )
            for ref in (scales_ref, *rest)
        ]

    def multiply(first: jax.Array, numbers: list[jax.Array], sums: jax.Array) -> jax.Array:
        """Adds the products of some words from `first` on."""
        word = first + jnp.arange(words)
        inside = word < width
        at_words = words_ref.at[(*of_stack, row, word[None])]
        packed = plgpu.load(at_words, mask=inside[None], other=0)
        # GPUs multiply float32 as TF32 unless asked not to.
        precision = jax.lax.Precision.HIGHEST if x_ref.dtype == jnp.float32 else None
        for place, values in enumerate(convert(packed, per_word, *numbers)):
            x = plgpu.load(
                x_ref.at[place, token[:, None], word[None]],
                mask=real & inside[None],
                other=jnp.zeros((), x_ref.dtype),
            )
            sums += plgpu.dot(values, x, trans_b=True, precision=precision)
        return sums

    def step(n: jax.Array, sums: jax.Array) -> jax.Array:
        if not scaled_apart:
            numbers = numbers_of(n * count + jnp.arange(count)) if count else []
            return multiply(n * tiles.words, numbers, sums)
        for part in range(parts):
            (scale,) = numbers_of(n * count + part + jnp.arange(1))
            sums += scale * multiply(n * tiles.words + part * words, [], jnp.zeros_like(sums))
        return sums

    steps = pl.cdiv(width, tiles.words)
    share = pl.cdiv(steps, tiles.splits)
    start = jax.lax.rem(pl.program_id(2), tiles.splits) * share
    sums = jax.lax.fori_loop(
        start, jnp.minimum(start + share, steps), step, jnp.zeros((tiles.rows, tiles.tokens))
    )
    if groups == 1:
        sums *= plgpu.load(scales_ref.at[(*of_stack, row, first)])
    plgpu.store(out_ref.at[at], sums.astype(out_ref.dtype), mask=kept)


def floats_of(
    dtype: jnp.dtype, interpret: bool, packed: jax.Array, per_word: int
) -> Iterator[jax.Array]:
    """Numbers of a tile of 8-bit floats: for each place in a word, [N, words]; see `values_of`."""
    for place in range(per_word):
        if dtype == jnp.bfloat16 and not interpret:
            yield _by_ptx(float8.ptx_of(place), packed)
            continue
        byte = jax.lax.shift_right_logical(packed, jnp.int16(8 * place)) & 0xFF
        yield float8.decode(byte.astype(jnp.int32)).astype(dtype)


def values_of(
    signed: bool,
    dtype: jnp.dtype,
    interpret: bool,
    packed: jax.Array,
    per_word: int,
    *numbers: jax.Array,
) -> Iterator[jax.Array]:
    """Numbers of a tile: for each place in a word, [N, words].

    Args:
      signed: whether the packed integers are.
      dtype: their type.
      interpret: compute them as any platform does.
      packed: [N, words] int16.
      per_word: values of a word, the first in its lowest bits.
      numbers: scales, and offsets if any, of the tile's groups, [N, groups] each; none for values
        as they are stored.
    """
    bits = _WORD // per_word
    half = 2 ** (bits - 1)
    if numbers:
        scales, offsets = numbers if len(numbers) > 1 else (*numbers, jnp.zeros_like(*numbers))
        offsets += 0 if signed else half * scales
        spread = (*scales.shape, packed.shape[1] // scales.shape[1])
        numbers = tuple(
            jnp.broadcast_to(part.astype(dtype)[:, :, None], spread).reshape(packed.shape)
            for part in (scales, offsets)
        )
    for place in range(per_word):
        if dtype == jnp.bfloat16 and not interpret:
            yield _by_ptx(ptx_of(place, bits, signed, bool(numbers)), packed, *numbers)
            continue
        stored = jax.lax.shift_right_logical(packed, jnp.int16(bits * place)) & (2 * half - 1)
        values = ((stored ^ half if signed else stored) - half).astype(jnp.float32)
        if numbers:
            values = values * numbers[0].astype(jnp.float32) + numbers[1].astype(jnp.float32)
        yield values.astype(dtype)


def _by_ptx(code: str, packed: jax.Array, *numbers: jax.Array) -> jax.Array:
    """bfloat16 numbers of one place, two words at a time."""
    (found,) = plgpu.elementwise_inline_asm(
        code,
        args=[packed, *numbers],
        constraints=",".join(["=r", "r", *("r" for _ in numbers)]),
        pack=2,
        result_shape_dtypes=[jax.ShapeDtypeStruct(packed.shape, jnp.bfloat16)],
    )
    return found


def ptx_of(place: int, bits: int, signed: bool, scaled: bool) -> str:
    """Instructions that make two bfloat16 numbers, $0, of a place in two words, $1.

    0x4300 is 128 in bfloat16, whose last four bits count ones; 0xC300 is -128, 0xC308 is -136.

    Args:
      place: of the value in its word, from the lowest bits.
      bits: 4 or 8.
      signed: whether the packed integers are.
      scaled: they are multiplied by the two numbers in $2, and those in $3 are added.
    """

    def four(name: str, shift: int, top: bool) -> str:
        """Four bits from `shift` on; at the top of a value, where its sign may be, less 8."""
        # 0x6A: (bits & mask) ^ number.
        number = "0x43084308" if top and signed else "0x43004300"
        return f"""
            shr.u32 {name}, $1, {shift};
            lop3.b32 {name}, {name}, 0x000F000F, {number}, 0x6A;
            fma.rn.bf16x2 {name}, {name}, one, {"less_136" if top else "less_128"};"""

    code = four("value", bits * (place + 1) - 4, top=True)
    if bits == 8:
        code += four("low", bits * place, top=False) + "fma.rn.bf16x2 value, value, sixteen, low;"
    code += "fma.rn.bf16x2 $0, value, $2, $3;" if scaled else "mov.b32 $0, value;"
    return f"""{{
        .reg .b32 value, low, one, sixteen, less_128, less_136;
        mov.b32 one, 0x3F803F80;
        mov.b32 sixteen, 0x41804180;
        mov.b32 less_128, 0xC300C300;
        mov.b32 less_136, 0xC308C308;
        {code}
    }}"""
