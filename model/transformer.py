"""The decoder: embedding, blocks, final norm, unembedding.

Built abstract; a step merges the structure with a plain dict of arrays inside `jax.jit`::

    structure, _ = nnx.split(Transformer(config, dtypes))
    nnx.merge(structure, parameters)(tokens, positions, cache, placement)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Attention, LayerCache, Lending, Lent
from model.borrowed_attention import BorrowedAttention
from model.cache import PADDING, KVCache
from model.config import ModelConfig
from model.declarations import declare, normal
from model.dtypes import Dtypes
from model.latent_attention import LatentAttention
from model.layer_inputs import LayerInput, LayerInputs
from model.linear import multiply_tokens
from model.mixture import Mixture
from model.mlp import MLP
from model.norm import Norm
from model.rotary import Rotation, rotation
from sharding.collectives import look_up, reshard
from sharding.placement import Placement


class Output(NamedTuple):
    """What a forward pass gives.

    Attributes:
      hidden: states before the unembedding, [B, T, R].
      cache: the updated cache.
      experts_touched: int32, distinct experts that real tokens chose in each layer that has
        experts; None for a model without.
    """

    hidden: jax.Array
    cache: KVCache
    experts_touched: jax.Array | None


class Embedding(nnx.Module):
    """A [V, D] table: rows looked up on the way in, or multiplied by on the way out."""

    def __init__(self, config: ModelConfig, dtypes: Dtypes):
        self.weight = declare(config, "VD", dtypes.plain, normal(0.02))
        self.dtype = dtypes.dtype

    def look_up(self, tokens: jax.Array, placement: Placement) -> jax.Array:
        """tokens: [B, T] int32, whole on every device -> [B, T, R]."""
        with jax.named_scope("embedding"):
            rows = look_up(self.weight[...], tokens, placement.activations("BTR"))
            return rows.astype(self.dtype)

    def logits(self, x: jax.Array, placement: Placement) -> jax.Array:
        """x: [B, T, R] -> [B, T, V], float32."""
        with jax.named_scope("unembedding"):
            logits, _ = multiply_tokens(
                x,
                self.weight[...],
                use=placement.weights("VD"),
                contracted=placement.beside_stored("BTD"),
                result=jax.P(placement.beside_stored("B")[0], None, placement.activations("V")[0]),
                placement=placement,
                dtype=jnp.float32,
            )
            return logits


class Block(nnx.Module):
    """Attention and MLP (or experts), each behind its norm; a parallel block has one for both.

    Models differ in whether each has a norm before it, after it or both.
    """

    def __init__(self, config: ModelConfig, dtypes: Dtypes, layer: int):
        by_kernel = "norm" in dtypes.gpu_kernels
        if config.norm_before:
            self.attention_norm = Norm(config, gpu_kernel=by_kernel)
        if config.latent:
            self.attention = LatentAttention(config, dtypes)
        else:
            form = BorrowedAttention if config.borrows(layer) else Attention
            self.attention = form(config, dtypes, layer)
        if config.norm_before and not config.parallel_block:
            self.mlp_norm = Norm(config, gpu_kernel=by_kernel)
        if config.norm_after:
            self.attention_norm_after = Norm(config)
            self.mlp_norm_after = Norm(config)
        self.chooses = config.has_experts(layer)
        self.apart = self.chooses and config.experts_apart
        if self.chooses:
            self.mlp = Mixture(config, dtypes)
            if config.shared_d_ff:
                self.shared = MLP(config, dtypes, "s")
            if self.apart:
                self.experts_norm = Norm(config)
                self.experts_norm_after, self.shared_norm_after = Norm(config), Norm(config)
        else:
            self.mlp = MLP(config, dtypes, config.mlp_width(layer))
        if config.layer_inputs:
            self.input = LayerInput(config, dtypes)
        if config.block_scale:
            self.block_scale = declare(config, "", dtypes.plain, jax.nn.initializers.ones)
        self.config = config

    def __call__(
        self,
        x: jax.Array,
        more: jax.Array | None,
        cache: LayerCache | Lent,
        positions: jax.Array,
        angles: Rotation | None,
        placement: Placement,
        continues: bool,
        given: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None, LayerCache | Lending, jax.Array | None]:
        """Runs the block over x + more, whose sum belongs to the norm of whoever reads it.

        Args:
          x: [B, T, R].
          more: what the block before adds to it, if there is one.
          cache: this layer's keys and values, or those that it borrows.
          positions: [B, T] int32.
          angles: rotary angles of those positions; None in a layer without.
          placement: shardings.
          continues: of prompts, whether the cache holds tokens before them.
          given: [B, T, p], the layer's own input, if layers have one.

        Returns:
          [B, T, R], what is to be added to it, if anything is, the updated cache, the experts
          chosen, [B, E].
        """
        x, y = self._read(x, more, "attention_norm")  # [B, T, R]
        # y: [B, T, D]
        mixed, cache, y = self.attention(y, cache, positions, angles, placement, continues)
        mixed = self._added(mixed, "attention_norm_after")
        real = reshard(positions < PADDING, placement.activations("BT"))
        if self.config.parallel_block or self.apart:
            x = x + mixed
        else:
            x, y = self._read(x, mixed, "mlp_norm")  # [B, T, R]
        if self.apart:
            z, touched = self._side_by_side(x, real, placement)
        else:
            z, touched = self._feed_forward(y, real, placement)
        z = self._added(z, "mlp_norm_after")
        return *self._finish(x, z, given, placement), cache, touched

    def _finish(
        self, x: jax.Array, z: jax.Array, given: jax.Array | None, placement: Placement
    ) -> tuple[jax.Array, jax.Array | None]:
        """x and what the MLP adds to it, z, each [B, T, R] -> those that leave the block."""
        if given is not None:
            x = x + z
            z = self.input(x, given, placement)
        if not self.config.block_scale:
            return x, z
        return (x + z) * self.block_scale[...].astype(x.dtype), None

    def _read(self, x: jax.Array, more: jax.Array | None, norm: str) -> tuple[jax.Array, jax.Array]:
        """x + more, each [B, T, R], and what attention or MLP reads of it: that norm's, or it."""
        if self.config.norm_before:
            return getattr(self, norm).of_sum(x, more)
        x = x if more is None else x + more
        return x, x

    def _added(self, y: jax.Array, norm: str) -> jax.Array:
        """What attention or MLP adds to the residual stream of its output y, [B, T, R]."""
        if self.config.norm_after:
            y = getattr(self, norm)(y)
        scale = self.config.residual_scale
        # In float32, as of 16 bits a factor like 0.22 would be a tenth of a percent off.
        return y if scale == 1 else (y.astype(jnp.float32) * scale).astype(y.dtype)

    def _side_by_side(
        self, x: jax.Array, real: jax.Array, placement: Placement
    ) -> tuple[jax.Array, jax.Array]:
        """x: [B, T, R] -> what an MLP and experts, each with its norms, make, and experts touched.

        The router and both norms before them read the same normed numbers, each with its own scale.
        """
        with jax.named_scope("norm"):
            unit = self.mlp_norm.unit(x)
            y, z = (norm.scaled(unit, x.dtype) for norm in (self.mlp_norm, self.experts_norm))
        z, touched = self.mlp(z, real, placement, unit)
        y = self.shared_norm_after(self.shared(y, placement))
        return y + self.experts_norm_after(z), touched

    def _feed_forward(
        self, x: jax.Array, real: jax.Array, placement: Placement
    ) -> tuple[jax.Array, jax.Array | None]:
        """x: [B, T, D], divided in any way -> [B, T, R], the number of experts touched."""
        if not self.chooses:
            return self.mlp(x, placement), None
        y, touched = self.mlp(x, real, placement)
        return y + self.shared(x, placement) if self.config.shared_d_ff else y, touched


