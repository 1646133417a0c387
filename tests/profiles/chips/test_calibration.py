"""Calibrations: every chip has one, and a file of one's own is checked."""

import dataclasses
import json

import numpy as np
import pytest

from profiles.chips.calibration import calibration_of, read_calibration
from profiles.chips.chip import chips
from sharding.error_types import UsageError


def test_every_chip_has_a_calibration_which_says_if_it_is_lent():
    for chip in chips():
        found = calibration_of(chip.name)
        assert found.source
        assert ("lent to" in found.describe(chip.name)) == (chip.name not in found.chips)


def test_a_file_is_read_and_a_wrong_one_is_refused_by_what_is_wrong(tmp_path):
    given = calibration_of("v5e").as_record() | {"memory": 0.5, "name": "mine"}
    path = tmp_path / "mine.json"

    def read(changes):
        path.write_text(json.dumps(given | changes))
        return read_calibration(str(path))

    assert read({}).memory == 0.5
    for changes, message in (
        ({"memory": 1.5}, "memory of calibration mine is 1.5"),
        ({"layer_s": -1}, "layer_s of calibration mine is -1"),
        ({"link": "fast"}, "link of the calibration in .* is 'fast'"),
        ({"chips": 5}, "chips of the calibration in .* is 5; use a list"),
        ({"hidden": "no"}, "hidden of the calibration in .* is 'no'; use true or false"),
        ({"measured_on": 5}, "measured_on of the calibration in .* is 5; use text"),
        ({"speed": 1}, "is not of the fields"),
        ({"experts": 2}, "experts of calibration mine is 2"),
        ({"sequence_s": -1}, "sequence_s of calibration mine is -1"),
        ({"adds": 1}, "adds of the calibration in .* is 1; use true or false"),
        ({"fitted": "memory"}, "fitted of the calibration in .* is 'memory'; use a list"),
        ({"engine": None}, "engine of the calibration in .* is None; use text"),
        ({"attention": 0}, "attention of calibration mine is 0"),
        ({"attention": "slow"}, "attention of the calibration in .* is 'slow'; use a number"),
        (
            {"compute_by_rows": [0.1]},
            r"compute_by_rows of the calibration in .* is \[0.1\]; use",
        ),
        ({"compute_by_rows": {"few": 0.1}}, "compute_by_rows of .* has 'few'; use numbers of rows"),
        ({"compute_by_rows": {"4": True}}, "compute_by_rows at 4 of .* is True; use a number"),
        ({"compute_by_rows": {"4": 2}}, "compute_by_rows at 4 of calibration mine is 2"),
        ({"compute_by_rows": {"0.5": 0.1}}, "compute_by_rows of calibration mine has 0.5 rows"),
        ({"compute_by_rows": {"nan": 0.1}}, "compute_by_rows of calibration mine has nan rows"),
        (
            {"compute_by_rows": {"8": 0.1, "4": 0.2}},
            "goes from 0.1 at 8 rows to 0.2 at 4; use",
        ),
        (
            {"compute_by_rows": {"4": 0.2, "8": 0.1}},
            "goes from 0.2 at 4 rows to 0.1 at 8; use",
        ),
        ({"compute_by_rows": {"4": 0.2, "inf": 0.3}}, "goes from 0.2 at 4 rows to 0.3 at inf"),
        (
            {"peaks": {"bandwidth": 0}},
            "peaks of calibration mine have bandwidth of 0; use",
        ),
        ({"peaks": {"speed": 1}}, "peaks of calibration mine have speed of 1"),
        ({"peaks": "high"}, "peaks of the calibration in .* is 'high'; use an object"),
    ):
        with pytest.raises(UsageError, match=message):
            read(changes)
    path.write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        read_calibration(str(path))
    with pytest.raises(UsageError, match="cannot be read"):
        read_calibration(str(tmp_path / "none.json"))


def test_what_was_fitted_is_lent_and_what_was_measured_is_refused_for_other_chips(tmp_path):
    path = tmp_path / "fitted.json"
    fields = calibration_of("v5e").as_record()
    del fields["measured_on"]  # as in files of a user's own
    path.write_text(json.dumps(fields))
    fitted = read_calibration(str(path))
    fitted.check_chip("v5e")
    fitted.check_chip("h100")
    measured = dataclasses.replace(fitted, name="mine", measured_on="v5e")
    measured.check_chip("v5e")
    with pytest.raises(UsageError, match="calibration mine is measured on v5e, not on h100; give"):
        measured.check_chip("h100")


