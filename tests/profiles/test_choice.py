"""Choosing layouts by predicted time: the paper's rules of thumb come out of it."""

import dataclasses

import pytest

from model.catalog import find_model
from model.form import BFLOAT16
from profiles.calibration import calibration_of
from profiles.choice import Work, admitted, choose, choose_prefill, explain
from profiles.hardware import find_chip
from profiles.here import Here, assumed, shape_of
from profiles.slices import Slice
from sharding.errors import LayoutError
from sharding.layout import ATTENTION, LAYOUTS, attend_by, prefill_by
from sharding.mesh import parse_mesh

V4 = find_chip("v4")


def v4(mesh) -> Here:
    """Chips of v4 as a mesh has them, all dimensions rings of their own."""
    return Here(Slice(V4, tuple(mesh.values())), calibration_of("v4"), "a test")


PALM = find_model("palm-540b-padded")


def work(mesh: str, batch: int, context: int, config=PALM) -> Work:
    return Work(config, parse_mesh(mesh), BFLOAT16, [batch], [context])


def best(asked: Work, attentions=("heads",)) -> str:
    layouts = [attend_by(layout, kind) for layout in LAYOUTS.values() for kind in attentions]
    return choose(asked, admitted(asked.config, asked.mesh, layouts), v4(asked.mesh))[0].name


def test_few_chips_take_one_dimension_and_many_take_two():
    """Pope et al. 2022, section 3.2.2: two dimensions win beyond about sixteen chips."""
    small = find_model("llama3-8b")
    assert best(work("1x1x4", 64, 128, small)).startswith("weight_stationary_1d")
    assert best(work("4x4x4", 512, 128)).startswith("weight_stationary_2d")


def test_long_contexts_of_multi_query_attention_are_divided_by_batch():
    found = best(work("4x4x4", 512, 8192), ATTENTION)
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
        return choose(asked, [layout], v4(asked.mesh))[0].seconds

    assert seconds(1, 4096) == pytest.approx(seconds(1) + seconds(4096))


@pytest.mark.parametrize(
    ("batch", "length", "expected"),
    [
        (1, 128, "weight_stationary_2d"),
        (16, 2048, "weight_gathered_x"),
        (64, 2048, "weight_gathered_xy"),
        (512, 2048, "weight_gathered_xyz"),
    ],
)
def test_large_prefills_gather_weights(batch, length, expected):
    """Pope et al. 2022, section 3.2.3, figure 3 and table 2: the more tokens, the more axes."""
    asked = work("4x4x4", batch, length)
    decode = LAYOUTS["weight_stationary_2d"]
    both = [prefill_by(decode, one) for one in LAYOUTS.values() if one.weights == decode.weights]
    assert choose_prefill(asked, both, v4(asked.mesh))[0].name == expected


def test_what_does_not_fit_comes_last():
    asked = work("8x1x8", 64, 128)
    ranked = choose(asked, admitted(PALM, asked.mesh, LAYOUTS.values()), v4(asked.mesh))
    assert ranked[0].fits and not ranked[-1].fits
    assert "does not fit" in str(ranked[-1])


def test_a_choice_is_explained_beside_the_next_ones():
    asked = work("4x4x4", 64, 128)
    ranked = choose(asked, admitted(PALM, asked.mesh, LAYOUTS.values()), v4(asked.mesh))
    text = explain(ranked, "layout", v4(asked.mesh))
    assert text.startswith(f"layout auto: {ranked[0].name}: ")
    assert str(ranked[1]) in text and "predicted from a test" in text


def test_where_no_layout_goes_the_first_refusal_is_told():
    with pytest.raises(LayoutError, match="d_ff is 73728, which mesh axes z=7"):
        admitted(PALM, parse_mesh("1x1x7"), LAYOUTS.values())


def test_devices_say_the_shape_of_their_slice():
    box = [(x, y, 0) for x in range(2) for y in range(4)]
    assert shape_of(find_chip("v4"), box) == (2, 4, 1)
    assert shape_of(find_chip("v5e"), box) == (2, 4)
    halves = [at for at in box for _ in range(2)]
    assert shape_of(find_chip("tpu7x"), halves) == (2, 4, 1)
    assert shape_of(V4, [box[0], box[1], box[4]]) == (3, 1, 1)  # no box
    assert shape_of(find_chip("h100"), [None] * 8) == (8,)


def test_devices_of_a_cpu_share_assumed_rates():
    one, four = assumed(1).where, assumed(4).where
    assert four.devices == 4 and four.chip.bandwidth * 4 == one.chip.bandwidth
