"""Choosing layouts by predicted time: the paper's rules of thumb come out of it."""

import dataclasses
import math

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import find_chip
from profiles.chips.here import Here, assumed, shape_of
from profiles.chips.slices import Slice, parse_slice
from profiles.expected import choice as choosing
from profiles.expected.candidates import AUTO, Wish, candidates, meshes
from profiles.expected.choice import (
    Work,
    admitted,
    check_wishes,
    choose,
    choose_prefill,
    every_device,
    explain,
    least_floor,
    place,
)
from profiles.expected.estimate import Setting
from profiles.expected.estimate import best as best_of
from sharding.catalog import ATTENTION, LAYOUTS, attend_by, prefill_by
from sharding.error_types import LayoutError
from sharding.mesh import parse_mesh
from sharding.quantization import QUANTIZATIONS

V4 = find_chip("v4")


def v4(mesh) -> Here:
    """Chips of v4 as a mesh has them, all dimensions rings of their own."""
    return Here(Slice(V4, tuple(mesh.values())), calibration_of("v4"), "a test")


PALM = find_model("palm-540b-padded")


def work(batch: int, context: int, config=PALM) -> Work:
    return Work(config, BFLOAT16, [batch], [context])


def ranking(asked: Work, mesh: str, attentions=("heads",)) -> list:
    layouts = [attend_by(layout, kind) for layout in LAYOUTS.values() for kind in attentions]
    shape = parse_mesh(mesh)
    return choose(asked, admitted(asked.config, layouts, [shape]), v4(shape), count=None)


def best(asked: Work, mesh: str, attentions=("heads",)) -> str:
    return ranking(asked, mesh, attentions)[0].name


def test_few_chips_take_one_dimension_and_many_take_two():
    """Pope et al. 2022, section 3.2.2: two dimensions win beyond about sixteen chips."""
    small = find_model("llama3-8b")
    assert best(work(64, 128, small), "1x1x4").startswith("weight_stationary_1d")
    assert best(work(512, 128), "4x4x4").startswith("weight_stationary_2d")


def test_long_contexts_of_multi_query_attention_are_divided_by_batch():
    found = best(work(512, 8192), "4x4x4", ATTENTION)
    assert found == "weight_stationary_2d, attention by batch, on 4x4x4"


def test_one_long_sequence_of_multi_query_attention_is_divided_by_slots():
    config = dataclasses.replace(find_model("llama3-8b"), max_context=1 << 20, kv_heads=1)
    assert "by sequence" in best(work(1, 500_000, config), "1x1x8", ATTENTION)


def test_times_of_several_batches_are_added_step_by_step():
    """Small batches are bound by memory and large ones by compute: neither sum alone is right."""
    config = find_model("llama3-8b")
    layout = LAYOUTS["weight_stationary_1d"]

    def seconds(*batches: int) -> float:
        mesh = parse_mesh("1x1x4")
        asked = Work(config, BFLOAT16, batches, [128])
        return choose(asked, admitted(config, [layout], [mesh]), v4(mesh))[0].seconds

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
    asked, mesh = work(batch, length), parse_mesh("4x4x4")
    decode = LAYOUTS["weight_stationary_2d"]
    both = [prefill_by(decode, one) for one in LAYOUTS.values() if one.weights == decode.weights]
    ways = admitted(PALM, both, [mesh])
    assert choose_prefill(asked, ways, v4(mesh))[0].name == expected


def test_what_does_not_fit_comes_last():
    ranked = ranking(work(64, 128), "8x1x8")
    assert ranked[0].fits and not ranked[-1].fits
    assert "does not fit" in str(ranked[-1])


def test_a_choice_is_explained_beside_the_next_ones():
    ranked = ranking(work(64, 128), "4x4x4")
    text = explain(ranked, "layout", v4(parse_mesh("4x4x4")))
    assert text.startswith(f"layout auto: {ranked[0].name}: ")
    assert str(ranked[1]) in text and "predicted from a test" in text


def test_where_no_layout_goes_the_first_refusal_is_told():
    with pytest.raises(LayoutError, match="d_ff is 73728, which mesh axes z=7"):
        admitted(PALM, LAYOUTS.values(), [parse_mesh("1x1x7")])


def on_slices(monkeypatch, *texts: str) -> None:
    """JAX's first devices are taken to be these slices, by their number."""
    slices = {where.devices: where for where in map(parse_slice, texts)}

    def found(count: int) -> Here:
        return Here(slices[count], calibration_of(slices[count].chip.name), "a test")

    monkeypatch.setattr("profiles.expected.choice.here", found)


