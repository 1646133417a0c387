"""Numbers as people read them."""

import random

import pytest

from profiles.report import numbers


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1239.6, "1,240"),
        (31987.2, "31,987"),
        (2.23e2, "223"),
        (99.96, "100"),
        (9.996, "10.0"),
        (0.9996, "1.00"),
        (26, "26.0"),
        (9.92, "9.92"),
        (2.64, "2.64"),
        (0.0504, "0.0504"),
        (1.2e-7, "0.000000120"),
        (-0.4567, "-0.457"),
        (123456789.0, "123,456,789"),
        (0.0, "0"),
        (0, "0"),
    ],
)
def test_three_figures_or_a_whole_number(value, words):
    assert numbers.number(value) == words


def test_no_number_of_the_usual_range_has_an_exponent_or_a_bare_point_or_is_far_off():
    pick = random.Random(0)
    for _ in range(2000):
        value = pick.choice((-1, 1)) * 10 ** pick.uniform(-8, 14)
        for figures in (3, 4, 5):
            text = numbers.number(value, figures)
            assert "e" not in text and not text.endswith(".")
            assert float(text.replace(",", "")) == pytest.approx(
                value, rel=0.501 * 10 ** (1 - figures)
            )


def test_milliseconds_are_rounded_before_their_form_is_chosen():
    assert [numbers.ms(s) for s in (0.09996, 0.099, 3.13, 5.04e-5)] == [
        "100", "99.0", "3,130", "0.0504"]  # fmt: skip
    assert numbers.milliseconds(0.02) == "20.0 ms"


def test_what_was_given_keeps_the_digits_that_it_had():
    given = [20.0, 4.39, 3350, 0.805, 1e6, 0.0001, 2.4]
    assert list(map(numbers.exact, given)) == [
        "20", "4.39", "3,350", "0.805", "1,000,000", "0.0001", "2.4"]  # fmt: skip
    assert numbers.exact(1e300) == "1.00000e+300" and numbers.exact(float("inf")) == "inf"


def test_bytes_are_in_the_unit_that_their_rounded_number_needs():
    sizes = [0, 1, 999, 1500, 999_600, 999_600_000, 16.04e9, 1.2346e12]
    assert list(map(numbers.byte_size, sizes)) == [
        "0 bytes", "1 byte", "999 bytes", "1.50 kB", "1.00 MB", "1.00 GB", "16.0 GB", "1,235 GB",
    ]  # fmt: skip


def test_ticks_are_short_and_plain():
    ticks = [0.5, 1000, 4096, 16384, 131072, 999_600, 2e6, 3.5e9]
    assert list(map(numbers.short, ticks)) == [
        "0.5", "1000", "4096", "16.4k", "131k", "1M", "2M", "3.5G"]  # fmt: skip


def test_one_of_a_kind_is_singular():
    assert [numbers.several(n, "chip") for n in (0, 1, 2, 1024)] == [
        "0 chips", "1 chip", "2 chips", "1,024 chips"]  # fmt: skip
