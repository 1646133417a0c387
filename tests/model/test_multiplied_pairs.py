"""What the TPU kernel of attention multiplies, counted without running it."""

import jax.numpy as jnp
import numpy as np
import pytest

from decode.chunks import CHUNK
from model import attention_tpu
from model.attention_tpu import attend_part
from model.attention_tpu_blocks import multiplied_pairs
from model.softmax_parts import Spans
from profiles.floor.passes import attended_pairs

K, H = 2, 128


@pytest.mark.parametrize(
    "case",
    [
        {"tokens": 1, "slots": 1500, "first_query": [0, 511, 700], "filled": [1, 512, 701]},
        {"tokens": 512, "slots": 1536, "first_query": [900, 1024], "filled": [1412, 0],
         "window": 130, "group": 4},
        {"tokens": 512, "slots": 512, "first_query": [600, 0], "filled": [1112, 500],
         "ring": (512, 0), "window": 512, "group": 4},
        *(pytest.param(case, marks=pytest.mark.slow)
          for case in ({"tokens": 512, "slots": 1536, "first_query": [900, 1024],
                        "filled": [1412, 0], "window": 130},
                       {"tokens": 16, "slots": 96, "first_query": [80, 0], "filled": [96, 0]},
                       {"tokens": 512, "slots": 1536, "first_query": [700, 0],
                        "filled": [1212, 512], "group": 4},
                       {"tokens": 512, "slots": 1536, "first_query": [900, 0],
                        "filled": [900, 0], "group": 4})),
    ],
    ids=lambda case: ",".join(case),
)  # fmt: skip
def test_pairs_are_counted_that_the_kernel_multiplies(monkeypatch, case):
    """In place of attention, each row adds up the slots that it is multiplied with."""

    def add(form, place, slot, masked, q, keys, values, scales, running):
        running[2][...] += form.step

    monkeypatch.setattr(attention_tpu, "_add", add)
    tokens, slots, ring = case["tokens"], case["slots"], case.get("ring")
    batch, group, window = len(case["filled"]), case.get("group", 16), case.get("window")
    q, cache = (batch, tokens, K, group, H), jnp.zeros((batch, K, slots, H))
    first, filled = (jnp.asarray(case[name], jnp.int32) for name in ("first_query", "filled"))
    spans = Spans(first, jnp.zeros_like(first), filled)
    how = {"window": window, "scale": 1.0, "softcap": None, "interpret": True}
    device_ring = ring and (ring[0], jnp.int32(ring[1]))
    part = attend_part(jnp.zeros(q), cache, cache, None, None, spans, ring=device_ring, **how)
    counted = multiplied_pairs(q, slots, cache.dtype, spans, ring=ring, window=window)
    assert counted == int(np.asarray(part.total, np.int64).sum())


@pytest.mark.parametrize(("group", "most"), [(1, 1.5), (4, 1.25), (16, 1.25)])
def test_a_chunk_multiplies_no_square(group, most):
    """Blocks of 1,024 rows of queries and of 512 keys: few pairs that no query sees."""
    start = jnp.zeros(1, jnp.int32)
    spans = Spans(start, start, start + CHUNK)
    multiplied = multiplied_pairs((1, CHUNK, 1, group, H), CHUNK, jnp.bfloat16, spans)
    floor = group * attended_pairs(0, CHUNK, CHUNK)
    assert floor < multiplied < most * floor