@pytest.mark.parametrize(
    ("model", "where", "batch", "context", "mesh"),
    [
        ("llama3-8b", "v5e:4x4", 64, 2048, "1x8x2"),
        ("llama3-8b", "v5e:4x4", 16, 4096, "1x8x2"),
        ("llama3-8b", "v5e:4x8", 64, 2048, "1x8x4"),
        ("qwen2-7b", "v5e:2x4", 16, 4096, "1x4x2"),
        ("llama3-8b", "v5e:2x4", 64, 2048, "1x1x8"),  # nothing is better where all heads divide
        ("smollm2-135m", "h100:3", 1, 128, "1x1x3"),
    ],
)
def test_a_count_of_devices_is_the_mesh_whose_floor_is_least(
    monkeypatch, model, where, batch, context, mesh
):
    """In 1D only the cache differs between meshes: y is what divides KV heads and devices both."""
    on_slices(monkeypatch, where)
    config, count, said = find_model(model), parse_slice(where).devices, []
    asked = work(batch, context, config)
    layouts, (found,) = place(
        [Wish("weight_stationary_1d", "heads")],
        config,
        [meshes(count)],
        lambda: asked,
        said.append,
    )
    assert found == parse_mesh(mesh) and layouts == [LAYOUTS["weight_stationary_1d"]]
    assert bool(said) == (mesh != f"1x1x{count}")
    assert all(f"mesh {mesh}: the least floor" in line for line in said)


def test_a_mesh_that_fits_comes_before_one_whose_floor_is_less(monkeypatch):
    on_slices(monkeypatch, "v5e:4x4")
    config, said = find_model("llama3-8b"), []
    shapes = [parse_mesh("1x1x16"), parse_mesh("1x8x2")]
    found = least_floor(
        [LAYOUTS["weight_stationary_1d"]], shapes, lambda: work(64, 8000, config), said.append
    )
    assert found == shapes[1] and said[0].endswith("and does not fit")


def test_auto_chooses_layout_and_mesh_together(monkeypatch):
    on_slices(monkeypatch, "v5e:8x8")
    config, said = find_model("llama3-70b"), []
    asked = work(64, 2048, config)
    (layout,), (mesh,) = place([Wish()], config, [meshes(64)], lambda: asked, said.append)
    setting = Setting(
        model=config,
        where=parse_slice("v5e:8x8"),
        dtypes=BFLOAT16,
        rates=calibration_of("v5e"),
    )
    expected = best_of(candidates(setting, Wish().layouts(config)), asked.steps)
    chosen = candidates(setting, [layout], [mesh])[0]
    seconds = [one.decode(64, 2048).expected.seconds for one in (chosen, expected)]
    assert seconds[0] == pytest.approx(seconds[1])
    assert f"{layout.name}, attention by {layout.attends}, on " in said[0]


def test_a_mixtures_experts_are_divided_where_that_is_expected_to_be_faster(monkeypatch):
    on_slices(monkeypatch, "v5p:2x2x2")
    config, said = find_model("qwen3-30b-a3b"), []
    asked = Work(config, Dtypes(jnp.bfloat16, QUANTIZATIONS["int8"]), [64], [2048])
    (layout,), _ = place([Wish()], config, [meshes(8)], lambda: asked, said.append)
    assert layout.expert_parallel and "experts divided" in said[0]


def test_layouts_that_are_compared_share_a_mesh_that_divides_all_batches(monkeypatch):
    on_slices(monkeypatch, "h100:2", "h100:4")
    config = find_model("llama3-8b")
    names = [Wish("weight_stationary_1d", "heads"), Wish("data_parallel_x_1d", "heads")]
    _, shapes = place(
        names,
        config,
        [meshes(2), meshes(4)],
        lambda: work(64, 2048, config),
        lambda text: None,
        whole_batches=[1, 64],
    )
    assert [math.prod(each.values()) for each in shapes] == [2, 4]
    assert all(each["x"] == 1 for each in shapes)  # x divides a batch of data_parallel_x_1d


def test_a_layout_that_no_mesh_of_a_count_takes_is_refused_before_there_is_work_to_know():
    tiny = find_model("tiny")
    wish = Wish("weight_stationary_1d", "heads")
    for refuse in (
        lambda: check_wishes([wish], tiny, [meshes(2), meshes(5)]),
        lambda: place([wish], tiny, [meshes(5)], None, None),
    ):
        with pytest.raises(LayoutError, match="d_ff is 128, which mesh axes z=5"):
            refuse()


def test_without_a_count_an_accelerator_gives_all_devices_that_the_layout_divides(monkeypatch):
    tiny = find_model("tiny")
    monkeypatch.setattr(choosing, "devices", lambda: [None] * 7)
    monkeypatch.setattr(choosing, "default_platform", lambda: "gpu")
    assert every_device(tiny, [Wish("weight_stationary_1d", "heads")]) == [meshes(4)]
    monkeypatch.setattr(choosing, "default_platform", lambda: "cpu")
    assert every_device(tiny, [Wish(AUTO, "heads")], on_cpu=(1, 2)) == [meshes(1), meshes(2)]


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


def test_where_no_step_is_to_run_the_simplest_mesh_is_taken(monkeypatch):
    on_slices(monkeypatch, "v5e:4x4")
    config, said = find_model("llama3-8b"), []
    asked, wishes = Work(config, BFLOAT16, [], []), [Wish("weight_stationary_1d", "heads")]
    _, (mesh,) = place(wishes, config, [meshes(16)], lambda: asked, said.append)
    assert mesh == parse_mesh("1x1x16") and not said
    _, (mesh,) = place([Wish()], config, [meshes(16)], lambda: asked, said.append)
    assert sum(size > 1 for size in mesh.values()) == 1
