"""What TensorBoard would show, read back from the event file."""

import errno
import os
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from profiles.figures import steps as figures
from profiles.measured import tensorboard as events
from profiles.report.document import document as document_of
from profiles.report.document import summarise
from profiles.report.record import Record
from sharding.error_types import FloorlineError


def record(batch: int, devices: int = 2, **changes) -> Record:
    fields = {
        "model": "tiny",
        "batch": batch,
        "context": 128,
        "device_kind": "cpu",
        "devices": devices,
        "mesh": {"x": 1, "y": 1, "z": devices},
        "floor_s": 0.016,
        "fraction_of_floor": 0.8,
        "step_s": summarise([0.020]),
        "status": "ok",
    }
    return Record(**(fields | changes))


def document(points: list[Record]) -> dict:
    bandwidth = {"bytes_per_s": 2.5e10, "source": "measured"}
    return document_of([], points, device_kind="cpu", started="", bandwidth=bandwidth)


def written(directory) -> list[Event]:
    """Events of the one event file: TFRecords of length, checksum, payload, checksum."""
    (path,) = directory.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def values(directory) -> dict[tuple[str, int], object]:
    return {(v.tag, e.step): v for e in written(directory) for v in e.summary.value}


def test_chunks_are_stepped_by_the_tokens_before_them_and_prompts_by_their_lengths(tmp_path):
    sizes = {"phase": "prefill", "prompt_length": 300, "tokens_per_sequence": 100}
    points = [record(1, context=context, **sizes) for context in (0, 100, 200)]
    whole = points[0] | Record(tokens_per_sequence=300, chunks=3, step_s=summarise([0.060]))
    events.write_events(tmp_path, document(points) | {"prompts": [whole]})
    found, where = values(tmp_path), "/devices_2/batch_1"
    for context in (0, 100, 200):
        assert found["measured_step_ms" + where, context].simple_value == pytest.approx(20)
    prompt = found["prompt_measured_step_ms" + where, 300]
    assert prompt.simple_value == pytest.approx(60)


def test_scalars_are_tagged_by_devices_and_context_and_stepped_by_batch(tmp_path):
    events.write_events(tmp_path, document([record(1), record(8)]))
    found = values(tmp_path)
    where = "/devices_2/context_128"
    for batch in (1, 8):
        assert found["measured_step_ms" + where, batch].simple_value == pytest.approx(20)
        assert found["floor_ms" + where, batch].simple_value == pytest.approx(16)
        assert found["fraction_of_floor" + where, batch].simple_value == pytest.approx(0.8)
        per_token = found["measured_time_per_token_ms" + where, batch].simple_value
        assert per_token == pytest.approx(20 / batch)


def test_each_of_the_times_and_each_term_is_a_scalar():
    terms = {"weights": 0.012, "kv_cache": 0.004, "compute": 0.001}
    point = record(
        1,
        floor_terms_s=terms,
        read_floor_s=0.017,
        fraction_of_read_floor=0.85,
        expected_s=0.019,
        expected_terms_s={"memory": 0.018, "overhead": 0.001},
        host_s=summarise([0.002]),
        compiled={"resident_bytes": 600, "temporary_bytes": 12},
    )
    wanted = {
        "floor_ms": 16, "floor_weights_ms": 12, "floor_kv_cache_ms": 4, "floor_compute_ms": 1,
        "floor_at_read_rate_ms": 17, "fraction_of_read_floor": 0.85, "fraction_of_floor": 0.8,
        "expected_ms": 19, "expected_memory_ms": 18, "expected_overhead_ms": 1,
        "compiled_resident_bytes": 600, "compiled_temporary_bytes": 12,
        "measured_step_ms": 20, "measured_time_per_token_ms": 20, "host_call_ms": 2,
    }  # fmt: skip
    assert events.scalars(point) == pytest.approx(wanted)


def test_two_meshes_of_as_many_devices_do_not_share_a_tag(tmp_path):
    other = record(1, mesh={"x": 1, "y": 2, "z": 1})
    events.write_events(tmp_path, document([record(1), other]))
    tags = {tag for tag, _ in values(tmp_path) if tag.startswith("measured_step_ms")}
    assert {tag.split("/")[-1] for tag in tags} == {"mesh_1x1x2", "mesh_1x2x1"}


def test_a_step_without_a_floor_or_a_time_writes_none(tmp_path):
    lost = record(64, status="out_of_memory", step_s=None)
    events.write_events(tmp_path, document([lost, record(4, status="cache_resident")]))
    tags = {(tag.split("/")[0], step) for tag, step in values(tmp_path)} - {("table", 0)}
    assert {step for _, step in tags if step != 0} == {4}
    assert {tag for tag, step in tags if step == 4} == {
        "measured_step_ms",
        "measured_time_per_token_ms",
    }


def test_the_table_and_the_plots_are_in_the_file(tmp_path):
    run = document([record(1), record(8)])
    figures.step_time(run, tmp_path / "step_time.png")
    events.write_events(tmp_path / "events", run, [tmp_path / "step_time.png"])
    found = {tag.split("/")[0]: value for (tag, _), value in values(tmp_path / "events").items()}
    assert b"measured step ms" in found["table"].tensor.string_val[0]
    assert found["step_time"].image.encoded_image_string.startswith(b"\x89PNG")
    assert found["step_time"].image.width > 1000


def test_events_of_an_earlier_run_are_replaced(tmp_path):
    (tmp_path / "events.out.tfevents.1.elsewhere").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("kept")
    events.write_events(tmp_path, document([record(1)]))
    events.write_events(tmp_path, document([record(2)]))
    assert {step for tag, step in values(tmp_path) if tag != "table/text_summary"} == {2}
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_a_plot_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FloorlineError, match=r"figure is .*gone\.png"):
        events.write_events(tmp_path, document([record(1)]), [tmp_path / "gone.png"])


def test_a_full_disk_is_one_error_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(FloorlineError, match="No space left on device"):
        events.write_events(tmp_path, document([record(1)]))
    assert not list(tmp_path.iterdir())
