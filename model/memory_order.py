"""The order and tiles in which weights lie in a device's memory, where not the default ones."""

import jax
from flax import nnx
from jax.experimental.layout import Format, Layout

from model.declarations import declarations
from model.parameters import Parameters, flatten, nest

_ORDERS_ON_TPU = {("D", "K", "G", "h"): (1, 2, 0, 3)}
"""By logical axes, the order in memory, outermost first, of matrices that XLA:TPU would lay out at
every step, to cut their rows: it wants those beside the heads' own dimension. Where a shard's heads
fill no whole register they keep the default order."""


def lay_out_for_tpu(parameters: Parameters, model: nnx.Module) -> Parameters:
    """Brings arrays into the orders in memory that TPUs read best; no others are touched.

    Args:
      parameters: on devices, those that change then gone; or abstract; or none.
      model: that declares them.
    """
    flat = flatten(parameters)
    for path, param in declarations(model).items() if flat else ():
        order, scheme = _ORDERS_ON_TPU.get(param.axes), model.form.scheme
        # Matrices in groups are read by a kernel, as they are stored.
        if order and not param.scale and not (scheme and scheme.group) and _fills_lanes(flat[path]):
            flat[path] = _lie(flat[path], Format(Layout(order), flat[path].sharding))
    return nest(flat)


def _fills_lanes(array: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether shards are whole registers wide; an order given to narrower ones fills them up."""
    return array.sharding.shard_shape(array.shape)[-1] % _LANES == 0


_LANES = 128


def lay_out(parameters: Parameters, formats: dict) -> tuple[Parameters, int]:
    """Brings arrays into other orders and tiles in memory, one at a time; the old ones are gone.

    Args:
      parameters: on devices.
      formats: of each array; nested as the parameters.

    Returns:
      The parameters, and how many of them lie otherwise than before.
    """
    arrays, tree = jax.tree.flatten(parameters)
    changed = 0
    for number, wanted in enumerate(jax.tree.leaves(formats)):
        if arrays[number].format.layout != wanted.layout:
            arrays[number] = _lie(arrays[number], wanted)
            changed += 1
    return jax.tree.unflatten(tree, arrays), changed


def _lie(array: jax.Array | jax.ShapeDtypeStruct, wanted: Format) -> jax.Array:
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=wanted)
    # Before the next is made beside it.
    return jax.block_until_ready(jax.device_put(array, wanted, donate=True))
