"""Every family's own checkpoint against what transformers makes of it: logits and greedy text.

`scripts/make_family_fixtures.py` made the folders. Their windows are 8 tokens and their prompts 5,
11 and 19, so that prompts begin shorter and longer than a window and all wrap around its ring.
"""

import functools

import numpy as np
import pytest

from decode.engine import Engine
from decode.generate import Request, cache_slots, generate, pad
from decode.load import find_source
from model.dtypes import FLOAT32
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from tests.family_cases import CASES, FOLDER, SLOW_CASES

FIRST = [case for case in CASES if case not in SLOW_CASES]
RUNS = [
    *((case, "1x1x1") for case in FIRST),
    *(
        pytest.param(case, "2x2x2", marks=pytest.mark.slow if number else ())
        for number, case in enumerate(FIRST)
    ),
    *(
        pytest.param(case, mesh, marks=pytest.mark.slow)
        for case in SLOW_CASES
        for mesh in ("1x1x1", "2x2x2")
    ),
]
"""A family of each kind on one device, the first one, which has most, on eight, too; the slow set
has the others."""
NEW_TOKENS = 32


@functools.cache
def engine_of(case: str, mesh: str) -> Engine:
    source = find_source(str(FOLDER / case))
    return source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh(mesh), FLOAT32)


def reference_of(case: str) -> tuple[list[list[int]], list[np.ndarray], np.ndarray]:
    """Prompts, logits [T, V] of each and the tokens [B, 32] that follow."""
    stored = np.load(FOLDER / case / "reference.npz")
    count = len(stored["tokens"])
    prompts = [stored[f"prompt_{n}"].tolist() for n in range(count)]
    return prompts, [stored[f"logits_{n}"] for n in range(count)], stored["tokens"]


@pytest.mark.parametrize(("case", "mesh"), RUNS)
def test_prefill_of_a_ragged_batch_gives_the_logits_of_transformers(case, mesh):
    engine = engine_of(case, mesh)
    prompts, logits, _ = reference_of(case)
    longest, limit = max(map(len, prompts)), engine.config.max_context
    tokens, lengths = pad(prompts, longest)
    cache = engine.new_cache(len(prompts), cache_slots(longest, NEW_TOKENS, limit))
    found, _ = engine.prefill(cache, tokens, lengths)
    for row, expected in zip(np.asarray(found), logits, strict=True):
        assert np.abs(row - expected[-1]).max() <= 1e-4 * np.abs(expected[-1]).max()


@pytest.mark.parametrize(("case", "mesh"), RUNS)
def test_a_ragged_batch_continues_greedily_as_transformers_does(case, mesh):
    prompts, _, tokens = reference_of(case)
    request = Request(prompts=prompts, max_new_tokens=NEW_TOKENS)
    *_, completions = generate(engine_of(case, mesh), request)
    assert [completion.tokens for completion in completions] == tokens.tolist()


@pytest.mark.parametrize(
    "case",
    # By default greedy text above goes by cached steps of every family.
    [pytest.param(c, marks=() if c == "qwen2_window" else pytest.mark.slow)
     for c in (*FIRST, *SLOW_CASES)],
)  # fmt: skip
def test_one_full_pass_gives_transformers_logits_and_each_cached_step_gives_its(case):
    """From a prompt shorter than the window until its ring has gone round four times.

    Steps take as many copies of it as there are prompts, padded as they are: the prefill of the
    ragged batch, which is compiled.
    """
    engine = engine_of(case, "1x1x1")
    prompts, logits_of, tokens = reference_of(case)
    start, text = len(prompts[0]), prompts[0] + tokens[0].tolist()
    full = np.asarray(engine.forward(np.array([text], np.int32)))[0]
    assert np.abs(full[:start] - logits_of[0]).max() <= 1e-4 * np.abs(logits_of[0]).max()
    count, longest = len(prompts), max(map(len, prompts))
    limit = engine.config.max_context
    rows, lengths = pad(prompts[:1] * count, longest)
    cache = engine.new_cache(count, cache_slots(longest, NEW_TOKENS, limit))
    logits, cache = engine.prefill(cache, rows, lengths)
    for position in range(start, len(text)):
        found, expected = np.asarray(logits), full[position - 1]
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
        token, length = (np.full(count, n, np.int32) for n in (text[position], position))
        logits, cache = engine.decode_step(cache, engine.put(token), engine.put(length))
