"""What is asked of the compilers, and what is made of their answers; they are not run here."""

import dataclasses
import re

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import find_chip
from profiles.chips.gpu_targets import gpu_targets, target_config
from profiles.chips.slices import parse_slice
from profiles.compiled import compiler, toolchains
from profiles.compiled.compiled_pass import estimate_as_run, program_of
from profiles.compiled.compiler import (
    DIED,
    Compilation,
    compile_step,
    from_json,
    held_against,
    refused,
    to_json,
)
from profiles.compiled.inspection import PassProgram, differences
from profiles.compiled.substitutes import settle
from profiles.compiled.toolchains import CompilerError, check_compiler, toolchain_of
from profiles.expected.estimate import Estimator
from profiles.floor.collective import Collective
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from sharding.catalog import LAYOUTS, attend_by, divide_experts, schedule_by
from sharding.error_types import UsageError
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS


def program(model: str = "mixtral-8x7b", experts: bool = True) -> PassProgram:
    layout = schedule_by(attend_by(LAYOUTS["weight_stationary_2d"], "batch"), "overlapped")
    config = find_model(model)
    layout = divide_experts(layout) if experts else layout
    return PassProgram(
        config=config,
        placement=Placement.of(layout, config.sizes, parse_mesh("2x2x2")),
        dtypes=Dtypes(jnp.bfloat16, QUANTIZATIONS["int8"], QUANTIZATIONS["int8"], True),
        pass_=Pass(32, context=0, slots=1025),
    )


@pytest.mark.parametrize("model", ["mixtral-8x7b", "gemma3-270m", "llama3-70b"])
def test_a_step_comes_through_json_as_it_was(model):
    given = program(model, experts=model.startswith("mixtral"))
    assert str(from_json(to_json(given))) == str(given)
    assert from_json(to_json(given)) == given


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("v5e:4x4", "v5e:4x4", {}),
        ("v4:2x2x2", "v4:2x2x2", {"chip_config_name": "megacore"}),
        ("v5e:1x1", "v5e:1x1", {"chips_per_host_bounds": [1, 1, 1]}),
        ("v5p:2x2x4*2", "v5p:2x2x4", {"num_slices": 2}),
        ("tpu7x:2x2x1", "tpu7x:2x2x1", {}),
    ],
)
def test_slices_have_the_compilers_names(text, name, options):
    slice = parse_slice(text)
    assert toolchain_of(slice).topology(slice) == (name, options)


@pytest.mark.parametrize(
    ("text", "name"), [("h200:1", "1x1x1"), ("h100:8", "1x1x8"), ("gb200:8", "1x2x4")]
)
def test_gpus_are_told_by_hosts_and_by_their_target_configuration(text, name):
    slice = parse_slice(text)
    found, options = toolchain_of(slice).topology(slice)
    config = options["target_config"]
    assert found == options["topology"] == name
    assert f'device_description_str: "{slice.chip.device_kinds[0]}"' in config
    assert config.count("{") == config.count("}")


@pytest.mark.parametrize("name", gpu_targets())
def test_a_target_configuration_has_figures_of_the_table_of_chips(name):
    chip, config = find_chip(name), target_config(find_chip(name))
    told = dict(re.findall(r"(\w+): ([\d.]+)", config))
    assert int(told["device_memory_size"]) == pytest.approx(chip.recommended.capacity, rel=1e-3)
    assert int(told["l2_cache_size"]) == chip.on_chip
    assert int(told["memory_bandwidth"]) == pytest.approx(chip.bandwidth, rel=0.05)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tpu8i:8", r"tpu8i:8, which XLA's TPU compiler.*use one of v3, v4, v5e"),
        ("l4:8", r"l4:8, of which .*gpu_targets.json has no target.*use one of a100-80gb, h100"),
        ("h100:16", r"h100:16, more GPUs than the 8 of one NVLink domain.*use h100:8"),
        ("h100:8*2", r"h100:8\*2, more GPUs than the 8 of one NVLink domain.*use h100:8"),
    ],
)
def test_slices_without_a_compiler_are_refused(text, words):
    with pytest.raises(UsageError, match=words):
        toolchain_of(parse_slice(text))
    assert toolchain_of(parse_slice("v6e:2x4")).platform == "tpu"
    assert toolchain_of(parse_slice("gb200:72")).platform == "gpu"


