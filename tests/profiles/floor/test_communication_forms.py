"""The expected collectives of every form that numbers are stored in are those that XLA compiles."""

import dataclasses
import itertools
import random

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import Dtypes
from model.layout_check import settle
from profiles.compiled.inspection import Subject
from profiles.floor.communication import expected_collectives
from sharding.catalog import ATTENTION, COLLECTIVES, LAYOUTS, attend_by, divide_experts, schedule_by
from sharding.error_types import LayoutError
from sharding.layout import Layout
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS
from tests.profiles.floor.test_communication import MESHES, PHASES, check

# Large enough that groups of 32 divide over eight devices, in the inputs that are not head sizes.
CONFIG = dataclasses.replace(find_model("tiny"), layers=1, d_model=256, d_ff=512, head_size=64)
EXPERTS = {"experts": 8, "experts_per_token": 2}
FAMILIES = {
    "grouped": {},
    "biased_windowed": {"attention_bias": True, "windows": (5,)},
    "wide_multi_query": {"d_model": 1024, "kv_heads": 1, "parallel_block": True},
    "experts": EXPERTS,
    "experts_divided": EXPERTS,
    "six_experts_divided": EXPERTS | {"experts": 6},
}
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


def subject_of(dtypes: Dtypes, layout: Layout, draw: random.Random) -> Subject:
    """Family, attention, mesh and phase drawn until this form and layout go with them."""
    while True:
        family = draw.choice(list(FAMILIES))
        config = dataclasses.replace(CONFIG, **FAMILIES[family])
        chosen = attend_by(layout, draw.choice(ATTENTION))
        chosen = divide_experts(chosen) if "divided" in family else chosen
        mesh, tokens = parse_mesh(draw.choice(MESHES)), draw.choice(list(PHASES.values()))
        try:
            placement = settle(config, dtypes, chosen, mesh)
        except LayoutError:
            continue
        batch = -(-8 // placement.multiple("B")) * placement.multiple("B")
        return Subject(
            config=config, placement=placement, dtypes=dtypes, batch=batch, slots=24, tokens=tokens
        )


COVERING = [*zip(DTYPES, LAYOUTS, itertools.cycle(COLLECTIVES), strict=False)]


@pytest.mark.parametrize(("dtypes", "layout", "collectives"), COVERING)
def test_xla_compiles_the_collectives_that_are_expected_of_a_form(dtypes, layout, collectives):
    chosen = schedule_by(LAYOUTS[layout], collectives)
    check(subject_of(DTYPES[dtypes], chosen, random.Random(f"{dtypes} {layout}")))


def every_pair():
    """A layout for each form in the slow set, all others in the long one."""
    for at, dtypes in enumerate(DTYPES):
        for number, layout in enumerate(LAYOUTS):
            slow = number == at % len(LAYOUTS)
            yield pytest.param(dtypes, layout, marks=pytest.mark.slow if slow else pytest.mark.long)


@pytest.mark.parametrize(("dtypes", "layout"), list(every_pair()))
@pytest.mark.usefixtures("quick_compilations")
def test_every_form_and_layout_compile_to_the_collectives_that_are_expected(dtypes, layout):
    draw = random.Random(f"{dtypes} {layout} slow")
    for collectives in COLLECTIVES:
        for _ in range(2):
            check(subject_of(DTYPES[dtypes], schedule_by(LAYOUTS[layout], collectives), draw))


def mlp_gathers(dtypes: Dtypes, layout: str, collectives: str) -> list[tuple]:
    placement = Placement.of(
        schedule_by(LAYOUTS[layout], collectives), CONFIG.sizes, parse_mesh("2x2x2")
    )
    found = expected_collectives(CONFIG, placement, dtypes, batch=8)
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
