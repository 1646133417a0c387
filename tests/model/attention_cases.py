"""Attention of new tokens over filled slots: cases, and their answers in float64.

Every form of attention, of XLA or a kernel, must give them. Kernels that are interpreted, which
takes seconds, run `FEW` of them by default.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from model.softmax_parts import LOWEST, Softmaxed, Spans

Form = Callable[..., Softmaxed]


def sequence_positions(case: dict, b: int) -> np.ndarray:
    """The position of the token in each slot of a sequence, [S], negative where there is none."""
    slot = np.arange(case["S"])
    if case["ring"]:
        slots, first = case["ring"]
        last = case["filled"][b] - 1
        return last - (last - (first + slot)) % slots
    position = case["first_key"][b] + slot
    return np.where(position < case["filled"][b], position, -1)


def visible(case: dict, b: int, query: int) -> np.ndarray:
    """Which slots a query at a position sees, [S]."""
    position = sequence_positions(case, b)
    window = case["window"] or 2**30
    seen = (position >= 0) & (position <= query) & (position > query - window)
    return seen & (position // window == query // window) if case["chunked"] else seen


def make_case(seed: int = 0, **changes) -> dict:
    """Sizes, spans and arrays; slots that no token has reached hold `garbage`."""
    case = {"B": 2, "T": 1, "K": 2, "G": 3, "h": 16, "S": 100, "ring": None, "window": None,
            "chunked": False, "softcap": None, "scale": 0.3, "garbage": np.nan,
            "dtype": np.float32, "cache": np.float32,
            "first_query": (69, 3), "first_key": (0, 0), "filled": (70, 4)} | changes  # fmt: skip
    case["cache"] = np.dtype(case["cache"])
    random = np.random.default_rng(seed)
    B, T, K, G, h, S = (case[letter] for letter in "BTKGhS")
    case["q"] = random.normal(size=(B, T, K, G, h)).astype(case["dtype"])
    for name in ("keys", "values"):
        stored, scales = random.normal(size=(B, K, S, h)), None
        if case["cache"].itemsize == 1:
            scales = random.uniform(0.01, 0.1, size=(K, B, S)).astype(np.float32)
            stored = np.round(stored * 20)
        case[name], case[f"{name[:-1]}_scales"] = stored.astype(case["cache"]), scales
        for b in range(B):
            absent = sequence_positions(case, b) < 0
            if case["cache"] != np.int8:
                case[name][b][:, absent] = case["garbage"]
            if scales is not None:
                scales[:, b, absent] = case["garbage"]
    return case


def run(form: Form, case: dict) -> Softmaxed:
    """A form's answer."""
    spans = Spans(*(jnp.asarray(case[name], jnp.int32) for name in Spans._fields))
    ring = case["ring"] and (case["ring"][0], jnp.int32(case["ring"][1]))
    keywords = {name: case[name] for name in ("window", "scale", "softcap", "chunked")}
    names = ("q", "keys", "values", "key_scales", "value_scales")
    attend = functools.partial(form, ring=ring, **keywords)
    part = jax.jit(attend)(*(case[name] for name in names), spans)
    assert {array.dtype for array in part} == {np.dtype("float32")}
    return Softmaxed(*(np.asarray(array, np.float64) for array in part))


def check(form: Form, case: dict, tolerance: float = 1e-5) -> None:
    """Holds a form's answer to float64; where no key is seen, to the empty part."""
    part = run(form, case)
    assert all(np.isfinite(array).all() for array in part)
    wide = {name: case[name].astype(np.float64) for name in ("q", "keys", "values")}
    for name in ("key", "value"):
        if case[f"{name}_scales"] is not None:
            wide[f"{name}s"] *= np.swapaxes(case[f"{name}_scales"], 0, 1)[..., None]
    for b, t in np.ndindex(case["B"], case["T"]):
        seen = visible(case, b, case["first_query"][b] + t)
        if not seen.any():
            assert (part.total[b, t] == 0).all() and (part.sums[b, t] == 0).all()
            assert (part.highest[b, t] == LOWEST).all()
            continue
        scores = np.einsum("kgh,ksh->kgs", wide["q"][b, t], wide["keys"][b][:, seen])
        scores *= case["scale"]
        if case["softcap"]:
            scores = case["softcap"] * np.tanh(scores / case["softcap"])
        highest = scores.max(axis=-1)
        weights = np.exp(scores - highest[..., None])
        sums = np.einsum("kgs,ksh->kgh", weights, wide["values"][b][:, seen])
        total = weights.sum(axis=-1)
        near = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
        near(part.highest[b, t], highest)
        near(part.total[b, t], total)
        near(part.sums[b, t] / total[..., None], sums / total[..., None])


CASES = {
    "step": {},
    "step_of_an_empty_sequence": {"first_query": (69, 0), "filled": (70, 0)},
    "step_of_a_full_cache": {"first_query": (99, 63), "filled": (100, 64)},
    "step_with_one_query_head_and_one_kv_head": {"K": 1, "G": 1},
    "step_with_sixteen_query_heads": {"K": 1, "G": 16},
    "window": {"window": 40},
    "softcap": {"softcap": 1.5},
    "slots_begin_at_another_chips_end": {"first_key": (40, 100), "softcap": 1.5},
    "chunk": {"T": 20, "first_query": (50, 0), "filled": (70, 20)},
    "chunk_longer_than_its_sequence": {"T": 20, "first_query": (50, 0), "filled": (60, 7)},
    "chunk_of_many_rows": {"T": 45, "first_query": (50, 0), "filled": (95, 45)},
    "chunk_with_a_window": {"T": 45, "window": 9, "first_query": (50, 0), "filled": (95, 45)},
    "chunk_before_all_keys": {"T": 4, "first_query": (10, 50), "first_key": (64, 0)},
    "ring_not_yet_full": {"ring": (100, 0), "window": 100},
    "ring_turned": {
        "ring": (100, 0), "window": 100, "first_query": (170, 99), "filled": (171, 100)},
    "ring_turned_with_a_smaller_window": {
        "ring": (100, 0), "window": 50, "first_query": (230, 320), "filled": (231, 321)},
    "ring_of_two_chips": {
        "ring": (200, 100), "window": 200, "first_query": (310, 150), "filled": (311, 151)},
    "chunk_and_a_ring_of_what_came_before": {
        "T": 12, "ring": (100, 0), "window": 90, "first_query": (171, 20), "filled": (171, 20)},
    "own_chunks_of_a_sequence": {
        "T": 30, "window": 12, "chunked": True, "first_query": (50, 0), "filled": (80, 30)},
    "own_chunk_and_a_ring_of_what_came_before": {
        "T": 12, "ring": (100, 0), "window": 90, "chunked": True, "first_query": (175, 20),
        "filled": (175, 20)},
}  # fmt: skip
FEW = (
    "step_of_an_empty_sequence", "slots_begin_at_another_chips_end", "chunk_with_a_window",
    "ring_turned_with_a_smaller_window", "chunk_and_a_ring_of_what_came_before",
)  # fmt: skip
"""Of each kind the case that has most in it."""
