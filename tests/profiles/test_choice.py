"""Choosing layouts by predicted time: the paper's rules of thumb come out of it."""

import dataclasses

import pytest

from model.catalog import find_model
from model.form import BFLOAT16
from profiles.choice import Work, admitted, choose, choose_prefill, explain
from profiles.hardware import Peaks, find_chip
from sharding.errors import LayoutError
from sharding.layout import ATTENTION, LAYOUTS, attend_by, prefill_by
from sharding.mesh import parse_mesh

V4 = find_chip("v4")
PEAKS = Peaks(
    bandwidth=V4.bandwidth,
    flops=V4.peak("bfloat16"),
    source="published",
    on_chip=V4.on_chip,
    capacity=V4.capacity,
    link=V4.link,
)
PALM = find_model("palm-540b-padded")


def work(mesh: str, batch: int, context: int, config=PALM) -> Work:
    return Work(config, parse_mesh(mesh), BFLOAT16, [batch], [context])


def best(asked: Work, attentions=("heads",)) -> str:
    layouts = [attend_by(layout, kind) for layout in LAYOUTS.values() for kind in attentions]
    return choose(asked, admitted(asked.config, asked.mesh, layouts), PEAKS)[0].name


def test_few_chips_take_one_dimension_and_many_take_two():
    """Pope et al. 2022, section 3.2.2: two dimensions win beyond about sixteen chips."""
    small = find_model("llama3-8b")
    assert best(work("1x1x4", 64, 128, small)).startswith("weight_stationary_1d")
    assert best(work("4x4x4", 512, 128)).startswith("weight_stationary_2d")


def test_long_contexts_of_multi_query_attention_are_divided_by_batch():
    found = best(work("4x4x4", 256, 8192), ATTENTION)
    assert found == "weight_stationary_2d, attention by batch"


def test_one_long_sequence_of_multi_query_attention_is_divided_by_slots():
    config = dataclasses.replace(find_model("llama3-8b"), max_context=1 << 20, kv_heads=1)
    assert best(work("1x1x8", 1, 500_000, config), ATTENTION).endswith("by sequence")


def test_times_of_several_batches_are_added_step_by_step():
    """Small batches are bound by memory and large ones by compute: neither sum alone is right."""
    config = find_model("llama3-8b")
    layout = LAYOUTS["weight_stationary_1d"]

    def seconds(*batches: int) -> float:
        asked = Work(config, parse_mesh("1x1x4"), BFLOAT16, batches, [128])
        return choose(asked, [layout], PEAKS)[0].seconds

    assert seconds(1, 4096) == pytest.approx(seconds(1) + seconds(4096))


@pytest.mark.parametrize(
    ("batch", "length", "expected"),
    [
        (1, 128, "weight_stationary_2d"),
        (16, 2048, "weight_gathered_x"),
        (512, 2048, "weight_gathered_xy"),
        (2048, 2048, "weight_gathered_xyz"),
    ],
)
def test_large_prefills_gather_weights(batch, length, expected):
    """Pope et al. 2022, section 3.2.3 and figure 3: the more tokens, the more axes."""
    asked = work("4x4x4", batch, length)
    decode = LAYOUTS["weight_stationary_2d"]
    both = [prefill_by(decode, one) for one in LAYOUTS.values() if one.weights == decode.weights]
    assert choose_prefill(asked, both, length, PEAKS)[0].name == expected


def test_what_does_not_fit_comes_last():
    asked = work("8x1x8", 64, 128)
    ranked = choose(asked, admitted(PALM, asked.mesh, LAYOUTS.values()), PEAKS)
    assert ranked[0].fits and not ranked[-1].fits
    assert "does not fit" in str(ranked[-1])


def test_a_choice_is_explained_beside_the_next_ones():
    asked = work("4x4x4", 64, 128)
    ranked = choose(asked, admitted(PALM, asked.mesh, LAYOUTS.values()), PEAKS)
    text = explain(ranked, "layout", PEAKS)
    assert text.startswith(f"layout auto: {ranked[0].name}: ")
    assert str(ranked[1]) in text and "predicted from published peaks" in text


def test_where_no_layout_goes_the_first_refusal_is_told():
    with pytest.raises(LayoutError, match="d_ff is 73728, which mesh axes z=7"):
        admitted(PALM, parse_mesh("1x1x7"), LAYOUTS.values())
