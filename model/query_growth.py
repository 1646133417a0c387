"""Queries that grow with their position, where no rotation tells positions apart (Llama 4).

A softmax over more keys is flatter, which larger scores make up for: Nakanishi 2025
(Scalable-Softmax), in steps as `modeling_llama4.py` of https://github.com/huggingface/transformers
has it.
"""

import jax
import jax.numpy as jnp


def grown(q: jax.Array, positions: jax.Array, growth: tuple[int, float]) -> jax.Array:
    """Queries times a factor that is 1 up to a length, and from there on grows with its multiples.

    Args:
      q: [B, T, K, G, h].
      positions: [B, T] int32, divided as the queries are.
      growth: the length and the slope, as in `ModelConfig.query_growth`.

    Returns:
      The same shape and dtype.
    """
    length, slope = growth
    multiples = ((positions + 1) // length).astype(jnp.float32)
    factor = 1.0 + slope * jnp.log1p(multiples)  # [B, T]
    return (q.astype(jnp.float32) * factor[:, :, None, None, None]).astype(q.dtype)
