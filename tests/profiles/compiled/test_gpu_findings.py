"""What XLA:GPU does badly is found in stored programs, named and priced."""

import dataclasses
import re

import pytest

from profiles.compiled import gpu_findings as gpu
from profiles.compiled import text as compiled_text
from profiles.compiled.findings import findings
from profiles.compiled.grid import summary
from profiles.floor.block_counts import block_counts
from profiles.hlo.kernels import COLLECTIVE, MATMUL, PALLAS
from profiles.hlo.moves import Temporary
from profiles.report.record import Record
from tests.profiles import gpu_fault_table
from tests.profiles.gpu_fault_table import found_in, step_of
from tests.profiles.planted_gpu import CASES, PROGRAMS

SOUND = CASES["sound"]
BANDWIDTH, LAYERS = SOUND.estimator.peaks.bandwidth, SOUND.config.layers


def one(name: str, kind: str):
    (found,) = (each for each in found_in(name) if each.kind == kind)
    return found


def resident_read(name: str) -> int:
    return sum(each.count * (each.weights_read + each.cache_read) for each in step_of(name).kernels)


def read_floor(name: str) -> float:
    counts = CASES[name].estimator.estimate(CASES[name].pass_).counts
    return counts.weights_read + counts.kv_read


@pytest.mark.parametrize("name", gpu_fault_table.KINDS)
def test_what_is_planted_is_found_and_collectives_are_as_expected(name):
    gpu_fault_table.check(name)


@pytest.mark.parametrize("name", ["sound", "converted"])
def test_kernels_of_a_sound_step_read_the_floors_bytes(name):
    assert resident_read(name) == pytest.approx(read_floor(name), rel=0.01)


def test_matrices_in_groups_are_written_out_and_read_again():
    case, found = CASES["grouped"], found_in("grouped")
    unpacked = [each for each in found if each.kind == "dequantized"]
    assert "layers/*/mlp/gate_up/values" in unpacked[0].message
    assert "u4 to bf16" in unpacked[0].message
    hints = ["takes no scales of groups" in each.message for each in unpacked]
    assert hints == [True] + [False] * (len(unpacked) - 1) and len(unpacked) == 5
    numbers = LAYERS * sum(
        array.elements
        for name, array in step_of("grouped").arguments.items()
        if name.startswith("layers/0/") and name.endswith("/values")
    )
    written = 2 * numbers  # bfloat16; the half byte of each that is read is the floor's
    cost = sum(each.cost_s for each in unpacked) * case.estimator.peaks.bandwidth
    assert cost == pytest.approx(2 * written, rel=0.01)
    assert resident_read("grouped") > 1.3 * read_floor("grouped")


def test_products_of_many_tokens_are_bound_by_converting_their_weights():
    found, step = one("converted", "conversion"), step_of("converted")
    products = [each for each in step.kernels if each.sort == MATMUL and each.converted]
    assert sum(each.count for each in products) == 4 * LAYERS
    beyond = sum(
        each.count * (each.converted / gpu.CONVERTED_PER_S - each.bytes_read / BANDWIDTH)
        for each in products
    )
    assert found.cost_s == pytest.approx(beyond)
    assert "in a matmul at 2.00 trillion a second" in found.message


def test_a_sum_of_products_converts_for_each_token_on_a_gpu_by_its_multiprocessors():
    case = dataclasses.replace(SOUND, topology="b200:4", batch=2)
    kernel = (
        step_of("converted")
        .kernels[0]
        ._replace(sort="fusion", place="layer/mlp", count=3, converted=10**9, bytes_read=0)
    )
    step = dataclasses.replace(step_of("sound"), kernels=(kernel,))
    (found,) = (
        each
        for each in gpu.gpu_findings(step, case.program, case.estimator, 1e-3)
        if each.kind == "conversion"
    )
    faster = 148 * 1.965 / (132 * 1.98)
    assert found.cost_s == pytest.approx(3 * 2 * 1e9 / (gpu.CONVERTED_PER_S * faster))


