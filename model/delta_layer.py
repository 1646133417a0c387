"""A gated delta layer: attention's place taken by a state of constant size (Qwen3-Next, Qwen3.5).

Yang et al. 2024, Gated Delta Networks (arXiv 2412.06464), section 3.4, as `modeling_qwen3_next.py`
and `modeling_qwen3_5.py` of https://github.com/huggingface/transformers have it. A step reads and
writes the state, however many tokens came before it. `model.gated_delta` is the rule itself.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from model.cache import DELTA_AXES, DeltaState
from model.cache_write import NewTokens
from model.config import ModelConfig
from model.declarations import declare, declare_matrix, normal
from model.delta_sizes import DeltaSizes
from model.dtypes import Dtypes
from model.gated_delta import DeltaTokens, chunks, convolve, step
from model.linear import project
from model.norm import Norm
from model.rotary import Rotation
from sharding.collectives import reshard
from sharding.layout import Axes
from sharding.placement import Placement, entry_axes

EPSILON = 1e-6
"""Added to the square sum of a query or key before it is brought to length one."""


class DeltaLayer(nnx.Module):
    """Projections, a short convolution, the gated delta rule, and the projection back.

    The letters of its dimensions: N is a key head and M one of its value heads, i the size of a
    query or key and o that of a value, w all that a key head makes of a token and m the part of it
    that is convolved. Mesh axes divide N, and then M, as they divide the heads of attention.
    """

    def __init__(self, config: ModelConfig, dtypes: Dtypes):
        matrix, ones = functools.partial(declare_matrix, config, dtypes), jax.nn.initializers.ones
        self.query_key_value = matrix("Nw", "D")  # of each head: query, key, values, their gates
        init = normal(config.d_model**-0.5)
        self.strength_fade = declare(config, "NCMD", dtypes.plain, init)
        self.taps = declare(config, "bmt", dtypes.plain, normal(config.delta.taps**-0.5))
        self.rates = declare(config, "bd", jnp.float32, jax.nn.initializers.zeros)  # logarithms
        self.rates_bias = declare(config, "bd", jnp.float32, ones)
        self.norm = Norm(config, "j")
        self.output = matrix("D", "NMo")
        self.sizes = config.delta

    def __call__(
        self,
        x: jax.Array,
        state: DeltaState,
        positions: jax.Array,
        angles: Rotation | None,
        placement: Placement,
        continues: bool = False,
    ) -> tuple[jax.Array, DeltaState, jax.Array]:
        """Runs the new tokens through the state, which begins anew with a sequence's first token.

        Args:
          x: [B, T, D], normed, divided in any way.
          state: this layer's. For one new token of each sequence, there may be more sequences: the
            tokens are those of the first ones that each device has.
          positions: [B, T] int32, each token's position in its sequence; whole on every device.
          angles: of attention; a state knows no positions.
          placement: shardings.
          continues: of prompts, whether there are tokens before them; positions say it of each.

        Returns:
          [B, T, R], the updated state, and x as the projections gathered it, for an MLP that reads
          the same.
        """
        del angles, continues
        with jax.named_scope("query_key_value"):
            # made: [B, T, N, w], gates: [B, T, N, 2, M]
            parameters = [self.query_key_value, self.strength_fade]
            (made, gates), x = project(x, parameters, placement)
            made = reshard(made, placement.attention("BTN_"))
            gates = reshard(gates, placement.attention("BTNCM"))
        answers, kept, state = self._run(made, gates, state, NewTokens.at(positions), placement)
        with jax.named_scope("attention_output"):
            y = self.norm(answers.astype(x.dtype)).astype(jnp.float32)  # [B, T, N, M, o]
            y = (y * jax.nn.silu(kept.astype(jnp.float32))).astype(x.dtype)
            y = reshard(y, placement.activations("BTNMo"))
            (y,), _ = project(y, [self.output], placement)  # [B, T, R]
            return y, state, x

    def _run(
        self,
        made: jax.Array,
        gates: jax.Array,
        state: DeltaState,
        tokens: NewTokens,
        placement: Placement,
    ) -> tuple[jax.Array, jax.Array, DeltaState]:
        """The rule on every device's sequences and heads.

        Returns:
          Answers and the gates of the values, each [B, T, N, M, o], and the updated state.
        """
        batch, keys, values = placement.attention("BNM")
        heads, by_sequence = jax.P(keys, values), jax.P(batch)
        within = DeltaState(jax.P(batch, keys, values, None, None), jax.P(batch, None, keys, None))
        with jax.named_scope("delta_rule"):
            old = _divide(state, within)
            taps = reshard(self.taps[...], jax.P(keys, None, None))
            rates, bias = (reshard(each[...], heads) for each in (self.rates, self.rates_bias))
            tokens = NewTokens(*(reshard(each, by_sequence) for each in tokens))
            made_spec = jax.P(batch, None, keys, None)
            out = jax.P(batch, None, keys, values, None)
            answers, kept, new = jax.shard_map(
                functools.partial(_run_shard, self.sizes, entry_axes(values)),
                in_specs=(
                    made_spec,
                    jax.P(batch, None, keys, None, values),
                    (jax.P(keys, None, None), heads, heads),
                    within,
                    NewTokens(by_sequence, by_sequence),
                ),
                out_specs=(out, out, within),
                check_vma=False,
            )(made, gates, (taps, rates, bias), old, tokens)
            there = DeltaState(*(placement.cache(axes) for axes in DELTA_AXES))
            return answers, kept, _divide(new, there)


def _divide(state: DeltaState, specs: DeltaState) -> DeltaState:
    """The state divided as `specs` says."""
    return DeltaState(reshard(state.matrices, specs.matrices), reshard(state.inputs, specs.inputs))


def _run_shard(
    sizes: DeltaSizes,
    value_axes: Axes,
    made: jax.Array,
    gates: jax.Array,
    weights: tuple[jax.Array, jax.Array, jax.Array],
    state: DeltaState,
    tokens: NewTokens,
) -> tuple[jax.Array, jax.Array, DeltaState]:
    """One device's sequences and heads: n key heads, with m value heads each.

    Args:
      sizes: of all heads.
      value_axes: mesh axes that divide the value heads of a key head.
      made: [B, T, n, w].
      gates: strengths and what fades are made of, [B, T, n, 2, m].
      weights: taps [n, w', r + 1] of the convolution; rates and their biases, each [n, m].
      state: of B sequences or more.
      tokens: where these tokens stand.

    Returns:
      Answers and the gates of values, each [B, T, n, m, o], and the state of all sequences.
    """
    rows, length = made.shape[:2]
    old = jax.tree.map(lambda each: _first_rows(each, rows, tokens), state)
    convolved, key = made[..., : sizes.convolved], sizes.key_size
    mixed, inputs = convolve(convolved, old.inputs, weights[0], tokens.count)
    own = functools.partial(_own_values, sizes, value_axes)
    raw = gates[..., 1, :].astype(jnp.float32) + weights[2]
    new = DeltaTokens(
        queries=_to_length_one(mixed[..., :key]) * key**-0.5,
        keys=_to_length_one(mixed[..., key : 2 * key]),
        values=own(mixed[..., 2 * key :]),
        fades=-jnp.exp(weights[1]) * jax.nn.softplus(raw),
        strengths=jax.nn.sigmoid(gates[..., 0, :].astype(jnp.float32)),
    )
    real = jnp.arange(length) < tokens.count[:, None]  # [B, T]
    new = jax.tree.map(
        lambda each: jnp.where(real.reshape(rows, length, *(1,) * (each.ndim - 2)), each, 0.0), new
    )
    answers, matrices = (step if length == 1 else chunks)(old.matrices, new)
    state = jax.tree.map(_put_first, state, DeltaState(matrices, inputs))
    return answers, own(made[..., sizes.convolved :]), state


def _first_rows(each: jax.Array, rows: int, tokens: NewTokens) -> jax.Array:
    """The first rows of a state, zeros where the first token of a sequence is new."""
    begins = (tokens.first == 0) & (tokens.count > 0)
    begins = begins.reshape(rows, *(1,) * (each.ndim - 1))
    return jnp.where(begins, jnp.zeros((), each.dtype), each[:rows])


def _put_first(whole: jax.Array, rows: jax.Array) -> jax.Array:
    """The rows in the first places of all."""
    if rows.shape == whole.shape:
        return rows
    return jax.lax.dynamic_update_slice(whole, rows, (0,) * whole.ndim)


def _own_values(sizes: DeltaSizes, axes: Axes, values: jax.Array) -> jax.Array:
    """This device's value heads: [B, T, n, M * o] -> [B, T, n, m, o]."""
    values = values.reshape(*values.shape[:3], sizes.values_per_key, sizes.value_size)
    if not axes:
        return values
    own = sizes.values_per_key // jax.lax.axis_size(axes)
    return jax.lax.dynamic_slice_in_dim(values, jax.lax.axis_index(axes) * own, own, axis=3)


def _to_length_one(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + EPSILON)
