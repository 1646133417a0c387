"""The gated MLP: SwiGLU and GeGLU (Shazeer 2020), and the clipped SwiGLU of gpt-oss."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.declarations import declare, declare_matrix, normal
from model.dtypes import Dtypes
from model.linear import project
from sharding.collectives import reshard
from sharding.placement import Placement

STEEPNESS, LIMIT = 1.702, 7.0
"""Of the clipped SwiGLU: `swiglu_alpha` and `swiglu_limit` of gpt-oss's `config.json`."""


def clipped_swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """``(up + 1) * gate * sigmoid(1.702 gate)``, the gate at most 7 and up from -7 to 7.

    Source: OpenAI 2025 (gpt-oss model card, section 2.2, "a clamping and a residual connection"),
    and `modeling_gpt_oss.py` of https://github.com/huggingface/transformers.
    """
    gate, up = jnp.minimum(gate, LIMIT), jnp.clip(up, -LIMIT, LIMIT)
    return (up + 1) * gate * jax.nn.sigmoid(STEEPNESS * gate)


def _gated_by(
    activation: Callable[[jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda gate, up: activation(gate) * up


GATES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "silu": _gated_by(jax.nn.silu),
    "gelu_tanh": _gated_by(functools.partial(jax.nn.gelu, approximate=True)),
    "clipped_silu": clipped_swiglu,
}
"""The hidden layer of a gate and what it gates, by the name of the activation."""


class MLP(nnx.Module):
    """``down(activation(gate(x)) * up(x))``; gate and up are one array, read in one stream."""

    def __init__(self, config: ModelConfig, dtypes: Dtypes, width: str = "F", gated: bool = False):
        """Declares the matrices.

        Args:
          config: the model.
          dtypes: how its numbers are stored.
          width: the letter of their hidden width.
          gated: the answer is multiplied by the sigmoid of one number for each token.
        """
        self.gate_up = declare_matrix(config, dtypes, "C" + width, "D")
        self.down = declare_matrix(config, dtypes, "D", width)
        self.activation, self.has_bias = config.activation, config.mlp_bias
        self.gated = gated
        if gated:
            self.gate = declare(config, "aD", dtypes.plain, normal(config.d_model**-0.5))
        if config.mlp_bias:
            zeros = jax.nn.initializers.zeros
            self.gate_up_bias = declare(config, "C" + width, dtypes.plain, zeros)
            self.down_bias = declare(config, "R", dtypes.plain, zeros)

    def __call__(self, x: jax.Array, placement: Placement) -> jax.Array:
        """x: [B, T, D], divided in any way -> [B, T, R]."""
        with jax.named_scope("mlp"):
            gates = [self.gate] if self.gated else []
            (gate_up, *own), _ = project(x, [self.gate_up, *gates], placement)  # [B, T, 2, F]
            if self.has_bias:
                bias = reshard(self.gate_up_bias[...], placement.activations("CF"))
                gate_up = gate_up + bias.astype(gate_up.dtype)
            hidden = GATES[self.activation](gate_up[:, :, 0], gate_up[:, :, 1])  # [B, T, F]
            (y,), _ = project(hidden, [self.down], placement)  # [B, T, R]
            for gate in own:  # [B, T, 1]
                y = (y * jax.nn.sigmoid(gate.astype(jnp.float32))).astype(y.dtype)
            return y + self.down_bias[...].astype(y.dtype) if self.has_bias else y
