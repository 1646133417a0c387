"""Speculation: the model's own tokens and distribution, whatever drafts propose."""

import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decode.drafts import OF_DRAFT, DraftError, ModelDraft, NgramDraft, repeated
from decode.engine import Engine
from decode.generate import Request, generate
from decode.sampling import Sampler, draw_keys, filtered, highest_with_noise
from decode.speculation import Tally, Verifier, _speculate, judge, speculate
from model.catalog import find_model
from model.config import ModelConfig
from model.dtypes import FLOAT32
from model.parameters import initialise
from model.transformer import Transformer
from sharding.catalog import LAYOUTS, attend_by
from sharding.error_types import FloorlineError
from tests.engines import config_of, counted_compilations, random_engine

CIRCLE = [5, 6, 7, 8] * 3
PROMPTS = [CIRCLE, list(range(40, 63)), [9]]
DRAWN = Sampler(0.7, top_k=20)


def finish(steps):
    *_, last = steps
    return last


def tokens(steps):
    return [completion.tokens for completion in finish(steps)]


@functools.cache
def small(family: str = "grouped", layout: str = "weight_stationary_1d", mesh="1x1x1") -> Engine:
    """A model of one layer; behind the layout's name may stand what attention is divided by."""
    name, *kind = layout.split()
    layout = attend_by(LAYOUTS[name], *kind) if kind else LAYOUTS[name]
    return random_engine(config_of(family, layers=1), layout, mesh, FLOAT32)


@functools.cache
def another(engine: Engine) -> Engine:
    """A model of the same shapes with other weights."""
    model = Transformer(engine.config, engine.dtypes)
    weights = initialise(model, engine.placement, engine.mesh, 1)
    return Engine(engine.config, weights, engine.placement, engine.mesh, engine.dtypes)


def test_what_followed_the_longest_like_of_a_texts_end_is_proposed():
    rows = {
        "after the longer like, not the newer": ([1, 2, 3, 4, 9, 3, 7, 2, 3], [4, 9, 3]),
        "after the newest of equals": ([1, 2, 1, 3, 1], [3, 1, 3]),
        "round a circle": ([6, 5, 5, 5], [5, 5, 5]),
        "without a like, the last token": ([1, 2, 3], [3, 3, 3]),
        "a text of one token": ([4], [4, 4, 4]),
    }
    texts = np.full((len(rows), 12), 3, np.int32)  # what is after a text does not count
    for row, (text, _) in zip(texts, rows.values(), strict=True):
        row[: len(text)] = text
    last = np.array([len(text) - 1 for text, _ in rows.values()], np.int32)
    found = repeated(jnp.asarray(texts), jnp.asarray(last), 3)
    for name, row, (_, wanted) in zip(rows, found.tolist(), rows.values(), strict=True):
        assert row == wanted, name


@pytest.mark.parametrize(
    "sampler",
    # Greedy ones are in layouts below.
    [pytest.param(Sampler(), marks=pytest.mark.slow, id="greedy"), pytest.param(DRAWN, id="drawn")],
)
def test_drafts_from_the_text_change_no_token_greedy_or_drawn(sampler):
    engine, tally = small(), Tally()
    request = Request(prompts=PROMPTS, max_new_tokens=24, sampler=sampler, seed=3)
    plain = finish(generate(engine, request))
    found = finish(speculate(engine, NgramDraft(engine, 3), request, tally))
    for one, other in zip(plain, found, strict=True):
        assert other.tokens == one.tokens and other.finish_reason == "length"
        np.testing.assert_allclose(other.logprobs, one.logprobs, atol=1e-4)
    assert tally.tokens == 3 * 23 == tally.steps + tally.accepted and tally.steps < tally.tokens


CASES = [("two_norms_and_caps", "weight_stationary_1d", "1x1x2")]
MORE = [
    ("biased_windowed", "weight_stationary_1d sequence", "1x1x2"),
    ("multi_query_parallel", "weight_stationary_1d batch", "1x1x2"),
    ("grouped", "data_parallel_x_1d", "2x1x2"),
    ("experts", "weight_gathered_x", "2x1x1"),
    ("grouped", "weight_stationary_2d", "2x2x1"),
]


@pytest.mark.parametrize(
    ("family", "layout", "mesh"),
    CASES + [pytest.param(*each, marks=pytest.mark.slow) for each in MORE],
)
def test_greedy_tokens_are_those_of_steps_of_one_in_windows_and_layouts(family, layout, mesh):
    engine = small(family, layout, mesh)
    request = Request(prompts=PROMPTS, max_new_tokens=24)
    plain = tokens(generate(engine, request))
    assert tokens(speculate(engine, NgramDraft(engine, 3), request)) == plain
    assert tokens(speculate(engine, ModelDraft(another(engine), engine, 3), request)) == plain