def test_small_kernels_cost_what_their_bytes_do_not_explain():
    step = step_of("sound")
    attention = [each for each in step.kernels if each.place == "layer/attention"]
    assert [each.count for each in attention if each.sort == PALLAS] == [LAYERS]
    found = one("sound", "attention_kernels")
    per_layer = sum(each.count for each in attention) // LAYERS
    assert f"attention takes {per_layer} kernels in each layer" in found.message and per_layer > 1
    others = [each for each in step.kernels if each.sort != COLLECTIVE and each not in attention]
    moved = [(each.bytes_read + each.bytes_written) / BANDWIDTH for each in others]
    waits = [
        each.count * (gpu.SMALL_S - seconds)
        for each, seconds in zip(others, moved, strict=True)
        if seconds < gpu.SMALL_S
    ]
    assert one("sound", "small_kernels").cost_s == pytest.approx(sum(waits))


def test_an_array_that_stays_in_the_last_level_cache_is_no_finding():
    chip = SOUND.estimator.chip
    kinds = []
    for size in (chip.on_chip * 0.4, chip.on_chip * 0.6):
        array = Temporary("f32[1] in layer/mlp (dot_general)", int(size), 1, False)
        step = dataclasses.replace(
            step_of("sound"), temporaries=(array,), temporary_bytes=int(size)
        )
        found = findings(step, SOUND.program, SOUND.estimator, 1e-4)
        kinds.append("temporary" in {each.kind for each in found})
    assert kinds == [False, True]


def test_blocks_stand_beside_their_floors_and_what_nobody_can_know_is_said_once():
    program = SOUND.program
    floors = block_counts(program.config, program.placement, program.dtypes, SOUND.pass_)
    text = compiled_text.kernels(step_of("sound").kernels, LAYERS, floors)
    assert text.count("autotuning") == 1
    (mlp,) = (line.split() for line in text.splitlines() if line.startswith("MLP"))
    assert mlp[-1] == "equal" and mlp[4] == f"{floors['MLP'].bytes:,.0f}"
    assert "(equal)" in " ".join(text.split())


def test_no_block_reads_less_than_its_least_and_what_bytes_are_is_said():
    """The scales of a block may be divided, or read in another block's kernel."""
    program = SOUND.program
    floors = block_counts(program.config, program.placement, program.dtypes, SOUND.pass_)
    for factor, percents in ((4, set()), (0.5, {"+100.0%"})):
        least = {name: floor._replace(bytes=factor * floor.bytes) for name, floor in floors.items()}
        text = compiled_text.kernels(step_of("sound").kernels, LAYERS, least)
        (mlp,) = (line.split() for line in text.splitlines() if line.startswith("MLP"))
        assert {cell for cell in mlp if "%" in cell} == percents
        assert not re.search(r"-[\d.]+%", text)
        assert "of attention all slots of the cache" in " ".join(text.split())


def test_a_record_and_a_row_of_a_grid_have_the_kernels():
    step = step_of("sound")
    record = step.as_record()
    assert sum(each["count"] for each in record["kernels"]) == sum(
        each.count for each in step.kernels
    )
    counts = SOUND.estimator.estimate(SOUND.pass_).counts
    held = {name: getattr(counts, name) for name in (
        "weights_read", "kv_read", "kv_written", "weights_resident", "kv_resident")}  # fmt: skip
    row = summary(
        Record(
            compiled=record, devices=4, chips=4, findings=[], floor_s=1.0,
            bytes_per_chip=held | {"capacity": 1e9}, collectives_as_expected=True,
        )
    )  # fmt: skip
    assert row["library_calls"] == 0 and row["kernels"] > 20
    assert row["read_over_floor"] == pytest.approx(1, rel=0.01)


def test_stored_programs_are_small():
    sizes = [path.stat().st_size for path in PROGRAMS.glob("*.gz")]
    assert len(sizes) == len(CASES) and max(sizes) < 30_000
