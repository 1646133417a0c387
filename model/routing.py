"""Which experts a router chooses for a token, and the share that each has of the answer."""

import jax
import jax.numpy as jnp

from model.routing_rule import Routing

_LEAST_SUM = 1e-20  # as DeepSeek's released code has it, where all chosen scores round to 0


def shares(
    products: jax.Array,
    bias: jax.Array | None,
    routing: Routing,
    *,
    chosen: int,
    renormalise: bool,
) -> jax.Array:
    """Each expert's share of each token, 0 for experts that are not chosen.

    Args:
      products: the router's, [..., E] float32.
      bias: [E] float32 where the routing has one.
      routing: the rule.
      chosen: k, experts per token.
      renormalise: divide the shares by their sum.

    Returns:
      [..., E] float32.
    """
    if routing.score == "sigmoid":
        scores = jax.nn.sigmoid(products)
    else:
        scores = jax.nn.softmax(products, axis=-1)
    ranked = scores if bias is None else scores + bias
    if routing.chosen_groups < routing.groups:
        ranked = jnp.where(_in_best_groups(ranked, routing), ranked, -jnp.inf)
    _, experts = jax.lax.top_k(ranked, chosen)  # [..., k]
    taken = jnp.any(experts[..., None] == jnp.arange(products.shape[-1]), axis=-2)
    best = jnp.where(taken, scores, 0.0)
    if renormalise:
        best = best / (jnp.sum(best, axis=-1, keepdims=True) + _LEAST_SUM)
    return best * routing.scale


def _in_best_groups(ranked: jax.Array, routing: Routing) -> jax.Array:
    """Whether each expert is in one of its token's best groups, [..., E]."""
    grouped = ranked.reshape(*ranked.shape[:-1], routing.groups, -1)
    by_group = jnp.sum(jax.lax.top_k(grouped, routing.group_scores)[0], axis=-1)
    _, best = jax.lax.top_k(by_group, routing.chosen_groups)
    taken = jnp.any(best[..., None] == jnp.arange(routing.groups), axis=-2)  # [..., groups]
    return jnp.repeat(taken, grouped.shape[-1], axis=-1)
