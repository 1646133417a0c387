"""Choosing layouts by predicted time: the paper's rules of thumb come out of it."""

import dataclasses
import math

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import find_chip
from profiles.chips.local_devices import LocalDevices, assumed_devices, shape_of
from profiles.chips.slices import Slice, parse_slice
from profiles.expected import choice as choosing
from profiles.expected.candidates import AUTO, LayoutNames, candidates, meshes
from profiles.expected.choice import (
    Purpose,
    admitted,
    check_names,
    choose,
    choose_layouts,
    choose_prefill,
    every_device,
    explain,
    lowest_floor_mesh,
)
from profiles.expected.estimate import best as best_of
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from sharding.catalog import ATTENTION, LAYOUTS, attend_by, prefill_by
from sharding.error_types import LayoutError
from sharding.mesh import parse_mesh
from sharding.quantization import QUANTIZATIONS

V4 = find_chip("v4")


def v4(mesh) -> LocalDevices:
    """Chips of v4 as a mesh has them, all dimensions rings of their own."""
    return LocalDevices(Slice(V4, tuple(mesh.values())), calibration_of("v4"), "a test")


PALM = find_model("palm-540b-padded")


def purpose(*steps: tuple[int, int], config=PALM, dtypes=BFLOAT16, **more) -> Purpose:
    return Purpose(config, lambda: dtypes, [Pass(*step) for step in steps], **more)


def ranking(asked: Purpose, mesh: str, attentions=("heads",)) -> list:
    layouts = [attend_by(layout, kind) for layout in LAYOUTS.values() for kind in attentions]
    shape = parse_mesh(mesh)
    return choose(asked, admitted(asked.config, layouts, [shape]), v4(shape), count=None)


def best(asked: Purpose, mesh: str, attentions=("heads",)) -> str:
    return ranking(asked, mesh, attentions)[0].name


def test_few_chips_take_one_dimension_and_many_take_two():
    """Pope et al. 2022, section 3.2.2: two dimensions win beyond about sixteen chips."""
    small = find_model("llama3-8b")
    assert best(purpose((64, 128), config=small), "1x1x4").startswith("weight_stationary_1d")
    assert best(purpose((512, 128)), "4x4x4").startswith("weight_stationary_2d")


def test_long_contexts_of_multi_query_attention_are_divided_by_batch():
    found = best(purpose((512, 8192)), "4x4x4", ATTENTION)
    assert found == "weight_stationary_2d, attention by batch, on 4x4x4"


def test_one_long_sequence_of_multi_query_attention_is_divided_by_slots():
    config = dataclasses.replace(find_model("llama3-8b"), max_context=1 << 20, kv_heads=1)
    assert "by sequence" in best(purpose((1, 500_000), config=config), "1x1x8", ATTENTION)


def test_times_of_several_batches_are_added_step_by_step():
    """Small batches are bound by memory and large ones by compute: neither sum alone is right."""
    config = find_model("llama3-8b")
    layout = LAYOUTS["weight_stationary_1d"]

    def seconds(*batches: int) -> float:
        mesh = parse_mesh("1x1x4")
        asked = purpose(*((batch, 128) for batch in batches), config=config)
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
    asked, mesh = purpose((batch, length)), parse_mesh("4x4x4")
    decode = LAYOUTS["weight_stationary_2d"]
    both = [prefill_by(decode, one) for one in LAYOUTS.values() if one.weights == decode.weights]
    ways = admitted(PALM, both, [mesh])
    assert choose_prefill(asked, ways, v4(mesh))[0].name == expected


def test_what_does_not_fit_comes_last():
    ranked = ranking(purpose((64, 128)), "8x1x8")
    assert ranked[0].fits and not ranked[-1].fits
    assert "does not fit" in str(ranked[-1])


def test_a_choice_is_explained_beside_the_next_ones():
    ranked = ranking(purpose((64, 128)), "4x4x4")
    text = explain(ranked, "layout", v4(parse_mesh("4x4x4")))
    assert text.startswith(f"layout auto: {ranked[0].name}: ")
    assert str(ranked[1]) in text and "predicted from a test" in text


def test_where_no_layout_goes_the_first_refusal_is_told():
    with pytest.raises(LayoutError, match="d_ff is 73728, which mesh axes z=7"):
        admitted(PALM, LAYOUTS.values(), [parse_mesh("1x1x7")])


def on_slices(monkeypatch, *texts: str) -> None:
    """JAX's first devices are taken to be these slices, by their number."""
    slices = {slice.devices: slice for slice in map(parse_slice, texts)}

    def found(count: int) -> LocalDevices:
        return LocalDevices(slices[count], calibration_of(slices[count].chip.name), "a test")

    monkeypatch.setattr("profiles.expected.choice.local_devices", found)


@pytest.mark.parametrize(
    ("model", "topology", "batch", "context", "mesh"),
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
    monkeypatch, model, topology, batch, context, mesh
):
    """In 1D only the cache differs between meshes: y is what divides KV heads and devices both."""
    on_slices(monkeypatch, topology)
    config, count, said = find_model(model), parse_slice(topology).devices, []
    asked = purpose((batch, context), config=config)
    layouts, (found,) = choose_layouts(
        [LayoutNames("weight_stationary_1d", "heads")], [meshes(count)], asked, said.append
    )
    assert found == parse_mesh(mesh) and layouts == [LAYOUTS["weight_stationary_1d"]]
    assert bool(said) == (mesh != f"1x1x{count}")
    assert all(f"mesh {mesh}: the least floor" in line for line in said)


