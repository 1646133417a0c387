"""Products of weights in whatever form they are stored, as each platform's compiler does them well.

What XLA does with a weight in few bits depends on the platform. Groups go to a kernel on a TPU
(`sharding/grouped.py`), few tokens to another on a GPU (`sharding/grouped_gpu.py`) or, without it,
are padded, or with groups summed; on a CPU rows are converted some at a time. Else the matmul's own
loop converts, but for groups: those are written out.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from sharding.platform_workarounds import (
    MANY_TOKENS,
    by_platform,
    faster_in_halves,
    faster_tokens_first,
    multiply_in_halves,
    multiply_tokens_first,
)
from sharding.quantization import (
    QuantizedArray,
    Weight,
    cut,
    drop,
    from_bits,
    granule,
    round_tokens,
    to_bits,
)


def dot(weight: Weight, x: jax.Array, dtype: jnp.dtype, out: jax.P | None = None) -> jax.Array:
    """[outputs..., inputs...] times [B, T, inputs...] -> [B, T, outputs...]; see `contract`."""
    outputs = weight.ndim - (x.ndim - 2)
    inputs = range(outputs, weight.ndim), range(2, x.ndim)
    turned = None if out is None else jax.P(*out[2:], *out[:2])

    def at_once(weight: Weight, x: jax.Array) -> jax.Array:
        return _tokens_first(contract(weight, x, inputs, dtype, turned))

    def by_rows(
        multiply: Callable[[Weight, jax.Array, jnp.dtype], jax.Array], weight: Weight, x: jax.Array
    ) -> jax.Array:
        shape = (*weight.shape[:outputs], *x.shape[:2])
        rows = jax.tree.map(lambda leaf: leaf.reshape(math.prod(shape[:outputs]), -1), weight)
        product = multiply(rows, x.reshape(math.prod(x.shape[:2]), -1), dtype).reshape(shape)
        return _tokens_first(product if out is None else jax.reshard(product, turned))

    in_blocks = functools.partial(by_rows, _by_blocks)
    few = functools.partial(by_rows, _few_on_gpu)

    converts = isinstance(weight, QuantizedArray) or weight.dtype != x.dtype
    if not converts and out is not None and faster_in_halves(weight, x):
        halves = functools.partial(multiply_in_halves, dtype=dtype)
        return by_platform(weight, x, cpu=halves, default=at_once)
    if not converts and faster_tokens_first(weight, x):
        rows = functools.partial(multiply_tokens_first, dtype=dtype)
        return by_platform(weight, x, cpu=rows, default=at_once)
    if not converts or (out is not None and jax.typeof(x).sharding.mesh.size > 1):
        return at_once(weight, x)
    others = {"cpu": in_blocks}
    if isinstance(weight, QuantizedArray):
        limit = _FEW_OF_GROUPS if weight.group else _EIGHT
        others |= {"cuda": few} if math.prod(x.shape[:2]) <= limit else {}
    others |= _by_kernel(weight, x, outputs, dtype)
    return by_platform(weight, x, default=at_once, **others)


def dot_of_one(stack: Weight, number: jax.Array, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """[M, inputs] times one of a stack of matrices, [E, outputs..., inputs] -> [M, outputs...].

    Args:
      stack: all on one device.
      number: of the matrix, int32.
      x: [M, inputs].
      dtype: type of the product.
    """

    def cut_out(stack: Weight, number: jax.Array, x: jax.Array) -> jax.Array:
        matrix = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False), stack
        )
        return dot(matrix, x[None], dtype)[0]

    def cut_out_in_bits(stack: Weight, number: jax.Array, x: jax.Array) -> jax.Array:
        # With a barrier, or XLA:CPU makes integers of the whole stack before a loop over matrices.
        stack, number = jax.lax.optimization_barrier((stack, number))

        def cut_leaf(leaf: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_index_in_dim(to_bits(leaf), number, keepdims=False)
            return from_bits(part, leaf)

        return dot(jax.tree.map(cut_leaf, stack), x[None], dtype)[0]

    others = {"cpu": cut_out_in_bits} | _one_by_kernel(stack, len(x), dtype)
    return by_platform(stack, number, x, default=cut_out, **others)


def has_groups(stack: QuantizedArray) -> bool:
    """Whether a GPU multiplies such a stack by `dot_of_groups`."""
    if not (stack.codes and stack.gpu_kernel):
        return False
    from sharding.grouped_stack_gpu import fits

    return fits(stack.shape[-1])


def dot_of_groups(stack: Weight, x: jax.Array, sizes: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of tokens times the matrices of a stack that they are sorted by.

    Args:
      stack: [E, N, K], plain, or on a GPU quantized as `has_groups` says; all on one device.
      x: [M, K], the first rows for the first matrix.
      sizes: [E] int32, rows of each matrix; rows that are left over are of none.
      dtype: type of the product.

    Returns:
      [M, N]; what is in rows of no matrix means nothing.
    """
    if isinstance(stack, QuantizedArray):
        from sharding.grouped_stack_gpu import multiply_sorted

        return multiply_sorted(stack.values, stack.scales, x, sizes, dtype)
    contract_last = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])
    return jax.lax.ragged_dot_general(
        x, stack.astype(x.dtype), sizes, contract_last, preferred_element_type=dtype
    )


