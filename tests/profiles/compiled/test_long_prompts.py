"""Long prompts, as their last chunks were compiled for slices, and what attention multiplies."""

import jax.numpy as jnp
import pytest

from model.attention_tpu_blocks import multiplied_pairs
from model.catalog import find_model
from model.softmax_parts import Spans
from profiles.compiled.compiled_table import RECORDED
from profiles.compiled.grid import read_grid
from profiles.floor.passes import attended_pairs
from profiles.report.record import Record
from sharding.catalog import attend_by, find_layout
from sharding.placement import Placement, entry_axes, shards

POINTS = {
    (point.topology, point.context + point.tokens_per_sequence): point
    for point in read_grid(RECORDED / "llama3-8b-long-prompt/matrix.jsonl")["points"]
}


def test_two_lengths_are_recorded_on_two_slices():
    slices, lengths = ("v5e:2x4", "v6e:4x4"), (32_768, 131_072)
    assert set(POINTS) == {(slice, length) for slice in slices for length in lengths}


@pytest.mark.parametrize("point", POINTS.values(), ids=map(str, POINTS))
def test_a_long_prompt_fits_and_neither_copies_its_cache_nor_holds_scores(point: Record):
    compiled, counted = point.compiled, point.bytes_per_chip
    assert point.status == "ok" and point.fits
    assert compiled["temporary_bytes"] < 0.1 * compiled["argument_bytes"]
    assert compiled["aliased_bytes"] == counted["kv_resident"] and compiled["cache_aliased"]
    prompt = point.context + point.tokens_per_sequence
    made = [one["what"] for one in compiled["copies"] + compiled["temporaries"]]
    assert not any("cache/" in what or str(prompt) in what for what in made)


@pytest.mark.parametrize("point", POINTS.values(), ids=map(str, POINTS))
def test_temporaries_are_those_of_a_chunk_whatever_the_length(point: Record):
    """Few arrays as large as the chunk's residual stream; scores would be a hundred of them."""
    stream = point.tokens_per_sequence * find_model(point.model).d_model * 2
    assert point.compiled["temporary_bytes"] < 8 * stream


@pytest.mark.parametrize("point", POINTS.values(), ids=map(str, POINTS))
def test_attention_multiplies_little_more_than_the_causal_half_of_a_prompt(point: Record):
    """Of a layer on each chip, over all chunks: tokens meet each other, and then the cache."""
    config, chunk = find_model(point.model), point.tokens_per_sequence
    layout = attend_by(find_layout(point.layout), point.attention)
    placement = Placement.of(layout, config.sizes, point.mesh).prefill
    _, _, k, g, _ = map(entry_axes, placement.attention("BTKG_"))
    heads = config.kv_heads // shards(k, point.mesh)
    group = config.group // shards(g, point.mesh)
    q, prompt, multiplied = (1, chunk, heads, group, config.head_size), point.context + chunk, 0
    for first in range(0, prompt, chunk):
        start = jnp.asarray([first], jnp.int32)
        each_other = Spans(start, start, start + chunk)
        earlier = Spans(start, jnp.zeros_like(start), start)
        for slots, spans in ((chunk, each_other), (prompt, earlier)):
            multiplied += multiplied_pairs(q, slots, jnp.bfloat16, spans)
    share = placement.share(("attention", "BKG"))
    floor = config.query_heads * share * attended_pairs(0, prompt, prompt)
    assert floor < multiplied < 1.02 * floor
