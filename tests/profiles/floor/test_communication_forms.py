"""The expected collectives of every form that numbers are stored in are those that XLA compiles."""

import contextlib
import random

import jax.numpy as jnp
import pytest

from model.dtypes import Dtypes
from model.layout_check import settle
from profiles.compiled.inspection import PassProgram
from profiles.floor.communication import expected_collectives
from profiles.floor.passes import Pass
from sharding.catalog import ATTENTION, COLLECTIVES, LAYOUTS, attend_by, schedule_by
from sharding.error_types import LayoutError
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS
from tests.engines import config_of, divide
from tests.profiles.floor.test_communication import MESHES, PHASES, check

# Large enough that groups of 32 divide over eight devices, in the inputs that are not head sizes.
SIZES = {"layers": 1, "d_model": 256, "d_ff": 512, "head_size": 64}
MODELS = (
    "grouped", "biased_windowed", "wide_multi_query", "experts", "divided experts",
    "divided six_experts",
)  # fmt: skip
BF16, F32, INT8 = jnp.bfloat16, jnp.float32, QUANTIZATIONS["int8"]
DTYPES = {
    "int8_rounded": Dtypes(BF16, INT8, INT8, round_activations=True),
    "int4": Dtypes(BF16, QUANTIZATIONS["int4"]),
    "int8_grouped": Dtypes(F32, QUANTIZATIONS["int8_grouped"], QUANTIZATIONS["fp8"]),
    "fp8": Dtypes(F32, QUANTIZATIONS["fp8"], BF16),
    "int4_symmetric": Dtypes(F32, QUANTIZATIONS["int4_symmetric"], INT8),
    "bfloat16_weights": Dtypes(F32, BF16),
    "int8": Dtypes(F32, INT8),
    "float32_weights": Dtypes(BF16, F32, INT8),
}


