import dataclasses

import pytest

from profiles.published.printed_figures import (
    check_digits,
    figures,
    left_over,
    not_recomputed,
    step,
)
from sharding.error_types import FloorlineError


@pytest.fixture(scope="module")
def found():
    return figures()


def of(found, source, what="step"):
    return [
        each for each in found if source in str(each.line["locator"]) and each.line["what"] == what
    ]


def test_all_printed_digits_come_out_of_their_equations(found):
    assert len(found) >= 60
    assert [f"{each.line['locator']} {each.at}" for each in found if not each.agrees] == []
    check_digits(found)


def test_a_printed_digit_that_does_not_come_out_is_refused(found):
    wrong = dataclasses.replace(found[0], printed="4.99")
    with pytest.raises(FloorlineError, match=r"prints 4\.99"):
        check_digits([wrong])


def test_the_13b_table_is_printed_in_full(found):
    rows = {each.at: each.printed for each in of(found, "Llama 2 13B on 8 v5e")}
    assert rows == {
        "1": "4.98",
        "8": "12.13",
        "16": "20.30",
        "32": "36.65",
        "64": "69.33",
        "240": "249.09",
    }


@pytest.mark.parametrize(
    "locator", ["Llama 2 13B on 8 v5e", "int8 on v5e 4x2", "int8 on v5e 4x4, 2,048"]
)
def test_exact_counts_are_within_two_percent_of_theirs(found, locator):
    rows = of(found, locator)
    assert rows and all(abs(each.difference) < 0.02 for each in rows)


def test_named_differences_account_for_every_byte(found):
    parts = {each.line["locator"]: left_over(each) for each in found if left_over(each) is not None}
    assert len(parts) == 5
    assert all(abs(part) < 1e-9 for part in parts.values()), parts


def test_every_count_that_differs_names_why(found):
    for each in found:
        if each.difference is not None and abs(each.difference) > 1e-6:
            assert each.line.get("differences"), each.line["locator"]


def test_the_talks_figures_stand_beside_counts_of_the_model_it_names(found):
    talk = {each.line["what"]: each for each in found if "podcast" in each.line["source"]}
    batch = talk["critical batch"]
    assert batch.printed == "2400" and batch.derived == 300 * 256 / 32
    assert batch.counted / 300 == pytest.approx(671.0 / 36.6, rel=0.01)
    gains = [each.counted for each in found if each.line["what"] == "batching gain"]
    every, touched = gains[:4], gains[4:]
    assert every[0] == pytest.approx(batch.counted, rel=0.01)
    assert every == sorted(every, reverse=True) and every[0] > 1000 > every[-1]
    assert all(few < all_ / 5 for few, all_ in zip(touched, every, strict=True))


def test_a_step_adds_cache_reads_to_the_larger_of_weights_and_arithmetic():
    sizes = {"weights": 100.0, "bandwidth": 10.0, "cache": 5.0, "parameters": 50, "chips": 2}
    assert step(batch=2, **sizes) == pytest.approx((2 * 5 / 10 + 100 / 10) / 2)
    assert step(batch=2, flops=10.0, **sizes) == pytest.approx((2 * 5 / 10 + 2 * 2 * 50 / 10) / 2)


def test_figures_that_no_equation_gives_say_why():
    assert all(each["why"] and each["source"] for each in not_recomputed())
