"""What passes hold beside weights and cache, against sums by hand and what was compiled."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, FLOAT32, Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import Price
from profiles.chips.slices import parse_slice
from profiles.compiled.grid import read_grid
from profiles.expected.estimate import Estimator
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.plan.space import Space
from sharding.catalog import LAYOUTS, attend_by, find_layout, schedule_by
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS

ONE_D = LAYOUTS["weight_stationary_1d"]
RESULTS = Path(__file__).parents[3] / "profiles/results"


def estimator(topology: str, mesh: str) -> Estimator:
    slice = parse_slice(topology)
    calibration = calibration_of(slice.chip.name)
    config = find_model("llama3-8b")
    return Estimator(
        Deployment(
            model=config,
            slice=slice,
            dtypes=BFLOAT16,
            calibration=calibration,
            layout=ONE_D,
            mesh=parse_mesh(mesh),
        )
    )


def test_prompts_hold_a_chunk_each_and_no_scores():
    """8 prompts of 32,768 tokens, an eighth of the MLP and of the heads on each of eight chips."""
    prompts = estimator("v5e:2x4", "1x1x8").prefill(8, 32_768)
    tokens = 8 * 2048
    stream = 2 * tokens * 4096 * 2
    hidden = 3 * tokens * 14_336 // 8 * 2  # wider than the queries, keys and sums of 4 heads
    assert prompts.counts.activations == stream + hidden and prompts.fits
    chunks = estimator("v5e:2x4", "1x1x8").prefill(8, 2048)
    assert prompts.counts.activations == chunks.counts.activations


def test_a_decode_step_holds_little():
    step = estimator("v5e:2x4", "1x1x8").decode(64, 2048)
    assert step.counts.activations < 0.01 * step.counts.kv_resident


@pytest.mark.parametrize(
    ("experts", "mesh"),
    [(0, "1x1x1"), (4, "1x1x2"), pytest.param(0, "1x1x2", marks=pytest.mark.slow)],
)
def test_the_compiler_holds_about_as_much(tiny_engine, experts, mesh):
    engine = tiny_engine(mesh, experts=experts, experts_per_token=min(experts, 2))
    memory = engine.lower_prefill(4, 128, 128).compile().memory_analysis()
    costs = PassCounter(engine.config, engine.placement.prefill, FLOAT32)
    counted = costs.count(Pass(batch=4, tokens=128, context=0)).activations
    assert 0.6 < memory.temp_size_in_bytes / counted < 2


def test_recorded_programs_of_prompts_hold_about_as_much():
    """Those whose attention keeps no scores in memory: former ones were compiled before."""
    grids = map(read_grid, sorted(RESULTS.glob("compiled/*pr*/matrix.jsonl")))
    ratios = []
    for found in (grid for grid in grids if grid["started"] >= "2026-11-29"):
        for point in found["points"]:
            layout = attend_by(find_layout(point.layout), point.attention)
            config = find_model(point.model)
            placement = Placement.of(
                schedule_by(layout, point.collectives), config.sizes, point.mesh
            )
            stored = (point.weight_dtype, point.kv_dtype)
            dtypes = Dtypes(jnp.bfloat16, *(QUANTIZATIONS.get(name, name) for name in stored))
            counted = PassCounter(config, placement.prefill, dtypes).count(
                Pass(point.batch, 0, point.tokens_per_sequence)
            )
            ratios.append(point.compiled["temporary_bytes"] / counted.activations)
    assert len(ratios) >= 4
    assert min(ratios) > 0.35 and max(ratios) < 2.2


def test_a_plan_leaves_room_for_a_prompt_beside_a_full_batch():
    slice, config = parse_slice("v5e:2x4"), find_model("llama3-8b")
    given = {
        "model": config,
        "slices": ((slice, Price(1.2)),),
        "dtype_sets": (BFLOAT16,),
        "layouts": (ONE_D,),
        "calibration": calibration_of,
        "context": 500,
        "slots": 512,
    }
    (without,) = Space(**given).cells
    (beside,) = Space(**given, prompt=480).cells
    for row, most, less in zip(beside.rows, without.batches, beside.batches, strict=True):
        placement = Placement.of(row.layout, config.sizes, row.mesh)
        costs = PassCounter(config, placement, BFLOAT16)
        prompt = costs.count(Pass(batch=1, tokens=480, context=0)).activations
        kept = costs.count(Pass(batch=int(less.max()), context=500, slots=512)).held
        assert (
            kept + prompt
            <= beside.capacity
            < kept + prompt + costs.line(500, 512).memory_per_sequence
        )
        assert less.max() < most.max()
