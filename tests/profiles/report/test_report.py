"""Documents, tables and fits, on records whose every number is known in advance."""

import csv
import json

import numpy as np
import pytest

from profiles.report import files
from profiles.report.document import document, summarise
from profiles.report.files import check_writable, write_csv, write_json
from profiles.report.lines import fit, fit_lines, fits
from profiles.report.record import CSV_FIELDS, Record
from profiles.report.step_table import markdown_table, step_table
from sharding.error_types import FloorlineError

BANDWIDTH = {"bytes_per_s": 2.13e10, "source": "measured"}


def record(batch: int, devices: int = 1, **changes) -> Record:
    """A decode step of 20 ms + 2 ms x batch over a floor of 16 ms + 0.25 ms x batch."""
    step, floor = 0.020 + 0.002 * batch, 0.016 + 0.00025 * batch
    fields = {
        "model": "tiny",
        "phase": "decode",
        "batch": batch,
        "context": 128,
        "device_kind": "cpu",
        "devices": devices,
        "mesh": {"x": 1, "y": 1, "z": devices},
        "layout": "weight_stationary_1d",
        "dtype": "float32",
        "floor_s": floor,
        "floor_terms_s": {"weights": 0.016, "kv_cache": 0.00025 * batch},
        "weight_floor_s": 0.016,
        "bound": "weights",
        "step_s": {"median": step, "p10": step * 0.9, "p90": step * 1.1, "samples": [step] * 3},
        "fraction_of_floor": floor / step,
        "tokens_per_s": batch / step,
        "status": "ok",
    }
    return Record(**(fields | changes))


def failed(batch: int, message: str) -> Record:
    lost = {"step_s": None, "tokens_per_s": None}
    return record(batch, status="out_of_memory", message=message, **lost)


def test_a_document_names_its_command_versions_and_bandwidth():
    found = document(
        ["profile_decode.py", "--batch=1"],
        [record(1)],
        device_kind="cpu",
        started="2026-01-02T03:04:05",
        bandwidth=BANDWIDTH,
        fits=[],
    )
    assert found["schema"] == 1
    assert found["command"] == ["profile_decode.py", "--batch=1"]
    assert {"python", "jax", "jaxlib", "flax"} <= set(found["versions"])
    assert found["bandwidth"] == BANDWIDTH
    assert found["points"] == [record(1)]
    assert found["fits"] == []


def test_a_summary_holds_median_spread_and_samples():
    samples = [0.01 * i for i in range(1, 12)]
    summary = summarise(samples[::-1])
    assert summary["median"] == pytest.approx(0.06)
    assert summary["p10"] == pytest.approx(0.02)
    assert summary["p90"] == pytest.approx(0.10)
    assert summary["samples"] == samples[::-1]


def test_a_table_labels_measured_and_floor_and_names_the_bandwidth_of_its_percentages():
    text = step_table([record(1), record(8, devices=2)], BANDWIDTH)
    title, floor, _, upper, lower, first, second = text.splitlines()
    assert all(word in title for word in ("tiny", "decode", "float32", "cpu", "weight_stationary"))
    assert "21.3 GB/s (measured)" in floor and "shared" in floor
    assert upper.split()[:4] == ["devices", "floor", "measured", "floor"]
    assert lower.split()[:5] == ["(x,y,z)", "context", "batch", "step", "ms"]
    assert first.split()[:6] == ["1", "(1x1x1)", "128", "1", "16.2", "22.0"]
    assert second.split()[:6] == ["2", "(1x1x2)", "128", "8", "18.0", "36.0"]
    assert "74%" in first and "16.2" in first and "16.0" in first and "weights" in first
    assert len({len(line) for line in (upper, lower, first, second)}) == 1


def test_a_table_without_a_bandwidth_prints_no_percentage():
    assert "%" not in step_table([record(1)])


def test_a_published_bandwidth_is_not_called_measured():
    points = [record(1, device_kind="TPU v5e")]
    text = step_table(points, {"bytes_per_s": 8.19e11, "source": "published"})
    assert "819 GB/s (published)" in text
    assert "shared" not in text


