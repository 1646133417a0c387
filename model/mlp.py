"""The gated MLP, SwiGLU (Shazeer 2020)."""

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.linear import linear
from model.parameters import declare, normal
from sharding.layout import Placement


class MLP(nnx.Module):
    """``down(silu(gate(x)) * up(x))``; gate and up are one array, read in one stream."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        D, F = config.d_model, config.d_ff
        into = normal(D**-0.5)
        back = normal(F**-0.5)
        self.gate_up = declare((2, F, D), ("C", "F", "D"), dtype, into)
        self.down = declare((D, F), ("D", "F"), dtype, back)

    def __call__(self, x: jax.Array, placement: Placement) -> jax.Array:
        """x: [B, T, D] -> [B, T, D]."""
        act = placement.activations
        with jax.named_scope("mlp"):
            both = linear(self.gate_up[...], x, act("B", "T", "C", "F"))  # [B, T, 2, F]
            hidden = jax.nn.silu(both[:, :, 0]) * both[:, :, 1]  # [B, T, F]
            return linear(self.down[...], hidden, act("B", "T", "D"))
