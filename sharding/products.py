"""Matrix products that need other chips: a weight or an operand to gather, or sums to scatter.

One plan, `Transfers`, says what must move; two schedules carry it out. Left to the compiler, each
transfer is one collective. In loops, the looped collective einsum of Pope et al. 2022, section 3.5
(after Wang et al. 2023): what is needed from other chips, or summed up for them, travels a ring of
chips in as many steps as there are chips; while one chunk is under way, the one that has come is
multiplied. Chunks of even size travel as two halves in opposite directions, so that both directions
of each link are used.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharding.dot import dot, dot_of_shards
from sharding.layout import Axes
from sharding.placement import division, entry
from sharding.quantization import QuantizedArray, Weight, cut, cut_rows, specs_of

LONGEST_UNROLLED = 4
"""Rings of more chips stay a loop: thousands of unrolled partial products compile slowly."""


class Transfers(NamedTuple):
    """What must move for one product, over which mesh axes.

    Attributes:
      fetched: for each dimension of the weight, the axes that its shards are gathered over.
      gathered: axes that one dimension of x is gathered over ...
      gather_dim: ... this one.
      scattered: axes that sums are scattered over, along one dimension of the product ...
      scatter_dim: ... this one.
      summed: axes that sums are made over whole; along `scatter_dim` they are first scattered and
        then gathered where `summed_in_halves`.
      summed_in_halves: whether that dimension divides so.
      product_spec: sharding of the product that `multiply` gives; further axes can divide it
        without communication.
    """

    fetched: tuple[Axes, ...]
    gathered: Axes
    gather_dim: int
    scattered: Axes
    scatter_dim: int
    summed: Axes
    summed_in_halves: bool
    product_spec: jax.P

    @property
    def communicates(self) -> bool:
        """Whether anything moves at all."""
        return bool(any(self.fetched) or self.gathered or self.scattered or self.summed)

    @property
    def ring(self) -> Axes:
        """Axes that sums travel over in a loop beside the products."""
        if any(self.fetched):
            return ()
        return self.scattered or (self.summed if self.summed_in_halves else ())


class ProductSpecs(NamedTuple):
    """How the arrays of one product are divided.

    Attributes:
      stored: the weight, [outputs..., inputs...], as it is kept.
      use: the weight when multiplied.
      incoming: x, [B, T, inputs...], as it comes.
      contracted: x when multiplied.
      result: the product, [B, T, outputs...].
    """

    stored: jax.P
    use: jax.P
    incoming: jax.P
    contracted: jax.P
    result: jax.P


def transfers(
    weight: tuple[int, ...], specs: ProductSpecs, mesh: Mapping[str, int]
) -> Transfers | None:
    """What `multiply` moves, from shardings alone; None where it is more than `multiply` does.

    Args:
      weight: shape of the weight, [outputs..., inputs...].
      specs: shardings of what is multiplied, and of the product.
      mesh: sizes of the mesh axes.
    """
    stored, use, incoming, contracted, result = map(division, specs)
    outputs = len(result) - 2
    fetched = _suffixes(stored, use)
    gathered = _suffixes(incoming, contracted)
    scattered = _suffixes(result[2:], use[:outputs])
    if None in (fetched, gathered, scattered) or incoming[:2] != result[:2]:
        return None
    inputs = tuple(axis for axes in use[outputs:] for axis in axes)
    if sum(map(bool, gathered)) > 1 or sum(map(bool, scattered)) > 1:
        return None
    along = next((dim for dim, axes in enumerate(scattered) if axes), outputs - 1)
    # Axes that divide no input have nothing to sum: they only slice what is made.
    over = tuple(itertools.takewhile(lambda axis: axis in inputs, scattered[along]))
    product = list(result)
    product[2 + along] = use[along] + over
    summed = tuple(axis for axis in inputs if axis not in over)
    local = weight[along] // math.prod(mesh[axis] for axis in use[along])
    return Transfers(
        fetched=fetched,
        gathered=sum(gathered, ()),
        gather_dim=next((dim for dim, axes in enumerate(gathered) if axes), 2),
        scattered=over,
        scatter_dim=along,
        summed=summed,
        summed_in_halves=not over and local % math.prod(mesh[axis] for axis in summed) == 0,
        product_spec=jax.P(*map(entry, product)),
    )


def gathers_in_loop(weight: Weight, x: Sequence[int], plan: Transfers) -> bool:
    """Whether x travels in chunks beside partial products; else it is gathered at once.

    For each chunk a product takes some columns of the weight. Of few bits along its last dimension,
    XLA:TPU would first lay the whole weight out anew; and a chunk could cut a group.

    Args:
      weight: [outputs..., inputs...].
      x: sizes of [B, T, inputs...].
      plan: what moves for their product.
    """
    plain = not isinstance(weight, QuantizedArray)
    return bool(plan.gathered) and (plain or plan.gather_dim < len(x) - 1)


def multiply(
    weight: Weight,
    x: jax.Array,
    plan: Transfers,
    contracted: jax.P,
    *,
    looped: bool,
    dtype: jnp.dtype | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Multiplies every token by a weight, moving what `plan` says.

    Args:
      weight: [outputs..., inputs...], as stored.
      x: [B, T, inputs...].
      plan: what `transfers` gives for the same shardings.
      contracted: sharding of x when multiplied.
      looped: move in loops beside partial products, not in one collective each.
      dtype: type of the product, and of sums that travel; that of x if None.

    Returns:
      The product, [B, T, outputs...] divided as `plan.product_spec`, and x divided as
      `contracted`, for more products.
    """
    local = _multiply_in_loops if looped else _multiply_at_once
    return jax.shard_map(
        functools.partial(local, plan=plan, dtype=dtype or x.dtype),
        in_specs=(specs_of(weight), specs_of(x)),
        out_specs=(plan.product_spec, contracted),
        check_vma=False,
    )(weight, x)


