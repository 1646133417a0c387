"""The record of a step: JSON has its known fields as they were given, and reads back the same."""

import csv
import dataclasses
import json

import pytest

from profiles.compiled.grid import read_grid
from profiles.report.document import read_document
from profiles.report.files import to_json, write_csv
from profiles.report.lines import lines
from profiles.report.pages import ROOT
from profiles.report.record import CSV_FIELDS, LINE_FIELDS, TITLES, Record

RESULTS = ROOT / "profiles/results"
DOCUMENTS = sorted([*RESULTS.glob("*/profile.json"), *RESULTS.glob("*/curves.json")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.parent.name)
def test_recorded_documents_read_back_byte_for_byte(path):
    found = read_document(path)
    assert found["points"] and all(isinstance(point, Record) for point in found["points"])
    assert to_json(found, indent=1) + "\n" == path.read_text()


def test_recorded_grids_read_back_byte_for_byte():
    paths = sorted(RESULTS.glob("compiled/*/matrix.jsonl"))
    assert len(paths) > 5
    for path in paths:
        _, *recorded = path.read_text().splitlines()
        assert list(map(to_json, read_grid(path)["points"])) == recorded


def test_json_has_the_known_fields_in_the_order_in_which_they_were_given():
    record = Record(status="ok", batch=0, context=None, fits=False)
    assert list(record.to_json().items()) == [("status", "ok"), ("batch", 0), ("fits", False)]
    assert json.loads(to_json([record])) == [{"status": "ok", "batch": 0, "fits": False}]
    assert Record.from_json(record.to_json()) == record


def test_what_another_record_knows_takes_the_place_of_what_was_known():
    found = Record(status="ok", batch=1, message="few") | Record(chips=2, status="unsupported")
    assert list(found.to_json()) == ["status", "batch", "message", "chips"]
    assert (found.status, found.batch, found.chips) == ("unsupported", 1, 2)


def test_a_field_that_there_is_none_of_is_refused():
    with pytest.raises(TypeError, match="speed"):
        Record.from_json({"batch": 1, "speed": 2.0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        Record(batch=1).batch = 2


def test_a_csv_has_the_documented_fields_in_their_order_and_all_others_behind(tmp_path):
    point = Record(price={"usd_per_chip_hour": 1.0}, expert_parallel=True, message="m", batch=1)
    write_csv(tmp_path / "a.csv", [point | Record(model="tiny")])
    (head, _) = csv.reader((tmp_path / "a.csv").open())
    assert head == ["model", "batch", "message", "price.usd_per_chip_hour", "expert_parallel"]
    assert CSV_FIELDS[0] == "model" and CSV_FIELDS[-1] == "message"


@pytest.mark.parametrize("field", LINE_FIELDS)
def test_records_that_differ_in_a_field_of_lines_are_points_of_two(field):
    values = {"mesh": ({"x": 1}, {"x": 2})}.get(field, ("a", "b"))
    one, other = (Record(batch=1, **{field: value}) for value in values)
    assert lines([one, one | Record(batch=2)]) == [[one, one | Record(batch=2)]]
    assert lines([one, other]) == [[one], [other]]


def test_titles_say_only_what_tells_lines_apart():
    assert set(TITLES) <= set(LINE_FIELDS)
