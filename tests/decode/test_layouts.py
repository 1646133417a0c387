"""Every layout, attention and family gives the logits of one device, in prefill and in decode.

The collectives of the programs that gave them are those expected.
"""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from decode.engine import Engine
from decode.generate import Request, generate
from decode.load import ModelSource
from model.catalog import find_model
from model.dtypes import BFLOAT16, FLOAT32
from model.parameters import shardings
from model.transformer import Transformer
from profiles.compiled.inspection import PassProgram
from profiles.floor.passes import Pass
from sharding.catalog import (
    ATTENTION,
    COLLECTIVES,
    LAYOUTS,
    attend_by,
    divide_experts,
    prefill_by,
    schedule_by,
)
from sharding.error_types import LayoutError
from sharding.layout import Layout
from sharding.mesh import make_mesh, parse_mesh
from sharding.placement import Placement
from tests.engines import config_of, logits_program, random_engine
from tests.profiles.floor.test_communication import check_collectives

MODELS = (
    "grouped", "biased_windowed", "multi_query_parallel", "multi_head_two_norms",
    "multi_head_parallel", "six_experts", "experts_multi_query",
)  # fmt: skip
SLOW, LONG = pytest.mark.slow, pytest.mark.long
MESHES = ("2x2x2", "1x2x4", "8x1x1", "4x2x1")
BATCH, PROMPT, STEPS, SLOTS = 8, 13, 3, 24


def marked_slow(*cases: tuple[str, ...]) -> list:
    return [pytest.param(*case, marks=SLOW) for case in cases]


def engine_of(family: str, layout: Layout, mesh: str) -> Engine:
    return random_engine(config_of(family, layers=1), layout, mesh, FLOAT32)


