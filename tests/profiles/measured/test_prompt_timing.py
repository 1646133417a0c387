"""Prompts measured chunk by chunk: what a chunk finds in the cache, and what its records add to."""

import dataclasses

import numpy as np
import pytest

from decode.engine import Engine
from decode.load import ModelSource
from model.catalog import find_model
from model.dtypes import FLOAT32
from profiles.chips.chip import Peaks
from profiles.floor import memory_needed
from profiles.floor.activations import activation_bytes
from profiles.floor.memory_needed import Need, need_of, refusal
from profiles.floor.passes import Pass
from profiles.measured import bandwidth
from profiles.measured import sweep as sweeping
from profiles.measured.prompt_timing import RepeatedPrompt
from profiles.measured.step_record import step_record
from profiles.measured.sweep import Sweep, run
from profiles.report.lines import prompt_lines
from sharding.catalog import LAYOUTS
from sharding.error_types import UsageError
from sharding.mesh import parse_mesh
from sharding.placement import Placement

TINY = dataclasses.replace(find_model("tiny"), layers=1)
CHUNK = 32


def sweep(**changes) -> Sweep:
    settings = {
        "source": ModelSource(TINY, None, None),
        "layouts": [LAYOUTS["weight_stationary_1d"]],
        "shapes": [parse_mesh("1")],
        "batches": [2],
        "contexts": (),
        "prompt_lengths": [32, 100],
        "chunk": CHUNK,
        "dtype_sets": [FLOAT32],
        "seconds": 0.0,
    }
    return Sweep(**settings | changes)


@pytest.fixture
def quick_meter(monkeypatch):
    """Rates of little work, where they are not what is tested."""
    monkeypatch.setattr(bandwidth, "READ_BYTES", 1 << 22)
    monkeypatch.setattr(bandwidth, "MATMUL_SIZE", 128)


@pytest.fixture(scope="module")
def outcome():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bandwidth, "READ_BYTES", 1 << 24)
        patch.setattr(bandwidth, "MATMUL_SIZE", 512)
        return run(sweep(), report=lambda text: None)


def test_each_chunk_is_a_row_and_they_add_up_to_their_prompt(outcome):
    for length, sizes, slots in ((32, [32], 64), (100, [32, 32, 32, 4], 128)):
        rows = [point for point in outcome.points if point.prompt_length == length]
        assert [row.tokens_per_sequence for row in rows] == sizes
        assert [row.context for row in rows] == [sum(sizes[:n]) for n in range(len(sizes))]
        assert [row.padded_tokens for row in rows] == [16 if n == 4 else None for n in sizes]
        for row in rows:
            assert (row.phase, row.batch, row.slots) == ("prefill", 2, slots)
            assert len(row.step_s["samples"]) == sweeping.MIN_ROUNDS
            rate = 2 * row.tokens_per_sequence / row.step_s["median"]
            assert row.tokens_per_s == pytest.approx(rate)


def test_a_prompts_sum_is_of_its_chunks_beside_the_floor_of_one_pass(outcome):
    assert [each.prompt_length for each in outcome.prompts] == [32, 100]
    whole = outcome.prompts[1]
    rows = [point for point in outcome.points if point.prompt_length == 100]
    assert (whole.context, whole.tokens_per_sequence, whole.chunks) == (0, 100, 4)
    rounds = zip(*(row.step_s["samples"] for row in rows), strict=True)
    assert whole.step_s["samples"] == pytest.approx([sum(times) for times in rounds])
    assert whole.tokens_per_s == pytest.approx(2 * 100 / whole.step_s["median"])
    # Of arithmetic only the last token's logits are fewer, once in place of four times.
    logits = 2 * 2 * TINY.d_model * TINY.vocabulary
    assert whole.flops_per_chip + 3 * logits == pytest.approx(sum(r.flops_per_chip for r in rows))
    assert whole.floor_terms_s["weights"] < sum(row.floor_terms_s["weights"] for row in rows)
    text = prompt_lines(outcome.prompts)[1]
    assert text.startswith("1 device (1x1x1), batch 2, prompt 100: ") and "in 4 chunks" in text


def test_a_chunks_floor_counts_the_tokens_that_it_sees(outcome):
    first, second = [p for p in outcome.points if p.prompt_length == 100][:2]
    assert first.bytes_per_chip["kv_read"] == 0
    cached = 2 * 32 * TINY.layers * 2 * TINY.kv_heads * TINY.head_size * 4
    assert second.bytes_per_chip["kv_read"] == cached == first.bytes_per_chip["kv_written"]
    # The causal half of its own tokens, all of those before: 4 FLOPs a head's element and pair.
    more = 4 * 2 * TINY.layers * TINY.query_heads * TINY.head_size * 32 * 32
    assert second.flops_per_chip - first.flops_per_chip == pytest.approx(more)


