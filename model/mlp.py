"""The gated MLP: SwiGLU and GeGLU (Shazeer 2020)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.linear import linear
from model.parameters import declare, normal
from sharding.layout import Placement

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class MLP(nnx.Module):
    """``down(activation(gate(x)) * up(x))``; gate and up are one array, read in one stream."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        D, F = config.d_model, config.d_ff
        into = normal(D**-0.5)
        back = normal(F**-0.5)
        self.gate_up = declare((2, F, D), ("C", "F", "D"), dtype, into)
        self.down = declare((D, F), ("D", "F"), dtype, back)
        self.activation = config.activation

    def __call__(self, x: jax.Array, placement: Placement) -> jax.Array:
        """x: [B, T, D] -> [B, T, D]."""
        act = placement.activations
        with jax.named_scope("mlp"):
            both = linear(self.gate_up[...], x, act("B", "T", "C", "F"))  # [B, T, 2, F]
            hidden = ACTIVATIONS[self.activation](both[:, :, 0]) * both[:, :, 1]  # [B, T, F]
            return linear(self.down[...], hidden, act("B", "T", "D"))