def _multiply_at_once(
    weight: Weight, x: jax.Array, plan: Transfers, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    x = _all_gather(x, plan.gathered, plan.gather_dim)
    product = _gathered_product(weight, x, plan.fetched, dtype)
    product = _reduce_scatter(product, plan.scattered, 2 + plan.scatter_dim)
    return _all_reduce(product, plan.summed), x


def _multiply_in_loops(
    weight: Weight, x: jax.Array, plan: Transfers, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    along = 2 + plan.scatter_dim
    if any(plan.fetched):
        x = _all_gather(x, plan.gathered, plan.gather_dim)
        product = _fetch(weight, x, plan.fetched).astype(dtype)
        product = _reduce_scatter(product, plan.scattered, along)
        return _all_reduce(product, plan.summed), x
    if plan.gathered and not gathers_in_loop(weight, x.shape, plan):
        x = _all_gather(x, plan.gathered, plan.gather_dim)
        plan = plan._replace(gathered=())
    product, x = _gather_and_scatter(weight, x, plan, dtype)
    if plan.ring and plan.ring == plan.summed:
        return _all_gather(product, plan.summed, along), x
    return _all_reduce(product, plan.summed), x


def _gather_and_scatter(
    weight: jax.Array, x: jax.Array, plan: Transfers, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """The product scattered over `plan.ring`, and x gathered over `plan.gathered`.

    The first chunk of the product is made as x comes in; the others, of all of x, as sums go round.
    """
    along, chips = plan.scatter_dim, _chips(plan.ring)
    outputs = weight.ndim - (x.ndim - 2)
    position = jax.lax.axis_index(plan.ring) if plan.ring else 0
    signs = ring_directions(weight.shape[along] // chips, chips)

    def rows(step: int | jax.Array) -> list[Weight]:
        """What `cut_rows` gives for each direction."""
        chunks = [
            (position - sign * (step + 1)) % chips * len(signs) + i for i, sign in enumerate(signs)
        ]
        parts = chips * len(signs)
        return [one for chunk in chunks for one in cut_rows(weight, chunk, parts, along)]

    def join_rows(products: list[jax.Array]) -> list[jax.Array]:
        """Products [B, T, outputs...] of each direction, from those of each part of `rows`."""
        if products[0].ndim == 2 + outputs:
            return products
        count = len(products) // len(signs)
        stacks = [jnp.stack(products[i : i + count], 2) for i in range(0, len(products), count)]
        return [
            one.reshape(*one.shape[:2], *weight.shape[:along], *one.shape[3:]) for one in stacks
        ]

    def add(
        step: int | jax.Array, state: tuple[list[jax.Array], jax.Array]
    ) -> tuple[list[jax.Array], jax.Array]:
        # Barriers before and after, or XLA:TPU makes the products of later steps in this one, adds
        # what comes within its product, or hides one direction's transfer behind the other's sum.
        sums, x = jax.lax.optimization_barrier(state)
        received = [_pass(part, plan.ring, sign) for part, sign in zip(sums, signs, strict=True)]
        products = join_rows([dot(part, x, jnp.float32) for part in rows(step)])
        received, products = jax.lax.optimization_barrier((received, products))
        return [(r + m).astype(r.dtype) for r, m in zip(received, products, strict=True)], x

    products, x = _gather(rows(0) if plan.ring else [weight], x, plan.gathered, plan.gather_dim)
    sums = [part.astype(dtype) for part in (join_rows(products) if plan.ring else products)]
    if plan.ring:
        sums, x = jax.lax.fori_loop(1, chips, add, (sums, x), unroll=_unrolled(chips))
    return jnp.concatenate(sums, axis=2 + along) if len(sums) > 1 else sums[0], x


def _gather(
    weights: list[jax.Array], x: jax.Array, axes: Axes, dim: int
) -> tuple[list[jax.Array], jax.Array]:
    """Products of weights with x gathered over `axes` along `dim`, made chunk by chunk; and x."""
    if not axes:
        return [dot(weight, x, jnp.float32) for weight in weights], x
    size = x.shape[dim]
    gathered = jnp.zeros((*x.shape[:dim], size * _chips(axes), *x.shape[dim + 1 :]), x.dtype)

    def visit(carry, piece: jax.Array, source: jax.Array, offset: int):
        products, gathered = carry
        start = source * size + offset
        parts = gathered.shape[dim] // piece.shape[dim]
        number = start // piece.shape[dim]
        columns = [cut(weight, number, parts, weight.ndim - x.ndim + dim) for weight in weights]
        products = [p + dot(c, piece, jnp.float32) for p, c in zip(products, columns, strict=True)]
        return products, jax.lax.dynamic_update_slice_in_dim(gathered, piece, start, axis=dim)

    zeros = [
        jnp.zeros((*x.shape[:2], *weight.shape[: weight.ndim - x.ndim + 2]), jnp.float32)
        for weight in weights
    ]
    return _ring(x, axes, dim, visit, (zeros, gathered))


def _gathered_product(
    weight: Weight, x: jax.Array, fetched: tuple[Axes, ...], dtype: jnp.dtype
) -> jax.Array:
    """The product with a weight gathered whole, in one all-gather whatever dimensions it is of.

    Shards stay stacked, in the memory that they came into: only x and the product are reordered.
    """
    if not any(fetched):
        return dot(weight, x, dtype)
    rank, outputs = weight.ndim, weight.ndim - (x.ndim - 2)
    parts = [_chips(axes) for axes in fetched]

    def stack(leaf: jax.Array) -> jax.Array:  # -> [chips of each dimension, their shard]
        return jax.lax.all_gather(leaf, sum(fetched, ()), axis=0).reshape(*parts, *leaf.shape)

    inputs = range(rank - outputs)
    pairs = zip(parts[outputs:], weight.shape[outputs:], strict=True)
    x = x.reshape(*x.shape[:2], *(size for pair in pairs for size in pair))
    x = x.transpose(0, 1, *(2 + 2 * i for i in inputs), *(3 + 2 * i for i in inputs))
    # [B, T, chips of outputs, outputs of a shard]
    product = dot_of_shards(jax.tree.map(stack, weight), x, dtype)
    order = [2 + dim for i in range(outputs) for dim in (i, outputs + i)]
    product = product.transpose(0, 1, *order)
    sizes = (n * size for n, size in zip(parts[:outputs], weight.shape[:outputs], strict=True))
    return product.reshape(*x.shape[:2], *sizes)


def _fetch(weight: jax.Array, x: jax.Array, fetched: tuple[Axes, ...]) -> jax.Array:
    """The product of x with a weight whose shards come round, each multiplied as it comes."""
    outputs = weight.ndim - (x.ndim - 2)
    parts = [_chips(axes) for axes in fetched]
    total = [size * n for size, n in zip(weight.shape, parts, strict=True)]
    product = jnp.zeros((*x.shape[:2], *total[:outputs]), jnp.float32)
    split = next((dim for dim, size in enumerate(weight.shape[:outputs]) if size % 2 == 0), 0)

    def visit(product: jax.Array, piece: jax.Array, source: jax.Array, offset: int) -> jax.Array:
        starts = []
        for size, n in reversed(list(zip(weight.shape, parts, strict=True))):
            starts.insert(0, source % n * size)
            source = source // n
        starts[split] += offset
        columns = jax.lax.dynamic_slice(
            x, (0, 0, *starts[outputs:]), (*x.shape[:2], *piece.shape[outputs:])
        )
        partial = dot(piece, columns, jnp.float32)
        corner = (0, 0, *starts[:outputs])
        partial += jax.lax.dynamic_slice(product, corner, partial.shape)
        return jax.lax.dynamic_update_slice(product, partial, corner)

    return _ring(weight, sum(fetched, ()), split, visit, product)


def _ring(shard: jax.Array, axes: Axes, split: int, visit: Callable, carry):
    """Shows the shard of every chip along `axes` to `visit`, the next one under way meanwhile.

    Args:
      shard: this chip's.
      axes: mesh axes of the ring.
      split: the dimension that is halved, a half for each direction.
      visit: takes carry, a shard or half of one, the number of the chip it is from, and where along
        `split` it begins in that chip's shard; gives the next carry.
      carry: the first one.

    Returns:
      The last carry.
    """
    chips, position = _chips(axes), jax.lax.axis_index(axes)
    signs = ring_directions(shard.shape[split], chips)
    pieces = [cut(shard, half, len(signs), split) for half in range(len(signs))]

    def show(step: int | jax.Array, pieces: list[jax.Array], carry):
        for half, (piece, sign) in enumerate(zip(pieces, signs, strict=True)):
            carry = visit(carry, piece, (position - sign * step) % chips, half * piece.shape[split])
        return carry

    def pass_on(step: int | jax.Array, state):
        pieces, carry = state
        sent = [_pass(piece, axes, sign) for piece, sign in zip(pieces, signs, strict=True)]
        # Without a barrier XLA:TPU may keep several steps' products for one of the transfers.
        return jax.lax.optimization_barrier((sent, show(step, pieces, carry)))

    state = (pieces, carry)
    pieces, carry = jax.lax.fori_loop(0, chips - 1, pass_on, state, unroll=_unrolled(chips))
    return show(chips - 1, pieces, carry)


def _all_gather(x: jax.Array, axes: Axes, dim: int) -> jax.Array:
    return jax.lax.all_gather(x, axes, axis=dim, tiled=True) if axes else x


def _reduce_scatter(x: jax.Array, axes: Axes, dim: int) -> jax.Array:
    return jax.lax.psum_scatter(x, axes, scatter_dimension=dim, tiled=True) if axes else x


def _all_reduce(x: jax.Array, axes: Axes) -> jax.Array:
    return jax.lax.psum(x, axes) if axes else x


def _pass(piece: jax.Array, axes: Axes, sign: int) -> jax.Array:
    """Hands a piece to the next chip (sign 1) or the one before (sign -1) of the ring."""
    # `ppermute` numbers chips in the order of the mesh, whatever the order of the axes it is given.
    names = [name for name in jax.sharding.get_abstract_mesh().axis_names if name in axes]
    ranks = np.arange(_chips(axes)).reshape([jax.lax.axis_size(name) for name in names])
    ring = ranks.transpose([names.index(axis) for axis in axes]).ravel().tolist()
    after = ring[sign:] + ring[:sign]
    pairs = list(zip(ring, after, strict=True))
    return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, tuple(names), pairs), piece)


def ring_directions(size: int, chips: int) -> tuple[int, ...]:
    """Two ways round for a chunk that halves evenly; between two chips there is only one."""
    return (1, -1) if size % 2 == 0 and chips > 2 else (1,)


def _unrolled(chips: int) -> bool:
    return chips <= LONGEST_UNROLLED


def _chips(axes: Axes) -> int:
    return math.prod(jax.lax.axis_size(axis) for axis in axes)


def _suffixes(longer: tuple[Axes, ...], shorter: tuple[Axes, ...]) -> tuple[Axes, ...] | None:
    """Per dimension, the axes that come after the shorter entry; None unless all begin with it."""
    pairs = list(zip(longer, shorter, strict=True))
    if any(long[: len(short)] != short for long, short in pairs):
        return None
    return tuple(long[len(short) :] for long, short in pairs)
