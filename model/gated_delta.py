"""The gated delta rule: a state of constant size in place of keys and values.

Yang et al. 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule" (arXiv 2412.06464),
equation 10. Each value head keeps a matrix S that answers a key with a value. A token lets it fade,
asks it for the value of its key, and corrects the answer by a part of what it is off::

    S <- fade * S
    S <- S + k (strength * (v - k^T S))^T
    answer = S^T q

All of it is in float32. Before it, queries, keys and values of each token are mixed with those of
the few tokens before it (`convolve`). Arrays are those of one device.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

CHUNK = 64
"""Tokens whose corrections of each other are found at once, by one triangular matrix."""
_EXACT = jax.lax.Precision.HIGHEST


class DeltaTokens(NamedTuple):
    """New tokens as the rule reads them, n key heads with m value heads each; all float32.

    A token that only fills a row has zeros everywhere, which leave the state as it is.

    Attributes:
      queries: [B, T, n, i].
      keys: [B, T, n, i].
      values: [B, T, n, m, o].
      fades: logarithms of the factors, [B, T, n, m], at most 0.
      strengths: [B, T, n, m], from 0 to 1.
    """

    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    fades: jax.Array
    strengths: jax.Array


def step(state: jax.Array, tokens: DeltaTokens) -> tuple[jax.Array, jax.Array]:
    """One token of each sequence.

    The state is read for both products at once, and then once more as it is rewritten: the answer
    of the new state is that of the old one and of what the token adds.

    Args:
      state: [B, n, m, i, o] float32.
      tokens: T = 1.

    Returns:
      Answers [B, 1, n, m, o], and the new state.
    """
    q, k, v, fade, strength = (each[:, 0] for each in tokens)
    fade = jnp.exp(fade)[..., None]  # [B, n, m, 1]
    pair = jnp.stack([k, q], axis=2)  # [B, n, 2, i]
    held = jnp.einsum("bnci,bnmio->cbnmo", pair, state, precision=_EXACT) * fade
    wrong = strength[..., None] * (v - held[0])  # [B, n, m, o]
    overlap = jnp.sum(q * k, axis=-1)[:, :, None, None]
    answer = held[1] + overlap * wrong
    state = state * fade[..., None] + k[:, :, None, :, None] * wrong[..., None, :]
    return answer[:, None], state


def chunks(state: jax.Array, tokens: DeltaTokens) -> tuple[jax.Array, jax.Array]:
    """Many tokens of each sequence, `CHUNK` at a time (Yang et al. 2024, section 3.3).

    Within a chunk each token's correction depends on those before it, which is a triangular system
    of equations, the same for all columns of the state. It is solved for all chunks at once; what
    remains are products with the state from chunk to chunk.

    Args:
      state: [B, n, m, i, o] float32.
      tokens: T is any number.

    Returns:
      Answers [B, T, n, m, o], and the new state.
    """
    length = tokens.queries.shape[1]
    size = min(CHUNK, length)
    number = -(-length // size)
    tokens = jax.tree.map(lambda each: _cut(each, number, size), tokens)
    faded = jnp.cumsum(tokens.fades, axis=2)  # [N, B, C, n, m], since the chunk began
    since = jnp.moveaxis(faded, 2, -1)  # [N, B, n, m, C]
    between = since[..., :, None] - since[..., None, :]  # [N, B, n, m, C, C]: from one to another
    order = jnp.arange(size)
    between = jnp.where(order[:, None] >= order, jnp.exp(jnp.minimum(between, 0.0)), 0.0)
    solved = _solved(tokens, between)
    seen = jnp.einsum("zbtni,zbsni->zbnts", tokens.queries, tokens.keys, precision=_EXACT)
    seen = seen[:, :, :, None] * between  # [N, B, n, m, C, C]

    def run(state: jax.Array, one: tuple) -> tuple[jax.Array, jax.Array]:
        return _chunk(state, *one)

    each = tokens, since, solved, seen
    if number == 1:
        state, answers = _chunk(state, *jax.tree.map(lambda array: array[0], each))
        return answers, state
    state, answers = jax.lax.scan(run, state, each)
    answers = jnp.moveaxis(answers, 0, 1)  # [B, N, C, n, m, o]
    answers = answers.reshape(answers.shape[0], number * size, *answers.shape[3:])
    return answers[:, :length], state


def _cut(each: jax.Array, number: int, size: int) -> jax.Array:
    """Chunks first, and filled up with zeros: [B, T, ...] -> [N, B, C, ...]."""
    room = [(0, 0), (0, number * size - each.shape[1])] + [(0, 0)] * (each.ndim - 2)
    each = jnp.pad(each, room)
    return jnp.moveaxis(each.reshape(each.shape[0], number, size, *each.shape[2:]), 1, 0)


def _solved(tokens: DeltaTokens, between: jax.Array) -> jax.Array:
    """What takes tokens' errors, each against the state before the chunk, to corrections.

    Args:
      tokens: of chunks, each [N, B, C, ...].
      between: factors from the later of two tokens to the earlier, [N, B, n, m, C, C].

    Returns:
      [N, B, n, m, C, C]: the inverse of a unit lower triangular matrix, its columns multiplied by
      the tokens' strengths.
    """
    alike = jnp.einsum("zbtni,zbsni->zbnts", tokens.keys, tokens.keys, precision=_EXACT)
    strength = jnp.moveaxis(tokens.strengths, 2, -1)  # [N, B, n, m, C]
    size = between.shape[-1]
    below = jnp.tril(jnp.ones((size, size), bool), -1)
    system = jnp.where(below, alike[:, :, :, None] * between * strength[..., None], 0.0)
    unit = jnp.broadcast_to(jnp.eye(size), system.shape)
    inverse = jax.lax.linalg.triangular_solve(
        system + unit, unit, left_side=True, lower=True, unit_diagonal=True
    )
    return inverse * strength[..., None, :]


def _chunk(
    state: jax.Array, tokens: DeltaTokens, since: jax.Array, solved: jax.Array, seen: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One chunk: the state after it, and answers [B, C, n, m, o].

    Args:
      state: [B, n, m, i, o], before it.
      tokens: of the chunk.
      since: logarithms of the factors since it began, [B, n, m, C].
      solved: as `_solved` gives it, [B, n, m, C, C].
      seen: how much of each correction every answer has, [B, n, m, C, C].
    """

    def product(equation: str, *arrays: jax.Array) -> jax.Array:
        return jnp.einsum(equation, *arrays, precision=_EXACT)

    factor = jnp.exp(since)[..., None]  # [B, n, m, C, 1]
    values = jnp.moveaxis(tokens.values, 1, 3)  # [B, n, m, C, o]
    wrong = values - factor * product("btni,bnmio->bnmto", tokens.keys, state)
    corrections = product("bnmts,bnmso->bnmto", solved, wrong)
    answers = factor * product("btni,bnmio->bnmto", tokens.queries, state)
    answers += product("bnmts,bnmso->bnmto", seen, corrections)
    left = jnp.exp(since[..., -1:] - since)[..., None]  # [B, n, m, C, 1], to the chunk's end
    state = state * jnp.exp(since[..., -1])[..., None, None]
    state += product("btni,bnmto->bnmio", tokens.keys, left * corrections)
    return state, jnp.moveaxis(answers, 3, 1)


def convolve(
    x: jax.Array, before: jax.Array, weights: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A causal convolution of each number over its newest values, and SiLU.

    Args:
      x: new tokens' numbers, [B, T, n, m].
      before: those of the last tokens before them, the newest last, [B, r, n, m].
      weights: [n, m, r + 1], that of the token itself last.
      count: real tokens of each row, which come first, [B] int32.

    Returns:
      [B, T, n, m] float32, and what the next tokens' `before` is: that of the last real tokens.
    """
    taps = weights.shape[-1]
    both = jnp.concatenate([before, x.astype(before.dtype)], axis=1)  # [B, r + T, n, m]
    wide, weights = both.astype(jnp.float32), weights.astype(jnp.float32)
    length = x.shape[1]
    mixed = sum(wide[:, tap : tap + length] * weights[..., tap] for tap in range(taps))
    kept = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, taps - 1))(both, count)
    return jax.nn.silu(mixed), kept
