"""Estimates against sums done by hand, and floors against expected times everywhere."""

import dataclasses
import itertools
import sys

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import Price
from profiles.chips.slices import parse_slice
from profiles.expected.candidates import LayoutNames, candidates, meshes
from profiles.expected.estimate import Estimator, best
from profiles.expected.estimate_record import Recorder
from profiles.expected.links import embeddings, floor_bounds, mesh_items
from profiles.expected.text import chunk_notes, notes
from profiles.floor.communication import expected_collectives
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from sharding.catalog import LAYOUTS, attend_by, find_layout, schedule_by
from sharding.error_types import LayoutError
from sharding.quantization import QUANTIZATIONS

INT8 = Dtypes(jnp.bfloat16, QUANTIZATIONS["int8"], QUANTIZATIONS["int8"])


def deployment(topology="v5e:4x4", model="llama3-70b", dtypes=BFLOAT16, **changes) -> Deployment:
    slice = parse_slice(topology)
    changes.setdefault("layout", find_layout("weight_stationary_1d"))
    changes.setdefault("mesh", {"x": 1, "y": slice.devices // 2, "z": 2})
    calibration = calibration_of(slice.chip.name)
    return Deployment(
        model=find_model(model), slice=slice, dtypes=dtypes, calibration=calibration, **changes
    )


def test_a_floor_is_bytes_and_flops_over_the_highest_published_rates():
    step = Estimator(deployment("v5e:4x4", model="llama2-13b")).decode(8, 1000)
    config = find_model("llama2-13b")
    layer = 4 * 5120**2 + 3 * 5120 * 13_824
    matrices = 40 * layer + 32_000 * 5120
    rows, norms = 2 * (8 * 5120) / 16, 4 * 81 * 5120  # norms are whole, in float32
    read = 2 * matrices / 16 + rows + norms
    assert step.counts.weights_read == pytest.approx(read, rel=1e-4)
    token = 2 * config.layers * config.kv_heads * config.head_size * 2 / 16
    assert step.counts.kv_read == pytest.approx(8 * 1000 * token * 2)  # 40 heads over 8, twice
    assert step.floor.weights == pytest.approx(step.counts.weights_read / 859e9)
    flops = 8 * (2 * matrices / 16 + 4 * 40 * 128 * 40 * 1001 / 8)
    assert step.floor.compute == pytest.approx(flops / 197e12)
    assert step.floor.seconds == pytest.approx(step.floor.weights + step.floor.kv_cache)


def test_expected_times_have_achieved_rates_fixed_times_and_a_rule_of_overlap():
    one = deployment("a100-80gb:2", model="llama2-7b", mesh={"x": 1, "y": 1, "z": 2})
    calibration = one.calibration
    step = Estimator(one).decode(1, 100)
    assert step.expected.memory == pytest.approx(
        step.counts.memory / 2.03904e12 / calibration.memory
    )
    assert step.expected.overhead == pytest.approx(32 * calibration.layer_s + calibration.step_s)
    assert step.expected.communication > 65 * calibration.collective_s
    apart = max(step.expected.memory, step.expected.compute) + step.expected.communication
    assert step.expected.seconds == pytest.approx(apart + step.expected.overhead)
    hidden = dataclasses.replace(one, calibration=dataclasses.replace(calibration, hidden=True))
    beside = Estimator(hidden).decode(1, 100).expected
    busy = max(beside.memory, beside.compute + beside.communication)
    assert beside.seconds == pytest.approx(busy + beside.overhead)


@pytest.mark.parametrize("layout", ["weight_stationary_2d", "weight_gathered_xy"])
@pytest.mark.parametrize("collectives", ["compiler", "overlapped"])
@pytest.mark.parametrize("tokens", [1, 64])
def test_lines_through_two_batches_say_what_every_batch_sends(layout, collectives, tokens):
    chosen = schedule_by(attend_by(find_layout(layout), "batch"), collectives)
    one = deployment("v4:4x4x4", "llama3-8b", layout=chosen, mesh={"x": 4, "y": 4, "z": 4})
    estimator, slice = Estimator(one), one.slice
    for batch in (64, 192, 1024):
        listed = expected_collectives(
            one.model, estimator.placement, one.dtypes, batch=batch, tokens=tokens
        )
        laid = embeddings(slice, mesh_items(one.mesh), for_floor=True)
        bound = min(max(floor_bounds(listed, embedding).values()) for embedding in laid)
        step = estimator.decode(batch, 9) if tokens == 1 else estimator.prefill(batch, tokens)
        assert step.floor.communication == pytest.approx(bound, rel=1e-6)


def test_loops_hide_their_bytes_but_not_their_starts():
    plain, looped = (
        Estimator(deployment(layout=schedule_by(find_layout("weight_stationary_2d"), by),
                          mesh={"x": 4, "y": 2, "z": 2}, dtypes=INT8)).prefill(8, 4096)
        for by in ("compiler", "overlapped")
    )  # fmt: skip
    assert plain.expected.overlapped == 0 < looped.expected.overlapped
    assert looped.expected.communication < plain.expected.communication


@pytest.mark.parametrize(
    ("model", "topology"),
    [("llama3-8b", "v5e:2x4"), ("mixtral-8x7b", "v4:2x2x2"), ("gemma3-4b", "h100:4"),
     ("palm-8b", "tpu7x:2x2x1"), ("qwen3-30b-a3b", "v6e:2x4")],
)  # fmt: skip
def test_no_pass_is_expected_below_its_floor_in_any_layout(model, topology):
    whole = deployment(topology, model, dtypes=INT8)
    shapes = meshes(whole.slice.devices)[::3]
    for one in candidates(whole, LayoutNames().layouts(whole.model), shapes):
        for batch in (1, 32):
            for each in (one.decode(batch, 777), one.prefill(batch, 128)):
                assert each.floor.seconds <= each.expected.seconds
                assert each.floor.no_overlap >= each.floor.seconds


def test_gathered_weights_are_expected_to_be_written_and_read_again():
    gathered, stored = (
        Estimator(deployment("v4:4x4x4", "llama3-8b", layout=LAYOUTS[name],
                          mesh={"x": 4, "y": 4, "z": 4})).decode(64, 9)
        for name in ("weight_gathered_xyz", "weight_stationary_2d")
    )  # fmt: skip
    assert gathered.floor.weights == pytest.approx(stored.floor.weights, rel=0.01)
    whole = 2 * 2 * (8e9 - 2 * 128_256 * 4096) / 1.228e12  # twice, in two bytes
    assert gathered.expected.memory * 0.9 > whole > 0.8 * gathered.expected.memory * 0.9


def test_a_batch_that_does_not_divide_is_padded():
    one = Estimator(deployment(layout=attend_by(find_layout("weight_stationary_1d"), "batch")))
    assert one.padded(1) == 16 and one.decode(1, 50).floor == one.decode(16, 50).floor
    assert one.decode(1, 50).pass_.batch == 1


def test_the_best_candidate_is_the_fastest_that_fits():
    whole = deployment("v5e:4x4", dtypes=INT8)
    found = candidates(whole, LayoutNames().layouts(whole.model))
    chosen = best(found, [Pass(32, 8192)])
    times = [each.decode(32, 8192).expected.seconds for each in found if each.decode(32, 8192).fits]
    assert chosen.decode(32, 8192).expected.seconds == min(times)


def test_a_point_takes_few_calls():
    """Their number is the same on every machine; `-m speed` times ten thousand points."""
    recorder, calls = Recorder(Estimator(deployment(dtypes=INT8))), []
    pairs = list(itertools.product(range(1, 11), range(100, 1100, 100)))
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: event == "call" and calls.append(frame.f_code.co_name))
    try:
        for batch, context in pairs:
            recorder.record(recorder.estimator.decode(batch, context))
    finally:
        sys.setprofile(before)
    assert 10 < len(calls) / len(pairs) < 500


def test_a_record_has_each_time_under_its_name():
    record = Recorder(Estimator(deployment(dtypes=INT8, price=Price(1.2)))).record(
        Estimator(deployment(dtypes=INT8, price=Price(1.2))).decode(32, 8192)
    )
    assert record.topology == "v5e:4x4" and record.chips == record.devices == 16
    assert record.floor_s == max(
        record.floor_terms_s["weights"] + record.floor_terms_s["kv_cache"],
        record.floor_terms_s["compute"],
        record.floor_terms_s["communication"],
    )
    assert record.tokens_per_s == pytest.approx(32 / record.expected_s)
    dollars = 1.2 * 16 * record.expected_s / 3600 / 32 * 1e6
    assert record.usd_per_million_tokens == pytest.approx(dollars)
    assert record.fits and record.status == "ok" and record.step_s is None


def test_a_batch_that_is_padded_says_so():
    one = deployment(layout=attend_by(find_layout("weight_stationary_1d"), "batch"))
    recorder = Recorder(Estimator(one))
    few, whole = (recorder.record(recorder.estimator.decode(batch, 100)) for batch in (1, 32))
    assert few.padded_batch == 16 and whole.padded_batch is None
    (note,) = notes([few, few, whole])
    assert note.startswith("-  batch 1 is padded to 16 by weight_stationary_1d, attention by batch")


def test_a_context_at_which_a_chunk_begins_says_what_other_steps_read():
    scout = find_model("llama4-scout")
    (note,) = chunk_notes(scout, [100, 8191, 16_384, 16_384])
    assert note.startswith("-  at 16,384 tokens a chunk begins, so that 36 of 48 layers read noth")
    assert "4,096 tokens on average" in " ".join(note.split())
    assert not chunk_notes(find_model("mistral-7b"), [4096])


def test_a_mesh_of_another_size_than_the_slice_is_refused_for_that():
    with pytest.raises(LayoutError, match="mesh is 2x2x3, of 12 devices, but v5e:4x4 has 16"):
        Estimator(deployment(mesh={"x": 2, "y": 2, "z": 3}))
