"""The gated delta rule: chunks give what steps give, and what fills a row changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.gated_delta import CHUNK, DeltaTokens, chunks, convolve, step

B, N, M, KEY, VALUE, TAPS = 2, 2, 2, 4, 6, 4
_jitted = functools.cache(jax.jit)


def random_tokens(length: int) -> DeltaTokens:
    draw = np.random.default_rng(length)

    def normal(*sizes: int) -> np.ndarray:
        return draw.normal(size=(B, length, N, *sizes)).astype(np.float32)

    keys = normal(KEY)
    return DeltaTokens(
        queries=normal(KEY),
        keys=keys / np.linalg.norm(keys, axis=-1, keepdims=True),
        values=normal(M, VALUE),
        fades=-np.exp(normal(M)),
        strengths=draw.uniform(size=(B, length, N, M)).astype(np.float32),
    )


def random_state() -> np.ndarray:
    draw = np.random.default_rng(0)
    return draw.normal(size=(B, N, M, KEY, VALUE)).astype(np.float32)


def by_hand(state: np.ndarray, tokens: DeltaTokens) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence itself in float64: every head of every sequence, token by token."""
    state, answers = state.astype(np.float64), np.zeros(tokens.values.shape)
    for b, n, m in np.ndindex(B, N, M):
        for t in range(tokens.keys.shape[1]):
            key, query = tokens.keys[b, t, n], tokens.queries[b, t, n]
            faded = np.exp(tokens.fades[b, t, n, m], dtype=np.float64) * state[b, n, m]
            off = tokens.values[b, t, n, m] - key @ faded
            state[b, n, m] = faded + tokens.strengths[b, t, n, m] * np.outer(key, off)
            answers[b, t, n, m] = query @ state[b, n, m]
    return answers, state


@pytest.mark.parametrize("length", [1, 7, CHUNK + 6])
def test_steps_and_chunks_are_the_recurrence(length):
    state, tokens = random_state(), random_tokens(length)
    found = _jitted(step if length == 1 else chunks)(state, tokens)
    for array, expected in zip(found, by_hand(state, tokens), strict=True):
        np.testing.assert_allclose(array, expected, atol=2e-5)


def test_a_text_cut_anywhere_gives_the_same_answers_and_state():
    state, tokens = random_state(), random_tokens(CHUNK + 6)
    whole, last = _jitted(chunks)(state, tokens)
    first, middle = _jitted(chunks)(state, jax.tree.map(lambda each: each[:, :7], tokens))
    rest, end = _jitted(chunks)(middle, jax.tree.map(lambda each: each[:, 7:], tokens))
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), whole, atol=2e-5)
    np.testing.assert_allclose(end, last, atol=2e-5)


def test_tokens_that_only_fill_a_row_leave_its_state_as_it_is():
    state, nothing = random_state(), jax.tree.map(np.zeros_like, random_tokens(7))
    one = jax.tree.map(lambda each: each[:, :1], nothing)
    assert (np.asarray(_jitted(step)(state, one)[1]) == state).all()
    assert (np.asarray(_jitted(chunks)(state, nothing)[1]) == state).all()


@pytest.mark.parametrize(("length", "counts"), [(1, (0, 1)), (5, (2, 5))])
def test_a_convolution_keeps_the_last_real_inputs_of_each_row(length, counts):
    draw = np.random.default_rng(0)
    x, before = draw.normal(size=(B, length, N, 3)), draw.normal(size=(B, TAPS - 1, N, 3))
    weights = draw.normal(size=(N, 3, TAPS))
    arrays = (jnp.asarray(each, jnp.float32) for each in (x, before, weights))
    mixed, kept = convolve(*arrays, jnp.asarray(counts, jnp.int32))
    for b, count in enumerate(counts):
        text = np.concatenate([before[b], x[b, :count]])
        np.testing.assert_allclose(kept[b], text[-(TAPS - 1) :], rtol=1e-6)
        for t in range(count):
            sums = np.einsum("tnm,nmt->nm", text[t : t + TAPS], weights)
            np.testing.assert_allclose(mixed[b, t], sums / (1 + np.exp(-sums)), atol=1e-5)
