"""The TPU kernel of attention to a cache: its numbers as a TPU computes them, and what compiles."""

import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from model.attention_tpu import attend_part
from model.softmax_parts import Softmaxed, Spans, join
from profiles.compiled.toolchains import TPU
from tests.model import attention_cases

ROOT = Path(__file__).parents[2]
K, G, H = 2, 2, 128


def slow(*cases: dict) -> list:
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


def check(
    tokens: int,
    slots: int,
    first_query: Sequence[int],
    filled: Sequence[int],
    *,
    first_key: int = 0,
    stored: DTypeLike = jnp.float32,
    dtype: DTypeLike = jnp.float32,
    group: int = G,
    width: int = H,
    **changes: object,
) -> None:
    """The kernel gives what NumPy does where slots without a token hold NaN."""
    sizes = {"B": len(filled), "T": tokens, "K": K, "G": group, "h": width, "S": slots}
    spans = {"first_query": first_query, "first_key": [first_key] * len(filled), "filled": filled}
    types = {"dtype": dtype, "cache": stored, "scale": width**-0.5}
    case = attention_cases.make_case(**sizes, **spans, **types, **changes)
    tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
    attention_cases.check(functools.partial(attend_part, interpret=True), case, tolerance)


@pytest.mark.parametrize(
    "case",
    [
        # Blocks of 512 slots, the last of them partial; none filled, a few, up to an edge, all.
        {"filled": [1, 512, 513, 1300, 0], "slots": 1300},
        {"filled": [3, 900], "slots": 1000, "window": 100},  # the second begins past block 0
        {"filled": [7, 33], "slots": 40, "stored": jnp.float8_e4m3fn, "dtype": jnp.bfloat16},
        *slow(
            {"filled": [5, 700], "slots": 768, "stored": jnp.int8},  # by default of 16, see below
            # A chip with slots 96 to 191 of each sequence: nothing there, a part, all of it.
            {"filled": [20, 100, 400], "slots": 96, "first_key": 96},
            {"filled": [64, 200], "slots": 256, "stored": jnp.bfloat16, "dtype": jnp.bfloat16},
            {"filled": [5, 90], "slots": 96, "softcap": 3.0, "group": 3, "width": 64},
        ),
    ],
    ids=",".join,
)
def test_a_decode_step_sees_each_sequence_as_far_as_it_is_filled(case):
    check(1, first_query=[n - 1 for n in case["filled"]], **case)


@pytest.mark.slow
@pytest.mark.parametrize("stored", [jnp.float32, jnp.int8])
def test_keys_that_are_also_values_are_given_once(stored):
    """As latent attention has them, of a width that is no whole number of registers."""
    random, width = np.random.default_rng(0), 72
    q = jnp.asarray(random.normal(size=(2, 1, 1, 4, width)), jnp.float32)
    latents = jnp.asarray(random.normal(size=(2, 1, 300, width)) * 40, stored)
    scales = None
    if stored == jnp.int8:
        scales = jnp.asarray(random.uniform(0.01, 0.05, (1, 2, 300)), jnp.float32)
    spans = Spans(*(jnp.asarray(each, jnp.int32) for each in ([290, 6], [0, 0], [291, 7])))
    how = {"ring": None, "window": None, "scale": 0.02, "softcap": None, "interpret": True}
    once = attend_part(q, latents, None, scales, None, spans, **how)
    twice = attend_part(q, latents, latents, scales, scales, spans, **how)
    np.testing.assert_allclose(once.mean(), twice.mean(), rtol=1e-6)
    assert np.abs(once.mean()).max() > 1


@pytest.mark.parametrize(
    "case",
    [
        # The end of a prompt: behind much, behind nothing, and one that has fewer tokens.
        {"first_query": [600, 0, 3], "filled": [640, 40, 11], "slots": 1100},
        pytest.param(
            {
                "first_query": [59, 0],
                "filled": [99, 40],
                "slots": 104,
                "window": 24,
                "chunked": True,
            },
            marks=pytest.mark.slow,
        ),
        {"first_query": [0, 16], "filled": [40, 56], "slots": 64, "softcap": 5.0, "group": 5},
        *slow(
            # By default in a long chunk, see below.
            {"first_query": [900, 0], "filled": [940, 40], "slots": 1024, "window": 300},
            {"first_query": [24, 60], "filled": [64, 100], "slots": 104, "stored": jnp.int8},
            {"first_query": [30, 0], "filled": [70, 40], "slots": 72, "window": 16},
            {"first_query": [9, 600], "filled": [49, 640], "slots": 700, "width": 64},
            {"first_query": [200, 20], "filled": [240, 60], "slots": 96, "first_key": 192},
        ),
    ],
    ids=",".join,
)
def test_a_chunk_of_a_prompt_sees_what_is_before_each_of_its_tokens(case):
    check(40, **case)


