"""Faults that were planted in compiled steps are found, named and priced."""

import dataclasses

import pytest

from profiles.compiled.findings import CollectiveTimes, _scopes, findings
from profiles.compiled.step import read
from profiles.floor.arrays import PlacedArray
from profiles.floor.collective import ALONE, PREFETCH, PRODUCT, WORK
from tests.profiles import fault_table
from tests.profiles.fault_table import CACHE, DOWN, found_in
from tests.profiles.planted import CASES, PROGRAMS, SLOTS, load

BANDWIDTH = CASES["sound"].estimator.peaks.bandwidth


def one(name: str, kind: str):
    (found,) = (each for each in found_in(name) if each.kind == kind)
    return found


@pytest.mark.parametrize("name", fault_table.KINDS)
def test_a_planted_fault_is_found_and_a_sound_step_has_none(name):
    fault_table.check(name)


def test_a_scan_that_turns_stacked_weights_moves_them_in_every_round():
    fault_table.check_stacked()


def test_findings_come_costliest_first():
    costs = [each.cost_s for each in found_in("gathered")]
    assert costs == sorted(costs, reverse=True) and costs[-1] > 0


def test_a_cache_that_is_not_donated_costs_its_bytes():
    found = one("undonated", "cache_not_aliased")
    assert found.cost_s == pytest.approx(2 * CACHE / BANDWIDTH, rel=0.01)
    assert "2 of the cache's 2 arrays" in found.message
    step = read(load("undonated"), CASES["undonated"].program.placement.mesh)
    assert not step.as_record()["cache_aliased"] and step.aliased_bytes < CACHE


def test_a_whole_weight_where_the_layout_has_a_shard_costs_what_is_read_beyond_it():
    found = one("replicated", "replicated")
    assert "layers/*/mlp/down" in found.message
    assert found.cost_s == pytest.approx(3 * DOWN * 2 / BANDWIDTH)


def test_a_gathered_weight_is_named_with_the_expected_time_of_gathering_it():
    found = one("gathered", "weight_gather")
    assert "layers/*/mlp/down is gathered whole, once a step" in found.message
    assert found.cost_s > 3 * DOWN * 2 / CASES["gathered"].estimator.chip.link


def test_weights_held_in_more_bits_cost_a_write_and_a_read_in_these():
    found = one("dequantized", "dequantized")
    assert "layers/*/mlp/down/values" in found.message and "s8 to bf16" in found.message
    # Its bytes in 8 bits are the floor's; those in bfloat16 are written, and read by the product.
    assert found.cost_s * BANDWIDTH == pytest.approx(2 * DOWN * 2, rel=0.01)
    step = read(load("dequantized"), CASES["dequantized"].program.placement.mesh)
    (copy,) = (each for each in step.as_record()["copies"] if each["widened"])
    assert copy["beside_floor"] * copy["count"] == pytest.approx(2 * DOWN * 2, rel=0.01)


def test_a_sum_that_the_compiler_does_not_scatter_costs_more_than_it_should():
    found = [each for each in found_in("narrow_parts") if each.kind == "collective"]
    assert all("is made as all-reduce and slice" in each.message for each in found)
    assert all(each.cost_s > 0 for each in found)


def test_loops_overlap_products_and_collectives_between_them_fetches():
    case = CASES["overlapped"]
    step = read(load("overlapped"), case.program.placement.mesh)
    permutes = [each for each in step.collectives if each.kind == "permute"]
    others = [each for each in step.collectives if each.kind != "permute"]
    (chosen,) = (each for each in others if each.where == "sample")  # nothing is left to do beside
    others = {each.overlap for each in others if each is not chosen}
    assert {each.overlap for each in permutes} == {PRODUCT, WORK} and others == {PREFETCH}
    assert chosen.overlap == ALONE
    working = {each.where: each.count for each in permutes if each.overlap == WORK}
    assert working == {"layer_0/query_key_value": 1, "layer_0/mlp": 1}
    assert all(record["asynchronous"] == (record["kind"] == "permute")
               for record in step.as_record()["collectives"])  # fmt: skip


