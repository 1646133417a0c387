"""A decode step's attention and cache write in one kernel, against rows written and then read.

Interpreted on the CPU; `tests.profiles.compiled.test_gpu_kernels` compiles it for GPUs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import attention_gpu
from model.attention_gpu_step import CacheArrays, attend_step
from model.cache import PADDING
from sharding.quantization import QUANTIZATIONS, round_rows
from tests.model.attention_cases import make_case, visible

SLOW = pytest.mark.slow
TURNED = {"ring": True, "window": 50, "positions": (230, 320)}


def step_case(storage: str | None = None, ring: bool = False, **changes) -> dict:
    """A case of one token of each sequence at ``positions``, its key and value beside it."""
    changes = {"positions": (69, 3), "cache": np.float32, **changes}
    positions = changes.pop("positions")
    if storage:
        changes["cache"] = QUANTIZATIONS[storage].dtype
    slots = changes.get("S", 100)
    spans = {"first_query": positions, "filled": positions, "first_key": (0,) * len(positions)}
    case = make_case(ring=(slots, 0) if ring else None, **spans, **changes)
    random = np.random.default_rng(1)
    B, K, h = (case[letter] for letter in "BKh")
    for name in ("new_keys", "new_values"):
        case[name] = random.normal(size=(B, 1, K, h)).astype(case["dtype"])
    return case | {"storage": storage, "positions": positions}


def run(case: dict) -> tuple[np.ndarray, CacheArrays]:
    names = ("keys", "values", "key_scales", "value_scales")
    step = functools.partial(
        attend_step,
        quantization=case["storage"] and QUANTIZATIONS[case["storage"]],
        ring=case["ring"] is not None,
        interpret=True,
        **{name: case[name] for name in ("window", "scale", "softcap")},
    )
    mean, cache = jax.jit(step)(
        *(case[name] for name in ("q", "new_keys", "new_values")),
        CacheArrays(*(case[name] for name in names)),
        jnp.asarray(case["positions"], jnp.int32),
    )
    assert mean.dtype == case["q"].dtype
    return np.asarray(mean, np.float64), CacheArrays(
        *(each if each is None else np.asarray(each) for each in cache)
    )


def written(case: dict) -> CacheArrays:
    """The cache with the new tokens in their slots, those past the last slot dropped."""
    made = {}
    for name in ("keys", "values"):
        new, scales = case[f"new_{name}"][:, 0], None  # [B, K, h]
        if case["storage"]:
            new, scales = round_rows(new, QUANTIZATIONS[case["storage"]])
        made[name] = array = case[name].copy()
        of_scales = case[f"{name[:-1]}_scales"]
        made[f"{name[:-1]}_scales"] = of_scales = None if of_scales is None else of_scales.copy()
        for b, position in enumerate(case["positions"]):
            slot = position % case["S"] if case["ring"] else position
            if slot < case["S"]:
                array[b, :, slot] = np.asarray(new[b]).astype(array.dtype)
                if scales is not None:
                    of_scales[:, b, slot] = scales[b]
    return CacheArrays(**made)


def check(case: dict, tolerance: float = 1e-5) -> None:
    mean, cache = run(case)
    expected = written(case)
    for mine, theirs in zip(cache, expected, strict=True):
        if theirs is None:
            assert mine is None
        else:
            wide = (np.asarray(each, np.float64) for each in (mine, theirs))
            np.testing.assert_allclose(*wide, rtol=1e-6)
    wide = [np.asarray(each, np.float64) for each in (expected.keys, expected.values)]
    for n, scales in enumerate(expected[2:]):
        if scales is not None:
            wide[n] *= np.swapaxes(scales, 0, 1)[..., None]
    after = case | {"filled": tuple(position + 1 for position in case["positions"])}
    for b, position in enumerate(case["positions"]):
        seen = visible(after, b, position)
        keys, values = (each[b][:, seen] for each in wide)
        scores = np.einsum("kgh,ksh->kgs", np.asarray(case["q"][b, 0], np.float64), keys)
        scores *= case["scale"]
        if case["softcap"]:
            scores = case["softcap"] * np.tanh(scores / case["softcap"])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        answer = np.einsum("kgs,ksh->kgh", weights, values)
        np.testing.assert_allclose(mean[b, 0], answer, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": (0, 99)},
        {"positions": (100, 250)},  # past the last slot
        {"window": 40, "softcap": 1.5},
        TURNED,
        {"ring": True, "window": 100, "positions": (20, 0)},
        *(
            pytest.param(changes, marks=SLOW)
            for changes in (
                {},
                {"K": 1, "G": 16, "positions": (33, 0)},
                {"B": 1, "positions": (64,)},
                {"K": 1, "G": 1},
                {"window": 40},
                {"softcap": 1.5},
                {"ring": True, "window": 100, "positions": (170, 99)},
            )
        ),
    ],
    ids=str,
)
def test_a_step_is_the_row_written_and_then_the_mean_of_what_the_token_sees(changes):
    check(step_case(**changes))


@pytest.mark.parametrize(
    ("storage", "changes"),
    [
        ("int8", {}),
        pytest.param(None, TURNED, marks=SLOW),
        pytest.param(None, {}, marks=SLOW),
        pytest.param("int8", TURNED, marks=SLOW),
    ],
)
def test_one_program_a_head_leaves_the_mean_itself(storage, changes, monkeypatch):
    monkeypatch.setattr(attention_gpu, "PROGRAMS", 1)
    check(step_case(storage, **changes), tolerance=1e-4)


@pytest.mark.parametrize("storage", ["fp8", pytest.param("int8", marks=SLOW)])
def test_rows_are_rounded_as_the_cache_rounds_them(storage):
    """The new token's too, before its own score is made."""
    check(step_case(storage), tolerance=1e-4)


def test_bfloat16_differs_by_its_rounding():
    types = {"dtype": jnp.bfloat16, "cache": jnp.bfloat16}
    check(step_case(**types), tolerance=2e-2)


def test_a_row_of_zeros_has_a_scale():
    case = step_case("int8")
    case["new_keys"][:] = 0
    check(case, tolerance=1e-4)


@pytest.mark.parametrize(
    "changes", [pytest.param({}, marks=SLOW), {"ring": True, "window": 50}], ids=str
)
def test_a_sequence_without_a_token_is_left_as_it_is(changes):
    case = step_case(positions=(230 if changes else 60, PADDING), **changes)
    mean, cache = run(case)
    for array, before in zip(cache[:2], (case["keys"], case["values"]), strict=True):
        np.testing.assert_array_equal(array[1], before[1])
        assert (array[0] != before[0]).any()
    assert not mean[1].any()
