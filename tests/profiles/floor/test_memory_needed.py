"""What fits in a memory, by arithmetic on needs that are known in advance."""

import functools

import pytest

from model.catalog import find_model
from model.dtypes import FLOAT32
from profiles.floor import memory_needed as room
from profiles.floor.memory_needed import Need, check_room, free_memory, need_of, refusal
from profiles.report.numbers import byte_size
from sharding.catalog import LAYOUTS
from sharding.error_types import FloorlineError
from sharding.mesh import parse_mesh
from sharding.placement import Placement

GB = 10**9


def test_a_row_that_never_fits_names_the_largest_batch_that_would():
    assert refusal(Need(2 * GB, 4, GB), 10.5 * GB) == ""
    assert refusal(Need(2 * GB, 64, GB), 10.5 * GB) == (
        "memory for weights (2.00 GB), cache and logits is 66.0 GB, where there are 10.5 GB; use a "
        "batch of 8 at most"
    )


def test_weights_that_never_fit_are_no_matter_of_batch():
    why = refusal(Need(20 * GB, 1, GB), 10 * GB)
    assert why.endswith("; use fewer bits, or more chips")


def test_a_containers_limit_is_the_memory_that_there_is(tmp_path, monkeypatch):
    told = room._told  # what other processes leave of the machine's memory changes all the time
    machine = {"/proc/meminfo": 8_000_000_000}
    monkeypatch.setattr(room, "_told", lambda path, *word: machine.get(path) or told(path, *word))
    monkeypatch.setattr(room, "GROUP", str(tmp_path))
    there = free_memory()
    assert there <= 8_000_000_000
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("file 900000\nanon 400000\n")
    assert free_memory() == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() == pytest.approx(there, rel=0.01)


def test_what_generates_is_refused_where_this_machine_lacks_the_memory(monkeypatch):
    """llama3-8b in float32 on two fake devices, which share one memory of 20 GB."""
    config = find_model("llama3-8b")
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, parse_mesh("2"))
    need = need_of(config, placement, FLOAT32, batch=2, slots=64)
    norms = 65 * 4096 * 4  # whole on each device
    assert need.weights == pytest.approx(4 * 8_030_261_248 + norms, rel=1e-6)
    cache = 2 * 32 * 8 * 128 * 64 * 4
    assert need.each == pytest.approx(cache + 4 * 128_256, rel=1e-6)
    monkeypatch.setattr(room, "free_memory", lambda: 20e9)
    with pytest.raises(FloorlineError, match=r"weights \(32\.1 GB\).*there are 20\.0 GB"):
        check_room(need)
    check_room(need._replace(weights=1e9))


@pytest.mark.parametrize(("slots", "more"), [(2048, 8), (1026, 8), (512, 0), (514, 2)])
def test_steps_that_verify_drafts_need_their_logits_and_spare_slots_of_each_ring(slots, more):
    config = find_model("gemma3-270m")
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, parse_mesh("1"))
    need = functools.partial(need_of, config, placement, FLOAT32, batch=3, slots=slots)
    windows = [window for window in map(config.window, range(config.layers)) if window]
    assert len(windows) == 15 and {*windows} == {512}
    rings = 15 * 2 * config.kv_heads * config.head_size * 4
    assert need(spare=8).each - need().each == more * rings
    assert need(tokens=5).each - need().each == 4 * 4 * config.vocabulary
    assert need(tokens=5, spare=8).weights == need().weights


def test_a_prompt_that_does_not_fit_names_its_chunk_and_the_largest_that_would(monkeypatch):
    """SmolLM2 in float32: the activations of its prompts grow with the chunk."""
    config = find_model("smollm2-135m")
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, parse_mesh("1"))
    sizes = {"batch": 4, "slots": 4096}
    need = functools.partial(need_of, config, placement, FLOAT32, **sizes)
    large, fits = need(prompt=(4096, 4096)), need(prompt=(4096, 1024))
    assert large.bytes > need(prompt=(4096, 2048)).bytes > fits.bytes > need().bytes
    feed_forward = 3 * config.d_ff * 4  # gate, up and their product, of each token
    assert large.each - need(prompt=(4096, 2048)).each > 2048 * feed_forward
    monkeypatch.setattr(room, "free_memory", lambda: fits.bytes)
    check_room(fits, need)
    with pytest.raises(FloorlineError) as refusal:
        check_room(large, need)
    assert str(refusal.value) == (
        f"prompt is 4,096 tokens in chunks of 4,096: batch 4 needs {byte_size(large.bytes)}, "
        f"{byte_size(large.weights)} of them for weights, where there are {byte_size(fits.bytes)}; "
        "use a batch of 3 at most, or shorter prompts, or --chunk=1024 at most"
    )
    monkeypatch.setattr(room, "free_memory", lambda: need(prompt=(4096, 16)).bytes - 1)
    with pytest.raises(FloorlineError, match=r"; use a batch of \d at most, or shorter prompts$"):
        check_room(large, need)
