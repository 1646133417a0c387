"""Bytes and FLOPs of a step against closed forms and against the compiler's own count."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from decode.load import ModelSource
from model.catalog import find_model
from model.declarations import total_bytes
from model.dtypes import BFLOAT16, FLOAT32, Dtypes
from model.transformer import Transformer
from profiles.floor.alike_layers import kv_token_bytes
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Pass, attended_pairs, chunk_pairs
from profiles.floor.replication import experts_per_device, replication_cost
from profiles.report.numbers import byte_size
from sharding.catalog import ATTENTION, LAYOUTS, attend_by, divide_experts, prefill_by
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS
from tests.engines import carry_bytes

ONE_D = LAYOUTS["weight_stationary_1d"]
SMOLLM2 = find_model("smollm2-135m")


def traffic(name: str, mesh: str, dtypes=BFLOAT16, **work):
    config = find_model(name)
    placement = Placement.of(ONE_D, config.sizes, parse_mesh(mesh))
    sizes = {"batch": 1, "context": 128, "slots": 192} | work
    return PassCounter(config, placement, dtypes).count(Pass(**sizes))


def test_one_device_reads_every_weight_once_whatever_the_batch():
    for batch in (1, 64):
        assert traffic("smollm2-135m", "1", FLOAT32, batch=batch).weights_read == 134_515_008 * 4


def test_the_cache_is_linear_in_batch_and_context():
    token = 2 * 30 * 3 * 64 * 4  # keys and values, layers, KV heads, head size, bytes
    counted = traffic("smollm2-135m", "1", FLOAT32, batch=5, context=1000, slots=1024)
    assert counted.kv_read == 5 * 1000 * token
    assert counted.kv_written == 5 * token
    assert counted.kv_resident == 5 * 1024 * token


def test_devices_share_weights_and_the_cache_where_heads_divide():
    one, eight = traffic("llama3-70b", "1"), traffic("llama3-70b", "2x2x2")
    norms = (2 * 80 + 1) * 8192 * 4  # in float32
    assert eight.weights_resident == pytest.approx((one.weights_resident - norms) / 8 + norms)
    assert eight.kv_read == one.kv_read / 8


def test_one_layer_stands_for_all_of_them():
    changes = {"windows": (8, None), "norm_after": True, "experts": 4, "experts_per_token": 2}
    config = dataclasses.replace(find_model("tiny"), **changes)
    dtypes = Dtypes(jnp.float32, QUANTIZATIONS["int8"])
    placement = Placement.of(ONE_D, config.sizes, parse_mesh("1"))
    counted = PassCounter(config, placement, dtypes).count(Pass(batch=1, context=1, slots=64))
    assert counted.weights_resident == total_bytes(Transformer(config, dtypes))


def test_of_an_untied_embedding_only_the_rows_looked_up_are_read():
    counted = traffic("llama3-8b", "1", batch=3)
    table, row = 128_256 * 4096 * 2, 4096 * 2
    assert counted.weights_resident - counted.weights_read == table - 3 * row


def test_flops_are_two_per_weight_and_token_and_four_per_cached_value():
    counted = traffic("smollm2-135m", "1", FLOAT32, batch=7, context=99)
    matrices = 134_515_008 - (2 * 30 + 1) * 576  # all but the norms; the table unembeds
    attention = 4 * 9 * 64 * 100 * 30
    assert counted.flops == 7 * (2 * matrices + attention)


def test_a_copied_cache_is_counted_whole_and_stated():
    placement = Placement.of(ONE_D, SMOLLM2.sizes, parse_mesh("4"))
    assert kv_token_bytes(SMOLLM2, placement, FLOAT32) == 2 * 30 * 3 * 64 * 4
    (line,) = replication_cost(SMOLLM2, placement, FLOAT32)
    assert "3 KV heads do not divide over z=4" in line and "copied 4 times" in line
    assert "34.6 kB per cached token" in line  # 46,080 bytes, of which a quarter is its share
    divides = Placement.of(ONE_D, SMOLLM2.sizes, parse_mesh("3"))
    assert replication_cost(SMOLLM2, divides, FLOAT32) == []


@pytest.mark.parametrize(
    ("mesh", "batch"),
    [("2x2x2", 3),
     *(pytest.param(*case, marks=pytest.mark.slow)
       for case in (("1x1x1", 1), ("1x1x1", 3), ("1x1x2", 1), ("1x1x2", 3), ("2x2x2", 1)))],
)  # fmt: skip
def test_resident_bytes_equal_the_compilers(tiny_engine, mesh, batch):
    engine = tiny_engine(mesh, tied_embedding=False, layers=1)
    memory = engine.lower_decode(batch, 64).compile().memory_analysis()
    counted = PassCounter(engine.config, engine.placement, engine.dtypes).count(
        Pass(batch=batch, context=10, slots=64)
    )
    expected = counted.weights_resident + counted.kv_resident + carry_bytes(batch)
    assert memory.argument_size_in_bytes == expected
    assert memory.alias_size_in_bytes == counted.kv_resident


def test_resident_bytes_are_what_devices_hold(tiny_engine):
    engine = tiny_engine("1x1x8")
    held = sum(
        array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(engine.parameters)
    )
    counted = PassCounter(engine.config, engine.placement, engine.dtypes).count(
        Pass(batch=1, context=1, slots=64)
    )
    assert counted.weights_resident == held


def test_a_layer_with_a_window_reads_no_more_than_it_sees(tiny_engine):
    engine = tiny_engine(windows=(8, None))
    token = kv_token_bytes(engine.config, engine.placement, FLOAT32)
    traffic = PassCounter(engine.config, engine.placement, FLOAT32).count(
        Pass(batch=3, context=20, slots=64)
    )
    assert traffic.kv_read == 3 * token * (7 + 20) / 2
    assert traffic.kv_resident == 3 * token * (8 + 64) / 2


@pytest.mark.parametrize(("touched", "read"), [(2, 2), (6, 6), (None, 6 * (1 - (4 / 6) ** 3))])
def test_a_step_reads_the_experts_it_touches(tiny_engine, touched, read):
    engine = tiny_engine(experts=6, experts_per_token=2)
    sizes = {"batch": 3, "context": 20, "slots": 64}
    traffic = PassCounter(engine.config, engine.placement, FLOAT32).count(Pass(**sizes), touched)
    expert = 3 * 64 * 128 * 4  # gate, up and down of one expert
    assert traffic.weights_resident - traffic.weights_read == pytest.approx(2 * expert * (6 - read))


def experts_engine(layout: str, experts: int = 8):
    config = dataclasses.replace(find_model("tiny"), experts=experts, experts_per_token=2)
    chosen = divide_experts(LAYOUTS[layout])
    return ModelSource(config, None, None).engine(chosen, parse_mesh("2x2x2"), FLOAT32)


@pytest.mark.parametrize(
    ("layout", "experts"),
    [("data_parallel_x_1d", 6),
     pytest.param("weight_stationary_2d", 6, marks=pytest.mark.slow),
     pytest.param("data_parallel_x_1d", 8, marks=pytest.mark.slow),
     pytest.param("weight_stationary_1d", 8, marks=pytest.mark.slow),
     pytest.param("weight_gathered_xyz", 8, marks=pytest.mark.slow)],
)  # fmt: skip
def test_resident_bytes_of_divided_experts_equal_the_compilers(layout, experts):
    engine = experts_engine(layout, experts)
    memory = engine.lower_decode(8, 64).compile().memory_analysis()
    counted = PassCounter(engine.config, engine.placement, engine.dtypes).count(
        Pass(batch=8, context=10, slots=64)
    )
    expected = counted.weights_resident + counted.kv_resident + carry_bytes(8)
    assert memory.argument_size_in_bytes == expected
    expert = 2 * 3 * 64 * 128 * 4  # gate, up and down of one expert of each layer
    copies = 2 if experts == 6 and layout == "data_parallel_x_1d" else 1
    touched = 1 - (1 - 2 / experts) ** (8 // copies)  # replicas have their own tokens
    unread = counted.weights_resident - counted.weights_read
    assert unread == pytest.approx(expert * experts * copies / 8 * (1 - touched))


@pytest.mark.parametrize("layout", ["data_parallel_x_1d", "weight_gathered_xyz"])
def test_devices_share_the_work_of_experts_whoever_has_the_tokens(layout):
    config = dataclasses.replace(
        find_model("tiny"), experts=8, experts_per_token=2, kv_heads=4, query_heads=4
    )
    work = {"batch": 16, "context": 10, "slots": 64}
    one = PassCounter(config, Placement.of(ONE_D, config.sizes, parse_mesh("1")), FLOAT32).count(
        Pass(**work)
    )
    placement = Placement.of(divide_experts(LAYOUTS[layout]), config.sizes, parse_mesh("2x2x2"))
    eight = PassCounter(config, placement, FLOAT32).count(Pass(**work))
    copies = 8 // 2 ** len(LAYOUTS[layout].activations["B"])  # of the router's work
    router = 2 * 16 * config.layers * config.d_model * 8
    assert eight.flops == pytest.approx((one.flops - router) / 8 + router * copies / 8)


def test_experts_that_do_not_divide_are_stated_with_what_their_copies_cost():
    config = dataclasses.replace(find_model("tiny"), experts=6, experts_per_token=2)
    layout = divide_experts(LAYOUTS["data_parallel_x_1d"])
    placement = Placement.of(layout, config.sizes, parse_mesh("2x2x2"))
    assert experts_per_device(config, placement) == [
        "3 of 6 experts on each device, each divided over y=2, which do not divide the experts"
    ]
    lines = replication_cost(config, placement, FLOAT32)
    down = 6 * 64 * 128 * 4 / 4 / 2 * config.layers  # four shards, each of them copied once
    assert f"mlp.down does not divide and is copied: each device reads {byte_size(down)}" in (
        lines[0] + lines[1]
    )
    divides = Placement.of(layout, config.sizes, parse_mesh("3x1x2"))
    assert experts_per_device(config, divides) == ["1 of 6 experts on each device"]
    assert not [line for line in replication_cost(config, divides, FLOAT32) if "mlp" in line]
    assert not experts_per_device(config, Placement.of(ONE_D, config.sizes, parse_mesh("2")))


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_values_and_scales_of_a_matrix_are_one_line_and_copied_only_where_values_are(name):
    config = dataclasses.replace(find_model("tiny"), experts=6, experts_per_token=2)
    layout, dtypes = (
        divide_experts(LAYOUTS["data_parallel_x_1d"]),
        Dtypes(jnp.float32, QUANTIZATIONS[name]),
    )
    lines = replication_cost(
        config, Placement.of(layout, config.sizes, parse_mesh("2x2x2")), dtypes
    )
    assert [line.split()[0] for line in lines[:-1]] == ["mlp.down", "mlp.gate_up"]
    # Scales that all inputs share are on all the chips that the inputs are over, and none to spare.
    divides = Placement.of(layout, config.sizes, parse_mesh("1x2x3"))
    assert not [line for line in replication_cost(config, divides, dtypes) if "mlp" in line]


def test_a_replica_reads_the_experts_of_its_own_tokens():
    """Two replicas of a batch of 2 that touched 3 of 6 experts: one read 2 at least, not 3."""
    config = dataclasses.replace(find_model("tiny"), experts=6, experts_per_token=2)
    sizes = {"batch": 2, "context": 20, "slots": 64}

    def read(layout, **touched) -> float:
        placement = Placement.of(layout, config.sizes, parse_mesh("2x1x1"))
        traffic = PassCounter(config, placement, FLOAT32).count(Pass(**sizes), *touched.values())
        return (traffic.weights_resident - traffic.weights_read) / (2 * 3 * 64 * 128 * 4)

    replicas = LAYOUTS["data_parallel_x_1d"]
    assert read(replicas, experts_touched=3) == 6 - 2
    assert read(replicas, experts_touched=6) == 6 - 3
    assert read(replicas) == pytest.approx(6 - 2)  # one token each
    one = LAYOUTS["weight_stationary_1d"]
    assert read(one, experts_touched=3) == (6 - 3) / 2


@pytest.mark.parametrize(
    ("attention", "kv_heads", "published"),
    [
        ("heads", 64, {128: 1320, 512: 330}),
        ("heads", 1, {128: 660, 512: 165}),
        ("batch", 1, {128: 43_000, 512: 10_700}),
    ],
)
def test_the_longest_contexts_are_those_that_were_published(attention, kv_heads, published):
    """Pope et al. 2022, table 1: PaLM 540B with 64 heads on 64 chips, 30% of 32 GiB each."""
    palm = find_model("palm-540b")
    head_size = 128 if kv_heads > 1 else 256
    palm = dataclasses.replace(palm, query_heads=64, kv_heads=kv_heads, head_size=head_size)
    layout = attend_by(LAYOUTS["weight_stationary_2d"], attention)
    placement = Placement.of(layout, palm.sizes, parse_mesh("4x4x4"))
    for batch, context in published.items():
        found = 0.3 * 32 * 2**30 / (batch * kv_token_bytes(palm, placement, BFLOAT16))
        assert found == pytest.approx(context, rel=0.015)


def test_a_long_prompt_writes_what_windows_hold_and_reads_no_row_twice():
    config = dataclasses.replace(find_model("llama3-8b"), windows=(100,) * 16 + (None,) * 16)
    placement = Placement.of(ONE_D, config.sizes, parse_mesh("1"))
    costs = PassCounter(config, placement, BFLOAT16)
    token = kv_token_bytes(config, placement, BFLOAT16)
    assert (
        costs.count(Pass(batch=2, tokens=1000, context=0)).kv_written
        == 2 * token * (1000 + 100) / 2
    )
    most = costs.count(Pass(batch=64, tokens=8192, context=0))
    assert most.weights_read == most.weights_resident


@pytest.mark.parametrize("attention", ATTENTION)
def test_prompts_cost_the_same_flops_wherever_their_cache_lies(attention):
    """8 prompts of 32,768 tokens of llama3-8b on eight chips, counted by hand."""
    config = find_model("llama3-8b")
    layout = attend_by(ONE_D, attention)
    placement = Placement.of(layout, config.sizes, parse_mesh("1x1x8")).prefill
    matrices = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
    pairs = 32_768 * 32_769 // 2
    work = 2 * (32_768 * matrices + 128_256 * 4096) + 4 * 32 * 128 * 32 * pairs
    counted = PassCounter(config, placement, BFLOAT16).count(
        Pass(batch=8, tokens=32_768, context=0)
    )
    assert counted.flops == pytest.approx(8 * work / 8, rel=1e-9)


@pytest.mark.parametrize(
    "prompts", ["weight_gathered_x", "weight_gathered_xy", "weight_gathered_xyz"]
)
@pytest.mark.parametrize("mesh", ["2x2x2", "1x8x2"])  # of the second a cache takes more axes
def test_prompts_in_another_layout_are_divided_by_that_layout_alone(prompts, mesh):
    config = find_model("llama3-8b")
    decode = attend_by(LAYOUTS["weight_stationary_2d"], "sequence")
    flops = [
        PassCounter(config, Placement.of(layout, config.sizes, parse_mesh(mesh)).prefill, BFLOAT16)
        .count(Pass(batch=16, tokens=4096, context=0))
        .flops
        for layout in (prefill_by(decode, LAYOUTS[prompts]), LAYOUTS[prompts])
    ]
    assert flops[0] == flops[1]


@pytest.mark.parametrize(
    ("cached", "tokens", "window"), [(0, 9, 4), (7, 5, 4), (2, 9, 5), (3, 2, 9)]
)
def test_pairs_of_query_and_key_are_those_of_each_token_added_up(cached, tokens, window):
    pairs = sum(min(cached + token + 1, window) for token in range(tokens))
    assert attended_pairs(cached, tokens, window) == pairs
    own = sum((cached + token) % window + 1 for token in range(tokens))
    assert chunk_pairs(cached, tokens, window) == own


def test_a_step_reads_of_chunks_what_is_in_that_of_its_token():
    """Three layers of four of Llama 4 have chunks of 8,192 tokens, of which a new one has none."""
    scout, one = find_model("llama4-scout"), {"x": 1, "y": 1, "z": 1}
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], scout.sizes, one)
    counter, token = PassCounter(scout, placement, BFLOAT16), 2 * 8 * 128 * 2
    for context, in_chunk in ((5000, 5000), (8191, 8191), (8192, 0), (20_000, 3616)):
        read = counter.count(Pass(1, context)).kv_read
        assert read == token * (36 * in_chunk + 12 * context)
