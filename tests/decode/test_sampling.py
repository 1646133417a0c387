"""Sampling: each filter against its definition, and draws that depend on nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decode.filters import keep_min_p, keep_top_k, keep_top_p
from decode.generate import Request, generate
from decode.sampling import (
    GREEDY,
    LEAST_TEMPERATURE,
    Sampler,
    SamplingError,
    Settings,
    choose_by_row,
    draw,
    draw_keys,
    likeliest,
    make_sampler,
    settings_of,
)
from profiles.hlo.census import census
from sharding.mesh import make_mesh, parse_mesh

PROBABILITIES = np.array([[0.05, 0.5, 0.15, 0.2, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2]])
SCORES = jnp.log(jnp.asarray(PROBABILITIES))
BY_ROW = jax.jit(choose_by_row)


def kept(scores):
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in np.asarray(scores)]


def test_temperature_divides_scores():
    draws = 4000
    keys = draw_keys(jax.random.key(0), jnp.arange(draws), jnp.int32(3))
    logits = jnp.broadcast_to(SCORES[:1], (draws, 5))
    tokens, _ = jax.jit(Sampler(0.5).choose)(logits, keys)
    expected = np.asarray(jax.vmap(jax.random.categorical)(keys, logits / 0.5))
    assert (np.asarray(tokens) == expected).all()


def test_top_k_keeps_the_highest_and_their_equals():
    assert kept(keep_top_k(SCORES, 2)) == [[1, 3], [0, 1, 2, 3, 4]]
    assert kept(keep_top_k(SCORES, 99)) == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize(
    ("p", "first"), [(0.4, [1]), (0.5001, [1, 3]), (0.8, [1, 2, 3]), (1.0, [0, 1, 2, 3, 4])]
)
def test_top_p_keeps_the_fewest_that_reach_p(p, first):
    assert kept(keep_top_p(SCORES[:1], p)) == [first]


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest():
    assert kept(keep_min_p(SCORES, 0.25)) == [[1, 2, 3], [0, 1, 2, 3, 4]]


def test_filters_run_in_the_order_of_hugging_face():
    # After top-k 2 the likeliest holds 5/7, which alone reaches p = 0.7, and before it does not;
    # after temperature 0.5 it is 0.77 of all.
    keys = draw_keys(jax.random.key(0), jnp.arange(500), jnp.int32(0))
    logits = jnp.broadcast_to(SCORES[:1], (500, 5))
    drawn = {
        sampler: set(jax.jit(sampler.choose)(logits, keys)[0].tolist())
        for sampler in (Sampler(1.0, 2, 0.7), Sampler(1.0, None, 0.7), Sampler(0.5, None, 0.7))
    }
    assert list(drawn.values()) == [{1}, {1, 3}, {1}]


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
        ({"top_k": 5}, "temperature is 0, which takes the most likely token, so top_k"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(SamplingError) as refusal:
        make_sampler(**values)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("mesh", "spec"),
    [("1", (None, None)), ("2x2x2", (None, ("z", "y", "x"))), ("2x2x2", ("x", ("z", "y"))),
     pytest.param("2x2x2", (("x", "y"), None), marks=pytest.mark.slow),
     pytest.param("1x1x8", (None, "z"), marks=pytest.mark.slow)],
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


@pytest.mark.parametrize(
    ("mesh", "spec"),
    [("1x1x1", jax.P()), ("2x2x2", jax.P("x", ("z", "y"))),
     pytest.param("1x2x4", jax.P(None, ("y", "z")), marks=pytest.mark.slow)],
)  # fmt: skip
def test_the_likeliest_tokens_come_with_their_log_probabilities_on_any_mesh(mesh, spec):
    scores = np.random.default_rng(1).integers(0, 9, (4, 24)).astype(np.float32)  # many are equal
    expected = np.argsort(-scores, axis=-1, kind="stable")[:, :5]
    normed = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    with jax.set_mesh(make_mesh(parse_mesh(mesh))):
        tokens, logprobs = jax.jit(likeliest, static_argnums=1)(jax.reshard(scores, spec), 5)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(logprobs, np.take_along_axis(normed, expected, -1), rtol=1e-5)


def test_draws_follow_the_distribution():
    draws = 4000
    keys = draw_keys(jax.random.key(0), jnp.arange(draws), jnp.int32(3))
    scores = jnp.broadcast_to(SCORES[:1], (draws, 5))
    tokens = np.asarray(jax.vmap(jax.random.categorical)(keys, scores))
    frequencies = np.bincount(tokens, minlength=5) / draws
    spread = np.sqrt(PROBABILITIES[0] * (1 - PROBABILITIES[0]) / draws)
    assert (np.abs(frequencies - PROBABILITIES[0]) < 4 * spread).all()


@pytest.mark.parametrize("value", [0.0, 1e-300, 1e-45, 1e-40, 1.1e-38, 1.1754943e-38])
def test_a_temperature_that_rounds_to_none_is_greedy(value):
    assert make_sampler(value).greedy and Sampler(value).settings.temperature == 0
    with pytest.raises(SamplingError, match="takes the most likely token, so top_p has no effect"):
        make_sampler(value, top_p=0.9)
    settings = Settings(np.array([value, 1.0], np.float32))
    logits = jnp.broadcast_to(SCORES[:1], (2, 5))
    tokens, _ = choose_by_row(logits, draw_keys(jax.random.key(0), jnp.arange(2), 0), settings)
    assert tokens[0] == 1


ENDS = np.array([[0, 3e38, -3e38, 2e38], [-3e38, -3e38, -2e38, -3e38], [5, 90, 7, 89.5]])


def test_the_lowest_temperatures_take_the_likeliest_token():
    for value in (LEAST_TEMPERATURE, 2e-38, 1e-37, 1e-30, 1e-3):
        for filters in ({}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}):
            sampler = make_sampler(value, **filters)
            keys = draw_keys(jax.random.key(0), jnp.arange(3), jnp.int32(0))
            logits = jnp.asarray(ENDS, jnp.float32)
            tokens, logprobs = BY_ROW(logits, keys, settings_of([sampler] * 3))
            assert tokens.tolist() == [1, 2, 1]
            assert np.isfinite(np.asarray(logprobs)).all()
    assert Sampler(1e-37).choose(logits, keys)[0].tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("settings", "possible"),
    [({"temperature": 1e300}, {0, 1, 2, 3, 4}), ({"temperature": 3e38}, {0, 1, 2, 3, 4}),
     ({"temperature": 3e38, "top_k": 2}, None), ({"temperature": 1, "top_p": 1e-45}, {1}),
     ({"temperature": 1, "top_p": 1e-38}, {1}), ({"temperature": 1, "min_p": 1}, {1}),
     ({"temperature": 1, "top_p": 1 - 1e-9, "min_p": 1e-45}, {0, 1, 2, 3, 4}),
     ({"temperature": 1, "top_k": 1}, {1}), ({"temperature": 1, "top_k": 10**12}, {0, 1, 2, 3, 4}),
     ({"temperature": 1, "top_p": 1, "min_p": 0}, {0, 1, 2, 3, 4})],
)  # fmt: skip
def test_values_at_the_ends_of_their_range_draw_what_they_say(settings, possible):
    logits = jnp.asarray(np.tile([*np.log(PROBABILITIES[0]), -np.inf], (500, 1)), jnp.float32)
    keys = draw_keys(jax.random.key(1), jnp.arange(500), jnp.int32(0))
    sampler = make_sampler(**settings)
    each = settings_of([sampler] * 500)
    for tokens, _ in (jax.jit(sampler.choose)(logits, keys), BY_ROW(logits, keys, each)):
        drawn = set(tokens.tolist())
        assert drawn == possible if possible else 5 not in drawn


SAMPLERS = (
    *(GREEDY, Sampler(0.7), Sampler(1.3, 5), Sampler(1.0, None, 0.8), GREEDY),
    *(Sampler(0.5, None, None, 0.1), Sampler(2.0, 40, 0.95, 0.01), Sampler(0.01, 3, 0.5, 0.9)),
)


@pytest.mark.parametrize(
    ("mesh", "spec"),
    [("1", (None, None)), ("2x2x2", ("x", ("z", "y"))),
     pytest.param("2x2x2", (None, ("z", "y", "x")), marks=pytest.mark.slow),
     pytest.param("2x2x2", (("x", "y"), None), marks=pytest.mark.slow),
     pytest.param("1x1x8", (None, "z"), marks=pytest.mark.slow)],
)  # fmt: skip
def test_each_sequence_draws_by_its_own_sampler_as_alone_on_any_mesh(mesh, spec):
    rows, vocabulary = len(SAMPLERS), 64
    logits = np.random.default_rng(0).normal(0, 3, (rows, vocabulary)).astype(np.float32)
    keys = draw_keys(jax.random.key(0), jnp.arange(rows), jnp.int32(3))
    alone = [
        int(BY_ROW(*(part[row : row + 1] for part in (logits, keys)), settings_of([sampler]))[0][0])
        for row, sampler in enumerate(SAMPLERS)
    ]
    devices = make_mesh(parse_mesh(mesh))
    with jax.set_mesh(devices):
        placed = jax.device_put(logits, jax.NamedSharding(devices, jax.P(*spec)))
        complete = jax.NamedSharding(devices, jax.P(None))
        arguments = jax.device_put((keys, settings_of(SAMPLERS)), complete)
        choose = jax.jit(draw).lower(placed, *arguments).compile()
        tokens, logprobs = map(np.asarray, choose(placed, *arguments))
    assert tokens.tolist() == alone
    scores = logits.astype(np.float64)
    expected = scores[np.arange(rows), tokens] - np.log(np.exp(scores).sum(axis=-1))
    np.testing.assert_allclose(logprobs, expected, rtol=1e-6, atol=1e-5)
    kinds = sorted(one.kind for one in census(choose.as_text(), devices))
    # Whole rows come in one exchange, and one gathering brings the tokens everywhere.
    assert kinds == ["all-gather"] * (mesh != "1") + ["all-to-all"] * (spec[1] is not None)


@pytest.mark.slow  # by default `test_serving_tokens` draws by rows and by a program's sampler
def test_sequences_draw_by_samplers_in_one_program_as_by_each_samplers_own():
    rows, devices = len(SAMPLERS), make_mesh(parse_mesh("1x2x2"))
    logits = np.random.default_rng(0).normal(0, 3, (rows, 64)).astype(np.float32)
    keys = draw_keys(jax.random.key(0), jnp.arange(rows), jnp.int32(3))
    alone = [int(sampler.choose(logits, keys)[0][row]) for row, sampler in enumerate(SAMPLERS)]
    with jax.set_mesh(devices):
        placed = jax.device_put(logits, jax.NamedSharding(devices, jax.P("y", "z")))
        keys = jax.device_put(keys, jax.NamedSharding(devices, jax.P(None)))
        assert BY_ROW(placed, keys, settings_of(SAMPLERS))[0].tolist() == alone
        greedy, _ = BY_ROW(placed, keys, settings_of([GREEDY] * rows))
    assert greedy.tolist() == logits.argmax(axis=-1).tolist()


@pytest.mark.parametrize("rows", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_rows_that_the_mesh_does_not_divide_draw_the_same(rows):
    logits = np.random.default_rng(0).normal(0, 3, (rows, 64)).astype(np.float32)
    keys = draw_keys(jax.random.key(0), jnp.arange(rows), jnp.int32(3))
    sampler = Sampler(1.0, 20, 0.9)
    alone = jax.jit(sampler.choose)(logits, keys)[0].tolist()
    devices = make_mesh(parse_mesh("2x2x2"))
    with jax.set_mesh(devices):
        placed = jax.device_put(logits, jax.NamedSharding(devices, jax.P(None, ("z", "y", "x"))))
        keys = jax.device_put(keys, jax.NamedSharding(devices, jax.P(None)))
        assert jax.jit(sampler.choose)(placed, keys)[0].tolist() == alone


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
    assert sampled(engine("2x2x2"), prompts, seed=7) == together
    # Alone, with other padding: the first sequence keeps its number, 0.
    assert sampled(engine("1x1x1"), prompts[:1], seed=7) == together[:1]
    assert sampled(engine("1x1x1"), prompts, seed=8) != together
    # Equal prompts in one batch draw apart.
    first, second, third = sampled(engine("1x1x1"), [*prompts[:1] * 2, prompts[2]], seed=7)
    assert [first, third] == [together[0], together[2]] and first != second
