"""The expected collectives: those that XLA compiles, and the closed forms that were published."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, FLOAT32
from profiles.compiled.inspection import PassProgram, compiled, differences, expected
from profiles.floor.communication import ForwardPass, expected_collectives
from profiles.floor.passes import Pass
from profiles.hlo.census import census
from sharding.catalog import (
    ATTENTION,
    COLLECTIVES,
    LAYOUTS,
    attend_by,
    prefill_by,
    schedule_by,
)
from sharding.layout import Layout
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from tests.engines import carry_bytes, config_of, divide

MODELS = (
    "grouped", "biased_windowed", "multi_query_parallel", "multi_head_two_norms", "experts",
    "divided experts_multi_query",
)  # fmt: skip
MESHES = ("2x2x2", "1x2x4", "8x1x1", "4x2x1")
PHASES = {"decode": 1, "prefill": 13}


def program_of(
    family: str, layout: Layout, mesh: str, tokens: int, dtypes=FLOAT32, layers: int = 2
) -> PassProgram:
    config, layout = config_of(family, layers=layers), divide(layout, family)
    placement = Placement.of(layout, config.sizes, parse_mesh(mesh))
    rows = placement.multiple("B")
    return PassProgram(
        config=config,
        placement=placement,
        dtypes=dtypes,
        pass_=Pass(-(-8 // rows) * rows, context=0, tokens=tokens, slots=24),
    )


def check(program: PassProgram) -> None:
    check_collectives(program, program.lower().compile().as_text())


def check_collectives(program: PassProgram, text: str, sampled: bool = True) -> None:
    """A program has those that are expected; over replicas alone there may be none."""
    expected_collectives, found = expected(program), census(text, program.placement.mesh)
    expected_collectives = [one for one in expected_collectives if sampled or one.where != "sample"]
    assert found or program.placement.mesh["x"] == 8
    assert differences(expected_collectives, found, program.dtypes.dtype) == []


OVERLAPPED_LATER = pytest.param("overlapped", marks=pytest.mark.slow)

# `test_layouts` checks those of all other layouts, in the programs that it runs.
COVERING = [
    ("weight_gathered_xyz", "overlapped", "sequence", "grouped", "2x2x2", "prefill"),
    ("data_parallel_x_gathered_y", "overlapped", "batch", "experts", "8x1x1", "decode"),
]  # fmt: skip
TWO_LAYERS = [
    ("weight_gathered_x", "overlapped", "heads", "divided experts_multi_query", "2x2x2", "prefill"),
    ("data_parallel_x_1d", "overlapped", "batch", "biased_windowed", "8x1x1", "decode"),
    ("weight_stationary_1d", "compiler", "batch", "multi_head_two_norms", "2x2x2", "prefill"),
    ("weight_stationary_1d", "overlapped", "sequence", "multi_head_two_norms", "4x2x1", "prefill"),
    ("weight_stationary_2d", "compiler", "batch", "multi_query_parallel", "1x2x4", "decode"),
    ("weight_stationary_1d", "compiler", "heads", "norms_over_heads_and_biases",
     "2x2x2", "decode"),
    ("weight_stationary_2d", "compiler", "batch", "norms_over_heads_and_biases",
     "2x2x2", "prefill"),
    ("weight_stationary_2d", "overlapped", "batch", "biased_windowed", "2x2x2", "prefill"),
    ("weight_gathered_x", "compiler", "sequence", "divided experts_multi_query",
     "1x2x4", "prefill"),
    ("weight_gathered_xy", "compiler", "batch", "experts", "2x2x2", "prefill"),
    ("weight_gathered_xy", "overlapped", "batch", "multi_query_parallel", "1x2x4", "prefill"),
    ("weight_gathered_xyz", "compiler", "batch", "experts", "8x1x1", "decode"),
    ("weight_gathered_xyz", "compiler", "heads", "experts_with_sinks", "2x2x2", "prefill"),
    ("weight_stationary_2d", "compiler", "batch", "experts_with_sinks", "2x2x2", "decode"),
    ("data_parallel_x_1d", "compiler", "sequence", "divided experts_multi_query",
     "2x2x2", "prefill"),
    ("data_parallel_x_2d", "compiler", "heads", "experts", "1x2x4", "decode"),
    ("data_parallel_x_2d", "overlapped", "heads", "experts", "4x2x1", "decode"),
    ("data_parallel_x_gathered_y", "compiler", "heads", "multi_query_parallel", "4x2x1", "decode"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "collectives", "attention", "family", "mesh", "phase", "layers"),
    [*((*case, 1) for case in COVERING),
     *(pytest.param(*case, 2, marks=pytest.mark.slow) for case in (*COVERING, *TWO_LAYERS))],
)  # fmt: skip
def test_xla_compiles_the_collectives_that_are_expected(
    layout, collectives, attention, family, mesh, phase, layers
):
    chosen = schedule_by(attend_by(LAYOUTS[layout], attention), collectives)
    check(program_of(family, chosen, mesh, PHASES[phase], layers=layers))


# A layout of `LAYOUTS` each: the first letters of its attention, collectives and phase.
EVERY_LAYOUT = {
    ("grouped", "2x2x2"): "hcp bod scd bcd bcd bcd hop hop",
    ("grouped", "1x2x4"): "bop scp scd sop bod scp scd sod",
    ("grouped", "8x1x1"): "bod hod scp sod sod hcd bcp hop",
    ("grouped", "4x2x1"): "bod sod bop hcd sop bcp sop hop",
    ("biased_windowed", "2x2x2"): "hod sod bod hcp hop sod scp hcp",
    ("biased_windowed", "1x2x4"): "sod bod bcd hop scd hod bcp scp",
    ("biased_windowed", "8x1x1"): "bcp bcp sop sod bcd scd bcp sop",
    ("biased_windowed", "4x2x1"): "scd sod bop sop sod scp hcp hcp",
    ("multi_query_parallel", "2x2x2"): "scp hcp bod scd sod scp hod bcd",
    ("multi_query_parallel", "1x2x4"): "hcd hop hcp sop bcp bod bcp scp",
    ("multi_query_parallel", "8x1x1"): "hod sop sop scp hop bod sop bcd",
    ("multi_query_parallel", "4x2x1"): "bcd bod bod hop sop bod hop hod",
    ("multi_head_two_norms", "2x2x2"): "hcp bcd hcd bcd sop sop sod bod",
    ("multi_head_two_norms", "1x2x4"): "bop hcd bop sop scd hod bcp hod",
    ("multi_head_two_norms", "8x1x1"): "sop hop hcp scp hod sod scp bcp",
    ("multi_head_two_norms", "4x2x1"): "bop sod bcp scd hod bop scp hcd",
    ("experts", "2x2x2"): "hod sop hod hod scp bcd hod bod",
    ("experts", "1x2x4"): "bcp hcp bcp hcp hop sop bod hop",
    ("experts", "8x1x1"): "bcd bcd hcd bcd sop bcd sop hod",
    ("experts", "4x2x1"): "bcd bod hod hop bcp hod scd bop",
    ("divided experts_multi_query", "2x2x2"): "scp scd scp hcd sop bod bod hod",
    ("divided experts_multi_query", "1x2x4"): "sop sop hcd scp hcp scd bcp hcp",
    ("divided experts_multi_query", "8x1x1"): "sod bop bop hop bop bcd hop sod",
    ("divided experts_multi_query", "4x2x1"): "bcd sop sod hcd hcd scd sod scd",
}


def every_pair():
    """Two meshes of each family in the slow set, the others in the long one."""
    for at, family in enumerate(MODELS):
        for number, mesh in enumerate(MESHES):
            slow = (at + number) % 2 == 0
            yield pytest.param(family, mesh, marks=pytest.mark.slow if slow else pytest.mark.long)


@pytest.mark.parametrize(("family", "mesh"), list(every_pair()))
def test_every_layout_compiles_to_the_collectives_that_are_expected(family, mesh):
    first = {word[0]: word for word in (*ATTENTION, *COLLECTIVES, *PHASES)}
    for layout, letters in zip(LAYOUTS.values(), EVERY_LAYOUT[family, mesh].split(), strict=True):
        attention, collectives, phase = (first[letter] for letter in letters)
        chosen = schedule_by(attend_by(layout, attention), collectives)
        check(program_of(family, chosen, mesh, PHASES[phase]))


@pytest.mark.parametrize("collectives", ["compiler", OVERLAPPED_LATER])
def test_bfloat16_travels_as_float32_on_a_cpu_and_nothing_else_differs(collectives):
    layout = schedule_by(attend_by(LAYOUTS["weight_stationary_2d"], "batch"), collectives)
    check(program_of("grouped", layout, "2x2x2", 1, BFLOAT16, layers=1))


@pytest.mark.parametrize("collectives", ["compiler", OVERLAPPED_LATER])
def test_an_axis_that_divides_no_head_costs_nothing(collectives):
    """Head size over z and nothing over y, but the residual stream over both."""
    layout = schedule_by(LAYOUTS["weight_stationary_2d"], collectives)
    check(program_of("three_heads", layout, "1x3x2", 1, layers=1))


def test_grouped_experts_join_gate_and_up_once():
    program = program_of("experts", LAYOUTS["weight_stationary_2d"], "2x2x2", 1)
    sizes = {"batch": program.pass_.batch}
    both = [
        [
            each
            for each in expected_collectives(
                program.config, program.placement, FLOAT32, **sizes, grouped=grouped
            )
            if each.where == "layer/mixture" and each.axes == ("x",) and each.kind == "all-reduce"
        ]
        for grouped in (True, False)
    ]
    (scores, once), (_, each) = both
    assert (once.count, each.count) == (2, 2 * 8)  # layers, and experts of each
    assert once.payload_bytes == 2 * each.payload_bytes  # two experts a token
    assert scores.payload_bytes == 8 * 8 * 4


def test_a_list_of_another_layout_does_not_pass():
    """1D's and 2D's sums are told apart, though a CPU may show both as all-reduces."""
    one, two = (
        program_of("grouped", LAYOUTS[f"weight_stationary_{n}d"], "2x2x2", 1, layers=1)
        for n in (1, 2)
    )
    assert differences(expected(two), compiled(one), jnp.float32)
    assert differences(expected(one), compiled(two), jnp.float32)


def test_prompts_in_another_layout_fill_the_cache_of_decode_steps():
    layout = prefill_by(
        attend_by(LAYOUTS["weight_stationary_2d"], "batch"), LAYOUTS["weight_gathered_x"]
    )
    check(program_of("grouped", layout, "2x2x2", 13, layers=1))


def mlp_elements(layout: Layout, mesh: str, *, batch: int, matrices_in: int) -> float:
    """Elements on the wire per chip of one MLP of PaLM 540B, as the paper counts: an all-reduce is
    a reduce-scatter and an all-gather."""
    palm = find_model("palm-540b-padded")
    placement = Placement.of(layout, palm.sizes, parse_mesh(mesh))
    step = ForwardPass(palm, placement, BFLOAT16, batch, 1)
    step.sizes["C"] = matrices_in
    residual = placement.activations("BTR")
    step.mlp(residual, placement.contracted("BTD"))
    times = {"all-reduce": 2}
    return sum(each.payload_bytes / 2 * times.get(each.kind, 1) for each in step.found)


SIZES = {"x": 4, "y": 4, "z": 4}
D, F = 18_432, 4 * 18_432


@pytest.mark.parametrize(
    ("layout", "closed"),
    [
        ("weight_stationary_1d", lambda batch, n: 2 * batch * D),
        ("weight_stationary_2d", lambda batch, n: 2 * batch * (D / 4 + F / 16)),
        ("weight_gathered_x", lambda batch, n: 2 * D * F * 4 / n + 2 * batch * D / 4),
        ("weight_gathered_xy", lambda batch, n: 2 * D * F * 16 / n + 2 * batch * D / 16),
        ("weight_gathered_xyz", lambda batch, n: 2 * D * F),
    ],
)
def test_an_mlp_of_two_matrices_costs_what_was_published(layout, closed):
    """Pope et al. 2022, sections 3.2.1 to 3.2.3, on 64 chips."""
    found = mlp_elements(LAYOUTS[layout], "4x4x4", batch=512, matrices_in=1)
    assert found == closed(512, 64)


def test_a_gated_mlp_in_two_dimensions_costs_half_as_much_again_for_d_ff():
    found = mlp_elements(LAYOUTS["weight_stationary_2d"], "4x4x4", batch=512, matrices_in=2)
    assert found == 512 * (2 * D / 4 + 3 * F / 16)


@pytest.mark.parametrize("name", LAYOUTS)
def test_loops_move_as_many_bytes_as_one_collective_each(name):
    """A ring passes n - 1 of n chunks; an all-reduce is a scatter and a gather of those."""
    config = dataclasses.replace(find_model("llama3-70b"), layers=1)
    mesh = parse_mesh("2x2x2")

    def sent(collectives: str) -> float:
        placement = Placement.of(schedule_by(LAYOUTS[name], collectives), config.sizes, mesh)
        listed = expected_collectives(config, placement, BFLOAT16, batch=64)
        total = 0.0
        for each in listed:
            n = math.prod(mesh[axis] for axis in each.axes)
            share = {"permute": 1, "all-reduce": 2 * (n - 1) / n}.get(each.kind, (n - 1) / n)
            total += each.count * each.payload_bytes * share
        return total

    assert sent("overlapped") == pytest.approx(sent("compiler"), rel=1e-9)


@pytest.mark.parametrize("attention", ["heads", pytest.param("batch", marks=pytest.mark.slow)])
def test_switching_to_the_layout_of_prompts_leaves_resident_weights_as_they_are(attention):
    """By the compiler's memory analysis: both steps take the same weights, and alias the cache."""
    layout = prefill_by(
        attend_by(LAYOUTS["weight_stationary_2d"], attention), LAYOUTS["weight_gathered_xyz"]
    )
    arguments = {}
    for tokens in PHASES.values():
        program = program_of("grouped", layout, "2x2x2", tokens, layers=1)
        engine = program.engine()
        cache = engine.new_cache(program.pass_.batch, program.pass_.cache_slots)
        kept = sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(cache))
        memory = program.lower().compile().memory_analysis()
        batch = program.pass_.batch
        inputs = carry_bytes(batch) if tokens == 1 else batch * (tokens + 2) * 4
        arguments[tokens] = memory.argument_size_in_bytes - kept - inputs
        assert memory.alias_size_in_bytes == kept
    declared = jax.tree.leaves(engine.parameters)
    weights = sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in declared)
    assert set(arguments.values()) == {weights}
