"""Sparse experts: a router sends each token to k of E gated MLPs (Shazeer et al. 2017).

`model.routing` has the rules by which it chooses. Dropless: however many tokens choose one expert,
each gets its answer, so a token's output depends on that token alone.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.declarations import declare, declare_matrix, normal
from model.dispatch import ExpertAxes, bring_back, by_destination, expert_axes, send, sums
from model.dtypes import Dtypes
from model.linear import linear
from model.mlp import GATES
from model.routing import shares
from sharding.collectives import reshard
from sharding.dot import dot_of_groups, dot_of_one, has_groups
from sharding.placement import Placement, entry, used_axes
from sharding.platform_workarounds import by_platform
from sharding.quantization import QuantizedArray, Weight, divide, specs_of

Join = Callable[[jax.Array], jax.Array]
"""Completes the sum over d_model where mesh axes divide it."""


class Experts(NamedTuple):
    """Arrays of a stack of experts, all of them or those of one chip.

    Attributes:
      gate_up: [E, 2, F, D].
      down: [E, D, F].
      gate_up_bias: [E, 2, F], if they have biases.
      down_bias: [E, D], likewise; where chips share d_ff, only one of them has other than zeros.
      scale: [E] float32, multiplies each expert's answer, if they have one.
    """

    gate_up: Weight
    down: Weight
    gate_up_bias: jax.Array | None = None
    down_bias: jax.Array | None = None
    scale: jax.Array | None = None


class Mixture(nnx.Module):
    """E gated MLPs and the router that weighs k of them for each token."""

    def __init__(self, config: ModelConfig, dtypes: Dtypes):
        self.router = declare(config, "eD", dtypes.plain, normal(config.d_model**-0.5))
        self.gate_up = declare_matrix(config, dtypes, "ECF", "D")
        self.down = declare_matrix(config, dtypes, "ED", "F")
        self.biased = config.expert_bias
        if self.biased:
            zeros = jax.nn.initializers.zeros
            self.router_bias = declare(config, "e", dtypes.plain, zeros)
            self.gate_up_bias = declare(config, "ECF", dtypes.plain, zeros)
            self.down_bias = declare(config, "ED", dtypes.plain, zeros)
        if config.experts_apart:
            ones = jax.nn.initializers.ones
            self.router_scale = declare(config, "R", jnp.float32, ones)
            self.expert_scale = declare(config, "E", jnp.float32, ones)
        if config.routing.bias:
            self.correction = declare(config, "e", jnp.float32, jax.nn.initializers.zeros)
        self.chosen, self.routing = config.experts_per_token, config.routing
        self.renormalise = config.renormalise_experts
        self.activation, self.apart = config.activation, config.experts_apart

    def __call__(
        self, x: jax.Array, real: jax.Array, placement: Placement, unit: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Sends every token through its experts.

        Args:
          x: [B, T, D], normed, divided in any way.
          real: [B, T], False for padding.
          placement: shardings.
          unit: [B, T, R] float32, the residual stream normed without a scale, where the router
            reads that and not x.

        Returns:
          [B, T, R], and which experts each sequence's real tokens chose, [B, E] bool.
        """
        with jax.named_scope("mixture"):
            axes = expert_axes(placement)
            spec = jax.P(entry(axes.batch), None, entry(axes.inputs))
            read = x if unit is None else self._scaled(unit).astype(x.dtype)
            x = reshard(x, spec)
            read = x if unit is None else reshard(read, spec)
            share = self._route(read, placement)  # [B, T, E]
            chosen = (share > 0) & real[:, :, None]
            return self._apply(x, share, axes, placement), jnp.any(chosen, axis=1)

    def _scaled(self, unit: jax.Array) -> jax.Array:
        """The normed residual stream, [B, T, R], as the router reads it."""
        return unit * (self.router_scale[...] * unit.shape[-1] ** -0.5)

    def _route(self, x: jax.Array, placement: Placement) -> jax.Array:
        """x: [B, T, D] -> each expert's share of each token, [B, T, E] float32, 0 if not chosen."""
        with jax.named_scope("router"):
            router = reshard(self.router[...], placement.use("eD"))
            x = reshard(x, placement.contracted("BTD"))
            spec = placement.activations("BT_")
            scores = linear(router, x, spec, dtype=jnp.float32)
            if self.biased:
                scores = scores + reshard(self.router_bias[...], placement.use("e"))
            correction = self.correction[...] if self.routing.bias else None
            choose = functools.partial(
                shares, routing=self.routing, chosen=self.chosen, renormalise=self.renormalise
            )
            # On each chip by itself: of an array over the mesh XLA:CPU gathers the batch for top_k.
            specs = (spec, jax.P(None))
            return jax.shard_map(choose, in_specs=specs, out_specs=spec)(scores, correction)

    def _apply(
        self, x: jax.Array, share: jax.Array, axes: ExpertAxes, placement: Placement
    ) -> jax.Array:
        """x: [B, T, D], share: [B, T, E] -> [B, T, R]."""
        stored = {"gate_up": self.gate_up, "down": self.down}
        if self.biased:
            stored |= {"gate_up_bias": self.gate_up_bias, "down_bias": self.down_bias}
        if self.apart:
            stored["scale"] = self.expert_scale
        experts = Experts(
            **{
                name: divide(param[...], placement.use(param.axes), reshard)
                for name, param in stored.items()
            }
        )
        residual = placement.activations("BTR")
        scattered, summed = sums(axes, used_axes(placement.activations("R")))

        def local(x, share, experts):
            parts = by_destination(share.reshape(-1, share.shape[-1]), axes)
            tokens, parts = send(x.reshape(-1, x.shape[-1]), parts, axes.exchanged)
            out = self._answer(tokens, parts, experts, axes)
            out = bring_back(out, axes.exchanged, x.dtype)  # [N, D] {kept, hidden unsummed}
            if scattered:
                out = jax.lax.psum_scatter(out, scattered, scatter_dimension=1, tiled=True)
            if summed:
                out = jax.lax.psum(out, summed)
            return out.astype(x.dtype).reshape(*x.shape[:2], -1)

        arrays = (x, share, experts)
        y = jax.shard_map(
            local,
            in_specs=specs_of(arrays),
            out_specs=jax.P(residual[0], None, entry((*axes.inputs, *scattered))),
            check_vma=False,
        )(*arrays)
        return reshard(y, residual)

    def _answer(
        self, x: jax.Array, share: jax.Array, experts: Experts, axes: ExpertAxes
    ) -> jax.Array:
        """What one chip's experts make of tokens, each by its share: [N, D] float32."""

        def join(sums: jax.Array) -> jax.Array:  # {inputs unsummed}
            return jax.lax.psum(sums, axes.inputs) if axes.inputs else sums

        def in_groups(*arrays: jax.Array) -> jax.Array:
            return grouped(*arrays, self.chosen, self.activation, join, self.routing.of_inputs)

        def one_by_one(*arrays: jax.Array) -> jax.Array:
            return touched_only(*arrays, self.activation, join, self.routing.of_inputs)

        if self.biased and axes.hidden:  # a bias is added once to what these chips sum up
            bias = jnp.where(jax.lax.axis_index(axes.hidden) == 0, experts.down_bias, 0)
            experts = experts._replace(down_bias=bias)
        arrays = (x, share, experts)
        # XLA's matmul of groups takes plain arrays: quantized ones would be held dequantized.
        quantized = isinstance(experts.gate_up, QuantizedArray)
        platforms = () if quantized else ("tpu",)
        if quantized and has_groups(experts.gate_up) and has_groups(experts.down):
            platforms = ("cuda",)
        forms = dict.fromkeys(platforms, in_groups)
        return by_platform(*arrays, default=one_by_one, **forms)