class Transformer(nnx.Module):
    """A decoder-only transformer of whatever family `config` describes."""

    def __init__(self, config: ModelConfig, dtypes: Dtypes):
        """Declares every parameter.

        Args:
          config: the model.
          dtypes: how its numbers are stored.
        """
        self.config, self.dtypes = config, dtypes
        self.embedding = Embedding(config, dtypes)
        if config.layer_inputs:
            self.layer_inputs = LayerInputs(config, dtypes)
        # Unrolled: a scan over stacked weights copies each layer's slice on CPU and GPU.
        self.layers = nnx.List([Block(config, dtypes, n) for n in range(config.layers)])
        self.final_norm = Norm(config, gpu_kernel="norm" in dtypes.gpu_kernels)
        if not config.tied_embedding:
            self.unembedding = Embedding(config, dtypes)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        cache: KVCache,
        placement: Placement,
        continues: bool = False,
    ) -> "Output":
        """Runs every block over new tokens.

        Args:
          tokens: [B, T] int32, whole on every device.
          positions: [B, T] int32, whole likewise: each token's position in its sequence, one after
            the other; `PADDING` fills rows.
          cache: earlier tokens' keys and values; its memory is reused.
          placement: shardings.
          continues: with T > 1, whether there are earlier tokens; the first position is 0 if not.
        """
        x = self.embedding.look_up(tokens, placement)
        if self.config.embedding_scale != 1:
            x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
        angles_by_window = self._rotary_angles(reshard(positions, placement.attention("BT")))
        given, seen = None, self._placements(placement)
        if self.config.layer_inputs:
            given = self.layer_inputs(tokens, x, placement)  # [B, T, layers, p]
        more, layers, touched, lent = None, [], [], {}
        for number, block in enumerate(self.layers):
            with jax.named_scope(f"layer_{number}"):
                layer = (cache.keys[number], cache.values[number])
                if self.config.borrows(number):
                    layer = lent[self.config.cache_layer(number)]
                angles = angles_by_window[self.config.has_window(number)]
                angles = angles if self.config.rotates(number) else None
                x, more, layer, experts = block(
                    x,
                    more,
                    layer,
                    positions,
                    angles,
                    seen[self.config.is_full(number)],
                    continues,
                    None if given is None else given[:, :, number],
                )
                if isinstance(layer, Lending):
                    layer, lent[number] = layer
                layers.append(layer)
                touched += [experts] if block.chooses else []
        keys, values = zip(*layers, strict=True)
        experts = self._count(touched) if self.config.experts else None
        _, hidden = self.final_norm.of_sum(x, more)
        return Output(hidden, KVCache(keys, values), experts)

    def _count(self, chosen: list[jax.Array]) -> jax.Array:
        """How many experts each layer's tokens chose, all layers at once: one collective a step.

        Args:
          chosen: [B, E] bool for each of the L layers that have experts.

        Returns:
          [L] int32.
        """
        with jax.named_scope("experts_touched"):
            touched = jnp.max(jnp.stack(chosen).astype(jnp.int32), axis=1)  # [L, E]
            return jnp.sum(touched, axis=-1)

    def _rotary_angles(self, positions: jax.Array) -> dict[bool, Rotation]:
        """Rotary angles of the layers without a window and of those with one."""
        config = self.config
        if config.full_attention:
            numbers = {config.has_window(n): n for n in range(config.layers)}
            return {
                local: rotation(config.at(number), positions, local)
                for local, number in numbers.items()
            }
        everywhere = rotation(config, positions)
        if not config.local_rotary_base:
            return {False: everywhere, True: everywhere}
        return {False: everywhere, True: rotation(config, positions, local=True)}

    def _placements(self, placement: Placement) -> dict[bool, Placement]:
        """Shardings as layers see them whose heads are the model's, and as the others do."""
        numbers = {self.config.is_full(n): n for n in range(self.config.layers)}
        return {
            full: placement.with_sizes(self.config.at(number).sizes) if full else placement
            for full, number in numbers.items()
        }

    def logits(self, x: jax.Array, placement: Placement) -> jax.Array:
        """Scores over the vocabulary; x: [B, T, R] -> [B, T, V], float32."""
        table = self.embedding if self.config.tied_embedding else self.unembedding
        logits = table.logits(x, placement)
        if self.config.logit_scale != 1:
            logits = logits * self.config.logit_scale
        cap = self.config.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits
