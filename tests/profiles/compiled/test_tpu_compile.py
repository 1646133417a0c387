"""Live: XLA's TPU compiler still makes of planted steps, and of real ones, what findings expect."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from profiles.compiled.toolchains import TPU
from tests.profiles import fault_table
from tests.scripts.running import FULL, run_many

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.tpu_compile,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu"),
]

FAULTS = {"cache_not_aliased", "copy", "dequantized", "collective", "weight_gather", "replicated"}

# Parts of a device along what is scattered, by element type, and what is made of a psum_scatter.
SCATTERS = """
import json, sys
import jax, numpy as np
from jax.experimental import topologies
from sharding.mesh import mesh_over, parse_mesh

def made(mesh, part, dtype):
    step = jax.shard_map(
        lambda a: jax.lax.psum_scatter(a, "z", scatter_dimension=2, tiled=True),
        mesh=mesh, in_specs=jax.P(), out_specs=jax.P(None, None, "z"), check_vma=False)
    a = jax.ShapeDtypeStruct((8, 1, 4 * part), dtype, sharding=jax.NamedSharding(mesh, jax.P()))
    text = jax.jit(step).lower(a).compile().as_text()
    return "reduce-scatter" if " reduce-scatter(" in text else "all-reduce"

found = {}
for name in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x1x1"):
    options = {"chips_per_host_bounds": [2, 1, 1]} if name.startswith("tpu7x") else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    mesh = mesh_over(parse_mesh("4"), devices)
    for part, dtype in ((128, "bfloat16"), (256, "bfloat16"), (896, "bfloat16"), (256, "float32")):
        found[f"{name} {part} {dtype}"] = made(mesh, part, dtype)