def test_a_step_that_did_not_run_shows_why_in_place_of_numbers():
    message = "memory asked for is 12.3 GB, of which 8.1 GB is there; use a smaller --batch " * 2
    text = step_table([record(1), failed(64, message)], BANDWIDTH)
    row = next(line for line in text.splitlines() if "out_of_memory" in line)
    assert row.split()[:4] == ["1", "(1x1x1)", "128", "64"]
    assert "%" not in row
    assert " ".join(message.split()) in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 110


def test_a_cache_resident_step_keeps_its_time_and_loses_its_floor():
    text = step_table(
        [record(1), record(2, status="cache_resident", message="bytes are few")], BANDWIDTH
    )
    row = next(line for line in text.splitlines() if line.split()[3:4] == ["2"])
    assert "24.0" in row and "%" not in row and "16.5" not in row
    assert "cache_resident: bytes are few" in text


def cells_of(text: str, number: int = 0) -> dict[str, str]:
    """A row of a table in Markdown, by headings."""
    head, _, *rows = [line.strip("| ") for line in text.splitlines() if line.startswith("|")]
    return dict(zip(head.split(" | "), rows[number].split(" | "), strict=True))


def test_floor_expected_and_measured_stand_side_by_side_with_both_ratios():
    calls = {"median": 0.0011, "p10": 0.001, "p90": 0.002, "samples": [0.0011]}
    points = [record(1, expected_s=0.0198, host_s=calls)]
    calibration = {"name": "mine", "words": "mine, lent to cpu from h200"}
    text = markdown_table(points, BANDWIDTH, calibration)
    cells = cells_of(text)
    assert list(cells.items())[3:8] == [
        ("floor step ms", "16.2"),
        ("expected step ms", "19.8"),
        ("measured step ms", "22.0"),
        ("floor / measured", "74%"),
        ("expected / measured", "90%"),
    ]
    assert cells["host call ms"] == "1.10"
    assert (
        "GB/s (measured), one memory shared by all CPU devices; expected by calibration mine, "
        in (text)
    )


def test_where_no_floor_applies_its_columns_stay_and_the_expected_time_too():
    point = record(1, status="cache_resident", fraction_of_floor=None, expected_s=0.044)
    cells = cells_of(markdown_table([point], BANDWIDTH))
    assert (cells["floor step ms"], cells["floor / measured"]) == ("-", "-")
    assert (cells["expected step ms"], cells["expected / measured"]) == ("44.0", "200%")


def test_a_published_rate_is_not_the_only_one_that_a_step_is_held_against():
    bandwidth = {"bytes_per_s": 4.8e12, "source": "published", "measured_bytes_per_s": 4.4e12}
    points = [record(1, device_kind="NVIDIA H200", fraction_of_read_floor=0.81)]
    text = markdown_table(points, bandwidth)
    assert "Floor at 4,800 GB/s (published); read kernels reached 4,400 GB/s in this run" in text
    cells = cells_of(text)
    assert (cells["floor / measured"], cells["floor at read rate / measured"]) == ("74%", "81%")
    assert "floor at read rate / measured" not in cells_of(markdown_table([record(1)], bandwidth))


def test_only_the_columns_that_are_asked_for_and_known_are_shown():
    only = "batch", "floor step ms", "expected step ms", "measured step ms"
    cells = cells_of(markdown_table([record(1)], BANDWIDTH, only=only))
    assert cells == {"batch": "1", "floor step ms": "16.2", "measured step ms": "22.0"}


def test_a_step_that_waits_for_its_call_is_bound_by_dispatch():
    def calling(batch: int, share: float) -> Record:
        median = share * record(batch).step_s["median"]
        return record(batch, host_s={"median": median, "p10": 0, "p90": 1, "samples": [median]})

    points = [calling(1, 0.95), calling(4, 0.92), calling(64, 0.1)]
    (note,) = [line for line in markdown_table(points).splitlines() if "dispatch" in line]
    assert note.startswith("-  bound by dispatch, batch 1, 4: a call takes more than 90% of a step")
    assert "dispatch" not in markdown_table(points[2:])


