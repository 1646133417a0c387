"""Sparse experts: a router sends each token to k of E gated MLPs (Shazeer et al. 2017).

Softmax routing as in Mixtral (Jiang et al. 2024, section 2.1) and Qwen3 (Qwen Team 2025). Dropless:
however many tokens choose one expert, each gets its answer, so a token's output depends on that
token alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.linear import linear
from model.mlp import ACTIVATIONS
from model.parameters import declare, normal
from sharding.collectives import reshard
from sharding.placement import Axes, Placement, used_axes

Join = Callable[[jax.Array], jax.Array]
"""Completes the sum over d_model where mesh axes divide it."""


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
          [B, T, R], and how many distinct experts the real tokens chose, int32.
        """
        with jax.named_scope("mixture"):
            share = self._route(x, placement)  # [B, T, E]
            chosen = (share > 0) & real[:, :, None]
            touched = jnp.sum(jnp.any(chosen, axis=(0, 1)), dtype=jnp.int32)
            return self._apply(x, share, placement), touched

    def _route(self, x: jax.Array, placement: Placement) -> jax.Array:
        """x: [B, T, D] -> each expert's share of each token, [B, T, E] float32, 0 if not chosen."""
        with jax.named_scope("router"):
            router = reshard(self.router[...], placement.use("E", "D"))
            spec = placement.activations("B", "T", None)
            scores = linear(router, x, spec, dtype=jnp.float32)
            probabilities = jax.nn.softmax(scores, axis=-1)
            best, which = jax.lax.top_k(probabilities, self.chosen)  # [B, T, k]
            if self.renormalise:
                best = best / jnp.sum(best, axis=-1, keepdims=True)
            experts = jnp.arange(scores.shape[-1])
            return jnp.sum(jnp.where(which[..., None] == experts, best[..., None], 0.0), axis=-2)

    def _apply(self, x: jax.Array, share: jax.Array, placement: Placement) -> jax.Array:
        """x: [B, T, D], share: [B, T, E] -> [B, T, R]."""
        gate_up, down = (
            reshard(param[...], placement.use(*param.axes)) for param in (self.gate_up, self.down)
        )
        inputs, hidden = (used_axes(placement.use(axis)) for axis in "DF")
        whole, residual = placement.contracted("B", "T", "D"), placement.activations("B", "T", "R")
        scattered = _further(used_axes(placement.activations("R")), inputs, hidden)
        summed = tuple(axis for axis in hidden if axis not in scattered)

        def local(x, share, gate_up, down):
            flat, shares = x.reshape(-1, x.shape[-1]), share.reshape(-1, share.shape[-1])

            def join(both):  # {inputs unsummed}
                return jax.lax.psum(both, inputs) if inputs else both

            def on_tpu(*arrays):
                return grouped(*arrays, self.chosen, self.activation, join)

            def elsewhere(*arrays):
                return touched_only(*arrays, self.activation, join)

            out = jax.lax.platform_dependent(
                flat, shares, gate_up, down, tpu=on_tpu, default=elsewhere
            )  # [N, D] {hidden unsummed}
            if summed:
                out = jax.lax.psum(out, summed)
            if scattered:
                out = jax.lax.psum_scatter(out, scattered, scatter_dimension=1, tiled=True)
            return out.astype(x.dtype).reshape(*x.shape[:2], -1)

        batch = residual[0]
        out = jax.P(batch, None, (*inputs, *scattered) or None)
        y = jax.shard_map(
            local,
            in_specs=(
                whole,
                jax.P(batch, None, None),
                jax.typeof(gate_up).sharding.spec,
                jax.typeof(down).sharding.spec,
            ),
            out_specs=out,
            check_vma=False,
        )(x, share, gate_up, down)
        return reshard(y, residual)


def _further(residual: Axes, inputs: Axes, hidden: Axes) -> Axes:
    """Mesh axes over which the sum over `hidden` can be scattered towards the residual stream."""
    further = residual[len(inputs) :]
    return further if residual[: len(inputs)] == inputs and set(further) <= set(hidden) else ()


def grouped(
    x: jax.Array,
    share: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    chosen: int,
    activation: str,
    join: Join = lambda both: both,
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
      join: completes gate and up.

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

    both = join(matmul(x[order // chosen], gate_up.reshape(experts, 2 * width, d_model)))
    hidden = ACTIVATIONS[activation](both[:, :width]) * both[:, width:]  # [N * k, F]
    rows = matmul(hidden.astype(x.dtype), down) * weight[order, None]  # [N * k, D]
    return jnp.zeros((x.shape[0], d_model), jnp.float32).at[order // chosen].add(rows)


def touched_only(
    x: jax.Array,
    share: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    activation: str,
    join: Join = lambda both: both,
) -> jax.Array:
    """The same sum, expert by expert, leaving out those that no token chose.

    For backends without a grouped matmul: a decode step reads only the experts it touches.
    Arguments and result as in `grouped`.
    """

    def add(expert: jax.Array, total: jax.Array) -> jax.Array:
        into = jax.lax.dynamic_index_in_dim(gate_up, expert, keepdims=False)  # [2, F, D]
        back = jax.lax.dynamic_index_in_dim(down, expert, keepdims=False)  # [D, F]
        both = join(jnp.einsum("cfd,nd->ncf", into, x, preferred_element_type=jnp.float32))
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