def _one_by_kernel(
    stack: Weight, tokens: int, dtype: jnp.dtype
) -> dict[str, Callable[[QuantizedArray, jax.Array, jax.Array], jax.Array]]:
    """How a TPU and a GPU multiply one of a stack where it lies, where they have a kernel."""
    if not isinstance(stack, QuantizedArray) or not stack.group:
        return {}
    from sharding import grouped, grouped_gpu, grouped_stack  # they import Pallas, which takes long

    *outputs, inputs = stack.shape[1:]
    rows, groups = math.prod(outputs), stack.scales.shape[-1]

    def product(kernel: Callable[..., jax.Array], parts: int):
        def multiply(stack: QuantizedArray, number: jax.Array, x: jax.Array) -> jax.Array:
            shape = len(stack.values), parts, rows // parts
            flat = jax.tree.map(lambda leaf: leaf.reshape(*shape, leaf.shape[-1]), stack)
            return kernel(number, flat, x).reshape(len(x), *outputs)

        return multiply

    def codes(number: jax.Array, flat: QuantizedArray, x: jax.Array) -> jax.Array:
        return grouped_stack.multiply_one(number, flat.values[:, 0], flat.scales[:, 0], x, dtype)

    def few(number: jax.Array, flat: QuantizedArray, x: jax.Array) -> jax.Array:
        arrays = flat.values, flat.scales, flat.offsets, x
        return grouped_stack.multiply_few_of_one(number, *arrays, dtype)

    def packed(number: jax.Array, flat: QuantizedArray, x: jax.Array) -> jax.Array:
        arrays = flat.values, flat.scales, flat.offsets, x[:, None]
        return grouped_gpu.multiply_packed(*arrays, dtype, number=number)

    if stack.codes:
        return {"tpu": product(codes, 1)} if grouped_stack.fits(rows, inputs) else {}
    found, tile = {}, grouped.tile_of(outputs[-1], inputs, groups, tokens)
    if tile and outputs[-1] % tile == 0:
        found["tpu"] = product(few, math.prod(outputs[:-1]))
    if _is_packed(stack, groups) and grouped_gpu.kernel_for(1, 1, rows, inputs, groups, tokens):
        found["cuda"] = product(packed, 1)
    return found


