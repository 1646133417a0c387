"""The gated MLP: SwiGLU and GeGLU (Shazeer 2020)."""

import functools

import jax
from flax import nnx

from model.config import ModelConfig
from model.declarations import declare, declare_matrix
from model.dtypes import Dtypes
from model.linear import project
from sharding.collectives import reshard
from sharding.placement import Placement

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class MLP(nnx.Module):
    """``down(activation(gate(x)) * up(x))``; gate and up are one array, read in one stream."""

    def __init__(self, config: ModelConfig, dtypes: Dtypes, width: str = "F"):
        """Declares the matrices; `width` is the letter of their hidden width."""
        self.gate_up = declare_matrix(config, dtypes, "C" + width, "D")
        self.down = declare_matrix(config, dtypes, "D", width)
        self.activation, self.has_bias = config.activation, config.mlp_bias
        if config.mlp_bias:
            zeros = jax.nn.initializers.zeros
            self.gate_up_bias = declare(config, "C" + width, dtypes.plain, zeros)
            self.down_bias = declare(config, "R", dtypes.plain, zeros)

    def __call__(self, x: jax.Array, placement: Placement) -> jax.Array:
        """x: [B, T, D], divided in any way -> [B, T, R]."""
        with jax.named_scope("mlp"):
            (gate_up,), _ = project(x, [self.gate_up], placement)  # [B, T, 2, F]
            if self.has_bias:
                bias = reshard(self.gate_up_bias[...], placement.activations("CF"))
                gate_up = gate_up + bias.astype(gate_up.dtype)
            hidden = ACTIVATIONS[self.activation](gate_up[:, :, 0]) * gate_up[:, :, 1]  # [B, T, F]
            (y,), _ = project(hidden, [self.down], placement)  # [B, T, R]
            return y + self.down_bias[...].astype(y.dtype) if self.has_bias else y
