"""A grid of compiled steps: what is kept, what goes on after a failure, and what a row says."""

import dataclasses
import json

import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16
from profiles.compiled import grid as matrix
from profiles.compiled.grid import (
    POINTS,
    GridPoint,
    compilers_at_once,
    merged,
    read_grid,
    run,
    summary,
    write_grid,
)
from profiles.expected.candidates import LayoutNames
from profiles.figures.grid import heat_map
from profiles.floor.passes import Pass
from profiles.hlo.kernels import FUSION, PALLAS
from profiles.hlo.moves import Move
from profiles.report.record import Record
from sharding.error_types import FloorlineError, UsageError

POINT = GridPoint(find_model("tiny"), "v5e:2x4", LayoutNames(), BFLOAT16, Pass(8, 256))
OTHERS = [dataclasses.replace(POINT, pass_=Pass(batch, 256)) for batch in (8, 16, 32)]
VERSIONS = {"jax": "1", "libtpu": "2"}


def test_a_rotated_name_is_the_same_point():
    assert dataclasses.replace(POINT, topology="v5e:4x2") == POINT


@pytest.fixture
def compiled(monkeypatch):
    """Points that were compiled, each to a record of its batch; batch 16 fails."""
    seen = []

    class Result:
        def __init__(self, batch):
            self.batch = batch

        def as_record(self):
            return Record(batch=self.batch, status="ok")

    def compile_pass(estimator, pass_):
        seen.append(pass_.batch)
        if pass_.batch == 16:
            raise FloorlineError("compiler is broken; mend it")
        return Result(pass_.batch)

    monkeypatch.setattr(matrix, "compile_pass", compile_pass)
    return seen


def through(points, folder, versions=VERSIONS):
    return run(points, folder, versions, lambda finished, count: finished, workers=2)


def test_a_point_that_fails_is_a_record_and_the_rest_goes_on(compiled, tmp_path):
    found = through(OTHERS, tmp_path)
    assert [record.batch for record in found] == [8, 16, 32]
    assert [record.status for record in found] == ["ok", "unsupported", "ok"]
    assert found[1].message == "compiler is broken; mend it"


def test_a_run_goes_on_where_the_last_one_stopped(compiled, tmp_path):
    through(OTHERS[:1], tmp_path)
    with open(tmp_path / POINTS, "a") as lines:
        lines.write('{"point": "torn')
    assert through(OTHERS, tmp_path)[0].batch == 8 and sorted(compiled) == [8, 16, 32]
    through(OTHERS, tmp_path, VERSIONS | {"jax": "3"})
    assert sorted(compiled) == [8, 8, 16, 16, 32, 32]  # of other versions nothing is kept


@pytest.mark.parametrize(
    ("status", "message", "times"),
    [
        ("ok", None, 1),
        ("does_not_fit", "weights need 3 GB more", 1),
        ("unsupported", "XlaRuntimeError: UNIMPLEMENTED: no such thing", 1),
        ("unsupported", "compiler ended by signal 11: *** SIGSEGV", 2),
        ("unsupported", "compiler ended with code 1: MemoryError", 2),
        ("out_of_memory", "compiler ended by signal 9: without a word", 2),
    ],
)
def test_a_point_whose_compiler_died_is_compiled_again(
    monkeypatch, tmp_path, status, message, times
):
    class Result:
        def as_record(self):
            return Record(status=status, message=message)

    seen = []
    monkeypatch.setattr(matrix, "compile_pass", lambda *_: seen.append(1) or Result())
    for _ in range(2):
        (record,) = through(OTHERS[:1], tmp_path)
        assert (record.status, record.message) == (status, message)
    assert len(seen) == times


def collective(block, count=1, **more):
    sizes = {"kind": "all-reduce", "axes": ["z"], "payload_bytes": 64, "count": count}
    return sizes | {"where": block, "asynchronous": False, "overlap": "alone"} | more


def test_collectives_of_layers_that_are_alike_are_one_in_a_record():
    layers = [collective(f"layer_{i}/mlp", count) for i, count in ((0, 1), (1, 1), (10, 2))]
    others = [
        collective("layer_0/attention"),
        collective("layer_1/mlp", overlap="beside a prefetch"),
        collective("layer_2/mlp", payload_bytes=128),
        collective("norm", 3),
    ]
    compiled = {"temporary_bytes": 0, "collectives": layers + others}
    record = Record(status="ok", compiled=compiled, batch=8)
    found = merged(record).compiled["collectives"]
    assert found == [
        collective("layer_*/mlp", 4),
        collective("layer_*/attention"),
        collective("layer_*/mlp", overlap="beside a prefetch"),
        collective("layer_*/mlp", payload_bytes=128),
        collective("norm", 3),
    ]
    assert compiled["collectives"] == layers + others  # the run's own record keeps them apart
    assert merged(merged(record)) == merged(record)


def test_a_recorded_grid_is_a_line_for_each_point_and_reads_back_whole(tmp_path):
    points = [Record(batch=8, status="unsupported", message="no\nroom"), Record(floor_s=1 / 3)]
    document = {"schema": 1, "versions": VERSIONS, "points": points, "started": "2026-01-01"}
    write_grid(tmp_path / "matrix.jsonl", document)
    assert len((tmp_path / "matrix.jsonl").read_text().splitlines()) == 1 + len(points)
    assert read_grid(tmp_path / "matrix.jsonl") == document


