"""What one platform's compiler does badly, and how each is gone round: the list of all of them.

A way round that only one platform takes is chosen by `by_platform` as a step is traced. Those that
models need are here; those that belong to one file elsewhere are there, and named here. Times are
of a decode step of one sequence, before and after, from `smollm2-135m-cpu/notes.md` (two cores) and
`llama3-8b-h200/notes.md` (one H200) of `profiles/results`. Where there is none, the copies were
seen in compiled programs and their cost was not timed.

XLA:CPU
- It copies a weight that is a matmul's second operand: for few tokens it is the first, stored
  ``[outputs, inputs]`` (`model.linear.linear`). 177 ms, then 62.
- It copies a weight whose contracted dimensions are not in their stored order: they are contracted
  in that order (`sharding.dot.contract`). 50 ms, then 27.
- It copies a donated cache whole to cut what is filled from it: blocks are cut in a loop
  (`model.block_attention`). A step for 8 sequences of 128 tokens takes as long with 4,096 slots as
  with 192 (82 and 84 ms).
- It cuts a matrix-vector product into small blocks: two halves of the outputs make a batch of two,
  a stream for each thread (`faster_in_halves`). 34.4 ms, then 31.6, on a later host.
- It copies many tokens and their product into another order where the weight is first: with 128
  and more they are the first operand (`faster_tokens_first`). A prompt of 512 tokens takes 0.92
  of the time, eight of 128 tokens 0.82.
- It makes a scatter of one row an update that copies the whole cache twice: a second row is
  scattered, and dropped (`scatter_row`). 25 ms, then 23; at context 2,048 97 ms, then 33.
- It allocates weights in pages of 4 KiB: huge ones (`sharding.huge_pages`). A host's page tables
  decide what that costs: 30.1 ms, then 28.5, on a virtual machine.
- It converts a whole matrix before a matmul: a few rows at a time (`sharding.dot`).
- It converts a whole array of small floats to cut or gather it: their bits are integers
  (`sharding.quantization.to_bits`, and for the embedding `sharding.collectives`); of a stack, cut
  in a loop, one matrix's (`sharding.dot.dot_of_one`).
- It gathers the batch for the top k of a divided array: each chip takes its own
  (`model.mixture`).
- It multiplies by every expert where a matmul of groups is asked for: a loop over the experts that
  have tokens (`model.mixture`).
- It takes sines of a rotary embedding anew in each layer, for every head: they are multiplied by
  the identity, which it does once (`computed_once`).
- It has no ragged all-to-all: a plain one takes every token to every chip that may have its expert
  (`model.dispatch`).
- It stops where some dozens of launches with collectives wait in its queue: each is awaited
  (`profiles.measured.kernels`).

XLA:TPU
- It lays attention's output weights out anew at every step, to cut their rows: they are stored in
  the order that it wants (`order_on_tpu`).
- It keeps a matrix whose rows fill no registers by its columns, and lays it out anew to look rows
  up, or for a kernel: such an embedding and the scales of MXFP4 are stored by rows
  (`model.memory_order`).
- It cuts the matrix of one expert in few bits out of a stack, and writes it: kernels that read one
  in groups where it lies (`sharding.grouped_stack`).
- It lays all of a cache whose heads fill no registers out anew, there and back, to scatter a token:
  a kernel (`model.cache_write_tpu`), not timed yet.
- It keeps a cache of heads that fill no registers in an order that its other sizes decide, by
  sequences where 128 of them fill one, and lays it out anew for kernels: the order is given to each
  program that takes the cache (`model.memory_order`).
- It brings a cache into another order to write several heads of a slot at once: a row for each head
  (`model.cache_write`), scales with KV heads first, and slots in whole tiles.
- It takes the rows of a prompt one after another: a chunk is one block (`model.cache_write`).
- It copies a layer's cache to VMEM and back: no evictions (`decode.compiler_options`).
- It writes a chunk of a prompt before it reads what was there, and so to a copy of the cache: the
  write takes a number that is made of what is read (`model.cache_write`).
- It copies 8-bit rows to cut them across tiles, or inside a stack: whole tiles, one matrix at a
  time (`sharding.quantization`).
- It writes a scale for every value of a matrix in groups: a kernel (`sharding.grouped`).
- It keeps products of several steps of a loop for one transfer: barriers (`sharding.products`).

XLA:GPU
- It runs kernels of a CUDA graph one by one: side by side (`decode.compiler_options`). 4.64 ms,
  then 4.46.
- It reads 8-bit values more slowly for one token than for eight: one is made eight
  (`sharding.dot`). 63 us, then 38, for the matrices of gate and up alone.
- It writes out a matrix in groups before a matmul: a kernel (`sharding.grouped_gpu`), not timed
  yet; without it a sum of products for one or two tokens (`sharding.dot`). 220 us, then 72, for the
  same.
- It cuts one matrix after another out of a stack of experts in MXFP4, and writes it: a kernel for
  tokens that are sorted by expert (`sharding.grouped_stack_gpu`), not timed yet.
- It adds scattered rows up in the order in which they come: experts' answers are gathered, and
  summed in one order (`model.mixture`).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


def by_platform(*operands: object, default: Callable, **others: Callable) -> object:
    """What the function of the mesh's platform makes of the operands.

    As `jax.lax.platform_dependent`, to which it leaves what no mesh decides. Only the function that
    is chosen is traced: the others take their time, and leave conditionals in the program.

    Args:
      operands: arguments of whichever function is called.
      default: the function for platforms that are not named.
      others: by platform, such as ``cpu``, ``tpu`` or ``cuda``.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.lax.platform_dependent(*operands, default=default, **others)
    platform = device.platform
    if platform == "gpu":
        platform = "cuda" if device.device_kind.startswith("NVIDIA") else "rocm"
    return others.get(platform, default)(*operands)


