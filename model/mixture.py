"""Sparse experts: a router sends each token to k of E gated MLPs (Shazeer et al. 2017).

`model.routing` has the rules by which it chooses. Dropless: however many tokens choose one expert,
each gets its answer, so a token's output depends on that token alone.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.declarations import declare, declare_matrix, normal
from model.dispatch import ExpertAxes, bring_back, by_destination, expert_axes, send, sums
from model.dtypes import Dtypes
from model.linear import linear
from model.mlp import ACTIVATIONS
from model.routing import shares
from sharding.collectives import reshard
from sharding.dot import dot
from sharding.layout import Axes
from sharding.placement import Placement, entry, used_axes
from sharding.platform_workarounds import by_platform
from sharding.quantization import QuantizedArray, Weight, divide, specs_of

Join = Callable[[jax.Array], jax.Array]
"""Completes the sum over d_model where mesh axes divide it."""


class Mixture(nnx.Module):
    """E gated MLPs and the router that weighs k of them for each token."""

    def __init__(self, config: ModelConfig, dtypes: Dtypes):
        self.router = declare(config, "eD", dtypes.plain, normal(config.d_model**-0.5))
        self.gate_up = declare_matrix(config, dtypes, "ECF", "D")
        self.down = declare_matrix(config, dtypes, "ED", "F")
        if config.routing.bias:
            self.router_bias = declare(config, "e", jnp.float32, jax.nn.initializers.zeros)
        self.chosen, self.routing = config.experts_per_token, config.routing
        self.renormalise = config.renormalise_experts
        self.activation = config.activation

    def __call__(
        self, x: jax.Array, real: jax.Array, placement: Placement
    ) -> tuple[jax.Array, jax.Array]:
        """Sends every token through its experts.

        Args:
          x: [B, T, D], normed, divided in any way.
          real: [B, T], False for padding.
          placement: shardings.

        Returns:
          [B, T, R], and which experts each sequence's real tokens chose, [B, E] bool.
        """
        with jax.named_scope("mixture"):
            axes = expert_axes(placement)
            x = reshard(x, jax.P(entry(axes.batch), None, entry(axes.inputs)))
            share = self._route(x, placement)  # [B, T, E]
            chosen = (share > 0) & real[:, :, None]
            return self._apply(x, share, axes, placement), jnp.any(chosen, axis=1)

    def _route(self, x: jax.Array, placement: Placement) -> jax.Array:
        """x: [B, T, D] -> each expert's share of each token, [B, T, E] float32, 0 if not chosen."""
        with jax.named_scope("router"):
            router = reshard(self.router[...], placement.use("eD"))
            x = reshard(x, placement.contracted("BTD"))
            spec = placement.activations("BT_")
            scores = linear(router, x, spec, dtype=jnp.float32)
            bias = self.router_bias[...] if self.routing.bias else None
            choose = functools.partial(
                shares, routing=self.routing, chosen=self.chosen, renormalise=self.renormalise
            )
            # On each chip by itself: of an array over the mesh XLA:CPU gathers the batch for top_k.
            return jax.shard_map(choose, in_specs=(spec, jax.P(None)), out_specs=spec)(scores, bias)

    def _apply(
        self, x: jax.Array, share: jax.Array, axes: ExpertAxes, placement: Placement
    ) -> jax.Array:
        """x: [B, T, D], share: [B, T, E] -> [B, T, R]."""
        gate_up, down = (
            divide(param[...], placement.use(param.axes), reshard)
            for param in (self.gate_up, self.down)
        )
        residual = placement.activations("BTR")
        scattered, summed = sums(axes, used_axes(placement.activations("R")))

        def local(x, share, gate_up, down):
            parts = by_destination(share.reshape(-1, share.shape[-1]), axes)
            tokens, parts = send(x.reshape(-1, x.shape[-1]), parts, axes.exchanged)
            out = self._answer(tokens, parts, gate_up, down, axes.inputs)
            out = bring_back(out, axes.exchanged, x.dtype)  # [N, D] {kept, hidden unsummed}
            if scattered:
                out = jax.lax.psum_scatter(out, scattered, scatter_dimension=1, tiled=True)
            if summed:
                out = jax.lax.psum(out, summed)
            return out.astype(x.dtype).reshape(*x.shape[:2], -1)

        arrays = (x, share, gate_up, down)
        y = jax.shard_map(
            local,
            in_specs=specs_of(arrays),
            out_specs=jax.P(residual[0], None, entry((*axes.inputs, *scattered))),
            check_vma=False,
        )(*arrays)
        return reshard(y, residual)

    def _answer(
        self, x: jax.Array, share: jax.Array, gate_up: Weight, down: Weight, inputs: Axes
    ) -> jax.Array:
        """What one chip's experts make of tokens, each by its share: [N, D] float32."""

        def join(sums: jax.Array) -> jax.Array:  # {inputs unsummed}
            return jax.lax.psum(sums, inputs) if inputs else sums

        def on_tpu(*arrays: jax.Array) -> jax.Array:
            return grouped(*arrays, self.chosen, self.activation, join)

        def on_others(*arrays: jax.Array) -> jax.Array:
            return touched_only(*arrays, self.activation, join)

        arrays = (x, share, gate_up, down)
        # A grouped matmul takes plain arrays: quantized ones would be held dequantized.
        if isinstance(gate_up, QuantizedArray):
            return on_others(*arrays)
        return by_platform(*arrays, tpu=on_tpu, default=on_others)