def test_names_are_checked_before_anything_is_compiled():
    for changes, message in (
        ({"topology": "v5e:3x5"}, "v5e does not come in"),
        ({"topology": "tpu8i:8"}, "does not compile for"),
        ({"topology": "l4:8"}, "no target configuration"),
        ({"names": LayoutNames(layout="diagonal")}, "layout is 'diagonal'"),
        ({"names": LayoutNames(prefill="nonsense")}, "layout is 'nonsense'"),
        ({"mesh": "2y2"}, "mesh is '2y2'"),
    ):
        with pytest.raises(UsageError, match=message):
            dataclasses.replace(POINT, **changes).check()
    POINT.check()


def test_as_many_compilers_run_as_there_is_memory_for(monkeypatch):
    monkeypatch.setattr(matrix.os, "cpu_count", lambda: 8)
    for free, count in ((3e9, 1), (15e9, 2), (1e12, 8)):
        monkeypatch.setattr(matrix, "free_memory", lambda free=free: free)
        assert compilers_at_once() == count


FIELDS = {
    "model": "tiny", "topology": "tpu7x:1x1x1", "layout": "weight_stationary_1d", "chips": 1,
    "devices": 2, "mesh": {"x": 1, "y": 1, "z": 2}, "batch": 8, "context": 256, "phase": "decode",
    "floor_s": 1e-3, "status": "ok",
    "bytes_per_chip": {"weights_resident": 150.0, "kv_resident": 50.0, "weights_read": 140.0,
                       "kv_read": 50.0, "kv_written": 10.0, "capacity": 1000},
    "compiled": {"argument_bytes": 101, "temporary_bytes": 4, "aliased_bytes": 25,
                 "cache_aliased": True, "compile_s": 1.0,
                 "copies": [{"what": "cache copied", "bytes": 20, "count": 2}],
                 "collectives": [{"count": 3, "overlap": "alone"},
                                 {"count": 5, "overlap": "beside a product"}]},
    "collectives_as_expected": True,
    "findings": [{"kind": "copy", "message": "cache copied", "cost_s": 2e-5}],
}  # fmt: skip
RECORD = Record(**FIELDS)


def test_a_row_compares_chips_with_chips():
    row = summary(RECORD)
    assert row["arguments_over_floor"] == pytest.approx(202 / 200)
    assert row["temporaries_over_arguments"] == pytest.approx(4 / 101)
    assert row["resident_over_capacity"] == pytest.approx(2 * 105 / 1000)
    assert row["bytes_over_floor"] == pytest.approx((200 + 80) / 200)  # read and written already
    assert (row["collectives_alone"], row["copies"]) == (3, 2)
    assert row["costliest_over_floor"] == pytest.approx(0.02)
    refused = {"model": "tiny", "status": "does_not_fit", "message": "too large"}
    assert summary(Record(**refused)) == refused


def test_a_cache_that_is_copied_whole_triples_its_bytes():
    move = Move("cache/keys/0", "copied", 2 * 60, 60, 1, "")
    copies = [{"bytes": move.bytes, "count": move.count}]
    compiled = {**FIELDS["compiled"], "copies": copies}
    counted = {**FIELDS["bytes_per_chip"], "weights_read": 0.0, "kv_read": 120.0, "kv_written": 0.0}
    row = summary(Record(**{**FIELDS, "compiled": compiled, "bytes_per_chip": counted}))
    assert row["bytes_over_floor"] == pytest.approx(3)  # read, written, and read again
    wider = {"bytes": 90, "count": 1, "widened": True, "beside_floor": 120}
    row = summary(Record(**{**FIELDS, "compiled": {**compiled, "copies": [wider]}}))
    assert row["bytes_over_floor"] == pytest.approx((200 + 2 * 120) / 200)


@pytest.mark.parametrize(("model", "read"), [("tiny", 400), ("gpt-oss-120b", 380 * 4 / 128 + 20)])
def test_a_kernel_of_all_experts_reads_those_that_tokens_choose(model, read):
    each = {"count": 1, "where": "layer/mixture"}
    kernels = [each | {"sort": PALLAS, "resident_read": 380}]
    kernels += [each | {"sort": FUSION, "resident_read": 20}]
    compiled = {**FIELDS["compiled"], "kernels": kernels}
    row = summary(Record(**{**FIELDS, "model": model, "batch": 1, "compiled": compiled}))
    assert row["read_over_floor"] == pytest.approx(read / 190)


def test_heat_maps_have_a_square_for_each_point(tmp_path):
    lacking = Record(**{**FIELDS, "batch": 16, "status": "does_not_fit", "compiled": None})
    rows = [json.loads(json.dumps(summary(each))) for each in (RECORD, lacking)]
    title = "arguments and temporaries / memory of a chip\n(jax 0.10.2, libtpu 0.0.42.1)"
    figure = heat_map(rows, "resident_over_capacity", title, tmp_path / "map.png", (0, 1))
    (heading,) = (text for text in figure.texts if text.get_text() == title)
    assert figure.bbox.containsx(heading.get_window_extent().x1)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == ["0.210", "does\nnot\nfit"]
    (column,) = (label.get_text() for label in figure.axes[0].get_xticklabels())
    assert column.endswith("weight_stationary_1d\n1x1x2")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
