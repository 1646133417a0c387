"""Closed forms of speculation, against sums and cases worked out by hand."""

import math

import pytest

from profiles.floor import speculation


def test_a_step_keeps_the_drafts_before_the_first_that_is_rejected_and_one_token():
    """Outcomes listed by hand: two drafts at 0.5 keep 1, 2 or 3 tokens with 1/2, 1/4, 1/4."""
    assert speculation.tokens_per_step(2, 0.5) == pytest.approx(1 / 2 + 2 / 4 + 3 / 4)
    assert speculation.tokens_per_step(3, 1.0) == 4 and speculation.tokens_per_step(3, 0.0) == 1
    assert speculation.tokens_per_step(4, 0.8) == pytest.approx((1 - 0.8**5) / (1 - 0.8))


def test_speculation_stops_paying_where_its_arithmetic_takes_as_long_as_the_read_it_saves():
    """2 ms of weights, 10 us a token: critical batch 200; 1.5 of 2 tokens kept leaves 150."""
    found = speculation.largest_paying_batch(2e-3, 0.0, 1e-5, 1, 0.5)
    assert found == pytest.approx(150)
    with_cache = speculation.largest_paying_batch(2e-3, 5e-6, 1e-5, 1, 0.5)
    assert with_cache == pytest.approx(2e-3 / (2 * 1e-5 / 1.5 - 5e-6))  # 240
    plain = 2e-3 + with_cache * 5e-6
    assert 2 * with_cache * 1e-5 / 1.5 == pytest.approx(plain)
    assert math.isinf(speculation.largest_paying_batch(2e-3, 2e-5, 1e-5, 1, 0.5))
