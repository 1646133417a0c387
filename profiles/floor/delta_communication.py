"""The collectives of gated delta layers, as `model.delta_layer` reshards.

A part of the walk of `profiles.floor.communication`.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from model.cache import DELTA_AXES
from profiles.floor.shapes import Matmul

if TYPE_CHECKING:
    from profiles.floor.communication import ForwardPass

_PROJECTIONS, _RULE, _OUTPUT = "layer/query_key_value", "layer/delta_rule", "layer/attention_output"


def delta_layer(step: "ForwardPass", given: jax.P, contracted: jax.P) -> None:
    """Projections, the rule in the division of attention's heads, and the projection back.

    Args:
      step: the walk, which notes what moves.
      given: sharding of the normed residual stream.
      contracted: that of what projections multiply.
    """
    placement, act = step.placement, step.placement.activations
    step.product(Matmul("NwD", 2, given, contracted, act("BTNw"), _PROJECTIONS))
    plain = Matmul("NCMD", 3, contracted, contracted, act("BTNCM"), _PROJECTIONS, plain=True)
    step.product(plain)
    step.reshard(step.array("BTNw"), act("BTNw"), placement.attention("BTN_"), _PROJECTIONS)
    step.reshard(step.array("BTNCM"), act("BTNCM"), placement.attention("BTNCM"), _PROJECTIONS)
    states = _states(step)
    for array, cached, used in states:
        step.reshard(array, cached, used, _RULE)
    for array, cached, used in states:
        step.reshard(array, used, cached, _RULE)
    step.reshard(step.array("BTNMo"), placement.attention("BTNM_"), act("BTNMo"), _OUTPUT)
    contracted, result = placement.contracted("BTNMo"), act("BTR")
    step.product(Matmul("DNMo", 1, act("BTNMo"), contracted, result, _OUTPUT))


def _states(step: "ForwardPass") -> list[tuple[jax.ShapeDtypeStruct, jax.P, jax.P]]:
    """Each array of a layer's state, divided as it is kept and as it is used."""
    batch, keys, values = step.placement.attention("BNM")
    used = jax.P(batch, keys, values, None, None), jax.P(batch, None, keys, None)
    types = jnp.float32, step.dtypes.dtype
    return [
        (jax.ShapeDtypeStruct(step.shape(axes), dtype), step.placement.cache(axes), spec)
        for axes, dtype, spec in zip(DELTA_AXES, types, used, strict=True)
    ]
