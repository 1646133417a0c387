"""Calibrations: every chip has one, and a file of one's own is checked."""

import dataclasses
import json

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