def test_a_step_below_its_floor_is_reported_as_an_error_and_not_clamped():
    text = step_table([record(1, fraction_of_floor=1.12)], BANDWIDTH)
    assert "112% (!)" in text and "error" in text


def test_weights_that_the_compiler_unpacks_are_noted_with_their_steps():
    def stored(name: str, batch: int, held: int) -> dict:
        return record(batch, weight_dtype=name, bytes_per_chip={"weights_unpacked": held})

    points = [stored("int8", 1, 0), stored("int8", 8, 0), stored("int4", 1, 0)]
    points += [stored("int4", 8, 14 * 10**9), stored("fp8", 1, 2 * 10**6)]
    points += [stored("int4", 8, 0) | Record(devices=2)]
    notes = [line for line in step_table(points, None).splitlines() if "unpacks" in line]
    assert [note.split("unpacks ")[1] for note in notes] == [
        "14.0 GB of weights as a whole in each step of batch 8",
        "2.00 MB of weights as a whole in each step",
    ]


def test_slots_that_no_token_fills_are_noted_with_what_reading_them_would_cost():
    def step(batch: int, slots: int) -> Record:
        sizes = {"kv_unfilled": 2e6 * batch * (slots - 129), "weights_read": 1e9}
        return record(batch, bytes_per_chip=sizes, slots=slots, weight_floor_s=0.1)

    points = [step(1, 192), step(1, 4096), step(2, 4096), step(8, 4096)]
    (note,) = [line for line in markdown_table(points, None).splitlines() if "allocated" in line]
    # 3,967 slots of 2 MB at 10 GB/s; 192 slots are no more than a cache's grain.
    assert note == (
        "-  reading all 4,096 allocated slots in place of 129 filled ones would take longer by "
        "793 ms at batch 1 and 6,347 ms at batch 8, at the rate of the floor"
    )


def test_chunks_of_prompts_have_their_prompt_and_their_rate_of_arithmetic():
    sizes = {"phase": "prefill", "prompt_length": 2048, "flops_per_chip": 4e9}
    text = markdown_table([record(1, tokens_per_sequence=512, **sizes)], BANDWIDTH)
    head, _, row = [line for line in text.splitlines() if line.startswith("|")]
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    step = record(1).step_s["median"]
    assert cells["prompt tokens"] == "2,048"
    assert float(cells["TFLOP/s per chip"]) == pytest.approx(4e9 / step / 1e12, rel=0.01)
    assert "TFLOP/s per chip" not in markdown_table([record(1, flops_per_chip=4e9)], BANDWIDTH)


def test_a_wide_table_fits_the_terminal():
    extra = {"expected_s": 0.02, "usd_per_million_tokens": 1.5, "bound": "communication"}
    points = [record(64, 4, **extra), record(128, 8, **extra)]
    text = step_table(points, BANDWIDTH)
    assert "expected" in text and "USD" in text
    assert max(map(len, text.splitlines())) <= 110


def test_rates_without_a_measurement_are_not_called_measured():
    point = record(4, step_s=None, fraction_of_floor=None, expected_s=0.03)
    heading = step_table([point]).splitlines()[-3]
    assert "measured" not in heading
    assert heading.split()[-1] == "expected"


def test_a_field_that_differs_between_rows_gets_a_column():
    text = step_table([record(1), record(1, layout="weight_stationary_2d")], BANDWIDTH)
    rows = text.splitlines()[-2:]
    assert rows[0].split()[0] == "weight_stationary_1d"
    assert rows[1].split()[0] == "weight_stationary_2d"


def test_a_markdown_table_has_the_cells_of_the_text_table():
    lines = markdown_table([record(1), failed(64, "no | room")], BANDWIDTH).splitlines()
    heading, rule, first, second = [line for line in lines if line.startswith("|")]
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert len(cells) == heading.count("|") - 1 == rule.count("|") - 1
    assert cells[:5] == ["1 (1x1x1)", "128", "1", "16.2", "22.0"]
    assert "out_of_memory: no \\| room" in second
    assert any("21.3 GB/s (measured)" in line for line in lines)


