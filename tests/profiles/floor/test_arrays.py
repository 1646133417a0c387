"""Placed arrays: their bytes are the floor's, and a picture shows what each chip holds."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from model.catalog import find_model
from model.config import ModelConfig
from model.dtypes import BFLOAT16, Dtypes
from profiles.figures.layout import MOST_CHIPS, layout_figure, part, shown_arrays
from profiles.floor.arrays import group_layers, placed_arrays
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Pass
from sharding.catalog import LAYOUTS, attend_by, divide_experts
from sharding.layout import Layout
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS

DTYPES = {
    "bfloat16": BFLOAT16,
    "float32 weights": Dtypes(jnp.bfloat16, jnp.float32),
    **{name: Dtypes(jnp.bfloat16, quantization) for name, quantization in QUANTIZATIONS.items()},
    "int4 and int8 cache": Dtypes(jnp.float32, QUANTIZATIONS["int4"], QUANTIZATIONS["int8"]),
    "fp8 cache": Dtypes(jnp.bfloat16, None, QUANTIZATIONS["fp8"]),
}


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("model", ["smollm2-135m", "llama3-70b", "mixtral-8x7b", "gemma3-270m"])
def test_their_bytes_are_those_that_the_floor_counts(model, dtypes):
    config = find_model(model)
    windows = config.windows and config.windows[4:6]  # two layers of Gemma's: with one and without
    config = dataclasses.replace(config, layers=2, windows=windows)
    for layout in LAYOUTS.values():
        check_bytes(config, layout, DTYPES[dtypes])


def check_bytes(config: ModelConfig, layout: Layout, dtypes: Dtypes) -> None:
    placement = Placement.of(attend_by(layout, "batch"), config.sizes, parse_mesh("2x2x2"))
    arrays = placed_arrays(config, placement, dtypes, 64, 512)
    counted = PassCounter(config, placement, dtypes).count(Pass(batch=64, context=511, slots=512))
    cache = sum(array.bytes_per_chip for array in arrays if array.name.startswith("cache/"))
    assert cache == counted.kv_resident
    assert sum(array.bytes_per_chip for array in arrays) - cache == counted.weights_resident


def test_layers_alike_are_one_row():
    config = find_model("llama3-8b")
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, parse_mesh("8"))
    rows = group_layers(placed_arrays(config, placement, BFLOAT16, 8, 128))
    down = next((array, count) for array, count in rows if array.name == "layers/*/mlp/down")
    assert down[1] == 32 and down[0].notation == "[D, F.z]"
    assert len(rows) == 12


def test_a_matrix_in_few_bits_is_a_row_for_each_of_its_arrays():
    """Bytes by hand: 4 bits a value, and 4 bytes a scale and an offset for each group of 32."""
    config = find_model("llama3-8b")
    placement = Placement.of(LAYOUTS["weight_stationary_2d"], config.sizes, parse_mesh("2x2x2"))
    dtypes = Dtypes(jnp.bfloat16, QUANTIZATIONS["int4"], QUANTIZATIONS["int8"])
    found = {
        array.name: (array.notation, array.bytes_per_chip)
        for array, _ in group_layers(placed_arrays(config, placement, dtypes, 8, 128))
    }
    values = 4096 * 14_336 // 8
    assert found["layers/*/mlp/down/values"] == ("[D.x, F.zy]", values // 2)
    for name in ("scales", "offsets"):
        assert found[f"layers/*/mlp/down/{name}"] == ("[D.x, F.zy]", values // 32 * 4)
    tokens_and_heads = 8 * 128 * 8 // 8
    assert found["cache/keys/*/values"] == ("[B, K.zyx, S, h]", tokens_and_heads * 128)
    assert found["cache/keys/*/scales"] == ("[K.zyx, B, S]", tokens_and_heads * 4)


@pytest.mark.parametrize("mesh", ["2x2x2", "1x2x4", "3x2x1"])
def test_the_parts_of_a_side_cover_it_without_overlap(mesh):
    sizes = parse_mesh(mesh)
    for divided in (["z", "y"], ["x"]), (["x", "z", "y"],), ([], ["y"]):
        parts = set()
        for place in itertools.product(*map(range, sizes.values())):
            parts.add(part(divided, dict(zip(sizes, place, strict=True)), sizes))
        begins, lengths = map(np.array, zip(*sorted(parts), strict=True))
        np.testing.assert_allclose(begins, np.arange(len(parts)) / len(parts), atol=1e-12)
        np.testing.assert_allclose(lengths, 1 / len(parts))


@pytest.mark.parametrize(
    ("mesh", "chips"),
    [("2x2x2", 8), pytest.param("8x1x1", 8, marks=pytest.mark.slow), ("4x8x8", MOST_CHIPS)],
)
def test_the_picture_has_a_square_per_chip_filled_by_its_share(tmp_path, mesh, chips):
    config = find_model("llama3-70b")
    layout = attend_by(LAYOUTS["weight_gathered_x"], "sequence")
    placement = Placement.of(layout, config.sizes, parse_mesh(mesh))
    figure = layout_figure(placement, "llama3-70b, bfloat16", tmp_path / "layout.png")
    kinds = shown_arrays(placement)
    assert len(figure.axes) == len(kinds) == 7  # weights in use differ from those stored
    for panel, kind in zip(figure.axes, kinds, strict=True):
        outlines, parts = panel.collections
        assert len(outlines.get_paths()) == len(parts.get_paths()) == chips
        areas = [_area(path) for path in parts.get_paths()]
        whole = _area(outlines.get_paths()[0])
        share = placement.copies(kind.spec) / placement.devices
        np.testing.assert_allclose(np.array(areas) / whole, share, rtol=1e-6)
        assert kind.title in panel.get_title()
    text = " ".join(each.get_text() for each in figure.texts)
    assert "weight_gathered_x" in text and "llama3-70b, bfloat16" in text
    assert ("of 256 chips" in text) == (chips == MOST_CHIPS)


def _area(path) -> float:
    low, high = path.vertices.min(axis=0), path.vertices.max(axis=0)
    return float(np.prod(high - low))


def test_experts_are_drawn_over_the_chips_that_hold_them():
    config = find_model("mixtral-8x7b")
    divided = divide_experts(LAYOUTS["weight_stationary_1d"])
    placement = Placement.of(divided, config.sizes, parse_mesh("2x2x2"))
    kind = shown_arrays(placement)[0]
    assert kind.title.startswith("Experts") and kind.spec[0] == ("z", "y", "x")