print(json.dumps(found))
"""


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=TPU.child_environment(),
        capture_output=True,
        text=True,
        timeout=900,
        **options,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def compiled_step(*arguments: str) -> dict:
    """The document of `compile_step.py`."""
    case = {"step": [*arguments, "--json=-"]}
    ended = run_many("compile_step.py", case, folder=ROOT, seconds=900, **FULL)["step"]
    assert ended.code == 0, ended.stderr[-2000:]
    return ended.document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("programs")
    run("-m", "tests.profiles.planted", str(made))
    return made


@pytest.mark.parametrize("name", fault_table.KINDS)
def test_planted_faults_are_found_in_programs_of_today(folder, name):
    fault_table.check(name, folder)


def test_a_scan_over_stacked_weights_moves_them_today(folder):
    fault_table.check_stacked(folder)


@pytest.mark.parametrize(
    ("topology", "mesh"), [("v5e:2x2", "4"), ("v4:2x2x1", "4"), ("tpu7x:2x2x1", "8")]
)
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_small_step_has_its_arguments_its_cache_in_place_and_its_collectives(
    topology, mesh, phase
):
    step = ["--model=llama3-8b", "--layers=1", "--batch=8", "--context=512", f"--phase={phase}"]
    slice = [f"--topology={topology}", f"--mesh={mesh}", "--layout=weight_stationary_1d"]
    document = compiled_step(*step, *slice)
    (point,), compiled = document["points"], document["compiled"]
    resident = point["bytes_per_chip"]["weights_resident"] + point["bytes_per_chip"]["kv_resident"]
    parts = point["devices"] // point["chips"]
    assert point["status"] == "ok" and document["versions"]["libtpu"]
    assert compiled["argument_bytes"] * parts == pytest.approx(resident, rel=0.01)
    assert compiled["cache_aliased"]
    kinds = {each["kind"] for each in document["findings"]}
    assert not kinds & FAULTS


@pytest.mark.parametrize(
    ("dtypes", "batch", "context", "place"),
    [
        ("int8", 128, 2048, ["--topology=v5e:2x2", "--layout=weight_stationary_1d"]),
        ("int8", 32, 2048, ["--topology=v6e:2x2", "--layout=weight_stationary_2d", "--mesh=4"]),
        ("int4", 8, 2048, ["--topology=v6e:2x2", "--layout=weight_stationary_1d"]),
    ],
)
def test_a_decode_step_in_few_bits_copies_and_unpacks_no_cache_and_no_matrix(
    dtypes, batch, context, place
):
    step = ["--model=llama3-8b", "--layers=1", f"--batch={batch}", f"--context={context}"]
    types = [f"--weight_dtype={dtypes}", "--kv_dtype=int8"]
    document = compiled_step(*step, *place, *types)
    compiled = document["compiled"]
    moved = [one for one in compiled["copies"] if "scales" not in one["what"]]
    assert max([one["bytes"] for one in moved], default=0) < 1e5
    assert compiled["temporary_bytes"] < 0.05 * compiled["argument_bytes"]
    kinds = {each["kind"] for each in document["findings"]}
    assert not kinds & (FAULTS - {"copy"})


def test_states_of_delta_layers_are_written_where_they_lie():
    """Three delta layers and one of attention, all with experts."""
    step = ["--model=qwen3-next-80b-a3b", "--layers=4", "--batch=64", "--context=4096"]
    place = ["--topology=v5e:2x4", "--layout=weight_stationary_1d", "--expert_parallel"]
    compiled = compiled_step(*step, *place)["compiled"]
    assert compiled["cache_aliased"]
    moved = [one["bytes"] for one in compiled["copies"] if "cache/states" in one["what"]]
    assert max(moved, default=0) < 1e6  # what convolutions remember is small


@pytest.mark.parametrize(
    "step",
    [
        # A layer with a window and one without; heads of 64 numbers.
        ["--model=gpt-oss-120b", "--weight_dtype=mxfp4", "--topology=v6e:2x4", "--batch=8"],
        # As many sequences as fill a register.
        ["--model=gpt-oss-120b", "--weight_dtype=mxfp4", "--topology=v6e:2x4", "--batch=128"],
        # A dense layer and one of experts; latents of 576 numbers.
        ["--model=deepseek-v3", "--weight_dtype=fp8", "--topology=v5p:2x2x2", "--batch=16"],
        # Experts in one matmul of groups, whose outputs are innermost in memory.
        ["--model=mixtral-8x7b", "--topology=v6e:2x4", "--batch=32"],
    ],
)
def test_experts_and_heads_of_no_whole_registers_are_left_where_they_lie(step):
    document = compiled_step(*step, "--layers=2", "--context=4096")
    compiled = document["compiled"]
    assert compiled["cache_aliased"]
    assert compiled["temporary_bytes"] < 0.05 * compiled["argument_bytes"]
    # In two dimensions XLA makes some reduce-scatters otherwise.
    assert not {each["kind"] for each in document["findings"]} & (FAULTS - {"collective"})


@pytest.mark.parametrize(
    ("model", "place"),
    [
        ("llama3-8b", ["--topology=v5e:2x4", "--attention=heads", "--kv_dtype=int8"]),
        ("llama3-8b", ["--topology=v5e:2x4", "--attention=batch"]),
        ("llama3-8b", ["--topology=v5e:2x4", "--attention=sequence"]),
        ("gemma2-2b", ["--topology=v6e:2x2", "--kv_dtype=int8"]),  # a window, and a ring
    ],
)
def test_a_chunk_of_several_prompts_is_written_where_the_cache_lies(model, place):
    """Not before what the cache holds is read: that would take a copy of it."""
    step = [f"--model={model}", "--layers=1", "--phase=prefill", "--batch=8", "--context=32768"]
    document = compiled_step(*step, *place, "--max_context=32768")
    (point,), compiled = document["points"], document["compiled"]
    assert compiled["cache_aliased"]
    moved = [each["bytes"] for each in compiled["copies"] if "cache/" in each["what"]]
    assert max(moved, default=0) < 0.02 * point["bytes_per_chip"]["kv_resident"]


@pytest.mark.parametrize(("topology", "prompt"), [("v5e:2x4", 32_768), ("v6e:4x4", 131_072)])
def test_a_long_prompt_fits_and_copies_no_cache(topology, prompt):
    """Its last chunk, which sees all before it."""
    step = ["--model=llama3-8b", "--phase=prefill", "--batch=1", f"--topology={topology}"]
    size = [f"--context={prompt}", f"--max_context={prompt}"]
    document = compiled_step(*step, *size)
    (point,), compiled = document["points"], document["compiled"]
    counted = point["bytes_per_chip"]
    assert (point["status"], point["context"]) == ("ok", prompt - point["tokens_per_sequence"])
    assert compiled["temporary_bytes"] < 0.1 * compiled["argument_bytes"]
    assert compiled["cache_aliased"] and compiled["aliased_bytes"] == counted["kv_resident"]
    made = [one["what"] for one in compiled["copies"] + compiled["temporaries"]]
    assert not any("cache/" in what or str(prompt) in what for what in made)
    # In two dimensions XLA makes some reduce-scatters otherwise, at any length of a prompt.
    assert not {each["kind"] for each in document["findings"]} & (FAULTS - {"collective"})


def test_a_prompt_in_four_bits_holds_no_gathered_matrix_in_more():
    step = ["--model=llama3-8b", "--layers=1", "--phase=prefill", "--batch=8"]
    place = ["--topology=v5e:2x4", "--layout=weight_gathered_xyz", "--context=2048"]
    document = compiled_step(*step, *place, "--weight_dtype=int4")
    assert not {each["kind"] for each in document["findings"]} & (FAULTS - {"copy"})


@pytest.mark.parametrize(
    ("topology", "mesh", "dtypes"),
    [
        ("v5e:2x4", "2x1x4", "int8"),
        ("v5p:2x2x1", "2x1x2", "int8"),
        ("v6e:2x2", "4", "bfloat16"),
        ("tpu7x:1x1x1", "2", "int8"),
    ],
)
def test_overlapped_transfers_run_beside_products_and_copy_no_matrix(topology, mesh, dtypes):
    step = ["--model=llama3-8b", "--layers=1", "--batch=128", "--collectives=overlapped"]
    place = [f"--topology={topology}", f"--mesh={mesh}", "--attention=batch"]
    place += ["--layout=weight_stationary_2d"]
    document = compiled_step(*step, *place, f"--weight_dtype={dtypes}")
    sent = [one for one in document["compiled"]["collectives"] if one["kind"] == "permute"]
    assert sent and {one["overlap"] for one in sent} == {"beside a product"}
    assert not {each["kind"] for each in document["findings"]} & FAULTS


def test_a_step_that_the_compiler_finds_too_large_does_not_fit():
    step = ["--model=llama3-8b", "--layers=1", "--topology=v5e:2x2", "--phase=prefill"]
    work = ["--batch=64", "--context=8191", "--mesh=4", "--layout=weight_stationary_1d"]
    work += ["--chunk=8192"]  # all tokens at once
    (point,) = compiled_step(*step, *work)["points"]
    assert point["status"] == "does_not_fit" and "per chip more" in point["message"]


def test_which_sums_are_scattered_depends_on_the_part_of_a_device():
    found = json.loads(run("-c", SCATTERS).stdout)
    for case, made in found.items():
        chip, part, dtype = case.split()
        tiled = dtype == "bfloat16" and int(part) % 256 == 0
        if dtype == "bfloat16" or not chip.startswith("tpu7x"):
            expected = tiled or chip.startswith("tpu7x")
            assert made == ("reduce-scatter" if expected else "all-reduce"), case
