"""What a person reads of a compiled step, and what a program reads, from stored programs."""

import dataclasses

from profiles.compiled import text as compiled_text
from profiles.compiled.inspection import collective_table, expected
from profiles.compiled.step import CompiledStep, read
from profiles.floor.arrays import placed_arrays
from profiles.floor.collective import Collective
from tests.profiles.planted import BATCH, CASES, SLOTS, load


def step_of(name: str) -> CompiledStep:
    return read(load(name), CASES[name].program.placement.mesh)


def memory(name: str) -> str:
    case = CASES[name]
    program = case.program
    arrays = placed_arrays(program.config, program.placement, program.dtypes, BATCH, SLOTS)
    return compiled_text.memory(step_of(name), case.estimator.decode(BATCH, SLOTS - 1), arrays)


def row(text: str, words: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(words))
    return line.removeprefix(words).split()


def test_bytes_stand_beside_the_floors_and_say_whether_the_cache_is_written_in_place():
    sound, undonated = memory("sound"), memory("undonated")
    cache, aliased, more = row(sound, "cache, written in place")
    assert (cache, more) == (aliased, "equal")
    assert row(undonated, "cache, written NOT in place")[1:] == ["0", "-100.0%"]
    assert row(sound, "weights and cache")[2] == "equal"
    assert row(memory("replicated"), "weights and cache")[2].startswith("+")


def test_large_temporaries_are_named():
    assert "(temporaries hold bf16[2048,131072]" in memory("gathered")


def test_collectives_stand_in_one_row_with_what_runs_beside_them():
    case = CASES["overlapped"]
    step = step_of("overlapped")
    text = compiled_text.collectives(expected(case.program, "tpu"), step.collectives)
    head, *rows = (line.split() for line in text.splitlines())
    assert head[:5] == ["collective", "axes", "bytes", "expected", "compiled"]
    assert all(cells[3] == cells[4] for cells in rows)
    counts = [tuple(map(int, cells[4:])) for cells in rows if cells[0] == "permute"]
    assert {made - product - work for made, product, work, _, _ in counts} == {0}
    assert {work for _, _, work, _, _ in counts} == {0, 1}
    assert compiled_text.collectives([], []) == "collectives: none, as expected"


def test_weights_that_a_compiler_lays_out_otherwise_are_named_once_for_all_layers():
    default = step_of("sound")
    name = "layers/0/mlp/down"
    turned = dataclasses.replace(default.arguments[name], order=(0, 1))
    arguments = {**default.arguments, name: turned}
    free = dataclasses.replace(default, arguments=arguments, moves=(), temporary_bytes=5)
    (changed,) = compiled_text.layout_changes(default, free)
    assert (changed["array"], changed["count"]) == ("layers/*/mlp/down", 1)
    assert changed["default"] == "[0,1] T(8,128)(2,1)" and changed["auto"] == "[1,0] T(8,128)(2,1)"
    text = compiled_text.weight_layouts(default, free, 1e9)
    assert "layers/*/mlp/down (1): [0,1]" in text and "-> 5 bytes" in text and "-> 0 ms" in text
    assert "none would lie otherwise" in compiled_text.weight_layouts(default, default, 1e9)


def test_a_record_has_the_documented_fields():
    record = step_of("dequantized").as_record()
    assert record.keys() == {
        "argument_bytes", "output_bytes", "aliased_bytes", "temporary_bytes", "cache_aliased",
        "collectives", "copies", "temporaries", "compile_s",
    }  # fmt: skip
    assert all(isinstance(each["asynchronous"], bool) for each in record["collectives"])
    first = record["copies"][0]
    assert first["what"] == "layers/*/mlp/down/values converted from s8 to bf16"
    assert first.keys() >= {"what", "bytes", "count"} and first["count"] == 1


def test_a_block_beside_the_layers_has_no_number_per_layer():
    """The inputs that all layers have of their own are made once, before the first."""
    places = {"layer_inputs": 1, "layer/layer_inputs": 2, "layer": 1}
    listed = [Collective("all-reduce", ("x",), 64, n, where) for where, n in places.items()]
    once, each, whole = collective_table(listed, 2, "compiled", listed).splitlines()[1:]
    assert once.split()[-2:] == ["64", "1"]
    assert each.split()[-2:] == ["1", "2"] and whole.split()[-2:] == ["0.5", "1"]


def test_no_finding_is_said_to_be_none():
    assert compiled_text.findings([], 1.0) == "findings: none"