def logits_of(engine: Engine, batch: int = BATCH) -> np.ndarray:
    """Logits of a prefill of prompts of two lengths and of a few steps, [STEPS + 1, B, V]."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, 256, (batch, PROMPT + STEPS)).astype(np.int32)
    lengths = np.where(np.arange(batch) % 2, PROMPT, PROMPT - 4).astype(np.int32)
    logits, cache = engine.prefill(engine.new_cache(batch, SLOTS), tokens[:, :PROMPT], lengths)
    found = [np.asarray(logits)]
    for step in range(STEPS):
        token, length = engine.put(tokens[:, PROMPT + step]), engine.put(lengths + np.int32(step))
        logits, cache = engine.decode_step(cache, token, length)
        found.append(np.asarray(logits))
    return np.stack(found)


@functools.cache
def expected_of(family: str, batch: int = BATCH) -> np.ndarray:
    return logits_of(engine_of(family, LAYOUTS["weight_stationary_1d"], "1"), batch)


def check(family: str, layout: Layout, mesh: str, batch: int = BATCH) -> None:
    engine = engine_of(family, layout, mesh)
    expected = expected_of(family, batch)
    assert np.abs(logits_of(engine, batch) - expected).max() < 1e-4 * np.abs(expected).max()
    check_programs(engine, batch)


def check_programs(engine: Engine, batch: int) -> None:
    """Both programs have run, so that asking for them again compiles nothing.

    That of steps ends at the logits; `test_communication` has it with the choice of tokens.
    """
    sizes = {"batch": batch, "slots": SLOTS}
    step = Pass(batch, context=0, slots=SLOTS)
    program = PassProgram(
        config=engine.config, placement=engine.placement, dtypes=engine.dtypes, pass_=step
    )
    check_collectives(program, logits_program(engine, **sizes), sampled=False)
    check_collectives(
        dataclasses.replace(program, pass_=dataclasses.replace(step, tokens=PROMPT)),
        engine.lower_prefill(**sizes, length=PROMPT).compile().as_text(),
    )


@pytest.mark.parametrize(
    ("layout", "attention", "family", "mesh"),
    # Tests below have the other kinds of layouts, and attention by batch; the slow set has all.
    [("weight_gathered_xyz", "sequence", "grouped", "4x2x1"),
     *marked_slow(("weight_stationary_1d", "heads", "grouped", "2x2x2"),
                  ("weight_stationary_2d", "batch", "multi_query_parallel", "8x1x1"),
                  ("data_parallel_x_1d", "batch", "biased_windowed", "2x2x2"),
                  ("weight_gathered_x", "heads", "multi_head_two_norms", "4x2x1"),
                  ("weight_gathered_xy", "batch", "six_experts", "1x2x4"),
                  ("data_parallel_x_2d", "sequence", "multi_head_two_norms", "8x1x1"),
                  ("data_parallel_x_gathered_y", "batch", "multi_head_parallel", "4x2x1"),
                  ("weight_stationary_1d", "sequence", "biased_windowed", "1x2x4"),
                  ("weight_stationary_2d", "heads", "norms_over_heads_and_biases", "2x2x2"),
                  ("weight_gathered_x", "sequence", "multi_head_parallel", "2x2x2"),
                  ("weight_gathered_xyz", "heads", "experts_multi_query", "8x1x1"),
                  ("data_parallel_x_2d", "heads", "multi_query_parallel", "1x2x4"),
                  ("weight_stationary_2d", "sequence", "latent_experts", "2x2x2"),
                  ("weight_stationary_1d", "sequence", "chunks", "2x2x2"),
                  ("weight_gathered_xy", "batch", "chunks", "4x2x1"),
                  ("weight_gathered_x", "batch", "latent", "2x2x2"),
                  ("weight_stationary_1d", "heads", "two_kinds_of_heads", "2x2x2"),
                  ("weight_stationary_2d", "heads", "delta", "2x2x2")),
     *(pytest.param(*case, marks=LONG)
       for case in (("weight_stationary_2d", "heads", "experts_beside_mlp", "2x2x2"),
                    ("weight_stationary_2d", "batch", "borrowed_caches", "2x2x2"),
                    ("weight_gathered_xyz", "heads", "borrowed_caches", "2x2x2"),
                    ("weight_gathered_x", "sequence", "delta", "4x2x1"),
                    ("data_parallel_x_2d", "batch", "gated_experts", "2x2x2")))],
)  # fmt: skip
def test_a_layout_gives_the_logits_of_one_device(layout, attention, family, mesh):
    check(family, attend_by(LAYOUTS[layout], attention), mesh)


@pytest.mark.parametrize(
    ("layout", "attention", "family", "mesh"),
    # By default `test_mixture` divides experts, and a script answers with a model of divided ones.
    [*marked_slow(("weight_stationary_2d", "heads", "six_experts", "2x2x2"),
                  ("data_parallel_x_1d", "sequence", "experts_multi_query", "2x2x2"),
                  ("weight_gathered_xyz", "batch", "experts_multi_query", "2x2x2"),
                  ("data_parallel_x_2d", "heads", "six_experts", "8x1x1"))],
)  # fmt: skip
def test_divided_experts_give_the_logits_of_one_device(layout, attention, family, mesh):
    check(family, divide_experts(attend_by(LAYOUTS[layout], attention)), mesh)


@pytest.mark.parametrize(
    ("layout", "attention", "family", "mesh"),
    # Of weights and caches in few bits `test_quantized` and `test_quantized_cache` have more.
    [("data_parallel_x_2d", "heads", "grouped", "2x2x2"),
     *marked_slow(("data_parallel_x_2d", "heads", "six_experts", "2x2x2"),
                  ("weight_gathered_xy", "heads", "multi_head_two_norms", "4x2x1"),
                  ("weight_stationary_1d", "batch", "biased_windowed", "2x2x2"),
                  ("weight_stationary_2d", "sequence", "multi_query_parallel", "2x2x2"))],
)  # fmt: skip
def test_loops_give_the_logits_of_one_device(layout, attention, family, mesh):
    check(family, schedule_by(attend_by(LAYOUTS[layout], attention), "overlapped"), mesh)


def divided_runs():
    """Both families on three meshes; the slow set has each of those with one attention in turn."""
    runs = itertools.product(["six_experts", "experts_multi_query"], MESHES[:3], ["heads", "batch"])
    for at, run in enumerate(runs):
        yield pytest.param(*run, marks=SLOW if at % 4 in (0, 3) else LONG)


@pytest.mark.parametrize(("family", "mesh", "attention"), list(divided_runs()))
def test_all_layouts_with_divided_experts_give_the_logits_of_one_device(family, mesh, attention):
    for layout in LAYOUTS.values():
        chosen = divide_experts(attend_by(layout, attention))
        placement = Placement.of(chosen, config_of(family, layers=1).sizes, parse_mesh(mesh))
        batch = -(-BATCH // placement.multiple("B")) * placement.multiple("B")
        check(family, chosen, mesh, batch)


OFTEN = "grouped", "biased_windowed", "multi_query_parallel", "six_experts"


def all_runs():
    """Every family on three meshes, and in loops; the slow set has a mesh of some, and few loops.

    Numbers of heads and experts as the others of `MODELS` have are among the random shapes below.
    """
    for at, family in enumerate(MODELS):
        for number, mesh in enumerate(MESHES[:3]):
            slow = family in OFTEN and number == at % 3
            yield pytest.param(family, mesh, "compiler", marks=SLOW if slow else LONG)
        yield pytest.param(family, "2x2x2", "overlapped", marks=SLOW if at in (0, 2) else LONG)


@pytest.mark.parametrize(("family", "mesh", "collectives"), list(all_runs()))
def test_all_layouts_give_the_logits_of_one_device_or_are_refused_at_once(
    family, mesh, collectives
):
    """Every layout with every attention; loops with attention in turn."""
    pairs = list(itertools.product(LAYOUTS.values(), ATTENTION))
    if collectives == "overlapped":  # each compiles several times as long
        pairs = list(zip(LAYOUTS.values(), itertools.cycle(ATTENTION), strict=False))
    ran = 0
    for layout, attention in pairs:
        chosen = schedule_by(attend_by(layout, attention), collectives)
        try:
            placement = Placement.of(chosen, config_of(family, layers=1).sizes, parse_mesh(mesh))
            batch = -(-BATCH // placement.multiple("B")) * placement.multiple("B")
        except LayoutError as error:
            assert "divide" in str(error) and "; use " in str(error)
            continue
        check(family, chosen, mesh, batch)
        ran += 1
    assert ran >= len(pairs) * 3 // 4


@pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=SLOW if n < 8 else LONG) for n in range(40)],
)
def test_random_shapes_run_as_on_one_device_or_are_refused_before_anything_runs(seed):
    draw = np.random.default_rng(seed)
    kv_heads, group = int(draw.choice([1, 2, 3, 4, 8])), int(draw.choice([1, 2, 3, 4]))
    experts = int(draw.choice([0, 0, 3, 4, 8]))
    config = dataclasses.replace(
        find_model("tiny"),
        layers=1,
        kv_heads=kv_heads,
        query_heads=kv_heads * group,
        head_size=int(draw.choice([4, 6, 8, 16])),
        d_model=int(draw.choice([24, 32, 40, 64])),
        d_ff=int(draw.choice([24, 48, 64, 96])),
        vocabulary=int(draw.choice([96, 100, 128])),
        experts=experts,
        experts_per_token=min(experts, 2),
        parallel_block=bool(draw.integers(2)),
        tied_embedding=bool(draw.integers(2)),
        windows=(8,) if draw.integers(2) else None,
    )
    mesh = str(draw.choice(["2x2x2", "1x2x4", "4x1x2", "2x4x1", "1x1x8", "3x2x1", "1x3x2"]))
    layout = LAYOUTS[str(draw.choice(list(LAYOUTS)))]
    layout = attend_by(layout, str(draw.choice(ATTENTION)))
    layout = schedule_by(layout, str(draw.choice(COLLECTIVES)))
    layout = divide_experts(layout) if experts and draw.integers(3) else layout
    source = ModelSource(config, None, None)
    try:
        placement = Placement.of(layout, config.sizes, parse_mesh(mesh))
    except LayoutError as error:
        assert "; use " in str(error)
        return
    batch = placement.multiple("B") * int(draw.choice([1, 2]))
    one = source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh("1"), FLOAT32)
    tokens = draw.integers(0, config.vocabulary, (batch, 12)).astype(np.int32)
    found, expected = (
        steps_of(engine, tokens)
        for engine in (source.engine(layout, parse_mesh(mesh), FLOAT32), one)
    )
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def steps_of(engine: Engine, tokens: np.ndarray) -> np.ndarray:
    """Logits after a prompt and after one more token, [2, B, V]."""
    batch, length = tokens.shape
    lengths = np.full(batch, length - 1, np.int32)
    first, cache = engine.prefill(engine.new_cache(batch, 16), tokens[:, :-1], lengths)
    second, _ = engine.decode_step(cache, engine.put(tokens[:, -1]), engine.put(lengths))
    return np.stack([np.asarray(first), np.asarray(second)])


GATHERED = [name for name, layout in LAYOUTS.items() if layout.use is not None]


@pytest.mark.parametrize(
    ("prompts", "attention"),
    # By default `test_chunks` has prompts of another layout, too.
    [*marked_slow(("weight_gathered_xyz", "sequence"), ("weight_gathered_x", "heads"),
                  ("weight_gathered_xy", "batch"),
                  ("weight_gathered_xyz", "batch"))],
)  # fmt: skip
def test_prompts_may_be_partitioned_otherwise_over_the_same_weights(prompts, attention):
    steps = attend_by(LAYOUTS["weight_stationary_2d"], attention)
    check("biased_windowed", prefill_by(steps, LAYOUTS[prompts]), "2x2x2")


@pytest.mark.slow
def test_prompts_may_be_partitioned_otherwise_over_the_same_divided_experts():
    steps = attend_by(LAYOUTS["weight_stationary_2d"], "batch")
    both = divide_experts(prefill_by(steps, LAYOUTS["weight_gathered_xyz"]))
    check("experts_multi_query", both, "2x2x2")


@pytest.mark.parametrize("prompts", GATHERED)
def test_switching_layouts_leaves_every_weight_where_it_is(prompts):
    steps = next(
        layout for layout in LAYOUTS.values()
        if layout.use is None and layout.weights == LAYOUTS[prompts].weights
    )  # fmt: skip
    both = prefill_by(steps, LAYOUTS[prompts])
    config, mesh = find_model("llama3-8b"), parse_mesh("2x2x2")
    placement, model = Placement.of(both, config.sizes, mesh), Transformer(config, BFLOAT16)
    devices = make_mesh(mesh)
    assert shardings(model, placement, devices) == shardings(model, placement.prefill, devices)
    assert placement.prefill.layout.name == prompts


def test_prompts_over_weights_stored_otherwise_are_refused_with_those_that_work():
    with pytest.raises(LayoutError, match=r"weight_stationary_1d.*; use .*weight_gathered_xyz"):
        prefill_by(LAYOUTS["weight_stationary_2d"], LAYOUTS["weight_stationary_1d"])


@pytest.mark.parametrize("attention", ["batch", pytest.param("sequence", marks=SLOW)])
def test_a_batch_and_slots_that_do_not_divide_are_padded_and_change_no_text(attention):
    prompts = [[5, 6, 7], list(range(40, 63)), [9]]
    one = engine_of("biased_windowed", LAYOUTS["weight_stationary_1d"], "1")
    layout = attend_by(LAYOUTS["weight_stationary_2d"], attention)
    engine = engine_of("biased_windowed", layout, "2x2x2")
    request = Request(prompts=prompts, max_new_tokens=12)
    (*_, found), (*_, expected) = generate(engine, request), generate(one, request)
    assert [c.tokens for c in found] == [c.tokens for c in expected]
    slots = [keys.shape[2] for keys in engine.new_cache(8, 50).keys]
    assert slots == ([8] if attention == "sequence" else [5])


def test_a_batch_that_does_not_divide_is_refused_where_it_counts():
    layout = attend_by(LAYOUTS["weight_stationary_1d"], "batch")
    engine = engine_of("grouped", layout, "2x2x2")
    with pytest.raises(LayoutError, match=r"batch is 12, .* into 8 shards; use 8 or 16"):
        engine.new_cache(12, 64)


def test_a_layout_of_ones_own_is_data():
    """That of `sharding/README.md`."""
    mine = Layout(
        name="mine",
        summary="heads over z, d_ff over y and z",
        weights={"F": ("z", "y"), "K G h": ("z",), "V": ("z",)},
        activations={"F": ("z", "y"), "K G h": ("z",), "V": ("z",)},
        attention={"K G": ("z",)},
        cache={"K": ("z",)},
        rules={"K G h": "replicate", "K": "replicate"},
    )
    check("grouped", mine, "2x2x2")
