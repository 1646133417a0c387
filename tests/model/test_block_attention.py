"""Attention in the form that XLA compiles, against float64 over the keys that each query sees."""

import functools

import ml_dtypes
import numpy as np
import pytest

from model import block_attention
from model.block_attention import attend_part
from model.softmax_parts import join
from tests.model.attention_cases import CASES, FEW, check, run, visible
from tests.model.attention_cases import make_case as any_case

make_case = functools.partial(any_case, garbage=100.0)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """So that the cases have several, the last of which is no whole one."""
    monkeypatch.setattr(block_attention, "KEYS_OF_A_TOKEN", 8)
    monkeypatch.setattr(block_attention, "FEW_SLOTS", 16)
    monkeypatch.setattr(block_attention, "KEYS_OF_A_PROMPT", 24)
    monkeypatch.setattr(block_attention, "QUERIES", 16)


MORE = CASES.keys() - {*FEW, "own_chunk_and_a_ring_of_what_came_before"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in MORE else ()) for n in CASES]
)
def test_a_part_is_the_softmax_of_the_keys_that_each_query_sees(name):
    check(attend_part, make_case(**CASES[name]))


@pytest.mark.parametrize(
    ("cache", "tokens"),
    [("int8", 20), ("float8_e4m3fn", 1),
     *(pytest.param(*case, marks=pytest.mark.slow)
       for case in (("int8", 1), ("float8_e4m3fn", 20), ("bfloat16", 1), ("bfloat16", 20)))],
)  # fmt: skip
def test_stored_types_are_read_as_they_are(cache, tokens):
    changes = {"T": tokens, "first_query": (50, 0), "filled": (50 + tokens, tokens)}
    check(attend_part, make_case(cache=np.dtype(cache), **changes))


def test_bfloat16_queries_differ_by_their_rounding():
    types = {"dtype": ml_dtypes.bfloat16, "cache": ml_dtypes.bfloat16}
    check(attend_part, make_case(**types), tolerance=2e-2)


@pytest.mark.parametrize("tokens", [pytest.param(1, marks=pytest.mark.slow), 20])
def test_parts_over_halves_of_the_slots_join_to_the_whole(tokens):
    whole = make_case(T=tokens, first_query=(50, 0), filled=(50 + tokens, tokens))
    halves = []
    for first in (0, 50):
        half = whole | {"S": 50, "first_key": (first, first)}
        half |= {name: whole[name][:, :, first : first + 50] for name in ("keys", "values")}
        halves.append(run(attend_part, half))
    for mine, theirs in zip(join(*halves), run(attend_part, whole), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_block_that_no_query_sees_is_never_read(tokens):
    """The values there are real, and would spoil every sum."""
    case = make_case(
        S=256, T=tokens, window=32, first_query=(200, 190), filled=(200 + tokens, 190 + tokens)
    )
    size = 8 if tokens == 1 else 24
    seen = [visible(case, b, q + t) for b, q in enumerate(case["first_query"])
            for t in range(tokens)]  # fmt: skip
    blocks = np.pad(np.any(seen, axis=0), (0, -256 % size)).reshape(-1, size).any(axis=1)
    case["values"][:, :, ~blocks.repeat(size)[:256]] = np.inf
    assert np.isfinite(run(attend_part, case).sums).all()
