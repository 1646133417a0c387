"""Files of results: JSON that any parser reads, links, rights and names, outputs that are full."""

import csv
import json
import stat

import jax.numpy as jnp
import numpy as np
import pytest

from profiles.compiled import grid as matrix
from profiles.report import files
from profiles.report.record import Record
from sharding.error_types import UsageError

UNKNOWN = {
    "floor_s": float("nan"),
    "step_s": {"median": 1.5, "p90": np.float32("inf")},
    "samples": [1.0, float("-inf"), {"of": np.float64("nan"), "batch": 1}],
    "array": np.array([np.nan, 2.0]),
    "batch": np.int64(4),
    "row": (1, 2),
}


def strictly(text):
    """What a parser reads that knows JSON alone."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_is_left_out_of_records_and_null_in_lists(tmp_path):
    files.write_json(tmp_path / "a.json", {"points": [UNKNOWN], "ok": jnp.float32(0.5)})
    assert strictly((tmp_path / "a.json").read_text()) == {
        "points": [
            {
                "step_s": {"median": 1.5},
                "samples": [1.0, None, {"batch": 1}],
                "array": [None, 2.0],
                "batch": 4,
                "row": [1, 2],
            }
        ],
        "ok": 0.5,
    }


def test_what_is_not_finite_is_an_empty_cell(tmp_path):
    files.write_csv(tmp_path / "a.csv", [{"batch": 1, "floor_s": float("inf")}, {"floor_s": 2.0}])
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["floor_s"] for row in rows] == ["", "2.0"]


def test_points_that_a_matrix_keeps_are_such_json(tmp_path, monkeypatch):
    monkeypatch.setattr(
        matrix, "_compile_point", lambda point: Record(floor_s=float("nan"), batch=1)
    )
    matrix.run(["a point"], tmp_path, {}, lambda finished, count: finished, workers=1)
    assert strictly((tmp_path / matrix.POINTS).read_text())["record"] == {"batch": 1}


def test_a_link_is_written_through_and_the_rights_stay(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "links" / "link.json"
    real.write_text("old")
    real.chmod(0o600)
    link.parent.mkdir()
    link.symlink_to("../real.json")
    files.write_json(link, {"schema": 1})
    assert link.is_symlink() and json.loads(real.read_text()) == {"schema": 1}
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["links", "real.json"]
    assert [entry.name for entry in link.parent.iterdir()] == ["link.json"]


def test_a_link_to_what_is_not_there_yet_makes_it(tmp_path):
    (tmp_path / "link.json").symlink_to("new/real.json")
    files.write_json(tmp_path / "link.json", {"schema": 1})
    assert json.loads((tmp_path / "new/real.json").read_text()) == {"schema": 1}


def test_the_longest_name_is_written_and_a_longer_one_refused_before_the_work(tmp_path):
    files.write_json(tmp_path / ("a" * 255), {})
    with pytest.raises(files.OutputError, match=r"--json is .* \(File name too long\); name"):
        files.check_file(tmp_path / ("a" * 256), "--json")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["", "null"])
def test_what_is_no_regular_file_is_refused_before_the_work(tmp_path, name):
    (tmp_path / "null").symlink_to("/dev/null")
    with pytest.raises(files.OutputError, match=r"--json is .*, not a regular file; name one"):
        files.check_file(tmp_path / name, "--json")


def test_standard_output_takes_json_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in (lambda: files.check_file("-", "--save_hlo"), lambda: files.write_csv("-", [])):
        with pytest.raises(UsageError, match=r" is -, and only JSON .*; name a file"):
            write()
    assert not list(tmp_path.iterdir())


def test_a_full_output_is_named_and_a_reader_that_left_is_none_of_its_fault():
    full = files.not_taken(OSError(28, "No space left on device"))
    assert str(full).startswith("standard output takes no more (No space left on device); ")
    assert isinstance(files.not_taken(BrokenPipeError()), BrokenPipeError)