def program_of(
    dtypes: str, layout: str, collectives: str, family: str, attention: str, mesh: str, phase: str
) -> PassProgram:
    """Raises LayoutError where these do not go together."""
    config = config_of(family, **SIZES)
    chosen = schedule_by(attend_by(LAYOUTS[layout], attention), collectives)
    placement = settle(config, DTYPES[dtypes], divide(chosen, family), parse_mesh(mesh))
    return PassProgram(
        config=config,
        placement=placement,
        dtypes=DTYPES[dtypes],
        pass_=Pass(
            -(-8 // placement.multiple("B")) * placement.multiple("B"),
            context=0,
            tokens=PHASES[phase],
            slots=24,
        ),
    )


COVERING = [
    ("int8_rounded", "weight_stationary_1d", "compiler", "grouped", "heads", "1x2x4", "prefill"),
    ("int4", "weight_stationary_2d", "overlapped", "grouped", "batch", "8x1x1", "decode"),
]  # fmt: skip
MORE = [
    ("int8", "data_parallel_x_2d", "compiler", "grouped", "batch", "1x2x4", "prefill"),
    ("fp8", "weight_gathered_xy", "overlapped", "divided experts", "sequence", "1x2x4", "prefill"),
    ("bfloat16_weights", "data_parallel_x_1d", "overlapped",
     "wide_multi_query", "sequence", "2x2x2", "decode"),
    ("int8_grouped", "weight_gathered_x", "compiler",
     "wide_multi_query", "heads", "2x2x2", "decode"),
    ("int4_symmetric", "weight_gathered_xyz", "compiler", "experts", "sequence", "4x2x1", "decode"),
    ("float32_weights", "data_parallel_x_gathered_y", "overlapped",
     "divided six_experts", "heads", "4x2x1", "prefill"),
    ("int8_rounded", "weight_stationary_1d", "compiler",
     "biased_windowed", "sequence", "8x1x1", "decode"),
    ("int8_rounded", "weight_stationary_1d", "compiler", "grouped", "sequence", "2x2x2", "decode"),
    ("int8_rounded", "weight_stationary_1d", "overlapped", "grouped", "heads", "8x1x1", "decode"),
    ("int8_rounded", "weight_stationary_1d", "overlapped",
     "divided experts", "sequence", "4x2x1", "prefill"),
    ("int4", "weight_stationary_2d", "compiler", "wide_multi_query", "sequence", "2x2x2", "decode"),
    ("int4", "weight_stationary_2d", "compiler",
     "divided six_experts", "heads", "4x2x1", "prefill"),
    ("int4", "weight_stationary_2d", "overlapped", "experts", "heads", "4x2x1", "decode"),
    ("int4", "weight_stationary_2d", "overlapped", "experts", "batch", "2x2x2", "decode"),
    ("int8_grouped", "weight_gathered_x", "compiler",
     "wide_multi_query", "batch", "1x2x4", "decode"),
    ("int8_grouped", "weight_gathered_x", "compiler",
     "wide_multi_query", "heads", "4x2x1", "decode"),
    ("int8_grouped", "weight_gathered_x", "overlapped", "grouped", "sequence", "8x1x1", "decode"),
    ("int8_grouped", "weight_gathered_x", "overlapped", "grouped", "sequence", "4x2x1", "prefill"),
    ("fp8", "weight_gathered_xy", "compiler", "divided experts", "heads", "1x2x4", "decode"),
    ("fp8", "weight_gathered_xy", "compiler", "grouped", "sequence", "4x2x1", "prefill"),
    ("fp8", "weight_gathered_xy", "overlapped", "grouped", "heads", "2x2x2", "prefill"),
    ("fp8", "weight_gathered_xy", "overlapped", "grouped", "heads", "4x2x1", "prefill"),
    ("int4_symmetric", "weight_gathered_xyz", "compiler",
     "biased_windowed", "heads", "8x1x1", "prefill"),
    ("int4_symmetric", "weight_gathered_xyz", "compiler", "experts", "sequence", "8x1x1", "decode"),
    ("int4_symmetric", "weight_gathered_xyz", "overlapped",
     "biased_windowed", "heads", "4x2x1", "decode"),
    ("int4_symmetric", "weight_gathered_xyz", "overlapped", "experts", "batch", "8x1x1", "prefill"),
    ("bfloat16_weights", "data_parallel_x_1d", "compiler",
     "grouped", "sequence", "2x2x2", "prefill"),
    ("bfloat16_weights", "data_parallel_x_1d", "compiler",
     "divided six_experts", "batch", "4x2x1", "prefill"),
    ("bfloat16_weights", "data_parallel_x_1d", "overlapped", "experts", "batch", "1x2x4", "decode"),
    ("bfloat16_weights", "data_parallel_x_1d", "overlapped",
     "experts", "heads", "2x2x2", "prefill"),
    ("int8", "data_parallel_x_2d", "compiler", "experts", "batch", "8x1x1", "prefill"),
    ("int8", "data_parallel_x_2d", "compiler", "biased_windowed", "heads", "2x2x2", "decode"),
    ("int8", "data_parallel_x_2d", "overlapped", "biased_windowed", "batch", "4x2x1", "decode"),
    ("int8", "data_parallel_x_2d", "overlapped", "wide_multi_query", "batch", "1x2x4", "prefill"),
    ("float32_weights", "data_parallel_x_gathered_y", "compiler",
     "divided experts", "batch", "2x2x2", "decode"),
    ("float32_weights", "data_parallel_x_gathered_y", "compiler",
     "biased_windowed", "heads", "4x2x1", "prefill"),
    ("float32_weights", "data_parallel_x_gathered_y", "overlapped",
     "divided six_experts", "batch", "2x2x2", "decode"),
    ("float32_weights", "data_parallel_x_gathered_y", "overlapped",
     "divided experts", "sequence", "8x1x1", "prefill"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("dtypes", "layout", "collectives", "family", "attention", "mesh", "phase"),
    [*COVERING, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
)
def test_xla_compiles_the_collectives_that_are_expected_of_a_form(
    dtypes, layout, collectives, family, attention, mesh, phase
):
    check(program_of(dtypes, layout, collectives, family, attention, mesh, phase))


@pytest.mark.long
@pytest.mark.parametrize("collectives", COLLECTIVES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtypes", DTYPES)
def test_every_form_and_layout_compile_to_the_collectives_that_are_expected(
    dtypes, layout, collectives
):
    """The rest is drawn, until two go with this form and layout."""
    draw, ran = random.Random(f"{dtypes} {layout} {collectives}"), 0
    while ran < 2:
        drawn = (draw.choice(list(each)) for each in (MODELS, ATTENTION, MESHES, PHASES))
        with contextlib.suppress(LayoutError):
            program = program_of(dtypes, layout, collectives, *drawn)
            check(program)
            ran += 1


def mlp_gathers(dtypes: Dtypes, layout: str, collectives: str) -> list[tuple]:
    config = config_of("grouped", **SIZES)
    placement = Placement.of(
        schedule_by(LAYOUTS[layout], collectives), config.sizes, parse_mesh("2x2x2")
    )
    found = expected_collectives(config, placement, dtypes, batch=8)
    return [
        (each.kind, "".join(each.axes), each.payload_bytes, each.element)
        for each in found
        if each.where == "layer/mlp" and each.kind in ("all-gather", "permute")
    ]


def test_each_array_of_a_gathered_matrix_moves_in_its_own_type():
    """By hand: 2x512x256 and 256x512 values of 4 bits, and numbers of 4 bytes for each 32."""
    found = mlp_gathers(DTYPES["int4"], "weight_gathered_x", "compiler")
    size = 512 * 256 // 4  # over z and y
    activations = ("all-gather", "yz", 4 * 256 * 2, "bf16")
    values, numbers = (
        [("all-gather", "x", n * size * bits // 8, element) for n in (2, 1)]
        for bits, element in ((4, "u4"), (1, "f32"))
    )
    assert found == [
        values[0], numbers[0], numbers[0], activations, values[1], numbers[1], numbers[1]
    ]  # fmt: skip


def test_copies_of_scales_are_gathered_with_their_values():
    """`down` over x and y: scales of the outputs, the inputs' chips have copies, come from both."""
    found = mlp_gathers(DTYPES["int8"], "weight_gathered_xy", "overlapped")
    halves = [("permute", "xy", n, element) for n, element in (
        (2 * 512 * 256 // 8 // 2, "s8"), (2 * 512 // 4 * 4 // 2, "f32"),
        (512 * 256 // 8 // 2, "s8"), (256 // 2 * 4 // 2, "f32"),
    )]  # fmt: skip
    assert [each for each in found if each[0] == "permute"] == halves


def test_what_columns_in_few_bits_multiply_is_gathered_at_once():
    """Sums still go round in loops."""
    for dtypes, kinds in (
        ("bfloat16_weights", ["permute", "permute", "permute"]),
        ("int8", ["all-gather", "permute", "all-gather"]),
        ("int4", ["all-gather", "permute", "all-gather"]),
    ):
        found = mlp_gathers(DTYPES[dtypes], "weight_stationary_2d", "overlapped")
        assert [kind for kind, *_ in found][:3] == kinds, dtypes
