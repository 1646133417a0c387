"""Four-bit floats: every code, every rounding, and what NumPy's own type of them makes."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from sharding.float4 import NUMBERS, decode, decode_scales, encode


def test_every_code_stands_for_its_number():
    stored = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    found = np.asarray(decode(jnp.arange(16).astype(jnp.uint4)))
    for each in (NUMBERS, found):
        np.testing.assert_array_equal(each, stored)
        np.testing.assert_array_equal(np.signbit(each), np.signbit(stored))


def test_scales_are_powers_of_two_and_others_stay():
    codes = np.arange(1, 255, dtype=np.uint8)
    expected = np.ldexp(np.float32(1), codes.astype(int) - 127)
    np.testing.assert_array_equal(decode_scales(jnp.asarray(codes)), expected)
    plain = jnp.asarray([0.3, 7.0])
    assert decode_scales(plain) is plain


def test_numbers_are_rounded_to_the_nearest_and_halves_to_even_codes():
    numbers = np.linspace(-6, 6, 961, dtype=np.float32)  # all halves between two are among them
    codes, scales = encode(jnp.asarray(numbers)[None], jnp.asarray([[7.9]]))
    expected = numbers.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(decode(codes)[0], expected)
    assert scales.tolist() == [[127]]


def test_the_largest_number_of_a_block_is_from_four_to_eight_times_its_scale():
    largest = np.geomspace(1e-37, 1e37, 1001, dtype=np.float32)[:, None]
    codes, scales = encode(jnp.asarray(largest), jnp.asarray(largest))
    times = largest / np.asarray(decode_scales(scales))
    assert times.min() >= 4 and times.max() < 8
    found = np.asarray(decode(codes) * decode_scales(scales))
    assert (np.abs(found - largest) <= largest / 4).all()


def test_numbers_that_have_codes_keep_them():
    random = np.random.default_rng(0)
    codes = random.integers(0, 16, (64, 32)).astype(np.uint8)
    codes[codes == 8] = 0  # minus nothing
    scales = random.integers(2, 250, (64, 1)).astype(np.uint8)
    numbers = NUMBERS[codes] * np.asarray(decode_scales(jnp.asarray(scales)))
    again, of_blocks = encode(jnp.asarray(numbers), jnp.max(jnp.abs(numbers), 1, keepdims=True))
    np.testing.assert_array_equal(decode(again) * decode_scales(of_blocks), numbers)


def test_blocks_of_zeros_stay_zeros():
    codes, scales = encode(jnp.zeros((2, 32)), jnp.zeros((2, 1)))
    assert not np.asarray(codes, np.uint8).any() and (np.asarray(scales) == 127).all()