def _biased(sums: jax.Array, bias: jax.Array | None, scale: jax.Array | None = None) -> jax.Array:
    sums = sums if bias is None else sums + bias
    return sums if scale is None else sums * scale


def grouped(
    x: jax.Array,
    share: jax.Array,
    experts: Experts,
    chosen: int,
    activation: str,
    join: Join = lambda sums: sums,
    of_inputs: bool = False,
) -> jax.Array:
    """The experts' weighted sum, tokens sorted by expert, each expert's in one matmul.

    `sharding.dot.dot_of_groups` reads only experts that have tokens where the platform has a matmul
    of groups; XLA:CPU falls back to a dense product with every expert. Rows of tokens that chose
    fewer than k of these experts come last, in no group.

    Args:
      x: [N, D].
      share: [N, E] float32, 0 for experts not chosen; these experts may be some of all.
      experts: their matrices, as that takes them, and biases.
      chosen: k, experts per token.
      activation: name of the gate's activation.
      join: completes gate and up.
      of_inputs: shares multiply what experts read, not what they answer.

    Returns:
      [N, D] float32.
    """
    count, *_, d_model = experts.gate_up.shape
    chosen = min(chosen, count)
    weight, expert_ids = (part.reshape(-1) for part in jax.lax.top_k(share, chosen))  # [N * k]
    expert_ids = jnp.where(weight > 0, expert_ids, count)
    order = jnp.argsort(expert_ids, stable=True)
    sizes = jnp.sum(share > 0, axis=0, dtype=jnp.int32)

    def matmul(rows: jax.Array, stack: Weight) -> jax.Array:
        return dot_of_groups(stack, rows, sizes, jnp.float32)

    def of_expert(array: jax.Array | None, numbers: jax.Array) -> jax.Array | None:
        return None if array is None else array[jnp.minimum(numbers, count - 1)]

    rows = x[order // chosen]  # [N * k, D]
    rows = (rows * weight[order, None]).astype(x.dtype) if of_inputs else rows
    gate_up = join(_gate_up(experts.gate_up, rows, expert_ids[order], sizes))  # [N * k, 2, F]
    gate_up = _biased(gate_up, of_expert(experts.gate_up_bias, expert_ids[order]))
    hidden = GATES[activation](gate_up[:, 0], gate_up[:, 1])  # [N * k, F]
    rows = matmul(hidden.astype(x.dtype), experts.down)  # [N * k, D]
    # Brought back to their tokens, rows are added up in one order. Added to them from where they
    # stand, they would be in any order on a GPU, and sums would differ from one run to another.
    rows = rows[jnp.argsort(order)]
    down_bias, scale = (of_expert(each, expert_ids) for each in (experts.down_bias, experts.scale))
    rows = _biased(rows, down_bias, None if scale is None else scale[:, None])
    weight = weight[:, None]
    rows = jnp.where(weight > 0, rows if of_inputs else rows * weight, 0)
    return jnp.sum(rows.reshape(-1, chosen, d_model), axis=1)


def _gate_up(stack: Weight, rows: jax.Array, expert_ids: jax.Array, sizes: jax.Array) -> jax.Array:
    """Products of rows that are sorted by expert with both matrices of each, float32.

    Plain ones are matrices of their own, each with its copy of the expert's rows: XLA:TPU would lay
    a stack of pairs out anew to have it as one of [2 F, D].

    Args:
      stack: [E, 2, F, D].
      rows: [M, D].
      expert_ids: of each row, E for none.
      sizes: rows of each expert.

    Returns:
      [M, 2, F].
    """
    count, _, width, _ = stack.shape
    if isinstance(stack, QuantizedArray):
        flat = jax.tree.map(lambda leaf: leaf.reshape(count, 2 * width, -1), stack)
        return dot_of_groups(flat, rows, sizes, jnp.float32).reshape(-1, 2, width)
    order = jnp.argsort(jnp.concatenate([2 * expert_ids, 2 * expert_ids + 1]), stable=True)
    matrices = stack.reshape(2 * count, width, -1)
    both = dot_of_groups(matrices, rows[order % len(rows)], jnp.repeat(sizes, 2), jnp.float32)
    return both[jnp.argsort(order)].reshape(2, len(rows), width).swapaxes(0, 1)


def touched_only(
    x: jax.Array,
    share: jax.Array,
    experts: Experts,
    activation: str,
    join: Join = lambda sums: sums,
    of_inputs: bool = False,
) -> jax.Array:
    """The same sum, expert by expert, leaving out those that no token chose.

    For backends without a grouped matmul: a decode step reads only the experts it touches.
    Arguments and result are those of `grouped`.
    """

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        gate_up_bias, down_bias, scale = jax.tree.map(
            lambda stack: jax.lax.dynamic_index_in_dim(stack, number, keepdims=False),
            (experts.gate_up_bias, experts.down_bias, experts.scale),
        )
        weight = jax.lax.dynamic_slice_in_dim(share, number, 1, axis=1)  # [N, 1]
        rows = (x * weight).astype(x.dtype) if of_inputs else x
        gate_up = join(dot_of_one(experts.gate_up, number, rows, jnp.float32))  # [N, 2, F]
        gate_up = _biased(gate_up, gate_up_bias)
        hidden = GATES[activation](gate_up[:, 0], gate_up[:, 1])  # [N, F]
        rows = dot_of_one(experts.down, number, hidden.astype(x.dtype), jnp.float32)  # [N, D]
        rows = _biased(rows, down_bias, scale)
        return total + (rows if of_inputs else rows * weight)

    def visit(expert: jax.Array, total: jax.Array) -> jax.Array:
        touched = jnp.any(jax.lax.dynamic_index_in_dim(share, expert, axis=1) > 0)
        return jax.lax.cond(touched, add, lambda _, total: total, expert, total)

    zeros = jnp.zeros(x.shape, jnp.float32)
    return jax.lax.fori_loop(0, share.shape[1], visit, zeros)