def computed_once(array: jax.Array) -> jax.Array:
    """The array, in memory of its own on a CPU, whoever reads it.

    XLA:CPU computes what is read in several places in each of them, sines of a rotary embedding for
    every layer and head. What a matmul makes it does not: the array is multiplied by the identity,
    which leaves every number as it is.

    Args:
      array: [..., n].
    """
    identity = jnp.eye(array.shape[-1], dtype=array.dtype)
    return by_platform(array, cpu=lambda each: each @ identity, default=lambda each: each)


def faster_in_halves(weight: jax.Array, x: jax.Array) -> bool:
    """Whether `multiply_in_halves` can multiply these, and XLA:CPU is faster so.

    Args:
      weight: [outputs..., inputs...], plain.
      x: [B, T, inputs...], of the same type.
    """
    outputs = math.prod(weight.shape[: weight.ndim - (x.ndim - 2)])
    one_device = jax.typeof(weight).sharding.mesh.size == 1
    return x.shape[:2] == (1, 1) and outputs % 2 == 0 and one_device


def multiply_in_halves(weight: jax.Array, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """One token's product as a batch of two, each with half of the outputs.

    XLA:CPU gives each matrix of a batch to one thread, which reads its half in one stream; a single
    matrix-vector product is cut into smaller blocks and reads 10% slower.

    Args:
      weight: [outputs..., inputs...], an even number of outputs.
      x: [1, 1, inputs...].
      dtype: type of the product.

    Returns:
      [1, 1, outputs...].
    """
    outputs = weight.ndim - (x.ndim - 2)
    halves = weight.reshape(2, -1, *weight.shape[outputs:])
    doubled = jnp.broadcast_to(x[0, 0], (2, *x.shape[2:]))
    contracting = (tuple(range(2, halves.ndim)), tuple(range(1, doubled.ndim)))
    result = jax.lax.dot_general(  # [2, outputs / 2]
        halves, doubled, (contracting, ((0,), (0,))), preferred_element_type=dtype
    )
    return result.reshape(1, 1, *weight.shape[:outputs])


def faster_tokens_first(weight: jax.Array, x: jax.Array) -> bool:
    """Whether `multiply_tokens_first` can multiply these, and XLA:CPU is faster so.

    Args:
      weight: [outputs..., inputs...], plain.
      x: [B, T, inputs...], of the same type.
    """
    one_device = jax.typeof(weight).sharding.mesh.size == 1
    return math.prod(x.shape[:2]) >= MANY_TOKENS and one_device


MANY_TOKENS = 128  # 16 to 64 take 6 to 15% longer with the tokens first


def multiply_tokens_first(weight: jax.Array, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """A matrix of tokens times a weight, which leaves the product in the order that is wanted.

    With the weight first XLA:CPU makes [outputs, tokens], and turns round both that and x.

    Args:
      weight: [outputs..., inputs...].
      x: [B, T, inputs...].
      dtype: type of the product.

    Returns:
      [B, T, outputs...].
    """
    outputs = weight.shape[: weight.ndim - (x.ndim - 2)]
    inputs = math.prod(x.shape[2:])
    result = jax.lax.dot_general(  # [B * T, outputs]
        x.reshape(-1, inputs),
        weight.reshape(-1, inputs),
        (((1,), (1,)), ((), ())),
        preferred_element_type=dtype,
    )
    return result.reshape(*x.shape[:2], *outputs)


Scatter = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def scatter_row(
    scatter: Scatter, array: jax.Array, row: jax.Array, slot: jax.Array, past_last: int
) -> jax.Array:
    """One row written where an array lies.

    XLA:CPU turns a scatter of one row into an update that it then makes twice, copying the whole
    array for each. There it is given another row, which is dropped.

    Args:
      scatter: writes rows into an array, and drops those of slots past its last.
      array: the array to write to.
      row: [B, 1, ...].
      slot: [B, 1] int32.
      past_last: a slot past the last.
    """

    def with_dropped_row(array: jax.Array, row: jax.Array, slot: jax.Array) -> jax.Array:
        dropped = jnp.full_like(slot, past_last)
        rows, slots = jnp.concatenate([row, row], axis=1), jnp.concatenate([slot, dropped], axis=1)
        return scatter(array, rows, slots)

    return by_platform(array, row, slot, cpu=with_dropped_row, default=scatter)


def lies_by_slots(width: int) -> bool:
    """Whether a TPU's programs hold keys and values of one head and sequence as [h, slots].

    By heads, [slots, h], what fills the registers up would be as long as the numbers themselves.

    Args:
      width: numbers of a head, h.
    """
    return width % _LANES != 0


def order_on_tpu(axes: str, array: jax.Array | jax.ShapeDtypeStruct) -> tuple[int, ...] | None:
    """The order in memory, outermost dimension first, that a TPU reads a weight best in.

    Args:
      axes: letters of its dimensions.
      array: the weight, or its shape and sharding.

    Returns:
      None for the default order. An order given to shards that are no whole registers wide fills
      them up, so they keep the default.
    """
    if axes not in _ORDERS_ON_TPU:
        return None
    order = _ORDERS_ON_TPU[axes]
    fills_lanes = array.sharding.shard_shape(array.shape)[order[-1]] % _LANES == 0
    return order if fills_lanes else None


# Matrices that XLA:TPU would lay out at every step: of attention's output to cut their rows, which
# it wants beside the heads' own dimension; of experts for its matmul of groups, which has their
# outputs innermost.
_ORDERS_ON_TPU = dict.fromkeys(("DKGh", "DJQH"), (1, 2, 0, 3)) | {
    "ECFD": (0, 1, 3, 2),
    "EDF": (0, 2, 1),
}
_LANES = 128
