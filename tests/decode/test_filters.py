"""Filters without a sort keep what the same filters keep by sorting, on scores of all kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decode.filters import keep_min_p, keep_top_k, keep_top_p

LARGEST = np.finfo(np.float32).max
SMALLEST = np.finfo(np.float32).tiny
ROUNDING = 2e-6  # of sums of probabilities in float32


def rows(vocabulary: int = 1000) -> np.ndarray:
    """Scores [B, V] of a model, and such as are hard: equals, infinities, ends of float32."""
    random = np.random.default_rng(0)
    usual = random.normal(0, 3, (4, vocabulary))
    few = random.choice([-2.5, -0.0, 0.0, 1.5], vocabulary)
    infinite = np.where(random.random(vocabulary) < 0.5, -np.inf, usual[0])
    almost_all = np.full(vocabulary, -np.inf)
    almost_all[17] = 3
    ends = random.choice([-LARGEST, LARGEST, -SMALLEST, SMALLEST, 0], vocabulary)
    wide = random.choice([-1, 1], vocabulary) * 10.0 ** random.uniform(-37, 38, vocabulary)
    close = np.nextafter(np.float32(1), random.choice([0, 2], vocabulary).astype(np.float32))
    hard = (few, infinite, almost_all, ends, wide, close, np.zeros(vocabulary))
    return np.stack([*usual, *hard]).astype(np.float32)


def sorted_top_k(scores: np.ndarray, k: int) -> np.ndarray:
    return scores >= np.sort(scores, axis=-1)[:, ::-1][:, min(k, scores.shape[1]) - 1, None]


def masses_below(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of all that scores less than each token, and with its equals, in float64."""
    with np.errstate(invalid="ignore", over="ignore"):
        likelihood = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    likelihood /= likelihood.sum(axis=-1, keepdims=True)
    below, upto = np.empty_like(likelihood), np.empty_like(likelihood)
    for row, each in enumerate(likelihood):
        order = np.sort(scores[row])
        sums = np.concatenate([[0], np.cumsum(each[np.argsort(scores[row])])])
        below[row] = sums[np.searchsorted(order, scores[row], "left")]
        upto[row] = sums[np.searchsorted(order, scores[row], "right")]
    return below, upto


@pytest.mark.parametrize("k", [1, 2, 7, 50, 999, 1000, 4000])
def test_top_k_keeps_what_sorting_keeps(k):
    scores = rows()
    kept = np.asarray(jax.jit(keep_top_k)(scores, k))
    wanted = sorted_top_k(scores, k)
    assert (kept == np.where(wanted, scores, -np.inf)).all()


@pytest.mark.parametrize("p", [1e-38, 1e-3, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0])
def test_top_p_keeps_what_sorting_keeps_but_for_rounding_at_the_boundary(p):
    scores = rows()
    kept = np.asarray(jax.jit(keep_top_p)(scores, p)) > -np.inf
    _, upto = masses_below(scores)
    likeliest = scores == scores.max(axis=-1, keepdims=True)
    assert kept[likeliest].all()
    present = scores > -np.inf
    assert kept[present & (upto > 1 - p + ROUNDING)].all()
    assert not kept[~likeliest & (upto <= 1 - p - ROUNDING)].any()
    if p < 0.01:  # too few for the sum to be near
        assert (kept[:4].sum(axis=-1) == 1).all()


def test_top_p_drops_equals_together_and_keeps_them_together():
    for scores in ([[2, 1, 1, 1, 0]], [[2, 0, 0, 0, 0]]):
        scores = jnp.asarray(scores, jnp.float32)
        least = jnp.unique(scores)[:-1]
        for p in (0.3, 0.6, 0.7, 0.95):
            kept = np.asarray(keep_top_p(scores, p)) > -np.inf
            assert all(len(set(kept[np.asarray(scores) == value])) == 1 for value in least)


@pytest.mark.parametrize("p", [0.0, 1e-38, 0.01, 0.3, 1.0])
def test_min_p_keeps_by_the_ratio_to_the_likeliest(p):
    scores = rows()[[0, 1, 2, 3, 5, 10]]
    kept = np.asarray(jax.jit(keep_min_p)(scores, p)) > -np.inf
    ratio = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    present = scores > -np.inf
    assert kept[present & (ratio > p + ROUNDING)].all()
    assert not kept[ratio < p - ROUNDING].any()
    assert kept[ratio == 1].all()


def test_each_row_takes_its_own_value():
    scores = rows()
    many = len(scores)
    ks = np.arange(1, 5 * many, 5).astype(np.int32)
    ps = np.linspace(0.05, 1, many).astype(np.float32)
    for keep, values in ((keep_top_k, ks), (keep_top_p, ps), (keep_min_p, ps)):
        together = np.asarray(jax.jit(keep)(scores, values))
        for row, value in enumerate(values):
            alone = np.asarray(jax.jit(keep)(scores[row : row + 1], value))
            np.testing.assert_array_equal(together[row : row + 1], alone)


def test_a_vocabulary_of_262_thousand_is_filtered_to_the_token():
    scores = np.random.default_rng(1).normal(0, 3, (2, 262_144)).astype(np.float32)
    assert (np.asarray(keep_top_k(scores, 64) > -np.inf) == sorted_top_k(scores, 64)).all()
    kept = np.asarray(keep_top_p(scores, 0.9)) > -np.inf
    _, upto = masses_below(scores)
    assert (kept == (upto > 0.1))[np.abs(upto - 0.1) > ROUNDING].all()


@pytest.mark.parametrize("keep", [keep_top_k, keep_top_p, keep_min_p])
def test_no_filter_sorts(keep):
    text = jax.jit(keep).lower(rows(), 1).compile().as_text()
    assert "sort(" not in text and "TopK" not in text
