"""The order and tiles in which weights and caches lie in memory, where not the default ones."""

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental.layout import Format, Layout

from model.cache import KVCache, cache_axes
from model.config import ModelConfig
from model.declarations import declarations, matrices, of_experts
from model.parameters import Parameters
from sharding.platform_workarounds import lies_by_slots, order_on_tpu

_BY_SLOTS = Layout((0, 1, 3, 2))  # of [B, K, S, h]


def apply_tpu_orders(parameters: Parameters, model: nnx.Module) -> Parameters:
    """Brings arrays into the orders of `order_on_tpu`; no others are touched.

    Args:
      parameters: on devices, those that change then gone; or abstract; or none.
      model: the one that declares them.
    """
    flat, few_bits = flatten_dict(parameters), matrices(model)
    looked_up = {("layer_inputs", "weight")}  # tables of which rows alone are read
    if not model.config.tied_embedding:
        looked_up.add(("embedding", "weight"))
    for path, param in declarations(model).items() if flat else ():
        matrix = few_bits.get(path[:-1])
        if path in looked_up or (param.scale and matrix.dtypes.quantization.codes):
            order = tuple(range(len(param.shape)))  # by rows, also where they fill no registers
        elif param.scale or (matrix and (matrix.dtypes.quantization.group or of_experts(param))):
            order = None  # kernels read groups as they are stored; few-bit experts come one by one
        else:
            order = order_on_tpu(param.axes, flat[path])
        if order:
            flat[path] = _with_format(flat[path], Format(Layout(order), flat[path].sharding))
    return unflatten_dict(flat)


def in_tpu_order(cache: KVCache, config: ModelConfig) -> KVCache:
    """A cache's shapes with the order in memory of keys and values that lie by their slots.

    In this order kernels read and write them. Left to itself XLA:TPU decides by all sizes, the
    number of sequences among them, and a program whose kernels want another order copies the cache.

    Args:
      cache: shapes with shardings.
      config: the model.
    """

    def ordered(array: jax.ShapeDtypeStruct, axes: str) -> jax.ShapeDtypeStruct:
        if axes[-2] != "S" or not lies_by_slots(array.shape[-1]):
            return array  # scales and states, too
        format = Format(_BY_SLOTS, array.sharding)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=format)

    return jax.tree.map(ordered, cache, cache_axes(cache, config))


def formats_of(cache: KVCache) -> KVCache | None:
    """What `jax.jit` is told, as one of its `out_shardings`, of a cache that a program returns.

    So it comes out in the order in which it came in, in the same memory.

    Args:
      cache: shapes with shardings, and orders if any.

    Returns:
      A format for each array; None where all have their device's default order.
    """
    formats = jax.tree.map(lambda array: array.format, cache)
    return formats if any(format.layout for format in jax.tree.leaves(formats)) else None


def apply_formats(parameters: Parameters, formats: dict) -> tuple[Parameters, int]:
    """Brings arrays into other orders and tiles in memory, one at a time; the old ones are gone.

    Args:
      parameters: on devices.
      formats: format of each array, nested like the parameters.

    Returns:
      The parameters, and how many of them lie otherwise than before.
    """
    arrays, tree = jax.tree.flatten(parameters)
    changed = 0
    for number, format in enumerate(jax.tree.leaves(formats)):
        if arrays[number].format.layout != format.layout:
            arrays[number] = _with_format(arrays[number], format)
            changed += 1
    return jax.tree.unflatten(tree, arrays), changed


def _with_format(array: jax.Array | jax.ShapeDtypeStruct, format: Format) -> jax.Array:
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=format)
    # Before the next is made beside it.
    return jax.block_until_ready(jax.device_put(array, format, donate=True))