def grouped(
    x: jax.Array,
    share: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    chosen: int,
    activation: str,
    join: Join = lambda sums: sums,
) -> jax.Array:
    """The experts' weighted sum, tokens sorted by expert, each expert's in one matmul.

    `jax.lax.ragged_dot_general` reads only experts that have tokens where the backend has a grouped
    matmul, as TPU does; XLA:CPU falls back to a dense product with every expert. Rows of tokens
    that chose fewer than k of these experts come last, in no group.

    Args:
      x: [N, D].
      share: [N, E] float32, 0 for experts not chosen; these experts may be some of all.
      gate_up: [E, 2, F, D].
      down: [E, D, F].
      chosen: k, experts per token.
      activation: name of the gate's activation.
      join: completes gate and up.

    Returns:
      [N, D] float32.
    """
    experts, _, width, d_model = gate_up.shape
    chosen = min(chosen, experts)
    weight, expert_ids = (part.reshape(-1) for part in jax.lax.top_k(share, chosen))  # [N * k]
    expert_ids = jnp.where(weight > 0, expert_ids, experts)
    order = jnp.argsort(expert_ids, stable=True)
    sizes = jnp.bincount(expert_ids, length=experts).astype(jnp.int32)
    contract_last = jax.lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0])

    def matmul(rows: jax.Array, weights: jax.Array) -> jax.Array:
        weights = weights.astype(rows.dtype)
        return jax.lax.ragged_dot_general(
            rows, weights, sizes, contract_last, preferred_element_type=jnp.float32
        )

    gate_and_up = join(matmul(x[order // chosen], gate_up.reshape(experts, 2 * width, d_model)))
    hidden = ACTIVATIONS[activation](gate_and_up[:, :width]) * gate_and_up[:, width:]  # [N * k, F]
    weight = weight[order, None]
    rows = jnp.where(weight > 0, matmul(hidden.astype(x.dtype), down) * weight, 0)  # [N * k, D]
    return jnp.zeros((x.shape[0], d_model), jnp.float32).at[order // chosen].add(rows)


def touched_only(
    x: jax.Array,
    share: jax.Array,
    gate_up: Weight,
    down: Weight,
    activation: str,
    join: Join = lambda sums: sums,
) -> jax.Array:
    """The same sum, expert by expert, leaving out those that no token chose.

    For backends without a grouped matmul: a decode step reads only the experts it touches.
    Arguments and result are those of `grouped`.
    """

    def add(expert: jax.Array, total: jax.Array) -> jax.Array:
        expert_gate_up, expert_down = jax.tree.map(  # [2, F, D] and [D, F]
            lambda stack: jax.lax.dynamic_index_in_dim(stack, expert, keepdims=False),
            (gate_up, down),
        )
        gate_and_up = join(dot(expert_gate_up, x[None], jnp.float32)[0])  # [N, 2, F]
        hidden = ACTIVATIONS[activation](gate_and_up[:, 0]) * gate_and_up[:, 1]  # [N, F]
        rows = dot(expert_down, hidden.astype(x.dtype)[None], jnp.float32)[0]  # [N, D]
        return total + rows * jax.lax.dynamic_slice_in_dim(share, expert, 1, axis=1)

    def visit(expert: jax.Array, total: jax.Array) -> jax.Array:
        touched = jnp.any(jax.lax.dynamic_index_in_dim(share, expert, axis=1) > 0)
        return jax.lax.cond(touched, add, lambda _, total: total, expert, total)

    zeros = jnp.zeros(x.shape, jnp.float32)
    return jax.lax.fori_loop(0, share.shape[1], visit, zeros)