@pytest.mark.parametrize(
    ("slots", "ring", "tokens"),
    [
        (64, (64, 0), 24),
        (32, (96, 32), 1),  # the second of three chips
        pytest.param(64, (64, 0), 1, marks=pytest.mark.slow),
        pytest.param(32, (96, 32), 24, marks=pytest.mark.slow),
    ],
)
def test_a_ring_is_seen_before_and_after_it_has_come_round(slots, ring, tokens):
    # Not begun, not yet round, just round, past it, and on its fourth round.
    filled = [5, 40, ring[0], ring[0] + 7, 3 * ring[0] + 50]
    first_query = [max(n - tokens, 0) for n in filled]
    check(tokens, slots, first_query, filled, ring=ring, window=60)


def test_queries_after_a_ring_see_less_of_it_each():
    filled = [10, 64, 200]  # a chunk that is not in the ring yet
    check(24, 64, filled, filled, ring=(64, 0), window=64)


def test_a_long_chunk_is_cut_into_blocks_of_queries():
    # 3 queries to a KV head: blocks of 256 tokens, the last of them partial.
    check(300, 400, [80, 0], [380, 300], window=200, group=3)


def test_batches_of_eight_and_more_find_their_own_scales():
    filled = list(range(1, 17))
    check(1, 32, [n - 1 for n in filled], filled, stored=jnp.int8)


