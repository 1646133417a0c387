"""A cache that lies by its slots, as on TPUs where heads fill no registers, in every program."""

import jax
import numpy as np
import pytest

from decode.batching.programs import Lanes, Programs
from decode.drafts import ModelDraft, Proposal, Text
from decode.engine import Engine
from decode.generate import Request, generate, pad, prefill_shared
from decode.sampling import GREEDY
from decode.speculation import Verifier
from model.cache import KVCache, QuantizedKV, abstract_cache, with_shardings
from model.dtypes import FLOAT32, Dtypes
from model.memory_order import formats_of, in_tpu_order
from sharding.catalog import LAYOUTS
from sharding.mesh import make_mesh, parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS
from tests.engines import config_of, random_engine

LAYOUT, ROWS, SLOTS = LAYOUTS["weight_stationary_1d"], 3, 64
PROMPTS = [[5, 6, 7], [5, 6, *range(40, 61)], [5, 6, 9]]  # that begin alike
BY_SLOTS, LOWERED = (0, 1, 3, 2), 'mhlo.layout_mode = "{2,3,1,0}"'  # the same, innermost first
DTYPES = {"plain": FLOAT32, "int8": Dtypes(FLOAT32.dtype, cache=QUANTIZATIONS["int8"])}
SLOW = pytest.mark.slow


class BySlots(Engine):
    """An engine whose caches lie as on a TPU."""

    def _placed_cache(self, *sizes: int) -> KVCache:
        return in_tpu_order(super()._placed_cache(*sizes), self.config)


def engines_of(family: str, mesh: str, dtypes: str = "plain", layers: int = 2) -> list[Engine]:
    """One whose caches lie by default, and one of the same weights whose caches do not."""
    config = config_of(family, layers=layers)
    engine = random_engine(config, LAYOUT, mesh, DTYPES[dtypes])
    parts = config, engine.parameters, engine.placement, engine.mesh, engine.dtypes
    return [engine, BySlots(*parts)]


def orders(cache: KVCache) -> set[tuple[int, ...]]:
    """Those of keys and values; scales and states have none of their own."""
    stored = [part for part in (*cache.keys, *cache.values) if part is not None]
    arrays = [part.values if isinstance(part, QuantizedKV) else part for part in stored]
    return {array.format.layout.major_to_minor for array in arrays}


def test_only_heads_that_fill_no_registers_are_given_an_order():
    config, shape = config_of("two_kinds_of_heads"), parse_mesh("1x1x2")
    placement = Placement.of(LAYOUT, config.sizes, shape)
    cache = abstract_cache(config, 2, SLOTS, DTYPES["int8"])
    cache = with_shardings(cache, placement, make_mesh(shape), config)
    assert formats_of(cache) is None
    formats = formats_of(in_tpu_order(cache, config))
    for part in (*formats.keys, *formats.values):
        assert part.values.layout.major_to_minor == BY_SLOTS
        assert part.scales.layout is None
    wide = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((*a.shape[:-1], 128), a.dtype, sharding=a.sharding), cache
    )
    assert formats_of(in_tpu_order(wide, config)) is None


def test_every_program_returns_the_cache_in_the_order_in_which_it_takes_it():
    _, engine = engines_of("grouped", "1x1x2", layers=1)
    cache = engine._placed_cache(ROWS, SLOTS)
    parameters, numbers = engine.parameters, engine.put(np.zeros(ROWS, np.int32))
    programs, draft = Programs(engine).lowered, ModelDraft(engine, engine, 2)
    rows = Programs(engine).empty_rows(ROWS)
    lanes = Lanes(np.zeros((1, 16), np.int32), *(np.zeros(1, np.int32),) * 4)
    carry = engine.start(np.zeros(ROWS, np.int32))
    text = Text(engine.put(np.zeros((ROWS, SLOTS), np.int32)), *(numbers,) * 4, carry.seed)
    proposal = Proposal(engine.put(np.zeros((ROWS, 2), np.int32)))
    with jax.set_mesh(engine.mesh):
        lowered = {
            "prompts": engine.lower_prefill(ROWS, SLOTS, 16, continues=True),
            "decode": engine.lower_decode(ROWS, SLOTS),
            "decode, several": engine.lower_decode(ROWS, SLOTS, steps=2),
            "decode, free": engine.lower_decode(ROWS, SLOTS, auto_weight_layout=True),
            "scores": engine._decode.lower(parameters, cache, numbers, numbers),
            "verify": Verifier(engine)._verify.lower(
                parameters, cache, text, proposal, sampler=GREEDY
            ),
            "draft": draft._propose.lower(parameters, cache, text, sampler=GREEDY),
            "chunk": programs.chunk(cache, lanes),
            "rows": programs.decode(cache, rows, engine.put(np.ones(ROWS, bool))),
            "exchange": programs.exchange(cache, rows, np.arange(2, dtype=np.int32)),
        }
    arrays = len(jax.tree.leaves(cache))
    counts = {name: program.as_text().count(LOWERED) for name, program in lowered.items()}
    assert counts == dict.fromkeys(lowered, 2 * arrays)  # taken, and returned


@pytest.mark.parametrize(
    ("family", "mesh", "dtypes"),
    [pytest.param("two_norms_and_caps", "1x1x2", "plain", marks=SLOW),
     pytest.param("two_kinds_of_heads", "1x1x1", "int8", marks=SLOW),
     pytest.param("latent", "1x1x2", "plain", marks=SLOW),
     pytest.param("delta", "1x1x2", "int8", marks=SLOW)],
)  # fmt: skip
def test_prompts_and_steps_give_the_same_tokens_and_leave_the_order(family, mesh, dtypes):
    request = Request(prompts=PROMPTS, max_new_tokens=4)
    plain, engine = engines_of(family, mesh, dtypes)
    (*_, expected), (*_, found) = (generate(each, request) for each in (plain, engine))
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    tokens, lengths = pad(PROMPTS, 32)
    _, cache = prefill_shared(engine, tokens, lengths, SLOTS, shared=2)
    assert orders(cache) == {BY_SLOTS}
    after, *_ = engine.advance(cache, engine.start(lengths), GREEDY)
    assert orders(after) == {BY_SLOTS}
    assert all(array.is_deleted() for array in jax.tree.leaves(cache))
