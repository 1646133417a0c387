"""The floor and the record built on it, against sums done by hand."""

import pytest

from profiles.chips.chip import Peaks
from profiles.floor.bound import floor
from profiles.floor.passes import Counts, Pass
from profiles.measured.step_record import step_record

PEAKS = Peaks(bandwidth=1e9, flops=1e12, source="published", on_chip=1e6, capacity=16e9)


def traffic(weights=2e9, kv=0.5e9, flops=1e12):
    return Counts(
        weights_resident=weights,
        weights_read=weights,
        kv_resident=kv,
        kv_read=kv,
        kv_written=0.0,
        flops=flops,
    )


@pytest.mark.parametrize(
    ("work", "seconds", "bound"),
    [
        ({}, 2.5, "weights"),
        ({"kv": 3e9}, 5.0, "kv_cache"),
        ({"flops": 4e12}, 4.0, "compute"),
    ],
)
def test_the_floor_is_the_larger_of_memory_and_compute(work, seconds, bound):
    found = floor(traffic(**work), PEAKS)
    assert found.seconds == pytest.approx(seconds)
    assert found.bound == bound


def test_fractions_in_a_record_are_floor_over_measured(tiny_engine):
    engine = tiny_engine("1x1x2")
    peaks = Peaks(bandwidth=1e6, flops=1e12, source="given")
    sizes = Pass(batch=4, context=32, slots=64)
    record = step_record(engine, peaks, sizes, samples=[3.0, 1.0, 2.0], price_per_chip_hour=3.6)
    counted = record.bytes_per_chip
    memory = counted["weights_read"] + counted["kv_read"] + counted["kv_written"]
    assert record.floor_s == pytest.approx(memory / 1e6)
    assert record.step_s["median"] == 2.0 and record.step_s["samples"] == [3.0, 1.0, 2.0]
    assert record.fraction_of_floor == pytest.approx(record.floor_s / 2.0)
    assert record.mbu == pytest.approx(record.fraction_of_floor)
    assert record.tokens_per_s == 2.0 and record.chips == 2
    # 3.6 USD an hour is 0.001 USD a second; 2 chips for 2 s make 4 tokens.
    assert record.usd_per_million_tokens == pytest.approx(0.001 * 2 * 2 / 4 * 1e6)
    assert record.price == {"usd_per_chip_hour": 3.6}
    assert record.floor_terms_s.keys() == {"weights", "kv_cache", "compute"}
    assert record.status == "ok"


def test_a_working_set_near_the_cache_has_no_floor_of_memory(tiny_engine):
    peaks = Peaks(bandwidth=1e9, flops=1e12, source="measured", on_chip=32e6)
    sizes = Pass(batch=1, context=32, slots=64)
    record = step_record(tiny_engine("1x1x1"), peaks, sizes, samples=[1.0])
    assert record.status == "cache_resident" and record.fraction_of_floor is None


def test_a_floor_needs_no_measurement(tiny_engine):
    record = step_record(tiny_engine("1x1x1"), PEAKS, Pass(batch=1, context=32, slots=64))
    assert record.floor_s > 0 and record.step_s is None


def test_chips_hold_their_devices_bytes(tiny_engine):
    whole = Peaks(bandwidth=1e6, flops=1e12, source="published")
    halves = Peaks(bandwidth=1e6, flops=1e12, source="published", devices_per_chip=2)
    sizes = Pass(batch=1, context=32, slots=64)
    engine = tiny_engine("1x1x2")
    two, one = (step_record(engine, peaks, sizes) for peaks in (whole, halves))
    assert (two.chips, one.chips) == (2, 1)
    read = "weights_read"
    assert one.bytes_per_chip[read] == 2 * two.bytes_per_chip[read]
    assert one.floor_s == two.floor_s
