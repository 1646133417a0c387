"""Steps: the cache changes nothing, is updated in place, and shapes compile once."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.experimental.layout import Format, Layout

from decode.generate import Request, cache_slots, generate, pad
from decode.sampling import GREEDY
from model.cache import KVCache
from model.catalog import find_model
from model.dtypes import FLOAT32, Dtypes
from model.memory_order import apply_formats, apply_tpu_orders
from model.parameters import abstract
from model.transformer import Transformer
from sharding.catalog import LAYOUTS
from sharding.quantization import QUANTIZATIONS
from tests.engines import FAMILIES, counted_compilations, fresh, random_engine
from tests.scripts.running import USUAL_KERNELS

CACHED = (
    "grouped", "multi_query_parallel", "biased_windowed", "two_norms_and_caps", "six_experts",
)  # fmt: skip
PROMPTS = [[5, 6, 7], list(range(40, 63)), [9]]


# By default `test_families` checks as much of one device, and `test_layouts` eight against one.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "mesh"),
    list(itertools.product(CACHED, ("1x1x1", "2x2x2"))),
)
def test_cached_decode_equals_one_full_forward_pass(tiny_engine, family, mesh):
    engine = tiny_engine(mesh, **FAMILIES[family])
    sequence = np.random.default_rng(0).integers(0, 256, (2, 24)).astype(np.int32)
    full = np.asarray(engine.forward(sequence))  # [B, T, V]
    start = 16
    logits, cache = engine.prefill(
        engine.new_cache(2, 64), sequence[:, :start], np.full(2, start, np.int32)
    )
    for position in range(start, 24):
        expected = full[:, position - 1]
        assert np.abs(np.asarray(logits) - expected).max() < 1e-4 * np.abs(expected).max()
        tokens, lengths = engine.put(sequence[:, position]), engine.put(np.full(2, position))
        logits, cache = engine.decode_step(cache, tokens, lengths.astype(np.int32))


# By default `test_generate` has it of one model, and `test_families` holds ragged batches of all
# against transformers.
@pytest.mark.slow
@pytest.mark.parametrize("family", ["two_norms_and_caps", "six_experts", "biased_windowed"])
def test_a_ragged_batch_with_prompts_past_the_window_decodes_as_each_prompt_alone(
    tiny_engine, family
):
    engine = tiny_engine("1x1x2", **FAMILIES[family])
    *_, together = generate(engine, Request(prompts=PROMPTS, max_new_tokens=12))
    for prompt, completion in zip(PROMPTS, together, strict=True):
        *_, (alone,) = generate(engine, Request(prompts=[prompt], max_new_tokens=12))
        assert completion.tokens == alone.tokens


def test_a_layer_with_a_window_keeps_no_more_slots_than_it_sees(tiny_engine):
    cache = tiny_engine(**FAMILIES["two_norms_and_caps"]).new_cache(2, 64)
    assert [keys.shape[2] for keys in cache.keys] == [5, 64]


def test_a_step_counts_the_experts_its_tokens_touch(tiny_engine):
    engine = tiny_engine("1x1x2", **FAMILIES["six_experts"])
    for lengths, least, most in (([0, 0, 0], 2, 2), ([0, 3, 9], 2, 6)):
        carry = engine.start(np.array(lengths, np.int32))
        cache = engine.new_cache(len(lengths), 64)
        _, _, emitted = engine.advance(cache, carry, GREEDY)
        touched = np.asarray(emitted.experts_touched)
        assert touched.shape == (2,) and (least <= touched).all() and (touched <= most).all()


def test_padding_and_neighbours_do_not_change_a_prompts_logits(tiny_engine):
    engine = tiny_engine("1x1x1", layers=1)
    tokens, lengths = pad(PROMPTS, 32)
    together, _ = engine.prefill(engine.new_cache(3, 64), tokens, lengths)
    for row, prompt in zip(np.asarray(together), PROMPTS, strict=True):
        alone = np.asarray(engine.forward(np.array([prompt], np.int32)))[0, -1]
        assert np.abs(row - alone).max() < 1e-4 * np.abs(alone).max()


@pytest.mark.parametrize(
    ("mesh", "batch"),
    [("1x1x8", 3),
     *(pytest.param(*case, marks=pytest.mark.slow)
       for case in (("1x1x1", 1), ("1x1x1", 3), ("1x1x2", 1), ("1x1x2", 3), ("1x1x8", 1)))],
)  # fmt: skip
def test_the_donated_cache_is_updated_in_place(tiny_engine, mesh, batch):
    engine = tiny_engine(mesh, layers=1)
    compiled = engine.lower_decode(batch, 512).compile(compiler_options=USUAL_KERNELS)
    cache = engine.new_cache(batch, 512)
    held = sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(cache))
    assert compiled.memory_analysis().alias_size_in_bytes == held
    # Aliased bytes alone do not prove it: nothing else may move a whole layer's cache. Attention
    # moves blocks of it, which are smaller.
    shard = cache.keys[0].addressable_shards[0].data.shape
    shape = f"f32[{','.join(map(str, shard))}]"
    moved = [
        line
        for line in compiled.as_text().splitlines()
        if f"= {shape}" in line and (" copy(" in line or " select(" in line)
    ]
    assert not moved


def reversed_order(array: jax.Array) -> Format:
    """The array with its first dimension contiguous."""
    return Format(Layout(tuple(reversed(range(array.ndim))), ()), array.sharding)


@pytest.mark.parametrize(
    ("quantization", "mesh"),
    [("int8", "1"),
     *(pytest.param(*case, marks=pytest.mark.slow)
       for case in (("int8", "1x1x2"), ("plain", "1x1x2")))],
)  # fmt: skip
def test_weights_laid_out_otherwise_give_the_same_tokens_in_every_step(quantization, mesh):
    dtypes = FLOAT32 if quantization == "plain" else Dtypes("float32", QUANTIZATIONS[quantization])
    config = dataclasses.replace(find_model("tiny"), layers=1)
    engine = random_engine(config, LAYOUTS["weight_stationary_1d"], mesh, dtypes)
    request = Request(prompts=PROMPTS, max_new_tokens=6)
    *_, before = generate(engine, request)
    old = engine.parameters
    engine.parameters, changed = apply_formats(old, jax.tree.map(reversed_order, old))
    matrices = [array for array in jax.tree.leaves(engine.parameters) if array.ndim > 1]
    assert changed == len(matrices) >= 6
    assert all(array.format.layout.major_to_minor[0] != 0 for array in matrices)
    assert sum(array.is_deleted() for array in jax.tree.leaves(old)) == changed
    *_, after = generate(engine, request)
    assert [one.tokens for one in after] == [one.tokens for one in before]
    chunks = [engine.lower_prefill(3, 64, 32, continues=continues) for continues in (False, True)]
    for step in (engine.lower_decode(3, 64), *chunks):
        taken = jax.tree.map(lambda format: format.layout, step.compile().input_formats[0][0])
        assert taken == jax.tree.map(lambda array: array.format.layout, engine.parameters)


@pytest.mark.parametrize(
    ("quantization", "head_size", "mesh", "changed"),
    [
        ("plain", 128, "1x1x2", 1),
        pytest.param("int8", 128, "1x1x2", 1, marks=pytest.mark.slow),
        pytest.param("int4", 128, "1x1x2", 0, marks=pytest.mark.slow),
        pytest.param("plain", 64, "1x1x2", 0, marks=pytest.mark.slow),
        # Halves of heads.
        pytest.param("plain", 128, "1x1x4", 0, marks=pytest.mark.slow),
    ],
)
def test_on_tpu_attention_outputs_lie_otherwise_and_give_the_same_tokens(
    quantization, head_size, mesh, changed
):
    dtypes = FLOAT32 if quantization == "plain" else Dtypes("float32", QUANTIZATIONS[quantization])
    config = dataclasses.replace(find_model("tiny"), layers=1, head_size=head_size)
    engine = random_engine(config, LAYOUTS["weight_stationary_1d"], mesh, dtypes)
    request = Request(prompts=PROMPTS, max_new_tokens=6)
    *_, before = generate(engine, request)
    model = Transformer(config, dtypes)
    assert apply_tpu_orders({}, model) == {}  # an engine of weights that did not fit
    engine.parameters = apply_tpu_orders(engine.parameters, model)
    orders = {
        path: array.format.layout.major_to_minor
        for path, array in flatten_dict(engine.parameters).items()
    }
    others = {path: order for path, order in orders.items() if order != tuple(range(len(order)))}
    assert set(others.values()) <= {(1, 2, 0, 3)} and len(others) == changed
    assert all("output" in path and "scales" not in path for path in others)
    *_, after = generate(engine, request)
    assert [one.tokens for one in after] == [one.tokens for one in before]
    engine.parameters = apply_tpu_orders(abstract(model, engine.placement, engine.mesh), model)
    taken = flatten_dict(engine.lower_decode(3, 64).compile().input_formats[0][0])
    assert {path: format.layout.major_to_minor for path, format in taken.items()} == orders


def test_the_layout_that_the_compiler_wants_is_taken_and_said(monkeypatch):
    layout = LAYOUTS["weight_stationary_1d"]
    engine = random_engine(find_model("tiny"), layout, "1x1x2", FLOAT32)
    assert ": 0 of " in engine.optimize_weight_layout(3, 64)  # XLA:CPU wants no other
    wanted = jax.tree.map(reversed_order, engine.parameters)
    compiled = SimpleNamespace(input_formats=((wanted,), {}))
    step = SimpleNamespace(compile=lambda: compiled)
    monkeypatch.setattr(engine, "lower_decode", lambda *sizes, auto_weight_layout: step)
    assert "for batch 3: 0 of" not in engine.optimize_weight_layout(3, 64)
    assert "for batch 3: 0 of" in engine.optimize_weight_layout(3, 64)


def test_donated_memory_is_reused(tiny_engine):
    engine = tiny_engine("1x1x1", layers=1)
    tokens, lengths = pad(PROMPTS, 32)
    _, cache = engine.prefill(engine.new_cache(3, 64), tokens, lengths)
    before = pointers(cache)
    one = engine.put(np.zeros(3, np.int32))
    _, after = engine.decode_step(cache, one, engine.put(lengths))
    assert pointers(after) == before
    assert all(array.is_deleted() for array in jax.tree.leaves(cache))


def pointers(cache: KVCache) -> list[int]:
    return [array.unsafe_buffer_pointer() for array in jax.tree.leaves(cache)]


@pytest.mark.parametrize("mesh", ["1x1x2", pytest.param("1x1x1", marks=pytest.mark.slow)])
def test_a_whole_generation_compiles_each_step_once(tiny_engine, mesh):
    engine = fresh(tiny_engine(mesh, layers=1))
    request = Request(prompts=PROMPTS, max_new_tokens=20)
    with counted_compilations() as first:
        *_, done = generate(engine, request)
    assert len(done[0].tokens) == 20
    with counted_compilations() as again:
        *_, _ = generate(engine, Request(prompts=[[1, 2, 3, 4]] * 3, max_new_tokens=20))
    # Prefill and step; cache, first choice and the odd helper, which tests before may have compiled
    # for an engine alike; far fewer than one per token.
    assert 2 <= len(first) <= 8
    assert len(again) <= len(first)
    with counted_compilations() as third:
        *_, _ = generate(engine, request)
    assert not third


def test_the_step_compiled_for_generation_is_one_program_and_that_which_is_inspected(tiny_engine):
    engine = fresh(tiny_engine("1x1x2", layers=1))
    cache = engine.new_cache(2, 64)
    tokens, lengths = pad([[1], [2]], 16)
    logits, cache = engine.prefill(cache, tokens, lengths)
    carry = engine.start(lengths)
    carry, _ = engine.choose(logits, carry, GREEDY)
    with counted_compilations() as compiled:
        for _ in range(6):
            cache, carry, _ = engine.advance(cache, carry, GREEDY)
    assert len(compiled) == 1
    with counted_compilations() as again:
        engine.lower_decode(2, 64).compile()
    assert not again


@pytest.mark.parametrize("continues", [False, True], ids=["first", "further"])
def test_the_chunk_compiled_for_prompts_is_one_program_and_that_which_is_inspected(
    tiny_engine, continues
):
    engine = fresh(tiny_engine("1x1x2", layers=1))
    tokens, lengths = pad([[1], [2]], 16)
    cache, cached = engine.new_cache(2, 192), np.full(2, 8 * continues, np.int32)
    with counted_compilations() as compiled:
        _, cache = engine.prefill(cache, tokens, lengths, cached)
        engine.prefill(cache, tokens, lengths + 1, cached)
    assert len(compiled) == 1
    with counted_compilations() as again:
        engine.lower_prefill(2, 192, 16, continues=continues).compile()
    assert not again


def test_a_cache_holds_the_prompt_and_every_new_token():
    assert cache_slots(17, 10, 8192) == 64
    assert cache_slots(17, 60, 8192) == 128
    assert cache_slots(500, 100, 600) == 600


@pytest.mark.parametrize("mesh", ["1x1x1", "1x1x4"])
def test_the_bytes_of_a_cache_are_those_of_its_arrays_windows_and_copies_as_they_lie(
    tiny_engine, mesh
):
    engine = tiny_engine(mesh, kv_heads=2, windows=(8, None))
    for spare in (0, 5):
        arrays = jax.tree.leaves(engine.new_cache(3, 64, spare))
        lying = sum(shard.data.nbytes for array in arrays for shard in array.addressable_shards)
        assert engine.cache_bytes(3, 64, spare) == lying