def test_a_fraction_by_rows_is_interpolated_and_constant_beyond():
    """By logarithms: halfway between 4 and 64 rows are 16."""
    plain = calibration_of("v5e")
    assert plain.compute_at(3) == plain.compute
    one = dataclasses.replace(plain, compute_by_rows=((4, 0.1), (64, 0.4)))
    found = [one.compute_at(rows) for rows in (1, 4, 16, 64, 1e6)]
    assert found == pytest.approx([0.1, 0.1, 0.2, 0.4, 0.4])
    np.testing.assert_allclose(one.compute_at(np.array([[0, 16]])), [[0.1, 0.2]])
    single = dataclasses.replace(plain, compute_by_rows=((8, 0.3),))
    assert single.compute_at(1) == single.compute_at(100) == pytest.approx(0.3)


def test_more_rows_never_take_less_time_between_the_given_ones():
    one = dataclasses.replace(
        calibration_of("v5e"), compute_by_rows=((1, 0.01), (4, 0.04), (9, 0.05))
    )
    rows = np.linspace(1, 20, 50)
    times = one.compute_s(rows * 1e9, 0.0, rows, 1e12)
    assert (np.diff(times) >= -1e-12).all()


def test_attention_has_a_rate_of_its_own_where_it_is_given():
    plain = calibration_of("v5e")
    assert plain.compute_s(8e9, 2e9, 1, 1e12) == 8e9 / (1e12 * plain.compute)
    one = dataclasses.replace(plain, attention=0.01, compute_by_rows=((1, 0.1),))
    assert one.compute_s(8e9, 2e9, 1, 1e12) == pytest.approx(6e9 / 1e11 + 2e9 / 1e10)


def test_experts_have_a_rate_of_their_own_where_it_is_given():
    plain = calibration_of("v5e")
    assert plain.compute_s(8e9, 2e9, 1, 1e12, 3e9) == 8e9 / (1e12 * plain.compute)
    one = dataclasses.replace(plain, compute=0.5, experts=0.1, attention=0.2)
    assert one.compute_s(8e9, 2e9, 1, 1e12, 3e9) == pytest.approx(3e9 / 5e11 + 0.01 + 0.03)


def test_memory_and_arithmetic_overlap_or_take_turns():
    plain = calibration_of("v5e")
    assert plain.together(2.0, 3.0) == 3.0
    turns = dataclasses.replace(plain, adds=True)
    np.testing.assert_array_equal(turns.together(np.array([2.0, 1.0]), 3.0), [5.0, 4.0])


def test_a_record_is_read_back_and_says_nothing_that_is_not_there(tmp_path):
    plain = calibration_of("v5e")
    unsaid = {"attention", "compute_by_rows", "peaks", "experts", "adds", "sequence_s", "borrowed"}
    assert not unsaid & plain.as_record().keys()
    tables = {"compute_by_rows": ((1, 0.1), (16, 0.3)), "peaks": (("flops", 1e11),)}
    more = {"adds": True, "experts": 0.2, "sequence_s": 1e-6, "fitted": ("memory", "experts")}
    one = dataclasses.replace(plain, attention=0.02, engine="vLLM", borrowed="", **tables, **more)
    path = tmp_path / "one.json"
    path.write_text(json.dumps(one.as_record()))
    assert read_calibration(str(path)) == one


def test_a_set_of_two_runs_stands_for_its_engine_alone():
    assert calibration_of("mi300x", "vLLM").name == "vllm-mi300x"
    assert calibration_of("mi300x").describe("mi300x") == (
        "tensorrt-llm-hopper, fitted to TensorRT-LLM, lent to mi300x from h100, h200"
    )
    assert calibration_of("tpu7x").name == "tpu-v5e-2025"
    assert calibration_of("tpu7x", "sglang-jax").name == "vllm-tpu7x"  # at least of its chip
    assert calibration_of("v6e").name == "sglang-jax-v6e"
