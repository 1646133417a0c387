"""Sparse experts: a router sends each token to k of E gated MLPs (Shazeer et al. 2017).

Softmax routing as in Mixtral (Jiang et al. 2024, section 2.1) and Qwen3 (Qwen Team 2025). Dropless:
however many tokens choose one expert, each gets its answer, so a token's output depends on that
token alone.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.linear import linear
from model.mlp import ACTIVATIONS
from model.parameters import declare, normal
from sharding.layout import Placement, used_axes


class Mixture(nnx.Module):
    """E gated MLPs and the router that weighs k of them for each token."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype):
        D, F, E = config.d_model, config.d_ff, config.experts
        into = normal(D**-0.5)
        self.router = declare((E, D), ("E", "D"), dtype, into)
        self.gate_up = declare((E, 2, F, D), ("E", "C", "F", "D"), dtype, into)
        self.down = declare((E, D, F), ("E", "D", "F"), dtype, normal(F**-0.5))
        self.chosen = config.experts_per_token
        self.renormalise = config.renormalise_experts
        self.activation = config.activation

    def __call__(
        self, x: jax.Array, real: jax.Array, placement: Placement
    ) -> tuple[jax.Array, jax.Array]:
        """Sends every token through its experts.

        Args:
          x: [B, T, D], normed.
          real: [B, T], False for padding.
          placement: shardings.

        Returns:
          [B, T, D], and how many distinct experts the real tokens chose, int32.
        """
        with jax.named_scope("mixture"):
            share = self._route(x, placement)  # [B, T, E]
            chosen = (share > 0) & real[:, :, None]
            touched = jnp.sum(jnp.any(chosen, axis=(0, 1)), dtype=jnp.int32)
            return self._apply(x, share, placement), touched

    def _route(self, x: jax.Array, placement: Placement) -> jax.Array:
        """x: [B, T, D] -> each expert's share of each token, [B, T, E] float32, 0 if not chosen."""
        with jax.named_scope("router"):
            spec = placement.activations("B", "T", "E")
            scores = linear(self.router[...], x, spec, dtype=jnp.float32)
            probabilities = jax.nn.softmax(scores, axis=-1)
            best, which = jax.lax.top_k(probabilities, self.chosen)  # [B, T, k]
            if self.renormalise:
                best = best / jnp.sum(best, axis=-1, keepdims=True)
            experts = jnp.arange(scores.shape[-1])
            return jnp.sum(jnp.where(which[..., None] == experts, best[..., None], 0.0), axis=-2)

    def _apply(self, x: jax.Array, share: jax.Array, placement: Placement) -> jax.Array:
        tokens, act = placement.activations("B", "T", "D"), placement.activations("B", "T", "E")
        gate_up, down = placement.weights("E", "C", "F", "D"), placement.weights("E", "D", "F")

        def local(x, share, gate_up, down):
            flat, shares = x.reshape(-1, x.shape[-1]), share.reshape(-1, share.shape[-1])

            def on_tpu(*arrays):
                return grouped(*arrays, self.chosen, self.activation)

            def elsewhere(*arrays):
                return touched_only(*arrays, self.activation)

            out = jax.lax.platform_dependent(
                flat, shares, gate_up, down, tpu=on_tpu, default=elsewhere
            )  # [N, D] {F unsummed}
            axes = used_axes(placement.weights("F"))
            return (jax.lax.psum(out, axes) if axes else out).astype(x.dtype).reshape(x.shape)

        return jax.shard_map(
            local, in_specs=(tokens, act, gate_up, down), out_specs=tokens, check_vma=False
        )(x, share, self.gate_up[...], self.down[...])


def grouped(
    x: jax.Array,
    share: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    chosen: int,
    activation: str,
) -> jax.Array:
    """The experts' weighted sum, tokens sorted by expert, each expert's in one matmul.

    `jax.lax.ragged_dot_general` reads only experts that have tokens where the backend has a grouped
    matmul, as TPU does; XLA:CPU falls back to a dense product with every expert.

    Args:
      x: [N, D].
      share: [N, E] float32, 0 for experts not chosen.
      gate_up: [E, 2, F, D].
      down: [E, D, F].
      chosen: k, experts per token.
      activation: of the gate.

    Returns:
      [N, D] float32.
    """
    experts, _, width, d_model = gate_up.shape
    weight, which = (part.reshape(-1) for part in jax.lax.top_k(share, chosen))  # [N * k]
    order = jnp.argsort(which, stable=True)
    sizes = jnp.bincount(which, length=experts).astype(jnp.int32)
    contract_last = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])

    def matmul(rows: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot_general(
            rows, weights, sizes, contract_last, preferred_element_type=jnp.float32
        )

    both = matmul(x[order // chosen], gate_up.reshape(experts, 2 * width, d_model))
    hidden = ACTIVATIONS[activation](both[:, :width]) * both[:, width:]  # [N * k, F]
    rows = matmul(hidden.astype(x.dtype), down) * weight[order, None]  # [N * k, D]
    return jnp.zeros((x.shape[0], d_model), jnp.float32).at[order // chosen].add(rows)


def touched_only(
    x: jax.Array, share: jax.Array, gate_up: jax.Array, down: jax.Array, activation: str
) -> jax.Array:
    """The same sum, expert by expert, leaving out those that no token chose.

    For backends without a grouped matmul: a decode step reads only the experts it touches.
    Arguments and result as in `grouped`.
    """

    def add(expert: jax.Array, total: jax.Array) -> jax.Array:
        into = jax.lax.dynamic_index_in_dim(gate_up, expert, keepdims=False)  # [2, F, D]
        back = jax.lax.dynamic_index_in_dim(down, expert, keepdims=False)  # [D, F]
        both = jnp.einsum("cfd,nd->ncf", into, x, preferred_element_type=jnp.float32)
        hidden = ACTIVATIONS[activation](both[:, 0]) * both[:, 1]
        rows = jnp.einsum(
            "df,nf->nd", back, hidden.astype(x.dtype), preferred_element_type=jnp.float32
        )
        return total + rows * jax.lax.dynamic_slice_in_dim(share, expert, 1, axis=1)

    def visit(expert: jax.Array, total: jax.Array) -> jax.Array:
        wanted = jnp.any(jax.lax.dynamic_index_in_dim(share, expert, axis=1) > 0)
        return jax.lax.cond(wanted, add, lambda _, total: total, expert, total)

    zeros = jnp.zeros(x.shape, jnp.float32)
    return jax.lax.fori_loop(0, share.shape[1], visit, zeros)