def test_parts_of_two_chips_join_to_the_whole():
    random = np.random.default_rng(1)
    q = jnp.asarray(random.normal(size=(3, 1, K, G, 16)), jnp.float32)
    keys, values = jnp.asarray(random.normal(size=(2, 3, K, 64, 16)), jnp.float32)
    filled = jnp.asarray([20, 50, 0])  # in the first half, in both, in none

    how = {"ring": None, "window": None, "scale": 1.0, "softcap": None, "interpret": True}
    kernel = jax.jit(functools.partial(attend_part, **how))

    def attend(first: int, end: int) -> Softmaxed:
        parts = (part[:, :, first:end] for part in (keys, values))
        spans = Spans(filled - 1, jnp.full(3, first), filled)
        return kernel(q, *parts, None, None, spans)

    joined = join(attend(0, 32), attend(32, 64)).mean()
    np.testing.assert_allclose(joined, attend(0, 64).mean(), atol=1e-5)
    assert not joined[2].any() and np.abs(joined[:2]).min() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "group", "width"),
    [
        (jnp.float32, 7, 256),
        (jnp.float32, 16, 64),
        (jnp.bfloat16, 1, 64),
        (jnp.bfloat16, 16, 256),
        (jnp.int8, 1, 256),
        (jnp.int8, 7, 64),
        (jnp.float8_e4m3fn, 7, 64),
        (jnp.float8_e4m3fn, 16, 256),
    ],
)
def test_all_groups_head_sizes_and_types(stored, group, width):
    case = {"stored": stored, "group": group, "width": width, "dtype": jnp.bfloat16}
    check(1, 1300, [0, 1200], [1, 1201], window=900, **case)
    check(130, 1300, [0, 1100], [130, 1230], softcap=20.0, **case)
    check(130, 256, [0, 1100], [130, 1230], ring=(256, 0), window=250, **case)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_spans(seed):
    random = np.random.default_rng(seed)
    tokens, slots = int(random.choice([1, 1, 17, 300])), int(random.integers(1, 1500))
    filled = random.integers(0, 2 * slots, 5).tolist()
    first_query = [int(max(n - random.integers(0, 2 * tokens), 0)) for n in filled]
    size = slots * int(random.integers(1, 4))
    ring = (size, slots * int(random.integers(0, size // slots))) if seed % 2 else None
    window = int(random.integers(1, size + 1)) if ring or seed % 4 else None
    first_key = 0 if ring else int(random.integers(0, slots))
    check(tokens, slots, first_query, filled, first_key=first_key, ring=ring, window=window)


# Writes new tokens into a cache of Llama 3 8B over the heads of 8 devices, and attends to it.
COMPILE = """
import json, math, re, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from decode.compiler_options import IN_PLACE
from model.attention_tpu import attend_part
from model.cache import QuantizedKV
from model.cache_write import NewTokens, write
from model.catalog import find_model
from model.dtypes import Dtypes
from model.softmax_parts import Spans
from sharding.catalog import LAYOUTS
from sharding.mesh import mesh_over, parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS

options = {"chips_per_host_bounds": [2, 2, 1]} if sys.argv[1].startswith("tpu7x") else {}
found = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1], **options)
shape, slots, config = parse_mesh("8"), 32768, find_model("llama3-8b")
mesh = mesh_over(shape, found.devices)
placement = Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, shape)

def array(spec, *shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, spec))

def compile(stored, batch, tokens, width, writes):
    quantization = QUANTIZATIONS.get(stored)
    dtypes = Dtypes(jnp.bfloat16, cache=quantization)
    q = array(placement.attention("BTKG_"), batch, tokens, 8, 4, width)
    new = array(placement.cache("BTKh"), batch, tokens, 8, width)
    dtype = quantization.dtype if quantization else jnp.bfloat16
    part = array(placement.cache("BKSh"), batch, 8, slots, width, dtype=dtype)
    if quantization:
        scales = array(placement.cache("KBS"), 8, batch, slots, dtype=jnp.float32)
        part = QuantizedKV(part, scales)
    positions = array(jax.P(), batch, tokens, dtype=jnp.int32)

    def attend(q, keys, values, positions):
        parts = [(each.values, each.scales) if quantization else (each, None)
                 for each in (keys, values)]
        spans = Spans(positions[:, 0], jnp.zeros_like(positions[:, 0]), positions[:, -1] + 1)
        part = attend_part(q, *(each for pair in zip(*parts) for each in pair), spans,
                           ring=None, window=None, scale=width**-0.5, softcap=None)
        return part.mean().astype(q.dtype)

    def step(cache, new, q, positions):
        if writes:
            tokens = NewTokens.at(positions)
            cache = tuple(
                write(each, new, tokens, placement, dtypes, ring=False, continues=True)
                for each in cache)
        operands = (q, *cache, positions)
        specs = jax.tree.map(lambda each: jax.typeof(each).sharding.spec, operands)
        mixed = jax.shard_map(
            attend, in_specs=specs, out_specs=specs[0], check_vma=False)(*operands)
        return mixed, cache

    with jax.set_mesh(mesh):
        step = jax.jit(step, donate_argnums=0, compiler_options=IN_PLACE)
        compiled = step.lower((part, part), new, q, positions).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    values = part.values if quantization else part
    results = re.findall(r" = [a-z]\\w+\\[([\\d,]+)\\]\\S* ([\\w-]+)\\(", text)
    sizes = [(math.prod(map(int, shape.split(","))), kind) for shape, kind in results]
    return {
        "cache": 2 * sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(part)) // 8,
        "aliased": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "made": sorted({kind for size, kind in sizes if size >= values.size // 8}),
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
    }

print(json.dumps([compile(*case) for case in json.loads(sys.argv[2])]))
"""

CASES = [  # type of the cache, B, T, h, and whether tokens are written before
    ("bfloat16", 16, 1, 128, True),
    ("int8", 16, 1, 128, True),
    ("bfloat16", 1, 2048, 128, True),
    ("int8", 1, 2048, 128, True),
    ("bfloat16", 16, 1, 64, False),
    ("int8", 1, 2048, 64, False),
]


@pytest.mark.tpu_compile
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu")
@pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x4", "tpu7x:2x2x1"])
def test_it_compiles_in_a_step_and_copies_no_cache(topology):
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, topology, json.dumps(CASES)],
        cwd=ROOT,
        env=TPU.child_environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for case, found in zip(CASES, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert found["kernels"] == 1 and found["aliased"] == found["cache"], (case, found)
        assert found["temporary"] < 2e6, (case, found)
        # New tokens are written where the cache lies; nothing else makes an array of its size.
        in_place = {"parameter", "bitcast", "get-tuple-element", "fusion"}
        in_place |= {"scatter"} if case[2] == 1 else {"dynamic-update-slice"}
        assert set(found["made"]) <= in_place, (case, found)
