"""Matrix multiplication with weights stored ``[outputs, inputs]``."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from model.declarations import Matrix
from sharding.collectives import reshard
from sharding.dot import dot
from sharding.placement import Placement
from sharding.products import ProductSpecs, multiply, transfers
from sharding.quantization import QuantizedArray, Weight, divide, sharding_of


def project(
    x: jax.Array, parameters: Sequence[nnx.Param | Matrix], placement: Placement
) -> tuple[list[jax.Array], jax.Array]:
    """Multiplies every token by each of several parameters; the first product gathers x for all.

    All shardings follow from the parameters' letters: the outputs of a product are divided as
    activations, and d_model among them as the residual stream.

    Args:
      x: [B, T, inputs...], divided in any way.
      parameters: each [outputs..., inputs...].
      placement: shardings.

    Returns:
      [B, T, outputs...] for each parameter, and x divided as these matmuls read it, for others that
      read the same.
    """
    products = []
    for parameter in parameters:
        outputs = len(parameter.axes) - (x.ndim - 2)
        result_axes = parameter.axes[:outputs].replace("D", "R")
        product, x = multiply_tokens(
            x,
            parameter[...],
            use=placement.use(parameter.axes),
            contracted=placement.contracted("BT" + parameter.axes[outputs:]),
            result=placement.activations("BT" + result_axes),
            placement=placement,
        )
        products.append(product)
    return products, x


def multiply_tokens(
    x: jax.Array,
    weight: Weight,
    *,
    use: jax.P,
    contracted: jax.P,
    result: jax.P,
    placement: Placement,
    dtype: jnp.dtype | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Multiplies every token by a weight, scheduling collectives as the layout says.

    Args:
      x: [B, T, inputs...].
      weight: [outputs..., inputs...], as stored.
      use: sharding of the weight when multiplied.
      contracted: sharding of x when multiplied.
      result: sharding of the product.
      placement: the mesh, and who schedules collectives.
      dtype: type of the product; that of x if None.

    Returns:
      [B, T, outputs...], and x divided as `contracted`.
    """
    specs = ProductSpecs(sharding_of(weight), use, sharding_of(x), contracted, result)
    plan = transfers(weight.shape, specs, placement.mesh)
    communicates = plan and (plan.communicates or isinstance(weight, QuantizedArray))
    if not communicates:
        weight, x = divide(weight, use, reshard), reshard(x, contracted)
        return linear(weight, x, result, dtype), x
    looped = placement.layout.collectives == "overlapped"
    product, x = multiply(weight, x, plan, contracted, looped=looped, dtype=dtype)
    return jax.reshard(product, result), x


def linear(
    weight: Weight, x: jax.Array, sharding: jax.P, dtype: jnp.dtype | None = None
) -> jax.Array:
    """Multiplies every token by a weight of any number of output and input dimensions.

    The weight is the first operand and its dimensions keep their stored order. So XLA reads it
    in place as one long matrix; for few tokens as second operand, or with its inputs in another
    order, XLA:CPU first copies it into that order at every step (3 to 6 times slower). Of many
    tokens the order is that of `sharding.platform_workarounds.faster_tokens_first`.

    Args:
      weight: [outputs..., inputs...].
      x: [B, T, inputs...].
      sharding: sharding of the result. Partial sums over mesh axes that divide the inputs are
        scattered over those that it names, all-reduced over the others.
      dtype: type of the result; that of `x` if None.

    Returns:
      [B, T, outputs...].
    """
    outputs = weight.ndim - (x.ndim - 2)
    spec = tuple(sharding) + (None,) * (outputs + 2 - len(sharding))
    return dot(weight, x, dtype or x.dtype, jax.P(*spec))