def dot_of_shards(weight: Weight, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The product of a weight that lies in shards, each in one piece.

    Args:
      weight: [chips of each dimension..., a chip's outputs..., a chip's inputs...].
      x: [B, T, chips of each input..., a chip's inputs...].
      dtype: type of the product.

    Returns:
      [B, T, chips of each output..., a chip's outputs...].
    """
    rank, outputs = weight.ndim // 2, (weight.ndim - x.ndim + 2) // 2
    inputs = (*range(outputs, rank), *range(rank + outputs, 2 * rank)), range(2, x.ndim)

    def at_once(weight: Weight, x: jax.Array) -> jax.Array:
        return _tokens_first(contract(weight, x, inputs, dtype))

    kernel = _by_kernel(weight, x, outputs, dtype, chips=rank)
    return by_platform(weight, x, default=at_once, **kernel)


def _by_kernel(
    weight: Weight, x: jax.Array, outputs: int, dtype: jnp.dtype, chips: int = 0
) -> dict[str, Callable[[QuantizedArray, jax.Array], jax.Array]]:
    """How a TPU and a GPU multiply few bits, where they have a kernel.

    `chips` dimensions of the weight, the first ones, count its shards.
    """
    if not isinstance(weight, QuantizedArray) or weight.round_activations:
        return {}
    shards, local, tokens = weight.shape[:chips], weight.shape[chips:], math.prod(x.shape[:2])
    shape = [math.prod(part) for n in (shards, local) for part in (n[:outputs], n[outputs:])]
    groups = shape[-1] // granule(weight) if weight.group else 1

    def product(kernel: Callable[..., jax.Array], weight: QuantizedArray, x: jax.Array):
        flat = jax.tree.map(lambda leaf: leaf.reshape(*shape[:3], -1), weight)
        result = kernel(
            flat.values, flat.scales, flat.offsets, x.reshape(tokens, *shape[1::2]), dtype
        )
        return result.reshape(*x.shape[:2], *shards[:outputs], *local[:outputs])

    found = {}
    if weight.group:
        from sharding.grouped import kernel_for  # imports Pallas, which takes a while

        found["tpu"] = kernel_for(*shape, groups, tokens)
    if _is_packed(weight, groups):
        from sharding.grouped_gpu import kernel_for as gpu_kernel_for

        found["cuda"] = gpu_kernel_for(*shape, groups, tokens)
    return {name: functools.partial(product, kernel) for name, kernel in found.items() if kernel}


def _is_packed(weight: QuantizedArray, groups: int) -> bool:
    """Whether it is for `sharding.grouped_gpu`, whose one group to an output has no offset."""
    return weight.gpu_kernel and not weight.codes and (groups > 1 or weight.offsets is None)


def _tokens_first(product: jax.Array) -> jax.Array:
    """[outputs..., B, T] -> [B, T, outputs...]."""
    return jnp.moveaxis(product, (-2, -1), (0, 1))


def _few_on_gpu(weight: QuantizedArray, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """weight: [N, K], x: [M, K] -> [N, M], for few tokens.

    XLA:GPU reads values of 8 bits more slowly for one token than for eight (63 us against 38 for a
    matrix of 117 MB on an H200). A matrix in groups it writes in the type of x before a matmul; a
    plain sum of products takes them as they are.
    """
    if weight.group:
        terms = weight.dense()[:, None] * x.astype(jnp.float32)
        return jnp.sum(terms, axis=-1).astype(dtype)
    tokens = x.shape[0]
    padded = jnp.pad(x, ((0, _EIGHT - tokens), (0, 0)))
    return contract(weight, padded, ((1,), (1,)), dtype)[:, :tokens]


_EIGHT = 8
_FEW_OF_GROUPS = 2  # more tokens take as long as writing the matrix


def _by_blocks(weight: Weight, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """weight: [N, K], x: [M, K] -> [N, M], some rows of the weight at a time.

    XLA:CPU converts a matrix as a whole before a matmul; a few rows stay in its caches.
    """
    rows, length = weight.shape
    block = _BLOCK if x.shape[0] < MANY_TOKENS else _BLOCK_OF_MANY
    parts = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n * length <= block)
    size = rows // parts
    bits = jax.tree.map(to_bits, weight)

    def visit(number: jax.Array, product: jax.Array) -> jax.Array:
        part = jax.tree.map(_widen, cut(bits, number, parts, 0), weight)
        rows_product = contract(part, x, ((1,), (1,)), dtype)
        return jax.lax.dynamic_update_slice_in_dim(product, rows_product, number * size, axis=0)

    return jax.lax.fori_loop(0, parts, visit, jnp.zeros((rows, x.shape[0]), dtype))


_BLOCK = 2**16  # values: a quarter of a megabyte as float32
_BLOCK_OF_MANY = 2**18  # for many tokens, whose products of few rows are slow


def _widen(bits: jax.Array, like: jax.Array) -> jax.Array:
    if like.dtype == jnp.bfloat16:  # by its bits: of a conversion comes a slow matmul of bfloat16
        return jax.lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)
    return from_bits(bits, like)


def contract(
    weight: Weight,
    x: jax.Array,
    inputs: tuple[Sequence[int], Sequence[int]],
    dtype: jnp.dtype,
    out: jax.P | None = None,
) -> jax.Array:
    """The product of a weight, in whatever form, with something plain.

    Values are converted as they are read. One scale for an output multiplies the product; scales of
    groups multiply the values.

    Args:
      weight: plain or quantized.
      x: what it multiplies, the last of its dimensions inputs.
      inputs: dimensions that are summed over, of the weight and of x.
      dtype: type of the product.
      out: sharding of the product, outside `shard_map`.

    Returns:
      The other dimensions of the weight, then those of x.
    """
    plain = isinstance(weight, jax.Array)
    if not plain and weight.group:
        weight, plain = weight.dense(), True
    values = weight if plain else weight.values
    scales = None if plain else drop(weight.scales, inputs[0])
    if scales is not None and weight.round_activations:
        x, of_tokens = round_tokens(x, inputs[1])
        scales = scales.reshape(*scales.shape, *(1,) * of_tokens.ndim) * of_tokens
    elif scales is not None:
        scales = scales.reshape(*scales.shape, *(1,) * (x.ndim - len(inputs[1])))
    exact = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    product = jax.lax.dot_general(
        values.astype(x.dtype),
        x,
        (tuple(map(tuple, inputs)), ((), ())),
        preferred_element_type=dtype if scales is None else exact,
        out_sharding=out,
    )
    return product if scales is None else (product * scales).astype(dtype)
