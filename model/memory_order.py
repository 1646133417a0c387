"""The order and tiles in which weights lie in a device's memory, where not the default ones."""

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental.layout import Format, Layout

from model.declarations import declarations, matrices, of_experts
from model.parameters import Parameters
from sharding.platform_workarounds import order_on_tpu


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