def test_a_model_accepts_all_that_it_drafts_itself_greedy_and_drawn():
    engine = small()  # whose programs tests beside this one compile
    draft = ModelDraft(engine, engine, 3)
    for sampler in (Sampler(), DRAWN):
        tally = Tally()
        request = Request(prompts=PROMPTS, max_new_tokens=14, sampler=sampler)
        found = finish(speculate(engine, draft, request, tally))
        assert [len(each.tokens) for each in found] == [14] * 3
        assert (tally.acceptance, tally.steps) == (1, 3 * 4)  # 13 tokens in steps of 4


def test_a_stop_token_among_those_accepted_ends_the_text_there():
    engine = small()
    draft = ModelDraft(engine, engine, 3)
    free = Request(prompts=PROMPTS, max_new_tokens=14)
    plain = tokens(generate(engine, free))
    stop = plain[1][6]
    ends = dataclasses.replace(free, stop_ids=frozenset({stop}))
    found = finish(speculate(engine, draft, ends))
    for one, other in zip(plain, found, strict=True):
        assert other.tokens == (one[: one.index(stop)] if stop in one else one)
        assert other.finish_reason == ("stop" if stop in one else "length")


def test_a_text_may_fill_the_context_to_its_end():
    whole = small()
    room = 64  # as many slots as tests above have, whose programs are compiled
    config = dataclasses.replace(whole.config, max_context=room)
    engine = Engine(config, whole.parameters, whole.placement, whole.mesh, whole.dtypes)
    request = Request(prompts=[[1] * (room - 7), *PROMPTS[:2]], max_new_tokens=7)
    plain = tokens(generate(engine, request))
    assert tokens(speculate(engine, ModelDraft(engine, engine, 3), request)) == plain
    one = dataclasses.replace(request, max_new_tokens=1)
    assert tokens(speculate(engine, NgramDraft(engine, 3), one)) == [each[:1] for each in plain]


def test_nothing_is_compiled_again_in_a_run_or_for_a_further_one():
    engine = small()
    verifier, draft = Verifier(engine), NgramDraft(engine, 3)
    request = Request(prompts=PROMPTS, max_new_tokens=24)
    finish(_speculate(engine, verifier, draft, request, Tally()))
    other = dataclasses.replace(request, prompts=PROMPTS[::-1], seed=5)
    with counted_compilations() as compiled:
        finish(_speculate(engine, verifier, draft, other, Tally()))
    assert not compiled


@pytest.mark.slow
def test_draws_do_not_depend_on_the_batch_or_the_mesh():
    request = Request(prompts=PROMPTS, max_new_tokens=12, sampler=DRAWN, seed=2)
    found = []
    for mesh, prompts in (("1x1x1", PROMPTS), ("1x1x2", PROMPTS[:2])):
        engine = small(mesh=mesh)
        draft = ModelDraft(another(engine), engine, 3)
        found.append(
            tokens(speculate(engine, draft, dataclasses.replace(request, prompts=prompts)))
        )
    assert found[0][:2] == found[1]


def test_a_model_whose_states_give_no_token_back_is_refused():
    engine = types.SimpleNamespace(config=config_of("delta"))
    request = Request(prompts=[[1]], max_new_tokens=2)
    with pytest.raises(DraftError, match=r"tiny has gated delta layers, .*; leave out --draft"):
        speculate(engine, None, request)
    with pytest.raises(DraftError, match="cannot give refused tokens back"):
        ModelDraft(engine, engine, 2)


def test_a_draft_of_another_vocabulary_is_refused_with_both_sizes():
    engine = small()
    other = random_engine(
        dataclasses.replace(engine.config, vocabulary=128),
        LAYOUTS["weight_stationary_1d"],
        "1",
        FLOAT32,
    )
    with pytest.raises(DraftError, match=r"is 128 tokens and that of tiny is \d+; use a draft"):
        ModelDraft(other, engine, 3)


def test_logits_that_are_not_finite_end_the_run():
    whole = small()
    final = jax.tree.map(lambda scale: scale * np.nan, whole.parameters["final_norm"])
    bad = whole.parameters | {"final_norm": final}
    engine = Engine(whole.config, bad, whole.placement, whole.mesh, whole.dtypes)
    with pytest.raises(FloorlineError, match=r"logits of step 1 are not finite"):
        finish(speculate(engine, NgramDraft(engine, 3), Request(prompts=PROMPTS, max_new_tokens=4)))


