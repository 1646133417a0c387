"""Sampling: each filter against its definition, and draws that depend on nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decode.generate import Request, generate
from decode.sampling import (
    GREEDY,
    MinP,
    SamplingError,
    Temperature,
    TopK,
    TopP,
    draw_keys,
    make_sampler,
)
from profiles.hlo.census import census
from sharding.mesh import make_mesh, parse_mesh

PROBABILITIES = np.array([[0.05, 0.5, 0.15, 0.2, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2]])
SCORES = jnp.log(jnp.asarray(PROBABILITIES))


def kept(scores):
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in np.asarray(scores)]


def test_temperature_divides_scores():
    np.testing.assert_allclose(Temperature(0.5)(SCORES), SCORES * 2, rtol=1e-6)


def test_top_k_keeps_the_highest_and_their_equals():
    assert kept(TopK(2)(SCORES)) == [[1, 3], [0, 1, 2, 3, 4]]
    assert kept(TopK(99)(SCORES)) == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize(
    ("p", "first"), [(0.4, [1]), (0.5001, [1, 3]), (0.8, [1, 2, 3]), (1.0, [0, 1, 2, 3, 4])]
)
def test_top_p_keeps_the_fewest_that_reach_p(p, first):
    assert kept(TopP(p)(SCORES[:1])) == [first]


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest():
    assert kept(MinP(0.25)(SCORES)) == [[1, 2, 3], [0, 1, 2, 3, 4]]


def test_filters_run_in_the_order_of_hugging_face():
    names = [type(keep).__name__ for keep in make_sampler(0.7, 5, 0.9, 0.1).filters]
    assert names == ["Temperature", "TopK", "TopP", "MinP"]
    # The order shows: after top-k 2 the likeliest holds 5/7, which alone reaches p = 0.7.
    scores = SCORES[:1]
    for keep in make_sampler(1.0, 2, 0.7).filters:
        scores = keep(scores)
    assert kept(scores) == [[1]]


def test_temperature_zero_is_greedy():
    assert make_sampler() is GREEDY and make_sampler(0.0) is GREEDY


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0"),
        ({"temperature": 1.0, "top_p": 1.01}, "top_p is 1.01"),
        ({"temperature": 1.0, "min_p": -0.1}, "min_p is -0.1"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p is 1.5"),
        ({"top_k": 5}, "temperature is 0, which takes the most likely token, so TopK"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(SamplingError) as refusal:
        make_sampler(**values)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("mesh", "spec"),
    [("1", (None, None)), ("2x2x2", (None, ("z", "y", "x"))), ("2x2x2", ("x", ("z", "y"))),
     ("2x2x2", (("x", "y"), None)), ("1x1x8", (None, "z"))],
)  # fmt: skip
def test_the_likeliest_token_is_the_first_of_the_highest_wherever_the_vocabulary_lies(mesh, spec):
    rows, vocabulary = 8, 64
    logits = np.random.default_rng(0).normal(0, 9, (rows, vocabulary)).astype(np.float32)
    logits[0, [7, 8, 40]] = 99.0  # equals in one part of the vocabulary and in others
    logits[1] = 0.0
    logits[2, :48] = -np.inf  # nothing in most parts
    logits[3, 50] = np.nan
    devices = make_mesh(parse_mesh(mesh))
    with jax.set_mesh(devices):
        placed = jax.device_put(logits, jax.NamedSharding(devices, jax.P(*spec)))
        choose = jax.jit(GREEDY.choose, static_argnames="keys").lower(placed, keys=None).compile()
        tokens, logprobs = map(np.asarray, choose(placed))
    assert (tokens == logits.argmax(axis=-1)).all() and tokens.dtype == np.int32
    scores = logits.astype(np.float64)
    expected = scores.max(axis=-1) - np.log(np.exp(scores).sum(axis=-1))
    np.testing.assert_allclose(logprobs, expected, rtol=1e-6, atol=1e-5)
    kinds = [one.kind for one in census(choose.as_text(), devices)]
    assert kinds == ["all-gather"] * (mesh != "1")


def test_draws_follow_the_distribution():
    draws = 4000
    keys = draw_keys(jax.random.key(0), jnp.arange(draws), jnp.int32(3))
    scores = jnp.broadcast_to(SCORES[:1], (draws, 5))
    tokens = np.asarray(jax.vmap(jax.random.categorical)(keys, scores))
    frequencies = np.bincount(tokens, minlength=5) / draws
    spread = np.sqrt(PROBABILITIES[0] * (1 - PROBABILITIES[0]) / draws)
    assert (np.abs(frequencies - PROBABILITIES[0]) < 4 * spread).all()


def test_every_sequence_and_index_has_a_key_of_its_own():
    seed = jax.random.key(0)
    keys = [draw_keys(seed, jnp.arange(4), jnp.int32(index)) for index in range(4)]
    data = np.concatenate([np.asarray(jax.random.key_data(key)) for key in keys])
    assert len({tuple(row) for row in data}) == 16


def sampled(engine, prompts, **changes):
    sampler = make_sampler(1.0, top_k=50, top_p=0.95, min_p=0.001)
    request = Request(prompts=prompts, max_new_tokens=12, sampler=sampler, **changes)
    *_, last = generate(engine, request)
    return [completion.tokens for completion in last]


def test_draws_depend_on_seed_and_sequence_not_on_batch_mesh_or_padding(tiny_engine):
    engine = functools.partial(tiny_engine, layers=1, kv_heads=1)
    prompts = [[1, 2, 3], [4, 5, 6, 7], list(range(8, 40))]
    together = sampled(engine("1x1x1"), prompts, seed=7)
    assert sampled(engine("1x1x2"), prompts, seed=7) == together
    assert sampled(engine("2x2x2"), prompts, seed=7) == together
    # Alone, with other padding: the first sequence keeps its number, 0.
    assert sampled(engine("1x1x1"), prompts[:1], seed=7) == together[:1]
    assert sampled(engine("1x1x1"), prompts, seed=8) != together
    # Equal prompts in one batch draw apart.
    first, second = sampled(engine("1x1x1"), [[1, 2, 3]] * 2, seed=7)
    assert first == together[0] and first != second
