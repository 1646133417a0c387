"""What the timed programs were compiled to, in words: records whose every byte is known."""

import pytest

from profiles.report.compiled_lines import compiled_lines
from profiles.report.record import Record

MOVED = {"what": "layers/*/mlp/down copied", "bytes": 10**6, "count": 30, "widened": False}
HELD = {"what": "embedding/weight converted from bf16 to f32", "bytes": 10**7, "count": 1}


def step(batch: int, devices: int = 1, **compiled) -> Record:
    """A step of 500 MB of weights and 1 MB of cache per sequence, which devices share evenly."""
    resident, cache = 500e6 + 1e6 * batch, 1e6 * batch
    sizes = {
        "argument_bytes": resident / devices + 64,
        "resident_bytes": resident / devices,
        "temporary_bytes": 1e6 * batch / devices,
        "cache_aliased": True,
        "cache_not_aliased_bytes": 0,
        "copies": [],
        "differing": [],
    }
    return Record(
        batch=batch,
        devices=devices,
        chips=1,
        mesh={"x": 1, "y": 1, "z": devices},
        bytes_per_chip={"weights_resident": 500e6, "kv_resident": cache},
        step_s={"median": 1.0, "p10": 1.0, "p90": 1.0, "samples": [1.0]},
        compiled=sizes | compiled,
    )


def test_sound_programs_are_one_line():
    points = [step(batch, devices) for devices in (1, 2) for batch in (1, 20)]
    assert compiled_lines(points) == [
        "compiled: weights and cache 501 MB to 520 MB, as the floor counts them, cache in place, "
        "no whole copies, collectives as the layout asks, temporaries 1.00 MB to 20.0 MB"
    ]


FAULTS = {
    "cache": (
        {"cache_aliased": False, "cache_not_aliased_bytes": 1e6},
        "cache in place, ",
        "cache NOT in place: each step writes 2.00 MB of it to other memory; donate the cache",
    ),
    "bytes": (
        {"resident_bytes": 300e6},
        "as the floor counts them, ",
        "weights and cache take 80.0 MB more than the floor counts",
    ),
    "copy": (
        {"copies": [MOVED]},
        "no whole copies, ",
        "layers/*/mlp/down copied, 60.0 MB a step",
    ),
    "unpacked": (
        {"copies": [HELD | {"widened": True}]},
        "no whole copies, ",
        "embedding/weight converted from bf16 to f32 and held whole in more bits, 20.0 MB a step",
    ),
    "collectives": (
        {"differing": [f"{n} more all-gather" for n in range(5)]},
        "collectives as the layout asks, ",
        "collectives NOT as the layout asks: 0 more all-gather, 1 more all-gather, "
        "2 more all-gather and 2 more",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_sound_has_a_line_of_its_own_that_names_its_rows(name):
    changed, sound, words = FAULTS[name]
    points = [step(20), step(20, 2, **changed)]
    first, line = compiled_lines(points)
    assert line == f"compiled, 2 devices (1x1x2): {words}"
    assert sound in compiled_lines([step(20)])[0] and sound not in first


def test_rows_with_the_same_fault_are_one_line_with_the_range_of_its_bytes():
    lost = {"cache_aliased": False}
    points = [step(b, cache_not_aliased_bytes=1e6 * b, **lost) for b in (1, 4, 16)] + [step(64)]
    (line,) = compiled_lines(points)[1:]
    assert line.startswith("compiled, batch 1, 4, 16: cache NOT in place: each step writes 1.00 MB")
    assert "1.00 MB to 16.0 MB of it" in line


def test_small_arrays_that_move_are_not_worth_a_word():
    assert len(compiled_lines([step(1, copies=[MOVED | {"count": 1}])])) == 1


def test_programs_that_cannot_be_read_and_records_without_one_are_told_apart():
    unread = Record(**step(4).to_json() | {"compiled": {"unread": "HloError: no ENTRY"}})
    known = step(1)
    without = Record(**{k: v for k, v in step(16).to_json().items() if k != "compiled"})
    assert compiled_lines([without]) == []
    _, line = compiled_lines([known, unread, without])
    assert line == "compiled, batch 4: this form of program cannot be read (HloError: no ENTRY)"
