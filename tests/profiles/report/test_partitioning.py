"""Records say how a pass runs, and how its cache lies where that is otherwise."""

import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16
from profiles.chips.calibration import calibration_of
from profiles.chips.slices import parse_slice
from profiles.compiled.compiled_pass import compile_pass, program_of
from profiles.expected.estimate import Estimator
from profiles.expected.estimate_record import Recorder
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.report.partitioning import cache_words
from sharding.catalog import LAYOUTS, attend_by, divide_experts, prefill_by
from sharding.mesh import parse_mesh


def estimator(layout, mesh: str, model: str = "llama3-8b") -> Estimator:
    slice = parse_slice("v5e:2x4")
    return Estimator(
        Deployment(
            model=find_model(model),
            slice=slice,
            dtypes=BFLOAT16,
            calibration=calibration_of("v5e"),
            layout=layout,
            mesh=parse_mesh(mesh),
        )
    )


TWO_D = LAYOUTS["weight_stationary_2d"]


@pytest.mark.parametrize(
    ("layout", "mesh", "runs", "cache"),
    [
        (
            attend_by(LAYOUTS["weight_stationary_1d"], "sequence"),
            "1x1x8",
            ("weight_stationary_1d", "heads"),
            ("weight_stationary_1d", "sequence"),
        ),
        (
            prefill_by(attend_by(TWO_D, "batch"), LAYOUTS["weight_gathered_x"]),
            "2x2x2",
            ("weight_gathered_x", "heads"),
            ("weight_stationary_2d", "batch"),
        ),
        (TWO_D, "2x2x2", ("weight_stationary_2d", "heads"), (None, None)),
    ],
)
def test_prompts_are_said_to_run_as_they_run_and_their_cache_to_lie_as_it_lies(
    layout, mesh, runs, cache
):
    one = estimator(layout, mesh)
    # Too large a batch: the record of a compiled pass is then made without a compiler.
    records = {
        "estimate": Recorder(one).record(one.prefill(8, 512)),
        "compile": compile_pass(one, Pass(4096, 0, 8192)).record,
        "inspect": program_of(one, Pass(8, 0, 512)).as_record(),
    }
    for record in records.values():
        assert (record.layout, record.attention) == runs
        assert (record.cache_layout, record.cache_attention) == cache
    said = str(program_of(one, Pass(8, 0, 512)))
    assert f"{runs[0]}, attention by {runs[1]}" in said
    assert cache_words(records["inspect"]) in said
    step = Recorder(one).record(one.decode(8, 512))
    assert (step.layout, step.attention) == (layout.name, layout.attends)
    assert step.cache_layout is None


def test_experts_are_said_to_be_divided_of_a_mixture_alone():
    layout = divide_experts(LAYOUTS["weight_stationary_1d"])
    for model, divided in (("mixtral-8x7b", True), ("llama3-8b", False)):
        one = estimator(layout, "1x1x8", model)
        said = one.describe(), program_of(one, Pass(8, 128)).as_record()
        assert [bool(record.expert_parallel) for record in said] == [divided] * 2
