"""What few bits cost a real model: SmolLM2's perplexity of a fixed text, held to bars."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from decode.perplexity import perplexity
from model.dtypes import FLOAT32, Dtypes
from profiles.floor.storage_table import PERPLEXITY
from profiles.measured.perplexity_table import TEXT, measure
from sharding.quantization import QUANTIZATIONS


@functools.cache
def plain(source, cached: bool) -> float:
    return measure(source, FLOAT32, cached)


def test_the_text_is_long_enough(smollm2):
    assert len(smollm2.tokenizer.encode(TEXT.read_text())) == 1341


def test_perplexity_is_the_exponential_of_the_mean_loss(tiny_engine):
    engine = tiny_engine()
    tokens = np.random.default_rng(0).integers(0, 256, (2, 12)).astype(np.int32)
    logits = np.asarray(engine.forward(tokens), np.float64)
    odds = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    each = [odds[b, t, tokens[b, t + 1]] for b in range(2) for t in range(11)]
    assert perplexity(engine, tokens) == pytest.approx(np.exp(-np.mean(np.log(each))))
    assert perplexity(engine, tokens, cached=True) == pytest.approx(perplexity(engine, tokens))


@pytest.mark.slow
@pytest.mark.usefixtures("all_optimizations")
@pytest.mark.parametrize("name", PERPLEXITY)
def test_weights_in_few_bits_lose_little(smollm2, name):
    found = measure(smollm2, Dtypes(jnp.float32, QUANTIZATIONS[name]), False)
    assert 0.9 < found / plain(smollm2, False) < PERPLEXITY[name]


@pytest.mark.slow
@pytest.mark.usefixtures("all_optimizations")
def test_a_cache_in_int8_loses_little(smollm2):
    found = measure(smollm2, Dtypes(jnp.float32, None, QUANTIZATIONS["int8"]), True)
    assert 0.95 < found / plain(smollm2, True) < 1.01


@pytest.mark.slow
@pytest.mark.usefixtures("all_optimizations")
def test_symmetric_int4_loses_much_of_weights_that_have_an_offset(smollm2):
    found = measure(smollm2, Dtypes(jnp.float32, QUANTIZATIONS["int4_symmetric"]), False)
    assert 1.15 < found / plain(smollm2, False) < 1.45
