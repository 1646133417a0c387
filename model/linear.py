"""Matrix multiplication with weights stored ``[outputs, inputs]``."""

import jax
import jax.numpy as jnp
from flax import nnx

from model.declarations import Matrix
from sharding.collectives import reshard
from sharding.dot import dot
from sharding.placement import Placement
from sharding.products import multiply, transfers
from sharding.quantization import QuantizedArray, Weight, divide, sharding_of


class Operand:
    """Activations that matmuls read: gathered from other chips once, however many read them."""

    def __init__(self, x: jax.Array, spec: jax.P, placement: Placement):
        """Gathers nothing yet.

        Args:
          x: [B, T, inputs...].
          spec: its sharding when multiplied.
          placement: shardings.
        """
        self._x, self._spec, self._placement = x, spec, placement

    @property
    def array(self) -> jax.Array:
        """x, gathered as far as it has been."""
        return self._x

    def whole(self) -> jax.Array:
        """x, divided as a matmul's weight is."""
        self._x = reshard(self._x, self._spec)
        return self._x

    def project(self, param: nnx.Param | Matrix, *axes: str | None) -> jax.Array:
        """Multiplies every token by a parameter, gathered first where the layout says so.

        Args:
          param: [outputs..., inputs...].
          *axes: logical axes of the result, of which the layout says how it is divided.

        Returns:
          [B, T, outputs...].
        """
        use = self._placement.use(*param.axes)
        return self.multiply(param[...], use, self._placement.activations(*axes))

    def multiply(
        self, weight: Weight, use: jax.P, result: jax.P, dtype: jnp.dtype | None = None
    ) -> jax.Array:
        """Multiplies every token by a weight, scheduling collectives as the layout says.

        Args:
          weight: [outputs..., inputs...], as stored.
          use: its sharding when multiplied.
          result: sharding of the product.
          dtype: of the product; that of x if None.

        Returns:
          [B, T, outputs...].
        """
        stored, now = sharding_of(weight), sharding_of(self._x)
        specs = (stored, use, now, self._spec, result)
        plan = transfers(weight.shape, *specs, self._placement.mesh)
        moves = plan and (plan.moves or isinstance(weight, QuantizedArray))
        if not moves:
            return linear(divide(weight, use, reshard), self.whole(), result, dtype)
        looped = self._placement.layout.collectives == "overlapped"
        product, self._x = multiply(weight, self._x, plan, self._spec, looped=looped, dtype=dtype)
        return jax.reshard(product, result)


def linear(
    weight: Weight, x: jax.Array, sharding: jax.P, dtype: jnp.dtype | None = None
) -> jax.Array:
    """Multiplies every token by a weight of any number of output and input dimensions.

    The weight is the first operand and its dimensions keep their stored order. So XLA reads it
    in place as one long matrix; as second operand, or with its inputs in another order, XLA:CPU
    first copies it into that order at every step (3 to 6 times slower).

    Args:
      weight: [outputs..., inputs...].
      x: [B, T, inputs...].
      sharding: of the result. Partial sums over mesh axes that divide the inputs are scattered
        over those that it names, all-reduced over the others.
      dtype: of the result; that of `x` if None.

    Returns:
      [B, T, outputs...].
    """
    outputs = weight.ndim - (x.ndim - 2)
    spec = tuple(sharding) + (None,) * (outputs + 2 - len(sharding))
    return dot(weight, x, dtype or x.dtype, jax.P(*spec))
