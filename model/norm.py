"""Normalisation of the residual stream, and of queries and keys, computed in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.declarations import declare


class Norm(nnx.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019), or layer norm without bias (PaLM)."""

    def __init__(self, config: ModelConfig, axis: str = "R"):
        # In float32 always: Gemma's files hold scale - 1, which loses bits as a bfloat16 scale.
        self.scale = declare(config, axis, jnp.float32, jax.nn.initializers.ones)
        self.epsilon = config.norm_epsilon
        self.centred = config.norm == "layer"

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., D] -> [..., D], each row scaled to unit mean square."""
        with jax.named_scope("norm"):
            y = x.astype(jnp.float32)
            if self.centred:
                y = y - jnp.mean(y, axis=-1, keepdims=True)
            y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
            return (self.scale[...] * y).astype(x.dtype)
