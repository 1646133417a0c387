"""Prompts in chunks: few sizes, little padding, the logits of whole prompts."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from decode.chunks import chunk_sizes
from decode.engine import Engine
from decode.generate import Request, generate, generate_without_cache, shared_tokens
from decode.sampling import GREEDY
from model.catalog import find_model
from model.dtypes import FLOAT32, Dtypes
from profiles.compiled.inspection import PassProgram
from profiles.floor.passes import Pass
from sharding.catalog import LAYOUTS, attend_by, prefill_by
from sharding.error_types import UsageError
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS
from tests.engines import FAMILIES, config_of, counted_compilations, random_engine

CHUNK, LENGTH = 16, 45  # whole in one of 48


@pytest.mark.parametrize(
    ("tokens", "chunk", "sizes"),
    [(1, 512, [16]), (17, 512, [32]), (512, 512, [512]), (2049, 512, [512] * 4 + [16]),
     (600, 512, [512, 128]), (900, 512, [512, 512]), (36, 512, [64]), (300, 512, [256, 64]),
     (33, 48, [48]), (50, 48, [48, 16])],
)  # fmt: skip
def test_a_prompt_is_full_chunks_and_powers_of_two(tokens, chunk, sizes):
    assert chunk_sizes(tokens, chunk) == sizes


@pytest.mark.parametrize("chunk", [16, 48, 512, 2048])
def test_chunks_hold_every_token_and_little_more(chunk):
    for tokens in range(1, 5000, 7):
        sizes = chunk_sizes(tokens, chunk)
        assert 0 <= sum(sizes) - tokens <= max(tokens / 8, 127)
        assert all(size % 16 == 0 and size <= chunk for size in sizes)
        assert sum(sizes[:-1]) < tokens


def in_chunks(engine: Engine, chunk: int) -> Engine:
    parts = engine.config, engine.parameters, engine.placement, engine.mesh, engine.dtypes
    return Engine(*parts, chunk=chunk)


def logits_of(engine: Engine, steps: Engine, lengths: list[int], slots: int) -> list[np.ndarray]:
    """Logits of prompts of these lengths, and of two steps after them by another engine."""
    tokens = np.random.default_rng(0).integers(0, 256, (len(lengths), max(lengths) + 2))
    tokens, lengths = tokens.astype(np.int32), np.array(lengths, np.int32)
    cache = engine.new_cache(len(lengths), slots)
    logits, cache = engine.prefill(cache, tokens[:, : lengths.max()], lengths)
    found = [np.asarray(logits)]
    for step in range(2):
        token = engine.put(tokens[:, lengths.max() + step])
        logits, cache = steps.decode_step(cache, token, engine.put(lengths + np.int32(step)))
        found.append(np.asarray(logits))
    return found


def check(engine: Engine, lengths: list[int] = [LENGTH, 20], slots: int = 64) -> None:  # noqa: B006
    for whole, parts in zip(
        logits_of(in_chunks(engine, 48), engine, lengths, slots),
        logits_of(in_chunks(engine, CHUNK), engine, lengths, slots),
        strict=True,
    ):
        assert np.abs(parts - whole).max() < 1e-4 * np.abs(whole).max()


@pytest.mark.slow  # by default in a cache of few bits, and in layouts, see below
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_give_the_logits_of_the_whole_prompt(tiny_engine, family):
    check(tiny_engine("1x1x1", **FAMILIES[family]))


@pytest.mark.slow  # by default a cache of few bits wraps around a window, see below
@pytest.mark.parametrize("window", [5, 16, 24, 40])
def test_chunks_wrap_around_windows(tiny_engine, window):
    check(tiny_engine("1x1x1", windows=(window,), layers=1))


@pytest.mark.slow
def test_chunks_of_prompts_end_within_those_of_attention(tiny_engine):
    check(tiny_engine("1x1x1", windows=(24,), chunked=True, layers=1))


@pytest.mark.parametrize("kind", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
def test_chunks_read_a_cache_of_few_bits_as_the_whole_prompt_does(kind):
    dtypes = Dtypes(FLOAT32.dtype, None, QUANTIZATIONS[kind])
    config = dataclasses.replace(config_of("grouped", layers=1), windows=(24,))
    check(random_engine(config, LAYOUTS["weight_stationary_1d"], "1x1x1", dtypes))


@pytest.mark.slow  # by default in one whose prompts have another, see below
@pytest.mark.parametrize(
    ("layout", "attention", "family", "mesh"),
    [("weight_stationary_1d", "sequence", "biased_windowed", "1x2x4"),
     ("weight_stationary_1d", "heads", "grouped", "2x2x2"),
     ("weight_stationary_2d", "batch", "multi_query_parallel", "8x1x1"),
     ("data_parallel_x_1d", "batch", "biased_windowed", "2x2x2"),
     ("weight_gathered_x", "sequence", "multi_head_parallel", "2x2x2"),
     ("weight_gathered_xyz", "heads", "experts_multi_query", "8x1x1")],
)  # fmt: skip
def test_chunks_give_the_same_in_every_layout(layout, attention, family, mesh):
    layout = attend_by(LAYOUTS[layout], attention)
    check(random_engine(config_of(family, layers=1), layout, mesh, FLOAT32), [LENGTH, 20] * 4)


@pytest.mark.parametrize(
    ("attention", "family"),
    [("sequence", "biased_windowed"), pytest.param("batch", "grouped", marks=pytest.mark.slow)],
)
def test_chunks_of_prompts_whose_layout_is_another_than_that_of_their_cache(attention, family):
    layout = attend_by(LAYOUTS["weight_stationary_2d"], attention)
    layout = prefill_by(layout, LAYOUTS["weight_gathered_x"])
    engine = random_engine(config_of(family, layers=1), layout, "2x2x2", FLOAT32)
    check(engine, [LENGTH, 20] * 4)


def test_a_chunk_is_whole_tiles(tiny_engine):
    engine = tiny_engine("1x1x1", layers=1)
    with pytest.raises(UsageError, match=r"chunk is 40 tokens, .* use 32 or 48"):
        in_chunks(engine, 40)
    with pytest.raises(UsageError, match=r"chunk is 3 tokens, .* use 16"):
        in_chunks(engine, 3)


def test_prompts_of_many_lengths_run_few_programs(tiny_engine):
    engine = in_chunks(tiny_engine("1x1x1", layers=1), 32)
    cache = engine.new_cache(1, 512)
    tokens = np.ones((1, 512), np.int32)
    with counted_compilations() as compiled:
        for length in (*range(1, 70, 4), *range(70, 511, 49)):
            _, cache = engine.prefill(cache, tokens[:, :length], np.array([length], np.int32))
    sizes = 2  # 16 and 32, each with and without tokens before it
    assert 0 < len(compiled) <= 2 * sizes


def tokens_of(
    engine: Engine, prompts: list[list[int]], run: Callable = generate
) -> list[list[int]]:
    *_, last = run(engine, Request(prompts=prompts, max_new_tokens=4, sampler=GREEDY))
    return [completion.tokens for completion in last]


def test_without_a_cache_prompts_in_chunks_give_the_same_tokens(tiny_engine):
    """Their prefixes grow from two chunks into three."""
    engine = tiny_engine("1x1x1", layers=1)
    prompts = [np.random.default_rng(0).integers(0, 256, n).tolist() for n in (30, 7)]
    expected = tokens_of(engine, prompts)
    assert tokens_of(in_chunks(engine, CHUNK), prompts, generate_without_cache) == expected


@pytest.mark.parametrize(
    ("mesh", "windows"),
    [("1x1x1", (24,)), pytest.param("1x1x2", (24, None), marks=pytest.mark.slow)],
)
def test_a_beginning_that_prompts_share_is_run_once(tiny_engine, mesh, windows, monkeypatch):
    engine = in_chunks(tiny_engine(mesh, windows=windows, layers=len(windows)), CHUNK)
    shared = np.random.default_rng(0).integers(0, 256, 40).tolist()
    prompts = [[*shared, 7], [*shared, 9, 3, 5], shared]
    expected = tokens_of(engine, prompts)
    monkeypatch.setattr("decode.generate.WORTH_SHARING", 64)
    assert shared_tokens(prompts) == 39
    ran = []
    real = engine.prefill
    monkeypatch.setattr(
        engine, "prefill", lambda c, t, n, *a: ran.append(t.shape) or real(c, t, n, *a)
    )
    assert tokens_of(engine, prompts) == expected
    assert ran == [(1, 39), (3, 4)]


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [([[1, 2, 3]], 0), ([[1, 2], [1, 2]], 1), ([[1, 2, 3], [1, 2, 4, 5]], 2), ([[1], [1, 2]], 0),
     ([[3, 1], [4, 1]], 0)],
)  # fmt: skip
def test_what_prompts_share_leaves_each_a_token(prompts, shared, monkeypatch):
    monkeypatch.setattr("decode.generate.WORTH_SHARING", 1)
    assert shared_tokens(prompts) == shared
    monkeypatch.setattr("decode.generate.WORTH_SHARING", 100)
    assert shared_tokens(prompts) == 0


def temporaries(slots: int) -> int:
    """Bytes beside weights and cache of the last chunk of a prompt that fills so many slots."""
    config = dataclasses.replace(find_model("smollm2-135m"), layers=1)
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, parse_mesh("1"))
    last = Pass(1, context=slots - 512, tokens=512, slots=slots)
    program = PassProgram(config=config, placement=placement, dtypes=FLOAT32, pass_=last)
    compiled = program.lower().compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == 2 * slots * 3 * 64 * 4
    shape = f"= f32[1,3,{slots},64]"
    made = [line for line in compiled.as_text().splitlines() if shape in line]
    assert made and not [line for line in made if " copy(" in line or " select(" in line]
    return memory.temp_size_in_bytes


def test_a_prompt_twice_as_long_takes_no_more_beside_weights_and_cache():
    assert temporaries(8192) <= 1.05 * temporaries(4096)