def test_no_chunk_is_below_its_floor(outcome):
    for record in (*outcome.points, *outcome.prompts):
        assert record.status in ("ok", "cache_resident")
        if record.status == "ok":
            assert 0 < record.fraction_of_floor <= 1 and 0 < record.mfu <= 1


def test_arithmetic_bounds_prompts_wherever_their_bytes_are(tiny_engine):
    engine, sizes = tiny_engine("1x1x1", layers=1), Pass(2, 0, 64, 128)
    slow = Peaks(bandwidth=1e12, flops=1e9, source="measured", on_chip=32e6)
    bound = step_record(engine, slow, sizes, phase="prefill", samples=[1.0])
    assert (bound.bound, bound.status) == ("compute", "ok")
    assert bound.mfu == pytest.approx(bound.fraction_of_floor)
    fast = dataclasses.replace(slow, bandwidth=1e9, flops=1e15)
    resident = step_record(engine, fast, sizes, phase="prefill", samples=[1.0])
    assert resident.status == "cache_resident" and resident.mfu is None


def test_a_repeated_chunk_leaves_what_a_prompt_that_is_run_once_leaves(tiny_engine, monkeypatch):
    one = tiny_engine("1x1x1", layers=1)
    engine = Engine(one.config, one.parameters, one.placement, one.mesh, one.dtypes, chunk=32)
    step = RepeatedPrompt(engine, batch=2, length=40)
    step.compile()
    once = np.asarray(step._cache.keys[0])
    with monkeypatch.context() as patch:  # runs of 10 ms of the first chunk, and of 20
        patch.setattr(step, "_run", lambda number, times: (0.01 * (number + 1), 0))
        step.lengthen(0.11)
    assert [chunk.burst for chunk in step.chunks] == [6, 3]
    for _ in range(2):
        step.sample()
    np.testing.assert_array_equal(np.asarray(step._cache.keys[0]), once)
    assert once[:, :, :40].any(axis=-1).all() and not once[:, :, 40:].any()
    assert len(step.samples) == 2


def test_a_row_of_prompts_that_fails_is_one_result(quick_meter, monkeypatch):
    def failing(self):
        raise MemoryError("none left")

    monkeypatch.setattr(RepeatedPrompt, "compile", failing)
    found = run(sweep(prompt_lengths=[100]), lambda text: None)
    (point,) = found.points
    assert (point.status, point.prompt_length, point.context) == ("out_of_memory", 100, 0)
    assert found.prompts == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": 24}, "chunk is 24 tokens, which is no positive multiple of 16; use 16 or 32"),
        ({"prompt_lengths": [513]}, "prompt_length is 513, beyond the 512 tokens"),
        ({"slots": 99}, "slots is 99, fewer than the 100 tokens of prompt_length 100; use 100 or"),
        (
            {"prompt_lengths": (), "contexts": [16], "slots": 16},
            "slots is 16, fewer than the 17 tokens of context 16 and the new one; use 17 or more",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_loaded(monkeypatch, changes, message):
    monkeypatch.setattr(ModelSource, "engine", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(UsageError) as refusal:
        run(sweep(**changes), lambda text: None)
    assert str(refusal.value).startswith(message)


def test_prompts_that_do_not_fit_name_both_sizes_and_the_chunk():
    need = Need(2e9, 64, 1e9, (100_000, 512))
    assert refusal(need, 10.5e9) == (
        "prompt is 100,000 tokens in chunks of 512: batch 64 needs 66.0 GB, 2.00 GB of them for "
        "weights, where there are 10.5 GB; use a batch of 8 at most, or shorter prompts"
    )


def test_a_longer_chunk_needs_more_memory(monkeypatch):
    monkeypatch.setattr(memory_needed, "shares_memory", lambda: True)
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], TINY.sizes, parse_mesh("1"))
    step, short, long = (
        need_of(TINY, placement, FLOAT32, batch=1, slots=512, prompt=prompt)
        for prompt in (None, (500, 32), (500, 64))
    )
    held = [activation_bytes(TINY, placement, FLOAT32, tokens=500, chunk=n) for n in (32, 64)]
    assert long.each - short.each == held[1] - held[0] > 32 * TINY.d_model * 4
    assert short.each > step.each


def test_a_step_may_have_more_room_than_it_fills(quick_meter):
    wanted = sweep(prompt_lengths=(), contexts=[16], slots=320)
    (point,) = run(wanted, lambda text: None).points
    assert point.slots == 320
    token = 2 * 2 * TINY.layers * TINY.kv_heads * TINY.head_size * 4
    assert point.bytes_per_chip["kv_resident"] == 320 * token
    assert point.bytes_per_chip["kv_read"] == 16 * token
