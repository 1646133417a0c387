"""The GPU's attention kernel against float64 over the keys that each query sees.

Interpreted on the CPU; that GPUs' compiler takes the kernel is seen as far as JAX's own lowering.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from model.attention_gpu import PROGRAMS, attend_part, choose_tiles
from model.softmax_parts import Softmaxed, Spans, combine
from tests.model.attention_cases import CASES, FEW, check, make_case, run, visible

SLOW = pytest.mark.slow
attend = functools.partial(attend_part, interpret=True)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW else SLOW) for name in CASES]
)
def test_a_part_is_the_softmax_of_the_keys_that_each_query_sees(name):
    check(attend, make_case(**CASES[name]))


@pytest.mark.parametrize(
    ("cache", "tokens"),
    [("int8", 20), ("float8_e4m3fn", 1),
     *(pytest.param(*case, marks=SLOW)
       for case in (("int8", 1), ("float8_e4m3fn", 20), ("bfloat16", 1), ("bfloat16", 20)))],
)  # fmt: skip
def test_stored_types_are_read_as_they_are(cache, tokens):
    changes = {"T": tokens, "first_query": (50, 0), "filled": (50 + tokens, tokens)}
    check(attend, make_case(cache=np.dtype(cache), **changes))


def test_bfloat16_queries_differ_by_their_rounding():
    types = {"dtype": ml_dtypes.bfloat16, "cache": ml_dtypes.bfloat16}
    check(attend, make_case(**types), tolerance=2e-2)


def test_parts_over_halves_of_the_slots_join_to_the_whole():
    whole = make_case()
    halves = []
    for first in (0, 50):
        half = whole | {"S": 50, "first_key": (first, first)}
        half |= {name: whole[name][:, :, first : first + 50] for name in ("keys", "values")}
        halves.append(run(attend, half))
    joined = combine(Softmaxed(*map(np.stack, zip(*halves, strict=True))))
    for mine, theirs in zip(joined, run(attend, whole), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"first_query": (200, 90), "filled": (256, 91)},
        pytest.param({"first_query": (523, 20), "filled": (524, 21), "ring": (512, 0)}, marks=SLOW),
        {"first_query": (523, 300), "filled": (524, 301), "ring": (512, 256)},
    ],
    ids=["slots", "ring", "ring_of_two_chips"],
)
def test_a_block_that_no_query_sees_is_never_read(changes):
    """The values there are real, and would spoil every sum."""
    case = make_case(S=256, window=32, **changes)
    for b, query in enumerate(case["first_query"]):
        unseen = ~visible(case, b, query).reshape(-1, 32).any(axis=1).repeat(32)
        case["values"][b][:, unseen] = np.inf
    assert np.isfinite(run(attend, case).sums).all()


@pytest.mark.parametrize("batch_and_tokens", [(1, 1), (64, 1), (1, 2048), (1, 16)])
def test_programs_keep_a_gpu_busy(batch_and_tokens):
    batch, tokens = batch_and_tokens
    q = jax.ShapeDtypeStruct((batch, tokens, 8, 4, 128), jnp.bfloat16)
    tiles = choose_tiles(q, jax.ShapeDtypeStruct((batch, 8, 4096, 128), jnp.bfloat16))
    programs = -(-tokens * 4 // tiles.rows) * 8 * batch * tiles.splits
    assert programs >= PROGRAMS / 2
    assert tiles.splits == 1 or programs <= PROGRAMS


def test_no_more_programs_than_blocks_share_rows():
    q = jax.ShapeDtypeStruct((1, 1, 1, 1, 128), jnp.bfloat16)
    tiles = choose_tiles(q, jax.ShapeDtypeStruct((1, 1, 130, 128), jnp.bfloat16))
    assert (tiles.slots, tiles.splits) == (64, 3)


def test_each_device_attends_to_its_own_heads():
    case = make_case()
    mesh = jax.make_mesh((2,), ("z",))
    spans = Spans(*(jnp.asarray(case[name], jnp.int32) for name in Spans._fields))
    kernel = functools.partial(
        attend_part, ring=None, window=None, scale=0.3, softcap=None, interpret=True
    )
    heads, of_rows = jax.P(None, "z"), jax.P(None, None, "z")
    with jax.set_mesh(mesh):
        arrays = [jax.device_put(case["q"], of_rows)]
        arrays += [jax.device_put(case[name], heads) for name in ("keys", "values")]
        part = jax.jit(
            jax.shard_map(
                lambda q, keys, values, spans: kernel(q, keys, values, None, None, spans),
                in_specs=(of_rows, heads, heads, jax.P()),
                out_specs=of_rows,
                check_vma=False,
            )
        )(*arrays, spans)
    for mine, whole in zip(part, run(attend, case), strict=True):
        np.testing.assert_allclose(mine, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "cache", "tokens"),
    [("bfloat16", "bfloat16", 1), ("bfloat16", "int8", 256), ("float32", "float32", 256),
     *(pytest.param(*case, marks=SLOW)
       for case in (("bfloat16", "bfloat16", 256), ("bfloat16", "int8", 1),
                    ("bfloat16", "float8_e4m3fn", 1), ("bfloat16", "float8_e4m3fn", 256),
                    ("float32", "float32", 1)))],
)  # fmt: skip
def test_jax_lowers_the_kernel_for_gpus(dtype, cache, tokens):
    B, K, G, h, S = 2, 2, 3, 64, 1000
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    stored = shape((B, K, S, h), dtype=cache)
    scales = shape((K, B, S)) if jnp.dtype(cache).itemsize == 1 else None
    q, spans = shape((B, tokens, K, G, h), dtype=dtype), Spans(*[shape((B,), dtype=jnp.int32)] * 3)
    form = {"window": 512, "scale": 0.1, "softcap": 30.0}
    kernel = functools.partial(attend_part, ring=(1000, jnp.int32(0)), **form)
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of JAX's Triton kernels as a whole
        traced = jax.jit(kernel).trace(q, stored, stored, scales, scales, spans)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 1


@pytest.mark.parametrize(("dtype", "full"), [("float32", 2), ("bfloat16", 0)])
def test_float32_is_multiplied_in_full(dtype, full):
    """Both products ask for the highest precision; GPUs would take TF32 otherwise."""
    case = make_case(dtype=np.dtype(dtype))
    names = ("q", "keys", "values", "key_scales", "value_scales")
    spans = Spans(*(jnp.asarray(case[name], jnp.int32) for name in Spans._fields))
    kernel = functools.partial(attend_part, ring=None, window=None, scale=1.0, softcap=None)
    text = str(jax.make_jaxpr(kernel)(*(case[name] for name in names), spans))
    assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == full