VOCABULARY, START, DRAWS = 6, [1, 2, 3, 1, 2, 3, 1, 2], 20_000
TEMPERATURE = 0.15  # tells random logits apart


def six_tokens() -> ModelConfig:
    return dataclasses.replace(find_model("tiny"), vocabulary=VOCABULARY, layers=1)


def expected_shares(engine: Engine, sampler: Sampler) -> np.ndarray:
    """Probability of each three tokens after the start, [V, V, V], by passes over whole texts."""
    pairs = np.array(list(itertools.product(range(VOCABULARY), repeat=2)), np.int32)
    texts = np.concatenate([np.tile(START, (len(pairs), 1)), pairs], axis=1).astype(np.int32)
    logits = engine.forward(texts)[:, len(START) - 1 :]  # after the start, and one and two more
    scores = filtered(logits.reshape(-1, VOCABULARY), sampler.settings)
    shares = np.asarray(jax.nn.softmax(scores), np.float64).reshape(*(VOCABULARY,) * 2, 3, -1)
    return shares[0, 0, 0][:, None, None] * shares[:, 0, 1][:, :, None] * shares[:, :, 2]


def chi_square(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The statistic of draws [n, k] beside its expected counts, and a bound four deviations up."""
    seen = np.zeros(expected.shape)
    np.add.at(seen, tuple(found.T), 1)
    assert not seen[expected == 0].any()
    many = expected >= 5  # the usual bound of the approximation; the rest are one cell
    cells = [np.append(each[many], each[~many].sum()) for each in (seen, expected)]
    statistic, freedom = np.sum((cells[0] - cells[1]) ** 2 / np.maximum(cells[1], 1)), many.sum()
    return float(statistic), float(freedom + 4 * np.sqrt(2 * freedom))


def test_a_judged_draft_is_distributed_as_the_model_whatever_it_was_drawn_from():
    """Chi-square of what stands beside its draft's successor, whose random keys are others."""
    settings, vocabulary = Sampler(0.9, top_k=6).settings, 8
    rows = lambda seed: jax.random.normal(jax.random.key(seed), (1, vocabulary))  # noqa: E731
    target, small = (jnp.tile(rows(seed), (DRAWS, 1)) for seed in (0, 1))
    sequences = jnp.arange(DRAWS)

    @functools.partial(jax.jit, static_argnums=0)
    def draw(index, logits):
        keys = draw_keys(jax.random.key(5), sequences, index)
        draft_keys = jax.vmap(lambda key: jax.random.fold_in(key, OF_DRAFT))(keys)
        drafts = highest_with_noise(filtered(small, settings), draft_keys)
        return drafts, judge(logits, small, drafts, jnp.ones(DRAWS, bool), keys, settings)[0]

    drafts, first = draw(0, target)
    _, second = draw(1, jnp.where((first == 0)[:, None], small, target))  # it depends on the first
    shares = [
        np.asarray(jax.nn.softmax(filtered(each[:1], settings)))[0] for each in (target, small)
    ]
    expected = np.outer(shares[0], shares[0])
    expected[0] = shares[0][0] * shares[1]
    statistic, bound = chi_square(np.stack([first, second], axis=1), DRAWS * expected)
    assert statistic < bound
    accepted = float(jnp.mean(first == drafts))
    assert abs(accepted - np.minimum(*shares).sum()) < 0.02  # the most that any rule accepts
    assert 0.2 < accepted < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ngram", "model"])
def test_tokens_are_distributed_as_the_models_own(kind):
    """Chi-square of three tokens jointly, of which drafts propose two."""
    engine = random_engine(six_tokens(), LAYOUTS["weight_stationary_1d"], "1x1x1", FLOAT32)
    sampler = Sampler(TEMPERATURE, top_k=5)
    drafts = {"ngram": NgramDraft(engine, 2), "model": ModelDraft(another(engine), engine, 2)}
    request = Request(prompts=[START] * DRAWS, max_new_tokens=3, sampler=sampler, seed=11)
    tally = Tally()
    found = np.array(tokens(speculate(engine, drafts[kind], request, tally)))
    statistic, bound = chi_square(found, DRAWS * expected_shares(engine, sampler))
    assert statistic < bound
    assert 0.05 < tally.acceptance < 0.95  # both branches of the rule were taken