def test_collectives_that_run_alone_cost_their_expected_times():
    case = CASES["undonated"]
    step = read(load("undonated"), case.program.placement.mesh)
    alone = [each for each in step.collectives if each.overlap == "alone"]
    times = CollectiveTimes(case.estimator, step.collectives)
    cost = sum(each.count * times.seconds(each) for each in alone)
    found = [each.cost_s for each in found_in("undonated") if each.kind == "not_overlapped"]
    assert sum(found) == pytest.approx(cost)


def test_an_argument_padded_by_tiles_is_named():
    case = CASES["sound"]
    step = read(load("sound"), case.program.placement.mesh)
    name = "cache/keys/0"
    array = step.arguments[name]
    padded = dataclasses.replace(array, dims=(*array.dims[:-1], 100))
    wide = dataclasses.replace(
        step, arguments={**step.arguments, name: padded}, argument_bytes=CACHE
    )
    (found,) = (
        e for e in findings(wide, case.program, case.estimator, 1e-3) if e.kind == "padding"
    )
    assert "cache/keys/*" in found.message
    assert found.cost_s == pytest.approx(CACHE * 28 / 128 / BANDWIDTH, rel=0.01)


def test_padding_of_experts_costs_what_is_read_of_it(monkeypatch):
    """Four sequences choose two of eight each: 1 - (3/4)**4 of all experts."""
    case, name = CASES["sound"], "layers/0/mlp/down"
    stack = PlacedArray(name, (8, 16, 16), ("E", "D", "F"), ((),) * 3, 2**12, 1)
    monkeypatch.setattr("profiles.compiled.findings.placed_arrays", lambda *_: [stack])
    config = dataclasses.replace(case.config, experts=8, experts_per_token=2)
    pass_ = dataclasses.replace(case.program.pass_, batch=4, tokens=1)
    program = dataclasses.replace(case.program, config=config, pass_=pass_)
    step = read(load("sound"), case.program.placement.mesh)
    array = step.arguments["cache/keys/0"]
    array = dataclasses.replace(array, dims=(*array.dims[:-1], 100))
    step = dataclasses.replace(step, arguments={name: array}, argument_bytes=CACHE)
    (found,) = (e for e in findings(step, program, case.estimator, 1) if e.kind == "padding")
    more = CACHE * 28 / 128
    assert found.cost_s == pytest.approx((1 - 0.75**4) * more / BANDWIDTH, rel=0.01)


def test_gates_of_a_prompt_that_go_through_memory_cost_a_write_and_a_read():
    case = CASES["prompts"]
    gates = SLOTS * 2 * case.config.d_ff // 4 * 2  # gate and up per device; bfloat16
    found, *_ = (each for each in found_in("prompts") if each.kind == "temporary")
    assert found.cost_s == pytest.approx(2 * gates / BANDWIDTH)
    assert found.message.startswith(
        "bf16[1,4096,2,8192] in layer/mlp (dot_general) goes through main memory, once a step, "
        "134 MB each"
    )
    assert "123% of arguments" in found.message
    step = read(load("prompts"), case.program.placement.mesh)
    largest, *_ = step.as_record()["temporaries"]
    assert (largest["bytes"], largest["count"]) == (gates, 1)


def test_an_array_that_a_collective_fills_is_no_temporary_besides():
    step = read(load("gathered"), CASES["gathered"].program.placement.mesh)
    assert step.temporary_bytes > step.argument_bytes
    assert step.temporaries and all(each.sent for each in step.temporaries)


def test_stored_programs_are_small():
    sizes = [path.stat().st_size for path in PROGRAMS.glob("*.gz")]
    assert len(sizes) == len(CASES) + 1 and max(sizes) < 60_000


@pytest.mark.parametrize(
    ("block", "place"),
    [
        ("layer_3/mlp", "layer/mlp"),
        ("layer/mlp/layer_1/mlp/layer_12/attention", "layer/mlp and layer/attention"),
        ("norm", "norm"),
        ("", ""),
    ],
)
def test_a_place_is_named_once_whatever_the_layers(block, place):
    assert _scopes(block) == place
