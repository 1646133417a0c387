"""What gated delta layers cost, against Qwen3-Next's numbers counted by hand: flat in context."""

import dataclasses

import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, FLOAT32
from profiles.floor.alike_layers import kv_token_bytes
from profiles.floor.block_counts import ATTENTION, CACHE_WRITE, DELTA_RULE, block_counts
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.delta_counts import delta_flops, states_in_words
from profiles.floor.passes import Pass
from sharding.catalog import ATTENTION as DIVISIONS
from sharding.catalog import LAYOUTS, attend_by
from sharding.placement import Placement
from tests.engines import FAMILIES, carry_bytes

NEXT = find_model("qwen3-next-80b-a3b")
DELTA_LAYERS, OTHERS, KEYS, VALUES, SIZE, TAPS = 36, 12, 16, 32, 128, 4
CONVOLVED = (2 * KEYS + VALUES) * SIZE
MATRICES, INPUTS = VALUES * SIZE * SIZE * 4, (TAPS - 1) * CONVOLVED * 2
STATE = DELTA_LAYERS * (MATRICES + INPUTS)
TOKEN = OTHERS * 2 * 2 * 256 * 2  # keys and values of two heads in bfloat16
ONE, EIGHT = {"x": 1, "y": 1, "z": 1}, {"x": 2, "y": 2, "z": 2}
ONE_D = LAYOUTS["weight_stationary_1d"]


def counter(mesh: dict[str, int], attention: str = "heads") -> PassCounter:
    placement = Placement.of(attend_by(ONE_D, attention), NEXT.sizes, mesh)
    return PassCounter(NEXT, placement, BFLOAT16)


def test_a_step_reads_and_writes_the_same_state_after_any_context():
    counts = {context: counter(ONE).count(Pass(3, context)) for context in (100, 100_000)}
    for context, found in counts.items():
        assert found.kv_read == 3 * (STATE + context * TOKEN)
        assert found.kv_written == 3 * (STATE + TOKEN)
        assert found.kv_resident == 3 * (STATE + (context + 1) * TOKEN)
    assert pytest.approx(77e6, rel=0.01) == STATE  # as much as 3,145 cached tokens
    only = dataclasses.replace(NEXT, layers=3, delta_layers=(True,) * 3)
    flat = PassCounter(only, Placement.of(ONE_D, only.sizes, ONE), BFLOAT16)
    steps = [flat.count(Pass(3, context)) for context in (100, 100_000)]
    assert steps[0] == steps[1]


def test_only_layers_of_attention_cache_tokens():
    placement = Placement.of(ONE_D, NEXT.sizes, ONE)
    assert kv_token_bytes(NEXT, placement, BFLOAT16) == TOKEN


def test_states_are_no_bytes_of_tokens_nor_of_slots_that_none_has_filled():
    assert counter(ONE).token_bytes == TOKEN
    assert counter(ONE).unfilled(Pass(3, 99, slots=1000)) == 3 * 900 * TOKEN


@pytest.mark.parametrize("attention", DIVISIONS)
def test_every_division_of_attention_divides_states(attention):
    assert counter(EIGHT, attention).state == STATE / 8


def test_a_token_meets_each_state_in_three_products():
    convolution = 2 * TAPS * CONVOLVED
    assert delta_flops(NEXT, 5) == 5 * DELTA_LAYERS * (6 * VALUES * SIZE * SIZE + convolution)
    near, far = (counter(ONE).attention_flops(Pass(1, context)) for context in (1, 1001))
    assert far - near == 1000 * 4 * OTHERS * 16 * 256


def test_the_rule_is_a_block_of_its_own():
    placement, pass_ = Placement.of(ONE_D, NEXT.sizes, ONE), Pass(2, 1000)
    blocks = block_counts(NEXT, placement, BFLOAT16, pass_)
    small = DELTA_LAYERS * (CONVOLVED * TAPS * 2 + 2 * VALUES * 4)  # taps, rates and their biases
    assert blocks[DELTA_RULE].bytes == 2 * 2 * STATE + small
    assert blocks[DELTA_RULE].flops == 2 * delta_flops(NEXT, 1)
    assert blocks[ATTENTION].bytes == 2 * 1000 * TOKEN
    assert blocks[CACHE_WRITE].bytes == 2 * TOKEN


def test_a_text_that_begins_has_no_state_to_read():
    counts = counter(ONE).count(Pass(2, context=0, tokens=100))
    assert counts.kv_read == 0 and counts.kv_written == 2 * (STATE + 100 * TOKEN)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["1x1x1", "2x2x2"])
def test_resident_bytes_equal_the_compilers_and_states_are_updated_in_place(tiny_engine, mesh):
    engine = tiny_engine(mesh, **FAMILIES["delta"])
    memory = engine.lower_decode(3, 64).compile().memory_analysis()
    counted = PassCounter(engine.config, engine.placement, FLOAT32).count(Pass(3, 10, slots=64))
    expected = counted.weights_resident + counted.kv_resident + carry_bytes(3)
    assert memory.argument_size_in_bytes == expected
    assert memory.alias_size_in_bytes == counted.kv_resident


def test_a_user_is_told_what_a_step_moves_whatever_the_context():
    (line,) = states_in_words(NEXT, BFLOAT16)
    assert line.startswith(
        "36 of 48 layers keep a state: for each sequence a step reads and writes 77."
    )
    assert states_in_words(find_model("tiny"), BFLOAT16) == []
