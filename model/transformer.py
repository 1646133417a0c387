"""The decoder: embedding, blocks, final norm, unembedding.

Built abstract; a step merges the structure with a plain dict of arrays inside `jax.jit`::

    structure, _ = nnx.split(Transformer(config, dtype))
    nnx.merge(structure, parameters)(tokens, positions, cache, placement)
"""

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Attention, LayerCache
from model.cache import KVCache
from model.config import ModelConfig
from model.linear import linear
from model.mlp import MLP
from model.norm import Norm
from model.parameters import declare, normal
from model.rotary import Rotation, rotation
from sharding.layout import Placement


class Embedding(nnx.Module):
    """A [V, D] table: rows looked up on the way in, or multiplied by on the way out."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        shape, init = (config.vocabulary, config.d_model), normal(0.02)
        self.weight = declare(shape, ("V", "D"), dtype, init)

    def look_up(self, tokens: jax.Array, placement: Placement) -> jax.Array:
        """tokens: [B, T] int32 -> [B, T, D]."""
        with jax.named_scope("embedding"):
            spec = placement.activations("B", "T", "D")
            return self.weight[...].at[tokens].get(out_sharding=spec)

    def logits(self, x: jax.Array, placement: Placement) -> jax.Array:
        """x: [B, T, D] -> [B, T, V], float32."""
        with jax.named_scope("unembedding"):
            spec = placement.activations("B", "T", "V")
            return linear(self.weight[...], x, spec, dtype=jnp.float32)


class Block(nnx.Module):
    """Attention and MLP, each behind its norm; in a parallel block both read one norm."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.attention_norm = Norm(config, dtype)
        self.attention = Attention(config, dtype)
        if not config.parallel_block:
            self.mlp_norm = Norm(config, dtype)
        self.mlp = MLP(config, dtype)
        self.parallel = config.parallel_block

    def __call__(
        self,
        x: jax.Array,
        cache: LayerCache,
        positions: jax.Array,
        turn: Rotation,
        placement: Placement,
        span: int | None,
    ) -> tuple[jax.Array, LayerCache]:
        """x: [B, T, D] -> [B, T, D] and this layer's updated cache."""
        y = self.attention_norm(x)
        mixed, cache = self.attention(y, cache, positions, turn, placement, span)
        if self.parallel:
            return x + mixed + self.mlp(y, placement), cache
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x), placement), cache


class Transformer(nnx.Module):
    """A decoder-only transformer of the Llama family, or PaLM's shape, as `config` says."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        self.config = config
        self.embedding = Embedding(config, dtype)
        # Unrolled: a scan over stacked weights copies each layer's slice on CPU and GPU.
        self.layers = nnx.List([Block(config, dtype) for _ in range(config.layers)])
        self.final_norm = Norm(config, dtype)
        if not config.tied_embedding:
            self.unembedding = Embedding(config, dtype)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        cache: KVCache,
        placement: Placement,
        span: int | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Runs every block over new tokens.

        Args:
          tokens: [B, T] int32.
          positions: [B, T] int32, each token's place in its sequence.
          cache: earlier tokens' keys and values; its memory is reused.
          placement: shardings.
          span: attend to the first `span` slots only, for prompts shorter than the cache.

        Returns:
          Hidden states before the unembedding, [B, T, D], and the updated cache.
        """
        x = self.embedding.look_up(tokens, placement)
        turn = rotation(self.config, positions)
        layers = []
        for number, block in enumerate(self.layers):
            with jax.named_scope(f"layer_{number}"):
                layer = (cache.keys[number], cache.values[number])
                x, layer = block(x, layer, positions, turn, placement, span)
                layers.append(layer)
        keys, values = zip(*layers, strict=True)
        return self.final_norm(x), KVCache(keys, values)

    def logits(self, x: jax.Array, placement: Placement) -> jax.Array:
        """Scores over the vocabulary; x: [B, T, D] -> [B, T, V], float32."""
        table = self.embedding if self.config.tied_embedding else self.unembedding
        return table.logits(x, placement)