@pytest.mark.parametrize(
    ("modules", "text", "extra"),
    [("TPU_MODULES", "v5e:2x2", "tpu-compile"), ("GPU_MODULES", "h100:8", "gpu-compile")],
)
def test_without_a_compiler_one_line_says_how_to_get_it(monkeypatch, modules, text, extra):
    monkeypatch.setattr(toolchains, modules, "no_such_compiler")
    with pytest.raises(CompilerError, match=rf"pip install -e '.\[{extra}\]'"):
        check_compiler(parse_slice(text))


@pytest.mark.parametrize(("topology", "slots"), [("v5e:2x4", 2080), ("h100:8", 2049)])
def test_a_cache_has_the_slots_that_an_engine_makes_on_that_platform(topology, slots):
    slice, config = parse_slice(topology), find_model("llama3-8b")
    estimator = Estimator(
        Deployment(
            model=config,
            slice=slice,
            dtypes=BFLOAT16,
            calibration=calibration_of(slice.chip.name),
            layout=LAYOUTS["weight_stationary_1d"],
            mesh=parse_mesh("1x1x8"),
        )
    )
    pass_ = Pass(8, 2048)
    assert program_of(estimator, pass_).pass_.slots == slots
    assert estimate_as_run(estimator, pass_).pass_.slots == slots


def test_a_program_for_gpus_that_no_gpu_could_hold_does_not_fit():
    sizes = {"argument_bytes": 8e10, "output_bytes": 6e9, "aliased_bytes": 6e9}
    slice = parse_slice("h100:1")
    fits = Compilation(status="ok", memory=sizes | {"temporary_bytes": 4e9})
    assert held_against(fits, slice) is fits
    beyond = Compilation(status="ok", memory=sizes | {"temporary_bytes": 8e9})
    outcome = held_against(beyond, slice)
    assert outcome.status == "does_not_fit"
    assert outcome.missing_bytes == 8.8e10 - slice.chip.recommended.capacity


@pytest.mark.parametrize(
    ("message", "status", "missing_bytes"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 22.96G of 15.75G hbm. "
         "Exceeded hbm capacity by 7.21G.", "does_not_fit", 7.21 * 2**30),
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
         "temporaries (16.61G) exceeds available HBM (15.75G).", "does_not_fit", 0.86 * 2**30),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem", "unsupported", None),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.", "out_of_memory", None),
        ("UNIMPLEMENTED: no such\nthing", "unsupported", None),
    ],
)  # fmt: skip
def test_a_refusal_is_an_outcome_with_its_message(message, status, missing_bytes):
    outcome = refused(message)
    assert outcome.status == status and outcome.message == " ".join(message.split())
    assert outcome.missing_bytes == (missing_bytes and pytest.approx(missing_bytes))


def test_a_compiler_that_dies_leaves_its_last_words(monkeypatch):
    monkeypatch.setattr(compiler.sys, "executable", "/bin/sh")
    monkeypatch.setattr(compiler, "_CHILD", ("-c", "echo first; echo last words >&2; exit 3"))
    for slice in map(parse_slice, ("v5e:2x4", "h100:8")):
        outcome = compile_step(program(), slice)
        assert outcome.status == "unsupported"
        assert "code 3" in outcome.message and "last words" in outcome.message
        assert outcome.message.startswith(DIED)
    for number, status in ((9, "out_of_memory"), (11, "unsupported")):
        monkeypatch.setattr(compiler, "_CHILD", ("-c", f"kill -{number} $$"))
        outcome = compile_step(program(), parse_slice("v5e:2x4"))
        assert outcome.status == status
        assert outcome.message.startswith(f"{DIED} by signal {number}")


def test_of_reduce_scatters_as_many_may_be_all_reduces_as_the_program_has_more():
    asked = [Collective("reduce-scatter", ("z",), 64, 3), Collective("all-reduce", ("z",), 64, 1)]
    made = [Collective("reduce-scatter", ("z",), 64, 1), Collective("all-reduce", ("z",), 64, 3)]
    assert settle(asked, made) == sorted(made)
    assert differences(asked, made, jnp.bfloat16, "tpu") == []
    assert differences(asked, made, jnp.bfloat16, "gpu") != []
    fewer = [dataclasses.replace(made[0]), dataclasses.replace(made[1], count=2)]
    (words,) = differences(asked, fewer, jnp.bfloat16, "tpu")
    assert words == "1 fewer reduce-scatter over z of 64 bytes"
