"""The PTX of GPU kernels makes the numbers of the plain form, of every word that there is."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sharding import float8
from sharding.grouped_gpu import floats_of, ptx_of, values_of
from tests.sharding.ptx_evaluator import evaluate, halves

WORDS = np.arange(2**16, dtype=np.uint32)
PAIRS = WORDS | WORDS[::-1] << np.uint32(16)


def plain(bits: int, signed: bool) -> np.ndarray:
    """Values of all words, [2**16, places], the first in the lowest bits."""
    fields = (WORDS[:, None] >> np.arange(0, 16, bits)) & (2**bits - 1)
    values = fields.astype(np.int64)
    return np.where(signed & (values >= 2 ** (bits - 1)), values - 2**bits, values)


def numbers() -> tuple[np.ndarray, np.ndarray]:
    """Scales and offsets, a bfloat16 number for each word."""
    random = np.random.default_rng(0)
    scales, offsets = random.uniform(0.01, 2, 2**16), random.uniform(-20, 20, 2**16)
    return tuple(each.astype(ml_dtypes.bfloat16) for each in (scales, offsets))


def register(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    low, high = (each.view(np.uint16).astype(np.uint32) for each in (low, high))
    return low | high << np.uint32(16)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_values_as_they_are_stored_less_half_where_they_have_no_sign(bits, signed):
    wanted = plain(bits, signed) - (0 if signed else 2 ** (bits - 1))
    for place in range(16 // bits):
        low, high = halves(evaluate(ptx_of(place, bits, signed, scaled=False), {"$1": PAIRS}))
        np.testing.assert_array_equal(low, wanted[:, place])
        np.testing.assert_array_equal(high, wanted[::-1, place])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_scales_and_offsets_round_the_number_once(bits, signed):
    scales, offsets = numbers()
    values = plain(bits, signed) - (0 if signed else 2 ** (bits - 1))
    operands = {"$1": PAIRS, "$2": register(scales, scales[::-1])}
    operands["$3"] = register(offsets, offsets[::-1])
    for place in range(16 // bits):
        exact = values[:, place] * scales.astype(np.float64) + offsets.astype(np.float64)
        found = evaluate(ptx_of(place, bits, signed, scaled=True), operands)
        # Words and numbers both stand in the other order in the higher halves.
        for half, wanted in zip(halves(found), (exact, exact[::-1]), strict=True):
            assert np.all(np.abs(half - wanted) <= 2**-8 * np.abs(wanted))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_what_is_interpreted_makes_the_same_numbers(bits, signed):
    """A group of 16 words for each scale; the kernel allows for values that have no sign."""
    random = np.random.default_rng(1)
    scales, offsets = (
        jnp.asarray(random.uniform(*span, (2**4, 2**8)), jnp.float32)
        for span in ((0.01, 2), (-20, 20))
    )
    packed = jnp.asarray(WORDS.astype(np.uint16).view(np.int16)).reshape(2**4, 2**12)
    places = values_of(signed, jnp.bfloat16, True, packed, 16 // bits, scales, offsets)
    shift = 0 if signed else 2 ** (bits - 1)
    scale, offset = (
        np.repeat(np.asarray(each.astype(jnp.bfloat16)), 2**4, axis=1).ravel()
        for each in (scales, offsets + shift * scales)
    )
    operands = {"$1": WORDS, "$2": register(scale, scale), "$3": register(offset, offset)}
    for place, numbers in enumerate(places):
        low, _ = halves(evaluate(ptx_of(place, bits, signed, scaled=True), operands))
        wanted = np.asarray(numbers, np.float64).ravel()
        # Rounded to float32 first, a number may end on the other side of a tie.
        assert np.mean(low == wanted) > 0.999
        np.testing.assert_allclose(low, wanted, rtol=2**-7)


@pytest.mark.parametrize("place", [0, 1])
def test_floats_of_eight_bits_are_exact(place):
    stored = WORDS.astype(np.uint16).view(np.uint8).reshape(-1, 2)[:, place]
    wanted = stored.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    numbers = ~np.isnan(wanted)  # of which there are none in a file
    assert np.mean(numbers) == 254 / 256
    low, high = halves(evaluate(float8.ptx_of(place), {"$1": PAIRS}))
    np.testing.assert_array_equal(low[numbers], wanted[numbers])
    np.testing.assert_array_equal(high[numbers[::-1]], wanted[::-1][numbers[::-1]])
    assert (np.signbit(low) == (stored > 127)).all()
    packed = jnp.asarray(WORDS.astype(np.uint16).view(np.int16))[None]
    interpreted = [*floats_of(jnp.float32, True, packed, 2)][place]
    np.testing.assert_array_equal(np.asarray(interpreted[0])[numbers], wanted[numbers])