def test_a_mesh_that_fits_comes_before_one_whose_floor_is_less(monkeypatch):
    on_slices(monkeypatch, "v5e:4x4")
    config, said = find_model("llama3-8b"), []
    shapes = [parse_mesh("1x1x16"), parse_mesh("1x8x2")]
    found = lowest_floor_mesh(
        [LAYOUTS["weight_stationary_1d"]], shapes, purpose((64, 8000), config=config), said.append
    )
    assert found == shapes[1] and said[0].endswith("and does not fit")


def test_auto_chooses_layout_and_mesh_together(monkeypatch):
    on_slices(monkeypatch, "v5e:8x8")
    config, said = find_model("llama3-70b"), []
    asked = purpose((64, 2048), config=config)
    (layout,), (mesh,) = choose_layouts([LayoutNames()], [meshes(64)], asked, said.append)
    deployment = Deployment(
        model=config,
        slice=parse_slice("v5e:8x8"),
        dtypes=BFLOAT16,
        calibration=calibration_of("v5e"),
    )
    expected = best_of(candidates(deployment, LayoutNames().layouts(config)), asked.steps)
    chosen = candidates(deployment, [layout], [mesh])[0]
    seconds = [one.decode(64, 2048).expected.seconds for one in (chosen, expected)]
    assert seconds[0] == pytest.approx(seconds[1])
    assert f"{layout.name}, attention by {layout.attends}, on " in said[0]


def test_a_mixtures_experts_are_divided_where_that_is_expected_to_be_faster(monkeypatch):
    on_slices(monkeypatch, "v5p:2x2x2")
    config, said = find_model("qwen3-30b-a3b"), []
    few_bits = Dtypes(jnp.bfloat16, QUANTIZATIONS["int8"])
    asked = purpose((64, 2048), config=config, dtypes=few_bits)
    (layout,), _ = choose_layouts([LayoutNames()], [meshes(8)], asked, said.append)
    assert layout.expert_parallel and "experts divided" in said[0]


def test_layouts_that_are_compared_share_a_mesh_that_divides_all_batches(monkeypatch):
    on_slices(monkeypatch, "h100:2", "h100:4")
    config = find_model("llama3-8b")
    names = [
        LayoutNames("weight_stationary_1d", "heads"),
        LayoutNames("data_parallel_x_1d", "heads"),
    ]
    _, shapes = choose_layouts(
        names,
        [meshes(2), meshes(4)],
        purpose((1, 2048), (64, 2048), config=config, whole_batches=True),
        lambda text: None,
    )
    assert [math.prod(each.values()) for each in shapes] == [2, 4]
    assert all(each["x"] == 1 for each in shapes)  # x divides a batch of data_parallel_x_1d


def test_a_layout_that_no_mesh_of_a_count_takes_is_refused_before_there_is_work_to_know():
    tiny = find_model("tiny")
    named = LayoutNames("weight_stationary_1d", "heads")
    for refuse in (
        lambda: check_names([named], tiny, [meshes(2), meshes(5)]),
        lambda: choose_layouts([named], [meshes(5)], Purpose(tiny, None, []), None),
    ):
        with pytest.raises(LayoutError, match="d_ff is 128, which mesh axes z=5"):
            refuse()


def test_without_a_count_an_accelerator_gives_all_devices_that_the_layout_divides(monkeypatch):
    tiny = find_model("tiny")
    monkeypatch.setattr(choosing, "devices", lambda: [None] * 7)
    monkeypatch.setattr(choosing, "default_platform", lambda: "gpu")
    assert every_device(tiny, [LayoutNames("weight_stationary_1d", "heads")]) == [meshes(4)]
    monkeypatch.setattr(choosing, "default_platform", lambda: "cpu")
    assert every_device(tiny, [LayoutNames(AUTO, "heads")], on_cpu=(1, 2)) == [meshes(1), meshes(2)]


def test_devices_say_the_shape_of_their_slice():
    box = [(x, y, 0) for x in range(2) for y in range(4)]
    assert shape_of(find_chip("v4"), box) == (2, 4, 1)
    assert shape_of(find_chip("v5e"), box) == (2, 4)
    halves = [at for at in box for _ in range(2)]
    assert shape_of(find_chip("tpu7x"), halves) == (2, 4, 1)
    assert shape_of(V4, [box[0], box[1], box[4]]) == (3, 1, 1)  # no box
    assert shape_of(find_chip("h100"), [None] * 8) == (8,)


def test_devices_of_a_cpu_share_assumed_rates():
    one, four = assumed_devices(1).slice, assumed_devices(4).slice
    assert four.devices == 4 and four.chip.bandwidth * 4 == one.chip.bandwidth


def test_where_no_step_is_to_run_the_simplest_mesh_is_taken(monkeypatch):
    on_slices(monkeypatch, "v5e:4x4")
    config, said = find_model("llama3-8b"), []
    asked, names = purpose(config=config), [LayoutNames("weight_stationary_1d", "heads")]
    _, (mesh,) = choose_layouts(names, [meshes(16)], asked, said.append)
    assert mesh == parse_mesh("1x1x16") and not said
    _, (mesh,) = choose_layouts([LayoutNames()], [meshes(16)], asked, said.append)
    assert sum(size > 1 for size in mesh.values()) == 1
