"""Live: XLA's GPU compiler makes of planted steps, and of real ones, what findings expect."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from profiles.compiled.toolchains import GPU
from tests.profiles import gpu_fault_table
from tests.scripts.running import FULL, run_many

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda13_plugin") is None, reason="no jax-cuda13-plugin"
    ),
]
FAULTS = {"cache_not_aliased", "copy", "collective", "weight_gather", "replicated"}
LAYER = ["--model=llama3-8b", "--layers=1", "--context=512", "--json=-"]


def run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=GPU.child_environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def compiled(*arguments: str) -> dict:
    case = {"step": [*LAYER, *arguments]}
    ended = run_many("compile_step.py", case, folder=ROOT, seconds=600, **FULL)["step"]
    assert ended.code == 0, ended.stderr[-2000:]
    return ended.document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("programs")
    run("-m", "tests.profiles.planted_gpu", str(made))
    return made


@pytest.mark.parametrize("name", gpu_fault_table.KINDS)
def test_what_is_planted_is_found_in_programs_of_today(folder, name):
    gpu_fault_table.check(name, folder)


@pytest.mark.parametrize(
    ("topology", "phase", "layout"),
    [
        ("a100-80gb:8", "decode", "weight_stationary_1d"),
        ("h100:8", "decode", "weight_stationary_2d"),
        ("h200:1", "prefill", "weight_stationary_1d"),
        ("b200:8", "prefill", "weight_stationary_1d"),
        ("gb200:8", "decode", "weight_stationary_1d"),  # two hosts of one domain
    ],
)
def test_a_small_step_has_its_arguments_its_cache_in_place_and_its_collectives(
    topology, phase, layout
):
    document = compiled(
        f"--topology={topology}", f"--phase={phase}", f"--layout={layout}", "--batch=8"
    )
    (point,), step = document["points"], document["compiled"]
    counted = point["bytes_per_chip"]
    resident = counted["weights_resident"] + counted["kv_resident"]
    assert step["argument_bytes"] == pytest.approx(resident, rel=0.01)
    assert step["cache_aliased"] and step["aliased_bytes"] == counted["kv_resident"]
    assert not {each["kind"] for each in document["findings"]} & (FAULTS | {"dequantized"})
    assert {each["sort"] for each in step["kernels"]} >= {"Triton matmul", "Pallas kernel"}


@pytest.mark.parametrize(
    ("topology", "weight_dtype", "batch", "kernels"),
    [
        *(("h100:8", "int8", batch, []) for batch in (1, 8, 64)),
        *((f"{chip}:1", "int4", batch, []) for chip in ("h100", "b200") for batch in (8, 64)),
        ("h100:1", "int8", 64, ["--gpu_kernels=int8"]),
    ],
)
def test_few_bits_are_converted_within_products_and_no_matrix_is_written_out(
    topology, weight_dtype, batch, kernels
):
    document = compiled(
        f"--topology={topology}", f"--batch={batch}", f"--weight_dtype={weight_dtype}", *kernels
    )
    (point,), step = document["points"], document["compiled"]
    assert step["temporary_bytes"] < 0.05 * step["argument_bytes"]
    assert not {each["kind"] for each in document["findings"]} & (FAULTS | {"dequantized"})
    counted = point["bytes_per_chip"]
    read = sum(each["resident_read"] for each in step["kernels"])
    assert read == pytest.approx(counted["weights_read"] + counted["kv_read"], rel=0.01)


def test_experts_in_mxfp4_are_multiplied_where_they_lie_and_none_is_written_out():
    model = ["--model=gpt-oss-120b", "--weight_dtype=mxfp4", "--topology=h100:8", "--batch=8"]
    document = compiled(*model)
    step = document["compiled"]
    assert step["temporary_bytes"] < 0.05 * step["argument_bytes"] and step["cache_aliased"]
    # What is left: attention's matrix is filled up, as d_model of 2,880 is for sums of parts.
    assert not {each["kind"] for each in document["findings"]} & (
        FAULTS - {"copy"} | {"dequantized"}
    )
    assert not any(
        "mlp/gate_up" in one["what"] or "mlp/down" in one["what"] for one in step["copies"]
    )
    kernels = [one for one in step["kernels"] if one["sort"] == "Pallas kernel"]
    assert sum(one["count"] for one in kernels if "mixture" in one["where"]) == 2


@pytest.mark.parametrize(
    ("topology", "batch", "kv_dtype", "most"),
    [
        ("h100:1", 1, "bfloat16", 13),
        ("h100:1", 64, "int8", 11),
        ("b200:1", 1, "fp8", 13),
        ("b200:1", 64, "bfloat16", 11),
    ],
)
def test_a_layer_is_few_kernels_of_which_attention_also_writes(topology, batch, kv_dtype, most):
    """What one layer more adds: products, what XLA sums of their parts, and the rest."""
    flags = f"--topology={topology}", f"--batch={batch}", f"--kv_dtype={kv_dtype}"
    one, two = (compiled(*flags, f"--layers={layers}")["compiled"] for layers in (1, 2))

    def added(what: str, *places: str) -> int:
        totals = [
            sum(each[what] for each in step["kernels"] if not places or each["where"] in places)
            for step in (one, two)
        ]
        return totals[1] - totals[0]

    assert added("count") <= most
    assert added("count", "layer/attention", "layer/cache_write") == (2 if batch == 1 else 1)
    assert two["cache_aliased"]
    cache_of_a_layer = two["aliased_bytes"] - one["aliased_bytes"]
    assert added("bytes_written", "layer/attention") < max(0.1 * cache_of_a_layer, 2**20)
