"""Embeddings that every layer has for itself, beside the one that the first layer reads (Gemma 4).

A table has a row for each token with a few numbers for every layer. They are averaged with a
projection of the token's first embedding; after its MLP each layer gates them by its own stream and
adds what a projection makes of them. Only looked-up rows of the large table are read. Source:
`modeling_gemma4.py` of https://github.com/huggingface/transformers ("per-layer embeddings").
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.declarations import declare, declare_matrix, normal
from model.dtypes import Dtypes
from model.linear import project
from model.mlp import GATES
from model.norm import Norm
from sharding.collectives import look_up
from sharding.placement import Placement


class LayerInputs(nnx.Module):
    """The table for all layers, and the projection of the first embedding."""

    def __init__(self, config: ModelConfig, dtypes: Dtypes):
        self.weight = declare(config, "VP", dtypes.plain, normal(0.02))
        self.projection = declare_matrix(config, dtypes, "P", "D")
        self.norm = Norm(config, "p")
        self.width, self.d_model = config.layer_inputs, config.d_model

    def __call__(self, tokens: jax.Array, x: jax.Array, placement: Placement) -> jax.Array:
        """What each layer has of its own.

        Args:
          tokens: [B, T] int32, whole on every device.
          x: [B, T, R], their embeddings as the first layer reads them.
          placement: shardings.

        Returns:
          [B, T, layers, p], divided over the batch alone.
        """
        with jax.named_scope("layer_inputs"):
            rows = look_up(self.weight[...], tokens, placement.activations("BTP"))
            (projected,), _ = project(x, [self.projection], placement)  # [B, T, P]
            rows, projected = (
                part.reshape(*part.shape[:2], -1, self.width).astype(x.dtype)
                for part in (rows, projected)
            )
            normed = self.norm(projected * jnp.asarray(self.d_model**-0.5, x.dtype))
            rows = rows * jnp.asarray(math.sqrt(self.width), x.dtype)
            return (normed + rows) * jnp.asarray(2**-0.5, x.dtype)


class LayerInput(nnx.Module):
    """One layer's gate of its own input, and the projection of that to the residual stream."""

    def __init__(self, config: ModelConfig, dtypes: Dtypes):
        self.gate = declare_matrix(config, dtypes, "p", "D")
        self.projection = declare_matrix(config, dtypes, "D", "p")
        self.norm_after = Norm(config)
        self.activation = config.activation

    def __call__(self, x: jax.Array, given: jax.Array, placement: Placement) -> jax.Array:
        """x: [B, T, R], given: [B, T, p] -> [B, T, R], to be added to x."""
        with jax.named_scope("layer_inputs"):
            (gate,), _ = project(x, [self.gate], placement)  # [B, T, p]
            (y,), _ = project(GATES[self.activation](gate, given), [self.projection], placement)
            return self.norm_after(y)