def test_a_table_of_failed_rows_alone_shows_why_each_failed():
    points = [failed(8, "no room"), failed(64, "none | at all")]
    for text in (step_table(points, BANDWIDTH), markdown_table(points, BANDWIDTH)):
        rows = [line for line in text.splitlines() if "1 (1x1x1)" in line]
        assert "8" in rows[0] and "out_of_memory: no room" in rows[0]
        assert "64" in rows[1] and "out_of_memory: none" in rows[1]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {lines[0].count("|")}
    assert lines[0].endswith("| batch | status |")


def test_a_fit_recovers_the_line_it_was_given():
    found = fit([record(batch, devices=2) for batch in (1, 4, 16, 64)])
    assert found["intercept_s"] == pytest.approx(0.020)
    assert found["slope_s"] == pytest.approx(0.002)
    assert found["weight_floor_s"] == 0.016
    assert found["kv_slope_floor_s"] == pytest.approx(0.00025)
    assert found["mesh"] == {"x": 1, "y": 1, "z": 2}
    assert (found["devices"], found["context"]) == (2, 128)


def test_fits_are_made_per_mesh_and_context_of_measured_steps_only():
    points = [record(b, d, context=c) for d in (1, 2) for c in (128, 512) for b in (1, 4)]
    points += [failed(64, "no room"), record(1, devices=4)]
    places = [(found["devices"], found["context"]) for found in fits(points)]
    assert places == [(1, 128), (1, 512), (2, 128), (2, 512)]
    assert all(found["slope_s"] == pytest.approx(0.002) for found in fits(points))


def test_a_fit_of_one_batch_is_refused():
    with pytest.raises(FloorlineError, match=r"batches to fit is \[4, 4\]; measure"):
        fit([record(4), record(4)])


def test_a_fit_reads_as_an_equation_beside_its_floor():
    (line,) = fit_lines(fits([record(1, 2), record(4, 2)]))
    assert "2 devices (1x1x2), context 128" in line
    assert "measured step = 20.0 ms + 2.00 ms \N{MULTIPLICATION SIGN} batch" in line
    assert "weight floor 16.0 ms; KV floor 0.250 ms" in line


def test_json_written_reads_back_the_same_even_from_numpy_numbers(tmp_path):
    path = tmp_path / "new" / "profile.json"
    write_json(path, {"points": [{"floor_s": np.float32(0.5), "batch": np.int64(4)}]})
    assert json.loads(path.read_text()) == {"points": [{"floor_s": 0.5, "batch": 4}]}


def test_json_for_a_dash_goes_to_standard_output(capsys):
    write_json("-", {"schema": 1})
    assert json.loads(capsys.readouterr().out) == {"schema": 1}


def test_csv_flattens_nested_fields_in_one_order_whatever_the_records_hold(tmp_path):
    path = tmp_path / "profile.csv"
    reordered = Record(**dict(reversed(record(4).to_json().items())))
    write_csv(path, [failed(64, "no room"), reordered])
    rows = list(csv.DictReader(path.open()))
    assert rows[0]["message"] == "no room" and rows[0]["step_s.median"] == ""
    assert float(rows[1]["step_s.median"]) == 0.028
    assert rows[1]["step_s.samples"] == "3"
    assert rows[1]["mesh.z"] == "1"
    names = [name.split(".")[0] for name in rows[0]]
    assert names == sorted(names, key=CSV_FIELDS.index)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "profile.json"
    write_json(path, {"schema": 1})

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(FloorlineError, match=r"profile\.json \(No space left on device\); "):
        write_json(path, {"schema": 2})
    assert json.loads(path.read_text()) == {"schema": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["profile.json"]


def test_a_folder_that_cannot_be_written_to_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FloorlineError) as refusal:
        check_writable(tmp_path / "file" / "results")
    assert "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)
    check_writable(tmp_path / "results")
    assert list((tmp_path / "results").iterdir()) == []
